"""From the files that the operator names to an `ssl.SSLContext`, with a name for every mistake.

All of it blocks, on files and on arithmetic: it is called before the loop runs or on a thread.
How the names are written is config/tls.py's matter, when files are read again contexts.py's.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from gateway.errors import GatewayError
from gateway.regular_file import OPEN_TO_OTHERS, PRIVATE, read_regular_file

#: A chain takes 10 KB, all authorities of the world 250 KB.
MAX_FILE_BYTES: Final = 1_000_000

_CERT: Final = "a PEM file with the certificate, those between it and its authority behind it"
_KEY: Final = "the PEM file with the certificate's private key, without a passphrase"
_CA: Final = "a PEM file with certificates of authorities"
_VALID: Final = "a certificate that is valid now"

_BLOCK: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----", re.ASCII | re.DOTALL
)

#: What OpenSSL says of a certificate when certificate and key are loaded: all else is the key's.
_CERT_REASONS: Final = {"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}
_OTHER_KEY_REASONS: Final = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS of a port: files and names, as the operator wrote them.

    Who listens shows `cert` and lets in who shows a certificate of `client_ca`, or everybody
    without one. Who connects wants a certificate of `ca` (None: of an authority that the machine
    trusts) for `server_name` (None: for the host it connects to), and shows `cert`, if any.
    Without `cert` there is no `key`. `lines` is where the keys stand in the file.
    """

    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None
    ca: str | None = None
    server_name: str | None = None
    lines: tuple[tuple[str, int], ...] = field(default=(), compare=False, repr=False)


class TlsFileError(GatewayError):
    """For the operator: why the file `path` of the key `key` of `tls` can't be used."""

    def __init__(self, key: str, path: str, reason: str, expected: str) -> None:
        super().__init__(f"tls: invalid {key} '{path}' ({reason}): expected {expected}")
        self.key = key
        self.path = path
        self.reason = reason
        self.expected = expected


def server_context(tls: Tls) -> ssl.SSLContext:
    """For who listens: shows `cert`; with `client_ca` nobody gets in without a certificate of it.

    Blocks; raises TlsFileError for the first file that can't be used.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _load_own(context, tls)
    # Nothing is resumed: a client that is not let in any more would be, for the ticket's life.
    context.num_tickets = 0
    if tls.client_ca is not None:
        _load_authorities(context, "client_ca", tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """For who connects: the far end must have a certificate of `ca`; `cert` is shown, if any.

    Blocks; raises TlsFileError for the first file that can't be used.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if tls.cert is not None:
        _load_own(context, tls)
    if tls.ca is None:
        context.load_default_certs()
    else:
        _load_authorities(context, "ca", tls.ca)
    return context


def wrong_files(tls: Tls) -> Iterator[TlsFileError]:
    """What is wrong with any of the files; blocks."""
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
    """Files that can be used and won't do: certificates that are not valid at `now`; blocks."""
    files = [] if tls.cert is None else [("cert", tls.cert)]
    for key, path in (*files, *_authorities(tls)):
        try:
            certificates = _certificates(key, path, _CERT)
        except TlsFileError:
            continue  # reported as wrong
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
    assert tls.cert is not None  # noqa: S101 - config/tls.py sees to it
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
    """The certificates of a file in DER, one at least, all of which OpenSSL takes for one."""
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
    """Read a regular file of moderate size; a key must not be open to other users."""
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
    """From when until when a certificate is valid (RFC 5280, 4.1.2.5)."""
    # Certificate > tbsCertificate > [version] serialNumber signature issuer validity
    parts = list(_der_parts(next(_der_parts(next(_der_parts(certificate))[1]))[1]))
    has_version = parts[0][0] == 0xA0
    begin, end = (_der_time(*part) for part in _der_parts(parts[3 + has_version][1]))
    return begin, end


def _der_parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element, in order; `data` is DER that OpenSSL has taken."""
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
    if tag == 0x17:  # UTCTime has two digits of the year, from 1950 to 2049
        text = ("20" if text < "5" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
