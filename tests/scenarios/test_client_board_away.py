"""A client whose board vanishes and comes back: its bytes, settings, resets and its end."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from tests.support.gateway_end import GatewayEnd, deliver
from tests.support.telnet_wire import AYT, command
from tests.support.world import (
    BOTH,
    IDLE,
    Control,
    Logged,
    Notice,
    State,
    World,
    hard_reset,
    until,
    world,
)


async def offline(w: World) -> None:
    w.board.unplug()
    await w.until(State.OFFLINE)


async def back(w: World) -> None:
    w.board.plug()
    await w.pass_until(lambda: w.state == State.IN_USE)


async def test_answers_are_the_client_s_own_view_while_its_board_is_away(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await offline(w)
        await client.set_baudrate(9600)
        await client.control(Control.BREAK_ON)
        await client.send(command(AYT))
        await client.receive(lambda: b"desk: 9600 8N1, DTR off, RTS off" in client.data)
        w.board.calls.forget()
        await back(w)
        await client.settled()
        await w.until(lambda: w.board.calls.named("break"))
        assert (w.board.baudrate, w.board.calls.named("break")[-1].value) == (9600, True)
        await client.set_baudrate(115200)  # not as before the board was away, but as asked last
        assert w.board.baudrate == 115200


async def test_a_client_that_leaves_at_its_board_s_return_leaves_no_settings(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.set_baudrate(921600)
        await offline(w)
        w.board.calls.hang("settings")
        tries = w.board.calls.tries
        w.board.plug()
        await w.pass_until(lambda: w.board.calls.tries > tries)
        client.close()
        await until(lambda: w.ends(client))
        w.board.calls.answer()
        await w.until_idle()
        assert (w.board.baudrate, w.status.settings) == (115200, "115200 8N1")


async def test_a_resumed_client_s_absent_board_gets_no_bytes_of_the_other(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt, grace_s: 30") as w:
        first = await w.client()
        await first.set_baudrate(9600)
        second = await w.client()
        await second.set_baudrate(921600)
        await offline(w)
        await deliver(second, b"x" * 50_000)
        second.close()
        await first.is_told(Notice.RESUMED)
        await deliver(first, b"mine")
        await back(w)
        await w.board.reads(b"mine")
        await w.pass_until(lambda: w.board.baudrate == 9600)
        await w.board.write(b"back")
        await first.receive(lambda: first.data.endswith(b"back"))
        assert w.said(Logged.DROPPED, "unsent_bytes") == [50_000]


async def test_a_reset_whose_board_stays_away_is_not_said_to_have_happened(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await offline(w)
        await client.send(hard_reset())
        await w.pass_until(lambda: w.logged(Logged.RESET_OWED))
        await w.pass_time(10.1)
        assert w.ends(client)
        w.board.plug()
        await w.until_idle()
        assert w.board.lines[-2:] == [BOTH, IDLE]
        assert not w.logged(Logged.RESET)


async def test_on_connect_is_not_played_again_for_a_board_that_is_back(tmp_path: Path) -> None:
    async with world(tmp_path, "on_connect: reset") as w:
        client = await w.run(w.client())
        await offline(w)
        w.board.lines.clear()
        await back(w)
        await client.settled()
        assert w.board.lines == [BOTH, IDLE]  # what opening a tty does


async def test_a_session_ends_with_its_board_after_the_board_s_last_bytes(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 0") as w:
        client = await w.connect()
        await w.pass_until(lambda: w.is_served(client))
        await w.board.write(b"last words")
        await until(lambda: w.status.received_bytes == 10)
        w.board.unplug()
        said = await client.receive_to_end()
        assert said.startswith(b"last words\r\ndesk: stopped working")
        (reason,) = w.ends(client)
        assert reason.startswith("stopped working")
        assert len(w.logged(Logged.LOST)) == 1
        w.board.plug()
        await w.until_idle()


async def test_a_client_that_is_sending_gets_the_last_bytes_too(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(500_000).replace(b"\xff", b"\xfe")
    async with world(tmp_path, "grace_s: 0") as w:
        client = await w.client(receive_buffer_bytes=4096)
        sending = asyncio.create_task(client.send(b"x" * 8_000_000))
        await until(lambda: GatewayEnd(client).read_bytes > 65536)
        await w.board.write(data)
        await until(lambda: w.status.received_bytes == len(data))
        w.board.unplug()
        await until(lambda: w.ends(client))
        # No connection reset before the end, although the gateway has not read it all.
        await client.receive(lambda: len(client.data) >= len(data))
        assert client.data.startswith(data)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
