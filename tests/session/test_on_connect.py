"""`on_connect` and `on_disconnect` of RFC 2217 ports: for which client, when, and how often."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.document import OnConnect, OnDisconnect, Sharing
from gateway.port_document import PortState
from gateway.protocol.reset import BOTH, IDLE, RESET, STRAP, Lines
from gateway.protocol.rfc2217 import Control
from tests.session.test_session import control, rfc2217_client, settled
from tests.support.pty_board import PtyBoard, serving, until
from tests.support.tcp_client import TcpClient

BOOTLOADER = [RESET, STRAP, IDLE]
APP = [RESET, IDLE]


@pytest.mark.parametrize(
    ("on_connect", "played"), [(OnConnect.BOOTLOADER, BOOTLOADER), (OnConnect.RESET, APP)]
)
async def test_the_board_is_reset_before_the_first_command_and_byte_of_its_client(
    tmp_path: Path, on_connect: OnConnect, played: list[Lines]
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, on_connect=on_connect) as served:
            before = len(board.lines)
            lines_at_first_byte: list[list[Lines]] = []
            board.start_reading(lambda _: lines_at_first_byte.append(board.lines[before:]))
            board.answers.clear()  # the reset hangs while the client sends
            with await TcpClient.connect(served.tcp_port) as client:
                opened = control(Control.DTR_ON) + control(Control.RTS_ON)
                await client.send(opened + b"hello")
                await until(lambda: served.port.state is PortState.IN_USE)
                assert client.received == b""
                board.answers.set()
                await until(lambda: board.received == b"hello")
            await served.until_idle()
            assert lines_at_first_byte[0] == [*played, BOTH]
            assert board.lines[before:] == [*played, BOTH, IDLE]


async def test_the_client_gets_the_board_s_output_from_its_reset_on(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, on_connect=OnConnect.RESET) as served:
            with await rfc2217_client(served) as client:
                await board.write(b"ets Jul 29 2019")
                await client.receive(lambda: client.data == b"ets Jul 29 2019")


async def test_each_client_that_connects_later_finds_the_board_reset_again(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, on_connect=OnConnect.RESET) as served:
            for _ in range(2):
                before = len(board.lines)
                with await rfc2217_client(served):
                    assert board.lines[before:] == APP
                await served.until_idle()


async def test_the_app_is_started_once_its_last_client_has_disconnected(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, on_disconnect=OnDisconnect.RESET) as served:
            before = len(board.lines)
            with await rfc2217_client(served) as client:
                await client.send(control(Control.DTR_ON) + control(Control.RTS_ON))
                await until(lambda: board.lines[before:] == [BOTH])
            await served.until_idle()
            assert board.lines[before:] == [BOTH, *APP]


async def test_a_client_that_resumes_does_not_reset_the_board(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(
            board,
            sharing=Sharing.PREEMPT,
            on_connect=OnConnect.RESET,
            on_disconnect=OnDisconnect.RESET,
        ) as served:
            with await rfc2217_client(served) as monitor:
                before = len(board.lines)
                with await rfc2217_client(served) as flasher:
                    assert board.lines[before:] == APP  # for the newcomer, on its arrival
                    await settled(flasher)
                await client_controls(monitor)
                assert board.lines[before:] == APP * 2  # and when it has disconnected
            await served.until_idle()
            assert board.lines[before:] == APP * 3


async def client_controls(client: TcpClient) -> None:
    """Wait until a client that was suspended has the port again."""
    await client.receive(lambda: b"control returned to you ---" in client.data)
    await settled(client)


async def test_a_client_whose_board_is_replugged_does_not_reset_it(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, grace_s=30, on_connect=OnConnect.RESET) as served:
            with await rfc2217_client(served) as client:
                board.unplug()
                await until(lambda: served.port.state is PortState.OFFLINE)
                before = len(board.lines)
                board.plug()
                await until(lambda: served.port.state is PortState.IN_USE)
                await settled(client)
                assert board.lines[before:] == [BOTH, IDLE]  # what opening a tty does


async def test_a_client_that_joins_others_does_not_reset_their_board(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(
            board,
            sharing=Sharing.SHARED,
            on_connect=OnConnect.RESET,
            on_disconnect=OnDisconnect.RESET,
        ) as served:
            with await rfc2217_client(served):
                before = len(board.lines)
                with await rfc2217_client(served) as second:
                    await settled(second)
                await until(lambda: len(served.sessions) == 1)
                assert board.lines[before:] == []
            await served.until_idle()
            assert board.lines[before:] == APP  # the last has disconnected
            with await rfc2217_client(served):
                assert board.lines[before:] == APP * 2


async def test_a_client_that_takes_over_finds_the_board_reset(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(
            board, sharing=Sharing.TAKEOVER, on_connect=OnConnect.BOOTLOADER
        ) as served:
            with await rfc2217_client(served):
                before = len(board.lines)
                with await rfc2217_client(served):
                    assert board.lines[before:] == BOOTLOADER
