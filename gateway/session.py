"""One client on one device: its TCP connection, from accept to the moment the device is free.

Bytes from the client go through its conversation (`protocol.access_server` or
`protocol.raw`) into the request queue, which carries them
out in stream order; while too much waits there, nothing more is read from the client. What
the board sends goes the other way at once. Who may connect is `listener`'s matter, what
happens to the board `device`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from enum import Enum
from typing import cast

import structlog

from gateway.device import Device
from gateway.errors import ClientError, DeviceError
from gateway.request_queue import Conversation, RequestQueue

#: One read takes at most this much; so much more than `request_queue` takes may wait there.
_RECEIVE_BYTES = 65536

#: One buffer for all sessions: what is received is copied out of it before the next read.
_RECEIVE_BUFFER = memoryview(bytearray(_RECEIVE_BYTES))

#: An answer waits for nothing. A client's machine that died is noticed within 14 s (5 s of
#: silence, 3 probes 3 s apart), or 15 s after data that it does not acknowledge. Telnet's Synch
#: has its DM sent urgently: out of line it would be missing behind its IAC.
_SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
)

#: How long a client may take to read the last that it is sent. Closing at once would reset the
#: connection when it has sent something meanwhile, and what is on the way to it would be lost.
_LINGER_S = 1.0

#: How long the bytes and commands of a client that has left may wait for a board that takes none.
_FINISH_LIMIT_S = 10.0

#: While nothing is read from a client, the loop can't see it leave: the kernel is asked this often.
_LOOK_S = 1.0

#: No more is read from a client that leaves so much unread. The board's output alone stays below
#: (one read of it may be 128 KiB, and none follows until it is gone), so a client that only sends
#: is never stopped; one that asks for answers and does not read them is. One that has suspended
#: them and asks for so many is no client any more: nobody would read that it resumes.
_UNREAD_LIMIT_BYTES = 262144

#: States of a TCP connection whose peer will send no more, linux/tcp_states.h.
_TCP_CLOSE = 7
_TCP_CLOSE_WAIT = 8
_TCP_LAST_ACK = 9


class SessionState(Enum):
    """What is true of a session."""

    NEW = "new"  # accepted, the connection is not reported yet
    WAITING = "waiting"  # connected, the device has been asked for, nothing is read yet
    ACTIVE = "active"  # the device is ours
    FINISHING = "finishing"  # the client is gone, what it had sent is still carried out
    REFUSED = "refused"  # the client has been told why it is not served
    CLOSED = "closed"  # the device is not ours, the connection is closed or about to be


class Session(asyncio.BufferedProtocol):
    """One TCP client, from accept to the moment that the device is free again.

    `ended` is called once, when nothing of the session is left.
    """

    def __init__(
        self,
        device: Device,
        conversation: Conversation,
        log: structlog.typing.FilteringBoundLogger,
        ended: Callable[[Session], None],
    ) -> None:
        self.state = SessionState.NEW
        self.label = "a client that has not connected"
        self.received_bytes = 0
        self.sent_bytes = 0
        self._device = device
        self._log = log
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._conversation = conversation
        self._requests = RequestQueue(device, conversation, self)
        self._suspended = False  # the client has asked for no more data
        self._client_slow = False  # more output waits for the client than should
        self._violated = False
        self._identified = False
        self._connected = False
        self._look_timer: asyncio.TimerHandle | None = None
        self._finish_timer: asyncio.TimerHandle | None = None
        self._abort_timer: asyncio.TimerHandle | None = None

    # --- what the connection reports (asyncio.BufferedProtocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected: ask for the device, read nothing until it is there."""
        self._transport = cast("asyncio.Transport", transport)
        if self.state is SessionState.CLOSED:
            self._transport.abort()
            return
        self._connected = True
        self.state = SessionState.WAITING
        self.label = _peer_name(self._transport)
        self._log = self._log.bind(client=self.label)
        for option in _SOCKET_OPTIONS:
            self._transport.get_extra_info("socket").setsockopt(*option)
        # Nothing but the rest of one read is kept here, where it could not be purged. What the
        # kernel takes (4 MiB) bridges a network that stalls: boards go on sending.
        self._transport.set_write_buffer_limits(high=0)
        self._transport.pause_reading()
        self._look_timer = self._loop.call_later(_LOOK_S, self._look_after_client)
        self._device.attach(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the loop puts what the client sends."""
        return _RECEIVE_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """The client has sent bytes."""
        if self.state is SessionState.ACTIVE:
            self.received_bytes += nbytes
            self._requests.add(self._conversation.receive_data(bytes(_RECEIVE_BUFFER[:nbytes])))

    def eof_received(self) -> bool:
        """The client sends no more: it has left, whether it still reads or not."""
        if self.state is SessionState.ACTIVE:
            self._finish("left")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; what the client had sent is still carried out."""
        self._connected = False
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        match self.state:
            case SessionState.ACTIVE:
                self._finish("left" if exc is None else _reason_of(exc))
            case SessionState.WAITING:
                self.state = SessionState.CLOSED
                self._leave()
                self._ended(self)
            case SessionState.REFUSED | SessionState.CLOSED:
                self._ended(self)
            case _:
                pass  # FINISHING: close() comes when what it had sent has been carried out

    def pause_writing(self) -> None:
        """The client does not keep up: leave the board's output in the kernel."""
        self._client_slow = True
        self._read_board_or_not()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._client_slow = False
        self._read_board_or_not()
        self._read_client_or_not()

    # --- what the device reports (device.DeviceUser)

    def attached(self) -> None:
        """The device is ours: greet the client and listen to it."""
        self.state = SessionState.ACTIVE
        self._log.info("client_connected")
        self._send_answers()
        self._transport.resume_reading()

    def refused(self, error: ClientError) -> None:
        """Tell the client in one line, and leave it a moment to read it."""
        self.state = SessionState.REFUSED
        self._log.warning("client_refused", reason=str(error))
        self._transport.write(f"{error}\r\n".encode())
        self._hang_up()

    def data_received(self, data: bytes) -> None:
        """Pass the board's bytes on."""
        if self.state is SessionState.ACTIVE:
            self.sent_bytes += len(data)
            self._transport.write(self._conversation.escape(data))

    def board_busy(self) -> None:
        """The board does not keep up: read no more from the client."""
        self._requests.board_busy()

    def board_ready(self) -> None:
        """The board has caught up."""
        self._requests.board_ready()

    def device_lost(self, error: DeviceError) -> None:
        """The board is gone: say so to a person, and end the session."""
        self.close(str(error))

    # --- ours

    @property
    def is_ending(self) -> bool:
        """Whether the client has been told the last that it will be, and only has to read it."""
        return self.state in {SessionState.REFUSED, SessionState.CLOSED}

    def abort(self) -> None:
        """Leave a client no more time to read the last that it was told."""
        self._transport.abort()

    def close(self, reason: str, *, is_fault: bool = False) -> None:
        """End the session from our side; what waits is not carried out any more.

        `is_fault` when it ends for what the client has done wrong.
        """
        before = self.state
        if before in {SessionState.REFUSED, SessionState.CLOSED}:
            return  # it is ending already
        if before is SessionState.ACTIVE:
            self._log_end(reason, is_fault=is_fault)
            if self._conversation.takes_text:
                self.say(f"{self._device.name}: {reason}")
        self.state = SessionState.CLOSED
        self._leave()
        if self._connected:
            self._hang_up()
        elif before is not SessionState.NEW:
            self._ended(self)

    # --- what the requests come to (request_queue.QueueOwner)

    def queue_moved(self) -> None:
        """Send what there is to answer; read on, or end, when nothing waits any more."""
        if self.state is SessionState.ACTIVE:
            self._send_answers()
            self._read_client_or_not()
        elif self.state is SessionState.FINISHING and self._requests.is_empty:
            self.close("finished")

    def output_suspended(self, suspended: bool) -> None:
        """Send nothing more, or go on (FLOWCONTROL-SUSPEND, -RESUME)."""
        self._suspended = suspended
        self._read_board_or_not()

    def client_identified(self, signature: str) -> None:
        """Log it once: it tells which client causes what follows."""
        if not self._identified:
            self._identified = True
            printable = signature if signature.isprintable() else ascii(signature)
            self._log.info("client_identified", signature=printable)

    def violated(self, reason: str, *, fatal: bool) -> None:
        """Say once what the client does wrong; a stream that can't be followed ends."""
        if fatal:
            self.close(reason, is_fault=True)
        elif not self._violated:
            self._violated = True
            self._log.warning("client_violated_protocol", reason=reason)

    def say(self, line: str) -> None:
        """Write a line for a person among the board's output."""
        if self.state is SessionState.ACTIVE:
            self._conversation.say(f"\r\n{line}\r\n".encode())
            self._send_answers()

    def _finish(self, reason: str) -> None:
        """The client has left: carry out what it had sent, then end."""
        self.state = SessionState.FINISHING
        self._log_end(reason)
        self._requests.stop_reports()
        # A board whose output nobody takes may stop taking bytes itself.
        self._device.resume_reading()
        self._limit_finish()
        self._requests.carry_on()

    def _limit_finish(self) -> None:
        if self._finish_timer is None:
            self._finish_timer = self._loop.call_later(
                _FINISH_LIMIT_S, self.close, "left, and the board takes no bytes"
            )

    def _leave(self) -> None:
        for timer in (self._finish_timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        self._requests.close()
        self._device.detach(self)

    def _hang_up(self) -> None:
        """End the connection when the client has got all that was written to it."""
        with contextlib.suppress(OSError):  # it is gone already, which is reported soon
            self._transport.write_eof()
        # What it still sends is read and dropped (see _LINGER_S), until it hangs up as well.
        self._transport.resume_reading()
        self._abort_timer = self._loop.call_later(_LINGER_S, self._transport.abort)

    def _log_end(self, reason: str, *, is_fault: bool = False) -> None:
        log = self._log.warning if is_fault else self._log.info
        log(
            "client_disconnected",
            reason=reason,
            seconds=round(self._loop.time() - self._started, 1),
            received_bytes=self.received_bytes,
            sent_bytes=self.sent_bytes,
        )

    def _send_answers(self) -> None:
        if self._suspended:  # RFC 2217 section 5: data and commands
            if self._conversation.unsent_bytes > _UNREAD_LIMIT_BYTES:
                self.close("asks without end for answers that it has suspended", is_fault=True)
            return
        if answers := self._conversation.data_to_send():
            self._transport.write(answers)

    def _read_board_or_not(self) -> None:
        if self.state is not SessionState.ACTIVE:
            return
        if self._suspended or self._client_slow:
            self._device.pause_reading()
        else:
            self._device.resume_reading()

    def _read_client_or_not(self) -> None:
        if self.state is not SessionState.ACTIVE:
            return
        unread_bytes = self._transport.get_write_buffer_size()
        if not self._requests.is_full and unread_bytes <= _UNREAD_LIMIT_BYTES:
            self._transport.resume_reading()
            return
        self._transport.pause_reading()
        if self._look_timer is None:
            self._look_timer = self._loop.call_later(_LOOK_S, self._look_after_client)

    def _look_after_client(self) -> None:
        """See whether the client has left while nothing was read from it."""
        self._look_timer = None
        if self.state is SessionState.WAITING:
            if _sends_no_more(self._transport):
                self.close("left before its turn")
            else:
                self._look_timer = self._loop.call_later(_LOOK_S, self._look_after_client)
            return
        if self.state is not SessionState.ACTIVE or self._transport.is_reading():
            return
        if _sends_no_more(self._transport):
            self._limit_finish()
        else:
            self._look_timer = self._loop.call_later(_LOOK_S, self._look_after_client)


def _sends_no_more(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed its end, though there may be bytes left to read."""
    connection = transport.get_extra_info("socket")
    state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state in {_TCP_CLOSE, _TCP_CLOSE_WAIT, _TCP_LAST_ACK}


def _reason_of(error: Exception) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return (strerror or str(error)).lower()


def peer_host(transport: asyncio.Transport) -> str:
    """The address of the client; one that is gone already has none."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""


def _peer_name(transport: asyncio.Transport) -> str:
    """`address:port` of the client; a client that is gone already has no name."""
    peer = transport.get_extra_info("peername")
    if not peer:
        return "unknown"
    host, tcp_port = peer[:2]
    return f"[{host}]:{tcp_port}" if ":" in host else f"{host}:{tcp_port}"
