"""Ports that clients connect to: served now or later, how many clients they take, how they end."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.tcp_client import GREETING
from tests.support.world import SPEAKS_TELNET, Logged, State, turns, world

FEW = "max_sessions: 4"
ABSENT = "desk: absent: not plugged in\r\n"


async def test_an_address_that_is_in_use_is_served_when_it_is_free(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker:
        tcp_port = blocker.getsockname()[1]
        async with world(tmp_path, f"tcp: {tcp_port}") as w:
            for _ in range(10):
                await w.clock.advance(5.0)
            assert w.status.address == ""
            blocker.close()
            await w.pass_until(lambda: w.status.address)
            assert w.tcp_port == tcp_port
            await w.client()
            # Logged once, however often it was tried.
            events = [event for event in w.events if event.startswith("listen_")]
            assert events == ["listen_failed", "listen_started"]


async def test_status_says_which_client_has_the_port_and_how_much_went_through(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        idle = w.status
        assert (idle.state, idle.controls, idle.sessions) == (State.IDLE, "", 0)
        assert idle.address == f"127.0.0.1:{w.tcp_port}"
        assert (idle.settings, idle.lines) == ("115200 8N1", "DTR off, RTS off")
        client = await w.client()
        await client.send(b"four")
        await w.board.reads(b"four")
        await w.board.write(b"eleven char")
        await client.receive_data(b"eleven char")
        used = w.status
        assert (used.state, used.controls) == (State.IN_USE, client.name)
        assert (used.sent_bytes, used.received_bytes, used.sessions) == (4, 11, 1)


async def test_more_connections_than_allowed_are_closed_and_the_others_stay(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, FEW) as w:
        first = await w.client()
        others = [await w.asks() for _ in range(3)]
        await w.until(lambda: w.status.sessions == 1)
        for _ in range(3):
            assert await (await w.connect()).receive_to_end() == b""
        assert w.rejected == {"too_many": 3}
        for other in others:
            assert (await w.refused(other)).startswith("desk: in use by ")
            other.close()
        await w.board.write(b"undisturbed")
        await first.receive_data(b"undisturbed")
        told = [(entry["count"], entry["reason"]) for entry in w.logged(Logged.REJECTED)]
        assert told[0] == (1, "max_sessions reached (4)")


async def test_a_client_behind_a_burst_gets_the_place_of_one_that_is_ending(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, FEW, plugged_in=False) as w:
        for _ in range(9):  # no time passes, and none of them hangs up
            client = await w.connect(SPEAKS_TELNET)
            assert (await client.receive_to_end()).decode() == ABSENT
        assert not w.rejected


async def test_a_peer_that_is_not_allowed_gets_no_byte(tmp_path: Path) -> None:
    async with world(tmp_path, "allow: [192.0.2.0/24]") as w:
        await w.board.write(b"secret")
        for _ in range(3):
            client = await w.connect()
            assert await client.receive_to_end() == b""
            assert not client.received
        assert w.status.sessions == 0
        assert w.rejected == {"not_allowed": 3}
        assert w.said(Logged.REJECTED, "reason")[0] == "address not in allow"
        assert w.said(Logged.REJECTED, "network")[0] == "127.0.0.0/24"


async def test_a_peer_that_is_allowed_is_served(tmp_path: Path) -> None:
    async with world(tmp_path, "allow: [127.0.0.0/8]") as w:
        await w.client()


async def test_a_rejected_client_that_does_not_hang_up_is_hung_up_on(tmp_path: Path) -> None:
    async with world(tmp_path, "max_sessions: 1, on_absent: refuse", plugged_in=False) as w:
        client = await w.connect(SPEAKS_TELNET)
        await client.receive_to_end()
        await w.pass_time(1.1)
        # One more has its place.
        late = await w.connect(SPEAKS_TELNET)
        assert (await late.receive_to_end()).decode() == ABSENT


async def test_stopping_tells_a_person_why_and_frees_the_address(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.connect(SPEAKS_TELNET)
        await client.receive_wire(GREETING)
        tcp_port = w.tcp_port
        stopping = asyncio.create_task(w.stop("closing time"))
        assert await w.refused(client) == "\r\ndesk: closing time\r\n"
        client.close()
        await w.pass_until(stopping.done)
        await stopping
        assert (w.state, w.status.address) == (State.STOPPED, "")
        socket.create_server(("127.0.0.1", tcp_port)).close()


async def test_stopping_is_not_held_up_by_a_client_that_neither_reads_nor_hangs_up(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        await w.client(receive_buffer_bytes=4096)
        writing = asyncio.create_task(w.board.write(b"x" * 8_000_000))
        await w.until(lambda: w.board.unread_bytes > 4000)
        began_s = w.clock.now_s
        await w.run(w.stop())
        assert w.clock.now_s - began_s < 2.0
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


@pytest.mark.parametrize("loop_turns", range(6))
async def test_a_connection_that_comes_while_stopping_is_closed(
    tmp_path: Path, loop_turns: int
) -> None:
    async with world(tmp_path) as w:
        client = await w.connect()
        await turns(loop_turns)
        await w.run(w.stop())
        with suppress(ConnectionResetError):  # the kernel had it, and no program
            await client.receive_to_end()
