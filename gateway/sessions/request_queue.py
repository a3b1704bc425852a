"""What one client asks of its device, carried out in stream order.

A change (settings, lines, break, purge) waits for the bytes before it and holds back what
follows, so a queue forms while one is made, or while the board takes no bytes; whoever fills it
stops reading when it is full. Two requests do not wait for their turn: to suspend output or
resume it, which concerns the other direction, and to purge what is to be sent, for that may be
what everything else waits for. How the requests came about is the conversation's matter, the
connection `session`'s.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Protocol

from gateway import clock
from gateway.protocol import access_server
from gateway.protocol.access_server import (
    BreakRequest,
    Console,
    LinesRequest,
    PurgeRequest,
    SerialData,
    SettingsRequest,
)
from gateway.protocol.reset import RESET, Lines
from gateway.protocol.rfc2217 import Linestate, Modemstate, NotifyModemstate
from gateway.sessions.seat import Seat
from gateway.sessions.states_poll import StatesPoll
from gateway.tty.serial_states import PortStates

#: How long the answer to DTR or RTS waits for the line to move, which takes 1 to 4 ms on USB. It
#: takes seconds behind bytes on their way or in a reset of the gateway's; pyserial fails after
#: 3 s. Less than its 50 ms between two looks for an answer, with room for the round trip.
LINES_ANSWER_S = 0.02

#: The break that a telnet BRK asks for: longer than a character at any baud rate from 50 on.
_BREAK_S = 0.25

#: What may wait for a board that takes nothing, besides one read more. A purge is seen only if it
#: is read, so this is how far behind the stuck bytes it may stand. A request other than data needs
#: some 100 bytes of memory.
READ_AHEAD_BYTES = 262144
READ_AHEAD_EVENTS = 1024

#: Requests carried out in one turn of the loop: 1 to 3 ms of CPU. One call of
#: `Conversation.receive_data` returns fewer, so its requests are never parted.
EVENTS_PER_TURN = 256

#: Commands carried out for a client that has left. Programs wait for the answers to most of theirs,
#: so few wait when a program ends. A break takes 0.25 s, a reset up to a second.
COMMANDS_AFTER_LEAVING = 32


class Conversation(Protocol):
    """What one client speaks, without I/O: `protocol.access_server`.

    Every `PortRequest` that `receive_data` returns is owed one call of `answer`.
    """

    @property
    def is_telnet(self) -> bool:
        """Whether the client is offered telnet options when it connects, which it answers."""

    @property
    def takes_text(self) -> bool:
        """Whether a line for a person may be put among the board's output."""

    @property
    def unparsed_bytes(self) -> int:
        """How much has come that `receive_data` has not looked at: call it again, with b""."""

    def receive_data(self, data: bytes) -> list[access_server.Event]:
        """Take what came from the client; return what it asks for, in stream order.

        So much of it as one turn of the loop has time for.
        """

    @property
    def is_amid_command(self) -> bool:
        """Whether the client has begun a command and not ended it: what follows belongs to it."""

    @property
    def unsent_bytes(self) -> int:
        """How much `data_to_send` would return."""

    def data_to_send(self) -> bytes:
        """Answers that wait to be sent, framed for the wire."""

    def say(self, text: bytes) -> None:
        """Queue text for a person, as if the board had sent it; only if it `takes_text`."""

    def escape(self, data: bytes) -> bytes:
        """Frame data from the board for the wire."""

    def answer(self, request: access_server.PortRequest, status: access_server.PortStatus) -> None:
        """Queue the acknowledgement of a request with what is in force now."""

    def notify_modemstate(self, state: Modemstate, *, requested: bool = False) -> None:
        """Tell the client the modem state, if it wants to know."""

    def notify_linestate(self, state: Linestate, *, requested: bool = False) -> None:
        """Tell the client the line state, if it wants to know."""


class QueueOwner(Protocol):
    """What the queue tells its session."""

    def queue_moved(self) -> None:
        """Something was carried out or answered; if it `is_behind`, `catch_up` is due."""

    def output_suspended(self, suspended: bool) -> None:
        """The client wants no output for now (True), or wants it again."""

    def output_purged(self) -> None:
        """The client wants nothing any more of what the board has sent so far."""

    def client_identified(self, signature: str) -> None:
        """The client has told its SIGNATURE."""

    def violated(self, reason: str, *, fatal: bool) -> None:
        """The client has broken the protocol; a fatal violation leaves nothing to follow."""

    def say(self, line: str) -> None:
        """Write a line for a person among the board's output."""


class RequestQueue:
    """The requests of one client on a device that is its own."""

    def __init__(self, device: Seat, conversation: Conversation, owner: QueueOwner) -> None:
        self._device = device
        self._conversation = conversation
        self._owner = owner
        self._lines_answers: list[tuple[LinesRequest, Lines]] = []  # that wait for lines to move
        self._lines_timer: clock.Timer | None = None
        #: Whether requests that need not wait for anything are left for a later turn of the loop.
        self.is_behind = False
        self._events: deque[access_server.Event] = deque()
        self._before_purge: deque[access_server.Event] = deque()  # before _events, no data among it
        self._waiting_bytes = 0  # of data among the events
        self._left_out_bytes = 0  # of data that is not carried out, for its client has left
        self._commands_left: int | None = None  # None while the client is there
        self._change_pending = False  # a change is being made: what follows waits
        self._board_busy = False  # more bytes are unsent than should be
        self._purging = False  # ahead of what waits; nothing has been written since
        self._carrying_out = False
        self._closed = False
        self._modemstate_told = False
        self._poll = StatesPoll(
            device.read_states, self._modemstate_changed, self._linestate_changed
        )

    @property
    def waiting_bytes(self) -> int:
        """Bytes for the board that have not had their turn, or are left out."""
        return self._waiting_bytes + self._left_out_bytes

    @property
    def is_empty(self) -> bool:
        """True when everything has been carried out, as far as the kernel has taken it."""
        has_events = bool(self._events or self._before_purge)
        return not has_events and not self._change_pending and not self._board_busy

    @property
    def is_full(self) -> bool:
        """True when so much waits that nothing should be added for now."""
        n_events = len(self._before_purge) + len(self._events)
        return self._waiting_bytes > READ_AHEAD_BYTES or n_events > READ_AHEAD_EVENTS

    def add(self, events: list[access_server.Event]) -> None:
        """Carry these out behind what waits."""
        if len(events) == 1 and self.is_empty and isinstance(data := events[0], SerialData):
            # Most of all that comes: nothing to wait for, and nothing to answer it.
            self._device.write(data.data)
            if self._conversation.unsent_bytes:
                self._owner.queue_moved()
            return
        for event in events:
            match event:
                case access_server.OutputSuspended(suspended):
                    self._poll.hold(suspended)
                    self._owner.output_suspended(suspended)
                    continue
                case PurgeRequest(transmit=True):
                    self._purge_what_waits()
            self._append(event)
        self.carry_on()

    def board_busy(self) -> None:
        """The board does not keep up: send it nothing more."""
        self._board_busy = True

    def board_ready(self) -> None:
        """The board has caught up."""
        self._board_busy = False
        self.carry_on()

    def catch_up(self) -> None:
        """Go on where `is_behind`."""
        self.is_behind = False
        self.carry_on()

    def client_left(self) -> None:
        """Answer and report nothing more: carry out what waits, and what is added.

        After COMMANDS_AFTER_LEAVING commands the rest is left out, data included: it is meant for a
        board on which all of them were carried out.
        """
        if self._commands_left is not None:
            return
        self._poll.watch(linestate=False, modemstate=False)
        self._commands_left = COMMANDS_AFTER_LEAVING
        waiting = [*self._before_purge, *self._events]
        self._before_purge.clear()
        self._events.clear()
        self._waiting_bytes = 0
        for event in waiting:
            self._append(event)

    def close(self) -> None:
        """Drop what waits; the device may not be touched any more."""
        self._closed = True
        self._answer_lines()
        self._before_purge.clear()
        self._events.clear()
        self._waiting_bytes = 0
        self._poll.watch(linestate=False, modemstate=False)

    def carry_on(self) -> None:
        """Carry out requests until one has to be waited for, or the turn is used up."""
        if self._carrying_out or self.is_behind:
            return
        self._carry_out_waiting()
        if not self._closed:
            self._owner.queue_moved()

    def status_line(self) -> str:
        """The port in one line, for a person at a telnet client."""
        status = self._device.status
        return f"{self._device.name}: {status.settings}, {status.lines}"

    def _append(self, event: access_server.Event) -> None:
        if self._commands_left is not None and not self._is_for_leaver(event):
            return
        if isinstance(event, SerialData):
            self._waiting_bytes += len(event.data)
        self._events.append(event)

    def _is_for_leaver(self, event: access_server.Event) -> bool:
        """Whether this is carried out though its client has left; counts commands."""
        assert self._commands_left is not None  # noqa: S101 - it has left
        match event:
            case SerialData(data):
                if self._commands_left < 0:
                    self._left_out_bytes += len(data)
                return self._commands_left >= 0
            case access_server.ClientIdentified():
                return True
            case SettingsRequest(_, change) if not change:
                return False
            case LinesRequest(_, None, None) | BreakRequest(_, None):
                return False
            case SettingsRequest() | LinesRequest() | BreakRequest() | PurgeRequest():
                pass
            case access_server.ConsoleRequest(Console.SEND_BREAK):
                pass
            case _:
                return False
        self._commands_left = max(self._commands_left - 1, -1)
        return self._commands_left >= 0

    def _carry_out_waiting(self) -> None:
        if self._carrying_out or self.is_behind:
            return
        self._carrying_out = True
        for _ in range(EVENTS_PER_TURN):
            if not self._is_ready:
                break
            self._carry_out((self._before_purge or self._events).popleft())
        self.is_behind = self._is_ready
        self._carrying_out = False

    @property
    def _is_ready(self) -> bool:
        """Whether a request can be carried out now."""
        if self._change_pending or self._board_busy:
            return False
        return bool(self._before_purge or self._events)

    def _carry_out(self, event: access_server.Event) -> None:
        match event:
            case SerialData():
                self._waiting_bytes -= len(event.data)
                self._device.write(event.data)
            case SettingsRequest() | LinesRequest() | BreakRequest() | PurgeRequest():
                self._change(event)
            case access_server.StateRequest():
                self._report_state(event)
            case access_server.StatesWatched(linestate_mask, modemstate_mask):
                self._poll.watch(linestate=bool(linestate_mask), modemstate=bool(modemstate_mask))
            case access_server.ClientIdentified(signature):
                self._owner.client_identified(signature)
            case access_server.ConsoleRequest(request):
                self._serve_console(request)
            case access_server.Violation(reason, fatal):
                self._owner.violated(reason, fatal=fatal)

    def _purge_what_waits(self) -> None:
        """Drop the bytes before a purge that stand in its way; it is answered in its turn."""
        self._carry_out_waiting()
        # Each event is looked at by one purge only, however many follow.
        self._before_purge += (each for each in self._events if not isinstance(each, SerialData))
        self._events.clear()
        self._waiting_bytes = 0
        if not self._purging and not self.is_empty and not self._closed:
            self._purging = True
            self._device.purge(self._purged, receive=False, transmit=True)

    def _purged(self) -> None:
        self._purging = False

    def _change(self, request: access_server.PortRequest) -> None:
        """Make a change, or report what is in force, and answer."""
        status = self._device.status
        match request:
            case SettingsRequest() if request.apply_to(status.settings) != status.settings:
                self._change_pending = True
                wanted = request.apply_to(status.settings)
                self._device.apply(wanted, lambda: self._changed(request))
            case LinesRequest(_, dtr, rts) if dtr is not None or rts is not None:
                self._set_lines(request)
            case BreakRequest(_, bool(on)) if on != status.break_on:
                self._change_pending = True
                self._device.set_break(on, lambda: self._changed(request))
            case PurgeRequest(_, receive, transmit):
                self._change_pending = True
                if receive:
                    self._owner.output_purged()
                self._device.purge(
                    lambda: self._changed(request), receive=receive, transmit=transmit
                )
            case _:
                self._conversation.answer(request, status)

    def _changed(self, answered: access_server.PortRequest | None = None) -> None:
        """A change has been made: answer it, and go on with what waited for it."""
        if self._closed:
            return
        self._change_pending = False
        if answered is not None:
            self._conversation.answer(answered, self._device.status)
        self.carry_on()

    def _set_lines(self, first: LinesRequest) -> None:
        """Set one line, together with the other if that follows at once.

        Two commands in one segment are one edge to the client. They are answered with what was
        asked for, once the lines have moved or LINES_ANSWER_S have passed. An edge that is held
        back is answered at once: the client's next command, which shows what is meant, waits for
        the answer.
        """
        status = self._device.status
        lines = _with_request(status.lines, first)
        dtr, rts = first.dtr, first.rts
        answers = [(first, lines)]
        # A reset in between is meant: the network has only brought its two ends together.
        joins = self._device.joins_lines and lines != RESET
        if joins and (other := self._other_line(first)) is not None:
            (self._before_purge or self._events).popleft()
            lines = _with_request(lines, other)
            answers.append((other, lines))
            dtr = other.dtr if dtr is None else dtr
            rts = other.rts if rts is None else rts
        self._change_pending = True
        self._lines_answers = answers
        self._device.set_lines(self._lines_set, dtr=dtr, rts=rts)
        if self._lines_answers:
            self._lines_timer = clock.call_later(LINES_ANSWER_S, self._answer_lines)

    def _lines_set(self) -> None:
        self._answer_lines()
        self._changed()

    def _answer_lines(self) -> None:
        """Answer the commands for lines that are being carried out, unless that is done."""
        if self._lines_timer is not None:
            self._lines_timer.cancel()
            self._lines_timer = None
        answers, self._lines_answers = self._lines_answers, []
        if answers and not self._closed:
            for request, asked_for in answers:
                status = replace(self._device.status, lines=asked_for)
                self._conversation.answer(request, status)
            if not self._carrying_out:
                self._owner.queue_moved()

    def _other_line(self, first: LinesRequest) -> LinesRequest | None:
        """The next request, if it sets the line that `first` does not."""
        waiting = self._before_purge or self._events
        following = waiting[0] if waiting else None
        if not isinstance(following, LinesRequest):
            return None
        is_other = following.rts is not None if first.rts is None else following.dtr is not None
        return following if is_other else None

    def _report_state(self, request: access_server.StateRequest) -> None:
        # What follows waits: a client could ask faster than a board's lines can be read.
        self._change_pending = True
        self._device.read_states(lambda states: self._states_read(request, states))

    def _states_read(self, request: access_server.StateRequest, states: PortStates) -> None:
        if isinstance(request.command, NotifyModemstate):
            self._modemstate_changed(self._poll.take_modemstate(states), requested=True)
        elif not self._closed:
            self._conversation.notify_linestate(self._poll.take_linestate(states), requested=True)
        self._changed()

    def _modemstate_changed(self, state: Modemstate, *, requested: bool = False) -> None:
        if not self._closed:
            # The first is sent even if no bit is set: pyserial fails until it knows the state.
            requested = requested or not self._modemstate_told
            self._modemstate_told = True
            self._conversation.notify_modemstate(state, requested=requested)
            self._owner.queue_moved()

    def _linestate_changed(self, state: Linestate) -> None:
        if not self._closed:
            self._conversation.notify_linestate(state)
            self._owner.queue_moved()

    def _serve_console(self, request: Console) -> None:
        match request:
            case Console.ARE_YOU_THERE:
                self._owner.say(self.status_line())
            case Console.SEND_BREAK:
                self._change_pending = True
                self._device.set_break(True, self._break_begun)
            case Console.ABORT_OUTPUT:
                self._change_pending = True
                self._owner.output_purged()
                self._device.purge(self._changed, receive=True, transmit=False)

    def _break_begun(self) -> None:
        clock.call_later(_BREAK_S, self._end_break)

    def _end_break(self) -> None:
        if not self._closed:
            self._device.set_break(False, self._changed)


def _with_request(lines: Lines, request: LinesRequest) -> Lines:
    return Lines(
        dtr=lines.dtr if request.dtr is None else request.dtr,
        rts=lines.rts if request.rts is None else request.rts,
    )
