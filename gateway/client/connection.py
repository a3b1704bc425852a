"""A conversation with an RFC 2217 server: commands, who waits for which answers, data both ways.

Round trips are made where the caller needs the answer, and nowhere else: the server carries out
what it gets in order, so a line, a break or a purge needs no waiting before the next is sent.
What pyserial calls all this is `protocol_gateway`'s matter.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress

from ..protocol import rfc2217
from ..protocol.rfc2217 import Control, Modemstate, PurgeBuffers
from ..protocol.telnet_stream import double
from .address import Address
from .received import ConnectionEndedError, Received
from .tcp_link import Link, SendTimeoutError
from .wire import Wire, WireError

#: A write goes out in such pieces: between two of them other threads' commands get their turn,
#: and a write that times out has handed over whole ones.
PIECE_BYTES = 16384

#: No read waits longer for the network than that, whatever the network does.
_MOST_ROUND_TRIP_S = 2.0

#: How long a state that was told is as good as one that is asked for, with `poll_modem`.
_FRESH_S = 0.3

#: How long close() waits for the server to close, too, beyond what the network and unsent bytes
#: take: only then may the port be opened again. pyserial's own client waits as long in any case.
_CLOSE_S = 0.3

#: What the line still has to send when a port is closed is waited for as long as by Linux.
_MOST_UNSENT_S = 30.0

#: Start, 8 data, stop.
_BITS_PER_BYTE = 10

#: How much of what a server says before it closes is shown.
_SHOWN_BYTES = 200


class RefusedError(Exception):
    """The server is there, but does not give what was asked for. Its text is for a person."""


class NoAnswerError(Exception):
    """The server has not answered in time. Its text is for a person."""


class WriteTimeoutError(Exception):
    """Not all could be written in time."""


def kind_of(command: rfc2217.Command) -> str:
    """What a command is about: the server's answer to it is about the same."""
    if isinstance(command, rfc2217.SetControl):
        return _CONTROL_KINDS.get(command.control, "flow")
    return type(command).__name__


_CONTROL_KINDS: dict[int, str] = {
    **dict.fromkeys((Control.REQUEST_BREAK, Control.BREAK_ON, Control.BREAK_OFF), "break"),
    **dict.fromkeys((Control.REQUEST_DTR, Control.DTR_ON, Control.DTR_OFF), "dtr"),
    **dict.fromkeys((Control.REQUEST_RTS, Control.RTS_ON, Control.RTS_OFF), "rts"),
}


class Connection:
    """One connection, made and negotiated on creation, and the thread that receives.

    Raises OSError when the server can't be reached, RefusedError when it is no RFC 2217 server
    or does not give the port. Once it has ended, everything raises ConnectionEndedError.
    """

    def __init__(self, address: Address) -> None:
        self.news = threading.Condition()
        self.received = Received(self.news)
        self.in_force: dict[str, rfc2217.Command] = {}  # the last answer of each kind
        self.modemstate: Modemstate | None = None
        self.round_trip_s = 0.0  # the quickest that was seen
        self.sent_s = 0.0  # when data was sent last
        self._line_busy_until_s = 0.0  # by the baud rate in force
        self._timeout_s = address.timeout_s
        self._modemstate_s = 0.0
        self._wire = Wire()
        greeting = self._wire.data_to_send()  # from now on the wire is the receiving thread's
        self._unanswered: Counter[str] = Counter()
        self._suspended = False
        self._write_cancelled = False
        self._writing = threading.Lock()
        self._link = Link(address)
        self._reader = threading.Thread(
            target=self._receive, name=f"gateway client {address.host}:{address.port}", daemon=True
        )
        self._reader.start()
        try:
            self._negotiate(greeting)
        except BaseException:
            self._end()
            raise

    def _negotiate(self, greeting: bytes) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        with suppress(OSError):  # the thread that receives finds out why, and what was said
            self._link.send(greeting, deadline_s)
        with self.news:
            while not self._wire.takes_commands:
                if self.received.ended is not None:
                    raise RefusedError(self._said(self.received.ended))
                if self._wire.refuses_commands:
                    raise RefusedError(self._said("the server does not speak RFC 2217"))
                if not self.news.wait(deadline_s - time.monotonic()):
                    raise RefusedError(self._said("the server does not answer as RFC 2217 asks"))

    def _said(self, reason: str) -> str:
        said = self.received.take(_SHOWN_BYTES, 0, None, 0.0) if len(self.received) else b""
        text = said.decode("utf-8", "replace").strip()
        return f"{reason}; it said: {text}" if text else reason

    # The thread that receives.

    def _receive(self) -> None:
        reason = "the server has closed the connection"
        try:
            while True:
                self.received.wait_for_room()
                data = self._link.receive()
                if not data:
                    break
                self._take(data)
        except (OSError, WireError) as error:
            reason = f"the connection is lost: {error}"
        finally:
            self.received.end(reason)

    def _take(self, data: bytes) -> None:
        was_open = not (self._wire.takes_commands or self._wire.refuses_commands)
        for event in self._wire.receive(data):
            if isinstance(event, bytes):
                self.received.feed(event)
            else:
                self._take_command(event)
        if negotiation := self._wire.data_to_send():
            self._link.send_soon(negotiation)
        if was_open:
            with self.news:
                self.news.notify_all()

    def _take_command(self, command: rfc2217.Command) -> None:
        with self.news:
            match command:
                case rfc2217.PurgeData(buffers):
                    if buffers != PurgeBuffers.TRANSMIT:
                        self.received.purged()
                case rfc2217.NotifyModemstate(state):
                    self.modemstate = Modemstate(state)
                    self._modemstate_s = time.monotonic()
                case rfc2217.FlowcontrolSuspend():
                    self._suspended = True
                case rfc2217.FlowcontrolResume():
                    self._suspended = False
                case _:
                    kind = kind_of(command)
                    self.in_force[kind] = command
                    if self._unanswered[kind]:
                        self._unanswered[kind] -= 1
            self.news.notify_all()

    # Everybody else.

    def send(self, commands: Iterable[rfc2217.Command]) -> None:
        """Send commands in one segment, and don't wait for the answers."""
        wire_bytes = b"".join(rfc2217.encode(command, from_server=False) for command in commands)
        try:
            self._link.send(wire_bytes, time.monotonic() + self._timeout_s)
        except SendTimeoutError:
            raise NoAnswerError(f"the server has taken nothing for {self._timeout_s:g} s") from None
        except OSError as error:
            raise ConnectionEndedError(self.received.ended or str(error)) from error

    def ask(
        self,
        commands: Iterable[rfc2217.Command],
        unasked: Iterable[rfc2217.Command] = (),
        more_s: float = 0.0,
    ) -> None:
        """Send both in one segment, wait until all of `commands` are answered: see `in_force`.

        `more_s` is what the server may take longer than its time-out.
        """
        commands = list(commands)
        kinds = [kind_of(command) for command in commands]
        with self.news:
            self._unanswered.update(kinds)
        begin_s = time.monotonic()
        self.send([*commands, *unasked])
        deadline_s = begin_s + self._timeout_s + more_s
        self._wait_until(lambda: not any(self._unanswered[kind] for kind in kinds), deadline_s)
        with self.news:
            late = sorted({kind for kind in kinds if self._unanswered[kind]})
            for kind in late:
                self._unanswered[kind] = 0
        if late:
            raise NoAnswerError(f"no answer to {', '.join(late)} in {self._timeout_s + more_s:g} s")

    def measure(self, begin_s: float) -> None:
        """A round trip that began then has just ended."""
        taken_s = min(time.monotonic() - begin_s, _MOST_ROUND_TRIP_S)
        self.round_trip_s = min(self.round_trip_s or taken_s, taken_s)

    def _wait_until(self, is_answered: Callable[[], bool], deadline_s: float) -> None:
        with self.news:
            self.received.answers_awaited += 1
            try:
                self.news.notify_all()  # the receiving thread may pause
                while not is_answered():
                    if self.received.ended is not None:
                        raise ConnectionEndedError(self.received.ended)
                    left_s = deadline_s - time.monotonic()
                    if left_s <= 0:
                        return
                    self.news.wait(left_s)
            finally:
                self.received.answers_awaited -= 1

    @property
    def reply_due_s(self) -> float:
        """When the answer to what was written last can be here at the earliest."""
        return self.sent_s + self.round_trip_s

    def write(self, data: bytes, timeout_s: float | None) -> int:
        """Hand data to the network; how much, which is all unless `cancel_write` came.

        Raises WriteTimeoutError when the server does not take all in time.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        if not self._writing.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise WriteTimeoutError
        try:
            for start in range(0, len(data), PIECE_BYTES):
                piece = data[start : start + PIECE_BYTES]
                if not self._may_write(deadline_s):
                    return start
                try:
                    self._link.send(double(piece), deadline_s, lambda: self._write_cancelled)
                except SendTimeoutError:
                    if self._is_write_cancelled():
                        return start
                    raise WriteTimeoutError from None
                except OSError as error:
                    raise ConnectionEndedError(self.received.ended or str(error)) from error
                self._count(len(piece))
        finally:
            self.sent_s = time.monotonic()
            self._writing.release()
        return len(data)

    def _count(self, size: int) -> None:
        baud = self.in_force.get("SetBaudrate")
        if isinstance(baud, rfc2217.SetBaudrate) and baud.baudrate:
            begin_s = max(self._line_busy_until_s, time.monotonic())
            self._line_busy_until_s = begin_s + size * _BITS_PER_BYTE / baud.baudrate

    @property
    def unsent_s(self) -> float:
        """How long the server's line needs at most for what was written."""
        return max(0.0, self._line_busy_until_s - time.monotonic())

    def _may_write(self, deadline_s: float | None) -> bool:
        """Waits while the server has suspended us; False: cancelled."""
        if not (self._suspended or self._write_cancelled or self.received.ended is not None):
            return True
        with self.news:
            while True:
                if self.received.ended is not None:
                    raise ConnectionEndedError(self.received.ended)
                if self._is_write_cancelled():
                    return False
                if not self._suspended:
                    return True
                left_s = None if deadline_s is None else deadline_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    raise WriteTimeoutError
                self.news.wait(left_s)

    def _is_write_cancelled(self) -> bool:
        cancelled, self._write_cancelled = self._write_cancelled, False
        return cancelled

    def cancel_write(self) -> None:
        """Let the write that waits, or else the next, return what it has written."""
        with self.news:
            self._write_cancelled = True
            self.news.notify_all()

    def purge(self, buffers: PurgeBuffers) -> None:
        """Discard what was received, here, on its way and at the server, or what is to be sent."""
        if buffers != PurgeBuffers.TRANSMIT:
            self.received.purge(time.monotonic() + self._timeout_s)
        self.send([rfc2217.PurgeData(buffers)])

    def modem_state(self, *, poll: bool) -> Modemstate:
        """The modem state as the server told it last; asks when it never has, or to `poll`."""
        fresh_s = time.monotonic() - _FRESH_S
        if self.modemstate is None or (poll and self._modemstate_s < fresh_s):
            begin_s = time.monotonic()
            self.send([rfc2217.NotifyModemstate(0)])
            self._wait_until(lambda: self._modemstate_s >= begin_s, begin_s + self._timeout_s)
        if self.modemstate is None:
            raise NoAnswerError("the server tells no NOTIFY-MODEMSTATE")
        return self.modemstate

    def close(self) -> None:
        """End the connection; what was written before is still delivered."""
        self.received.drop()
        self._link.finish()
        limit_s = _CLOSE_S + 2 * self.round_trip_s + min(self.unsent_s, _MOST_UNSENT_S)
        self._reader.join(limit_s)
        self._end()

    def _end(self) -> None:
        self._link.interrupt()
        self._reader.join()
        self._link.close()
        self.received.close()
