"""Clients of raw ports on a board, over real TCP and a real tty."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.config.document import OnConnect, OnDisconnect
from gateway.port_document import PortState
from gateway.protocol.access_server import RawPipe
from gateway.protocol.reset import IDLE, RESET, STRAP, Lines
from gateway.session.session import SessionState
from tests.support.pty_board import (
    LoopClock,
    PtyBoard,
    pass_silence,
    serving,
    turns,
    until,
)
from tests.support.tcp_client import TcpClient
from tests.support.telnet_wire import RFC2217_CLIENT

ALL_BYTES = bytes(range(256))
#: A pty takes 64 KiB; as much again may wait for it before a client is not read any more.
MORE_THAN_A_PTY_HOLDS = ALL_BYTES * 400
BOOTLOADER = [RESET, STRAP, IDLE]
APP = [RESET, IDLE]


async def test_nothing_is_negotiated_and_telnet_commands_are_data(board: PtyBoard) -> None:
    async with serving(board, converse=RawPipe) as served:
        with await TcpClient.connect(served.tcp_port) as client:
            board.start_reading()
            sent = RFC2217_CLIENT + ALL_BYTES * 300
            await client.send(sent)
            await until(lambda: len(board.received) >= len(sent))
            assert board.received == sent
            await board.write(ALL_BYTES * 10)
            await client.receive(lambda: len(client.received) >= 2560)
            assert client.received == ALL_BYTES * 10


async def test_nothing_is_put_into_the_pipe_when_the_board_goes(board: PtyBoard) -> None:
    async with serving(board, converse=RawPipe) as served:
        with await TcpClient.connect(served.tcp_port) as client:
            await served.session()
            await board.write(b"last words")
            await client.receive(lambda: client.received == b"last words")
            board.unplug()
            assert await client.receive_to_end() == b"last words"


async def test_who_gets_no_pipe_is_told_why(board: PtyBoard) -> None:
    async with serving(board, converse=RawPipe) as served:
        with await TcpClient.connect(served.tcp_port) as first:
            await served.session()
            with LoopClock() as clock, await TcpClient.connect(served.tcp_port) as second:
                await until(lambda: len(served.sessions) == 2)
                await pass_silence(lambda: served.sessions)
                assert served.states() == ["active", "waiting"]
                await clock.advance(0.5)
                assert f"in use by {first.name}".encode() in await second.receive_to_end()


@pytest.mark.parametrize(
    ("on_connect", "played"),
    [(OnConnect.NOTHING, []), (OnConnect.BOOTLOADER, BOOTLOADER), (OnConnect.RESET, APP)],
)
async def test_the_board_is_where_its_client_wants_it_before_the_first_byte(
    board: PtyBoard, on_connect: OnConnect, played: list[Lines]
) -> None:
    async with serving(board, converse=RawPipe, on_connect=on_connect) as served:
        before = len(board.lines)
        lines_at_first_byte: list[list[Lines]] = []
        board.start_reading(lambda _: lines_at_first_byte.append(board.lines[before:]))
        with await TcpClient.connect(served.tcp_port) as client:
            await client.send(ALL_BYTES)
            await until(lambda: board.received == ALL_BYTES)
        assert lines_at_first_byte[0] == played
        await served.until_idle()
        assert board.lines[before:] == played


async def test_what_the_board_says_before_its_reset_is_over_is_not_for_the_client(
    board: PtyBoard,
) -> None:
    async with serving(board, converse=RawPipe, on_connect=OnConnect.RESET) as served:
        board.answers.clear()  # the reset hangs
        with await TcpClient.connect(served.tcp_port) as client:
            await until(lambda: served.port.state is PortState.IN_USE)
            await board.write(b"the app before")
            await until(lambda: board.unread_bytes == 0)
            board.answers.set()
            await served.session()
            await board.write(b"boot log")
            await client.receive(lambda: len(client.received) >= 8)
            assert client.received == b"boot log"


LEAVE: list[Callable[[TcpClient], None]] = [
    TcpClient.close,
    TcpClient.reset,
    TcpClient.stop_sending,
]


@pytest.mark.parametrize("leave", LEAVE)
async def test_the_app_is_booted_however_the_client_leaves(
    board: PtyBoard, leave: Callable[[TcpClient], None]
) -> None:
    async with serving(board, converse=RawPipe, on_disconnect=OnDisconnect.RESET) as served:
        before = len(board.lines)
        with await TcpClient.connect(served.tcp_port) as client:
            await client.send(MORE_THAN_A_PTY_HOLDS)
            session = await served.session()
            await until(lambda: session.received_bytes == len(MORE_THAN_A_PTY_HOLDS))
            leave(client)
            await until(lambda: session.state is SessionState.FINISHING)
            await turns(10)
            assert board.lines[before:] == []
            board.start_reading()
            await served.until_idle()
        assert board.received == MORE_THAN_A_PTY_HOLDS
        assert board.lines[before:] == APP


async def test_a_client_that_leaves_during_its_reset_frees_the_board_in_its_app(
    board: PtyBoard,
) -> None:
    async with serving(
        board,
        converse=RawPipe,
        on_connect=OnConnect.BOOTLOADER,
        on_disconnect=OnDisconnect.RESET,
    ) as served:
        board.answers.clear()
        with await TcpClient.connect(served.tcp_port) as client:
            await until(lambda: served.port.state is PortState.IN_USE)
            client.reset()
        await turns(10)
        board.answers.set()
        await served.until_idle()
        assert board.lines[-2:] == APP
        with await TcpClient.connect(served.tcp_port):
            await served.session()
            assert board.lines[-3:] == BOOTLOADER


async def test_a_gateway_that_stops_boots_the_app_as_well(board: PtyBoard) -> None:
    async with serving(board, converse=RawPipe, on_disconnect=OnDisconnect.RESET) as served:
        with await TcpClient.connect(served.tcp_port):
            await served.session()
            await asyncio.gather(served.listener.stop("over"), served.port.stop())
            assert board.lines[-2:] == APP


async def test_a_board_that_goes_during_its_reset_is_no_connection(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, converse=RawPipe, on_connect=OnConnect.RESET) as served:
            board.answers.clear()
            with await TcpClient.connect(served.tcp_port) as client:
                await until(lambda: served.port.state is PortState.IN_USE)
                board.unplug()
                board.answers.set()
                assert (await client.receive_to_end()).startswith(b"desk: ")
    events = [entry["event"] for entry in logs]
    assert "client_refused" in events
    assert "client_connected" not in events


async def test_a_board_that_leaves_the_bus_at_its_reset_keeps_its_client(board: PtyBoard) -> None:
    async with serving(board, grace_s=30, converse=RawPipe, on_connect=OnConnect.RESET) as served:
        board.answers.clear()
        with await TcpClient.connect(served.tcp_port) as client:
            await until(lambda: served.port.state is PortState.IN_USE)
            await client.send(b"waits")
            board.unplug()
            board.answers.set()
            await until(lambda: served.port.state is PortState.OFFLINE)
            board.plug()
            await served.session()
            board.start_reading()
            await until(lambda: board.received == b"waits")
