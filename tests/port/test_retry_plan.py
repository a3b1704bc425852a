"""When a device is tried again, by a clock that the test reads out."""

from __future__ import annotations

import pytest

from gateway.errors import DeviceAbsentError, DeviceError, DevicePermissionError
from gateway.port.board_tty import FIRST_S, LONGEST_S, LOSSES, REGAIN_S, SETTLE_S, RetryPlan

DENIED = DevicePermissionError("no permission")
ABSENT = DeviceAbsentError("not plugged in")
BUSY = DeviceError("in use by another program")


def test_the_wait_doubles_up_to_the_longest_and_begins_anew_after_a_success() -> None:
    plan = RetryPlan()
    assert [plan.wait_s(0.0) for _ in range(6)] == [0.25, 0.5, 1.0, 2.0, 4.0, LONGEST_S]
    plan.opened()
    assert plan.wait_s(0.0) == FIRST_S


def test_a_refusal_is_believed_when_it_lasts() -> None:
    plan = RetryPlan()
    assert plan.settles(DENIED, 100.0)
    assert plan.settles(DENIED, 100.0 + SETTLE_S * 0.9)
    assert not plan.settles(DENIED, 100.0 + SETTLE_S)
    assert not plan.settles(DENIED, 500.0)


def test_a_refusal_after_something_else_is_a_new_one() -> None:
    plan = RetryPlan()
    plan.settles(DENIED, 100.0)
    assert not plan.settles(ABSENT, 200.0)
    assert plan.settles(DENIED, 201.0)


def test_a_device_that_has_just_come_may_be_missing_for_a_moment() -> None:
    plan = RetryPlan()
    assert not plan.settles(ABSENT, 10.0)
    plan.appeared(11.0)
    assert plan.settles(ABSENT, 11.0)
    assert not plan.settles(ABSENT, 11.0 + SETTLE_S)


def test_other_failures_do_not_pass_by_themselves() -> None:
    plan = RetryPlan()
    plan.appeared(11.0)
    assert not plan.settles(BUSY, 11.0)


@pytest.mark.parametrize("gap_s", [REGAIN_S, 60.0, 3600.0])
def test_a_device_that_goes_now_and_then_is_never_left_alone(gap_s: float) -> None:
    plan = RetryPlan()
    for number in range(1000):
        plan.lost(number * gap_s)
        assert plan.penalty_s(number * gap_s) == 0.0


def test_a_device_that_leaves_very_often_waits_no_longer_than_for_one_more_try() -> None:
    plan = RetryPlan()
    for _ in range(10 * LOSSES):
        plan.lost(100.0)
    assert plan.penalty_s(100.0) == REGAIN_S
    assert plan.penalty_s(100.0 + REGAIN_S) == 0.0


def test_a_device_that_keeps_leaving_is_opened_once_each_five_seconds() -> None:
    plan = RetryPlan()
    opened = []
    now_s = 0.0
    while now_s < 200.0:
        if not plan.penalty_s(now_s):
            opened.append(now_s)
            plan.opened()
            plan.lost(now_s + 0.5)
        now_s += 1.0
    # The first ones come as they come, then only what is regained.
    assert len([each for each in opened if each < LOSSES]) == LOSSES
    later = [each for each in opened if each >= 50.0]
    assert 150 / REGAIN_S - 2 <= len(later) <= 150 / REGAIN_S + 2
    assert plan.wait_s(now_s) <= REGAIN_S
    assert plan.penalty_s(now_s + (LOSSES + 1) * REGAIN_S) == 0.0
