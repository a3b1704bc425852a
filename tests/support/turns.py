"""How much is done in one turn of the event loop, by count and by CPU time of the loop's thread."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


class TurnMeter:
    """Counts the turns while it runs. What is done before and behind the count's own callback in
    one turn belongs to two numbers, so that a number has at most what two turns have.
    """

    def __init__(self) -> None:
        self.number = 0
        self.cpu_s: list[float] = []
        self._counted: dict[str, Counter[int]] = {}
        self._runs = False
        self._last_s = 0.0

    def most(self, what: str) -> int:
        """The most that was counted of something in one turn."""
        return max(self._counted.get(what, Counter()).values(), default=0)

    def total(self, what: str) -> int:
        """All that was counted of something."""
        return self._counted.get(what, Counter()).total()

    def count(self, what: str, amount: int = 1) -> None:
        """Something is done in this turn; not counted while the meter does not run."""
        if self._runs:
            self._counted.setdefault(what, Counter())[self.number] += amount

    def counting(
        self, patch: pytest.MonkeyPatch, owner: Any, name: str, amount: Callable[..., int]
    ) -> None:
        """Count what a function is called with, from now on, under its name."""
        real = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count(name, amount(*args, **kwargs))
            return real(*args, **kwargs)

        patch.setattr(owner, name, counted)

    def _tick(self) -> None:
        now_s = time.thread_time()
        self.cpu_s.append(now_s - self._last_s)
        self._last_s = now_s
        self.number += 1
        if self._runs:
            asyncio.get_running_loop().call_soon(self._tick)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count turns inside the `with`, in which no garbage is collected."""
        gc.collect()
        gc.disable()
        self._runs = True
        self._last_s = time.thread_time()
        asyncio.get_running_loop().call_soon(self._tick)
        try:
            yield
        finally:
            self._runs = False
            gc.enable()
