"""TLS contexts from the operator's files: checked, shared by ports, read again on reload."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

import structlog

from gateway.errors import GatewayError
from gateway.inputs import OPEN_TO_OTHERS, PRIVATE, read_regular_file
from gateway.runtime import call_blocking

#: A chain takes 10 KB, a bundle of all public authorities 250 KB.
MAX_FILE_BYTES: Final = 1_000_000

_CERT: Final = "a PEM file with the certificate, those between it and its authority behind it"
_KEY: Final = "the PEM file with the certificate's private key, without a passphrase"
_CA: Final = "a PEM file with certificates of authorities"
_VALID: Final = "a certificate that is valid now"

_BLOCK: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----", re.ASCII | re.DOTALL
)

#: OpenSSL's reasons against a certificate when it loads certificate and key; others mean the key.
_CERT_REASONS: Final = {"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}
_OTHER_KEY_REASONS: Final = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}


@dataclass(frozen=True, slots=True)
class Tls:
    """The `tls` section of a port or of the HTTP server.

    A listener presents `cert` and accepts clients with a certificate of `client_ca`, or all
    clients without one. A dialer requires a certificate of `ca` (None: of an authority that the
    machine trusts) for `server_name` (None: for the host it connects to), and presents `cert`, if
    any. `key` is set if `cert` is.
    """

    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None
    ca: str | None = None
    server_name: str | None = None


class TlsFileError(GatewayError):
    """The file `path` of the key `key` of `tls` is unusable."""

    def __init__(self, key: str, path: str, reason: str, expected: str) -> None:
        super().__init__(f"tls: invalid {key} '{path}' ({reason}): expected {expected}")
        self.key = key
        self.path = path
        self.reason = reason
        self.expected = expected


def server_context(tls: Tls) -> ssl.SSLContext:
    """Return the context of a listener. Blocks; raises TlsFileError for the first unusable file."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _load_own(context, tls)
    # Without resumption: a ticket would admit a client whose certificate is no longer accepted.
    context.num_tickets = 0
    if tls.client_ca is not None:
        _load_authorities(context, "client_ca", tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """Return the context of a dialer. Blocks; raises TlsFileError for the first unusable file."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if tls.cert is not None:
        _load_own(context, tls)
    if tls.ca is None:
        context.load_default_certs()
    else:
        _load_authorities(context, "ca", tls.ca)
    return context


def wrong_files(tls: Tls) -> Iterator[TlsFileError]:
    """Yield an error for each unusable file; blocks."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    if tls.cert is not None:
        try:
            _load_own(context, tls)
        except TlsFileError as error:
            yield error
    for key, path in _authorities(tls):
        try:
            _load_authorities(context, key, path)
        except TlsFileError as error:
            yield error


def doubtful_files(tls: Tls, now: datetime) -> Iterator[TlsFileError]:
    """Yield an error for each certificate in a usable file that is not valid at `now`; blocks."""
    files = [] if tls.cert is None else [("cert", tls.cert)]
    for key, path in (*files, *_authorities(tls)):
        try:
            certificates = _certificates(key, path, _CERT)
        except TlsFileError:
            continue  # in wrong_files
        for certificate in certificates:
            begin, end = _validity(certificate)
            if now < begin:
                reason = f"a certificate in it is not valid before {begin:%Y-%m-%d %H:%M} UTC"
                yield TlsFileError(key, path, reason, _VALID)
            elif now > end:
                reason = f"a certificate in it expired on {end:%Y-%m-%d %H:%M} UTC"
                yield TlsFileError(key, path, reason, _VALID)


def _authorities(tls: Tls) -> Iterator[tuple[str, str]]:
    for key, path in (("client_ca", tls.client_ca), ("ca", tls.ca)):
        if path is not None:
            yield key, path


def _context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _load_own(context: ssl.SSLContext, tls: Tls) -> None:
    assert tls.cert is not None  # noqa: S101 - checked by config
    assert tls.key is not None  # noqa: S101
    _certificates("cert", tls.cert, _CERT)
    if "ENCRYPTED" in _text("key", tls.key, _KEY):
        raise TlsFileError("key", tls.key, "it has a passphrase", _KEY)
    try:
        # Without a callback OpenSSL would ask on the terminal for a passphrase, and wait.
        context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
    except ssl.SSLError as error:
        reason = error.reason or "not understood"
        if reason in _OTHER_KEY_REASONS:
            raise TlsFileError("key", tls.key, "key of another certificate", _KEY) from error
        said = reason.lower().replace("_", " ")
        if reason in _CERT_REASONS:
            raise TlsFileError("cert", tls.cert, f"OpenSSL: {said}", _CERT) from error
        raise TlsFileError("key", tls.key, f"no key in PEM: {said}", _KEY) from error
    except OSError as error:  # gone since it was read
        raise TlsFileError("cert", tls.cert, _unreadable(error), _CERT) from error


def _load_authorities(context: ssl.SSLContext, key: str, path: str) -> None:
    for certificate in _certificates(key, path, _CA):
        context.load_verify_locations(cadata=certificate)
    if not context.cert_store_stats()["x509_ca"]:
        raise TlsFileError(key, path, "no certificate of an authority (CA:TRUE) in it", _CA)


def _certificates(key: str, path: str, expected: str) -> list[bytes]:
    """Return the certificates of a file in DER, at least one, all accepted by OpenSSL."""
    blocks = _BLOCK.findall(_text(key, path, expected))
    if not blocks:
        raise TlsFileError(key, path, "no certificate in PEM", expected)
    try:
        certificates = [ssl.PEM_cert_to_DER_cert(block) for block in blocks]
        for certificate in certificates:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=certificate)
    except (ValueError, ssl.SSLError) as error:  # no base64; no certificate in it
        raise TlsFileError(key, path, "damaged certificate", expected) from error
    return certificates


def _text(key: str, path: str, expected: str) -> str:
    """Return the content of a regular file; a key must not be open to other users."""
    try:
        content = read_regular_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise TlsFileError(key, path, _unreadable(error), expected) from error
    if len(content.data) > MAX_FILE_BYTES:
        raise TlsFileError(key, path, "larger than 1 MB", expected)
    if key == "key" and content.is_open_to_others:
        raise TlsFileError(key, path, OPEN_TO_OTHERS, PRIVATE)
    return content.data.decode("latin-1")


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {error.strerror or error}"


def _validity(certificate: bytes) -> tuple[datetime, datetime]:
    """Return the begin and end of a certificate's validity (RFC 5280 section 4.1.2.5)."""
    # Certificate > tbsCertificate > [version] serialNumber signature issuer validity
    parts = list(_der_parts(next(_der_parts(next(_der_parts(certificate))[1]))[1]))
    has_version = parts[0][0] == 0xA0
    begin, end = (_der_time(*part) for part in _der_parts(parts[3 + has_version][1]))
    return begin, end


def _der_parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each element; `data` is DER that OpenSSL has accepted."""
    at = 0
    while at < len(data):
        tag, length, start = data[at], data[at + 1], at + 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[at + 2 : start], "big")
        at = start + length
        yield tag, data[start:at]


def _der_time(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == 0x17:  # UTCTime has a two-digit year, 1950 to 2049
        text = ("20" if text < "5" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


# --- contexts in use

_Make = Callable[[Tls], ssl.SSLContext]


@dataclass(slots=True, weakref_slot=True, eq=False)
class TlsContext:
    """The context for the next connection, replaced when the files are read again."""

    context: ssl.SSLContext


class TlsContexts:
    """The contexts in use, shared by ports with equal settings; made and used on the loop."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger) -> None:
        self._log = log
        self._lock = asyncio.Lock()  # so that each is made once
        self._in_use: WeakValueDictionary[tuple[_Make, Tls], TlsContext] = WeakValueDictionary()

    async def server(self, tls: Tls) -> TlsContext:
        """Return the context of a listener; raises TlsFileError."""
        return await self._get(server_context, tls)

    async def client(self, tls: Tls) -> TlsContext:
        """Return the context of a dialer; raises TlsFileError."""
        return await self._get(client_context, tls)

    async def renew(self) -> None:
        """Read all files again; where that fails, log it and keep the context."""
        async with self._lock:
            for (make, tls), current in tuple(self._in_use.items()):
                try:
                    current.context = await call_blocking(partial(make, tls), "TLS files")
                except TlsFileError as error:
                    self._log.error("tls_not_renewed", reason=str(error))

    async def _get(self, make: _Make, tls: Tls) -> TlsContext:
        async with self._lock:
            current = self._in_use.get((make, tls))
            if current is None:
                current = TlsContext(await call_blocking(partial(make, tls), "TLS files"))
                self._in_use[make, tls] = current
            return current
