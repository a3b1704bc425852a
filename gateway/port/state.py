"""What is wanted of one port and what its tty has: settings, DTR, RTS and break.

Pure: no I/O, no clock, no callbacks. Requests and news of the tty go in, with the time; actions for
the tty, results of requests and events for the log come out. `port` carries the actions out.

A request changes what is wanted; actions bring the tty there, in stream order. Each client has a
`View`. While the client controls the port, its view is what is wanted; while it is suspended it
goes on changing its own view, is answered from it, and nothing is applied. While the board is
offline, requests are answered from what is wanted, and the board gets that when it is back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from gateway.port.lines import BoardLines, BoardReset, DropUnsent, LineEvent, Log
from gateway.protocol.access_server import PortStatus
from gateway.protocol.board_kinds import UsbIds
from gateway.protocol.reset import BOTH, IDLE, Lines, ResetChoice, Starts
from gateway.protocol.serial_settings import SerialSettings

__all__ = ["BoardReset", "DropUnsent", "LineEvent", "Log", "Reconciler", "View"]


@dataclass(frozen=True, slots=True, eq=False)
class Apply:
    """Change the settings after the bytes written so far; the result is what is in force then."""

    settings: SerialSettings


@dataclass(frozen=True, slots=True, eq=False)
class SetLines:
    """Set DTR and RTS in one step after the bytes written so far."""

    lines: Lines


@dataclass(frozen=True, slots=True, eq=False)
class SetBreak:
    """Begin or end a break after the bytes written so far."""

    on: bool


@dataclass(frozen=True, slots=True, eq=False)
class Drain:
    """Wait until the bytes written so far have left, or can't."""


@dataclass(frozen=True, slots=True, eq=False)
class Purge:
    """Discard what the board has sent, what waits to be sent to it, or both; waits for nothing."""

    receive: bool
    transmit: bool


@dataclass(frozen=True, slots=True, eq=False)
class ReadStates:
    """Read the modem lines and what has happened on the wire; waits for nothing."""


Action = Apply | SetLines | SetBreak | Drain | Purge | ReadStates

#: The token of the reconciler's own steps of the lines.
_LINE_STEP: Final = object()
_ANSWERED: Final = object()


class View:
    """The port as one client has set it; `status` of `Reconciler` tells what it is answered."""

    __slots__ = ("_pending", "is_suspended", "kept")

    def __init__(self) -> None:
        self.is_suspended = False  # another client controls the port
        self.kept: PortStatus | None = None  # what is wanted once the client has control again
        self._pending: dict[object, None] = {}  # tokens of its requests, in their order


class Reconciler:
    """Wanted and applied state of one port.

    A request has a token, which comes once in `results`, with the result: a `PortStatus`, the
    states read by `read_states`, or None where the board is offline. Requests of one view are
    answered in their order, but for a purge. `done` reports each of the `actions`, unless the tty
    is lost first. `lines.events` has what is to be logged, `lines.deadline` when `handle_timer`
    is to be called.
    """

    def __init__(self, settings: SerialSettings, resets: ResetChoice) -> None:
        self.settings = settings  # wanted, or in force where the driver has refused them
        self.break_on = False  # wanted
        self.applied: PortStatus | None = None  # what the tty has; None while there is none
        self._board_ready: object | None = None  # the token of a board that is back
        self._at_rest = settings
        self._resets = resets
        self.lines = BoardLines(resets, None, self._settled)
        self.lines.events.clear()  # of a board that is not known yet
        #: What to do on the tty now, in order; taken from here.
        self.actions: deque[Action] = deque()
        #: The tokens of requests that are done, with their results, to be taken from here.
        self.results: deque[tuple[object, object]] = deque()
        self._in_flight: dict[Action, tuple[View | None, object]] = {}
        self._views: dict[object, View] = {}  # by tokens of requests that wait for the lines
        self._lines_set_by: View | None = None  # the client that has set lines or break last
        self._lines_follow: View | None = None  # the client whose commands the lines continue

    # --- what comes out

    def status(self, view: View | None = None) -> PortStatus:
        """Return what is in force; to a client, in its view."""
        if view is not None and view.kept is not None:
            return view.kept
        return PortStatus(self.settings, self.lines.wanted, self.break_on)

    @property
    def holds_bytes(self) -> bool:
        """Whether a board that is back is not ready for bytes: its owed reset is played."""
        return self._board_ready is not None

    # --- requests

    def set_settings(self, view: View | None, settings: SerialSettings, token: object) -> None:
        """Change the settings; the result tells what the driver has made of them."""
        if self._is_kept(view, token, settings=settings):
            return
        self.settings = settings
        if self.applied is not None:
            self._act(Apply(settings), view, token)
            return
        if view is not None:
            self.lines.baudrate_set(settings.baudrate)
        self._finish(view, token)

    def set_lines(
        self, view: View | None, now: float, token: object, *, dtr: bool | None, rts: bool | None
    ) -> None:
        """Set one modem line or both; done when what follows may go to the board."""
        if self._is_kept(view, token, lines=self.status(view).lines.with_changes(dtr, rts)):
            return
        self._lines_set_by = view
        if self._lines_follow is not view:
            self._lines_follow = view
            self.lines.other_client()
        if view is not None:
            self._views[token] = view
        self.lines.request(now, dtr=dtr, rts=rts, token=token)
        self._advance()

    def set_break(self, view: View | None, on: bool, token: object) -> None:
        """Begin or end a break."""
        if self._is_kept(view, token, break_on=on):
            return
        self.break_on = on
        self._lines_set_by = view
        if self.applied is not None:
            self._act(SetBreak(on), view, token)
        else:
            self._finish(view, token)

    def purge(self, view: View | None, token: object, *, receive: bool, transmit: bool) -> None:
        """Discard what the board has sent, what waits to be sent to it, or both."""
        if self._is_kept(view, token):
            return
        # While offline, too: the bytes that wait for the board are the caller's.
        self._act(Purge(receive, transmit), view, token)

    def drain(self, token: object) -> None:
        """Wait for the bytes written so far."""
        if self.applied is not None:
            self._act(Drain(), None, token)
        else:
            self._finish(None, token)

    def read_states(self, token: object) -> None:
        """Read the modem lines and what has happened on the wire."""
        if self.applied is not None:
            self._act(ReadStates(), None, token)
        else:
            self.results.append((token, None))

    def start(self, starts: Starts, now: float, token: object) -> None:
        """Reset the board into its app or its bootloader, on the gateway's own behalf."""
        self.lines.start(starts, now, token=token)
        self._advance()

    def settle_lines(self, token: object) -> None:
        """Done when nothing that was asked of the lines so far is under way."""
        self.lines.when_settled(token)

    def release_lines(self, now: float, token: object, *, has_left: bool) -> None:
        """Bring both lines to rest, without leaving the board in its bootloader.

        `has_left` False: no client has disconnected, so what disconnecting means to a board is
        not done.
        """
        self._lines_set_by = None
        self.lines.release(now, has_left=has_left, token=token)
        self._advance()

    # --- clients

    def suspend(self, view: View) -> None:
        """Another client gets control; what this one has asked for counts as done."""
        view.is_suspended = True
        if view.kept is None:
            view.kept = self.status()
        for token in tuple(view._pending):
            self._finish(view, token)

    def resume(self, view: View, now: float) -> None:
        """Give control back: what the client has set is wanted again.

        Lines that were both on are raised again in one step; any others stay at rest, for they
        belong to a reset that is over. A break that was begun and not ended is begun again.
        """
        kept, view.kept = view.kept, None
        view.is_suspended = False
        if kept is None:
            return
        if kept.settings != self.settings:
            self.set_settings(view, kept.settings, object())
        if kept.lines == BOTH:
            self.set_lines(view, now, object(), dtr=True, rts=True)
        if kept.break_on:
            self.set_break(view, True, object())

    def leave(self, view: View, now: float, *, others_stay: bool) -> None:
        """The client has left; where others go on, what it has set last goes back to rest."""
        for token in tuple(view._pending):
            self._finish(view, token)
        if self._lines_set_by is view:
            self._lines_set_by = None
            if others_stay:
                if self.break_on:
                    self.set_break(None, False, object())
                self.release_lines(now, object(), has_left=False)

    def forget_clients(self, now: float) -> None:
        """No client controls the port while its board is offline: all of it goes to rest."""
        self._lines_set_by = None
        self.break_on = False
        self.lines.release(now)
        self.settings = self._at_rest
        self._advance()

    # --- the tty

    def opened(self, in_force: SerialSettings, usb_ids: UsbIds | None) -> None:
        """A tty was opened for a port without clients, its lines at rest."""
        self.close()
        self.settings = in_force
        self.lines = BoardLines(self._resets, usb_ids, self._settled)
        self.applied = PortStatus(in_force, self.lines.applied)

    def lost(self, now: float) -> None:
        """The tty is gone and its clients wait for it: what is under way counts as done."""
        self.applied = self._board_ready = None
        self.actions.clear()
        in_flight, self._in_flight = self._in_flight, {}
        for action, (view, token) in in_flight.items():
            if isinstance(action, ReadStates):
                self.results.append((token, None))
            elif token is not _LINE_STEP:
                self._finish(view, token)
        self.lines.board_away(now)
        self._advance()

    def returned(self, in_force: SerialSettings, usb_ids: UsbIds | None, now: float) -> None:
        """The board is back, its lines at rest: the tty gets what is wanted.

        `holds_bytes` is true until it can have the bytes that it was sent meanwhile.
        """
        self.applied = PortStatus(in_force, IDLE)
        if self.settings != in_force:
            self._act(Apply(self.settings), None, object())
        self._board_ready = ready = object()
        self.lines.board_back(usb_ids, now, token=ready)
        self.applied = replace(self.applied, lines=self.lines.applied)
        self._advance()

    def close(self) -> None:
        """The tty was closed, and its clients were told: nothing that was asked for comes true."""
        self.applied = self._board_ready = None
        self.break_on = False
        self.settings = self._at_rest
        self.actions.clear()
        self._in_flight.clear()
        self._views.clear()
        self._lines_set_by = self._lines_follow = None
        self.lines = BoardLines(self._resets, None, self._settled)
        self.lines.events.clear()

    def done(self, action: Action, result: object, now: float) -> None:
        """An action was carried out; `result` is what the tty has returned."""
        if action not in self._in_flight:
            return  # the tty was lost meanwhile
        view, token = self._in_flight.pop(action)
        match action:
            case Apply():
                self._applied(action, result, view, is_wanted=token is not _LINE_STEP)
            case SetLines(lines) if self.applied is not None:
                self.applied = replace(self.applied, lines=lines)
            case SetBreak(on) if self.applied is not None:
                self.applied = replace(self.applied, break_on=on)
        if token is _LINE_STEP:
            self.lines.step_done(now)
            self._advance()
        elif isinstance(action, ReadStates):
            self.results.append((token, result))
        else:
            self._finish(view, token)

    def handle_timer(self, now: float) -> None:
        """A deadline has passed."""
        self.lines.handle_timer(now)
        self._advance()

    # --- inside

    def _applied(
        self, action: Apply, result: object, view: View | None, *, is_wanted: bool
    ) -> None:
        assert isinstance(result, SerialSettings)  # noqa: S101 - that is what Apply returns
        assert self.applied is not None  # noqa: S101 - actions in flight go with the tty
        self.applied = replace(self.applied, settings=result)
        if view is not None:
            self.lines.baudrate_set(result.baudrate)
        if is_wanted and action.settings is self.settings:  # not changed again since
            self.settings = result

    def _advance(self) -> None:
        """Turn the next steps of the lines into actions."""
        while self.lines.steps:
            step = self.lines.steps.popleft()
            if isinstance(step, Lines):
                self._act(SetLines(step), None, _LINE_STEP)
            else:
                bps = step.bps
                settings = self.settings if bps is None else replace(self.settings, baudrate=bps)
                self._act(Apply(settings), None, _LINE_STEP)

    def _act(self, action: Action, view: View | None, token: object) -> None:
        self._in_flight[action] = (view, token)
        self.actions.append(action)

    def _settled(self, token: object) -> None:
        if token is self._board_ready:
            self._board_ready = None
            if self.break_on:
                self._act(SetBreak(True), None, object())
        else:
            self._finish(self._views.pop(token, None), token)

    def _is_kept(
        self,
        view: View | None,
        token: object,
        *,
        settings: SerialSettings | None = None,
        lines: Lines | None = None,
        break_on: bool | None = None,
    ) -> bool:
        """Keep a change for a client that is suspended; returns whether it is.

        The token of another is pending from here on.
        """
        if view is None or not view.is_suspended:
            if view is not None:
                view._pending[token] = None
            return False
        kept = view.kept or self.status()
        view.kept = PortStatus(
            settings or kept.settings,
            lines or kept.lines,
            kept.break_on if break_on is None else break_on,
        )
        self.results.append((token, view.kept))
        return True

    def _finish(self, view: View | None, token: object) -> None:
        """A request is done; one that was answered before is not answered again."""
        if view is None or view._pending.pop(token, _ANSWERED) is not _ANSWERED:
            self.results.append((token, self.status(view)))
