"""Hosts of one's own: MInt and any number of companies as network namespaces, a router between them that can be made to fail.

    MInt 10.77.0.2 --- router --- 10.77.N.2 company N

Every packet is forwarded by the router, so nftables there drops silently, resets or counts what either side sends, and tc
makes a line narrow; neither host sees more than what a bad line shows. Nothing of it is seen by other namespaces. `close`
removes all; what a killed run left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, TypeVar

from components import proc
from components.process import run
from components.waiting import wait_until

T = TypeVar("T")

DROP, RESET = "drop", "meta l4proto tcp reject with tcp reset"
_NAMES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_MATCH_BYTES = 16  # of one raw payload expression
_numbers = itertools.count()


@dataclass(frozen=True)
class Host:
    """A namespace. `within` does something in it: sockets made and programs started there are that host's."""

    name: str
    address: str

    def within(self, work: Callable[[], T]) -> T:
        """Call `work` in a thread that has entered the namespace; what is started from it stays there."""
        answer: list[T] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                with open(_NAMES / self.name) as namespace:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), f"setns {self.name}")
                answer.append(work())
            except BaseException as error:  # noqa: BLE001 - handed over to the caller's thread
                failure.append(error)

        thread = threading.Thread(target=enter, name=f"in-{self.name}")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return answer[0]

    def exec(self, *argv: str, stdin: str = "") -> str:
        """Run a command in the namespace to its end; its standard output."""
        return run(["ip", "netns", "exec", self.name, *argv], stdin=stdin).stdout


class Line:
    """The line of one company. `up` is what it sends, `down` what MInt sends."""

    def __init__(self, router: Host, company: Host, number: int) -> None:
        self._router = router
        self._company = company
        self._number = number
        self._port = f"company{number}"
        self._nft(f"""
            table inet line{number} {{
                set armed {{ type inet_service; flags dynamic; size 4096; }}
                set sprung {{ type ipv4_addr; flags dynamic; size 16; }}
                set never {{ type inet_service; flags dynamic; size 4096; }}
                counter up {{ }}
                counter down {{ }}
                chain fault {{ }}
                chain forward {{
                    type filter hook forward priority 0;
                    iifname "{self._port}" tcp sport @never drop
                    iifname "{self._port}" counter name up jump fault
                    oifname "{self._port}" counter name down jump fault
                }}
            }}""")

    # ---- faults: one at a time, until `heal`

    def cut(self, how: str = DROP) -> None:
        """From now on nothing passes: it is dropped without a word, or (RESET) answered with a reset to whoever sends."""
        self._fault(how)

    def lose(self, percent: int) -> None:
        """Each packet is lost with that probability, both ways."""
        self._fault(f"numgen random mod 100 < {percent} drop")

    def cut_after(self, count: int, how: str = DROP) -> None:
        """`count` bytes pass, both ways together; then the line is cut."""
        table = f"inet line{self._number}"
        rule = f"quota over {count} bytes update @sprung {{ ip daddr }} {how}"
        self._nft(f"flush chain {table} fault\nadd rule {table} fault {rule}")

    def trap_request(self, start: str, how: str = DROP) -> None:
        """The line is cut by the company's next HTTP request that begins with `start`, which is lost. See `_match`."""
        self._fault(
            f"iifname {self._port} {_match(start)} update @armed {{ tcp sport }} update @sprung {{ ip saddr }}",
            f"{self._address_sprung('saddr')} {how}",
            f"{self._address_sprung('daddr')} {how}",
        )

    def trap_answer(self, start: str, how: str = DROP) -> None:
        """The next such request is done by the server; its answer, and all after it, is lost."""
        self._fault(
            f"{self._address_sprung('saddr')} {how}",
            f"{self._address_sprung('daddr')} {how}",
            f"iifname {self._port} {_match(start)} update @armed {{ tcp sport }}",
            f"oifname {self._port} {_match('HTTP/1.')} tcp dport @armed update @sprung {{ ip daddr }} {how}",
        )

    def _address_sprung(self, which: str) -> str:
        return f"ip {which} {self._company.address} ip {which} @sprung"

    def _fault(self, *rules: str) -> None:
        table = f"inet line{self._number}"
        lines = [f"flush chain {table} fault", f"flush set {table} armed", f"flush set {table} sprung"]
        self._nft("\n".join([*lines, *(f"add rule {table} fault {rule}" for rule in rules)]))

    def heal(self, *, late: bool = True) -> None:
        """Everything passes again; without `late` not what was sent on a trapped connection, which TCP still repeats."""
        ports = self._elements("armed")
        if ports and not late:
            self._nft(f"add element inet line{self._number} never {{ {', '.join(map(str, ports))} }}")
        self._fault()

    @property
    def armed(self) -> bool:
        """Whether a request was seen whose answer will be lost."""
        return bool(self._elements("armed"))

    @property
    def sprung(self) -> bool:
        """Whether what was set by `trap_…` or `cut_after` has happened."""
        return bool(self._elements("sprung"))

    def _elements(self, name: str) -> list[object]:
        said = json.loads(self._router.exec("nft", "-j", "list", "set", "inet", f"line{self._number}", name))
        return [element for item in said["nftables"] for element in item.get("set", {}).get("elem", [])]

    def wait_sprung(self, deadline_s: float = 60) -> None:
        wait_until(lambda: self.sprung, deadline_s, f"the trap on line {self._number} has sprung", every_s=0.05)

    # ---- width and bytes

    def shape(self, kbit: int) -> None:
        """Make the line that narrow in each direction; 0 undoes it."""
        for host, port in ((self._router, self._port), (self._company, "eth0")):
            if kbit:
                words = ["rate", f"{kbit}kbit", "burst", "16k", "latency", "300ms"]
                host.exec("tc", "qdisc", "replace", "dev", port, "root", "tbf", *words)
            else:
                host.exec("tc", "qdisc", "del", "dev", port, "root")

    def carried(self) -> tuple[int, int]:
        """Bytes that came from the company and bytes for it, lost ones included."""
        said = json.loads(self._router.exec("nft", "-j", "list", "counters", "table", "inet", f"line{self._number}"))
        found = {item["counter"]["name"]: int(item["counter"]["bytes"]) for item in said["nftables"] if "counter" in item}
        return found["up"], found["down"]

    def _nft(self, script: str) -> None:
        self._router.exec("nft", "-f", "-", stdin=script)


class Net:
    """MInt, its router and `companies` hosts behind lines of their own; a context manager."""

    def __init__(self, companies: int = 1) -> None:
        _remove_leftovers()
        prefix = f"mint-{os.getpid()}-{next(_numbers)}"
        self._made: list[Host] = []
        try:
            self._router = self._host(f"{prefix}-router", "10.77.0.1")
            self.mint = self._host(f"{prefix}-mint", "10.77.0.2")
            self._join(self.mint, "mint", "10.77.0.1")
            self.companies = []
            self.lines = []
            for number in range(1, companies + 1):
                company = self._host(f"{prefix}-company{number}", f"10.77.{number}.2")
                self._join(company, f"company{number}", f"10.77.{number}.1")
                self.companies.append(company)
                self.lines.append(Line(self._router, company, number))
            self._router.exec("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        except BaseException:
            self.close()
            raise

    def _host(self, name: str, address: str) -> Host:
        run(["ip", "netns", "add", name])
        host = Host(name, address)
        self._made.append(host)
        run(["ip", "-n", name, "link", "set", "lo", "up"])
        return host

    def _join(self, host: Host, port: str, gateway: str) -> None:
        _ip(f"link add {port} netns {self._router.name} type veth peer name eth0 netns {host.name}")
        _ip(f"-n {self._router.name} addr add {gateway}/24 dev {port}")
        _ip(f"-n {host.name} addr add {host.address}/24 dev eth0")
        _ip(f"-n {self._router.name} link set {port} up")
        _ip(f"-n {host.name} link set eth0 up")
        _ip(f"-n {host.name} route add default via {gateway}")

    def close(self) -> None:
        """End what runs in the namespaces and remove them. Safe to repeat."""
        for host in self._made:
            _remove(host.name)
        self._made.clear()

    def __enter__(self) -> Net:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ip(words: str) -> None:
    run(["ip", *words.split()])


def _remove(name: str) -> None:
    if (_NAMES / name).exists():
        pids = run(["ip", "netns", "pids", name], check=False).stdout.split()
        # A thread of this process that died within never shows; this process itself must not be ended.
        proc.kill([int(pid) for pid in pids if int(pid) != os.getpid()])
        run(["ip", "netns", "del", name], check=False)


def _remove_leftovers() -> None:
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(_NAMES):
            made = re.fullmatch(r"mint-(\d+)-\d+-\w+", name)
            if made and not os.path.exists(f"/proc/{made[1]}"):
                _remove(name)


def _match(start: str) -> str:
    """The nft expressions for a TCP payload that begins so; each `?` in `start` stands for any byte."""
    return " ".join(_pieces(start))


def _pieces(start: str) -> Iterator[str]:
    for found in re.finditer(rf"[^?]{{1,{_MATCH_BYTES}}}", start):
        data = found[0].encode("ascii")
        yield f"@ih,{8 * found.start()},{8 * len(data)} 0x{data.hex()}"


def together(work: Mapping[str, Callable[[], None]]) -> None:
    """Call all of them at once, each in a thread; fails with what went wrong in any, by its name."""
    failures: list[str] = []

    def safely(name: str, one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:  # noqa: BLE001 - told below, with those of the others
            failures.append(f"{name}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=safely, args=item) for item in work.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, "\n\n".join(failures)
