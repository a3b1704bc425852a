"""Clients that move no byte, do not read, or stop in the midst of a command: over real TCP."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.config.document import ClientLimits
from gateway.net.client_socket import USER_TIMEOUT_MS, TcpLink
from gateway.protocol.access_server import RawPipe
from gateway.protocol.telnet_stream import MAX_SUBNEGOTIATION_BYTES
from gateway.session import liveness as client_watch
from gateway.session.session import Session
from tests.support.pty_board import LoopClock, PtyBoard, serving, turns, until
from tests.support.tcp_client import GREETING, SPEAKS_TELNET, TcpClient
from tests.support.telnet_wire import will

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
                await client.send(SPEAKS_TELNET)
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


#: What a client may begin and never end: a lone IAC, a negotiation, a subnegotiation, and one that
#: lacks only its SE.
UNFINISHED = [b"\xff", b"\xff\xfb", b"\xff\xfa\x2c\x01", b"\xff\xfa\x2c\x01\0\0\x25\x80\xff"]


async def received(session: Session, client: TcpClient, data: bytes) -> None:
    before = session.received_bytes
    await client.send(data)
    await until(lambda: session.received_bytes == before + len(data))


@pytest.mark.parametrize("unfinished", UNFINISHED)
async def test_a_command_that_is_never_finished_ends_the_session_and_frees_the_port(
    tmp_path: Path, unfinished: bytes
) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            board.start_reading()
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)
                session = await served.session()
                await received(session, client, b"data" + unfinished)
                with LoopClock() as clock:
                    for _ in range(3):
                        await board.write(b"x")  # that the board talks is no sign of the client
                        await clock.advance(4.0)
                    assert served.active
                    await clock.advance(4.0)
                    assert not served.active
                assert (await client.receive_to_end()).endswith(
                    b"\r\ndesk: left a telnet command unfinished\r\n"
                )
            await served.until_idle()
            with await TcpClient.connect(served.tcp_port) as following:
                await following.receive_wire(GREETING)
                await following.send(b"next")
                await until(lambda: board.received.endswith(b"next"))
    ended = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert (ended[0]["reason"], ended[0]["log_level"]) == (
        "left a telnet command unfinished",
        "warning",
    )
    assert board.received == b"datanext"


async def test_a_command_may_come_a_byte_at_a_time_as_long_as_they_come(tmp_path: Path) -> None:
    baudrate = bytes([255, 250, 44, 1, 0, 0, 0x25, 0x80, 255, 240])
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)
                session = await served.session()
                await received(session, client, will(44))
                with LoopClock() as clock:
                    for octet in baudrate:
                        await received(session, client, bytes([octet]))
                        await clock.advance(4.0)
                        await clock.advance(4.0)
                        assert served.active
                    for _ in range(10):  # it is whole: the client may say nothing for ever
                        await clock.advance(4.0)
                    assert served.active
                await client.receive_wire(bytes([255, 250, 44, 101, 0, 0, 0x25, 0x80, 255, 240]))


async def test_a_command_that_trickles_on_without_end_comes_to_its_longest(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)
                session = await served.session()
                await received(session, client, b"\xff\xfa\x2c")
                with LoopClock() as clock:
                    for _ in range(MAX_SUBNEGOTIATION_BYTES - 1):
                        await received(session, client, b"x")
                        await clock.advance(4.0)
                    assert served.active
                    await client.send(b"x")
                    await until(lambda: not served.active)
                await client.receive_to_end()
            await served.until_idle()
    (end,) = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert end["reason"] == "subnegotiation longer than 256 bytes"


async def test_the_rest_of_a_command_may_wait_while_the_client_is_not_read(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)
                session = await served.session()
                await received(session, client, b"\xff\xfa\x2c")
                session._transport.pause_reading()
                with LoopClock() as clock:
                    for _ in range(10):
                        await clock.advance(4.0)
                    assert served.active
                    session._transport.resume_reading()
                    for _ in range(2):
                        await clock.advance(4.0)
                    assert served.active
                    for _ in range(2):
                        await clock.advance(4.0)
                    assert not served.active


async def test_a_raw_port_has_no_commands(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=RawPipe) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                session = await served.session()
                await received(session, client, b"\xff\xfa\x2c")
                with LoopClock() as clock:
                    for _ in range(10):
                        await clock.advance(4.0)
                    assert served.active


async def test_a_client_that_has_left_is_looked_at_no_longer_while_its_bytes_go_out(
    tmp_path: Path,
) -> None:
    n_bytes = 300_000  # more than the gateway gives a board ahead
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=RawPipe) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(bytes(n_bytes))
                session = await served.session()
                await until(lambda: session.received_bytes == n_bytes)
                client.reset()
                await until(lambda: session.is_leaving)
            with LoopClock() as clock:
                for _ in range(9):
                    await clock.advance(1.0)
            assert session.is_leaving
            board.start_reading()
            await until(lambda: len(board.received) == n_bytes)
            await served.until_idle()
