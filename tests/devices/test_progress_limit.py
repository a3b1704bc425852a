"""What does not move any more is given up, what moves is not."""

from __future__ import annotations

from gateway.devices.progress_limit import Limits, ProgressLimit
from tests.support.pty_board import LoopClock

LIMIT_S = 10.0
LONGEST_S = 100.0


class Moving:
    """Something that moves when the test says so."""

    def __init__(self) -> None:
        self.moved = 0
        self.given_up = 0
        self.limits = Limits(LIMIT_S, LONGEST_S)
        self.limit = ProgressLimit(lambda: self.moved, lambda: self.limits, self.give_up)

    def give_up(self) -> None:
        self.given_up += 1


async def test_what_never_moves_is_given_up_at_the_limit_and_once() -> None:
    with LoopClock() as clock:
        moving = Moving()
        moving.limit.start()
        await clock.advance(LIMIT_S - 0.1)
        assert (moving.given_up, moving.limit.is_running) == (0, True)
        await clock.advance(0.2)
        assert (moving.given_up, moving.limit.is_running) == (1, False)
        await clock.advance(5 * LIMIT_S)
        assert moving.given_up == 1


async def test_what_moves_is_let_on_whichever_way_it_moves() -> None:
    with LoopClock() as clock:
        moving = Moving()
        moving.limit.start()
        for step in (1, 1, -5, 1, 1):
            for _ in range(9):
                await clock.advance(1.0)
            moving.moved += step
            await clock.advance(0.9)
            moving.limit.start()  # it runs already
        assert not moving.given_up
        for _ in range(12):
            await clock.advance(1.0)
        assert not moving.limit.is_running


async def test_a_limit_that_was_stopped_can_be_started_again() -> None:
    with LoopClock() as clock:
        moving = Moving()
        moving.limit.start()
        moving.limit.stop()
        assert not moving.limit.is_running
        moving.limit.start()
        assert moving.limit.is_running
        for _ in range(11):
            await clock.advance(1.0)
        assert moving.given_up == 1


async def test_nothing_is_given_up_before_the_start_and_after_the_stop() -> None:
    with LoopClock() as clock:
        moving = Moving()
        moving.limit.stop()
        await clock.advance(2 * LIMIT_S)
        moving.limit.start()
        await clock.advance(LIMIT_S / 2)
        moving.limit.stop()
        moving.limit.stop()
        await clock.advance(2 * LIMIT_S)
        assert not moving.given_up
        moving.limit.start()
        await clock.advance(LIMIT_S - 0.1)
        assert not moving.given_up
        moving.limit.stop()


async def test_what_moves_all_the_time_is_given_up_when_it_takes_too_long_in_all() -> None:
    with LoopClock() as clock:
        moving = Moving()
        moving.limit.start()
        for second in range(round(LONGEST_S)):
            assert moving.limit.is_running, second
            moving.moved += 1
            await clock.advance(1.0)
        assert moving.given_up == 1


async def test_a_limit_that_follows_another_counts_its_time() -> None:
    with LoopClock() as clock:
        first, second = Moving(), Moving()
        first.limit.start()
        await clock.advance(LIMIT_S - 1.0)
        first.limit.stop()
        second.limit.start(first.limit)
        await clock.advance(0.9)
        assert second.limit.is_running
        await clock.advance(0.2)
        assert second.given_up == 1


async def test_a_limit_that_follows_one_that_never_began_counts_from_its_own_start() -> None:
    with LoopClock() as clock:
        first, second = Moving(), Moving()
        await clock.advance(LIMIT_S)
        second.limit.start(first.limit)
        await clock.advance(LIMIT_S - 0.1)
        assert second.limit.is_running
        second.limit.stop()


async def test_limits_that_change_count_from_then_on() -> None:
    with LoopClock() as clock:
        moving = Moving()
        moving.limit.start()
        moving.limits = Limits(3 * LIMIT_S, LONGEST_S)
        await clock.advance(2.9 * LIMIT_S)
        assert moving.limit.is_running
        await clock.advance(0.2 * LIMIT_S)
        assert moving.given_up == 1
