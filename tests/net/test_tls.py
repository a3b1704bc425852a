"""TLS under a session, over real TCP: nothing is lost, nothing grows, whoever leaves how."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.net.tls import TlsConnection
from gateway.net.tls_context import TlsContext, server_context
from gateway.protocol.access_server import RawPipe
from gateway.sessions.session import SessionState
from tests.sessions.test_session import KEPT_BYTES, MUCH, ONE_READ_BYTES
from tests.support.certificates import Authority
from tests.support.pty_board import LoopClock, PtyBoard, Served, serving, turns, until
from tests.support.tcp_client import GREETING, SPEAKS_TELNET, TcpClient, com_port
from tests.support.telnet_wire import RFC2217_CLIENT
from tests.support.tls_client import TlsClient

#: What TLS keeps on top: one read of records that are not delivered yet.
RECORDS_BYTES = 65536


@asynccontextmanager
async def secured(
    folder: Path, board: PtyBoard, *, raw: bool = True
) -> AsyncIterator[tuple[Served, ssl.SSLContext]]:
    """A board behind TLS, and what its clients use."""
    authority = Authority(folder)
    now = TlsContext(server_context(authority.server()))
    converse = {"converse": RawPipe} if raw else {}
    async with serving(board, tls=now, **converse) as served:  # type: ignore[arg-type]
        yield served, authority.client()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_bytes_go_both_ways_and_nothing_is_lost_at_a_slow_board_or_client(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    with PtyBoard(tmp_path) as board:
        async with secured(tmp_path, board) as (served, context):
            context.maximum_version = version
            with await TlsClient.connect_tls(
                served.tcp_port, context, receive_buffer_bytes=65536
            ) as client:
                session = await served.session()
                sending = asyncio.create_task(client.send(MUCH))
                await until(lambda: session.received_bytes > 65536)
                await turns(300)
                assert session.received_bytes <= KEPT_BYTES
                board.start_reading()
                await sending
                await until(lambda: len(board.received) >= len(MUCH))
                assert board.received == MUCH

                writing = asyncio.create_task(board.write(MUCH))
                await until(session._transport.get_write_buffer_size)
                await turns(300)
                assert session._transport.get_write_buffer_size() <= ONE_READ_BYTES * 2
                await client.receive(lambda: len(client.received) >= len(MUCH))
                await writing
                assert client.received == MUCH


@pytest.mark.parametrize("leaves", ["close_notify", "FIN", "close_notify and FIN"])
async def test_what_a_client_had_sent_before_it_left_reaches_a_slow_board(
    tmp_path: Path, leaves: str
) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with secured(tmp_path, board) as (served, context):
            with await TlsClient.connect_tls(served.tcp_port, context) as client:
                session = await served.session()
                sending = asyncio.create_task(client.send(MUCH))
                # The board takes nothing, so that the connection is paused with records in hand.
                await until(lambda: not session._transport.is_reading())
                board.start_reading()
                await sending
                if "close_notify" in leaves:
                    await client.send_close_notify()
                if "FIN" in leaves:
                    client.stop_sending()
                await client.receive_to_end()
            await served.until_idle()
            await until(lambda: len(board.received) >= len(MUCH))
            assert board.received == MUCH
    (end,) = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert end["reason"] == "left"


async def test_a_client_that_leaves_with_records_in_hand_loses_none(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with secured(tmp_path, board) as (served, context):
            client = await TlsClient.connect_tls(served.tcp_port, context)
            session = await served.session()
            connection = session._transport
            assert isinstance(connection, TlsConnection)
            connection.pause_reading()
            await client.send(b"x" * 200_000)
            await turns(20)
            client.close()
            await turns(20)
            connection.resume_reading()
            board.start_reading()
            await until(lambda: len(board.received) == 200_000)
            await served.until_idle()


async def test_the_last_line_reaches_a_client_that_is_still_sending(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with secured(tmp_path, board, raw=False) as (served, context):
            with await TlsClient.connect_tls(served.tcp_port, context) as client:
                await client.receive_wire(GREETING)
                session = await served.session()
                sending = asyncio.create_task(client.send(b"x" * len(MUCH)))
                await until(lambda: not session._transport.is_reading())
                stopping = asyncio.create_task(served.listener.stop("closing time"))
                said = await client.receive_to_end()
                assert said.endswith(b"\r\ndesk: closing time\r\n")
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            await stopping


async def test_a_refused_client_is_told_why(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with secured(tmp_path, board) as (served, context):
            with await TlsClient.connect_tls(served.tcp_port, context):
                await served.session()
                second = await TlsClient.connect_tls(served.tcp_port, context)
                with second, LoopClock() as clock:
                    await second.send(SPEAKS_TELNET)
                    await until(lambda: served.states() == ["active", "waiting"])
                    await clock.advance(0.6)
                    said = await second.receive_to_end()
            assert said.startswith(b"desk: in use by 127.0.0.1:")
            assert b" (alice) since " in said


async def test_a_client_whose_bytes_are_no_tls_any_more_is_closed(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with secured(tmp_path, board) as (served, context):
            with await TlsClient.connect_tls(served.tcp_port, context) as client:
                await served.session()
                await TcpClient.send(client, b"this is no record at all")
                await until(lambda: not served.sessions)
            await served.until_idle()
    (end,) = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert str(end["reason"]).startswith("tls: ")


async def test_a_client_that_asks_for_new_keys_without_end_and_reads_nothing_is_not_read(
    tmp_path: Path,
) -> None:
    """OpenSSL's Python has no KeyUpdate to send: the answers are put in its place."""
    with PtyBoard(tmp_path) as board:
        async with secured(tmp_path, board) as (served, context):
            with await TlsClient.connect_tls(
                served.tcp_port, context, receive_buffer_bytes=4096
            ) as client:
                session = await served.session()
                connection = session._transport
                assert isinstance(connection, TlsConnection)
                while connection.get_write_buffer_size() <= 1_000_000:
                    connection.write(bytes(100_000))
                    await turns(1)
                await client.send(b"x")
                await until(lambda: session.received_bytes == 1)
                assert not connection._tcp.is_reading()
                await client.receive(lambda: not connection.get_write_buffer_size())
                await until(connection._tcp.is_reading)


async def test_settings_and_lines_work_as_without_tls(tmp_path: Path) -> None:
    set_baudrate = (9600).to_bytes(4, "big")
    with PtyBoard(tmp_path) as board:
        async with secured(tmp_path, board, raw=False) as (served, context):
            with await TlsClient.connect_tls(served.tcp_port, context) as client:
                # In one segment with the end of the handshake, as some clients do.
                await client.send(RFC2217_CLIENT + com_port(1, set_baudrate))
                await client.receive_wire(com_port(101, set_baudrate))
                assert (await served.session()).state is SessionState.ACTIVE
