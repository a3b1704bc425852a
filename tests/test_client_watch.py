"""Clients that move no byte, and clients that do not read: over real TCP."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway import client_watch
from gateway.client_socket import USER_TIMEOUT_MS, TcpLink
from gateway.config_choices import ClientLimits
from tests.support.pty_board import LoopClock, PtyBoard, serving, turns, until
from tests.support.tcp_client import GREETING, TcpClient

IDLE = ClientLimits(idle_timeout_s=60.0)


def user_timeout_ms(connection: socket.socket) -> int:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)


async def test_a_client_without_a_byte_either_way_is_told_and_closed(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, limits=IDLE) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)
                await served.session()
                with LoopClock() as clock:
                    for _ in range(14):
                        await clock.advance(4.0)
                    assert served.active
                    await clock.advance(4.0)
                    assert not served.active
                assert await client.receive_to_end() == b"\r\ndesk: no byte for 60 s\r\n"
            await served.until_idle()
    (end,) = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert end["reason"] == "no byte for 60 s"


@pytest.mark.parametrize("from_board", [True, False])
async def test_a_byte_either_way_starts_the_time_anew(tmp_path: Path, from_board: bool) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, limits=IDLE) as served:
            board.start_reading()
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)
                session = await served.session()
                with LoopClock() as clock:
                    for _ in range(40):
                        before = session.received_bytes + session.sent_bytes
                        await (board.write(b"x") if from_board else client.send(b"x"))
                        await until(lambda: session.received_bytes + session.sent_bytes > before)  # noqa: B023
                        await clock.advance(4.0)
                    assert served.active


async def test_without_the_key_nobody_is_idle(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)
                await served.session()
                with LoopClock() as clock:
                    for _ in range(50):
                        await clock.advance(3600.0)
                    assert served.active


async def test_the_kernel_is_kept_from_ending_a_client_that_only_does_not_read(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port, receive_buffer_bytes=4096) as client:
                await client.receive_wire(GREETING)
                session = await served.session()
                connection = session._transport.get_extra_info("socket")
                with LoopClock() as clock:
                    await clock.advance(4.0)
                    assert user_timeout_ms(connection) == USER_TIMEOUT_MS
                    writing = asyncio.create_task(board.write(b"x" * 200_000))
                    await writing
                    # The bytes on their way are acknowledged; what is left has no room over there.
                    for _ in range(1000):
                        await turns(10)
                        await clock.advance(4.0)
                        if user_timeout_ms(connection) == 0:
                            break
                    assert user_timeout_ms(connection) == 0
                    await client.receive(lambda: len(client.data) == 200_000)
                    await clock.advance(4.0)
                    assert user_timeout_ms(connection) == USER_TIMEOUT_MS


@pytest.mark.parametrize(
    ("silence_s", "unanswered", "is_dead"), [(12.9, 9, False), (99.0, 1, False), (13.0, 2, True)]
)
async def test_a_client_has_died_when_nothing_is_heard_of_it_though_it_was_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    silence_s: float,
    unanswered: int,
    is_dead: bool,
) -> None:
    link = TcpLink(silence_s, unanswered, is_unacked=False, unsent_bytes=0)
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)
                await served.session()
                monkeypatch.setattr(client_watch, "tcp_link", lambda _: link)
                with LoopClock() as clock:
                    await clock.advance(4.0)
                    assert bool(served.active) is not is_dead
            await served.until_idle()
    (end,) = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert (end["reason"] == "no answer for 13 s") is is_dead
