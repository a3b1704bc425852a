import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.serialport.worker import Worker
from tests.support import loops
from tests.support.pty_board import LoopClock, turns

LIMIT_S = 20.0  # of calls that are not meant to be stuck
SOON_S = 0.01  # the limit of one that is


class Events:
    """What a thread has reported, in order, to be waited for on the loop."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self._news = asyncio.Event()

    def note(self, event: Any) -> None:
        self.seen.append(event)
        self._news.set()

    def noting(self, name: str) -> Callable[[Any], None]:
        return lambda value: self.note((name, value))

    async def count(self, count: int) -> list[Any]:
        async with asyncio.timeout(LIMIT_S):
            while len(self.seen) < count:
                self._news.clear()
                await self._news.wait()
        return self.seen


class Bench:
    """A control thread, what it has reported, and a door at which calls can be made to block."""

    def __init__(self) -> None:
        self.events = Events()
        self.thread = Worker("under test", self.events.noting("stuck"))
        self.entered = threading.Event()
        self.door = threading.Event()
        self.ended = threading.Event()

    def submit(self, run: Callable[[], Any], name: str, limit_s: float = LIMIT_S) -> None:
        done, failed = self.events.noting(name), self.events.noting(f"{name} failed")
        self.thread.submit(run, done, failed, limit_s=limit_s)

    def block(self) -> str:
        self.entered.set()
        assert self.door.wait(LIMIT_S)
        return "let through"

    def stop(self) -> None:
        self.thread.stop(self.ended.set)

    async def when_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, LIMIT_S)

    async def when_ended(self) -> None:
        assert await asyncio.to_thread(self.ended.wait, LIMIT_S)
        for _ in range(3):  # what the thread has reported is on its way
            await asyncio.sleep(0)


def on_bench(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Gives the test a bench and ends its thread in the end."""

    @functools.wraps(test)
    async def wrapped() -> None:
        bench = Bench()
        try:
            await test(bench)
        finally:
            bench.door.set()
            bench.stop()
            bench.thread._thread.join(LIMIT_S)

    del wrapped.__wrapped__  # pytest would look for a fixture `bench`
    return wrapped


@on_bench
async def test_calls_run_one_after_the_other_in_the_order_of_submission(bench: Bench) -> None:
    ran: list[int] = []
    for number in range(100):
        bench.submit(functools.partial(ran.append, number), f"{number}")
    await bench.events.count(100)
    assert ran == list(range(100))
    assert bench.events.seen == [(f"{number}", None) for number in range(100)]


@on_bench
async def test_calls_run_off_the_loop_and_report_on_it(bench: Bench) -> None:
    bench.thread.submit(
        threading.get_ident,
        lambda ident: bench.events.note((ident, threading.get_ident())),
        bench.events.note,
        limit_s=LIMIT_S,
    )
    [(ran_in, reported_in)] = await bench.events.count(1)
    assert ran_in != reported_in == threading.get_ident()


@on_bench
async def test_a_failed_call_is_reported_and_the_next_runs(bench: Bench) -> None:
    error = OSError("gone")

    def fail() -> None:
        raise error

    bench.submit(fail, "first")
    bench.submit(lambda: 2, "second")
    assert await bench.events.count(2) == [("first failed", error), ("second", 2)]


@on_bench
async def test_a_call_submitted_from_a_report_runs_behind_those_that_wait(bench: Bench) -> None:
    def first_done(_: object) -> None:
        bench.events.note("first")
        bench.submit(lambda: None, "third")

    bench.thread.submit(lambda: None, first_done, bench.events.note, limit_s=LIMIT_S)
    bench.submit(lambda: None, "second")
    assert await bench.events.count(3) == ["first", ("second", None), ("third", None)]


@on_bench
async def test_a_report_that_raises_does_not_stop_the_thread(bench: Bench) -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: complaints.append(context["exception"])
    )
    error = ValueError("from a report")

    def raise_it(_: object) -> None:
        raise error

    bench.thread.submit(lambda: None, raise_it, bench.events.note, limit_s=LIMIT_S)
    bench.submit(lambda: 2, "second")
    assert await bench.events.count(1) == [("second", 2)]
    assert complaints == [error]


@on_bench
async def test_a_stuck_call_is_told_once_and_what_waits_is_dropped(bench: Bench) -> None:
    bench.submit(bench.block, "blocks", limit_s=SOON_S)
    bench.submit(lambda: None, "waits")
    assert await bench.events.count(1) == [("stuck", SOON_S)]
    bench.submit(lambda: None, "too late")
    bench.door.set()
    bench.stop()
    await bench.when_ended()
    assert bench.events.seen == [("stuck", SOON_S)]


@on_bench
async def test_the_late_result_of_a_stuck_call_is_ignored_even_before_stop(bench: Bench) -> None:
    bench.submit(bench.block, "blocks", limit_s=SOON_S)
    await bench.events.count(1)
    bench.door.set()
    # Ends behind the stuck call, and reports nothing itself.
    bench.thread._inbox.put(bench.ended.set)
    await bench.when_ended()
    assert bench.events.seen == [("stuck", SOON_S)]


async def pass_time(held: LoopClock, seconds: float) -> None:
    """Let time pass for a loop that is not held up."""
    held.jump(seconds)
    await turns(6)


@on_bench
async def test_the_limit_of_a_call_counts_from_its_own_turn(bench: Bench) -> None:
    second_door = threading.Event()
    with LoopClock() as held:
        bench.submit(bench.block, "first", limit_s=100.0)
        bench.submit(lambda: second_door.wait(LIMIT_S), "second", limit_s=200.0)
        await pass_time(held, 90.0)
        bench.door.set()
        assert await bench.events.count(1) == [("first", "let through")]
        for _ in range(19):
            await pass_time(held, 10.0)
        assert len(bench.events.seen) == 1
        for _ in range(3):
            await pass_time(held, 10.0)
        assert bench.events.seen[1:] == [("stuck", 200.0)]
        second_door.set()


@on_bench
async def test_a_call_that_has_ended_is_not_stuck_though_the_loop_was_held_up(bench: Bench) -> None:
    with LoopClock() as held:
        bench.submit(bench.block, "call", limit_s=8.0)
        assert bench.entered.wait(LIMIT_S)
        await pass_time(held, 7.5)
        held.jump(60.0)  # what is due then is the first that the loop does when it runs again
        bench.door.set()
        bench.thread._inbox.put(bench.ended.set)  # behind the call, and reports nothing itself
        assert bench.ended.wait(LIMIT_S)
        await turns(6)
    assert bench.events.seen == [("call", "let through")]


@on_bench
async def test_a_thread_that_was_held_up_as_well_is_given_another_second(bench: Bench) -> None:
    with LoopClock() as held:
        bench.submit(bench.block, "call", limit_s=8.0)
        await pass_time(held, 3600.0)  # the whole process was stopped
        await pass_time(held, 0.9)
        assert bench.events.seen == []
        bench.door.set()
        assert await bench.events.count(1) == [("call", "let through")]


@on_bench
async def test_a_call_that_does_not_end_is_stuck_after_another_second(bench: Bench) -> None:
    with LoopClock() as held:
        bench.submit(bench.block, "call", limit_s=8.0)
        await pass_time(held, 3600.0)
        await pass_time(held, 1.0)
        assert bench.events.seen == [("stuck", 8.0)]


@on_bench
async def test_stop_runs_the_last_call_behind_the_running_one_and_drops_the_rest(
    bench: Bench,
) -> None:
    ran: list[str] = []
    bench.submit(lambda: ran.append(bench.block()), "blocks")
    bench.submit(lambda: ran.append("dropped"), "waits")
    await bench.when_entered()

    def last() -> None:
        ran.append("last")
        bench.ended.set()

    bench.thread.stop(last)
    bench.door.set()
    await bench.when_ended()
    assert ran == ["let through", "last"]
    assert bench.events.seen == []


@on_bench
async def test_a_result_that_is_on_its_way_at_stop_is_not_reported(bench: Bench) -> None:
    bench.submit(lambda: None, "call")
    # Returns when the call has ended, without a turn of the loop: its report waits there.
    behind = threading.Event()
    bench.thread._inbox.put(behind.set)
    assert behind.wait(LIMIT_S)
    bench.stop()
    await bench.when_ended()
    assert bench.events.seen == []


@on_bench
async def test_only_the_first_stop_counts(bench: Bench) -> None:
    bench.stop()
    bench.thread.stop(lambda: bench.events.note("second"))
    bench.submit(lambda: None, "call")
    await bench.when_ended()
    bench.thread._thread.join(LIMIT_S)
    assert bench.events.seen == []


@on_bench
async def test_a_stopped_call_is_not_called_stuck(bench: Bench) -> None:
    bench.submit(bench.block, "blocks", limit_s=SOON_S)
    assert bench.entered.wait(LIMIT_S)  # without a turn of the loop: its limit can't be over
    bench.stop()
    await asyncio.sleep(3 * SOON_S)
    assert bench.events.seen == []


@on_bench
async def test_a_stuck_thread_does_not_keep_the_process(bench: Bench) -> None:
    assert bench.thread._thread.daemon


@pytest.mark.parametrize("outcome", [None, OSError("gone")])
def test_a_call_may_return_after_the_loop_was_closed(outcome: OSError | None) -> None:
    door, ended = threading.Event(), threading.Event()
    reports: list[object] = []

    def block() -> None:
        assert door.wait(LIMIT_S)
        if outcome is not None:
            raise outcome

    async def leave_a_stuck_call() -> Worker:
        stopped = asyncio.Event()

        def stop(_: float) -> None:
            thread.stop(ended.set)
            stopped.set()

        thread = Worker("under test", stop)
        thread.submit(block, reports.append, reports.append, limit_s=SOON_S)
        await stopped.wait()
        return thread

    thread = loops.run(leave_a_stuck_call())
    door.set()
    assert ended.wait(LIMIT_S)
    thread._thread.join(LIMIT_S)
    assert not thread._thread.is_alive()
    assert reports == []


async def test_how_long_each_call_took_is_told_whatever_came_of_it() -> None:
    took: list[float] = []
    events = Events()
    thread = Worker("under test", events.noting("stuck"), took.append)
    try:
        for run in (lambda: time.sleep(0.02), lambda: 1 / 0):
            thread.submit(run, events.noting("done"), events.noting("failed"), limit_s=LIMIT_S)
        await events.count(2)
    finally:
        thread.stop(lambda: None)
    assert [name for name, _ in events.seen] == ["done", "failed"]
    assert took[0] >= 0.02
    assert len(took) == 2
