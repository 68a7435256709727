"""File names as somebody sends them who wants out of a folder, or wants to show a person another name than there is."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from urllib.parse import quote

DECEIVING = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029]
INVISIBLE = [0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x061C, 0x2060, 0xFEFF, 0x00AD, 0x180E]
OWN = ["job.json", "state.json", "history.jsonl", "result.json", "lock", "offsets/x", "files/x", "put.0", "run/argv/000",
    "reason.json"]


def hostile_names(outside: Path) -> list[str]:
    """More than 250 names, each once. `outside` is the folder of canaries, which absolute names point to."""
    names = [f"{'../' * depth}{leaf}" for depth in range(1, 9) for leaf in ("pwned", "outside/pwned", "outside/beam.inp")]
    names += ["..", ".", "", "/", "./x", "a/./b", "a//b", "a/", "a/..", "a/../b", "a/../../pwned", "...", "..../x", ".../...",
        "x/.."]
    names += [str(outside / "pwned"), str(outside / "beam.inp"), f"/{outside}/pwned", f"./{outside}/x", "/etc/passwd",
        "/dev/null"]
    names += ["/proc/self/environ", "/proc/self/fd/0", "/dev/stdin", "../../../../../../proc/self/mem", "/tmp/../etc/passwd"]
    names += ["..\\pwned", "..\\..\\pwned", "a\\..\\..\\pwned", "\\pwned", "C:\\pwned", "C:pwned", "\\\\host\\share\\x",
        "//host/share/x"]
    names += ["file:///etc/passwd", "http://127.0.0.1/x", "~/pwned", "~root/pwned", "$HOME/x", "${HOME}", "host:pwned",
        "rsync://h/x"]
    names += [f"a{chr(code)}b" for code in (*range(0x20), *range(0x7F, 0xA0))]
    names += [f"beam{chr(code)}.inp" for code in (*DECEIVING, *INVISIBLE)]
    names += ["\x00", "pwned\x00.inp", "a\n../../pwned", "\r\nX-Evil: 1", "a\x1b[2Jb", "\x1b]0;x\x07"]
    names += ["x" * length for length in (254, 255, 256, 1024, 1025, 4096, 20000)]
    names += ["鋼" * 85, "鋼" * 86, "/".join(["d" * 255] * 3), "/".join(["d" * 255] * 4), "/".join(["d" * 255] * 5),
        "a/" * 400 + "x", "a/" * 3000]
    names += [f"{word}{end}" for word in ("CON", "NUL", "PRN", "AUX", "COM1", "LPT1", "con", "CLOCK$") for end in ("", ".txt",
        ":")]
    names += ["trailing.", "trailing..", "trailing ", " leading", "a./b", "a /b", "x:stream", "x::$DATA", "BEAM~1.INP"]
    names += [f"-{word}" for word in ("", "-", "rf", "-delete", "e sh", "-files-from=x", "-rsh=touch pwned",
        "oProxyCommand=x")] + ["a/-rf"]
    names += [".hidden", ".bashrc", ".ssh/authorized_keys", "..hidden", ".git/config", "abaqus_v6.env", "solver.env"]
    names += OWN + [f"../{name}" for name in OWN] + [f"../../other/{name}" for name in OWN[:4]]
    names += ["%2e%2e%2fpwned", "%2e%2e/pwned", "..%2fpwned", "..%5cpwned", "%252e%252e%252fpwned", "%00", "a%00b",
        "%c0%ae%c0%ae/pwned"]
    names += ["..%c0%afpwned", "%uff0e%uff0e/pwned", "%e2%80%ae", "%0d%0aX-Evil:1", "%2fetc%2fpasswd", "%25", "%", "%zz", "?x=1",
        "#x", "a;b=c"]
    names += ["．．/pwned", "‥/pwned", "。。/pwned", "∕etc∕passwd", "․․/pwned", "a∕b", "..\u2215pwned", "\u2024\u2024/x"]
    names += ["\ud800", "a\udcffb", "\udc2e\udc2e/pwned", "\udfff" * 3, "\U0010ffff", "\ufffe", "\uffff", "\ue000"]
    names += ["$(touch pwned)", "`touch pwned`", "; touch pwned", "| touch pwned", "&& touch pwned", "x > pwned", "'", '"',
        "a'b\"c", "*", "?", "[a]", "**"]
    names += ["{a,b}", "!x", "#comment", ";comment", "<script>alert(1)</script>", "{{7*7}}", "%s%n", "{0.__class__}", "../{args}"]
    for word in ("Å", "が", "é", "ñ", "ｶﾞ"):
        names += [unicodedata.normalize(form, word) for form in ("NFC", "NFD", "NFKC")]
    names += ["Case", "case", "CASE", "ſ", "ı", "İ", "ß", "ﬁ", "Ω", "Ω"]
    return list(dict.fromkeys(names))


def must_be_refused(name: str) -> bool:
    """True for what no reading of docs/format.md allows; judged here without the product's code."""
    parts = name.split("/")
    try:
        sizes = [len(part.encode("utf-8")) for part in parts]
    except UnicodeEncodeError:
        return True
    too_long = max(sizes) > 255 or sum(sizes) + len(parts) - 1 > 1024
    odd = any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 or ord(char) in DECEIVING for char in name)
    return too_long or odd or any(part in ("", ".", "..") or part.startswith("-") for part in parts)


def spellings(name: str) -> list[bytes]:
    """How the name may stand in a request's target: encoded once, wholly, twice, and raw where that is one word."""
    data = name.encode("utf-8", "surrogatepass")
    once, wholly = quote(data), quote(data, safe="")
    raw = data if data and not any(byte <= 32 or byte == 127 for byte in data) else b"%2e%2e/" + once.encode()
    everything = "".join(f"%{byte:02x}" for byte in data)
    return [once.encode(), wholly.encode(), quote(once, safe="").encode(), everything.encode(), raw]
