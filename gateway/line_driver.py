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
    """One board's DTR and RTS for as long as its port is open."""

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
        self._controller.request(self._loop.time(), dtr=dtr, rts=rts)
        self._settled = settled
        self._advance()

    def release(self, settled: Callable[[], None]) -> None:
        """The client has left: both lines off, without leaving the board in its bootloader."""
        self._controller.release(self._loop.time())
        self._settled = settled
        self._advance()

    def close(self) -> None:
        """The port is gone: no more deadlines."""
        self._settled = None
        if self._timer is not None:
            self._timer.cancel()

    def _advance(self) -> None:
        for lines in self._controller.lines_to_set():
            self._being_set += 1
            self._note(lines)
            self._port.set_lines(lines, self._lines_set)
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._controller.next_deadline()
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._on_time)
        self._report()

    def _on_time(self) -> None:
        self._controller.handle_timer(self._loop.time())
        self._advance()

    def _lines_set(self) -> None:
        self._being_set -= 1
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
