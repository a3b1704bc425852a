"""TLS between a TCP connection and its protocol: plain bytes above, records below.

asyncio's own layer is not used: of what a client has sent before it closes, it delivers one buffer
to a BufferedProtocol that had paused and forgets the rest; it has no write_eof, so that the last
line is lost for a client that is still sending; and a write buffer limit of 0, which is what keeps
output where it can be purged, makes it pause indefinitely. uvloop's delivers a ClientHello that
comes with the connection before `start_tls` takes effect, to the protocol before. Sessions and
aiohttp both run on this one; handshakes.py and the dialer decide which peers get that far.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Protocol, cast

from gateway import clock

#: From the TCP connection to the end of the handshake: six round trips of a bad link.
HANDSHAKE_LIMIT_S: Final = 10.0

#: How long a client whose handshake has failed may take to read why.
_LINGER_S: Final = 1.0

#: One read takes at most this much. One buffer for all connections: what is received is copied
#: out of it before the next read.
_RECEIVE_BYTES: Final = 65536
_RECEIVE_BUFFER: Final = memoryview(bytearray(_RECEIVE_BYTES))

#: No more is read from a peer that leaves so much unread. TLS has questions that are answered
#: without asking who uses it (KeyUpdate).
_UNREAD_LIMIT_BYTES: Final = 524288

#: The first byte of TLS (RFC 8446, 5.1).
_HANDSHAKE_RECORD: Final = 0x16

_MAX_IDENTITY_CHARS: Final = 64


class TlsState(Enum):
    """What is true of a connection."""

    HANDSHAKE = "handshake"  # nobody uses it yet
    OPEN = "open"  # bytes go both ways
    ENDED = "ended"  # the peer has been told that no more comes; what it sends is dropped
    LOST = "lost"  # the TCP connection is closed


class TlsOwner(Protocol):
    """Who has made a connection, until it is secured."""

    def tls_secured(self, connection: TlsConnection) -> None:
        """The peer is known: set a protocol, of either kind, or abort the connection."""

    def tls_failed(self, connection: TlsConnection, reason: str) -> None:
        """The handshake has failed; the peer may still read why."""

    def tls_closed(self, connection: TlsConnection) -> None:
        """A connection without a protocol is gone."""


class TlsConnection(asyncio.Transport, asyncio.BufferedProtocol):
    """A transport for the protocol above it, the protocol of the TCP connection under it.

    It is the client's end if the far end's `server_name` is given. A client that does not speak
    TLS is sent `cleartext_notice`. `run_later` delays each step of the handshake; without it, a
    step is made as soon as bytes for it have come.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        owner: TlsOwner,
        *,
        server_name: str | None = None,
        cleartext_notice: bytes = b"",
        run_later: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        super().__init__()
        self.state = TlsState.HANDSHAKE
        #: Who the peer is by its certificate; empty if it has shown none.
        self.identity = ""
        self._owner = owner
        self._context = context
        self._cleartext_notice = cleartext_notice
        self._run_later = run_later
        self._step_is_due = False
        self._is_server = server_name is None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, self._is_server, server_hostname=server_name
        )
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.BufferedProtocol | asyncio.Protocol | None = None
        self._reading = True
        self._choked = False  # too much is unread, so nothing is read
        self._peer_left = False
        self._aborted = False
        self._error: Exception | None = None
        self._timer: clock.Timer | None = None

    # --- what the TCP connection reports (asyncio.BufferedProtocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._tcp = cast("asyncio.Transport", transport)
        self._timer = clock.call_later(
            HANDSHAKE_LIMIT_S, self.fail, f"no handshake within {HANDSHAKE_LIMIT_S:g} s"
        )
        if not self._is_server:
            self._shake_hands()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the loop puts what the peer sends."""
        return _RECEIVE_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """The peer has sent records."""
        if self.state is TlsState.HANDSHAKE:
            if self._cleartext_notice:
                if _RECEIVE_BUFFER[0] != _HANDSHAKE_RECORD:
                    self._tcp.write(self._cleartext_notice)
                    self.fail("the client does not speak TLS")
                    return
                self._cleartext_notice = b""
            self._incoming.write(_RECEIVE_BUFFER[:nbytes])
            self._shake_hands_later()
        elif self.state is TlsState.OPEN:
            self._incoming.write(_RECEIVE_BUFFER[:nbytes])
            self._deliver()

    def eof_received(self) -> bool:
        """The peer sends no more: most leave so, without a word of TLS about it."""
        if self.state is TlsState.HANDSHAKE:
            self.fail("hung up during the handshake")
        elif self.state is TlsState.OPEN:
            self._peer_left = True
            self._deliver()  # uvloop's connection may end while it is paused: then when it is not
        else:
            return False  # nothing is left to be done: close
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone; what had come before is still passed on."""
        if self._timer is not None:
            self._timer.cancel()
        if self._aborted:
            pass  # by us, who know why
        elif self.state is TlsState.HANDSHAKE:
            reason = "closed" if exc is None else str(exc).lower()
            self.fail(f"{reason} during the handshake")
        elif self.state is TlsState.OPEN:
            self._reading = True
            self._deliver()
        self.state = TlsState.LOST
        if self._timer is not None:
            self._timer.cancel()
        if self._protocol is None:
            self._owner.tls_closed(self)
        else:
            self._protocol.connection_lost(self._error or exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on, and read what was not read meanwhile."""
        if self._protocol is not None:
            self._protocol.resume_writing()
        if self._choked:
            self._choked = False
            self._loop.call_soon(self._read_on)

    # --- what who uses it asks for (asyncio.Transport)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the TCP connection has, and what asyncio's own TLS has that aiohttp asks for.

        `peer_identity` is the name in the peer's certificate.
        """
        match name:
            case "peer_identity":
                return self.identity
            case "sslcontext":
                return self._context
            case "ssl_object":
                return self._tls
        return self._tcp.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Report to `protocol` from now on."""
        self._protocol = cast("asyncio.BufferedProtocol | asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        assert self._protocol is not None  # noqa: S101 - asked for by the one that has set it
        return self._protocol

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self.state is not TlsState.OPEN or self._tcp.is_closing()

    def is_reading(self) -> bool:
        """Whether the protocol wants what the peer sends."""
        return self._reading

    def pause_reading(self) -> None:
        """Pass nothing on; up to one read of it is kept here."""
        self._reading = False
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        """Go on, from the next turn of the loop."""
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._read_on)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As of the TCP connection, where records wait; none wait here."""
        self._tcp.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """As of the TCP connection."""
        return self._tcp.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        """Records that wait for the kernel, in bytes."""
        return self._tcp.get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes."""
        if self.state is not TlsState.OPEN:
            return
        rest = memoryview(data)
        try:
            while rest:  # a record at a time, 16 KiB
                rest = rest[self._tls.write(rest) :]
        except ssl.SSLError as error:
            self._break(error)
            return
        self._flush()

    def can_write_eof(self) -> bool:
        """It can."""
        return True

    def write_eof(self) -> None:
        """Send no more, and say so; what the peer still sends is read and dropped."""
        self._end()
        self._tcp.write_eof()

    def close(self) -> None:
        """End the connection when all that was written is sent."""
        self._end()
        self._tcp.close()

    def abort(self) -> None:
        """End the connection at once."""
        self._aborted = True
        self._tcp.abort()

    # --- the handshake

    def fail(self, reason: str) -> None:
        """Give up the handshake; the peer is left a moment to read why."""
        if self.state is not TlsState.HANDSHAKE:
            return
        self.state = TlsState.ENDED
        if self._timer is not None:
            self._timer.cancel()
        self._flush()  # the alert
        with contextlib.suppress(OSError):  # it is gone already, which is reported soon
            self._tcp.write_eof()
        # Closing at once would reset the connection, and the alert with it, if more had come.
        self._timer = clock.call_later(_LINGER_S, self._tcp.abort)
        self._owner.tls_failed(self, reason)

    def _shake_hands_later(self) -> None:
        if self._run_later is None:
            self._shake_hands()
        elif not self._step_is_due:
            self._step_is_due = True
            self._tcp.pause_reading()  # what waits for the step is one read, and no end of it
            self._run_later(self._step)

    def _step(self) -> None:
        self._step_is_due = False
        if self.state is TlsState.HANDSHAKE:
            self._shake_hands()
        # What follows a failed handshake is read, too: unread, it would reset the connection.
        if self.state in {TlsState.HANDSHAKE, TlsState.ENDED}:
            self._tcp.resume_reading()

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self.fail(reason_of(error))
            return
        self._flush()
        if self._timer is not None:
            self._timer.cancel()
        self.state = TlsState.OPEN
        self.identity = _identity(self._tls.getpeercert() or {})
        self._owner.tls_secured(self)
        # What came behind the handshake is here already.
        self._loop.call_soon(self._read_on)

    # --- bytes

    def _read_on(self) -> None:
        if self._reading and self.state is TlsState.OPEN:
            self._deliver()
        # Who has it may have paused again, and it may be at its end.
        if self._reading and not self._choked and self.state is not TlsState.LOST:
            self._tcp.resume_reading()

    def _deliver(self) -> None:
        """Pass on what has come, as far as it is wanted."""
        while self._reading and self.state is TlsState.OPEN and self._protocol is not None:
            if isinstance(self._protocol, asyncio.BufferedProtocol):
                buffer = memoryview(self._protocol.get_buffer(-1))
                if n_bytes := self._decrypt_into(buffer):
                    self._protocol.buffer_updated(n_bytes)
            else:
                # The records that came in it are in `_incoming`, so the buffer is free.
                buffer = _RECEIVE_BUFFER
                if n_bytes := self._decrypt_into(buffer):
                    self._protocol.data_received(bytes(buffer[:n_bytes]))
            if n_bytes < len(buffer):
                break
        self._flush()
        if self._peer_left and self._reading:
            self._leave_it_to_protocol()
        if self._tcp.get_write_buffer_size() > _UNREAD_LIMIT_BYTES:
            self._choked = True
            self._tcp.pause_reading()

    def _decrypt_into(self, buffer: memoryview) -> int:
        filled = 0
        try:
            while filled < len(buffer):
                # Typeshed knows the form without a buffer only.
                rest: Any = buffer[filled:]
                n_bytes = cast("int", self._tls.read(len(rest), rest))
                if not n_bytes:
                    self._peer_left = True
                    break
                filled += n_bytes
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._peer_left = True
        except ssl.SSLError as error:
            self._break(error)
        return filled

    def _leave_it_to_protocol(self) -> None:
        """The peer sends no more: close, unless the protocol has something left to say."""
        self._peer_left = False
        if self._protocol is None or not self._protocol.eof_received():
            self.close()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._tcp.write(self._outgoing.read())

    def _break(self, error: ssl.SSLError) -> None:
        """The peer does not keep to TLS, or says that we do not."""
        self._error = ConnectionAbortedError(f"TLS: {reason_of(error)}")
        self._flush()
        self.abort()

    def _end(self) -> None:
        if self.state is not TlsState.OPEN:
            return
        self.state = TlsState.ENDED
        with contextlib.suppress(ssl.SSLError):  # the peer has not said the same yet
            self._tls.unwrap()
        self._flush()


def reason_of(error: ssl.SSLError) -> str:
    """What OpenSSL says, without its file names."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}".rstrip(".").lower()
    return (error.reason or str(error)).lower().replace("_", " ")


def _identity(certificate: dict[str, Any]) -> str:
    """The common name of a certificate that `ssl` has verified, else its first other name."""
    names = [
        value
        for part in certificate.get("subject", ())
        for key, value in part
        if key == "commonName"
    ]
    names += [str(value) for _, value in certificate.get("subjectAltName", ())]
    name = names[0] if names else ""
    if len(name) > _MAX_IDENTITY_CHARS:
        name = name[: _MAX_IDENTITY_CHARS - 3] + "..."
    return name if name.isprintable() else ascii(name)[1:-1]
