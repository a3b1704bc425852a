import asyncio

import pytest

from gateway import clock
from tests.support import loops
from tests.support.pty_board import LoopClock


async def next_turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_timers_run_in_the_order_of_their_times_and_not_when_cancelled() -> None:
    ran: list[str] = []
    with LoopClock() as held:
        clock.call_later(3, ran.append, "third")
        clock.call_at(held.now_s + 1, ran.append, "first")
        clock.call_later(2, ran.append, "cancelled").cancel()
        clock.call_later(2, ran.append, "second")
        await held.advance(0.9)
        assert ran == []
        await held.advance(5)
        assert ran == ["first", "second", "third"]


async def test_a_timer_that_is_due_at_once_does_not_run_within_the_call() -> None:
    ran: list[str] = []
    with LoopClock() as held:
        clock.call_later(0, ran.append, "now")
        clock.call_at(held.now_s - 5, ran.append, "past")
        assert ran == []
        await next_turns()
        assert ran == ["now", "past"]


async def test_a_timer_set_before_the_clock_was_held_is_held_too() -> None:
    ran: list[str] = []
    clock.call_later(0.001, ran.append, "due")
    with LoopClock() as held:
        await held.advance(0)
        await asyncio.sleep(0.01)
        assert ran == []
    await asyncio.sleep(0.01)
    assert ran == ["due"]


async def test_a_sleep_ends_at_its_time() -> None:
    with LoopClock() as held:
        sleeping = asyncio.create_task(clock.sleep(10))
        await held.advance(9)
        assert not sleeping.done()
        await held.advance(1)
        assert sleeping.done()


async def test_a_sleep_can_be_cancelled_in_the_turn_in_which_it_is_over() -> None:
    with LoopClock() as held:
        sleeping = asyncio.create_task(clock.sleep(10))
        await held.advance(0)
        held.jump(10)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping


async def test_a_timeout_ends_its_body_at_its_time() -> None:
    async def wait() -> None:
        async with clock.timeout(10):
            await asyncio.get_running_loop().create_future()

    with LoopClock() as held:
        waiting = asyncio.create_task(wait())
        await held.advance(9)
        assert not waiting.done()
        await held.advance(1)
        with pytest.raises(TimeoutError):
            await waiting


async def test_a_timeout_is_dropped_when_its_body_has_ended() -> None:
    with LoopClock() as held:
        async with clock.timeout(10) as limit:
            pass
        await held.advance(20)
        assert not limit.expired()


def test_the_system_clock_runs_on_the_loop_it_is_used_on() -> None:
    async def use() -> list[str]:
        ran: list[str] = []
        clock.call_later(0.002, ran.append, "second")
        clock.call_at(clock.time() + 0.001, ran.append, "first")
        begun_s = clock.time()
        await clock.sleep(0.01)
        assert clock.time() > begun_s
        with pytest.raises(TimeoutError):
            async with clock.timeout(0.001):
                await asyncio.get_running_loop().create_future()
        return ran

    assert isinstance(clock.installed(), clock.SystemClock)
    assert loops.run(use()) == ["first", "second"]
