"""TLS without I/O, from bytes to bytes; a module of its own, since ssl takes long to import.

An `ssl.SSLSocket` may not be read by one thread while another writes; a `TlsLayer` may.
"""

from __future__ import annotations

import contextlib
import ssl
import threading

from .address import Address

_PIECE_BYTES = 65536


def context_of(address: Address) -> ssl.SSLContext:
    """Load the certificates; raises OSError (ssl.SSLError is one) that names the file."""
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
        """Go on with the handshake; return whether it is complete, and what to send."""
        self._incoming.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False, self._outgoing.read()
        return True, self._outgoing.read()

    def decrypt(self, received: bytes) -> bytes:
        """Return the plain bytes; b"" also when a record is not complete yet."""
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
        """Return what to send, with what TLS itself has to answer."""
        with self._lock:
            self._tls.write(plain)
            return self._outgoing.read()

    def farewell(self) -> bytes:
        """Return the close notification."""
        with self._lock:
            with contextlib.suppress(ssl.SSLError):  # the other side's is not awaited
                self._tls.unwrap()
            return self._outgoing.read()
