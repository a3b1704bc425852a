"""A tty that is left to local tools: by command, or while no client is connected."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from tests.support.world import (
    BOTH,
    IDLE,
    RESET,
    ClientError,
    Control,
    Logged,
    OtherProgram,
    State,
    World,
    turns,
    world,
)

# --- release and resume


async def test_a_released_tty_is_closed_for_a_local_tool_until_it_is_resumed(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        assert not w.board.is_free
        await w.release("for esptool")
        assert (w.state, w.status.reason) == (State.RELEASED, "for esptool")
        assert await w.refused(await w.asks()) == "desk: released: for esptool\r\n"
        with OtherProgram(w.board.path) as tool:
            w.rescan()
            await w.pass_time(60.0)
            await w.board.write(b"for the tool")
            await w.until(lambda: w.board.unread_bytes == 12)
            assert os.read(tool.descriptor, 100) == b"for the tool"
        w.resume()
        await w.until(State.IDLE)
        client = await w.client()
        await w.board.write(b"ours again")
        await client.receive_data(b"ours again")
        # Opened twice, each time from the kernel's (on, on) to rest in one step.
        assert w.board.lines == [BOTH, IDLE, BOTH, IDLE]
        assert [event for event in w.events if event.startswith("device_")] == [
            Logged.OPENED,
            Logged.RELEASED,
            Logged.RESUMED,
            Logged.OPENED,
        ]


async def test_a_release_is_done_when_the_kernel_has_closed_the_tty(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.board.calls.hang("close")
        releasing = asyncio.create_task(w.release())
        await w.until(State.RELEASED)
        await w.pass_time(1.0)
        assert not releasing.done()
        w.board.calls.answer()
        await releasing
        assert w.board.is_free


async def test_a_tty_that_is_resumed_before_it_is_closed_is_opened_once_behind_the_close(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        w.board.calls.hang("close")
        releasing = asyncio.create_task(w.release())
        await w.until(State.RELEASED)
        w.resume()
        with pytest.raises(ClientError, match="desk: resumed before it was closed"):
            await releasing
        assert w.state == State.OPENING
        w.board.calls.answer()
        await w.until(State.IDLE)
        assert w.board.calls.tries == 2


async def test_a_port_in_use_is_released_by_force_only_with_its_last_bytes_sent(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        with pytest.raises(ClientError, match=f"desk: in use by {client.name} since "):
            await w.release()
        assert w.state == State.IN_USE
        await client.control(Control.RTS_ON)
        await client.set_baudrate(921600)
        await client.send(b"last words")
        await w.until(lambda: w.status.sent_bytes == 10)
        await w.run(w.release("for esptool", force=True))
        await w.board.reads(b"last words")
        await w.refused(client)
        assert w.said(Logged.DISCONNECTED, "reason") == ["released for esptool"]
        assert (w.state, w.board.lines[-1], w.board.is_free) == (State.RELEASED, IDLE, True)


async def test_a_forced_release_waits_half_a_second_for_bytes_that_are_not_taken(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.room = 0
        await client.send(b"x" * 1000)
        await w.until(lambda: w.status.sent_bytes == 1000)
        releasing = asyncio.create_task(w.release(force=True))
        await w.pass_time(0.45)
        assert w.state == State.CLEANUP
        await w.pass_time(0.1)
        await releasing
        assert w.status.dropped_bytes == 1000


async def test_a_release_waits_for_the_bytes_of_a_client_that_has_just_left(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.room = 0
        await client.send(b"last words")
        await w.until(lambda: w.status.sent_bytes == 10)
        client.close()
        await w.until(State.CLEANUP)
        releasing = asyncio.create_task(w.release())
        await w.pass_time(0.4)
        assert w.state == State.CLEANUP
        w.board.calls.room = None
        await w.board.reads(b"last words")
        await releasing


async def test_clients_that_only_observe_are_closed_as_well(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        monitor, flasher = await w.client(), await w.client()
        await w.run(w.release("for a tool", force=True))
        await w.refused(monitor)
        await w.refused(flasher)
        assert w.said(Logged.DISCONNECTED, "reason") == ["released for a tool"] * 2


async def test_clients_that_wait_for_absent_boards_wait_for_released_ones(tmp_path: Path) -> None:
    async with world(tmp_path, "on_absent: wait") as w:
        await w.release()
        client = await w.asks()
        await w.pass_time(60.0)
        assert (w.state, w.logged(Logged.REFUSED)) == (State.RELEASED, [])
        w.resume()
        await w.until(lambda: w.status.controls == client.name)


async def test_an_absent_board_can_be_released_and_is_not_tried_meanwhile(tmp_path: Path) -> None:
    async with world(tmp_path, plugged_in=False) as w:
        await w.release()
        assert w.state == State.RELEASED
        w.board.plug()
        tries = w.board.calls.tries
        w.rescan()
        await w.pass_time(60.0)
        assert (w.board.calls.tries, w.state) == (tries, State.RELEASED)
        w.resume()
        await w.until(State.IDLE)


async def test_a_board_that_is_away_is_given_up_for_a_local_tool(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 60") as w:
        client = await w.client()
        w.board.unplug()
        await w.until(State.OFFLINE)
        await client.send(b"in vain")
        await client.settled()
        await w.release("for a tool", force=True)
        await w.refused(client)
        assert (w.state, w.status.dropped_bytes) == (State.RELEASED, 7)


async def test_a_port_that_is_being_opened_is_released_when_it_has_been(tmp_path: Path) -> None:
    async with world(tmp_path, waits=False, starting=lambda w: w.board.calls.hang("open")) as w:
        await w.until(lambda: w.board.calls.tries)
        waiting = await w.asks()
        await turns(20)
        releasing = asyncio.create_task(w.release("for a tool"))
        assert await w.refused(waiting) == "desk: released: for a tool\r\n"
        assert not releasing.done()
        w.board.calls.answer()
        await releasing
        await w.until(lambda: w.board.is_free)


async def test_a_try_that_fails_while_the_port_is_released_does_not_break_it(
    tmp_path: Path,
) -> None:
    def start(w: World) -> None:
        w.board.calls.hang("open")
        w.board.calls.fail("open", OSError(5, "broken"))

    async with world(tmp_path, waits=False, starting=start) as w:
        await w.until(lambda: w.board.calls.tries)
        releasing = asyncio.create_task(w.release())
        await turns(20)
        w.board.calls.answer()
        await releasing
        assert (w.state, w.logged(Logged.OPEN_FAILED)) == (State.RELEASED, [])


async def test_a_port_that_is_released_twice_is_released_once_with_the_last_reason(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        await asyncio.gather(w.release("for a"), w.release("for b"))
        await w.release("for c")
        assert w.status.reason == "for c"
        w.resume()
        w.resume()
        await w.until(State.IDLE)
        assert w.events.count(Logged.RELEASED) == w.events.count(Logged.RESUMED) == 1


async def test_a_release_fails_when_the_port_is_stopped(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.board.calls.hang("close")
        releasing = asyncio.create_task(w.release())
        await w.until(State.RELEASED)
        stopping = asyncio.create_task(w.stop())
        with pytest.raises(ClientError, match="desk: stopped"):
            await w.run(asyncio.wait_for(releasing, None))
        w.board.calls.answer()
        await w.pass_until(stopping.done)
        await stopping
        with pytest.raises(ClientError, match="desk: stopped"):
            await w.release()


# --- open: on_connect

ON_CONNECT = "open: on_connect"


async def test_the_tty_is_open_only_while_a_client_is_connected(tmp_path: Path) -> None:
    async with world(tmp_path, ON_CONNECT) as w:
        assert (w.state, w.status.reason) == (State.RELEASED, "until a client connects")
        assert w.board.calls.tries == 0
        for _ in range(2):
            client = await w.client()
            assert not w.board.is_free
            await client.set_baudrate(921600)
            await client.control(Control.RTS_ON)
            await w.board.write(b"hello\n")
            await client.receive_data(b"hello\n")
            client.close()
            await w.pass_until(lambda: w.state == State.RELEASED)
            await w.until(lambda: w.board.is_free)
        assert w.board.lines == 2 * [BOTH, IDLE, RESET, IDLE]
        assert w.recorded == b"hello\nhello\n"


async def test_a_client_waits_until_the_tty_is_open_and_may_leave_before(tmp_path: Path) -> None:
    async with world(tmp_path, ON_CONNECT) as w:
        w.board.calls.hang("open")
        stays = await w.asks()
        await w.pass_time(5.0)
        assert (w.state, w.logged(Logged.REFUSED)) == (State.OPENING, [])
        w.board.calls.answer()
        await w.until(lambda: w.status.controls == stays.name)
        stays.close()
        await w.until(State.RELEASED)
        w.board.calls.hang("open")
        leaves = await w.asks()
        await w.until(State.OPENING)
        leaves.close()
        await w.pass_until(lambda: w.state == State.RELEASED)
        w.board.calls.answer()
        await w.until(lambda: w.board.is_free)
        assert w.status.sessions == 1


async def test_a_client_of_an_absent_board_is_rejected(tmp_path: Path) -> None:
    async with world(tmp_path, ON_CONNECT, plugged_in=False) as w:
        assert await w.refused(await w.asks()) == "desk: absent: not plugged in\r\n"
        assert w.state == State.RELEASED


async def test_a_client_of_an_absent_board_waits_where_the_yaml_says_so(tmp_path: Path) -> None:
    async with world(tmp_path, f"{ON_CONNECT}, on_absent: wait", plugged_in=False) as w:
        stays, leaves = await w.asks(), await w.asks()
        await w.until(State.ABSENT)
        leaves.close()
        await w.pass_time(30.0)
        assert w.state == State.ABSENT
        w.board.plug()
        await w.pass_until(lambda: w.status.controls == stays.name)
        stays.close()
        await w.pass_until(lambda: w.state == State.RELEASED)
        w.board.unplug()
        again = await w.asks()
        await w.until(State.ABSENT)
        again.close()
        await w.pass_until(lambda: w.state == State.RELEASED)


async def test_a_command_releases_what_is_closed_already(tmp_path: Path) -> None:
    async with world(tmp_path, ON_CONNECT) as w:
        await w.release("for a tool")
        assert await w.refused(await w.asks()) == "desk: released: for a tool\r\n"
        w.resume()
        assert w.status.reason == "until a client connects"
        assert w.board.calls.tries == 0
        await w.client()


async def test_stopping_waits_until_a_tty_that_is_not_needed_is_closed(tmp_path: Path) -> None:
    async with world(tmp_path, ON_CONNECT) as w:
        n_threads = threading.active_count()
        (await w.client()).close()
        await w.run(w.stop())
        await w.until(lambda: threading.active_count() <= n_threads)
        assert w.board.is_free
