import asyncio
import socket
import threading
import time
from collections.abc import Callable

import pytest

from gateway import clock
from tests.support import loops
from tests.support.pty_board import LoopClock, turns, until


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


async def hold_up_the_loop(meanwhile: Callable[[], None], seconds: float = 0.1) -> None:
    """Keep the loop from running anything else, in a callback for bytes that have come."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        held_up = asyncio.Event()

        def hold() -> None:
            loop.remove_reader(ours)
            meanwhile()
            time.sleep(seconds)
            held_up.set()

        loop.add_reader(ours, hold)
        await turns(2)
        theirs.send(b"x")
        await held_up.wait()


async def test_a_timer_gives_way_to_what_happened_while_the_loop_was_held_up() -> None:
    loop = asyncio.get_running_loop()
    seen: list[str] = []
    ours, theirs = socket.socketpair()

    def read() -> None:
        ours.recv(1)
        seen.append("byte")

    def meanwhile() -> None:
        system = clock.SystemClock()
        system.call_later(0.001, seen.append, "timer")
        system.call_later(0.001, seen.append, "cancelled").cancel()
        theirs.send(b"x")
        thread = threading.Thread(
            target=loop.call_soon_threadsafe, args=(seen.append, "result of a thread")
        )
        thread.start()
        thread.join()

    with ours, theirs:
        loop.add_reader(ours, read)
        await hold_up_the_loop(meanwhile)
        await until(lambda: len(seen) == 3)
        loop.remove_reader(ours)
    assert sorted(seen[:2]) == ["byte", "result of a thread"]
    assert seen[2] == "timer"


async def test_a_limit_is_kept_by_what_ended_while_the_loop_was_held_up() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    async def received() -> bytes:
        return await asyncio.get_running_loop().sock_recv(ours, 1)

    async def answer() -> bytes:
        async with clock.timeout(1.0):
            return await asyncio.shield(asyncio.create_task(received()))

    with ours, theirs, clock.use(clock.SystemClock()):
        answering = asyncio.create_task(answer())
        await hold_up_the_loop(lambda: theirs.sendall(b"x"), 1.1)
        assert await answering == b"x"


@pytest.mark.parametrize("delay_s", [0.0004, 0.0014, 0.0026, 0.0101])
async def test_a_timer_is_never_early(delay_s: float) -> None:
    system = clock.SystemClock()
    for _ in range(10):
        due_s = system.time() + delay_s
        ran_at_s: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        system.call_later(delay_s, lambda done=ran_at_s: done.set_result(system.time()))
        assert await ran_at_s >= due_s
