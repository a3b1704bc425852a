import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.modemstate_poll import _INTERVAL_S, ModemstatePoll, with_deltas
from gateway.protocol.rfc2217 import Modemstate

NONE = Modemstate(0)
CTS, DSR, RI, CD = Modemstate.CTS, Modemstate.DSR, Modemstate.RI, Modemstate.CD


class Clock:
    """The loop's timers, run when the test says so."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> "Timer":
        timer = Timer(delay_s, lambda: callback(*args))
        self.timers.append(timer)
        return timer

    def ring(self) -> None:
        """Run the only timer that is set."""
        [timer] = self.pending()
        self.timers.clear()
        timer.callback()

    def pending(self) -> "list[Timer]":
        return [timer for timer in self.timers if not timer.cancelled]


class Timer:
    def __init__(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.delay_s = delay_s
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Bench:
    """A poll of a port whose reads the test answers."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.reads: list[Callable[[Modemstate], None]] = []
        self.reports: list[Modemstate] = []
        self.poll = ModemstatePoll(self.reads.append, self.reports.append)

    def answer(self, state: Modemstate) -> None:
        self.reads.pop(0)(state)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    clock = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    return Bench(clock)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (NONE, NONE, NONE),
        (NONE, CTS, CTS | Modemstate.DELTA_CTS),
        (CTS, NONE, Modemstate.DELTA_CTS),
        (CTS, CTS, CTS),
        (NONE, DSR, DSR | Modemstate.DELTA_DSR),
        (DSR, NONE, Modemstate.DELTA_DSR),
        (NONE, CD, CD | Modemstate.DELTA_CD),
        (CD, NONE, Modemstate.DELTA_CD),
        (NONE, RI, RI),
        (RI, NONE, Modemstate.TRAILING_EDGE_RI),
        (CTS | RI, DSR | RI, DSR | RI | Modemstate.DELTA_CTS | Modemstate.DELTA_DSR),
    ],
)
def test_deltas_say_what_has_changed(before: Modemstate, now: Modemstate, told: Modemstate) -> None:
    assert with_deltas(before, now) == told


def test_the_first_state_is_reported_as_it_is_even_if_no_bit_is_set(bench: Bench) -> None:
    bench.poll.start()
    bench.answer(NONE)
    assert bench.reports == [NONE]


def test_only_changes_are_reported_from_then_on_with_deltas(bench: Bench) -> None:
    bench.poll.start()
    for state in (CTS, CTS, CTS | CD, CTS | CD, CD):
        bench.answer(state)
        bench.clock.ring()
    assert bench.reports == [
        CTS,
        CTS | CD | Modemstate.DELTA_CD,
        CD | Modemstate.DELTA_CTS,
    ]


def test_the_next_poll_is_due_an_interval_after_the_answer(bench: Bench) -> None:
    bench.poll.start()
    assert bench.clock.pending() == []
    bench.answer(NONE)
    [timer] = bench.clock.pending()
    assert timer.delay_s == _INTERVAL_S


def test_polls_do_not_pile_up_behind_a_slow_answer(bench: Bench) -> None:
    bench.poll.start()
    bench.answer(NONE)
    bench.clock.ring()
    assert len(bench.reads) == 1
    assert bench.clock.pending() == []


def test_starting_twice_reads_once(bench: Bench) -> None:
    bench.poll.start()
    bench.poll.start()
    assert len(bench.reads) == 1


def test_nothing_is_reported_or_read_after_stop(bench: Bench) -> None:
    bench.poll.start()
    bench.answer(NONE)
    bench.poll.stop()
    assert bench.clock.pending() == []
    assert bench.reads == []


def test_an_answer_that_comes_after_stop_is_dropped(bench: Bench) -> None:
    bench.poll.start()
    bench.poll.stop()
    bench.answer(CTS)
    assert bench.reports == []
    assert bench.clock.pending() == []


def test_stopping_what_was_never_started_does_nothing(bench: Bench) -> None:
    bench.poll.stop()
    assert bench.reads == []
    assert bench.clock.pending() == []


def test_a_restart_goes_on_from_the_last_state_told(bench: Bench) -> None:
    bench.poll.start()
    bench.answer(CTS)
    bench.poll.stop()
    bench.poll.start()
    bench.answer(CTS | DSR)
    assert bench.reports == [CTS, CTS | DSR | Modemstate.DELTA_DSR]


def test_a_restart_while_a_read_is_under_way_polls_once_at_a_time(bench: Bench) -> None:
    bench.poll.start()
    bench.poll.stop()
    bench.poll.start()
    bench.answer(CTS)
    bench.answer(CTS)
    assert bench.reports == [CTS]
    assert len(bench.clock.pending()) == 1
