"""Clients that ask for more than a turn of the loop has time for, beside one that only talks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.certificates import Authority
from tests.support.com_port import FIRST_STATE, modemstate_mask, purge
from tests.support.gateway_end import GatewayEnd, deliver
from tests.support.tcp_client import TcpClient
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
from tests.support.turns import TurnMeter
from tests.support.world import (
    Client,
    Control,
    State,
    World,
    baudrate,
    com_port,
    control,
    moving,
    turns,
    world,
)

#: What one read of a client may bring.
READ_BYTES = 65536

#: CPU of one turn of the loop, the test's own part included. Floods take 1 to 3 ms of it; what they
#: took before they were cut into slices was 50 to 2,200 ms.
TURN_LIMIT_S = 0.05

#: Turns of more than BUSY_S from a byte of the other client to its echo. It takes some 5; the
#: others are those that the kernel's own worker needs to get the byte through a tty, each way.
ECHO_TURNS = 60
BUSY_S = 0.0002

FLOODS = {
    "data and purges": b"x" + purge(2),
    "purges of both": purge(3),
    "data and purges of both": b"xyz" + purge(3),
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
    "masks": modemstate_mask(0) + modemstate_mask(255),
    "DTR?": control(Control.REQUEST_DTR),
    "DTR": control(Control.DTR_ON, Control.DTR_OFF),
    "resets": control(Control.RTS_ON, Control.RTS_OFF),
    "baud rates": baudrate(9600) + baudrate(19200),
    "breaks": control(Control.BREAK_ON, Control.BREAK_OFF),
    "telnet breaks": command(BRK),
    "data and telnet breaks": b"x" + command(BRK),
    "negotiations": do(200),
    "IAC SE": command(SE),
    "all at once": b"x" + purge(2) + command(AYT) + com_port(7) + com_port(8) + com_port(9),
}


async def drain(client: TcpClient) -> None:
    """Read whatever comes and forget it."""
    with contextlib.suppress(ConnectionError, AssertionError):
        while True:
            client.received.clear()
            await client.receive_some()


async def ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def until_read(client: TcpClient, n_bytes: int) -> None:
    """Let the loop turn, without a pause, until the gateway has read more than that."""
    end = GatewayEnd(client)
    while end.read_bytes <= n_bytes:
        for _ in range(20):
            await asyncio.sleep(0)


@asynccontextmanager
async def two_ports(folder: Path) -> AsyncIterator[tuple[World, Client, Client]]:
    """A port to flood, its client, and the client of another port, whose board echoes."""
    for name in ("flooded", "other"):
        (folder / name).mkdir()
    async with world(folder / "flooded") as flooded:
        with moving(flooded.clock):
            async with world(folder / "other") as other:
                flooded.board.start_reading()
                other.board.start_echoing()
                hostile, neighbour = await flooded.client(), await other.client()
                await neighbour.receive_wire(FIRST_STATE)
                yield flooded, hostile, neighbour
                hostile.reset()
                while flooded.state != State.IDLE:
                    await turns(20)
                    flooded.clock.jump(0.25)


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_delays_no_other_port(tmp_path: Path, name: str) -> None:
    flood = FLOODS[name] * (READ_BYTES // len(FLOODS[name]))
    meter = TurnMeter()

    def busy() -> int:
        return sum(cpu_s > BUSY_S for cpu_s in meter.cpu_s)

    async with two_ports(tmp_path) as (flooded, hostile, neighbour):
        draining = asyncio.create_task(drain(hostile))
        with moving(flooded.clock), meter.running():
            sending = asyncio.create_task(hostile.send(3 * flood))
            await until_read(hostile, READ_BYTES // 2)
            echoes = []
            for number in range(20):
                before = busy()
                wanted = neighbour.data + bytes([number])
                await neighbour.send(bytes([number]))
                await neighbour.receive_data(wanted)
                echoes.append(busy() - before)
        assert max(meter.cpu_s) < TURN_LIMIT_S
        assert sorted(echoes)[len(echoes) // 2] <= ECHO_TURNS
        await ended(sending, draining)


@pytest.mark.parametrize("name", ["data and purges", "AYT", "all at once"])
async def test_a_flood_over_tls_delays_no_other_port(tmp_path: Path, name: str) -> None:
    authority = Authority(tmp_path)
    tls = authority.server()
    keys = f"tls: {{cert: {tls.cert}, key: {tls.key}, client_ca: {tls.client_ca}}}"
    flood = FLOODS[name] * (3 * READ_BYTES // len(FLOODS[name]))
    meter = TurnMeter()
    async with world(tmp_path, keys) as w:
        w.board.start_reading()
        hostile = await TlsClient.connect_tls(w.tcp_port, authority.client())
        with hostile:
            await hostile.send(RFC2217_CLIENT)
            await hostile.receive_wire(FIRST_STATE)
            draining = asyncio.create_task(drain(hostile))
            with moving(w.clock), meter.running():
                sending = asyncio.create_task(hostile.send(flood))
                await until_read(hostile, READ_BYTES)
            await ended(sending, draining)
        assert max(meter.cpu_s) < TURN_LIMIT_S
        await w.until_idle()


async def test_many_clients_that_flood_take_no_longer_turns_than_one(tmp_path: Path) -> None:
    flood = FLOODS["AYT"] * (READ_BYTES // len(FLOODS["AYT"]))
    meter = TurnMeter()
    async with world(tmp_path, "sharing: shared") as w:
        clients = [await w.client() for _ in range(20)]
        tasks = [asyncio.create_task(drain(client)) for client in clients]
        with meter.running():
            tasks += [asyncio.create_task(client.send(flood)) for client in clients]
            for client in clients:
                await until_read(client, READ_BYTES // 2)
            for _ in range(200):
                await asyncio.sleep(0)
        # First slices may come in one turn, the others don't.
        assert max(meter.cpu_s) < TURN_LIMIT_S
        await ended(*tasks)
        for client in clients:
            client.reset()
        await w.until_idle()


async def test_requests_that_waited_are_answered_a_few_in_a_turn(tmp_path: Path) -> None:
    n_requests, answer_bytes = 1024, len(control(Control.REQUEST_DTR))
    async with world(tmp_path) as w:
        client = await w.client()
        await client.receive_wire(FIRST_STATE)
        w.board.calls.room = 0
        await deliver(client, b"x" * 100_000 + control(Control.REQUEST_DTR) * n_requests)
        assert client.unread_bytes == 0
        w.board.calls.room = None
        w.board.start_reading()
        came = [0]
        while came[-1] < n_requests * answer_bytes:
            await asyncio.sleep(0)
            came.append(client.unread_bytes)
        # 256 in a turn; the kernel may bring the answers of some turns together.
        assert max(b - a for a, b in pairwise(came)) <= 3 * 256 * answer_bytes
