"""A port that clients connect to: served now or later, how many it takes, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.config.document import Access, Networks
from gateway.net.acceptor import is_free
from gateway.net.access import AcceptOptions, Rejection
from gateway.port_document import PortState
from gateway.session.listener import Listener
from tests.support.pty_board import (
    LoopClock,
    PtyBoard,
    access_server,
    port_config,
    port_of,
    serving,
    turns,
    until,
)
from tests.support.tcp_client import GREETING, SPEAKS_TELNET, TcpClient


@asynccontextmanager
async def listener_without_a_board(
    folder: Path, tcp_port: int = 0, access: Access | None = None
) -> AsyncIterator[Listener]:
    """A listener that has been started; whoever connects is told that no board is there."""
    config = replace(port_config(tcp_port=tcp_port), access=access or Access())
    with PtyBoard(folder, plugged_in=False) as board:
        device = port_of(board)
        device.start()
        await until(lambda: device.state is PortState.ABSENT)
        listener = Listener(config, device, access_server, structlog.get_logger(), AcceptOptions())
        await listener.start()
        try:
            yield listener
        finally:
            await listener.stop("the test is over")
            await device.stop()


async def test_an_address_that_is_in_use_is_served_when_it_is_free(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker, capture_logs() as logs:
        tcp_port = blocker.getsockname()[1]
        async with listener_without_a_board(tmp_path, tcp_port) as listener:
            with LoopClock() as clock:
                for _ in range(10):
                    await clock.advance(5.0)
                assert listener.tcp_port is None
                blocker.close()
                while listener.tcp_port is None:
                    await clock.advance(5.0)
            assert listener.tcp_port == tcp_port
            with await TcpClient.connect(tcp_port) as client:
                assert await client.receive_to_end() == b"desk: absent: not plugged in\r\n"
    events = [entry["event"] for entry in logs if entry["event"].startswith("listen_")]
    # Said once, however often it was tried.
    assert events == ["listen_failed", "listen_started"]


#: What the tests below are served with; one of them has the device.
FEW = Access(max_sessions=4)


async def test_more_connections_than_allowed_are_closed_and_the_others_stay(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs, ExitStack() as connections:
        async with serving(board, access=FEW) as served:
            first = connections.enter_context(await TcpClient.connect(served.tcp_port))
            await first.receive_wire(GREETING)
            with LoopClock() as clock:
                others = [
                    connections.enter_context(await TcpClient.connect(served.tcp_port))
                    for _ in range(6)
                ]
                for other in others[:3]:
                    await other.send(SPEAKS_TELNET)
                for too_many in others[3:]:
                    assert await too_many.receive_to_end() == b""
                await until(lambda: served.states().count("waiting") == 3)
                await clock.advance(0.6)
                for other in others[:3]:
                    assert (await other.receive_to_end()).startswith(b"desk: in use by ")
                    other.close()
                await until(lambda: served.states() == ["active"])
            await board.write(b"undisturbed")
            await first.receive_data(b"undisturbed")
            assert served.listener.rejected == {Rejection.TOO_MANY: 3}
    dropped = [entry for entry in logs if entry["event"] == "client_rejected"]
    assert [(entry["network"], entry["count"], entry["reason"]) for entry in dropped] == [
        ("127.0.0.0/24", 1, "max_sessions reached (4)"),
        ("127.0.0.0/24", 2, "max_sessions reached (4)"),
    ]


async def test_a_client_that_comes_after_a_burst_gets_the_place_of_one_that_ends(
    tmp_path: Path,
) -> None:
    async with listener_without_a_board(tmp_path, access=FEW) as listener:
        assert listener.tcp_port is not None
        with LoopClock(), ExitStack() as connections:  # so that no time passes
            burst = []
            for _ in range(8):
                client = connections.enter_context(await TcpClient.connect(listener.tcp_port))
                await client.send(SPEAKS_TELNET)
                burst.append(client)
            for client in burst:
                assert await client.receive_to_end() == b"desk: absent: not plugged in\r\n"
            assert len(listener._sessions) == 4
            with await TcpClient.connect(listener.tcp_port) as late:
                await late.send(SPEAKS_TELNET)
                assert await late.receive_to_end() == b"desk: absent: not plugged in\r\n"
            assert not listener.rejected


async def test_a_peer_that_is_not_allowed_gets_no_byte_and_no_session(tmp_path: Path) -> None:
    access = Access(allow=Networks((ip_network("192.0.2.0/24"),)))
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, access=access) as served:
            await board.write(b"secret")
            for _ in range(3):
                with await TcpClient.connect(served.tcp_port) as client:
                    assert await client.receive_to_end() == b""
                    assert not client.received
            assert served.port.sessions == 0
            assert served.listener.rejected == {Rejection.NOT_ALLOWED: 3}
    told = [entry for entry in logs if entry["event"].startswith("client_")]
    assert [(entry["event"], entry["network"], entry["count"]) for entry in told] == [
        ("client_rejected", "127.0.0.0/24", 1),
        ("client_rejected", "127.0.0.0/24", 2),
    ]
    assert told[0]["reason"] == "address not in allow"


async def test_a_peer_that_is_allowed_is_served(tmp_path: Path) -> None:
    access = Access(allow=Networks((ip_network("127.0.0.0/8"),)))
    with PtyBoard(tmp_path) as board:
        async with serving(board, access=access) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)


async def test_a_refused_client_that_does_not_hang_up_is_hung_up_on(tmp_path: Path) -> None:
    async with listener_without_a_board(tmp_path) as listener:
        assert listener.tcp_port is not None
        with await TcpClient.connect(listener.tcp_port) as client, LoopClock() as clock:
            await client.send(SPEAKS_TELNET)
            await client.receive_to_end()
            assert len(listener._sessions) == 1
            await clock.advance(1.1)
            await until(lambda: not listener._sessions)


async def test_stopping_tells_a_person_why_and_frees_the_address(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            tcp_port = served.tcp_port
            client = await TcpClient.connect(tcp_port)
            await client.receive_wire(GREETING)
            stopping = asyncio.create_task(served.listener.stop("closing time"))
            with client:
                assert await client.receive_to_end() == b"\r\ndesk: closing time\r\n"
            await stopping
            assert not served.sessions
            assert served.listener.tcp_port is None
            assert is_free("127.0.0.1", tcp_port)


async def test_stopping_is_not_held_up_by_a_client_that_does_not_read_or_hang_up(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port, receive_buffer_bytes=4096) as client:
                await client.receive_wire(GREETING)
                session = await served.session()
                writing = asyncio.create_task(board.write(b"x" * 8_000_000))
                await until(session._transport.get_write_buffer_size)
                await served.listener.stop("closing time")
                assert not served.sessions
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)


@pytest.mark.parametrize("loop_turns", range(6))
async def test_a_connection_that_comes_while_stopping_is_closed(
    tmp_path: Path, loop_turns: int
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await turns(loop_turns)
                await served.listener.stop("closing time")
                assert not served.sessions
                with suppress(ConnectionResetError):  # the kernel had it, and nobody else
                    await client.receive_to_end()
