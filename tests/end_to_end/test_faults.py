"""Bad networks and bad boards: the exact bytes at both ends, and a neighbour that sees nothing.

Where the test itself plays the board it knows both ends to the byte. What a pty can't show: at a
hang-up the kernel drops what the gateway has not read of it, so "all that the board had sent" is
taken as all that the gateway had read.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.port_document import PortState
from gateway.simulator.board import PROMPT, pattern
from tests.support.delay_proxy import DelayProxy
from tests.support.lab import Lab, LabBoard
from tests.support.processes import START_LIMIT_S
from tests.support.pty_board import PtyBoard, Served, serving, until
from tests.support.tcp_client import (
    GREETED_ACCEPTS_COM_PORT,
    GREETING,
    TcpClient,
    data_of,
    data_so_far,
)
from tests.support.telnet_wire import RFC2217_CLIENT

UP = random.Random(1).randbytes(200_000)
DOWN = random.Random(2).randbytes(200_000)
#: More than the kernel and the gateway take of a client whose board does not read.
MUCH = random.Random(3).randbytes(6_000_000)
#: What the next client sends.
MARK = b"for the board"


def doubled(data: bytes) -> bytes:
    return data.replace(b"\xff", b"\xff\xff")


async def rfc2217_client(tcp_port: int) -> TcpClient:
    client = await TcpClient.connect(tcp_port, receive_buffer_bytes=4096)
    await client.send(RFC2217_CLIENT)
    await client.receive_wire(GREETING + GREETED_ACCEPTS_COM_PORT)
    return client


def new_folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


@asynccontextmanager
async def neighbour(folder: Path) -> AsyncIterator[None]:
    """A session on another board, which echoes; it goes on all the time and loses nothing."""
    rounds = 0
    is_over = False

    async def talk(client: TcpClient) -> None:
        nonlocal rounds
        said = b""
        while not is_over:
            line = random.Random(rounds).randbytes(500)
            said += line
            await client.send(doubled(line))
            await client.receive_data(said)
            rounds += 1

    with PtyBoard(folder) as board:
        async with serving(board, "other") as served:
            board.start_echoing()
            with await rfc2217_client(served.tcp_port) as client:
                talking = asyncio.create_task(talk(client))
                try:
                    await until(lambda: rounds > 0 or talking.done())
                    yield
                    before = rounds
                    await until(lambda: rounds > before + 1 or talking.done())
                finally:
                    is_over = True
                    await talking


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[tuple[PtyBoard, Served]]:
    """A board that the test plays, beside a neighbour."""
    async with neighbour(new_folder(folder, "other")):
        with PtyBoard(new_folder(folder, "desk")) as board:
            async with serving(board) as served:
                yield board, served


async def check_next_client(board: PtyBoard, served: Served, sent: bytes) -> None:
    """A beginning of what was sent, then the next client's bytes, and no others; the same back.

    The test's end of the pty may be read later than the port is free.
    """
    await served.until_idle()
    with await rfc2217_client(served.tcp_port) as client:
        await client.send(MARK)
        await until(lambda: board.received.endswith(MARK))
        await board.write(b"for the client")
        await client.receive_data(b"for the client")
    await served.until_idle()
    assert sent.startswith(board.received.removesuffix(MARK))


async def carry_both_ways(
    board: PtyBoard, client: TcpClient, up: bytes = UP, down: bytes = DOWN
) -> None:
    """All of it arrives, at both ends, as it was sent."""
    async with asyncio.TaskGroup() as group:
        group.create_task(client.send(doubled(up)))
        group.create_task(board.write(down))
        group.create_task(client.receive_data(down))
    await until(lambda: len(board.received) >= len(up))
    assert board.received == up


# --- networks


async def test_a_network_that_delays_and_jitters_loses_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path) as (board, served):
        board.start_reading()
        with (
            DelayProxy(served.tcp_port, delay_s=0.02, jitter_s=0.03) as proxy,
            await rfc2217_client(proxy.port) as client,
        ):
            await carry_both_ways(board, client)
        await check_next_client(board, served, UP)


async def test_segments_of_one_byte_carry_commands_and_data_unchanged(tmp_path: Path) -> None:
    up = bytes(range(256)) + b"\xff" * 9 + UP[:500]
    async with desk(tmp_path) as (board, served):
        board.start_reading()
        with (
            DelayProxy(served.tcp_port, delay_s=0.0, trickle_s=0.0005) as proxy,
            await rfc2217_client(proxy.port) as client,
        ):
            await carry_both_ways(board, client, up, DOWN[:1000])
        await check_next_client(board, served, up)


async def test_a_reset_in_the_middle_leaves_a_clean_beginning_at_both_ends(tmp_path: Path) -> None:
    async with desk(tmp_path) as (board, served):
        board.start_reading()
        with (
            DelayProxy(served.tcp_port, delay_s=0.01) as proxy,
            await rfc2217_client(proxy.port) as client,
        ):
            sending = asyncio.create_task(client.send(doubled(MUCH)))
            await board.write(DOWN[:5000])
            await client.receive_data(DOWN[:5000])
            await until(lambda: len(board.received) > 50_000)
            proxy.reset()
            await asyncio.gather(sending, return_exceptions=True)
            await served.until_idle()
        await check_next_client(board, served, MUCH)


async def test_a_cut_network_keeps_what_had_passed_and_nothing_else(tmp_path: Path) -> None:
    async with desk(tmp_path) as (board, served):
        board.start_reading()
        with (
            DelayProxy(served.tcp_port, delay_s=0.01) as proxy,
            await rfc2217_client(proxy.port) as client,
        ):
            sending = asyncio.create_task(client.send(doubled(MUCH)))
            await until(lambda: len(board.received) > 50_000)
            proxy.cut()
            await board.write(DOWN[:5000])
            # The gateway still has its client; nobody has told it anything.
            assert [session.state for session in served.active]
            proxy.reset()
            await asyncio.gather(sending, return_exceptions=True)
            await served.until_idle()
            assert client.data == b""
        await check_next_client(board, served, MUCH)


async def test_what_a_client_sent_before_it_closed_arrives_before_the_port_is_free(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as (board, served):
        with DelayProxy(served.tcp_port, delay_s=0.02) as proxy:
            with await rfc2217_client(proxy.port) as client:
                await client.send(doubled(UP))
                # Were its other end closed too, what is on its way there would come back as a
                # reset, which may overtake the bytes.
                client.stop_sending()
                await until(lambda: proxy.held_ends() == (0, 0))
                assert served.port.state is not PortState.IDLE
                board.start_reading()
                await client.receive_to_end()
            await served.until_idle()
            # Written before it is free; the test may read the last of it a moment later.
            await until(lambda: len(board.received) >= len(UP))
        assert board.received == UP
        await check_next_client(board, served, UP)


# --- the real service with simulated boards


def connect(board: LabBoard) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", board.tcp_port), timeout=START_LIMIT_S)
    client.sendall(RFC2217_CLIENT)
    return client


def read_until(client: socket.socket, end: bytes) -> bytes:
    """The board's bytes up to `end`; all until the gateway hangs up if that comes first."""
    received = b""
    while end not in data_so_far(received) and (chunk := client.recv(65536)):
        received += chunk
    return data_of(received)


def assert_answers(client: socket.socket, n_bytes: int) -> None:
    client.sendall(b"bytes %d\r" % n_bytes)
    answer = b"bytes %d\r\n" % n_bytes + pattern(n_bytes) + b"\r\n" + PROMPT
    assert read_until(client, answer).endswith(answer)


def test_a_board_unplugged_in_its_output_is_back_for_the_next_client(tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": "heartbeat_s=0", "other": "heartbeat_s=0"}) as lab:
        board, other = lab.boards["desk"], lab.boards["other"]
        for each in lab.boards.values():
            each.wait_for_app()
        with connect(other) as bystander:
            with connect(board) as client:
                client.sendall(b"bytes 200000\r")
                said = read_until(client, pattern(2000))
                assert board.ask("unplug") == "ok"
                # `said` ends inside the pattern: the rest follows until the gateway hangs up.
                said += read_until(client, b"never said")
            assert_answers(bystander, 3000)
            output = said.partition(b"bytes 200000\r\n")[2]
            assert len(output) >= 2000
            assert pattern(200_000).startswith(output)
            assert board.ask("plug") == "ok"
            lab.service.wait_for_line(r'"device": "desk".*"event": "device_opened"', count=2)
            board.wait_for(lambda log: [entry["event"] for entry in log].count("app_started") == 2)
            with connect(board) as client:
                assert_answers(client, 3000)
            assert_answers(bystander, 3000)
        assert other.boots() == ["app"]
