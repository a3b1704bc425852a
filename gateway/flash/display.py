"""Show the progress of boards being flashed: a line each, redrawn on a terminal, or JSON lines.

Events are those of the gateway (docs/http-api.md) and the client's own `upload`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TextIO

from gateway.flash.plan import Outcome

_BAR_CELLS: Final = 24

#: Interval of redrawing: a terminal over a slow line must not hold up the boards.
_REDRAW_S: Final = 0.1

#: Without a terminal a line is printed whenever this much more is done.
_STEP_PERCENT: Final = 25


class Display(Protocol):
    """Shows events; called by several threads."""

    def event(self, board: str, event: dict[str, Any]) -> None:
        """Show an event of a board."""

    def ended(self, board: str, outcome: Outcome, message: str) -> None:
        """Show the outcome of a board."""

    def close(self) -> None:
        """Show nothing more: all boards have ended."""


class JsonLines:
    """For programs: every event as a line of JSON, `port` naming the board."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()

    def event(self, board: str, event: dict[str, Any]) -> None:
        """Print an event; `ended` prints `done`, also for boards that were never begun."""
        if event.get("event") != "done":
            self._print({"port": board, **event})

    def ended(self, board: str, outcome: Outcome, message: str) -> None:
        """Print the last event of a board."""
        done = {"event": "done", "outcome": outcome.value, "exit_code": outcome.exit_code}
        self._print({"port": board, **done, "message": message})

    def close(self) -> None:
        """Do nothing."""

    def _print(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._out.write(json.dumps(event) + "\n")
            self._out.flush()


@dataclass(slots=True)
class _Row:
    """The state of one board."""

    doing: str = "waiting"
    part: float | None = None  # of `doing` that is done, 0 to 1
    bytes_per_s: float = 0.0  # of writing
    started_s: float = field(default_factory=time.monotonic)
    writing_since_s: float | None = None
    is_done: bool = False
    printed: str = ""

    def update(self, event: dict[str, Any], now_s: float) -> None:
        """Update the state by an event."""
        match event.get("event"):
            case "upload":
                self._advance("sending", event.get("sent"), event.get("total"))
            case "waiting":
                self.doing, self.part = f"waiting for {_printable(event.get('for'))}", None
            case "started":
                self.doing, self.part = "connecting", None
            case "chip":
                self.doing, self.part = f"connected to {_printable(event.get('chip'))}", None
            case "progress":
                written = event.get("written")
                self._advance("writing", written, event.get("total"))
                if self.writing_since_s is None:
                    self.writing_since_s = now_s
                elif now_s > self.writing_since_s and isinstance(written, int):
                    self.bytes_per_s = written / (now_s - self.writing_since_s)

    def _advance(self, doing: str, done: object, total: object) -> None:
        self.doing = doing
        if isinstance(done, int) and isinstance(total, int) and total > 0:
            self.part = min(1.0, max(0.0, done / total))

    def __str__(self) -> str:
        if self.part is None or self.is_done:
            return self.doing
        cells = round(self.part * _BAR_CELLS)
        bar = "#" * cells + "." * (_BAR_CELLS - cells)
        has_rate = self.bytes_per_s and self.doing == "writing"
        rate = f" {self.bytes_per_s / 1024:.0f} KiB/s" if has_rate else ""
        return f"{self.doing} [{bar}] {self.part:4.0%}{rate}"


class Lines:
    """For people: a line for each board.

    On a terminal of `columns` they are redrawn; without one (None) each step is printed. With
    `verbose` the lines of esptool are printed too.
    """

    def __init__(
        self, boards: Sequence[str], out: TextIO, *, columns: int | None, verbose: bool = False
    ) -> None:
        self._rows = {board: _Row() for board in boards}
        self._out = out
        self._columns = columns
        self._verbose = verbose
        self._width = max((len(board) for board in boards), default=0)
        self._lock = threading.Lock()
        self._drawn = 0  # lines to draw over
        self._drawn_s = 0.0

    def event(self, board: str, event: dict[str, Any]) -> None:
        """Show an event, unless the lines have been drawn just now."""
        with self._lock:
            row = self._rows[board]
            row.update(event, time.monotonic())
            if self._verbose and event.get("event") == "line":
                self._print_above(f"{board}: {_printable(event.get('text'))}")
            if self._columns is not None:
                if time.monotonic() - self._drawn_s >= _REDRAW_S:
                    self._draw()
                return
            step = "" if row.part is None else f" {int(row.part * 100) // _STEP_PERCENT}"
            if row.doing + step != row.printed:
                row.printed = row.doing + step
                self._out.write(self._line(board))
                self._out.flush()

    def ended(self, board: str, outcome: Outcome, message: str) -> None:
        """Show the outcome of a board."""
        with self._lock:
            row = self._rows[board]
            row.is_done = True
            took_s = time.monotonic() - row.started_s
            written = f"written and verified in {took_s:.1f} s"
            shown = written if outcome is Outcome.WRITTEN else outcome.value
            row.doing = _printable(f"{shown}: {message}" if message else shown)
            if self._columns is not None:
                self._draw()
            else:
                self._out.write(self._line(board))
                self._out.flush()

    def close(self) -> None:
        """Leave the lines on the terminal, not cut to its width."""
        with self._lock:
            if self._columns is not None:
                self._columns = 1 << 16
                self._draw()

    def _line(self, board: str) -> str:
        return f"{board:<{self._width}}  {self._rows[board]}\n"

    def _print_above(self, line: str) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0
        self._out.write(line + "\n")
        self._out.flush()
        if self._columns is not None:
            self._draw()

    def _draw(self) -> None:
        assert self._columns is not None  # noqa: S101 - only on a terminal
        self._drawn_s = time.monotonic()
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        lines = [self._line(board).rstrip("\n")[: self._columns - 1] for board in self._rows]
        self._out.write(up + "".join(f"{line}\x1b[K\n" for line in lines))
        self._out.flush()
        self._drawn = len(lines)


def _printable(text: object) -> str:
    """Make text from the network fit for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text or "")[:500])
