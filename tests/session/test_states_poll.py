from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from gateway import clock
from gateway.port.claim import Claim
from gateway.protocol.rfc2217 import Linestate, Modemstate
from gateway.serialport.states import EventCounts, PortStates
from gateway.session.modem_states import (
    _INTERVAL_S,
    ModemStates,
    linestate_with_errors,
    modemstate_with_deltas,
)

NONE = Modemstate(0)
CTS, DSR, RI, CD = Modemstate.CTS, Modemstate.DSR, Modemstate.RI, Modemstate.CD
READY, QUIET = Linestate.DATA_READY, Linestate(0)
COUNTS = EventCounts(0, 0, 0, 0, 0, 0, 0, 0)


def states(
    modemstate: Modemstate = NONE,
    linestate: Linestate = QUIET,
    counts: EventCounts | None = None,
) -> PortStates:
    return PortStates(modemstate, linestate, counts)


class Clock:
    """Timers that run when the test says so."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> "Timer":
        timer = Timer(delay_s, lambda: callback(*args))
        self.timers.append(timer)
        return timer

    def time(self) -> float:
        return 0.0

    def ring(self) -> None:
        """Run the only timer that is set."""
        [timer] = self.pending()
        self.timers.clear()
        timer.callback()

    def pending(self) -> "list[Timer]":
        return [timer for timer in self.timers if not timer.cancelled]


class Timer:
    def __init__(self, delay_s: float, callback: Callable[[], object]) -> None:
        self.delay_s = delay_s
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Read:
    """An operation that the test completes."""

    def __init__(self) -> None:
        self.done: Callable[[Any], None] = lambda _: None
        self.states = states()

    def add_done_callback(self, done: Callable[[Any], None]) -> None:
        self.done = done

    def exception(self) -> None:
        return None

    def result(self) -> PortStates:
        return self.states


class Bench:
    """A poll of a port whose reads the test answers."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.reads: list[Read] = []
        self.modemstates: list[Modemstate] = []
        self.linestates: list[Linestate] = []
        self.poll = ModemStates(
            cast("Claim", self), self.modemstates.append, self.linestates.append
        )

    def read_states(self) -> Read:
        self.reads.append(Read())
        return self.reads[-1]

    def watch(self, *, modemstate: bool = False, linestate: bool = False) -> None:
        self.poll.watch(modemstate=modemstate, linestate=linestate)

    def answer(self, answered: PortStates) -> None:
        read = self.reads.pop(0)
        read.states = answered
        read.done(read)

    def answer_all(self, *answers: PortStates) -> None:
        """Answer one read, and each that the clock then asks for."""
        for answered in answers:
            if not self.reads:
                self.clock.ring()
            self.answer(answered)


@pytest.fixture
def bench() -> Iterator[Bench]:
    timers = Clock()
    with clock.use(timers):
        yield Bench(timers)


# --- what has changed


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
    assert modemstate_with_deltas(states(before), states(now)) == told
    counted = states(before, counts=COUNTS), states(now, counts=COUNTS)
    assert modemstate_with_deltas(*counted) == told


@pytest.mark.parametrize(
    ("counter", "delta"),
    [
        ("cts", Modemstate.DELTA_CTS),
        ("dsr", Modemstate.DELTA_DSR),
        ("ri", Modemstate.TRAILING_EDGE_RI),
        ("cd", Modemstate.DELTA_CD),
    ],
)
def test_a_pulse_between_two_polls_is_a_change(counter: str, delta: Modemstate) -> None:
    before = states(CTS, counts=COUNTS)
    pulsed = states(CTS, counts=replace(COUNTS, **{counter: 2}))
    assert modemstate_with_deltas(before, pulsed) == CTS | delta
    assert linestate_with_errors(before, pulsed) == QUIET


@pytest.mark.parametrize(
    ("counter", "error"),
    [
        ("overrun", Linestate.OVERRUN),
        ("parity", Linestate.PARITY_ERROR),
        ("frame", Linestate.FRAMING_ERROR),
        ("brk", Linestate.BREAK),
    ],
)
@pytest.mark.parametrize("counts", [(0, 1), (5, 600), (2**31 - 1, -(2**31)), (-1, 0)])
def test_an_error_that_was_counted_is_told_with_the_state(
    counter: str, error: Linestate, counts: tuple[int, int]
) -> None:
    before, now = (
        states(linestate=READY, counts=replace(COUNTS, **{counter: count})) for count in counts
    )
    assert linestate_with_errors(before, now) == READY | error
    assert modemstate_with_deltas(before, now) == NONE


def test_counters_of_a_board_that_was_plugged_in_again_are_no_errors() -> None:
    before = states(counts=EventCounts(9, 9, 9, 9, 9, 9, 9, 9))
    assert linestate_with_errors(before, states(counts=COUNTS)) == QUIET
    assert modemstate_with_deltas(before, states(counts=COUNTS)) == NONE


def test_a_driver_that_does_not_count_has_no_errors() -> None:
    assert linestate_with_errors(states(), states(linestate=READY)) == READY
    assert linestate_with_errors(states(counts=COUNTS), states()) == QUIET


# --- when it is told


def test_nothing_is_read_while_nothing_is_watched(bench: Bench) -> None:
    bench.watch()
    bench.poll.hold(True)
    bench.poll.hold(False)
    assert bench.reads == []
    assert bench.clock.pending() == []


def test_the_first_modem_state_is_reported_as_it_is_even_if_no_bit_is_set(bench: Bench) -> None:
    bench.watch(modemstate=True)
    bench.answer(states(counts=replace(COUNTS, cts=9)))
    assert bench.modemstates == [NONE]
    assert bench.linestates == []


def test_only_changes_of_the_modem_state_are_reported_from_then_on(bench: Bench) -> None:
    bench.watch(modemstate=True)
    bench.answer_all(*map(states, (CTS, CTS, CTS | CD, CTS | CD, CD)))
    assert bench.modemstates == [
        CTS,
        CTS | CD | Modemstate.DELTA_CD,
        CD | Modemstate.DELTA_CTS,
    ]


def test_the_line_state_is_reported_first_and_at_each_change_or_error(bench: Bench) -> None:
    broken = replace(COUNTS, brk=4)
    bench.watch(linestate=True)
    bench.answer_all(
        states(linestate=READY, counts=replace(COUNTS, brk=3)),
        states(linestate=READY, counts=replace(COUNTS, brk=3)),
        states(linestate=READY, counts=broken),
        states(linestate=READY, counts=broken),
        states(counts=broken),
    )
    assert bench.linestates == [READY, READY | Linestate.BREAK, QUIET]
    assert bench.modemstates == []


def test_both_are_reported_from_one_read(bench: Bench) -> None:
    bench.watch(modemstate=True, linestate=True)
    bench.answer_all(states(CTS), states(DSR, READY))
    assert bench.modemstates == [CTS, DSR | Modemstate.DELTA_CTS | Modemstate.DELTA_DSR]
    assert bench.linestates == [QUIET, READY]


def test_the_next_poll_is_due_an_interval_after_the_answer(bench: Bench) -> None:
    bench.watch(modemstate=True)
    assert bench.clock.pending() == []
    bench.answer(states())
    [timer] = bench.clock.pending()
    assert timer.delay_s == _INTERVAL_S


def test_polls_do_not_pile_up_behind_a_slow_answer(bench: Bench) -> None:
    bench.watch(modemstate=True)
    bench.answer(states())
    bench.clock.ring()
    bench.watch(modemstate=True, linestate=True)
    bench.watch()
    bench.watch(modemstate=True)
    assert len(bench.reads) == 1
    assert bench.clock.pending() == []


def test_watching_the_same_again_changes_nothing(bench: Bench) -> None:
    bench.watch(modemstate=True)
    bench.answer(states())
    before = bench.clock.pending()
    bench.watch(modemstate=True)
    assert bench.clock.pending() == before
    assert bench.reads == []


def test_watching_more_reads_at_once(bench: Bench) -> None:
    bench.watch(modemstate=True)
    bench.answer(states())
    bench.watch(modemstate=True, linestate=True)
    assert bench.clock.pending() == []
    bench.answer(states(linestate=READY))
    assert bench.linestates == [READY]
    assert len(bench.clock.pending()) == 1


@pytest.mark.parametrize(("modemstate", "linestate"), [(True, False), (False, True), (True, True)])
def test_watching_nothing_any_more_ends_the_polls(
    bench: Bench, modemstate: bool, linestate: bool
) -> None:
    bench.watch(modemstate=modemstate, linestate=linestate)
    bench.answer(states())
    bench.watch()
    assert bench.clock.pending() == []
    assert bench.reads == []


def test_an_answer_that_comes_when_nothing_is_watched_is_dropped(bench: Bench) -> None:
    bench.watch(modemstate=True, linestate=True)
    bench.watch()
    bench.answer(states(CTS))
    assert bench.modemstates == []
    assert bench.linestates == []
    assert bench.clock.pending() == []


def test_the_modem_state_goes_on_from_what_was_told_last(bench: Bench) -> None:
    bench.watch(modemstate=True)
    bench.answer(states(CTS))
    bench.watch()
    bench.watch(modemstate=True)
    bench.answer(states(CTS | DSR))
    assert bench.modemstates == [CTS, CTS | DSR | Modemstate.DELTA_DSR]


def test_errors_of_a_time_that_nobody_watched_are_not_told(bench: Bench) -> None:
    bench.watch(linestate=True)
    bench.answer(states(counts=COUNTS))
    bench.watch()
    bench.watch(linestate=True)
    bench.answer(states(linestate=READY, counts=replace(COUNTS, parity=5)))
    assert bench.linestates == [QUIET, READY]


def test_what_happens_while_reports_are_held_is_told_afterwards(bench: Bench) -> None:
    bench.watch(modemstate=True, linestate=True)
    bench.answer(states(counts=COUNTS))
    bench.poll.hold(True)
    assert bench.clock.pending() == []
    bench.poll.hold(False)
    bench.answer(states(counts=replace(COUNTS, cts=2, frame=1)))
    assert bench.modemstates == [NONE, Modemstate.DELTA_CTS]
    assert bench.linestates == [QUIET, Linestate.FRAMING_ERROR]


def test_what_was_asked_for_is_not_told_again(bench: Bench) -> None:
    bench.watch(modemstate=True, linestate=True)
    bench.answer(states(counts=COUNTS))
    changed = states(CTS, counts=replace(COUNTS, cts=1, overrun=1))
    assert bench.poll.take_modemstate(changed) == CTS | Modemstate.DELTA_CTS
    assert bench.poll.take_linestate(changed) == Linestate.OVERRUN
    bench.answer_all(changed)
    assert bench.modemstates == [NONE]
    assert bench.linestates == [QUIET]


def test_who_asks_without_watching_is_told_what_has_happened_since(bench: Bench) -> None:
    assert bench.poll.take_linestate(states(counts=COUNTS)) == QUIET
    broken = states(linestate=READY, counts=replace(COUNTS, brk=1))
    assert bench.poll.take_linestate(broken) == READY | Linestate.BREAK
    assert bench.poll.take_linestate(broken) == READY
    assert bench.reads == []
