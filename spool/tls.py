"""TLS as both clients speak it (the agent, and spoolctl through a server): whom they trust, what they show, what a refusal means.

Guarantees: the environment chooses the way (https_proxy, no_proxy) and nothing else: REQUESTS_CA_BUNDLE, SSL_CERT_FILE and
SSLKEYLOGFILE change nothing. A pinned key is compared within the handshake, before a byte of a request leaves. What a proxy's
address holds of user and password stands in no message (`hushed`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import ssl
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from spool.addresses import is_loopback
from spool.errors import ConfigError

_SPKI_AFTER = 5  # serial, signature, issuer, validity, subject come before it in RFC 5280's TBSCertificate
_VERSION_TAG = 0xA0
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")
_USERINFO = re.compile(r"//[^/\s@]*@")

_CERTIFICATE_HINTS = {
    9: "it is not valid yet: is this computer's clock right?",
    10: "MInt's operators renew it; is this computer's clock right?",
    18: "it signs itself: is this the server, or something in between? a private one is trusted by ca_file, or pin_sha256",
    62: "the address must be one of the names in it; is this the server?",
    64: "the address must be one of the names in it; is this the server?",
}
_ISSUER_HINT = "no trusted authority signed it: is this the server, or something in between? ca_file names a private authority"

_OLD = "the server speaks only TLS older than 1.2", "MInt's operators set ssl_protocols TLSv1.2 TLSv1.3"
_PLAIN = "what answers there speaks no TLS", "is it the right port, and https there? nothing was sent"
_CUT = "the line ended within the TLS handshake", "a firewall, or a port without TLS? it is tried again"
_SHOWN_CERTIFICATE = "client_cert must be signed by an authority that the server trusts, and still be valid: ask MInt's operators"
_REASONS = {
    "UNSUPPORTED_PROTOCOL": _OLD, "TLSV1_ALERT_PROTOCOL_VERSION": _OLD, "NO_PROTOCOLS_AVAILABLE": _OLD,
    "WRONG_VERSION_NUMBER": _PLAIN, "RECORD_LAYER_FAILURE": _PLAIN, "PACKET_LENGTH_TOO_LONG": _PLAIN, "HTTP_REQUEST": _PLAIN,
    "UNEXPECTED_EOF_WHILE_READING": _CUT,
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": ("the server wants a client certificate", "set client_cert and client_key"),
    "SSLV3_ALERT_BAD_CERTIFICATE": ("the server does not take this client certificate", _SHOWN_CERTIFICATE),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": ("the server does not take this client certificate", _SHOWN_CERTIFICATE),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": ("the server does not take this client certificate", _SHOWN_CERTIFICATE),
    "TLSV1_ALERT_UNKNOWN_CA": ("the server does not take this client certificate", _SHOWN_CERTIFICATE),
}  # fmt: skip
_PROXY_HINTS = {
    "407": "the proxy wants user and password: https_proxy = http://USER:PASSWORD@HOST:PORT in the environment",
    "403": "the proxy does not let this host through: ask its administrator to allow CONNECT to it",
}
PROXY_SAMPLE = "such as http://USER:PASSWORD@proxy.example:3128, other signs of the password as %XX"


class WrongPin(ssl.SSLCertVerificationError):
    """The server has shown another key than those that are pinned."""


class Tls:
    """Whom this side trusts, and what it shows.

    `ca_file`: PEM file of the authorities, in the place of the system's (`bundle` stands in where the system has none). `pins`:
    the server's key must be one of these (`read_pin`). `verify` False: the certificate itself is not asked, only the pins, if
    any. `client_cert`, `client_key`: PEM files of the certificate that is shown. Raises `ConfigError` for unusable files.
    """

    def __init__(
        self, *, ca_file: str = "", bundle: str = "", verify: bool = True, pins: Sequence[str] = (),
        client_cert: str = "", client_key: str = "",
    ) -> None:  # fmt: skip
        self.verify: bool | str = (ca_file or True) if verify else False  # as requests takes it
        self.context = _Context(ssl.PROTOCOL_TLS_CLIENT)
        self.context.pins = frozenset(pins)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.sslsocket_class = _Socket
        self.context.sslobject_class = _Object
        if verify:
            _load_authorities(self.context, ca_file, bundle)
        else:
            self.context.check_hostname = False
            self.context.verify_mode = ssl.CERT_NONE
            warnings.filterwarnings("ignore", message="Unverified HTTPS request")  # urllib3 would say so at each request
        if client_cert or client_key:
            _load_own(self.context, client_cert, client_key)


class _Context(ssl.SSLContext):
    pins: frozenset[str] = frozenset()


class _Socket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        _check_pin(self)


class _Object(ssl.SSLObject):  # of a connection through a proxy that speaks TLS itself
    def do_handshake(self) -> None:
        super().do_handshake()
        _check_pin(self)


def _check_pin(line: ssl.SSLSocket | ssl.SSLObject) -> None:
    pins: frozenset[str] = getattr(line.context, "pins", frozenset())
    if not pins:
        return
    shown = key_pin(line.getpeercert(binary_form=True) or b"")
    if shown not in pins:
        raise WrongPin(f"the server's key is {shown}, which is not pinned")


def _load_authorities(context: ssl.SSLContext, ca_file: str, bundle: str) -> None:
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as exc:  # ssl.SSLError is one
            raise ConfigError(f"the file of authorities {ca_file} cannot be used: {exc}", hint="PEM certificates alone") from exc
        return
    paths = ssl.get_default_verify_paths()  # openssl_*: as it was built, whatever SSL_CERT_FILE says
    file = paths.openssl_cafile if os.path.isfile(paths.openssl_cafile) else None
    folder = paths.openssl_capath if os.path.isdir(paths.openssl_capath) and os.listdir(paths.openssl_capath) else None
    if file or folder or bundle:
        context.load_verify_locations(file or (None if folder else bundle), folder)


def _load_own(context: ssl.SSLContext, client_cert: str, client_key: str) -> None:
    if not client_cert:
        raise ConfigError("client_key without client_cert", hint="name both files")
    key = Path(client_key or client_cert)
    try:
        if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"the key {key} can be read by others", hint=f"chmod 600 {key}")
        context.load_cert_chain(client_cert, client_key or None, password=_no_password)
    except OSError as exc:
        why = getattr(exc, "reason", None) or exc.strerror or exc
        hint = "PEM files: a certificate and its own key, neither missing nor mixed up"
        raise ConfigError(f"the client certificate {client_cert} with {key} cannot be used: {why}", hint=hint) from exc


def _no_password() -> bytes:
    raise ConfigError("the client's key has a password, which nobody is here to give", hint="openssl pkey -in KEY -out NEW")


# Pins


def read_pin(text: str) -> str:
    """Return a pin as 64 hex digits; `text` is these (colons allowed), or curl's ``sha256//BASE64``. `ValueError` otherwise."""
    if text.startswith("sha256//"):
        try:
            digest = base64.b64decode(text[len("sha256//") :], validate=True)
        except binascii.Error:
            digest = b""
        found = digest.hex()
    else:
        found = text.replace(":", "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", found):
        raise ValueError("a pin is the SHA-256 of the server's public key: 64 hex digits, or sha256//BASE64")
    return found


def read_pins(text: str) -> tuple[str, ...]:
    """SHA-256 of public keys, as `read_pin` takes them."""
    return tuple(read_pin(word) for word in text.split())


def key_pin(certificate: bytes) -> str:
    """Return the SHA-256 of the public key (SubjectPublicKeyInfo, RFC 7469) in a DER certificate, as hex.

    The key rather than the certificate: a renewal that keeps the key keeps the pin. Raises `ValueError` for what is none.
    """
    try:
        _, start, _ = _element(certificate, 0)
        _, at, _ = _element(certificate, start)
        if certificate[at] == _VERSION_TAG:
            at = _element(certificate, at)[2]
        for _ in range(_SPKI_AFTER):
            at = _element(certificate, at)[2]
        _, _, end = _element(certificate, at)
    except IndexError as exc:
        raise ValueError("no certificate") from exc
    return hashlib.sha256(certificate[at:end]).hexdigest()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Return tag, start of the content and end of the DER element at `at` (X.690)."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[at + 2 : start], "big")
    if start + length > len(der):
        raise IndexError
    return tag, start, start + length


# Proxies


def proxies_for(url: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return those proxies of `environment` (scheme -> address) that a request to `url` may take.

    None for plain http to this host: the token would go to the proxy in the clear. Raises `ConfigError` for an address that is
    none, without showing it: it may hold a password.
    """
    parts = urlsplit(url)
    if parts.scheme == "http" and is_loopback(parts.hostname or ""):
        return {}
    for scheme, address in environment.items():
        if not _is_address(address):
            raise ConfigError(f"{scheme}_proxy in the environment is no address of a proxy", hint=PROXY_SAMPLE)
    return dict(environment)


def _is_address(text: str) -> bool:
    address = text if "://" in text else f"http://{text}"
    before, _, _ = address.partition("://")[2].rpartition("@")
    try:
        parts = urlsplit(address)
        host = (parts.hostname or "").encode("idna")
    except ValueError:  # UnicodeError is one
        return False
    return bool(host) and not re.search(r"[/?#@\s]", before) and _port_is_one(parts)


def _port_is_one(parts: Any) -> bool:
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def hushed(text: str) -> str:
    """Return `text` without the user and password of any proxy in the environment, or of anything that looks like an address."""
    for name, address in os.environ.items():
        if name.lower().endswith("_proxy") and "@" in address:
            before = address.rpartition("@")[0].partition("://")[2] or address.rpartition("@")[0]
            password = before.partition(":")[2]
            for secret in (before, unquote(before), password, unquote(password)):
                text = text.replace(secret, "***") if secret else text
    return _USERINFO.sub("//***@", text)


# Saying what went wrong


def explain(error: BaseException) -> tuple[str, str] | None:
    """Return (what happened, what to do) where TLS or a proxy is behind `error`, else None."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, WrongPin):
            hint = "a new key, or somebody in between? ask MInt's operators, then set pin_sha256"
            return f"{cause.args[0]}; nothing was sent", hint
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = getattr(cause, "verify_message", "") or str(cause)
            hint = _CERTIFICATE_HINTS.get(getattr(cause, "verify_code", 0), _ISSUER_HINT)
            return f"its certificate cannot be trusted: {why}; nothing was sent", hint
    for cause in causes:
        if isinstance(cause, ssl.SSLError) and cause.reason in _REASONS:
            return _REASONS[cause.reason]
        tunnel = _TUNNEL.search(str(cause)) if isinstance(cause, OSError) else None
        if tunnel:
            hint = _PROXY_HINTS.get(tunnel[1], "the proxy cannot reach it, or does not want to; it is tried again")
            return f"the proxy refused the way: {tunnel[1]}", hint
    if any(type(cause).__name__ == "ProxyError" for cause in causes):
        return f"no way through the proxy: {hushed(str(causes[-1]))[:200]}", "see https_proxy and no_proxy in the environment"
    return None


def is_untrusted(error: BaseException) -> bool:
    """True where the server's certificate or key is behind `error`."""
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and whatever is behind it: urllib3 keeps causes in `reason` and in the arguments."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        cause = waiting.pop(0)
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            waiting += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]


# What requests needs


class TlsAdapter:
    """Stands before requests' `HTTPAdapter` among the bases of an adapter: connections by `tls`, whatever requests would load.

    `tls` is set before the adapter's own `__init__` runs.
    """

    tls: Tls

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the connections' pool."""
        parent: Any = super()
        parent.init_poolmanager(*args, ssl_context=self.tls.context, **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Make the pool of connections through a proxy."""
        parent: Any = super()
        return parent.proxy_manager_for(proxy, ssl_context=self.tls.context, **kwargs)

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """Return what a pool is chosen by (requests 2.32 and later)."""
        parent: Any = super()
        host, pool = parent.build_connection_pool_key_attributes(request, verify, cert)
        for name in ("ca_certs", "ca_cert_dir", "cert_file", "key_file"):
            pool.pop(name, None)
        pool.update(ssl_context=self.tls.context, cert_reqs=self.tls.context.verify_mode)
        return host, pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Load nothing: the context has all."""
        conn.cert_reqs, conn.ca_certs, conn.ca_cert_dir = self.tls.context.verify_mode, None, None
