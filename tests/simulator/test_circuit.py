import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.chips import ResetCause
from gateway.simulator.circuit import (
    DELIVERY_NS,
    SHORTEST_RESET_NS,
    Boot,
    Circuit,
    EnHigh,
    EnLow,
    Event,
    LinesSet,
)

MS = 1_000_000
RISE_NS = 1 * MS
LATER_NS = 10_000 * MS

OFF = (False, False)
BOTH = (True, True)
RESET = (False, True)
STRAP = (True, False)


def running(en_rise_ns: int = RISE_NS) -> Circuit:
    """A board whose first boot, at power-up, lies behind it."""
    circuit = Circuit(en_rise_ns, powered_ns=-LATER_NS)
    assert boots(circuit.handle_timer(0)) == [False]
    return circuit


def play(circuit: Circuit, *changes: tuple[int, tuple[bool, bool]]) -> list[Event]:
    for stamp_ns, (dtr, rts) in changes:
        circuit.set_lines(stamp_ns, dtr, rts)
    return circuit.handle_timer(LATER_NS)


def boots(events: list[Event]) -> list[bool]:
    return [event.download for event in events if isinstance(event, Boot)]


def pin_events(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, LinesSet)]


def test_power_up_boots_the_app_once_en_has_risen() -> None:
    circuit = Circuit(RISE_NS, powered_ns=0)
    assert circuit.next_deadline() == RISE_NS + DELIVERY_NS
    assert circuit.handle_timer(RISE_NS + DELIVERY_NS - 1) == []
    assert circuit.handle_timer(RISE_NS + DELIVERY_NS) == [
        EnHigh(RISE_NS),
        Boot(RISE_NS, download=False),
    ]
    assert circuit.next_deadline() is None


def test_only_a_software_reset_finds_the_strap_as_it_was() -> None:
    circuit = running()
    play(circuit, (1 * MS, RESET), (100 * MS, STRAP), (200 * MS, OFF))
    assert circuit.enters_download(ResetCause.SOFTWARE)
    assert not circuit.enters_download(ResetCause.WATCHDOG)
    circuit = running()
    play(circuit, (1 * MS, STRAP))
    assert not circuit.enters_download(ResetCause.SOFTWARE)
    assert circuit.enters_download(ResetCause.WATCHDOG)


def test_en_is_low_only_with_rts_on_and_dtr_off() -> None:
    events = play(running(), (1 * MS, BOTH), (2 * MS, STRAP), (3 * MS, OFF), (4 * MS, RESET))
    assert pin_events(events) == [EnLow(4 * MS)]


def test_lines_are_reported_each_time_they_are_set() -> None:
    assert play(running(), (1 * MS, BOTH), (2 * MS, BOTH)) == [
        LinesSet(1 * MS, dtr=True, rts=True),
        LinesSet(2 * MS, dtr=True, rts=True),
    ]


@pytest.mark.parametrize("en_rise_ns", [MS // 10, 1 * MS, 10 * MS, 40 * MS])
def test_releasing_en_and_pulling_io0_in_one_step_enters_download_mode(en_rise_ns: int) -> None:
    events = play(running(en_rise_ns), (10 * MS, RESET), (110 * MS, STRAP), (160 * MS, OFF))
    up_ns = 110 * MS + en_rise_ns
    assert pin_events(events) == [EnLow(10 * MS), EnHigh(up_ns), Boot(up_ns, download=True)]


@pytest.mark.parametrize("en_rise_ns", [MS // 10, 1 * MS, 10 * MS, 40 * MS])
def test_releasing_en_50_ms_before_pulling_io0_boots_the_app(en_rise_ns: int) -> None:
    events = play(
        running(en_rise_ns), (10 * MS, RESET), (110 * MS, BOTH), (160 * MS, STRAP), (210 * MS, OFF)
    )
    assert boots(events) == [False]


def test_io0_pulled_while_en_still_rises_enters_download_mode() -> None:
    events = play(running(RISE_NS), (10 * MS, RESET), (110 * MS, BOTH), (110 * MS + 900_000, STRAP))
    assert boots(events) == [True]


def test_io0_released_before_en_is_up_boots_the_app() -> None:
    events = play(running(10 * MS), (10 * MS, RESET), (110 * MS, STRAP), (119 * MS, OFF))
    assert boots(events) == [False]


def test_rise_starts_again_when_en_is_pulled_meanwhile() -> None:
    events = play(
        running(10 * MS), (1 * MS, RESET), (20 * MS, OFF), (25 * MS, RESET), (26 * MS, STRAP)
    )
    assert pin_events(events) == [
        EnLow(1 * MS),
        EnHigh(36 * MS),
        Boot(36 * MS, download=True),
    ]


def test_dip_too_short_for_a_reset_is_ignored() -> None:
    events = play(running(), (5 * MS, RESET), (5 * MS + SHORTEST_RESET_NS - 1, OFF))
    assert pin_events(events) == []


def test_shortest_reset_counts_with_its_true_time() -> None:
    events = play(running(), (5 * MS, RESET), (5 * MS + SHORTEST_RESET_NS, OFF))
    assert pin_events(events)[0] == EnLow(5 * MS)
    assert boots(events) == [False]


def test_change_that_arrives_after_the_rise_counts_by_its_stamp() -> None:
    circuit = running()
    circuit.set_lines(10 * MS, *RESET)
    circuit.set_lines(110 * MS, *BOTH)
    en_up_ns = 110 * MS + RISE_NS
    assert boots(circuit.handle_timer(en_up_ns + DELIVERY_NS - 1)) == []
    circuit.set_lines(en_up_ns - 1, *STRAP)
    assert boots(circuit.handle_timer(LATER_NS)) == [True]


def test_change_later_than_the_allowance_does_not_undo_a_boot() -> None:
    circuit = running()
    circuit.set_lines(10 * MS, *RESET)
    circuit.set_lines(110 * MS, *BOTH)
    decided_ns = 110 * MS + RISE_NS + DELIVERY_NS
    assert boots(circuit.handle_timer(decided_ns)) == [False]
    circuit.set_lines(110 * MS, *STRAP)
    assert circuit.handle_timer(LATER_NS) == [
        LinesSet(decided_ns - DELIVERY_NS, dtr=True, rts=False)
    ]


def test_pins_follow_the_lines_once_replayed() -> None:
    circuit = running()
    circuit.set_lines(10 * MS, *STRAP)
    assert (circuit.dtr, circuit.rts, circuit.io0_is_low) == (False, False, False)
    circuit.handle_timer(10 * MS + DELIVERY_NS)
    assert (circuit.dtr, circuit.rts, circuit.io0_is_low) == (True, False, True)


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 100 * MS), st.sampled_from([OFF, BOTH, RESET, STRAP])),
        max_size=12,
        unique_by=lambda change: change[0],
    )
)
def test_order_of_delivery_does_not_matter(
    changes: list[tuple[int, tuple[bool, bool]]],
) -> None:
    assert play(running(), *changes) == play(running(), *sorted(changes))


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 60 * MS), st.sampled_from([OFF, BOTH, RESET, STRAP])), max_size=12
    ),
    step_ns=st.integers(MS // 3, 30 * MS),
)
def test_events_do_not_depend_on_how_often_the_timer_runs(
    changes: list[tuple[int, tuple[bool, bool]]], step_ns: int
) -> None:
    at_once, stepwise = running(), running()
    expected = play(at_once, *changes)
    for stamp_ns, (dtr, rts) in changes:
        stepwise.set_lines(stamp_ns, dtr, rts)
    events: list[Event] = []
    for now_ns in range(0, 200 * MS, step_ns):
        events += stepwise.handle_timer(now_ns)
    assert events == expected
