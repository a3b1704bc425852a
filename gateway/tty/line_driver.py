"""Plays a line controller on an open port: its states with ioctls, its deadlines with the clock.

What the states and their times are is `protocol.reset_intent`'s matter; who asks for them
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
from gateway.protocol.reset import BOTH, RESET, Lines, Starts
from gateway.protocol.reset_intent import controller_for, controller_of_returned
from gateway.protocol.reset_sequence import Baudrate
from gateway.protocol.reset_strategy import Method, ResetChoice
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.port_counts import PortCounts

#: A board leaves the bus this soon after the end of what it was told, or for another reason.
_LEAVES_WITHIN_S = 2.0


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
        self._controller.request(self._now(), dtr=dtr, rts=rts)
        self._log.debug("lines_asked_for", dtr=self.wanted.dtr, rts=self.wanted.rts)
        self._settled.append(settled)
        self._advance()

    def other_client(self) -> None:
        """Another client sends the next request: it continues nothing of what was sent before."""
        self._controller.forget_commands()

    def release(self, settled: Callable[[], None]) -> None:
        """The client has left: both lines off, without leaving the board in its bootloader."""
        self._break_off()
        self._controller.release(self._now())
        self._settled.append(settled)
        self._advance()

    def enter_bootloader(self, settled: Callable[[], None]) -> None:
        """Reset the board into its bootloader; `settled` is called when that is done."""
        self._break_off()
        self._controller.enter_bootloader(self._now())
        self._settled.append(settled)
        self._advance()

    def reset(self, settled: Callable[[], None]) -> None:
        """Reset the board into its app; `settled` is called when that is done."""
        self._break_off()
        self._controller.reset(self._now())
        self._settled.append(settled)
        self._advance()

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
        # A reset whose first half the board has got is told at its end; by intent, at its begin.
        tells_at_end = self._strategy.method is not Method.INTENT
        in_reset = self._controller.applied == RESET and not self._being_set
        self._has_begun = tells_at_end and in_reset
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

    def _tell_strategy(self) -> None:
        if self._strategy.method is not Method.CIRCUIT:  # the rule is not told
            self._log.info("reset_chosen", reset=self._strategy.name)

    def _break_off(self) -> None:
        """What was under way when the board vanished is over, ahead of what is asked for next."""
        if self._breaking_off is None:
            return
        self._breaking_off.cancel()
        self._breaking_off = None
        if not self._closed:
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
        self._report()

    def _report(self) -> None:
        if not self._being_set and not self._controller.busy:
            settled, self._settled = self._settled, []
            for call in settled:
                call()
