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
from gateway.protocol.reset import Lines
from gateway.protocol.reset_intent import controller_for, controller_of_returned
from gateway.protocol.reset_sequence import Baudrate
from gateway.protocol.reset_strategy import Method, ResetChoice
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.port_counts import PortCounts


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
        self._controller.request(self._now(), dtr=dtr, rts=rts)
        self._log.debug("lines_asked_for", dtr=self.wanted.dtr, rts=self.wanted.rts)
        self._settled.append(settled)
        self._advance()

    def other_client(self) -> None:
        """Another client sends the next request: it continues nothing of what was sent before."""
        self._controller.forget_commands()

    def release(self, settled: Callable[[], None]) -> None:
        """The client has left: both lines off, without leaving the board in its bootloader."""
        self._controller.release(self._now())
        self._settled.append(settled)
        self._advance()

    def enter_bootloader(self, settled: Callable[[], None]) -> None:
        """Reset the board into its bootloader; `settled` is called when that is done."""
        self._controller.enter_bootloader(self._now())
        self._settled.append(settled)
        self._advance()

    def reset(self, settled: Callable[[], None]) -> None:
        """Reset the board into its app; `settled` is called when that is done."""
        self._controller.reset(self._now())
        self._settled.append(settled)
        self._advance()

    def when_settled(self, settled: Callable[[], None]) -> None:
        """Ask for nothing; `settled` is called when what was asked before is done."""
        self._settled.append(settled)
        self._report()

    def board_away(self) -> None:
        """The board has left the bus, its client stays: what is under way goes to nobody."""
        # Behind what is asked for once more because the port was lost with it.
        self._loop.call_soon(self._break_off)

    def board_back(self) -> None:
        """The board is back, its lines at rest; it may need another strategy than before."""
        before, self._strategy = self._strategy, self._resets.strategy(self._port.usb_ids)
        if self._strategy != before:
            self._tell_strategy()
        self._controller = controller_of_returned(
            self._controller, self._strategy, self._resets.hold_s, self._now()
        )
        self._advance()

    def close(self) -> None:
        """The port is gone: no more deadlines."""
        self._closed = True
        self._settled.clear()
        self._set_timer()

    def _tell_strategy(self) -> None:
        if self._strategy.method is not Method.CIRCUIT:  # the rule is not told
            self._log.info("reset_chosen", reset=self._strategy.name)

    def _break_off(self) -> None:
        if not self._closed:
            self._controller.board_away(self._now())
            self._advance()

    def _now(self) -> float:
        """The controller's time; it stands still from here on if lines are set now."""
        if not self._being_set:
            self._set_since = clock.time()
        return self._set_since - self._stood_still_s

    def _advance(self) -> None:
        for step in self._controller.lines_to_set():
            self._being_set += 1
            if isinstance(step, Lines):
                self._log.debug("lines_set", dtr=step.dtr, rts=step.rts)
                self._port.set_lines(step, self._lines_set)
            else:
                self._set_baudrate(step)
        for starts in self._controller.resets():
            self._log.info("board_reset", into=starts.value)
            self._counts.resets[starts.value, self._strategy.name] += 1
        self._set_timer()
        self._report()

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
