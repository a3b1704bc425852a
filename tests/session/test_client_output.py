"""What becomes of output that a client does not take: `slow_client`, over real TCP."""

from __future__ import annotations

import asyncio
import random
import socket
from pathlib import Path

from structlog.testing import capture_logs

from gateway.config.document import ClientLimits, SlowClient
from tests.support.pty_board import PtyBoard, Served, serving, turns, until
from tests.support.tcp_client import GREETING, TcpClient, com_port
from tests.support.telnet_wire import ACCEPTS_COM_PORT

FLOOD = random.Random(2).randbytes(1_000_000).replace(b"\xff", b"\xfe")
KEPT_BYTES = 100 * 1024
PURGE_WHAT_IS_RECEIVED = com_port(12, b"\x01")
SUSPEND, RESUME = com_port(8), com_port(9)


def limits(slow_client: SlowClient) -> ClientLimits:
    return ClientLimits(slow_client=slow_client, client_buffer_kib=100)


async def slow_client_of(served: Served) -> TcpClient:
    """A client for which the kernel keeps little."""
    client = await TcpClient.connect(served.tcp_port, receive_buffer_bytes=4096)
    await client.receive_wire(GREETING)
    await client.send(ACCEPTS_COM_PORT)  # data is escaped as for a terminal otherwise
    session = await served.session()
    await until(lambda: session.received_bytes == len(ACCEPTS_COM_PORT))
    connection = session._transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return client


async def test_the_oldest_is_dropped_counted_and_told_and_the_board_never_waits(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, limits=limits(SlowClient.DROP_OLDEST)) as served:
            with await slow_client_of(served) as slow:
                await board.write(FLOOD)
                await until(lambda: served.port.received_bytes == len(FLOOD))
                dropped_bytes = served.port.counts.output_dropped_bytes
                assert dropped_bytes > 0
                await slow.receive(lambda: slow.data.endswith(FLOOD[-KEPT_BYTES:]))
                assert len(slow.data) == len(FLOOD) - dropped_bytes
                sent = iter(FLOOD)
                assert all(byte in sent for byte in slow.data)  # in order
                await board.write(b"and on")
                await slow.receive(lambda: slow.data.endswith(b"and on"))
            await served.until_idle()
    (told,) = [entry for entry in logs if entry["event"] == "output_dropped"]
    assert told["client"]
    (end,) = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert end["dropped_bytes"] == dropped_bytes


async def test_a_client_that_suspends_its_output_is_waited_for_whatever_becomes_of_slow_ones(
    tmp_path: Path,
) -> None:
    said = FLOOD[:300_000]  # more than is kept for a slow client
    with PtyBoard(tmp_path) as board:
        async with serving(board, limits=limits(SlowClient.DROP_OLDEST)) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)
                await client.send(ACCEPTS_COM_PORT + SUSPEND)
                session = await served.session()
                await until(lambda: session._output.is_suspended)
                writing = asyncio.create_task(board.write(said))
                await until(lambda: board.unread_bytes)
                await turns(100)
                assert not writing.done()
                await client.send(RESUME)
                await client.receive(lambda: len(client.data) >= len(said))
                await writing
                assert client.data == said
            assert served.port.counts.output_dropped_bytes == 0


async def test_a_client_that_does_not_take_the_output_is_closed(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, limits=limits(SlowClient.DISCONNECT)) as served:
            with await slow_client_of(served) as slow:
                await board.write(FLOOD)
                await until(lambda: not served.active)
                await served.until_idle()
                await until(lambda: served.port.received_bytes == len(FLOOD))
                assert served.port.counts.output_dropped_bytes == 0
                slow.close()
    (end,) = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert (end["reason"], end["log_level"]) == ("does not take the board's output", "warning")


async def test_a_slow_client_is_kept_while_its_buffer_has_room(tmp_path: Path) -> None:
    sent_bytes = 0
    with PtyBoard(tmp_path) as board:
        async with serving(board, limits=limits(SlowClient.DISCONNECT)) as served:
            with await slow_client_of(served) as slow:
                session = await served.session()
                while not session._output.kept_bytes:
                    assert served.active == [session]
                    await board.write(b"x" * 1000)
                    sent_bytes += 1000
                    await until(lambda: served.port.received_bytes == sent_bytes)  # noqa: B023
                assert served.active == [session]
                await slow.receive(lambda: len(slow.data) == sent_bytes)
                assert served.port.counts.output_dropped_bytes == 0


async def test_what_is_kept_for_a_client_can_be_purged(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, limits=limits(SlowClient.DROP_OLDEST)) as served:
            with await slow_client_of(served) as slow:
                session = await served.session()
                await board.write(FLOOD)
                await until(lambda: served.port.received_bytes == len(FLOOD))
                assert session._output.kept_bytes
                await slow.send(PURGE_WHAT_IS_RECEIVED)
                await until(lambda: not session._output.kept_bytes)
                await slow.receive_wire(com_port(112, b"\x01"))
                await board.write(b"new")
                await slow.receive(lambda: slow.data.endswith(b"new"))
                assert FLOOD[-1000:] not in slow.data
