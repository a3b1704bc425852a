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
from gateway.regular_file import read_regular_file

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
    """For the operator: what is wrong with the file that the key `key` of `tls` names."""

    def __init__(self, key: str, found: str, accepted: str) -> None:
        super().__init__(f"tls.{key}: found {found}, accepted: {accepted}")
        self.key = key
        self.found = found
        self.accepted = accepted


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
            continue  # told as wrong
        for certificate in certificates:
            begin, end = _validity(certificate)
            if now < begin:
                found = f"a certificate that is not valid before {begin:%Y-%m-%d %H:%M} UTC"
                yield TlsFileError(key, found, _VALID)
            elif now > end:
                found = f"a certificate that has expired on {end:%Y-%m-%d %H:%M} UTC"
                yield TlsFileError(key, found, _VALID)


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
        raise TlsFileError("key", "a key with a passphrase", _KEY)
    try:
        # Without a callback OpenSSL would ask on the terminal for a passphrase, and wait.
        context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
    except ssl.SSLError as error:
        reason = error.reason or "not understood"
        if reason in _OTHER_KEY_REASONS:
            raise TlsFileError("key", "the key of another certificate", _KEY) from error
        said = reason.lower().replace("_", " ")
        if reason in _CERT_REASONS:
            raise TlsFileError("cert", f"what OpenSSL refuses ({said})", _CERT) from error
        raise TlsFileError("key", f"no key in PEM ({said})", _KEY) from error
    except OSError as error:  # gone since it was read
        raise TlsFileError("cert", _unreadable(error), _CERT) from error


def _load_authorities(context: ssl.SSLContext, key: str, path: str) -> None:
    for certificate in _certificates(key, path, _CA):
        context.load_verify_locations(cadata=certificate)
    if not context.cert_store_stats()["x509_ca"]:
        raise TlsFileError(key, "no certificate of an authority (CA:TRUE)", _CA)


def _certificates(key: str, path: str, accepted: str) -> list[bytes]:
    """The certificates of a file in DER, one at least, all of which OpenSSL takes for one."""
    blocks = _BLOCK.findall(_text(key, path, accepted))
    if not blocks:
        raise TlsFileError(key, "no certificate in PEM", accepted)
    try:
        certificates = [ssl.PEM_cert_to_DER_cert(block) for block in blocks]
        for certificate in certificates:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=certificate)
    except ValueError as error:  # no base64; ssl.SSLError: no certificate in it
        raise TlsFileError(key, "a damaged certificate", accepted) from error
    except ssl.SSLError as error:
        raise TlsFileError(key, "a damaged certificate", accepted) from error
    return certificates


def _text(key: str, path: str, accepted: str) -> str:
    """What a file holds; anything but a file of moderate size could take for ever to read."""
    try:
        data = read_regular_file(path, MAX_FILE_BYTES).data
    except OSError as error:
        raise TlsFileError(key, f"{path}: {_unreadable(error)}", accepted) from error
    if len(data) > MAX_FILE_BYTES:
        raise TlsFileError(key, f"{path}, which has more than 1 MB", accepted)
    return data.decode("latin-1")


def _unreadable(error: OSError) -> str:
    return f"no readable file ({error.strerror or error})"


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
