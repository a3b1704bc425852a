"""Plays a line controller on an open port: its states with ioctls, its deadlines with the clock.

What the states and their times are is `protocol.reset`'s matter; who asks for them `device`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from gateway.protocol.reset import RESET, STRAP, LineController, Lines


class LinePort(Protocol):
    """What is needed of a serial port."""

    def set_lines(self, lines: Lines, done: Callable[[], None]) -> None:
        """Set both lines in one step behind what was asked before, then call `done`."""


class LineDriver:
    """One board's DTR and RTS for as long as its port is open.

    The controller's clock stands still while lines are being set: unsent bytes or a slow USB
    device may delay that, and a reset lasts from the moment that the line has moved.
    """

    def __init__(
        self, controller: LineController, port: LinePort, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._controller = controller
        self._port = port
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._settled: Callable[[], None] | None = None
        self._being_set = 0
        self._set_since = 0.0  # the loop's time when being_set was last 0
        self._stood_still_s = 0.0
        self._closed = False
        self._shown = controller.applied

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
        self._settled = settled
        self._advance()

    def release(self, settled: Callable[[], None]) -> None:
        """The client has left: both lines off, without leaving the board in its bootloader."""
        self._controller.release(self._now())
        self._settled = settled
        self._advance()

    def enter_bootloader(self, settled: Callable[[], None]) -> None:
        """Reset the board into its bootloader; `settled` is called when that is done."""
        self._controller.enter_bootloader(self._now())
        self._settled = settled
        self._advance()

    def reset(self, settled: Callable[[], None]) -> None:
        """Reset the board into its app; `settled` is called when that is done."""
        self._controller.reset(self._now())
        self._settled = settled
        self._advance()

    def close(self) -> None:
        """The port is gone: no more deadlines."""
        self._closed = True
        self._settled = None
        self._set_timer()

    def _now(self) -> float:
        """The controller's time."""
        return (self._set_since if self._being_set else self._loop.time()) - self._stood_still_s

    def _advance(self) -> None:
        for lines in self._controller.lines_to_set():
            if not self._being_set:
                self._set_since = self._loop.time()
            self._being_set += 1
            self._note(lines)
            self._port.set_lines(lines, self._lines_set)
        self._set_timer()
        self._report()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._controller.next_deadline()
        if deadline is not None and not self._being_set and not self._closed:
            at = deadline + self._stood_still_s
            self._timer = self._loop.call_at(at, self._on_time, deadline)

    def _on_time(self, deadline: float) -> None:
        self._controller.handle_timer(max(deadline, self._now()))  # timers may be early by a tick
        self._advance()

    def _lines_set(self) -> None:
        self._being_set -= 1
        if not self._being_set:
            self._stood_still_s += self._loop.time() - self._set_since
            self._set_timer()
        self._report()

    def _report(self) -> None:
        if self._settled is not None and not self._being_set and not self._controller.busy:
            settled, self._settled = self._settled, None
            settled()

    def _note(self, lines: Lines) -> None:
        self._log.debug("lines_set", dtr=lines.dtr, rts=lines.rts)
        if self._shown == RESET:
            self._log.info("board_reset", into="bootloader" if lines == STRAP else "app")
        self._shown = lines
