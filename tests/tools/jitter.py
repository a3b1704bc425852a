"""A machine that is slow at the wrong moment, as a plugin for pytest: `-p tests.tools.jitter`.

Before some turns of an event loop, and before some results of threads, time passes; what became
ready together is told in any order. Whatever a test or the gateway takes for granted about that
fails here within minutes, where a busy machine shows it once a month. `make jitter` prints its
seed; JITTER_SEED in the environment gives it again. The same seed and test make the same choices,
as far as threads do.
"""

from __future__ import annotations

import asyncio
import os
import random
import selectors
import threading
import time
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable
from typing import Any, Final

import pytest

SEED: Final = "JITTER_SEED"

#: How often, and how long at most. With these a run takes five minutes on two cores; the first
#: three found eight tests and two defects of the gateway that took something for granted.
_TURNS: Final = 0.08
_RESULTS: Final = 0.5
_LONGEST_S: Final = 0.04

_choices = random.Random()


def pytest_configure(config: pytest.Config) -> None:
    """Choose a seed, for all processes of the run."""
    if getattr(config.option, "loop", "asyncio") != "asyncio":
        raise pytest.UsageError("jitter needs --loop asyncio: it changes the loop's own methods")
    os.environ.setdefault(SEED, str(random.randrange(1_000_000)))
    _delay_turns()
    _delay_results()
    _shuffle_events()


def pytest_report_header() -> str:
    """Tell the seed."""
    return f"{SEED}={os.environ[SEED]}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Make the test's choices its own, whatever ran before."""
    _choices.seed(f"{os.environ[SEED]} {item.nodeid}")


def _perhaps_wait(probability: float) -> None:
    if _choices.random() < probability:
        time.sleep(_choices.random() * _LONGEST_S)


def _delay_turns() -> None:
    run_once: Callable[[BaseEventLoop], None] = BaseEventLoop._run_once  # type: ignore[attr-defined]

    def late(self: BaseEventLoop) -> None:
        _perhaps_wait(_TURNS)
        run_once(self)

    BaseEventLoop._run_once = late  # type: ignore[attr-defined]


def _delay_results() -> None:
    call_soon_threadsafe = BaseEventLoop.call_soon_threadsafe

    def late(
        self: BaseEventLoop, callback: Callable[..., object], *args: Any, **options: Any
    ) -> asyncio.Handle:
        if threading.get_ident() != self._thread_id:  # type: ignore[attr-defined]
            _perhaps_wait(_RESULTS)
        return call_soon_threadsafe(self, callback, *args, **options)

    BaseEventLoop.call_soon_threadsafe = late  # type: ignore[method-assign,assignment]


def _shuffle_events() -> None:
    select = selectors.EpollSelector.select

    def shuffled(
        self: selectors.EpollSelector, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        events = select(self, timeout)
        _choices.shuffle(events)
        return events

    selectors.EpollSelector.select = shuffled  # type: ignore[method-assign,assignment]
