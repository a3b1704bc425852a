"""Clients that ask for more than a turn of the loop has time for, beside one that only talks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.config.document import Sharing
from gateway.net.tls_context import TlsContext, server_context
from gateway.port_document import PortState
from gateway.protocol.rfc2217 import Control
from tests.session.test_session import control, rfc2217_client
from tests.support.certificates import Authority
from tests.support.pty_board import LoopClock, PtyBoard, Served, serving, turns, until
from tests.support.tcp_client import TcpClient, com_port
from tests.support.telnet_wire import (
    AO,
    AYT,
    BRK,
    NOP,
    RFC2217_CLIENT,
    SE,
    command,
    do,
    subnegotiation,
)
from tests.support.tls_client import TlsClient

#: What one read of a client may bring.
READ_BYTES = 65536

#: CPU of one turn of the loop, the test's own part included. Floods take 1 to 3 ms of it here; what
#: they took before they were cut into slices was 50 to 2,200 ms.
TURN_LIMIT_S = 0.05

#: Turns of more than BUSY_S from a byte of the other client to its echo. It takes some 5; the
#: others are those that the kernel's own worker needs to get the byte through a tty, each way.
ECHO_TURNS = 60
BUSY_S = 0.0002

FLOODS = {
    "data and purges": b"x" + com_port(12, b"\x02"),
    "purges of both": com_port(12, b"\x03"),
    "data and purges of both": b"xyz" + com_port(12, b"\x03"),
    "AYT": command(AYT),
    "AO": command(AO),
    "NOP": command(NOP),
    "data and NOP": b"x" + command(NOP),
    "bare subnegotiations": subnegotiation(b"\x2c"),
    "suspend and resume": com_port(8) + com_port(9),
    "modem states": com_port(7),
    "line states": com_port(6),
    "signatures": com_port(0),
    "client's signatures": com_port(0, b"x"),
    "masks": com_port(11, b"\x00") + com_port(11, b"\xff"),
    "DTR?": control(Control.REQUEST_DTR),
    "DTR": control(Control.DTR_ON) + control(Control.DTR_OFF),
    "resets": control(Control.RTS_ON) + control(Control.RTS_OFF),
    "baud rates": com_port(1, b"\0\0\x25\x80") + com_port(1, b"\0\0\x4b\0"),
    "breaks": control(Control.BREAK_ON) + control(Control.BREAK_OFF),
    "telnet breaks": command(BRK),
    "data and telnet breaks": b"x" + command(BRK),
    "negotiations": do(200),
    "IAC SE": command(SE),
    "all at once": b"x"
    + com_port(12, b"\x02")
    + command(AYT)
    + com_port(7)
    + com_port(8)
    + com_port(9),
}


@dataclass
class Turns:
    """What the turns of the loop have cost."""

    busy: int = 0
    worst_s: float = 0.0


@asynccontextmanager
async def counted_turns() -> AsyncIterator[Turns]:
    """Count the loop's turns inside, and the CPU of each; the loop does not sleep meanwhile."""
    loop = asyncio.get_running_loop()
    counted = Turns()
    before_s = time.thread_time()
    handle: asyncio.Handle

    def turn() -> None:
        nonlocal before_s, handle
        now_s = time.thread_time()
        counted.busy += now_s - before_s > BUSY_S
        counted.worst_s = max(counted.worst_s, now_s - before_s)
        before_s = now_s
        handle = loop.call_soon(turn)

    gc.disable()
    handle = loop.call_soon(turn)
    try:
        yield counted
    finally:
        handle.cancel()
        gc.enable()


async def drain(client: TcpClient) -> None:
    """Read whatever comes and forget it."""
    with contextlib.suppress(ConnectionError, AssertionError):
        while True:
            client.received.clear()
            await client.receive_some()


@asynccontextmanager
async def two_boards(folder: Path) -> AsyncIterator[tuple[Served, Served]]:
    """A port to flood, whose board takes what comes, and one whose board echoes."""
    for name in ("flooded", "other"):
        (folder / name).mkdir()
    with PtyBoard(folder / "flooded") as board, PtyBoard(folder / "other") as echoing:
        board.start_reading()
        echoing.start_echoing()
        async with serving(board, "flooded") as flooded, serving(echoing, "other") as other:
            yield flooded, other


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_delays_no_other_port(tmp_path: Path, name: str) -> None:
    flood = FLOODS[name] * (READ_BYTES // len(FLOODS[name]))
    async with two_boards(tmp_path) as (flooded, other):
        with await rfc2217_client(flooded) as hostile, await rfc2217_client(other) as neighbour:
            session = await flooded.session()
            draining = asyncio.create_task(drain(hostile))
            async with counted_turns() as counted:
                sending = asyncio.create_task(hostile.send(3 * flood))
                await until(lambda: session.received_bytes > READ_BYTES // 2)
                echoes = []
                for number in range(20):
                    before = counted.busy
                    wanted = neighbour.data + bytes([number])
                    await neighbour.send(bytes([number]))
                    await neighbour.receive_data(wanted)
                    echoes.append(counted.busy - before)
            assert counted.worst_s < TURN_LIMIT_S
            assert sorted(echoes)[len(echoes) // 2] <= ECHO_TURNS
            for task in (sending, draining):
                task.cancel()
            await asyncio.gather(sending, draining, return_exceptions=True)
            hostile.reset()
            await has_left(flooded)


@pytest.mark.parametrize("name", ["data and purges", "AYT", "all at once"])
async def test_a_flood_over_tls_delays_no_other_port(tmp_path: Path, name: str) -> None:
    authority = Authority(tmp_path)
    tls = TlsContext(server_context(authority.server()))
    flood = FLOODS[name] * (3 * READ_BYTES // len(FLOODS[name]))
    with PtyBoard(tmp_path) as board:
        board.start_reading()
        async with serving(board, tls=tls) as served:
            with await TlsClient.connect_tls(served.tcp_port, authority.client()) as hostile:
                await hostile.send(RFC2217_CLIENT)
                session = await served.session()
                draining = asyncio.create_task(drain(hostile))
                async with counted_turns() as counted:
                    sending = asyncio.create_task(hostile.send(flood))
                    await until(lambda: session.received_bytes > READ_BYTES)
                assert counted.worst_s < TURN_LIMIT_S
                for task in (sending, draining):
                    task.cancel()
                await asyncio.gather(sending, draining, return_exceptions=True)
            await has_left(served)


async def test_many_clients_that_flood_take_no_longer_turns_than_one(tmp_path: Path) -> None:
    flood = FLOODS["AYT"] * (READ_BYTES // len(FLOODS["AYT"]))
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.SHARED) as served:
            clients = [await rfc2217_client(served) for _ in range(20)]
            tasks = [asyncio.create_task(drain(client)) for client in clients]
            async with counted_turns() as counted:
                tasks += [asyncio.create_task(client.send(flood)) for client in clients]
                await until(
                    lambda: all(each.received_bytes > READ_BYTES // 2 for each in served.sessions)
                )
                for _ in range(200):
                    await asyncio.sleep(0)
            # First slices may come in one turn, the others don't.
            assert counted.worst_s < TURN_LIMIT_S
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for client in clients:
                client.reset()
            await has_left(served)


async def has_left(served: Served) -> None:
    """Wait until the port can be had; the clock need not move by more than 15 s for that."""

    def is_free() -> bool:
        return not served.sessions and served.port.state is PortState.IDLE

    with LoopClock() as clock:
        for _ in range(150):
            await turns(20)
            if is_free():
                return
            clock.jump(0.1)
        await until(is_free)
