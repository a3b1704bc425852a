"""TLS between a TCP connection and its protocol, and bounded handshakes for accepted connections.

asyncio's own layer is not used: of what a client has sent before it closes, it delivers one buffer
to a BufferedProtocol that had paused and forgets the rest; it has no write_eof, so that the last
line is lost for a client that is still sending; and a write buffer limit of 0, which is what keeps
output where it can be purged, makes it pause indefinitely. uvloop's delivers a ClientHello that
comes with the connection before `start_tls` takes effect, to the protocol before. Sessions and
aiohttp both run on this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from email.utils import formatdate
from enum import Enum
from typing import Any, Final, Protocol, cast

from gateway import clock
from gateway.net.client_socket import reason_of
from gateway.protocol.greeting import http_response, recognise
from gateway.turns import Turns

#: Handshakes at a time over all listeners. Each takes about 50 KB, most of it OpenSSL's; 256 are a
#: lab whose clients all reconnect at once. One more replaces the oldest of the address with most.
MAX_HANDSHAKES: Final = 256

#: From the TCP connection to the end of the handshake: six round trips of a bad link.
HANDSHAKE_LIMIT_S: Final = 10.0

#: How long a client whose handshake has failed may take to read the reason.
_LINGER_S: Final = 1.0

#: One read takes at most this much. One buffer for all connections: what is received is copied
#: out of it before the next read.
_RECEIVE_BYTES: Final = 65536
_RECEIVE_BUFFER: Final = memoryview(bytearray(_RECEIVE_BYTES))

#: Nothing more is read from a peer that leaves so much unread: TLS answers some of its messages by
#: itself (KeyUpdate).
_UNREAD_LIMIT_BYTES: Final = 524288

#: The first byte of TLS (RFC 8446 section 5.1).
_HANDSHAKE_RECORD: Final = 0x16

_MAX_IDENTITY_CHARS: Final = 64


#: That of a connection without one; it does nothing.
_NO_PROTOCOL: Final = asyncio.Protocol()


class TlsState(Enum):
    """States of a TLS connection."""

    HANDSHAKE = "handshake"  # it has no protocol yet
    OPEN = "open"  # bytes go both ways
    ENDED = "ended"  # its end is announced to the peer; received bytes are dropped
    LOST = "lost"  # the TCP connection is closed


class TlsOwner(Protocol):
    """The creator of a connection, until the handshake is complete."""

    def tls_secured(self, connection: TlsConnection) -> None:
        """Set a protocol, of either kind, or abort: the handshake is complete."""

    def tls_failed(self, connection: TlsConnection, reason: str) -> None:
        """Note the reason: the handshake has failed; the peer has a moment to read the alert."""

    def tls_closed(self, connection: TlsConnection) -> None:
        """Forget the connection, which is closed."""


class TlsConnection(asyncio.Transport, asyncio.BufferedProtocol):
    """A transport for the protocol above it, and the protocol of the TCP connection below it.

    It is the client's end if the far end's `server_name` is given. Else `handshakes` bounds its
    handshake, and a client that does not speak TLS gets `cleartext_notice`, as an HTTP response if
    it has sent an HTTP request.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        owner: TlsOwner,
        *,
        server_name: str | None = None,
        handshakes: Handshakes | None = None,
        cleartext_notice: str = "",
    ) -> None:
        super().__init__()
        self.state = TlsState.HANDSHAKE
        #: The name in the peer's certificate; empty without one.
        self.identity = ""
        self._owner = owner
        self._context = context
        self._cleartext_notice = cleartext_notice
        self._handshakes = handshakes
        self._step_is_due = False
        self._is_server = server_name is None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, self._is_server, server_hostname=server_name
        )
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.BufferedProtocol | asyncio.Protocol = _NO_PROTOCOL
        self._reading = True
        self._choked = False  # too much is unread, so nothing is read
        self._peer_left = False
        self._aborted = False
        self._error: Exception | None = None
        self._timer: clock.Timer | None = None

    # --- callbacks of the TCP connection (asyncio.BufferedProtocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._tcp = cast("asyncio.Transport", transport)
        self._timer = clock.call_later(
            HANDSHAKE_LIMIT_S, self.fail, f"no handshake within {HANDSHAKE_LIMIT_S:g} s"
        )
        if not self._is_server:
            self._shake_hands()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Return the buffer for the next read."""
        return _RECEIVE_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """Take records."""
        if self.state is TlsState.HANDSHAKE:
            if self._cleartext_notice:
                if _RECEIVE_BUFFER[0] != _HANDSHAKE_RECORD:
                    self._reject_cleartext(bytes(_RECEIVE_BUFFER[:nbytes]))
                    return
                self._cleartext_notice = ""
            self._incoming.write(_RECEIVE_BUFFER[:nbytes])
            self._shake_hands_later()
        elif self.state is TlsState.OPEN:
            self._incoming.write(_RECEIVE_BUFFER[:nbytes])
            self._deliver()

    def eof_received(self) -> bool:
        """Deliver the rest; most peers close like this, without a close_notify."""
        if self.state is TlsState.HANDSHAKE:
            self.fail("hung up during the handshake")
        elif self.state is TlsState.OPEN:
            self._peer_left = True
            self._deliver()  # uvloop's connection may end while it is paused: then when it is not
        else:
            return False  # close
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Deliver the rest of what was received, and report the end."""
        if self.state is TlsState.HANDSHAKE and not self._aborted:
            reason = "closed" if exc is None else reason_of(exc)
            self.fail(f"{reason} during the handshake")
        elif self.state is TlsState.OPEN and not self._aborted:
            self._reading = True
            self._deliver()
        self.state = TlsState.LOST
        self._end_handshake()
        self._owner.tls_closed(self)
        self._protocol.connection_lost(self._error or exc)

    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Continue reading as well if a peer that did not read had stopped it."""
        self._protocol.resume_writing()
        if self._choked:
            self._choked = False
            self._loop.call_soon(self._read_on)

    # --- calls of the protocol (asyncio.Transport)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See asyncio.BaseTransport; `peer_identity` is the name in the peer's certificate."""
        match name:
            case "peer_identity":
                return self.identity
            case "sslcontext":
                return self._context
            case "ssl_object":
                return self._tls
        return self._tcp.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See asyncio.BaseTransport."""
        self._protocol = cast("asyncio.BufferedProtocol | asyncio.Protocol", protocol)

    def is_closing(self) -> bool:
        """Return whether writing is over."""
        return self.state is not TlsState.OPEN or self._tcp.is_closing()

    def is_reading(self) -> bool:
        """Return whether the protocol accepts data."""
        return self._reading

    def pause_reading(self) -> None:
        """Deliver nothing; up to one read of records is kept here."""
        self._reading = False
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        """Deliver again, from the next loop turn on."""
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._read_on)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set those of the TCP connection, where records wait; none wait here."""
        self._tcp.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return the size in bytes of the records that wait for the kernel."""
        return self._tcp.get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio.WriteTransport."""
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

    def write_eof(self) -> None:
        """Announce the end; what the peer still sends is read and dropped."""
        self._end()
        self._tcp.write_eof()

    def close(self) -> None:
        """Close the connection when all that was written is sent."""
        self._end()
        self._tcp.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._aborted = True
        self._tcp.abort()

    # --- the handshake

    def fail(self, reason: str) -> None:
        """Give up the handshake; the peer has a moment to read the alert."""
        if self.state is not TlsState.HANDSHAKE:
            return
        self.state = TlsState.ENDED
        self._end_timer()
        self._flush()  # the alert
        with contextlib.suppress(OSError):  # lost already, which is reported soon
            self._tcp.write_eof()
        # Closing at once would reset the connection, and the alert with it, if more had come.
        self._timer = clock.call_later(_LINGER_S, self._tcp.abort)
        self._owner.tls_failed(self, reason)

    def _reject_cleartext(self, data: bytes) -> None:
        answer = f"{self._cleartext_notice}\r\n".encode()
        if recognise(data).wants_http:
            answer = http_response(data, self._cleartext_notice, formatdate(usegmt=True))
        self._tcp.write(answer)
        self.fail("the client does not speak TLS")

    def _shake_hands_later(self) -> None:
        if self._handshakes is None:
            self._shake_hands()
        elif not self._step_is_due:
            self._step_is_due = True
            self._tcp.pause_reading()  # so that one read at most waits for the step
            self._handshakes.turns.add(self._step)

    def _step(self) -> None:
        self._step_is_due = False
        if self.state is TlsState.HANDSHAKE:
            self._shake_hands()
        # What follows a failed handshake is read too: unread, it would reset the connection.
        if self.state in {TlsState.HANDSHAKE, TlsState.ENDED}:
            self._tcp.resume_reading()

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self.fail(_reason_of(error))
            return
        self._flush()
        self.state = TlsState.OPEN
        self.identity = _identity(self._tls.getpeercert() or {})
        self._end_handshake()
        self._owner.tls_secured(self)
        # Data behind the handshake is here already.
        self._loop.call_soon(self._read_on)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end_handshake(self) -> None:
        self._end_timer()
        if self._handshakes is not None:
            self._handshakes.remove(self)

    # --- bytes

    def _read_on(self) -> None:
        if self._reading and self.state is TlsState.OPEN:
            self._deliver()
        # The protocol may have paused again, and the connection may be at its end.
        if self._reading and not self._choked and self.state is not TlsState.LOST:
            self._tcp.resume_reading()

    def _deliver(self) -> None:
        """Decrypt and deliver while the protocol accepts data."""
        while self._reading and self.state is TlsState.OPEN:
            if isinstance(self._protocol, asyncio.BufferedProtocol):
                buffer = memoryview(self._protocol.get_buffer(-1))
                if n_bytes := self._decrypt_into(buffer):
                    self._protocol.buffer_updated(n_bytes)
            else:
                # Its records are in `_incoming`, so the buffer is free.
                buffer = _RECEIVE_BUFFER
                if n_bytes := self._decrypt_into(buffer):
                    self._protocol.data_received(bytes(buffer[:n_bytes]))
            if n_bytes < len(buffer):
                break
        self._flush()
        if self._peer_left and self._reading:
            self._deliver_eof()
        if self._tcp.get_write_buffer_size() > _UNREAD_LIMIT_BYTES:
            self._choked = True
            self._tcp.pause_reading()

    def _decrypt_into(self, buffer: memoryview) -> int:
        filled = 0
        try:
            while filled < len(buffer):
                rest: Any = buffer[filled:]  # typeshed has the form without a buffer only
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

    def _deliver_eof(self) -> None:
        self._peer_left = False
        if not self._protocol.eof_received():
            self.close()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._tcp.write(self._outgoing.read())

    def _break(self, error: ssl.SSLError) -> None:
        """Abort after a violation of TLS by the peer, or one that it reports."""
        self._error = ConnectionAbortedError(f"TLS: {_reason_of(error)}")
        self._flush()
        self.abort()

    def _end(self) -> None:
        if self.state is not TlsState.OPEN:
            return
        self.state = TlsState.ENDED
        with contextlib.suppress(ssl.SSLError):  # the peer has not said the same yet
            self._tls.unwrap()
        self._flush()


class Handshakes:
    """The handshakes of accepted connections that are not complete; made and used on the loop.

    One for all listeners of a service, so that its bounds hold for the process.
    """

    def __init__(self) -> None:
        #: By holder, the oldest first. Failed ones count until their connection is closed.
        self._pending: dict[str, dict[TlsConnection, None]] = {}
        self._holders: dict[TlsConnection, str] = {}
        #: For the steps of handshakes. One takes up to 5 ms on a Raspberry Pi, and a client chooses
        #: when those of all of its connections are due.
        self.turns = Turns()

    @property
    def count(self) -> int:
        """The number of handshakes."""
        return len(self._holders)

    def begin(self, connection: TlsConnection, transport: asyncio.Transport, holder: str) -> None:
        """Begin a handshake on a transport that has just been accepted, counted under `holder`."""
        if self.count >= MAX_HANDSHAKES:
            self._evict(holder)
        self._pending.setdefault(holder, {})[connection] = None
        self._holders[connection] = holder
        transport.set_protocol(connection)
        connection.connection_made(transport)

    def remove(self, connection: TlsConnection) -> None:
        """Stop counting a handshake, if it is counted."""
        holder = self._holders.pop(connection, None)
        if holder is not None:
            del self._pending[holder][connection]
            if not self._pending[holder]:
                del self._pending[holder]

    def _evict(self, newcomer: str) -> None:
        """Abort the oldest handshake of the address with the most, the new one counted."""

        def count_of(holder: str) -> int:
            return len(self._pending[holder]) + (holder == newcomer)

        oldest = next(iter(self._pending[max(self._pending, key=count_of)]))
        oldest.fail("evicted by newer handshakes")
        oldest.abort()
        self.remove(oldest)


def _reason_of(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason without its file names."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}".rstrip(".").lower()
    return (error.reason or str(error)).lower().replace("_", " ")


def _identity(certificate: dict[str, Any]) -> str:
    """Return the common name of a verified certificate, else its first alternative name."""
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
