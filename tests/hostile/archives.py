"""Tar archives as somebody builds them who wants out of a folder, a device made, a file read, or a disk filled."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from hostile.names import hostile_names

KINDS = {
    "symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE, "contiguous": tarfile.CONTTYPE, "sparse": tarfile.GNUTYPE_SPARSE,
    "unknown": b"Z", "volume": b"V", "multi-volume": b"M", "dump folder": b"D", "old file": b"\0",
}  # fmt: skip
TARGETS = ("../outside/pwned", "../../../../outside/pwned", "/dev/null", "/etc/passwd", ".", "..", "", "ok.txt", "loop")


def hostile_archives(outside: Path) -> Iterator[tuple[str, bytes]]:
    """(what it is, its bytes), more than 400."""
    for name in hostile_names(outside):
        yield f"name {name[:40]!r}", one(member(name))
    for word, kind in KINDS.items():
        for target in (*TARGETS, str(outside / "pwned")):
            info = member("loop", kind)
            info.linkname, info.devmajor, info.devminor = target, 1, 3
            yield f"{word} to {target!r}", one(info)
    for word in ("symlink", "hard link"):
        for target in (str(outside), str(outside / "beam.dat"), "../../..", "sub"):
            link = member("sub", KINDS[word])
            link.linkname = target
            through, same = member("sub/pwned"), member("sub")
            yield f"{word} to {target!r}, then through it", one(link, through)
            yield f"file, then {word} to {target!r} of the same name", one(same, link)
            yield f"{word} to {target!r}, then file of the same name", one(link, same)
    yield "one member twice", one(member("twice"), member("twice"))
    yield "two that differ by case", one(member("Same"), member("same"))
    yield "NFC and NFD", one(member("が"), member("が"))
    yield "a file, then a file below it", one(member("a"), member("a/b"))
    yield "a file, then a file in its place", one(member("a/b"), member("a"))
    yield from _pax(outside)
    yield from _broken()


def one(*infos: tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of these members, each plain file with 4 bytes."""
    buffer = io.BytesIO()
    # Python's tar writes a lone surrogate in no pax header.
    lone = any("\ud800" <= char <= "\udfff" for info in infos for char in info.name)
    form = tarfile.GNU_FORMAT if lone else format
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogatepass") as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(b"evil"))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 4) -> tarfile.TarInfo:
    """A member's header."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = size if kind == tarfile.REGTYPE else 0
    return info


def _pax(outside: Path) -> Iterator[tuple[str, bytes]]:
    tricks: list[dict[str, str]] = [
        {"path": "../../pwned"}, {"path": str(outside / "pwned")}, {"path": "a\nb"}, {"path": ""}, {"path": "x" * 5000},
        {"linkpath": "../x"},
        {"size": "-1"}, {"size": "99999999999999999999"}, {"size": "x"}, {"size": "1e3"}, {"size": "3"}, {"uid": "x"},
        {"mtime": "nan"},
        {"mtime": "inf"}, {"mtime": "9" * 400}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
            "GNU.sparse.realsize": str(1 << 50)},
        {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 50)}, {"GNU.sparse.map": "x"}, {"GNU.sparse.map": "5,5,0,9"},
        {"GNU.sparse.name": "../../pwned"}, {"GNU.sparse.size": "-5"}, {"GNU.sparse.numblocks": "9" * 30},
        {"hdrcharset": "BINARY"},
        {"hdrcharset": "x"}, {"comment": "c" * 100000}, {"SCHILY.xattr.security.capability": "x"}, {"path": "%2e%2e/pwned"},
        {"typeflag": "2"},
    ]  # fmt: skip
    for pax in tricks:
        info = member("a")
        info.pax_headers = pax
        yield f"pax {str(pax)[:60]}", one(info)
    header = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        for body in (b"", b"0 x=1\n", b"-5 a=b\n", b"999999999 a=b\n", b"7 path=\n", b"x" * 600, b"18 path=../pwned\n\n",
            b"\xff" * 90, b"5 \xff=\xfe\n"):
            info = member("h", kind)
            info.size = len(body)
            data = info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)
            yield f"header {kind!r} {body[:20]!r}", data + header + bytes(1024)
        yield f"{kind!r} a thousand times", (member("h", kind).tobuf(tarfile.USTAR_FORMAT)) * 1500 + bytes(1024)


def _broken() -> Iterator[tuple[str, bytes]]:
    good = one(member("ok.txt"), member("ok2.txt"))
    for cut in (0, 1, 100, 511, 512, 513, 516, 1023, 1024, 1500):
        yield f"cut at {cut}", good[:cut]
    for at in (0, 100, 124, 135, 148, 156, 257, 345):
        yield f"damaged at {at}", good[:at] + b"\xff\xff" + good[at + 2 :]
    for size in (1 << 20, 1 << 33, 1 << 62, (1 << 63) - 1):
        info = member("big", size=size)
        yield f"announces {size} bytes", info.tobuf(tarfile.GNU_FORMAT) + b"evil" + bytes(508)
    negative = bytearray(member("neg").tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b"%06o\0 " % sum(negative[:148], 8 * 32 + sum(negative[156:]))
    yield "a negative size", bytes(negative) + bytes(1024)
    yield "ten thousand empty members", one(*(member(f"m{number}", size=0) for number in range(10_000)),
        format=tarfile.USTAR_FORMAT)
    yield "gzip of 100 MB", gzip.compress(bytes(100 << 20), 1)
    yield "a zip", b"PK\x03\x04" + bytes(600)
    yield "noise", bytes(range(256)) * 40
    yield "zeros", bytes(1 << 16)
    yield "trailing noise", good + b"\xff" * 5000
    for word in (b"0 1 2", b"-1", b"\x80" + b"\xff" * 11, b"77777777777\0"):
        for at, length in ((124, 12), (100, 8), (136, 12)):
            odd = bytearray(member("n").tobuf(tarfile.USTAR_FORMAT))
            odd[at : at + length] = word[:length].ljust(length, b"\0")
            odd[148:156] = b"%06o\0 " % sum(odd[:148], 8 * 32 + sum(odd[156:]))
            yield f"number {word!r} at {at}", bytes(odd) + bytes(1536)
