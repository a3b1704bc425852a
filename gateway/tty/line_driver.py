"""Plays a line controller on an open port: its states with ioctls, its deadlines with the clock.

What the states and their times are is `protocol.line_controller`'s matter; who asks for them
`device`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import structlog

from gateway import clock
from gateway.protocol.board_kinds import UsbIds
from gateway.protocol.line_controller import AFTER_TOUCH_S, controller_for, controller_of_returned
from gateway.protocol.reset import BOTH, RESET, Baudrate, Lines, Method, ResetChoice, Starts
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.port_counts import PortCounts

#: A board leaves the bus this soon after the end of what it was told, or for another reason.
_LEAVES_WITHIN_S = 2.0

#: At this rate DTR going off starts the bootloader of many boards: the 1200 baud touch.
_TOUCH_BAUDRATE = 1200


class LinePort(Protocol):
    """What is needed of a serial port."""

    @property
    def usb_ids(self) -> UsbIds | None:
        """Vendor and product id of its USB device."""

    @property
    def settings(self) -> SerialSettings:
        """The settings in force."""

    def set_lines(self, lines: Lines, done: Callable[[], None]) -> None:
        """Set both lines in one step behind what was asked before, then call `done`."""

    def apply(self, settings: SerialSettings, done: Callable[[SerialSettings], None]) -> None:
        """Change the settings behind what was asked before, then call `done`."""

    def drop_unsent(self, reason: str) -> None:
        """Drop what was written and has not been sent; count and log it."""


class LineDriver:
    """One board's DTR and RTS for as long as its port is open.

    The controller's clock stands still while lines are being set: unsent bytes or a slow USB
    device may delay that, and a reset lasts from the moment that the line has moved.
    """

    def __init__(
        self,
        resets: ResetChoice,
        port: LinePort,
        log: structlog.typing.FilteringBoundLogger,
        counts: PortCounts | None = None,
    ) -> None:
        self._resets = resets
        self._strategy = resets.strategy(port.usb_ids)
        self._controller = controller_for(self._strategy, resets.hold_s)
        self._port = port
        self._log = log
        self._counts = counts or PortCounts()
        self._loop = asyncio.get_running_loop()
        self._timer: clock.Timer | None = None
        self._settled: list[Callable[[], None]] = []
        self._being_set = 0
        self._set_since = 0.0  # the loop's time when being_set was last 0 and time was looked at
        self._stood_still_s = 0.0
        self._closed = False
        self._shown = self._strategy.rest
        self._client_baudrate: int | None = None  # as a client has set it, with the board there
        self._stay: clock.Timer | None = None  # nothing is settled for a moment, after a touch
        self._has_touched = False  # a step that is being set
        self._settings_before: SerialSettings | None = None  # a sequence has changed the baud rate
        self._is_away = False
        self._breaking_off: asyncio.Handle | None = None
        self._has_begun = False  # a board that is away has got the first half of a reset
        self._told: Starts | None = None  # what the board was last told to start, and when
        self._told_at_s = float("-inf")
        self._obeyed: Starts | None = None  # why it is away: asking for it again is a retry
        self._owed: Starts | None = None  # what was asked for while it is away

        self._tell_strategy()

    @property
    def joins_lines(self) -> bool:
        """Whether commands for both lines that come together are one step."""
        return self._strategy.method is not Method.AS_THEY_COME

    @property
    def wanted(self) -> Lines:
        """The lines as the client has asked for them: what it is told."""
        return self._controller.wanted

    def request(self, *, dtr: bool | None, rts: bool | None, settled: Callable[[], None]) -> None:
        """Ask for one line or both; `settled` is called when what follows may go to the board.

        An edge that is held back counts as settled: only the client's next command tells what
        was meant.
        """
        self._break_off()
        self._controller.request(self._now(), dtr=dtr, rts=rts, at_1200=self._is_at_1200)
        self._log.debug("lines_asked_for", dtr=self.wanted.dtr, rts=self.wanted.rts)
        self._settled.append(settled)
        self._advance()

    def other_client(self) -> None:
        """Another client sends the next request: it continues nothing of what was sent before."""
        self._controller.forget_commands()

    def baudrate_set(self, baudrate: int) -> None:
        """A client has set this baud rate: at 1200, DTR going off starts many bootloaders."""
        self._client_baudrate = baudrate

    @property
    def has_touched_if_released(self) -> bool:
        """Whether a client that leaves now touches the board by that."""
        return self._is_at_1200 and self._strategy.takes_touch and self._controller.wanted.dtr

    def release(self, settled: Callable[[], None], *, has_left: bool = True) -> None:
        """Bring the lines to rest, without leaving the board in its bootloader.

        `has_left` False: the client has not disconnected, and what disconnecting means to a board
        is not done.
        """
        self._break_off()
        self._controller.release(self._now(), at_1200=has_left and self._is_at_1200)
        self._settled.append(settled)
        self._advance()
        self._client_baudrate = None

    def enter_bootloader(self, settled: Callable[[], None]) -> None:
        """Reset the board into its bootloader; `settled` is called when that is done."""
        self._break_off()
        self._tell_problem(Starts.BOOTLOADER)
        self._controller.enter_bootloader(self._now())
        self._settled.append(settled)
        self._advance()

    def reset(self, settled: Callable[[], None]) -> None:
        """Reset the board into its app; `settled` is called when that is done."""
        self._break_off()
        self._tell_problem(Starts.APP)
        self._controller.reset(self._now())
        self._settled.append(settled)
        self._advance()

    def problem_of(self, starts: Starts) -> str:
        """Why the board can't be made to start this by its lines; empty if it can."""
        is_app = starts is Starts.APP
        sequence = self._strategy.hard if is_app else self._strategy.bootloader
        if sequence.steps:
            return ""
        key = "hard_reset" if is_app else "reset"
        return f"no line starts the {starts.value} of this board; give its {key} a sequence"

    def when_settled(self, settled: Callable[[], None]) -> None:
        """Ask for nothing; `settled` is called when what was asked before is done."""
        self._settled.append(settled)
        self._report()

    def board_away(self) -> None:
        """The board has left the bus, its client stays.

        What is under way reaches no board; a reset that the client asks for from here on is owed
        to the board until it is back.
        """
        self._is_away = True
        self._owed = None
        self._client_baudrate = None
        # A reset whose first half the board has got is told at its end; by intent, at its begin.
        tells_at_end = self._strategy.method is not Method.INTENT
        in_reset = self._controller.applied == RESET and not self._being_set
        self._has_begun = tells_at_end and in_reset and self._strategy.has_circuit
        self._obeyed = self._told if self._has_just_been_told() else None
        # Behind what is asked for once more because the port was lost with it.
        self._breaking_off = self._loop.call_soon(self._break_off)

    def board_back(self, settled: Callable[[], None]) -> None:
        """The board is back, its lines at rest; it may need another strategy than before.

        A reset that it is owed is played first. `settled` is called when bytes may go to it.
        """
        self._is_away = False
        before, self._strategy = self._strategy, self._resets.strategy(self._port.usb_ids)
        if self._strategy != before:
            self._tell_strategy()
        self._shown = self._strategy.rest
        self._controller = controller_of_returned(
            self._controller, self._strategy, self._resets.hold_s, self._now()
        )
        self._play_owed()
        self._settled.append(settled)
        self._advance()

    def _play_owed(self) -> None:
        owed, self._owed = self._owed, None
        if owed is None:
            return
        wanted = self._controller.wanted
        if owed is Starts.BOOTLOADER:
            self._controller.enter_bootloader(self._now())
        else:
            self._controller.reset(self._now())
        if wanted == BOTH:
            self._controller.request(self._now(), dtr=True, rts=True)

    def close(self) -> None:
        """The port is gone: no more deadlines."""
        self._closed = True
        self._settled.clear()
        self._set_timer()
        self._end_stay()

    @property
    def _is_at_1200(self) -> bool:
        return self._client_baudrate == _TOUCH_BAUDRATE

    def _tell_strategy(self) -> None:
        if self._strategy.method is not Method.CIRCUIT:  # the rule is not told
            self._log.info("reset_chosen", reset=self._strategy.name)
        if not self._resets.rest.suits(self._strategy.method):
            reason = "one line alone holds the board in reset or in its bootloader"
            self._log.warning("rest_not_used", rest=str(self._resets.rest), reason=reason)

    def _tell_problem(self, starts: Starts) -> None:
        if problem := self.problem_of(starts):
            self._log.warning("board_not_reset", into=starts.value, reason=problem)

    def _break_off(self) -> None:
        """What was under way when the board vanished is over, ahead of what is asked for next."""
        if self._breaking_off is None:
            return
        self._breaking_off.cancel()
        self._breaking_off = None
        if not self._closed:
            self._end_stay()
            self._controller.board_away(self._now())
            self._advance()

    def _now(self) -> float:
        """The controller's time; it stands still from here on if lines are set now."""
        if not self._being_set:
            self._set_since = clock.time()
        return self._set_since - self._stood_still_s

    def _advance(self) -> None:
        resets = list(self._controller.resets())
        if self._is_away:
            # First: when the lines are set, what the client has sent behind them goes on.
            resets = [starts for starts in resets if not self._is_owed(starts)]
        for step in self._controller.lines_to_set():
            self._being_set += 1
            if isinstance(step, Lines):
                self._log.debug("lines_set", dtr=step.dtr, rts=step.rts)
                self._has_touched |= self._is_at_1200 and self._shown.dtr and not step.dtr
                self._shown = step
                self._port.set_lines(step, self._lines_set)
            else:
                self._set_baudrate(step)
        for starts in resets:
            self._told, self._told_at_s = starts, clock.time()
            self._log.info("board_reset", into=starts.value)
            self._counts.resets[starts.value, self._strategy.name] += 1
        self._set_timer()
        self._report()

    def _is_owed(self, starts: Starts) -> bool:
        """Whether a reset that was asked for has to wait for the board, or is one too many."""
        if self._has_begun:
            self._has_begun = False
            return False
        if starts is self._obeyed:
            self._owed = None  # the board is doing it
            return True
        self._owed = starts
        self._log.info("board_reset_waits", into=starts.value)
        # The board would have got them before its reset.
        self._port.drop_unsent("the board is to be reset when it is back")
        return True

    def _has_just_been_told(self) -> bool:
        """Whether the board may have left because it was told to start something."""
        if self._strategy.method is Method.CIRCUIT:
            return False  # it hangs on a bridge, which does not leave with it
        takes_s = self._strategy.bootloader.duration_s + _LEAVES_WITHIN_S
        return clock.time() - self._told_at_s <= takes_s

    def _set_baudrate(self, step: Baudrate) -> None:
        if self._settings_before is None:
            self._settings_before = self._port.settings
        settings = self._settings_before
        if step.bps is None:
            self._settings_before = None
        else:
            settings = replace(settings, baudrate=step.bps)
            self._log.info("baudrate_touched", baudrate=step.bps)
        self._port.apply(settings, lambda _: self._lines_set())

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._controller.next_deadline()
        if deadline is not None and not self._being_set and not self._closed:
            at = deadline + self._stood_still_s
            self._timer = clock.call_at(at, self._on_time, deadline)

    def _on_time(self, deadline: float) -> None:
        self._controller.handle_timer(max(deadline, self._now()))  # timers may be early by a tick
        self._advance()

    def _lines_set(self) -> None:
        self._being_set -= 1
        if not self._being_set:
            self._stood_still_s += clock.time() - self._set_since
            self._set_timer()
            if self._has_touched and not self._closed:
                self._has_touched = False
                self._end_stay()
                self._stay = clock.call_at(clock.time() + AFTER_TOUCH_S, self._stay_over)
        self._report()

    def _stay_over(self) -> None:
        self._stay = None
        self._report()

    def _end_stay(self) -> None:
        if self._stay is not None:
            self._stay.cancel()
            self._stay = None

    def _report(self) -> None:
        if not self._being_set and not self._controller.busy and self._stay is None:
            settled, self._settled = self._settled, []
            for call in settled:
                call()
