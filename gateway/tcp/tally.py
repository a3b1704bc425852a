"""Counts what may happen thousands of times a second, so that it is told about once a minute.

Pure: times are arguments, who tells it is left to others.
"""

from __future__ import annotations

from dataclasses import dataclass

#: How long nothing more is told of a key of which something was told.
PERIOD_S = 60.0

#: So many keys are told apart at a time; a flood from everywhere counts as OTHERS.
MOST_KEYS = 64
OTHERS = "others"


@dataclass(slots=True)
class _Period:
    ends_at: float
    count: int = 0  # since it has begun, what began it not included


class Tally:
    """What happened for each of some keys: the first is told at once, the rest as a number."""

    def __init__(self) -> None:
        self._periods: dict[str, _Period] = {}

    def add(self, now: float, key: str) -> str | None:
        """It has happened at `now`, seconds of a clock that does not go back.

        Returns the key under which it is to be told now, None if it is only counted.
        """
        if key not in self._periods and len(self._periods) >= MOST_KEYS:
            key = OTHERS
        period = self._periods.get(key)
        if period is not None:
            period.count += 1
            return None
        self._periods[key] = _Period(now + PERIOD_S)
        return key

    @property
    def due_at(self) -> float | None:
        """When `take_due` is to be called; None if nothing is counted."""
        return min((period.ends_at for period in self._periods.values()), default=None)

    def take_due(self, now: float) -> list[tuple[str, int]]:
        """How often it has happened for each key whose time is over, where it has at all."""
        told = []
        for key, period in tuple(self._periods.items()):
            if period.ends_at > now:
                continue
            del self._periods[key]
            if period.count:
                told.append((key, period.count))
                self._periods[key] = _Period(now + PERIOD_S)
        return told

    def take_all(self) -> list[tuple[str, int]]:
        """The same for all keys, whether their time is over or not."""
        told = [(key, period.count) for key, period in self._periods.items() if period.count]
        self._periods.clear()
        return told
