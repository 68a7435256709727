"""Valid requests made wrong, one to three ways at once: method, target, query, headers, JSON, bytes, framing."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from hostile.names import hostile_names

METHODS = ["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "P\x00ST", "PROPFIND",
    "X" * 300, ""]
NUMBERS = ["0", "-1", "1", "00", "1e9", "9" * 18, "9" * 19, "9" * 400, "0x10", "٣", "1_0", "+1", " 1", "NaN", "", "1,1", "²"]
HEADERS: dict[str, Sequence[str]] = {
    "Content-Length": [*NUMBERS, "3", "5000000", "68000000", "3000000000"],
    "Transfer-Encoding": ["chunked", "identity", "chunked, chunked", "gzip", "xchunked", " chunked", "CHUNKED", "chunked\x0b"],
    "Upload-Offset": [*NUMBERS, "999999"],
    "Content-Range": ["bytes 0-1/2", "bytes 5-1/2", "bytes */0", "x"],
    "Range": ["bytes=0-", "bytes=-", "bytes=5-1", "bytes=-0", "bytes=99999999999999999999-", "bytes=0-0,2-3", "bytes=a-b",
        "bytes=-" + "9" * 30],
    "If-Range": ['"x"', "W/", "\xff"],
    "Authorization": ["", "Bearer", "Bearer  ", "Basic eDp5", "Bearer \xe9\xff", "Bearer " + "x" * 9000, "Digest a",
        "Bearer a b", "bearer\t"],
    "Content-Digest": ["sha-256=:AAAA:", "sha-256=:" + "A" * 43 + "=:", "sha-256=::", "md5=:x:", "\xff",
        "sha-256=:" + "=" * 44 + ":"],
    "Content-Type": ["text/plain", "application/json; charset=utf-16", "multipart/form-data; boundary=" + "x" * 999, "\xff", ""],
    "Content-Encoding": ["gzip", "deflate", "br"],
    "X-HTTP-Method-Override": ["PATCH", "DELETE", "patch", "\xff"],
    "X-Forwarded-For": ["1.2.3.4", "x" * 999, "::1", "127.0.0.1, 1.1.1.1", "\xff"],
    "X-Forwarded-Host": ["evil"], "X-Forwarded-Proto": ["https"], "Forwarded": ["for=1.2.3.4;host=x"],
    "Host": ["", "a b", "x" * 5000, "[::1", "\xff", "evil:99999999"],
    "Expect": ["100-continue", "200-ok"], "Connection": ["keep-alive", "upgrade", "close, x"], "Upgrade": ["h2c"],
    "Cookie": ["a=b; " * 500, "\xff=1"], "Accept-Encoding": ["*;q=x"], "If-None-Match": ["*"], "If-Modified-Since": ["x"],
    "Trailer": ["Content-Length"], "TE": ["trailers"], "Content_Length": ["4"], "Upload_Offset": ["3"],
}  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**53 + 1, 2**63, 2**64, 10**19, -(10**19), 0.5, -0.0, 1e308, [], {}, [[]], "",
    " ", "x",
    "\0", "a\nb", "\u202e", "../x", "鋼", "x" * 5000, [None], [1, "a"], {"a": {}}, {"": ""}, ["x"] * 2000,
    {str(number): 1 for number in range(500)},
    "00000000-0000-0000-0000-000000000000", "2020-01-01T00:00:00Z", "9999-99-99T99:99:99Z", "1e5", "[", "**/" * 40 + "x",
        "{" * 50, "*" * 200,
]  # fmt: skip
RAW = [
    b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"9" * 5000, b'"\\ud800"', b'"\\udc00\\ud800"', b"[" * 3000,
        b'{"a":' * 3000,
    b"[" * 100000, b'"\xff"', b'"\\u0000"', b'"\\x"', b"'x'", b"0123", b"{}{}", b'{"a":1,"a":2}', b"", b"tru", b"/*x*/1",
        b"\xef\xbb\xbf1",
    b"\x00", b"1.0e", b"-", b'"' + b"\\" * 999, b"[1,]", b'{"a":1,}', b'{"jobs":[{}]}', b"[" * 500 + b"]" * 500,
]  # fmt: skip
KEYS = ["id", "run_id", "site", "user", "command", "args", "inputs", "outputs", "env", "jobs", "room", "files", "format",
    "wait_s", "seq",
        "accept_id", "site_id", "result", "result_files", "calc-info", "expires_at", "priority", "labels", "state", "attempt",
        "", "\0", "__class__"]  # fmt: skip


class Mutator:
    """Makes one request of a valid one; the same seed makes the same."""

    def __init__(self, seed: int, outside: Any) -> None:
        self.random = random.Random(seed)
        self._names = [name.encode("utf-8", "surrogatepass") for name in hostile_names(outside)]
        self._ways: list[Callable[[bytes], bytes]] = [
            self._method, self._target, self._target, self._query, self._header, self._header, self._header, self._json,
            self._json,
            self._json, self._json, self._body, self._bytes, self._framing, self._line,
        ]  # fmt: skip

    def mutated(self, request: bytes) -> bytes:
        """The request with one to three things wrong."""
        for _ in range(self.random.choice((1, 1, 1, 2, 2, 3))):
            request = self.random.choice(self._ways)(request)
        return request

    def _head(self, request: bytes) -> tuple[bytes, bytes, bytes]:
        head, _, body = request.partition(b"\r\n\r\n")
        first, _, fields = head.partition(b"\r\n")
        return first, fields, body

    def _method(self, request: bytes) -> bytes:
        return self.random.choice(METHODS).encode() + request[request.find(b" ") :]

    def _target(self, request: bytes) -> bytes:
        first, fields, body = self._head(request)
        words = first.split(b" ")
        path, _, query = (words[1] if len(words) > 1 else b"/").partition(b"?")
        parts = path.split(b"/")
        way, name = self.random.randrange(7), self.random.choice(self._names)
        quoted = "".join(f"%{byte:02X}" for byte in name[:300]).encode()
        if way == 0:
            parts[self.random.randrange(len(parts))] = quoted
        elif way == 1:
            parts.append(quoted)
        elif way == 2:
            del parts[self.random.randrange(len(parts))]
        elif way == 3:
            parts.insert(self.random.randrange(len(parts)), self.random.choice([b"", b".", b"..", b"%2e%2e", b"%00", b"%",
                b"%zz", b"%ff"]))
        elif way == 4:
            parts[-1] = re.sub(rb"[ \r\n]", b"%20", name)[:3000]
        elif way == 5:
            parts = [b"http:", b"", b"evil", *parts[1:]]
        else:
            parts = [part.upper() for part in parts]
        return b" ".join([words[0], b"/".join(parts) + (b"?" + query if query else b""),
            *words[2:]]) + b"\r\n" + fields + b"\r\n\r\n" + body

    def _query(self, request: bytes) -> bytes:
        first, fields, body = self._head(request)
        words = first.split(b" ")
        if len(words) < 3:
            return request
        more = self.random.choice([
            b"run_id=%00", b"run_id=" + b"x" * 9000, b"limit=-1", b"limit=99999999999999999999", b"limit=0", b"state=%ff",
            b"user=%e2%80%ae",
            b"after=../../x", b"max_bytes=1e9", b"max_bytes=999999999999999", b"accept_id=", b"accept_id[]=1", b"site_id=../x",
            b"force=1",
            b"a=b" * 500, b"%=%&&&;=", b"=", b"run_id=a&run_id=b", b"accept_id=%F0%28%8C%28",
        ])  # fmt: skip
        words[1] += (b"&" if b"?" in words[1] else b"?") + more
        return b" ".join(words) + b"\r\n" + fields + b"\r\n\r\n" + body

    def _header(self, request: bytes) -> bytes:
        first, fields, body = self._head(request)
        name = self.random.choice(list(HEADERS))
        value = self.random.choice(HEADERS[name]).encode("utf-8" if self.random.random() < 0.3 else "latin-1", "replace")
        lines = fields.split(b"\r\n")
        if self.random.random() < 0.7:
            lines = [line for line in lines if not line.lower().startswith(name.lower().encode() + b":")]
        if self.random.random() < 0.95:
            lines.append(name.encode() + b": " + value)
        return first + b"\r\n" + b"\r\n".join(line for line in lines if line) + b"\r\n\r\n" + body

    def _json(self, request: bytes) -> bytes:
        body = self._head(request)[2]
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return self._body(request)
        marks: dict[str, bytes] = {}
        for _ in range(self.random.choice((1, 1, 2))):
            document = self._changed(document, marks)
        data = json.dumps(document, ensure_ascii=self.random.random() < 0.1).encode("utf-8", "surrogatepass")
        for mark, raw in marks.items():
            data = data.replace(f'"{mark}"'.encode(), raw)
        return self._with_body(request, data)

    def _changed(self, value: Any, marks: dict[str, bytes]) -> Any:
        if isinstance(value, dict) and value and self.random.random() < 0.85:
            key = self.random.choice(list(value))
            if self.random.random() < 0.1:
                return {name: item for name, item in value.items() if name != key}
            if self.random.random() < 0.15:
                return {**value, self.random.choice(KEYS): self._value(marks)}
            return {**value, key: self._changed(value[key], marks)}
        if isinstance(value, list) and value and self.random.random() < 0.8:
            at = self.random.randrange(len(value))
            return [*value[:at], self._changed(value[at], marks), *value[at + 1 :]]
        return self._value(marks)

    def _value(self, marks: dict[str, bytes]) -> Any:
        kind = self.random.random()
        if kind < 0.3:
            mark = f"mark-{len(marks)}"
            marks[mark] = self.random.choice(RAW)
            return mark
        if kind < 0.5:
            return self.random.choice(self._names).decode("utf-8", "surrogatepass")[:3000]
        return self.random.choice(VALUES)

    def _body(self, request: bytes) -> bytes:
        body = self._head(request)[2]
        way = self.random.randrange(5)
        if way == 0:
            body = self.random.choice(RAW)
        elif way == 1:
            body = self.random.randbytes(self.random.choice((1, 50, 5000))) if hasattr(self.random,
                "randbytes") else b"\xff\x00" * 99
        elif way == 2 and body:
            body = body[: self.random.randrange(len(body))]
        elif way == 3:
            body += self.random.choice(RAW)
        elif body:
            at = self.random.randrange(len(body))
            body = body[:at] + bytes([self.random.randrange(256)]) + body[at + 1 :]
        return self._with_body(request, body)

    def _with_body(self, request: bytes, body: bytes) -> bytes:
        first, fields, _ = self._head(request)
        fields = re.sub(rb"(?im)^content-length:[^\r\n]*(\r\n)?", b"", fields).strip(b"\r\n")
        return first + b"\r\n" + fields + (b"\r\n" if fields else b"") + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def _bytes(self, request: bytes) -> bytes:
        at = self.random.randrange(len(request))
        what = self.random.choice([b"", b"\x00", b"\r", b"\n", b"\xff", b" ", b":", b"\r\n", b"\t", b"\x0b", b"%"])
        return request[:at] + what + request[at + self.random.randrange(2) :]

    def _framing(self, request: bytes) -> bytes:
        first, fields, body = self._head(request)
        fields = re.sub(rb"(?im)^content-length:[^\r\n]*(\r\n)?", b"", fields).strip(b"\r\n")
        chunks = self.random.choice([
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n", b"zz\r\nx\r\n0\r\n\r\n", b"-1\r\n\r\n",
            b"ffffffffffffffff\r\nx",
            b"5;ext=\"x\r\nabcde\r\n0\r\nTrailer: x\r\n\r\n", b"3\r\nabc", b"3\r\nabcd\r\n0\r\n\r\n", b"0x3\r\nabc\r\n0\r\n\r\n",
            b"",
        ])  # fmt: skip
        extra = self.random.choice([b"", b"\r\nContent-Length: 5", b"\r\nTransfer-Encoding: chunked"])
        return first + b"\r\n" + fields + b"\r\nTransfer-Encoding: chunked" + extra + b"\r\n\r\n" + chunks

    def _line(self, request: bytes) -> bytes:
        first, fields, body = self._head(request)
        words = first.split(b" ")
        odd = self.random.choice([
            b"GET", b"GET /", b"", b"GET / HTTP/9.9", b"GET / HTTP/1.0", b"GET  /health  HTTP/1.1", b"\x16\x03\x01\x02\x00\x01",
            b"GET http://[::1 HTTP/1.1",
            b"GET //evil/%2f HTTP/1.1", b"GET * HTTP/1.1", b"PRI * HTTP/2.0", words[0] + b" " + words[-1], first[:-1],
            first + b" x", b"GET /" + b"a" * 70000,
            b"GET /\xe2\x80\xae HTTP/1.1", b"GET http://[x]/v1/jobs HTTP/1.1", b"GET https://a:b@c:99999/v1/jobs HTTP/1.1",
            b"GET /?" + b"&a=1" * 9000 + b" HTTP/1.1",
        ])  # fmt: skip
        return odd + b"\r\n" + fields + b"\r\n\r\n" + body


def headers_of(request: bytes) -> Mapping[str, str]:
    """The header fields of a request as sent, for a person who reads a failure."""
    head = request.partition(b"\r\n\r\n")[0].decode("latin-1")
    return dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
