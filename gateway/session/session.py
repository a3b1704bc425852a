"""One client of one port: its TCP connection, from accept to the moment that it has left the port.

The first bytes of a client are looked at before it gets the port: those of another protocol end
the session (`protocol.greeting`). Bytes from the client go through its conversation
(`protocol.access_server` or `protocol.raw`) into `Requests`, which carries them out in
stream order; while too much waits there, nothing more is read from the client. What the board sends
goes the other way at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from email.utils import formatdate
from enum import Enum
from typing import Protocol, cast

import structlog

from gateway import clock, turns
from gateway.config.document import ClientLimits
from gateway.errors import ClientError, DeviceError
from gateway.net.client_socket import (
    peer_host,
    peer_name,
    peer_origin,
    reason_of,
    sends_no_more,
)
from gateway.port.claim import Claim
from gateway.port.port import Port
from gateway.protocol.greeting import Greeting, Verdict, http_response, recognise
from gateway.session.liveness import Liveness
from gateway.session.output import Output
from gateway.session.requests import Conversation, Requests

#: One read takes at most this much; so much more than `requests` allows may wait there. One
#: buffer for all sessions: what is received is copied out of it before the next read.
_RECEIVE_BYTES = 65536
_RECEIVE_BUFFER = memoryview(bytearray(_RECEIVE_BYTES))

#: How long a client may take to read the last that it is sent. Closing at once would reset the
#: connection when it has sent something meanwhile, and what is on the way to it would be lost.
_LINGER_S = 1.0

#: While nothing is read from a client, the loop can't see it leave: the kernel is asked this often.
_LOOK_S = 1.0

#: No more is read from a client that leaves so much unread. The board's output alone stays below
#: (one read of it may be 128 KiB, and none follows until it is gone), so a client that only sends
#: is never stopped; one that asks for answers and does not read them is. One that has suspended
#: them and asks for so many is not a client: its RESUME would never be read.
_UNREAD_LIMIT_BYTES = 262144


#: How long a client may be silent before it gets the port without having sent anything. Programs
#: that speak first do so as soon as they are connected, in the packet after the handshake's last.
_SILENCE_S = 0.05

#: The same where it would cost another client the port, or have something done to the board. A raw
#: port's clients may be silent for good reasons. Others answer the telnet options that they are
#: offered after _SILENCE_S; a browser that only has connected in advance hangs up after 10 s.
_SILENCE_OF_RAW_S = 0.3
_SILENCE_OF_TELNET_S = 12.0

#: How often it is looked whether such a client may have the port at no cost meanwhile.
_SILENCE_LOOK_S = 0.5

#: How long first bytes are kept that may be the beginning of a greeting. Its sender does not pause
#: within it; a person who types does not notice.
_UNDECIDED_S = 0.05


class SessionState(Enum):
    """What is true of a session."""

    NEW = "new"  # accepted, the connection is not reported yet
    SCREENING = "screening"  # connected, its first bytes are waited for
    WAITING = "waiting"  # connected, the port has been asked for, nothing is read yet
    ACTIVE = "active"  # the port is ours
    FINISHING = "finishing"  # the client is gone, what it had sent is still carried out
    REFUSED = "refused"  # the client has been told why it is not served
    CLOSED = "closed"  # the port is not ours, the connection is closed or about to be


class SessionOwner(Protocol):
    """The listener or dialer that has made a session."""

    def session_asks(self) -> None:
        """The client has sent something, or stayed: it is about to get the port, or wait."""

    def session_waits(self, host: str) -> None:
        """A client at this address waits for the port."""

    def client_rejected(self, host: str, protocol: str) -> None:
        """The session ends, because its client has sent another protocol's greeting."""

    def session_ended(self, session: Session) -> None:
        """Nothing is left of the session; called once."""


class Session(asyncio.BufferedProtocol):
    """One TCP client, from accept to the moment that the port is free again.

    With `screens`, first bytes that are another protocol's greeting end it. With `stays_s`, the
    port is asked for when the client has sent something or has stayed so long, and not before.
    """

    def __init__(  # noqa: PLR0913 - the parts of one session
        self,
        port: Port,
        conversation: Conversation,
        log: structlog.typing.FilteringBoundLogger,
        owner: SessionOwner,
        limits: ClientLimits,
        *,
        screens: bool = True,
        stays_s: float | None = None,
    ) -> None:
        self.state = SessionState.NEW
        self.label = "a client that has not connected"
        self.received_bytes = 0
        self.sent_bytes = 0
        self._port = port
        self._log = log
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._started = clock.time()
        self._conversation = conversation
        self._claim = Claim(port, self.label, self)
        self._requests = Requests(self._claim, conversation, self)
        self._output = Output(self._claim, self, limits)
        self._liveness = Liveness(self, self._claim, limits.idle_timeout_s)
        self._early = b""  # has come and had no turn: the port is not ours, or others have theirs
        self._turns = turns.of_running_loop()
        self._is_behind = False  # more has come than one turn of the loop has time for
        self._is_screened = not screens
        self._take = self._receive if self._is_screened else self._screen
        self._stays_s = stays_s
        self._silent_for_s = 0.0
        self._screening_timer: clock.Timer | None = None
        self._violated = False
        self._identified = False
        self._connected = False
        self._look_timer: clock.Timer | None = None
        self._abort_timer: clock.Timer | None = None

    # --- what the connection reports (asyncio.BufferedProtocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected: ask for the port once its first bytes are known."""
        self._transport = cast("asyncio.Transport", transport)
        if self.state is SessionState.CLOSED:
            self._transport.abort()
            return
        self._connected = True
        self.state = SessionState.SCREENING
        self.label = self._claim.label = peer_name(self._transport)
        self._claim.origin = peer_origin(self._transport)
        self._log = self._log.bind(client=self.label)
        # Only the rest of one read is kept here, where it could not be purged.
        self._transport.set_write_buffer_limits(high=0)
        if self._is_screened and self._stays_s is None:
            self._ask_for_port()
        else:
            self._wait_in_silence(_SILENCE_S)

    def _pause_while_waiting(self) -> None:
        """Pause again: uvloop and Python 3.11.2 begin to read after `connection_made`."""
        if self.state is SessionState.WAITING:
            self._transport.resume_reading()
            self._transport.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the loop puts what the client sends."""
        return _RECEIVE_BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        """The client has sent bytes."""
        if self.state is SessionState.ACTIVE:
            self._take(bytes(_RECEIVE_BUFFER[:nbytes]))
        elif self.state is SessionState.SCREENING:
            self._screen(bytes(_RECEIVE_BUFFER[:nbytes]))
        elif self.state is SessionState.WAITING:  # uvloop reads once before it pauses
            self._early += _RECEIVE_BUFFER[:nbytes]
            self._pause_while_waiting()

    # --- first bytes

    def _wait_in_silence(self, seconds: float) -> None:
        """Wait for the client's first bytes."""
        self._silent_for_s += seconds
        self._screening_timer = clock.call_later(seconds, self._is_silent)

    def _is_silent(self) -> None:
        """Ask for the port for a client that sends nothing, unless that could do harm."""
        is_telnet = self._conversation.is_telnet
        limit_s = _SILENCE_OF_TELNET_S if is_telnet else _SILENCE_OF_RAW_S
        costs_nothing = not self._port.request_has_effect
        if self._stays_s is not None:
            limit_s, costs_nothing = self._stays_s, False
        if self._silent_for_s >= limit_s or costs_nothing:
            self._ask_for_port()
            return
        self._send_answers()
        look_s = _SILENCE_LOOK_S if is_telnet else limit_s
        self._wait_in_silence(min(look_s, limit_s - self._silent_for_s))

    def _screen(self, data: bytes) -> None:
        """Keep the client's first bytes until they are known to be for the board, or not."""
        is_first = not self._early
        self._early += data
        if self._is_screened:
            self._screened()
            return
        greeting = recognise(self._early)
        match greeting.verdict:
            case Verdict.OTHER:
                self._reject(greeting)
            case Verdict.BOARD:
                self._screened()
            case Verdict.UNDECIDED if is_first:
                self._stop_screening()
                self._screening_timer = clock.call_later(_UNDECIDED_S, self._screened)

    def _screened(self) -> None:
        """The first bytes are for the board, or telnet: go on with them."""
        self._stop_screening()
        self._is_screened = True
        self._take = self._receive
        if self.state is SessionState.SCREENING:
            self._ask_for_port()
        elif self.state is SessionState.ACTIVE:
            self._take_early()

    def _stop_screening(self) -> None:
        if self._screening_timer is not None:
            self._screening_timer.cancel()
            self._screening_timer = None

    def _ask_for_port(self) -> None:
        """Ask for the port, and read nothing until it is there."""
        self._screening_timer = None
        self.state = SessionState.WAITING
        self._transport.pause_reading()
        self._loop.call_soon(self._pause_while_waiting)
        self._look_timer = clock.call_later(_LOOK_S, self._look_after_client)
        self._owner.session_asks()
        self._claim.request()
        if self.state is SessionState.WAITING:
            self._owner.session_waits(peer_host(self._transport))

    def _take_early(self) -> None:
        early, self._early = self._early, b""
        if early:
            self._receive(early)

    def _reject(self, greeting: Greeting) -> None:
        """End the session of a client that speaks another protocol; nothing of it is obeyed."""
        first_bytes, self._early = self._early, b""
        if self.state is SessionState.ACTIVE:
            self._log_end(f"speaks {greeting.protocol}", is_fault=True)
            self._output.stop()
        self.state = SessionState.REFUSED
        self._leave(f"speaks {greeting.protocol}")
        self._owner.client_rejected(peer_host(self._transport), greeting.protocol)
        scheme = "rfc2217" if self._conversation.is_telnet else "socket"
        tcp_port = self._transport.get_extra_info("sockname")[1]
        text = (
            f"{self._port.name}: this is the serial port of a board, not a server for"
            f" {greeting.protocol}: open {scheme}://HOST:{tcp_port} with a serial tool"
        )
        if greeting.wants_http:
            date = formatdate(usegmt=True)
            self._transport.write(http_response(first_bytes, text, date))
        elif first_bytes[:1].isalpha():  # text, which a person may read
            self._transport.write(f"{text}\r\n".encode())
        self._hang_up()

    # --- what has come

    def _receive(self, data: bytes) -> None:
        self.received_bytes += len(data)
        events = self._conversation.receive_data(data)
        if self._output.awaits_client:
            self._output.client_sent(events)
        self._requests.add(events)
        if self._conversation.unparsed_bytes:
            self._fall_behind()

    def _receive_later(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self._early += data

    def _fall_behind(self) -> None:
        """Read nothing, and leave the rest of what has come for later turns of the loop."""
        if self._is_behind:
            return
        self._is_behind = True
        self._take = self._receive_later  # uvloop reads once before it pauses
        if self.state is SessionState.ACTIVE:
            self._transport.pause_reading()
        self._turns.add(self._catch_up)

    def _catch_up(self) -> None:
        """Do one slice of what was left; read on when nothing is."""
        self._is_behind = False
        if self.state not in {SessionState.ACTIVE, SessionState.FINISHING}:
            return
        if self._requests.is_behind:
            self._requests.catch_up()
        elif self._conversation.unparsed_bytes or self._early:
            early, self._early = self._early, b""
            self.received_bytes -= len(early)  # counted when it came
            self._receive(early)
        if self._requests.is_behind or self._conversation.unparsed_bytes or self._early:
            self._fall_behind()
        elif not self._is_behind:
            self._take = self._receive
            self.requests_moved()

    def eof_received(self) -> bool:
        """The client sends no more: it has left, whether it still reads or not."""
        if self._early and not self._is_screened:
            self._screened()  # no more comes, so it is no greeting
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
                self._finish("left" if exc is None else reason_of(exc))
            case SessionState.SCREENING | SessionState.WAITING:
                self.state = SessionState.CLOSED
                self._leave("left before its turn")
                self._owner.session_ended(self)
            case SessionState.REFUSED | SessionState.CLOSED:
                self._owner.session_ended(self)
            case _:
                pass  # FINISHING: close() comes when what it had sent has been carried out

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self._output.client_slow(True)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._output.client_slow(False)
        self._read_client_or_not()

    # --- what the port reports (claim.ClaimOwner)

    def granted(self) -> None:
        """The port is ours: greet the client and listen to it."""
        self.state = SessionState.ACTIVE
        self._log.info("client_connected")
        self._liveness.start(self._transport)
        self._output.start()
        self._send_answers()
        if self._is_screened:
            self._take_early()
        elif self._early:
            self._screen(b"")
        if self.state is SessionState.ACTIVE:
            self._read_client_or_not()

    def refused(self, error: ClientError) -> None:
        """Tell the client in one line, and leave it a moment to read it."""
        self.state = SessionState.REFUSED
        self._port.arbiter.refused += 1
        self._log.warning("client_refused", reason=str(error))
        self._transport.write(f"{error}\r\n".encode())
        self._hang_up()

    def board_busy(self) -> None:
        """The board does not keep up: read no more from the client."""
        self._requests.board_busy()

    def board_ready(self) -> None:
        """The board has caught up."""
        self._requests.board_ready()

    @property
    def is_leaving(self) -> bool:
        """Whether the client is gone, and what it had sent is still carried out."""
        return self.state is SessionState.FINISHING

    def suspended(self, by: str) -> None:
        """Another client controls the port: go on as if nothing was, and tell the person."""
        self._requests.board_ready()
        self._log.info("client_suspended", by=by)
        self.say(f"--- {self._port.name}: {by} controls the port, your input is dropped ---")

    def resumed(self) -> None:
        """The port is ours again."""
        self._log.info("client_resumed", dropped_bytes=self._claim.dropped_bytes)
        self.say(f"--- {self._port.name}: control returned to you ---")

    def replaced(self, by: str) -> None:
        """Another client gets the port."""
        self.say(f"--- {self._port.name}: {by} takes the port over ---")
        self.close(f"{by} takes the port over", is_told=True)

    def data_received(self, data: bytes) -> None:
        """Pass the board's bytes on; the claim does so without this."""
        self._output.add(data)

    def port_lost(self, error: DeviceError) -> None:
        """The port is gone: say so to a person, and end the session."""
        self.close(str(error))

    # --- what the output comes to (output.OutputOwner)

    def send(self, data: bytes) -> None:
        """Send bytes of the board to the client."""
        self.sent_bytes += len(data)
        self._transport.write(self._conversation.escape(data))

    def output_dropped(self) -> None:
        """Log it once; the amount is logged at the end."""
        self._log.warning("output_dropped", reason="the client is too slow")

    # --- ours

    @property
    def is_amid_command(self) -> bool:
        """Whether the client has begun a command and not ended it."""
        return self._conversation.is_amid_command

    @property
    def is_ending(self) -> bool:
        """Whether the client has been told the last that it will be, and only has to read it."""
        return self.state in {SessionState.REFUSED, SessionState.CLOSED}

    @property
    def is_silent(self) -> bool:
        """Whether the client is kept waiting for the port because it has sent nothing."""
        return self.state is SessionState.SCREENING and self._silent_for_s > _SILENCE_S

    def on_contender(self, host: str) -> None:
        """A client at this address waits for the port: if it is ours, find out if ours is there."""
        if self.state is SessionState.ACTIVE and peer_host(self._transport) == host:
            self._liveness.probe()

    def died(self, reason: str) -> None:
        """The client's machine no longer answers: as if it had left."""
        if self.state is SessionState.ACTIVE:
            self._finish(reason)
        self._transport.abort()

    def abort(self) -> None:
        """Leave a client no more time to read the last that it was told."""
        self._transport.abort()

    def close(self, reason: str, *, is_fault: bool = False, is_told: bool = False) -> None:
        """End the session from our side; what waits is not carried out.

        `is_fault` when it ends for what the client has done, `is_told` when it knows why.
        """
        before = self.state
        if before in {SessionState.REFUSED, SessionState.CLOSED}:
            return  # it is ending already
        if before is SessionState.WAITING and not is_told:
            self._leave(reason)
            self.refused(ClientError(f"{self._port.name}: {reason}"))
            return
        if before is SessionState.ACTIVE:
            self._log_end(reason, is_fault=is_fault)
            self.send(self._output.stop())
            if self._conversation.takes_text and not is_told:
                self.say(f"{self._port.name}: {reason}")
        self.state = SessionState.CLOSED
        self._leave(reason)
        if self._connected:
            self._hang_up()
        elif before is not SessionState.NEW:
            self._owner.session_ended(self)

    # --- what the requests come to (requests.RequestsOwner)

    def requests_moved(self) -> None:
        """Send what there is to answer; read on, or end, when nothing is left."""
        if self._requests.is_behind:
            self._fall_behind()
        if self.state is SessionState.ACTIVE:
            self._send_answers()
            self._read_client_or_not()
        elif self.state is SessionState.FINISHING and self._has_finished:
            self.close("finished")

    @property
    def _has_finished(self) -> bool:
        """Whether all that has come from the client is carried out."""
        is_parsed = not self._is_behind and not self._conversation.unparsed_bytes
        return is_parsed and self._requests.is_empty

    def output_suspended(self, suspended: bool) -> None:
        """Send nothing more, or go on (FLOWCONTROL-SUSPEND, -RESUME)."""
        self._output.suspend(suspended)

    def output_purged(self) -> None:
        """Drop what the board has sent so far and the client has not got."""
        self._output.purge()

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
        self._stop_watching()
        self._log_end(reason)
        self._requests.client_left()
        self._output.stop()
        self._claim.finish()
        self._requests.carry_on()

    def _stop_watching(self) -> None:
        """Look at the client's connection no longer: the client has left, or is to."""
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        self._liveness.stop()

    def _leave(self, reason: str) -> None:
        self._stop_screening()
        self._stop_watching()
        dropped_bytes = self._requests.waiting_bytes + self._conversation.unparsed_bytes
        if self._is_screened and (dropped_bytes := dropped_bytes + len(self._early)):
            self._claim.count_dropped(dropped_bytes)
            self._log.warning("unsent_dropped", unsent_bytes=dropped_bytes, reason=reason)
        self._requests.close()
        self._claim.leave()

    def _hang_up(self) -> None:
        """End the connection when the client has got all that was written to it."""
        with contextlib.suppress(OSError):  # it is gone already, which is reported soon
            self._transport.write_eof()
        # What it still sends is read and dropped (see _LINGER_S), until it hangs up as well.
        self._transport.resume_reading()
        self._abort_timer = clock.call_later(_LINGER_S, self._transport.abort)

    def _log_end(self, reason: str, *, is_fault: bool = False) -> None:
        log = self._log.warning if is_fault else self._log.info
        log(
            "client_disconnected",
            reason=reason,
            seconds=round(clock.time() - self._started, 1),
            received_bytes=self.received_bytes,
            sent_bytes=self.sent_bytes,
            dropped_bytes=self._output.dropped_bytes,
        )

    def _send_answers(self) -> None:
        if self._output.is_suspended:  # RFC 2217 section 5: data and commands
            if self._conversation.unsent_bytes > _UNREAD_LIMIT_BYTES:
                self.close("asks without end for answers that it has suspended", is_fault=True)
            return
        if answers := self._conversation.data_to_send():
            self._transport.write(answers)

    def _read_client_or_not(self) -> None:
        if self.state is not SessionState.ACTIVE:
            return
        unread_bytes = self._transport.get_write_buffer_size()
        is_full = self._requests.is_full or self._is_behind
        if not is_full and unread_bytes <= _UNREAD_LIMIT_BYTES:
            self._transport.resume_reading()
            return
        self._transport.pause_reading()
        if self._look_timer is None:
            self._look_timer = clock.call_later(_LOOK_S, self._look_after_client)

    def _look_after_client(self) -> None:
        """See whether the client has left while nothing was read from it."""
        self._look_timer = None
        is_waiting = self.state is SessionState.WAITING
        is_unread = self.state is SessionState.ACTIVE and not self._transport.is_reading()
        if not (is_waiting or is_unread):
            return
        if not sends_no_more(self._transport):
            self._look_timer = clock.call_later(_LOOK_S, self._look_after_client)
        elif is_waiting:
            self.close("left before its turn", is_told=True)
        else:  # it is read to its end first
            self._requests.client_left()
            self._claim.finish()
            self._requests.carry_on()
