"""Modem and line states with the bits that say what has changed since the last ones.

When they are sent to a client is in tests/scenarios/test_notifications.py.
"""

from dataclasses import replace

import pytest

from gateway.protocol.rfc2217 import Linestate, Modemstate
from gateway.serialport.states import EventCounts, PortStates
from gateway.session.modem_states import linestate_with_errors, modemstate_with_deltas

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


@pytest.mark.parametrize(
    ("before", "now", "reported"),
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
def test_deltas_say_what_has_changed(
    before: Modemstate, now: Modemstate, reported: Modemstate
) -> None:
    assert modemstate_with_deltas(states(before), states(now)) == reported
    counted = states(before, counts=COUNTS), states(now, counts=COUNTS)
    assert modemstate_with_deltas(*counted) == reported


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
def test_a_counted_error_is_reported_with_the_state(
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
