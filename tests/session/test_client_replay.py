"""New clients get what was recorded before they came, to the byte, over real TCP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import serial

from gateway.config.document import ClientLimits, Recording, Sharing
from gateway.protocol.access_server import RawPipe
from gateway.session.requests import Conversation
from tests.support.pty_board import (
    LoopClock,
    PtyBoard,
    Served,
    access_server,
    pass_silence,
    serving,
    until,
)
from tests.support.tcp_client import GREETING, TcpClient, com_port
from tests.support.telnet_wire import ACCEPTS_COM_PORT, RFC2217_CLIENT

#: All that a byte can be, telnet's IAC among them.
CRASH = bytes(range(256)) * 8 + b"Guru Meditation Error: Core 0 panic'ed\r\n"
REBOOT = b"rst:0xc (SW_CPU_RESET)\r\n" + bytes(range(255, -1, -1))


@asynccontextmanager
async def crashed(
    folder: Path,
    converse: Callable[[], Conversation] = access_server,
    *,
    replay: bool = True,
    recording: Recording | None = None,
    sharing: Sharing = Sharing.EXCLUSIVE,
) -> AsyncIterator[tuple[PtyBoard, Served]]:
    """A board that has crashed while nobody was connected."""
    limits = ClientLimits(replay=replay)
    with PtyBoard(folder) as board:
        async with serving(
            board, converse=converse, limits=limits, recording=recording, sharing=sharing
        ) as served:
            await board.write(CRASH)
            await until(lambda: served.port.received_bytes == len(CRASH))
            yield board, served


async def say(board: PtyBoard, served: Served, data: bytes) -> None:
    """The board says more, and the gateway has heard it."""
    heard_bytes = served.port.received_bytes + len(data)
    await board.write(data)
    await until(lambda: served.port.received_bytes == heard_bytes)


@pytest.mark.parametrize("converse", [access_server, RawPipe], ids=["telnet", "raw"])
async def test_a_plain_client_gets_past_and_present_in_order_and_once(
    tmp_path: Path, converse: Callable[[], Conversation]
) -> None:
    async with crashed(tmp_path, converse) as (board, served):
        with LoopClock() as clock, await TcpClient.connect(served.tcp_port) as client:
            await served.session()
            await say(board, served, REBOOT)
            await clock.advance(0.45)
            assert not (converse is RawPipe and client.has_more())
            await clock.advance(0.1)
            await say(board, served, b"ready")

            def got() -> bytes:
                return bytes(client.received) if converse is RawPipe else client.data

            await client.receive(lambda: got().endswith(b"ready"))
            assert got() == CRASH + REBOOT + b"ready"
        await served.until_idle()


async def test_without_replay_a_client_gets_the_present_alone(tmp_path: Path) -> None:
    async with crashed(tmp_path, RawPipe, replay=False) as (board, served):
        with await TcpClient.connect(served.tcp_port) as client:
            await served.session()
            await say(board, served, REBOOT)
            await client.receive(lambda: client.received.endswith(REBOOT))
            assert client.received == REBOOT


async def test_who_sends_data_at_once_gets_the_present_alone(tmp_path: Path) -> None:
    async with crashed(tmp_path, RawPipe) as (board, served):
        board.start_reading()
        with await TcpClient.connect(served.tcp_port) as client:
            await served.session()
            await say(board, served, REBOOT)
            await client.send(b"\xc0sync")
            await until(lambda: board.received == b"\xc0sync")
            await say(board, served, b"answer")
            await client.receive(lambda: client.received.endswith(b"answer"))
            assert client.received == REBOOT + b"answer"


async def test_what_a_client_purges_is_not_an_answer_for_it(tmp_path: Path) -> None:
    async with crashed(tmp_path) as (board, served):
        board.start_reading()
        with await TcpClient.connect(served.tcp_port) as client:
            await client.send(RFC2217_CLIENT + ACCEPTS_COM_PORT)
            await served.session()
            await say(board, served, REBOOT)
            await client.send(com_port(12, b"\x01"))
            await client.receive_wire(com_port(112, b"\x01"))
            await say(board, served, b"new")
            await client.send(b"\xc0sync")
            await client.receive(lambda: client.data.endswith(b"new"))
            assert client.data == b"new"


async def test_who_is_closed_before_gets_it_first(tmp_path: Path) -> None:
    async with crashed(tmp_path, RawPipe) as (board, served):
        with LoopClock(), await TcpClient.connect(served.tcp_port) as client:
            await served.session()
            await say(board, served, REBOOT)
            board.unplug()
            await client.receive_to_end()
            assert client.received == CRASH + REBOOT


async def test_who_leaves_before_is_not_waited_for(tmp_path: Path) -> None:
    async with crashed(tmp_path, RawPipe) as (board, served):
        with LoopClock() as clock:
            client = await TcpClient.connect(served.tcp_port)
            await served.session()
            client.close()
            await served.until_idle()
            await clock.advance(5.0)
            await say(board, served, REBOOT)


async def test_each_of_several_clients_gets_the_past(tmp_path: Path) -> None:
    async with crashed(tmp_path, RawPipe, sharing=Sharing.SHARED) as (board, served):
        with (
            LoopClock() as clock,
            await TcpClient.connect(served.tcp_port) as first,
            await TcpClient.connect(served.tcp_port) as second,
        ):
            await until(lambda: len(served.sessions) == 2)
            await pass_silence(lambda: served.sessions)
            await clock.advance(0.51)
            await say(board, served, REBOOT)
            await first.receive(lambda: first.received.endswith(REBOOT))
            await second.receive(lambda: second.received.endswith(REBOOT))
            assert first.received == second.received == CRASH + REBOOT


async def test_what_is_replayed_is_what_is_recorded(tmp_path: Path) -> None:
    recording = Recording(record_kib=1)
    async with crashed(tmp_path, RawPipe, recording=recording) as (_, served):
        with LoopClock() as clock, await TcpClient.connect(served.tcp_port) as client:
            await served.session()
            await clock.advance(0.51)
            await client.receive(lambda: client.received)
            assert client.received == CRASH[-1024:]


async def test_output_that_is_suspended_before_is_not_sent_then(tmp_path: Path) -> None:
    async with crashed(tmp_path) as (board, served):
        with LoopClock() as clock, await TcpClient.connect(served.tcp_port) as client:
            await served.session()
            await client.receive_wire(GREETING)
            await client.send(RFC2217_CLIENT + ACCEPTS_COM_PORT + com_port(8))
            session = await served.session()
            await until(lambda: session._output.is_suspended)
            await clock.advance(60.0)
            await board.write(REBOOT)
            await client.send(com_port(9))
            await client.receive(lambda: len(client.data) >= len(REBOOT))
            assert client.data == REBOOT


async def test_pyserials_client_gets_past_and_present_to_the_byte(tmp_path: Path) -> None:
    """Though its open() ends with a purge and drops all that it has received before."""
    async with crashed(tmp_path) as (board, served):
        url = f"rfc2217://127.0.0.1:{served.tcp_port}"
        client = await asyncio.to_thread(serial.serial_for_url, url, timeout=20)
        try:
            await say(board, served, REBOOT)
            expected = CRASH + REBOOT
            assert await asyncio.to_thread(client.read, len(expected)) == expected
            await say(board, served, b"ready")
            assert await asyncio.to_thread(client.read, 5) == b"ready"
        finally:
            await asyncio.to_thread(client.close)
        await served.until_idle()
