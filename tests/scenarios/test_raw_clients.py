"""Clients of a raw port: every byte is data, and the port says nothing but why it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.telnet_wire import RFC2217_CLIENT
from tests.support.world import (
    IDLE,
    RESET,
    STRAP,
    Client,
    Lines,
    Logged,
    Notice,
    State,
    moving,
    turns,
    world,
)

RAW = "protocol: raw"
ALL_BYTES = bytes(range(256))
#: A pty takes 64 KiB; as much again may wait for it before a client is not read.
MORE_THAN_A_PTY_HOLDS = ALL_BYTES * 400
BOOTLOADER = [RESET, STRAP, IDLE]
APP = [RESET, IDLE]


async def test_nothing_is_negotiated_and_telnet_commands_are_data(tmp_path: Path) -> None:
    async with world(tmp_path, RAW) as w:
        client = await w.connect()
        sent = RFC2217_CLIENT + ALL_BYTES * 300
        await client.send(sent)
        await w.board.reads(sent)
        await w.board.write(ALL_BYTES * 10)
        await client.receive(lambda: len(client.received) >= 2560)
        assert client.received == ALL_BYTES * 10


async def test_a_client_gets_the_board_s_last_bytes_and_nothing_else(tmp_path: Path) -> None:
    async with world(tmp_path, f"{RAW}, grace_s: 0") as w:
        client = await w.connect(b"?")
        await w.board.reads(b"?")
        await w.board.write(b"last words")
        await client.receive(lambda: client.received == b"last words")
        w.board.unplug()
        assert await client.receive_to_end() == b"last words"


async def test_a_rejected_client_gets_the_reason(tmp_path: Path) -> None:
    async with world(tmp_path, RAW) as w:
        first = await w.connect(b"?")
        await w.board.reads(b"?")
        second = await w.connect(b"!")
        assert (await w.refused(second)).startswith(Notice.in_use(first))


@pytest.mark.parametrize(
    ("on_connect", "played"), [("nothing", []), ("bootloader", BOOTLOADER), ("reset", APP)]
)
async def test_the_board_is_reset_before_the_first_byte(
    tmp_path: Path, on_connect: str, played: list[Lines]
) -> None:
    async with world(tmp_path, f"{RAW}, on_connect: {on_connect}") as w:
        before = len(w.board.lines)
        at_first_byte: list[list[Lines]] = []
        w.board.start_reading(lambda _: at_first_byte.append(w.board.lines[before:]))
        client = await w.connect(ALL_BYTES)
        await w.pass_until(lambda: w.board.received == ALL_BYTES)
        client.close()
        await w.until_idle()
        assert at_first_byte[0] == w.board.lines[before:] == played


async def test_output_before_the_reset_is_not_for_the_client(tmp_path: Path) -> None:
    async with world(tmp_path, f"{RAW}, on_connect: reset") as w:
        w.board.calls.hang("lines")
        client = await w.connect(b"?")
        await w.pass_until(lambda: w.state == State.IN_USE)
        await w.board.write(b"the app before")
        await w.until(lambda: w.board.unread_bytes == 0)
        w.board.calls.answer()
        await w.pass_until(lambda: w.is_served(client))
        await w.board.write(b"boot log")
        await client.receive(lambda: len(client.received) >= 8)
        assert client.received == b"boot log"


@pytest.mark.parametrize("leave", [Client.close, Client.reset, Client.stop_sending])
async def test_the_app_is_started_however_the_client_leaves(
    tmp_path: Path, leave: Callable[[Client], None]
) -> None:
    async with world(tmp_path, f"{RAW}, on_disconnect: reset") as w:
        before = len(w.board.lines)
        client = await w.connect()
        await client.send(MORE_THAN_A_PTY_HOLDS)
        await w.until(lambda: w.status.sent_bytes == len(MORE_THAN_A_PTY_HOLDS))
        leave(client)
        await turns(10)
        assert w.board.lines[before:] == []
        w.board.start_reading()
        await w.until_idle()
        assert w.board.received == MORE_THAN_A_PTY_HOLDS
        assert w.board.lines[before:] == APP


async def test_a_client_that_leaves_during_its_reset_leaves_the_app(tmp_path: Path) -> None:
    async with world(tmp_path, f"{RAW}, on_connect: bootloader, on_disconnect: reset") as w:
        w.board.calls.hang("lines")
        client = await w.connect(b"?")
        await w.pass_until(lambda: w.state == State.IN_USE)
        client.reset()
        await turns(10)
        w.board.calls.answer()
        await w.until_idle()
        assert w.board.lines[-2:] == APP
        second = await w.connect(b"?")
        await w.pass_until(lambda: w.is_served(second))
        assert w.board.lines[-3:] == BOOTLOADER


async def test_a_gateway_that_stops_starts_the_app_as_well(tmp_path: Path) -> None:
    async with world(tmp_path, f"{RAW}, on_disconnect: reset") as w:
        await w.connect(b"?")
        await w.board.reads(b"?")
        with moving(w.clock):
            await w.stop()
        assert w.board.lines[-2:] == APP


async def test_a_board_that_is_lost_during_its_reset_is_no_connection(tmp_path: Path) -> None:
    async with world(tmp_path, f"{RAW}, grace_s: 0, on_connect: reset") as w:
        w.board.calls.hang("lines")
        client = await w.connect(b"?")
        await w.pass_until(lambda: w.state == State.IN_USE)
        w.board.unplug()
        w.board.calls.answer()
        assert (await w.refused(client)).startswith("desk: ")
        assert w.logged(Logged.REFUSED)
        assert not w.is_served(client)


async def test_a_board_that_leaves_the_bus_at_its_reset_keeps_its_client(tmp_path: Path) -> None:
    async with world(tmp_path, f"{RAW}, grace_s: 30, on_connect: reset") as w:
        w.board.calls.hang("lines")
        client = await w.connect(b"waits")
        await w.pass_until(lambda: w.state == State.IN_USE)
        w.board.unplug()
        w.board.calls.answer()
        await w.until(State.OFFLINE)
        w.board.plug()
        w.board.start_reading()
        await w.pass_until(lambda: w.board.received == b"waits")
        assert w.is_served(client)
