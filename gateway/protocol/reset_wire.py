"""The lines of one board as it sees them, and the reset sequence that is being played on them.

Pure logic: times are arguments, what is to be done is fetched with `take`. What is played when is
`reset_intent`'s matter.
"""

from __future__ import annotations

from collections import deque

from gateway.protocol.reset import Lines, Starts
from gateway.protocol.reset_sequence import Baudrate, ResetSequence


class Wire:
    """The lines as the board sees them, and what is still to be played on them."""

    def __init__(self, rest: Lines) -> None:
        self.lines = rest
        self.rest = rest
        self._plan: deque[tuple[float, Lines | Baudrate]] = deque()
        self._ends_at = float("-inf")
        self._out: list[Lines | Baudrate] = []
        self._baud_changed = False
        self.resets: list[Starts] = []

    @property
    def is_playing(self) -> bool:
        """True until the last step has been done."""
        return bool(self._plan)

    @property
    def next_time(self) -> float | None:
        """When the next step is to be done, None if none is left."""
        return self._plan[0][0] if self._plan else None

    def take(self) -> list[Lines | Baudrate]:
        """What to do now, in order."""
        out, self._out = self._out, []
        return out

    def take_resets(self) -> list[Starts]:
        """What the board has been told to start since the last call."""
        resets, self.resets = self.resets, []
        return resets

    def show(self, lines: Lines) -> None:
        """Put a state on the lines, now."""
        if lines != self.lines:
            self.lines = lines
            self._out.append(lines)

    def play(self, sequence: ResetSequence, starts: Starts, now: float) -> None:
        """Play a sequence from the rest state, behind what is being played."""
        self.resets.append(starts)
        if not self._plan:
            self.show(self.rest)
        start = max(now, self._ends_at) if self._plan else now
        for step in sequence.timed(self.rest, self.rest):
            self._plan.append((start + step.after_s, step.what))
        self._ends_at = start + sequence.duration_s
        self.advance(now)

    def stop(self) -> None:
        """Break off what is being played: lines at rest, baud rate as before."""
        self._plan.clear()
        self.show(self.rest)
        if self._baud_changed:
            self._do(Baudrate(None))

    def board_away(self) -> None:
        """What was being played has reached its end, or nobody."""
        self._plan.clear()
        self.lines = self.rest  # which it will be when the board is back
        if self._baud_changed:
            self._do(Baudrate(None))

    def advance(self, now: float) -> None:
        """Do the steps whose time has come."""
        while self._plan and now >= self._plan[0][0]:
            self._do(self._plan.popleft()[1])

    def _do(self, what: Lines | Baudrate) -> None:
        if isinstance(what, Lines):
            self.lines = what
        else:
            self._baud_changed = what.bps is not None
        self._out.append(what)
