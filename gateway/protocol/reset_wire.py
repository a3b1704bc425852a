"""The lines of one board as it sees them, and the reset sequence that is being played on them.

Pure logic: times are arguments, what is to be done is fetched with `take`. What is played when is
`reset_intent`'s matter.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from gateway.protocol.reset import Lines, Starts
from gateway.protocol.reset_sequence import Baudrate, ResetSequence


@dataclass(frozen=True, slots=True)
class _Step:
    """Something to do, so long after the step before has been done; None is just the time."""

    pause_s: float
    what: Lines | Baudrate | None


class Wire:
    """The lines as the board sees them, and what is still to be played on them.

    A step that is done late makes the next as late: a pause is never shorter than it should be.
    """

    def __init__(self, rest: Lines) -> None:
        self.lines = rest
        self.rest = rest
        self._plan: deque[_Step] = deque()
        self._last_done_at = float("-inf")
        self._out: list[Lines | Baudrate] = []
        self._resets: list[Starts] = []
        self._baud_changed = False

    @property
    def is_playing(self) -> bool:
        """True until the last step has been done and its pause is over."""
        return bool(self._plan)

    @property
    def next_time(self) -> float | None:
        """When the next step is to be done, None if none is left."""
        return self._last_done_at + self._plan[0].pause_s if self._plan else None

    def take(self) -> list[Lines | Baudrate]:
        """What to do now, in order."""
        out, self._out = self._out, []
        return out

    def tell(self, starts: Starts) -> None:
        """The board is being told to start this."""
        self._resets.append(starts)

    def take_resets(self) -> list[Starts]:
        """What the board has been told to start since the last call."""
        resets, self._resets = self._resets, []
        return resets

    def show(self, lines: Lines) -> None:
        """Put a state on the lines, now."""
        if lines != self.lines:
            self._do(lines)

    def play(self, sequence: ResetSequence, starts: Starts, now: float) -> None:
        """Play a sequence from the rest state, behind what is being played."""
        self.tell(starts)
        if not self._plan:
            self.show(self.rest)
            self._last_done_at = now
        at_s = 0.0
        for step in sequence.timed(self.rest, self.rest):
            self._plan.append(_Step(step.after_s - at_s, step.what))
            at_s = step.after_s
        if sequence.duration_s > at_s:
            self._plan.append(_Step(sequence.duration_s - at_s, None))
        self.advance(now)

    def wait(self, seconds: float, now: float) -> None:
        """Do nothing for so long, behind what is being played."""
        if not self._plan:
            self._last_done_at = now
        self._plan.append(_Step(seconds, None))

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
        while (time := self.next_time) is not None and now >= time:
            step = self._plan.popleft()
            self._last_done_at = now
            if step.what is not None:
                self._do(step.what)

    def _do(self, what: Lines | Baudrate) -> None:
        if isinstance(what, Lines):
            self.lines = what
        else:
            self._baud_changed = what.bps is not None
        self._out.append(what)
