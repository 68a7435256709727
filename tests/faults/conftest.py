"""Hosts of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from components.netns import Host, Net
from components.netrig import CompanySshd, NetRig
from components.privilege import need_root

MakeNetRig = Callable[[int], NetRig]
MakeCompanySshd = Callable[[Host, str], CompanySshd]


@pytest.fixture
def make_net_rig(tmp_path: Path) -> Iterator[MakeNetRig]:
    """`make_net_rig(companies)`: nothing is started yet."""
    need_root()
    made: list[tuple[NetRig, Net]] = []

    def make(companies: int = 1) -> NetRig:
        net = Net(companies)
        made.append((NetRig(tmp_path / "rig", net), net))
        return made[-1][0]

    yield make
    for rig, net in made:
        rig.close()
        net.close()


@pytest.fixture
def company_sshd() -> Iterator[MakeCompanySshd]:
    """`company_sshd(host, site)`: its name in ssh_config is the site's."""
    made: list[CompanySshd] = []

    def make(host: Host, name: str) -> CompanySshd:
        made.append(CompanySshd(host, name))
        return made[-1]

    yield make
    for server in made:
        server.close()
