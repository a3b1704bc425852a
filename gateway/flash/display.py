"""What a person sees of boards being flashed: a line each, redrawn on a terminal; or JSON lines.

Events are those of the gateway (docs/http-api.md) and the client's own `upload`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

from gateway.flash.outcome import Outcome

_BAR_CELLS = 24

#: A terminal over a slow line shall not be what is waited for.
_REDRAW_S = 0.1

#: Without a terminal a line is printed whenever so much more is done.
_STEP_PERCENT = 25


class Display(Protocol):
    """Where events go; called by several threads."""

    def event(self, board: str, event: dict[str, Any]) -> None:
        """Something has happened to a board."""

    def ended(self, board: str, outcome: Outcome, message: str) -> None:
        """A board is done, however."""

    def close(self) -> None:
        """All are."""


class JsonLines:
    """For programs: every event as a line, `port` naming the board."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()

    def event(self, board: str, event: dict[str, Any]) -> None:
        """One line; `done` comes from `ended`, the same way for boards that were never begun."""
        if event.get("event") != "done":
            self._print({"port": board, **event})

    def ended(self, board: str, outcome: Outcome, message: str) -> None:
        """The last line of a board."""
        self._print(
            {
                "port": board,
                "event": "done",
                "outcome": outcome.value,
                "exit_code": outcome.exit_code,
                "message": message,
            }
        )

    def close(self) -> None:
        """Nothing is open."""

    def _print(self, event: dict[str, Any]) -> None:
        with self._lock:
            self._out.write(json.dumps(event) + "\n")
            self._out.flush()


@dataclass(slots=True)
class _Row:
    """What is known of one board."""

    doing: str = "waiting"
    part: float | None = None  # of what it is doing, 0 to 1
    rate: float = 0.0  # bytes a second of writing
    started_s: float = field(default_factory=time.monotonic)
    began_s: float | None = None  # to write
    is_done: bool = False
    told: str = ""

    def take(self, event: dict[str, Any], now_s: float) -> None:
        """Learn from an event."""
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
                if self.began_s is None:
                    self.began_s = now_s
                self._advance("writing", event.get("written"), event.get("total"))
                elapsed_s = now_s - self.began_s
                written = event.get("written")
                if elapsed_s > 0 and isinstance(written, int):
                    self.rate = written / elapsed_s

    def _advance(self, doing: str, done: object, total: object) -> None:
        self.doing = doing
        if isinstance(done, int) and isinstance(total, int) and total > 0:
            self.part = min(1.0, max(0.0, done / total))

    def __str__(self) -> str:
        if self.part is None or self.is_done:
            return self.doing
        cells = round(self.part * _BAR_CELLS)
        bar = "#" * cells + "." * (_BAR_CELLS - cells)
        rate = f" {self.rate / 1024:.0f} KiB/s" if self.rate and self.doing == "writing" else ""
        return f"{self.doing} [{bar}] {self.part:4.0%}{rate}"


class Lines:
    """For people: a line for each board.

    On a terminal of `columns` they are redrawn; without one, None, each step is printed. The lines
    of esptool are printed too if `verbose`.
    """

    def __init__(
        self,
        boards: Sequence[str],
        out: TextIO,
        *,
        columns: int | None,
        verbose: bool = False,
    ) -> None:
        self._rows = {board: _Row() for board in boards}
        self._out = out
        self._columns = columns or 0
        self._redraws = columns is not None
        self._verbose = verbose
        self._width = max((len(board) for board in boards), default=0)
        self._lock = threading.Lock()
        self._drawn = 0  # lines that are to be drawn over
        self._drawn_s = 0.0

    def event(self, board: str, event: dict[str, Any]) -> None:
        """Show it, unless something has been shown just now."""
        with self._lock:
            row = self._rows[board]
            row.take(event, time.monotonic())
            if self._verbose and event.get("event") == "line":
                self._print_above(f"{board}: {_printable(event.get('text'))}")
            self._show(board, row)

    def ended(self, board: str, outcome: Outcome, message: str) -> None:
        """Show how it went."""
        with self._lock:
            row = self._rows[board]
            row.is_done = True
            took_s = time.monotonic() - row.started_s
            written = f"written and verified in {took_s:.1f} s"
            said = written if outcome is Outcome.WRITTEN else outcome.value
            row.doing = _printable(f"{said}: {message}" if message else said)
            if self._redraws:
                self._draw()
            else:
                self._print(board, row)

    def close(self) -> None:
        """Leave the lines as they are."""
        with self._lock:
            if self._redraws:
                self._draw(whole=True)

    def _show(self, board: str, row: _Row) -> None:
        if self._redraws:
            if time.monotonic() - self._drawn_s >= _REDRAW_S:
                self._draw()
            return
        step = "" if row.part is None else f" {int(row.part * 100) // _STEP_PERCENT}"
        if row.doing + step != row.told:
            row.told = row.doing + step
            self._print(board, row)

    def _print(self, board: str, row: _Row) -> None:
        self._out.write(f"{board:<{self._width}}  {row}\n")
        self._out.flush()

    def _print_above(self, line: str) -> None:
        if self._redraws:
            self._out.write(f"\x1b[{self._drawn}F\x1b[J" if self._drawn else "")
            self._drawn = 0
        self._out.write(line + "\n")
        if self._redraws:
            self._draw()
        else:
            self._out.flush()

    def _draw(self, *, whole: bool = False) -> None:
        """Draw all lines anew, cut to the terminal's width unless `whole`."""
        self._drawn_s = time.monotonic()
        lines = [f"{board:<{self._width}}  {row}" for board, row in self._rows.items()]
        if not whole:
            lines = [line[: self._columns - 1] for line in lines]
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        self._out.write(up + "".join(f"{line}\x1b[K\n" for line in lines))
        self._out.flush()
        self._drawn = len(lines)


def _printable(text: object) -> str:
    """What came over the network, for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text or "")[:500])
