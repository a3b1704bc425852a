"""What one client asks of its port, carried out in stream order.

An operation (settings, lines, break, purge) waits for the bytes before it and holds back what
follows, so a queue forms while one is under way, or while the board takes no bytes; the session
stops reading when it is full. Two requests do not wait for their turn: to suspend output or
resume it, which concerns the other direction, and to purge what is to be sent, for that may be
what everything else waits for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol

from gateway import clock
from gateway.errors import PortLostError
from gateway.port.claim import Claim
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
from gateway.session.modem_states import ModemStates

#: How long the answer to DTR or RTS waits for the line to move, which takes 1 to 4 ms on USB. It
#: takes seconds after bytes on their way or in a reset of the gateway's; pyserial fails after
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


class RequestsOwner(Protocol):
    """The session of the client."""

    def requests_moved(self) -> None:
        """Something was carried out or answered; if it `is_behind`, `catch_up` is due."""

    def output_suspended(self, suspended: bool) -> None:
        """The client wants no output for now (True), or wants it again."""

    def output_purged(self) -> None:
        """Drop what the board has sent so far and the client has not got."""

    def client_identified(self, signature: str) -> None:
        """The client has told its SIGNATURE."""

    def violated(self, reason: str, *, fatal: bool) -> None:
        """The client has broken the protocol; a fatal violation leaves nothing to follow."""

    def say(self, line: str) -> None:
        """Write a line for a person among the board's output."""


class Requests:
    """The requests of one client that has a port."""

    def __init__(self, claim: Claim, conversation: Conversation, owner: RequestsOwner) -> None:
        self._claim = claim
        self._conversation = conversation
        self._owner = owner
        #: Whether requests that need not wait for anything are left for a later turn of the loop.
        self.is_behind = False
        self._events: deque[access_server.Event] = deque()
        self._before_purge: deque[access_server.Event] = deque()  # before _events, no data among it
        self._waiting_bytes = 0  # of data among the events
        self._left_out_bytes = 0  # of data that is not carried out, for its client has left
        self._commands_left: int | None = None  # None while the client is there
        self._operation: asyncio.Task[None] | None = None  # under way: what follows waits
        self._board_busy = False  # more bytes are unsent than should be
        self._purging = False  # ahead of what waits; nothing has been written since
        self._carrying_out = False
        self._closed = False
        self._is_modemstate_sent = False
        self._states = ModemStates(claim, self._modemstate_changed, self._linestate_changed)

    @property
    def waiting_bytes(self) -> int:
        """Bytes for the board that have not had their turn, or are left out."""
        return self._waiting_bytes + self._left_out_bytes

    @property
    def is_empty(self) -> bool:
        """True when everything has been carried out, as far as the kernel has taken it."""
        has_events = bool(self._events or self._before_purge)
        return not has_events and self._operation is None and not self._board_busy

    @property
    def is_full(self) -> bool:
        """True when so much waits that nothing should be added for now."""
        n_events = len(self._before_purge) + len(self._events)
        return self._waiting_bytes > READ_AHEAD_BYTES or n_events > READ_AHEAD_EVENTS

    def add(self, events: list[access_server.Event]) -> None:
        """Carry these out after what waits."""
        is_empty = not self._events and not self._before_purge
        is_free = is_empty and self._operation is None and not self._board_busy
        if is_free and len(events) == 1 and isinstance(data := events[0], SerialData):
            # Most of all that comes: nothing to wait for, and nothing to answer it.
            self._claim.write(data.data)
            if self._conversation.unsent_bytes:
                self._owner.requests_moved()
            return
        for event in events:
            match event:
                case access_server.OutputSuspended(suspended):
                    self._states.hold(suspended)
                    self._owner.output_suspended(suspended)
                    continue
                case PurgeRequest(transmit=True):
                    self._purge_what_waits()
                case SerialData():
                    self._waiting_bytes += len(event.data)
            if self._commands_left is None:
                self._events.append(event)
            else:
                self._append_for_leaver(event)
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
        self._states.watch(linestate=False, modemstate=False)
        self._commands_left = COMMANDS_AFTER_LEAVING
        waiting = [*self._before_purge, *self._events]
        self._before_purge.clear()
        self._events.clear()
        for event in waiting:
            self._append_for_leaver(event)

    def close(self) -> None:
        """Drop what waits; the port may not be touched any longer."""
        self._closed = True
        if self._operation is not None:
            self._operation.cancel()
        self._before_purge.clear()
        self._events.clear()
        self._waiting_bytes = 0
        self._states.watch(linestate=False, modemstate=False)

    def carry_on(self) -> None:
        """Carry out requests until one has to be waited for, or the turn is used up."""
        if not self._carrying_out and not self.is_behind:
            self._carry_out_waiting()
            # While an operation is under way there is nothing to do but to send answers.
            is_quiet = self._operation is not None and not self.is_behind
            if is_quiet and not self._conversation.unsent_bytes and not self.is_full:
                return
            if not self._closed:
                self._owner.requests_moved()

    def status_line(self) -> str:
        """The port in one line, for a person at a telnet client."""
        status = self._claim.status
        return f"{self._claim.port.name}: {status.settings}, {status.lines}"

    # --- the queue

    def _append_for_leaver(self, event: access_server.Event) -> None:
        if self._is_for_leaver(event):
            self._events.append(event)
        elif isinstance(event, SerialData):
            self._waiting_bytes -= len(event.data)

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
            waiting = self._before_purge or self._events
            if not waiting or self._operation is not None or self._board_busy:
                break
            self._carry_out(waiting.popleft())
        else:
            has_more = bool(self._before_purge or self._events)
            self.is_behind = has_more and self._operation is None and not self._board_busy
        self._carrying_out = False

    def _purge_what_waits(self) -> None:
        """Drop the bytes before a purge that stand in its way; it is answered in its turn."""
        self._carry_out_waiting()
        # Each event is looked at by one purge only, however many follow.
        self._before_purge += (each for each in self._events if not isinstance(each, SerialData))
        self._events.clear()
        self._waiting_bytes = 0
        if not self._purging and not self.is_empty and not self._closed:
            self._purging = True
            self._claim.purge(receive=False, transmit=True).add_done_callback(self._purged)

    def _purged(self, _: object) -> None:
        self._purging = False

    # --- one request

    def _carry_out(self, event: access_server.Event) -> None:
        match event:
            case SerialData():
                self._waiting_bytes -= len(event.data)
                self._claim.write(event.data)
            case SettingsRequest() | LinesRequest() | BreakRequest() | PurgeRequest():
                self._change(event)
            case access_server.StateRequest():
                self._begin(self._report_state, event)
            case access_server.StatesWatched(linestate_mask, modemstate_mask):
                self._states.watch(linestate=bool(linestate_mask), modemstate=bool(modemstate_mask))
            case access_server.ClientIdentified(signature):
                self._owner.client_identified(signature)
            case access_server.ConsoleRequest(Console.ARE_YOU_THERE):
                self._owner.say(self.status_line())
            case access_server.ConsoleRequest(Console.SEND_BREAK):
                self._begin(self._send_break)
            case access_server.ConsoleRequest(Console.ABORT_OUTPUT):
                self._owner.output_purged()
                self._begin(self._abort_output)
            case access_server.Violation(reason, fatal):
                self._owner.violated(reason, fatal=fatal)

    def _change(self, request: access_server.PortRequest) -> None:
        """Make a change, or answer at once where nothing is to be changed."""
        status = self._claim.status
        match request:
            case SettingsRequest() if (
                wanted := request.apply_to(status.settings)
            ) != status.settings:
                self._begin(self._answered, request, self._claim.set_settings(wanted))
            case LinesRequest(_, dtr, rts) if dtr is not None or rts is not None:
                self._begin(self._set_lines, request)
            case BreakRequest(_, bool(on)) if on != status.break_on:
                self._begin(self._answered, request, self._claim.set_break(on))
            case PurgeRequest(_, receive, transmit):
                if receive:
                    self._owner.output_purged()
                purged = self._claim.purge(receive=receive, transmit=transmit)
                self._begin(self._answered, request, purged)
            case _:
                self._conversation.answer(request, status)

    def _begin(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        """Carry out a request that has to be waited for; what follows waits."""
        self._operation = asyncio.get_running_loop().create_task(self._run(work, *args))

    async def _run(self, work: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        try:
            await work(*args)
        except PortLostError:
            return  # the session is closed by that
        self._operation = None
        self.carry_on()

    async def _answered(
        self,
        request: access_server.PortRequest,
        operation: asyncio.Future[access_server.PortStatus],
    ) -> None:
        self._conversation.answer(request, await operation)

    async def _set_lines(self, first: LinesRequest) -> None:
        """Set one line, together with the other if that follows at once.

        Two commands in one segment are one edge to the client. They are answered with what was
        asked for, once the lines have moved or LINES_ANSWER_S have passed. An edge that is held
        back is answered at once: the client's next command, which shows what is meant, waits for
        the answer.
        """
        lines = self._claim.status.lines.with_changes(first.dtr, first.rts)
        dtr, rts = first.dtr, first.rts
        answers = [(first, lines)]
        # A reset in between is meant: the network has only brought its two ends together.
        joins = self._claim.joins_lines and lines != RESET
        if joins and (other := self._other_line(first)) is not None:
            (self._before_purge or self._events).popleft()
            lines = lines.with_changes(other.dtr, other.rts)
            answers.append((other, lines))
            dtr = other.dtr if dtr is None else dtr
            rts = other.rts if rts is None else rts
        operation = self._claim.set_lines(dtr=dtr, rts=rts)
        timer = clock.call_later(LINES_ANSWER_S, self._answer_lines, answers)
        try:
            await operation
        finally:
            timer.cancel()
        self._queue_answers(answers)

    def _answer_lines(self, answers: list[tuple[LinesRequest, Lines]]) -> None:
        self._queue_answers(answers)
        if not self._carrying_out:
            self._owner.requests_moved()

    def _queue_answers(self, answers: list[tuple[LinesRequest, Lines]]) -> None:
        """Answer the commands for lines that are being carried out, unless that is done."""
        for request, asked_for in answers:
            status = replace(self._claim.status, lines=asked_for)
            self._conversation.answer(request, status)
        answers.clear()

    def _other_line(self, first: LinesRequest) -> LinesRequest | None:
        """The next request, if it sets the line that `first` does not."""
        waiting = self._before_purge or self._events
        following = waiting[0] if waiting else None
        if not isinstance(following, LinesRequest):
            return None
        is_other = following.rts is not None if first.rts is None else following.dtr is not None
        return following if is_other else None

    async def _report_state(self, request: access_server.StateRequest) -> None:
        # What follows waits: a client could ask faster than a board's lines can be read.
        states = await self._claim.read_states()
        if isinstance(request.command, NotifyModemstate):
            self._modemstate_changed(self._states.take_modemstate(states), requested=True)
        else:
            self._conversation.notify_linestate(self._states.take_linestate(states), requested=True)

    async def _send_break(self) -> None:
        await self._claim.set_break(True)
        await clock.sleep(_BREAK_S)
        await self._claim.set_break(False)

    async def _abort_output(self) -> None:
        await self._claim.purge(receive=True, transmit=False)

    # --- modem and line state

    def _modemstate_changed(self, state: Modemstate, *, requested: bool = False) -> None:
        if not self._closed:
            # The first is sent even if no bit is set: pyserial fails until it knows the state.
            requested = requested or not self._is_modemstate_sent
            self._is_modemstate_sent = True
            self._conversation.notify_modemstate(state, requested=requested)
            self._owner.requests_moved()

    def _linestate_changed(self, state: Linestate) -> None:
        if not self._closed:
            self._conversation.notify_linestate(state)
            self._owner.requests_moved()
