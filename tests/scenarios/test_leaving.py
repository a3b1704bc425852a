"""Clients that leave: with bytes and commands left, half closed, unnoticed, by a reset."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.com_port import FIRST_STATE, GET_LINESTATE
from tests.support.gateway_end import GatewayEnd, deliver, until_stalled
from tests.support.tcp_client import TcpClient
from tests.support.telnet_wire import AYT, BRK, RFC2217_CLIENT, command
from tests.support.world import (
    IDLE,
    RESET,
    Client,
    Control,
    Logged,
    State,
    World,
    baudrate,
    control,
    turns,
    until,
    world,
)

RAW = "protocol: raw"

#: Of a client that has left, so many commands are carried out.
COMMANDS_AFTER_LEAVING = 32

MUCH = b"m" * 8_000_000


def dropped(w: World) -> int:
    """How many bytes of clients the log says that the board has not got."""
    return sum(w.said(Logged.DROPPED, "unsent_bytes"))


# --- what was sent before leaving


async def test_after_a_client_left_its_settings_are_made_without_answers(tmp_path: Path) -> None:
    questions = control(Control.REQUEST_DTR) + GET_LINESTATE + baudrate(0) + command(AYT)
    async with world(tmp_path) as w:
        client = await w.client()
        await client.receive_wire(FIRST_STATE)
        w.board.calls.hang("settings")
        w.board.calls.forget()
        before = bytes(client.received)
        await deliver(client, b"a" + baudrate(9600) + questions + b"b" + questions + b"c")
        client.stop_sending()
        await until(lambda: w.ends(client))
        w.board.calls.answer()
        w.board.start_reading()
        await w.until_idle()
        assert w.board.calls.since(0, "write", "settings")[:-1] == [
            ("write", b"a"),
            ("settings", "9600 8N1"),
            ("write", b"b"),
            ("write", b"c"),
        ]
        await w.run(client.receive_to_end())
        assert client.received == before


async def test_after_a_client_left_32_of_its_commands_are_carried_out(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.board.start_reading()
        client = await w.client()
        w.board.calls.forget()
        n_sent = COMMANDS_AFTER_LEAVING + 3  # the first is carried out before it leaves
        await deliver(client, (b"x" + command(BRK)) * n_sent + b"lost")
        client.close()
        await until(lambda: w.ends(client))
        await w.until_idle()
        assert len(w.board.calls.since(0, "break")) == 2 * (COMMANDS_AFTER_LEAVING + 1)
        n_written = sum(len(call.value) for call in w.board.calls.named("write"))
        assert n_written == COMMANDS_AFTER_LEAVING + 2
        assert dropped(w) == w.status.dropped_bytes == n_sent - n_written + len(b"lost")


async def takes(w: World, n_bytes: int) -> None:
    """Let the board take that much more, and the gateway send it, or all that there is."""
    w.board.calls.room = n_bytes
    await until(lambda: not w.board.calls.room or w.state == State.IDLE)


async def test_a_slow_board_gets_all_bytes_of_a_client_that_left_at_once(tmp_path: Path) -> None:
    sent = b"".join(b"%07d\n" % number for number in range(40_000))
    async with world(tmp_path, RAW) as w:
        w.board.start_reading()
        w.board.calls.room = 0
        client = await w.connect()
        await deliver(client, sent)
        await w.until(State.IN_USE)
        client.close()
        for _ in range(20):
            assert w.state != State.IDLE
            await takes(w, len(sent) // 20)
            await w.clock.advance(4.0)
        await w.until_idle()
        await until(lambda: w.board.received == sent)
        assert not w.logged(Logged.DROPPED)


# --- boards that do not take it


@pytest.mark.parametrize("sent_bytes", [50_000, 200_000, 300_000])
async def test_a_port_is_free_ten_seconds_after_a_stuck_board_took_the_last_byte(
    tmp_path: Path, sent_bytes: int
) -> None:
    async with world(tmp_path, RAW) as w:
        w.board.start_reading()
        w.board.calls.room = 20_000
        client = await w.connect()
        await deliver(client, b"x" * sent_bytes)
        await until(lambda: not w.board.calls.room)
        client.close()
        await until(lambda: w.ends(client))
        await w.pass_time(9.9)
        assert w.state != State.IDLE
        await w.pass_time(0.2)
        assert w.state == State.IDLE
        assert dropped(w) == w.status.dropped_bytes == sent_bytes - 20_000
        w.board.calls.room = None
        await w.connect(b"next")
        await w.pass_until(lambda: w.board.received.endswith(b"next"))


async def test_a_board_that_takes_little_is_given_up_after_ten_minutes(tmp_path: Path) -> None:
    async with world(tmp_path, f"{RAW}, baudrate: 921600") as w:
        w.board.start_reading()
        w.board.calls.room = 0
        client = await w.connect()
        await deliver(client, b"x" * 320_000)
        await w.until(State.IN_USE)
        client.close()
        began_s = w.clock.now_s
        while w.state != State.IDLE:
            await takes(w, 4000)
            await w.clock.advance(9.0)
        assert 590.0 <= w.clock.now_s - began_s <= 620.0
        assert dropped(w) > 0


async def stall(client: Client) -> int:
    """Send until the gateway reads no more, and little more than it reads; how much that is.

    The kernel reports the end of a connection behind all that it has room for.
    """
    while True:
        await client.send(b"x" * 8192)
        if (read_bytes := await until_stalled(client)) < client.sent_bytes:
            return read_bytes


async def test_a_client_that_is_not_read_is_noticed_when_it_leaves(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.receive_wire(FIRST_STATE)  # closing with bytes unread would be a reset
        await client.control(Control.RTS_ON)
        w.board.calls.room = 0
        read_bytes = await stall(client)
        client.close()
        await w.pass_until(lambda: w.ends(client), step_s=1.0)
        assert w.ends(client) == ["disconnected; board not accepting data"]
        await w.until_idle()
        assert w.board.lines[-2:] == [RESET, IDLE]
        n_commands = len(RFC2217_CLIENT + control(Control.RTS_ON))
        assert dropped(w) == w.status.dropped_bytes == read_bytes - n_commands


async def test_a_client_that_stays_on_a_stuck_board_keeps_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.room = 0
        sending = asyncio.create_task(client.send(MUCH))
        await until_stalled(client)
        for _ in range(60):
            await w.clock.advance(1.0)
        assert (w.ends(client), w.status.controls) == ([], client.name)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_client_that_left_is_not_probed_while_its_bytes_go_out(tmp_path: Path) -> None:
    n_bytes = 300_000  # more than the gateway gives a board ahead
    async with world(tmp_path, RAW) as w:
        client = await w.connect()
        await deliver(client, bytes(n_bytes))
        client.reset()
        await until(lambda: w.ends(client))
        await w.pass_time(9.0)
        assert w.state == State.IN_USE
        await w.board.reads(bytes(n_bytes))
        await w.until_idle()


# --- ways to leave


async def test_a_half_closed_client_that_does_not_read_has_left(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client(receive_buffer_bytes=4096)
        GatewayEnd(client).keep_little()
        writing = asyncio.create_task(w.board.write(MUCH[:2_000_000]))
        await turns(200)
        client.stop_sending()
        await until(lambda: w.ends(client) == ["left"])
        await writing  # nobody reads it, so it is dropped
        await w.until_idle()
        assert len(client.received) < 2_000_000


async def test_a_reset_connection_ends_the_session(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.control(Control.RTS_ON)
        await deliver(client, b"x" * 1000 + b"\xff")
        client.reset()
        await until(lambda: w.ends(client) == ["connection reset by peer"])
        await w.board.reads(b"x" * 1000)
        await w.until_idle()
        assert w.board.lines[-1] == IDLE


async def test_a_port_scan_leaves_nothing_behind(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for leave in (TcpClient.close, TcpClient.reset):
            for _ in range(3):
                leave(await w.connect())
                await w.pass_time(0.1)
        scanners = [await w.connect() for _ in range(60)]
        for index, scanner in enumerate(scanners):
            scanner.close() if index % 2 else scanner.reset()
        await w.pass_time(1.0)
        await w.until_idle()
        client = await w.client()
        await client.settled()
        client.close()
        await w.until_idle()
        connected = w.said(Logged.CONNECTED, "client")
        assert connected == w.said(Logged.DISCONNECTED, "client")
        assert not [entry for entry in w.log if entry["log_level"] in {"error", "critical"}]
