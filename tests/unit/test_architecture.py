"""The house stands as designed: imports point down only, nothing happens at import, files stay readable."""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).resolve().parents[2]
MAX_LINES = 400
PROGRAMS = ("spool_server", "spool_agent", "ssh_push")


class Room(NamedTuple):
    """What the modules of one room may import, besides the standard library."""

    rooms: frozenset[str]
    packages: frozenset[str]


def _room(rooms: str, packages: str = "") -> Room:
    return Room(frozenset(rooms.split()), frozenset(packages.split()))


ROOMS = {
    "spool": _room("spool", "filelock"),
    "spool.server": _room("spool spool.server", "bottle waitress"),
    "spool.agent": _room("spool spool.agent", "requests"),
    "spool.ssh": _room("spool spool.ssh"),
    "spool.ctl": _room("spool spool.server spool.ctl", "requests rich"),
    "spool_server": _room("spool spool.server", "bottle waitress"),
    "spool_agent": _room("spool spool.agent"),
    "ssh_push": _room("spool spool.ssh"),
}

# Imports inside a function: rich is an extra, and what it draws has a plain form where it is not installed.
OPTIONAL_IN_FUNCTIONS = {("spool.ctl", "rich")}


class Import(NamedTuple):
    """One imported module, as far down as it names a file of ours."""

    target: str
    line: int
    in_function: bool


def _modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {name: REPO / f"{name}.py" for name in PROGRAMS}
    for path in sorted((REPO / "spool").rglob("*.py")):
        parts = path.relative_to(REPO).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if path.exists()}


MODULES = _modules()
each_module = pytest.mark.parametrize("module", MODULES)


@functools.cache
def _tree(module: str) -> ast.Module:
    path = MODULES[module]
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 9))


def room_of(module: str) -> str:
    """The folder that a module belongs to, or the program itself."""
    is_package = MODULES[module].name == "__init__.py"
    return module if is_package or "." not in module else module.rpartition(".")[0]


def imports_of(module: str) -> Iterator[Import]:
    """All imports of a module, those under TYPE_CHECKING too: an arrow is an arrow."""
    yield from _imports_in(_tree(module), module, in_function=False)


def _imports_in(node: ast.AST, module: str, in_function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, in_function)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(module, child)
            for alias in child.names:
                deeper = f"{base}.{alias.name}"
                yield Import(deeper if deeper in MODULES else base, child.lineno, in_function)
        else:
            yield from _imports_in(child, module, inside)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    is_package = MODULES[module].name == "__init__.py"
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*kept, *([node.module] if node.module else [])])


@functools.cache
def _standard_library() -> frozenset[str]:
    known = getattr(sys, "stdlib_module_names", None)  # from Python 3.10 on
    if known is not None:
        return frozenset(known)
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [*folder.iterdir(), *(folder / "lib-dynload").iterdir()]
    return frozenset(sys.builtin_module_names) | {path.name.split(".")[0] for path in files}


@pytest.mark.parametrize("room", ROOMS)
def test_the_room_is_there(room: str) -> None:
    assert room in MODULES


@each_module
def test_the_room_is_in_the_plan(module: str) -> None:
    """A new folder under spool/ needs a line in ROOMS, that is, a decision about what it may import."""
    assert room_of(module) in ROOMS


@each_module
def test_imports_point_down_only(module: str) -> None:
    room = ROOMS[room_of(module)]
    wrong = []
    for found in imports_of(module):
        if found.target in MODULES:
            allowed = room_of(found.target) in room.rooms and found.target not in PROGRAMS
        else:
            top = found.target.split(".")[0]
            allowed = top in room.packages or top in _standard_library()
        if not allowed:
            wrong.append(f"{MODULES[module].relative_to(REPO)}:{found.line} imports {found.target}")
    assert not wrong


@each_module
def test_no_import_hides_in_a_function(module: str) -> None:
    hidden = [
        f"{MODULES[module].relative_to(REPO)}:{found.line} imports {found.target}"
        for found in imports_of(module)
        if found.in_function and (room_of(module), found.target.split(".")[0]) not in OPTIONAL_IN_FUNCTIONS
    ]
    assert not hidden


def test_no_circle_of_imports() -> None:
    below = {name: sorted({one.target for one in imports_of(name)} & set(MODULES) - {name}) for name in MODULES}
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, "imports in a circle: " + " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for target in below[name]:
                walk(target, (*way, name))
            done.add(name)

    for name in below:
        walk(name, ())


@each_module
def test_the_floor_understands_it(module: str) -> None:
    """Syntax only; what Python 3.9's library lacks is found by mypy and by the suite on 3.9 itself."""
    assert _tree(module)


# Files only: a socket at import would be as wrong, but nothing here opens one without a file of its own.
_IMPORT_ONE_BY_ONE = """
import importlib, json, os, sys

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate",
             "os.putenv", "os.chdir", "os.fork", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.bind",
             "socket.connect", "tempfile.mkstemp", "tempfile.mkdtemp", "shutil.rmtree", "shutil.copyfile"}
seen = None

def watch(event, args):
    if seen is None:
        return
    if event == "open":
        path, mode, flags = args
        if isinstance(mode, str) and set(mode) & set("wax+") or isinstance(flags, int) and flags & WRITING:
            seen.append(f"open {path!r} {mode}")
    elif event in FORBIDDEN:
        seen.append(f"{event} {args!r}")

# What the libraries do when they are imported is theirs.
for library in ("bottle", "waitress", "requests", "filelock", "rich"):
    importlib.import_module(library)
sys.dont_write_bytecode = True
sys.addaudithook(watch)
for module in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        seen = []
        try:
            importlib.import_module(module)
        except BaseException as error:
            seen.append(f"{type(error).__name__}: {error}")
        found, seen = seen, None
        for line in found:
            print(f"{module}: {line}")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
print("all imported")
"""


def test_nothing_happens_at_import(tmp_path: Path) -> None:
    """Each module is imported in a process of its own; none writes a file, makes a folder or starts anything."""
    here = tmp_path / "here"
    here.mkdir()
    # Compiled once, not anew by each of two hundred processes.
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled")}
    subprocess.run([sys.executable, "-m", "compileall", "-q", *map(str, MODULES.values())], env=env, check=True)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REPO)!r})\n{_IMPORT_ONE_BY_ONE}"],
        input=json.dumps(sorted(MODULES)),
        capture_output=True,
        text=True,
        cwd=here,
        env=env,
        timeout=240,
        check=True,
    )
    assert done.stdout.splitlines() == ["all imported"], done.stdout
    assert not list(here.iterdir())


def test_every_file_can_be_read_in_one_sitting() -> None:
    files = list(MODULES.values())
    lines = {str(path.relative_to(REPO)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}
