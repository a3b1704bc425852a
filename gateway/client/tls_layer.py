"""TLS between bytes and bytes: what is received goes in, what it says comes out, and back.

An `ssl.SSLSocket` may not be read by one thread while another writes; this may, for it does no
I/O and takes its lock only for as long as the arithmetic takes. ssl is imported with this module,
which only connections with TLS import.
"""

from __future__ import annotations

import contextlib
import ssl
import threading

from .address import Address

_PIECE_BYTES = 65536


def context_of(address: Address) -> ssl.SSLContext:
    """What is trusted and shown; raises OSError (ssl.SSLError is one) that names the file."""
    try:
        context = ssl.create_default_context(cafile=address.ca or None)
    except OSError as error:
        raise OSError(f"ca={address.ca}: {error}") from error
    if address.cert:
        try:
            context.load_cert_chain(address.cert, address.key or None)
        except OSError as error:
            raise OSError(f"cert={address.cert}, key={address.key}: {error}") from error
    return context


class TlsLayer:
    """One connection's TLS, the client's side; raises ssl.SSLError where the other side fails."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._lock = threading.Lock()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def shake_hands(self, received: bytes) -> tuple[bool, bytes]:
        """Whether both sides agree, given what came since the last call, and what to send."""
        self._incoming.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False, self._outgoing.read()
        return True, self._outgoing.read()

    def decrypt(self, received: bytes) -> bytes:
        """The plain bytes in what came; b"" also when a record is not complete yet."""
        with self._lock:
            self._incoming.write(received)
            plain = b""
            try:
                while piece := self._tls.read(_PIECE_BYTES):
                    plain += piece
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                pass
            return plain

    def encrypt(self, plain: bytes) -> bytes:
        """What to send for it, with what TLS itself has to answer meanwhile."""
        with self._lock:
            self._tls.write(plain)
            return self._outgoing.read()

    def farewell(self) -> bytes:
        """What tells the other side that no more comes."""
        with self._lock:
            with contextlib.suppress(ssl.SSLError):  # it wants the other's, which nobody awaits
                self._tls.unwrap()
            return self._outgoing.read()
