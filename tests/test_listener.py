"""The TCP socket of a port: bound now or later, how many it takes, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.device import DeviceState
from gateway.listener import MAX_SESSIONS, Listener, is_free
from gateway.session import Session
from tests.support.processes import free_tcp_port
from tests.support.pty_board import (
    LoopClock,
    PtyBoard,
    access_server,
    device_of,
    port_config,
    serving,
    turns,
    until,
)
from tests.support.tcp_client import GREETING, TcpClient


@asynccontextmanager
async def listener_without_a_board(
    folder: Path, tcp_port: int = 0, host: str = "127.0.0.1"
) -> AsyncIterator[Listener]:
    """A listener that has been started; whoever connects is told that no board is there."""
    config = replace(port_config(tcp_port=tcp_port), host=host)
    with PtyBoard(folder, plugged_in=False) as board:
        device = device_of(board)
        device.start()
        await until(lambda: device.state is DeviceState.ABSENT)
        listener = Listener(config, device, access_server, structlog.get_logger())
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
            with LoopClock(listener._device) as clock:
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


async def test_an_address_of_another_machine_is_told_and_tried_again(tmp_path: Path) -> None:
    host = "192.0.2.1"  # TEST-NET-1, RFC 5737
    with capture_logs() as logs:
        async with listener_without_a_board(tmp_path, host=host) as listener:
            assert listener.tcp_port is None
    (failure,) = [entry for entry in logs if entry["event"] == "listen_failed"]
    assert failure["host"] == host
    assert "assign requested address" in failure["reason"]


async def test_more_connections_than_allowed_are_closed_and_the_others_stay(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs, ExitStack() as connections:
        async with serving(board) as served:
            first = connections.enter_context(await TcpClient.connect(served.tcp_port))
            await first.receive_wire(GREETING)
            with LoopClock() as clock:
                others = [
                    connections.enter_context(await TcpClient.connect(served.tcp_port))
                    for _ in range(MAX_SESSIONS)
                ]
                assert await others[-1].receive_to_end() == b""
                await until(lambda: served.states().count("waiting") == MAX_SESSIONS - 1)
                await clock.advance(0.6)
                for other in others[:-1]:
                    assert (await other.receive_to_end()).startswith(b"desk: in use by ")
                    other.close()
                await until(lambda: served.states() == ["active"])
            await board.write(b"undisturbed")
            await first.receive_data(b"undisturbed")
    dropped = [entry for entry in logs if entry["event"] == "client_dropped"]
    assert len(dropped) == 1


async def test_a_refused_client_that_does_not_hang_up_is_hung_up_on(tmp_path: Path) -> None:
    async with listener_without_a_board(tmp_path) as listener:
        assert listener.tcp_port is not None
        with await TcpClient.connect(listener.tcp_port) as client, LoopClock() as clock:
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


async def test_a_session_that_is_closed_before_it_is_connected_ends(tmp_path: Path) -> None:
    # The kernel accepts, then the loop makes the session, then it reports the connection.
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port):
                await until(lambda: served.sessions)
                assert served.states() == ["new"]
                await served.listener.stop("closing time")
                assert not served.sessions
    assert "client_connected" not in {entry["event"] for entry in logs}


async def test_stopping_before_the_address_could_be_bound_is_fine(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker:
        async with listener_without_a_board(tmp_path, blocker.getsockname()[1]) as listener:
            await listener.stop("closing time")
            assert listener.tcp_port is None


async def test_what_the_kernel_had_accepted_is_no_session_after_stopping(tmp_path: Path) -> None:
    async with listener_without_a_board(tmp_path) as listener:
        assert isinstance(listener._accept(), Session)
        listener._sessions.clear()
        await listener.stop("closing time")
        assert not isinstance(listener._accept(), Session)


def test_an_address_is_free_until_somebody_listens() -> None:
    tcp_port = free_tcp_port()
    assert is_free("127.0.0.1", tcp_port)
    with socket.create_server(("127.0.0.1", tcp_port)):
        assert not is_free("127.0.0.1", tcp_port)
    assert is_free("127.0.0.1", tcp_port)
