"""A conversation with an RFC 2217 server: commands, answers, data both ways.

Round trips are made only where the caller needs the answer: the server executes what it gets in
order, so a line, a break or a purge needs no waiting before the next is sent. One thread receives,
any number of others send and read; they share one condition.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from ..protocol import rfc2217
from ..protocol.rfc2217 import Control, Modemstate, PurgeBuffers
from ..protocol.telnet_stream import double
from .address import Address
from .tcp_link import Link, SendTimeoutError
from .wire import Wire, WireError

#: What may wait to be read. Above it the receiving thread pauses, and with it the server: nothing
#: is lost, unlike in a tty's driver. Ten seconds of the fastest serial line.
MAX_WAITING_BYTES = 4 * 1024 * 1024

#: While a thread waits for an answer of the server, data in front of it is received all the same.
#: No serial line sends as much within an answer's time-out.
MAX_WAITING_BYTES_AHEAD_OF_ANSWERS = 64 * 1024 * 1024

#: A write goes out in such pieces: between two of them other threads' commands get their turn,
#: and a write that times out has handed over whole ones.
PIECE_BYTES = 16384

#: No read waits longer for the network than that, whatever the network does.
_MOST_ROUND_TRIP_S = 2.0

#: How long a modem state that was received counts as fresh, with `poll_modem`.
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
    """The server is reachable, but refuses the port; the text is for a person."""


class NoAnswerError(Exception):
    """The server has not answered in time; the text is for a person."""


class WriteTimeoutError(Exception):
    """Not all could be written in time."""


class ConnectionEndedError(Exception):
    """The connection has ended and all that came has been read; the text says why."""


def kind_of(command: rfc2217.Command) -> str:
    """The subject of a command, which the server's answer shares."""
    if isinstance(command, rfc2217.SetControl):
        return _CONTROL_KINDS.get(command.control, "flow")
    return type(command).__name__


_CONTROL_KINDS: dict[int, str] = {
    **dict.fromkeys((Control.REQUEST_BREAK, Control.BREAK_ON, Control.BREAK_OFF), "break"),
    **dict.fromkeys((Control.REQUEST_DTR, Control.DTR_ON, Control.DTR_OFF), "dtr"),
    **dict.fromkeys((Control.REQUEST_RTS, Control.RTS_ON, Control.RTS_OFF), "rts"),
}


class Received:
    """The bytes between the receiving thread and the threads that read.

    `news` guards them and wakes readers and threads that wait for answers. Times are of
    `time.monotonic`; time-outs in seconds, None waits indefinitely.
    """

    def __init__(self, news: threading.Condition) -> None:
        self.news = news
        self.ended: str | None = None  # the reason, once nothing more comes
        self.answers_awaited = 0  # by how many threads
        self._data = bytearray()
        self._last_feed_s = 0.0
        self._wanted = 0.0  # how many bytes a reader waits for at once
        self._purges: deque[float] = deque()  # until when each is waited for
        self._cancelled = False
        self._dropped = False
        self._signal: tuple[socket.socket, socket.socket] | None = None
        self._signalled = False

    def __len__(self) -> int:
        return len(self._data)

    def wait_for_room(self) -> None:
        """Wait until more may be received."""
        with self.news:
            self.news.wait_for(self._has_room)

    def _has_room(self) -> bool:
        if self.ended is not None or self._dropped:
            return True
        if self.answers_awaited:
            return len(self._data) < MAX_WAITING_BYTES_AHEAD_OF_ANSWERS
        return len(self._data) < max(MAX_WAITING_BYTES, self._wanted)

    def feed(self, data: bytes) -> None:
        """Add received data."""
        with self.news:
            now_s = time.monotonic()
            while self._purges and self._purges[0] < now_s:
                self._purges.popleft()
            if self._purges or self._dropped:
                return
            self._data += data
            self._last_feed_s = now_s
            self._set_signal()
            self.news.notify_all()

    def end(self, reason: str) -> None:
        """Note that nothing more comes."""
        with self.news:
            self.ended = reason
            self._set_signal()
            self.news.notify_all()

    def purge(self, give_up_s: float) -> None:
        """Drop what has come, and what comes until `purged`, or until that time."""
        with self.news:
            self._forget(len(self._data))
            self._purges.append(give_up_s)

    def purged(self) -> None:
        """The server has answered a purge: what comes now was received after the oldest one."""
        with self.news:
            if self._purges:
                self._purges.popleft()

    def drop(self) -> None:
        """Drop all that has come and will."""
        with self.news:
            self._dropped = True
            self._forget(len(self._data))
            self.news.notify_all()

    def cancel(self) -> None:
        """Let the read that waits, or else the next that would have to, return what there is."""
        with self.news:
            self._cancelled = True
            self.news.notify_all()

    def take(
        self, size: int, timeout_s: float | None, gap_s: float | None, reply_due_s: float
    ) -> bytes:
        """Return `size` bytes, fewer after `timeout_s` or a gap of `gap_s` between two of them.

        `reply_due_s` is when the answer to what was written last can be here at the earliest: a
        reader that has got nothing at all waits `timeout_s` from then on, as it does at a port
        without a network. Raises ConnectionEndedError when there is nothing and never will be.
        """
        with self.news:
            if len(self._data) < size:
                self._wait(size, timeout_s, gap_s, reply_due_s)
            return self._forget(min(size, len(self._data)))

    def _wait(
        self, size: int, timeout_s: float | None, gap_s: float | None, reply_due_s: float
    ) -> None:
        begin_s = time.monotonic()
        deadline_s = math.inf if timeout_s is None else begin_s + timeout_s
        empty_deadline_s = max(deadline_s, reply_due_s + timeout_s) if timeout_s else deadline_s
        while len(self._data) < size:
            until_s = deadline_s if self._data else empty_deadline_s
            if gap_s is not None and self._data:
                until_s = min(until_s, max(begin_s, self._last_feed_s) + gap_s)
            if not self._wait_for_more(size, until_s):
                return

    def take_until(  # the parameters of pyserial's read_until and readline
        self,
        expected: bytes,
        size: int | None,
        timeout_s: float | None,
        reply_due_s: float,
        *,
        restart: bool,
    ) -> bytes:
        """Return all up to and with `expected`, `size` bytes, or what there is after `timeout_s`.

        With `restart` the time-out starts again with each arrival of data.
        """
        with self.news:
            begin_s, searched = time.monotonic(), 0
            while True:
                if (length := self._length_of(expected, searched, size)) is not None:
                    return self._forget(length)
                searched = len(self._data)
                until_s = math.inf
                if timeout_s is not None:
                    since_s = max(begin_s, self._last_feed_s) if restart else begin_s
                    if not self._data and timeout_s:
                        since_s = max(since_s, reply_due_s)
                    until_s = since_s + timeout_s
                if not self._wait_for_more(math.inf if size is None else size, until_s):
                    return self._forget(len(self._data))

    def _length_of(self, expected: bytes, searched: int, size: int | None) -> int | None:
        found = self._data.find(expected, max(0, searched - len(expected) + 1))
        length = found + len(expected) if found >= 0 else None
        if size is not None and len(self._data) >= size:
            return min(size, length or size)
        return length

    def _wait_for_more(self, wanted: float, until_s: float) -> bool:
        """Wait for news; return whether there may be more data."""
        if self._cancelled:
            self._cancelled = False
            return False
        if self.ended is not None:
            if not self._data:
                raise ConnectionEndedError(self.ended)
            return False
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return False
        self._wanted = wanted
        if len(self._data) >= MAX_WAITING_BYTES:
            self.news.notify_all()  # the receiving thread pauses
        try:
            self.news.wait(None if left_s == math.inf else left_s)
        finally:
            self._wanted = 0
        return True

    def _forget(self, size: int) -> bytes:
        was_full = len(self._data) >= MAX_WAITING_BYTES
        taken = bytes(self._data[:size])
        del self._data[:size]
        if was_full:
            self.news.notify_all()
        if self._signalled and not self._data and self.ended is None:
            self._signalled = False
            if self._signal is not None:
                self._signal[0].recv(1)
        return taken

    def fileno(self) -> int:
        """A descriptor for select(): readable while there is data, or nothing more will come."""
        with self.news:
            if self._signal is None:
                self._signal = socket.socketpair()
                if self._data or self.ended is not None:
                    self._set_signal()
            return self._signal[0].fileno()

    def close(self) -> None:
        """Close the descriptor."""
        with self.news:
            if self._signal is not None:
                for end in self._signal:
                    end.close()
                self._signal = None

    def _set_signal(self) -> None:
        if self._signal is not None and not self._signalled:
            self._signalled = True
            self._signal[1].send(b"!")


class Connection:
    """One connection, made and negotiated on creation, and the thread that receives.

    Raises OSError when the server can't be reached, RefusedError when it does not speak RFC 2217
    or refuses the port. Once it has ended, everything raises ConnectionEndedError.
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
        greeting = self._wire.data_to_send()  # from now on only the receiving thread uses the wire
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
        with suppress(OSError):  # the receiving thread finds out why, and what was said
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

    def _receive(self) -> None:
        """Run the receiving thread."""
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
                case rfc2217.FlowcontrolSuspend() | rfc2217.FlowcontrolResume():
                    self._suspended = isinstance(command, rfc2217.FlowcontrolSuspend)
                case _:
                    kind = kind_of(command)
                    self.in_force[kind] = command
                    if self._unanswered[kind]:
                        self._unanswered[kind] -= 1
            self.news.notify_all()

    def _ended(self, error: OSError) -> ConnectionEndedError:
        return ConnectionEndedError(self.received.ended or str(error))

    def send(self, commands: Iterable[rfc2217.Command]) -> None:
        """Send commands in one segment, without waiting for the answers."""
        wire_bytes = b"".join(rfc2217.encode(command, from_server=False) for command in commands)
        try:
            self._link.send(wire_bytes, time.monotonic() + self._timeout_s)
        except SendTimeoutError:
            raise NoAnswerError(f"the server has taken nothing for {self._timeout_s:g} s") from None
        except OSError as error:
            raise self._ended(error) from error

    def ask(
        self,
        commands: Iterable[rfc2217.Command],
        unasked: Iterable[rfc2217.Command] = (),
        more_s: float = 0.0,
    ) -> None:
        """Send both in one segment, wait until all of `commands` are answered: see `in_force`.

        `more_s` is how much longer than its time-out the server may take.
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
        """Note a round trip that began then and has just ended."""
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
        """Hand data to the network; return how much: all unless `cancel_write` was called.

        Raises WriteTimeoutError when the server does not accept all in time.
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
                    raise self._ended(error) from error
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
        """Wait while the server has suspended us; return False when cancelled."""
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
        """Let the write that waits, or else the next, return how much it has written."""
        with self.news:
            self._write_cancelled = True
            self.news.notify_all()

    def purge(self, buffers: PurgeBuffers) -> None:
        """Discard what was received, here, on its way and at the server, or what is to be sent."""
        if buffers != PurgeBuffers.TRANSMIT:
            self.received.purge(time.monotonic() + self._timeout_s)
        self.send([rfc2217.PurgeData(buffers)])

    def modem_state(self, *, poll: bool) -> Modemstate:
        """The last notified modem state; requested if there is none, or with `poll` a fresh one."""
        fresh_s = time.monotonic() - _FRESH_S
        if self.modemstate is None or (poll and self._modemstate_s < fresh_s):
            begin_s = time.monotonic()
            self.send([rfc2217.NotifyModemstate(0)])
            self._wait_until(lambda: self._modemstate_s >= begin_s, begin_s + self._timeout_s)
        if self.modemstate is None:
            raise NoAnswerError("the server sends no NOTIFY-MODEMSTATE")
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
