"""The board's output on its way to one client: paused, dropped, suspended, purged, in order."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.support.com_port import FIRST_STATE, RESUME, SUSPEND, purge, purge_answer
from tests.support.gateway_end import GatewayEnd, deliver, until_stalled
from tests.support.telnet_wire import AO, AYT, command
from tests.support.world import (
    RESET,
    Client,
    Control,
    Logged,
    World,
    control,
    control_answers,
    turns,
    until,
    world,
)

FLOOD = random.Random(2).randbytes(1_000_000).replace(b"\xff", b"\xfe")
KEPT_KIB = 100
DROP_OLDEST = f"slow_client: drop_oldest, client_buffer_kib: {KEPT_KIB}"
STATUS_LINE = b"\r\ndesk: 115200 8N1, DTR off, RTS off\r\n"

#: What the kernel keeps between the gateway and a client for which it keeps little: both ends'
#: buffers with what it adds to them; and what a pty and the gateway's one read keep.
IN_BETWEEN_BYTES = 65536 + 131072 + 65536

#: How many turns without a byte taken mean that the board is stopped.
_STILL_TURNS = 150


async def slow_client(w: World) -> Client:
    """A client for which the kernel keeps little, and which reads only when it is told to."""
    client = await w.client(receive_buffer_bytes=4096)
    GatewayEnd(client).keep_little()
    return client


async def until_stopped(w: World, writing: asyncio.Task[None]) -> int:
    """Wait until the gateway takes nothing more from the board; how much it has taken."""
    taken, still = -1, 0
    while still < _STILL_TURNS and not writing.done():
        await turns(1)
        now = w.status.received_bytes
        taken, still = now, still + 1 if now == taken else 0
    return taken


# --- a client that does not read


async def test_a_client_that_does_not_read_stops_the_board_without_loss(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await slow_client(w)
        writing = asyncio.create_task(w.board.write(FLOOD))
        assert await until_stopped(w, writing) <= IN_BETWEEN_BYTES
        assert not writing.done()
        # The other direction is not concerned.
        await client.send(b"stop it")
        await w.board.reads(b"stop it")
        await client.receive_data(FLOOD)
        await writing
        assert w.status.output_dropped_bytes == 0


async def test_the_oldest_output_is_dropped_counted_and_logged(tmp_path: Path) -> None:
    async with world(tmp_path, DROP_OLDEST) as w:
        slow = await slow_client(w)
        await w.board.write(FLOOD)
        await until(lambda: w.status.received_bytes == len(FLOOD))
        dropped_bytes = w.status.output_dropped_bytes
        assert dropped_bytes > 0
        await slow.receive(lambda: slow.data.endswith(FLOOD[-KEPT_KIB * 1024 :]))
        assert len(slow.data) == len(FLOOD) - dropped_bytes
        sent = iter(FLOOD)
        assert all(byte in sent for byte in slow.data), "not in order"
        await w.board.write(b"and on")
        await slow.receive(lambda: slow.data.endswith(b"and on"))
        slow.close()
        await w.until_idle()
        assert len(w.logged_for(slow, Logged.OUTPUT_DROPPED)) == 1
        (end,) = w.logged_for(slow, Logged.DISCONNECTED)
        assert end["dropped_bytes"] == dropped_bytes


async def test_a_client_that_does_not_take_the_output_is_closed(tmp_path: Path) -> None:
    async with world(tmp_path, f"slow_client: disconnect, client_buffer_kib: {KEPT_KIB}") as w:
        slow = await slow_client(w)
        sent_bytes = 0
        while not w.ends(slow):
            await w.board.write(b"x" * 1000)
            sent_bytes += 1000
            await until(lambda: w.status.received_bytes == sent_bytes)  # noqa: B023
        assert sent_bytes > KEPT_KIB * 1024, "closed while its buffer had room"
        (end,) = w.logged_for(slow, Logged.DISCONNECTED)
        assert (end["reason"], end["log_level"]) == (
            "does not take the board's output",
            "warning",
        )
        assert w.status.output_dropped_bytes == 0
        await w.board.write(FLOOD)  # nobody is waited for
        await w.until_idle()


async def test_what_is_kept_for_a_slow_client_can_be_purged(tmp_path: Path) -> None:
    async with world(tmp_path, DROP_OLDEST) as w:
        slow = await slow_client(w)
        await w.board.write(FLOOD)
        await until(lambda: w.status.received_bytes == len(FLOOD))
        await deliver(slow, purge(1))
        await w.until(lambda: w.board.calls.named("flush"))
        await slow.receive_wire(purge_answer(1))
        await w.board.write(b"new")
        await slow.receive(lambda: slow.data.endswith(b"new"))
        assert FLOOD[-1000:] not in slow.data


async def test_a_client_that_never_reads_its_answers_is_read_no_more(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.connect(receive_buffer_bytes=4096)
        await deliver(client, command(AYT))
        GatewayEnd(client).keep_little()
        sending = asyncio.create_task(client.send(command(AYT) * 8_000_000))
        read_bytes = await until_stalled(client)
        # 256 KiB of answers unread, and those to two reads more.
        assert read_bytes * len(STATUS_LINE) / 2 <= 262144 + 65536 * len(STATUS_LINE)
        assert not sending.done()
        # Having read them, it is served again.
        client.set_receive_buffer(1 << 20)
        end = GatewayEnd(client)
        await client.receive(lambda: end.read_bytes > 2 * read_bytes)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        client.reset()
        await w.until_idle()


async def test_an_echoing_board_gets_all_from_a_client_that_never_reads(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.board.start_echoing()
        client = await slow_client(w)
        sending = asyncio.create_task(client.send(b"y" * 16_000_000))
        read_bytes = await until_stalled(client) - client.sent_bytes
        assert not sending.done()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        client.reset()
        await w.until_idle()
        await until(lambda: len(w.board.received) >= read_bytes)
        assert set(w.board.received) == set(b"y")
        assert not w.logged(Logged.DROPPED)


# --- suspended output


async def test_suspended_output_waits_at_the_board_and_answers_with_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.receive_wire(FIRST_STATE)
        await deliver(client, SUSPEND)
        seen = len(client.received)
        await w.board.write(b"held")
        await until(lambda: w.board.unread_bytes == 4)
        await deliver(client, command(AYT) + control(Control.RTS_ON))
        await w.until(lambda: w.board.lines[-1] == RESET)  # carried out, though not answered
        await w.pass_time(10.0)
        assert not client.has_more()
        await client.send(RESUME)
        await client.receive(lambda: client.data.endswith(b"held"))
        said = bytes(client.received[seen:])
        order = [said.index(each) for each in (STATUS_LINE, control_answers(Control.RTS_ON))]
        assert order == sorted(order)


async def test_suspended_output_is_kept_whatever_the_rule_for_slow_clients(tmp_path: Path) -> None:
    said = FLOOD[:300_000]  # more than is kept for a slow client
    async with world(tmp_path, DROP_OLDEST) as w:
        client = await w.client()
        await deliver(client, SUSPEND)
        writing = asyncio.create_task(w.board.write(said))
        assert await until_stopped(w, writing) == 0
        assert not writing.done()
        await client.send(RESUME)
        await client.receive_data(said)
        await writing
        assert w.status.output_dropped_bytes == 0


async def test_suspended_output_is_not_sent_while_another_client_takes_it(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: shared") as w:
        suspended, other = await w.client(), await w.client()
        await deliver(suspended, SUSPEND)
        await w.board.write(b"for both")
        await other.receive_data(b"for both")
        await turns(5)
        await suspended.reads_what_has_come()
        assert b"for both" not in suspended.data
        await suspended.send(RESUME)
        await suspended.receive_data(b"for both")


async def test_a_client_that_suspends_and_asks_without_end_is_closed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.send(SUSPEND + command(AYT) * 10_000)
        await w.run(client.receive_to_end())
        (end,) = w.logged_for(client, Logged.DISCONNECTED)
        assert end["reason"] == "asks without end for answers that it has suspended"
        assert end["log_level"] == "warning"
        client.close()
        await w.until_idle()


async def test_a_resume_behind_bytes_that_the_board_does_not_take_is_heeded(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await deliver(client, SUSPEND)
        await w.board.write(b"held")
        await client.send(b"x" * 300_000 + RESUME)  # more than the tty takes
        await client.receive_data(b"held")


@pytest.mark.parametrize("request_bytes", [purge(1), command(AO)])
async def test_a_purge_drops_what_the_board_has_sent(tmp_path: Path, request_bytes: bytes) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await deliver(client, SUSPEND)
        await w.board.write(b"stale")
        await until(lambda: w.board.unread_bytes == 5)
        await client.send(request_bytes)
        await until(lambda: w.board.unread_bytes == 0)
        await client.send(RESUME)
        await client.settled()
        await w.board.write(b"fresh")
        await client.receive_data(b"fresh")
