"""`replay`: new clients get what was recorded before they connected, to the byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import serial

from tests.support.com_port import RESUME, SUSPEND, purge, purge_answer
from tests.support.gateway_end import deliver
from tests.support.tcp_client import GREETING
from tests.support.telnet_wire import ACCEPTS_COM_PORT, RFC2217_CLIENT
from tests.support.world import Client, World, moving, until, world

#: All that a byte can be, telnet's IAC among them.
CRASH = bytes(range(256)) * 8 + b"Guru Meditation Error: Core 0 panic'ed\r\n"
REBOOT = b"rst:0xc (SW_CPU_RESET)\r\n" + bytes(range(255, -1, -1))

RAW = "protocol: raw"


@asynccontextmanager
async def crashed(folder: Path, keys: str = RAW) -> AsyncIterator[World]:
    """A port whose board has crashed while no client was connected."""
    replay = "" if "replay:" in keys else ", replay: true"
    async with world(folder, f"{keys}{replay}") as w:
        await says(w, CRASH)
        yield w


async def says(w: World, data: bytes) -> None:
    """The board says something, and the gateway has heard it."""
    heard_bytes = w.status.received_bytes + len(data)
    await w.board.write(data)
    await until(lambda: w.status.received_bytes == heard_bytes)


async def connected(w: World) -> Client:
    """A client that is served and has sent nothing."""
    client = await w.connect()
    await w.pass_until(lambda: w.is_served(client), step_s=0.01)
    return client


@pytest.mark.parametrize("protocol", ["protocol: rfc2217", RAW])
async def test_a_plain_client_gets_past_and_present_in_order_and_once(
    tmp_path: Path, protocol: str
) -> None:
    async with crashed(tmp_path, protocol) as w:
        client = await connected(w)
        await says(w, REBOOT)
        await w.pass_time(0.44)
        assert not (protocol == RAW and client.has_more())
        await w.pass_time(0.1)
        await says(w, b"ready")

        def got() -> bytes:
            return bytes(client.received) if protocol == RAW else client.data

        await client.receive(lambda: got().endswith(b"ready"))
        assert got() == CRASH + REBOOT + b"ready"


async def test_without_replay_a_client_gets_the_present_alone(tmp_path: Path) -> None:
    async with crashed(tmp_path, f"{RAW}, replay: false") as w:
        client = await connected(w)
        await says(w, REBOOT)
        await client.receive(lambda: client.received.endswith(REBOOT))
        assert client.received == REBOOT


async def test_a_client_that_sends_data_at_once_gets_the_present_alone(tmp_path: Path) -> None:
    async with crashed(tmp_path) as w:
        client = await connected(w)
        await says(w, REBOOT)
        await client.send(b"\xc0sync")
        await w.board.reads(b"\xc0sync")
        await says(w, b"answer")
        await client.receive(lambda: client.received.endswith(b"answer"))
        assert client.received == REBOOT + b"answer"


async def test_what_a_client_purges_is_not_an_answer_for_it(tmp_path: Path) -> None:
    async with crashed(tmp_path, "protocol: rfc2217") as w:
        w.board.start_reading()
        client = await w.connect(RFC2217_CLIENT + ACCEPTS_COM_PORT)
        await until(lambda: w.is_served(client))
        await says(w, REBOOT)
        await client.send(purge(1))
        await client.receive_wire(purge_answer(1))
        await says(w, b"new")
        await client.send(b"\xc0sync")
        await client.receive(lambda: client.data.endswith(b"new"))
        assert client.data == b"new"


async def test_a_client_that_is_closed_before_gets_it_first(tmp_path: Path) -> None:
    async with crashed(tmp_path, f"{RAW}, grace_s: 0") as w:
        client = await connected(w)
        await says(w, REBOOT)
        w.board.unplug()
        await client.receive_to_end()
        assert client.received == CRASH + REBOOT


async def test_a_client_that_leaves_before_is_not_waited_for(tmp_path: Path) -> None:
    async with crashed(tmp_path) as w:
        client = await connected(w)
        client.close()
        await w.until_idle()
        await w.pass_time(5.0)
        await says(w, REBOOT)


async def test_each_of_several_clients_gets_the_past(tmp_path: Path) -> None:
    async with crashed(tmp_path, f"{RAW}, sharing: shared") as w:
        clients = [await connected(w), await connected(w)]
        await w.pass_time(0.51)
        await says(w, REBOOT)
        for client in clients:
            await client.receive(lambda: client.received.endswith(REBOOT))  # noqa: B023
            assert client.received == CRASH + REBOOT


async def test_what_is_replayed_is_what_is_recorded(tmp_path: Path) -> None:
    async with crashed(tmp_path, f"{RAW}, record_kib: 1") as w:
        client = await connected(w)
        await w.pass_time(0.51)
        await client.receive(lambda: client.received)
        assert client.received == CRASH[-1024:]


async def test_the_past_is_not_sent_to_a_client_that_suspends_output_before(tmp_path: Path) -> None:
    async with crashed(tmp_path, "protocol: rfc2217") as w:
        client = await w.connect()
        await w.pass_until(lambda: w.is_served(client))
        await client.receive_wire(GREETING)
        await deliver(client, RFC2217_CLIENT + ACCEPTS_COM_PORT + SUSPEND)
        await w.pass_time(60.0)
        await w.board.write(REBOOT)
        await client.send(RESUME)
        await client.receive(lambda: len(client.data) >= len(REBOOT))
        assert client.data == REBOOT


async def test_pyserial_gets_past_and_present_to_the_byte(tmp_path: Path) -> None:
    """Though its open() ends with a purge and drops all that it has received before."""
    async with crashed(tmp_path, "protocol: rfc2217") as w:
        with moving(w.clock):
            url = f"rfc2217://127.0.0.1:{w.tcp_port}"
            client = await asyncio.to_thread(serial.serial_for_url, url, timeout=20)
            try:
                await says(w, REBOOT)
                expected = CRASH + REBOOT
                assert await asyncio.to_thread(client.read, len(expected)) == expected
                await says(w, b"ready")
                assert await asyncio.to_thread(client.read, 5) == b"ready"
            finally:
                await asyncio.to_thread(client.close)
