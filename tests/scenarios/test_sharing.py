"""Several clients at one port, by each of the YAML's rules: who controls it, observes, waits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.world import (
    IDLE,
    RESET,
    SPEAKS_TELNET,
    Client,
    Control,
    Logged,
    Notice,
    State,
    World,
    set_wall_clock,
    turns,
    world,
)


async def controls(w: World, client: Client) -> None:
    """Wait until a client has the port, without time passing."""
    await w.until(lambda: w.status.controls == client.name)


# --- exclusive, and the wait queue


async def test_exclusive_rejects_a_second_client_and_names_the_first(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        first = await w.client()
        second = await w.asks()
        await w.pass_time(0.45)
        assert not w.logged(Logged.REFUSED)
        told = await w.refused(second)
        assert re.fullmatch(re.escape(Notice.in_use(first)) + r"\d\d:\d\d:\d\d\r\n", told)
        assert w.status.refused == 1
        await w.board.write(b"for the first")
        await first.receive_data(b"for the first")


async def test_since_when_a_port_is_in_use_has_a_date_unless_it_was_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2026, 3, 1, 14, 3, 22)
    set_wall_clock(monkeypatch, lambda: now)
    async with world(tmp_path) as w:
        first = await w.client()
        now = datetime(2026, 3, 1, 23, 59, 59)
        told = await w.refused(await w.asks())
        assert told == Notice.in_use(first) + "14:03:22\r\n"
        now = datetime(2026, 3, 2, 0, 0, 0)
        told = await w.refused(await w.asks())
        assert told == Notice.in_use(first) + "2026-03-01 14:03:22\r\n"


async def test_clients_that_wait_get_the_port_in_their_order(tmp_path: Path) -> None:
    async with world(tmp_path, "on_absent: wait", plugged_in=False) as w:
        clients = []
        for _ in range(5):
            clients.append(await w.asks())
            await w.until(lambda: len(w.logged(Logged.WAITS)) == len(clients))
        clients[2].close()
        await w.pass_time(2.0)  # longer than a place in the queue is had without asking again
        w.board.plug()
        await w.pass_until(lambda: w.state == State.IN_USE)
        for client in (clients[0], clients[1], clients[3], clients[4]):
            await controls(w, client)
            client.close()
        await w.until(State.IDLE)
        assert (w.status.sessions, w.status.refused) == (4, 0)


# --- takeover

LOSER, WINNER, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"


@asynccontextmanager
async def taken_over(tmp_path: Path, winner: str = WINNER) -> AsyncIterator[tuple[World, Client]]:
    """A port that `winner` has just taken from LOSER."""
    async with world(tmp_path, "sharing: takeover") as w:
        first = await w.client(source=LOSER)
        await first.set_baudrate(9600)
        second = await w.client(source=winner)
        await first.is_told(Notice.taken_over(second))
        assert (await first.receive_to_end()).endswith(Notice.taken_over(second))
        assert w.board.baudrate == 115200
        yield w, second


async def is_kept_out(w: World, source: str, by: Client) -> str:
    """A client is rejected after the moment in which its port may become free."""
    client = await w.asks(source=source)
    await w.pass_time(0.4)
    assert w.status.controls == by.name
    told = await w.refused(client)
    assert told.startswith(Notice.in_use(by))
    return told


async def took_over(w: World, source: str, from_: Client) -> Client:
    """A client gets the port at once from another."""
    client = await w.client(source=source)
    assert (await from_.receive_to_end()).endswith(Notice.taken_over(client))
    return client


@pytest.mark.parametrize("winner", [WINNER, LOSER])
async def test_a_client_that_was_replaced_does_not_take_the_port_back(
    tmp_path: Path, winner: str
) -> None:
    async with taken_over(tmp_path, winner) as (w, second):
        await w.pass_time(1.0)
        told = await is_kept_out(w, LOSER, by=second)
        assert told.endswith(Notice.TAKE_BACK + "\r\n")
        await w.board.write(b"still yours")
        await second.receive_data(b"still yours")


async def test_it_may_when_it_has_left_the_port_alone_for_ten_seconds(tmp_path: Path) -> None:
    async with taken_over(tmp_path) as (w, second):
        for _ in range(12):
            await is_kept_out(w, LOSER, by=second)
            await w.pass_time(1.0)
        await w.pass_time(9.1)
        again = await took_over(w, LOSER, from_=second)
        # Which it does to the other as well.
        await is_kept_out(w, WINNER, by=again)


async def test_others_and_the_client_that_has_the_port_may_replace_at_once(tmp_path: Path) -> None:
    async with taken_over(tmp_path) as (w, second):
        again = await took_over(w, WINNER, from_=second)
        third = await took_over(w, THIRD, from_=again)
        for source in (LOSER, WINNER):
            await is_kept_out(w, source, by=third)


@pytest.mark.parametrize("winner", [WINNER, LOSER])
async def test_a_client_that_has_replaced_another_may_close_and_connect_again(
    tmp_path: Path, winner: str
) -> None:
    """As flashers do between two commands, also from behind the other's address."""
    async with taken_over(tmp_path, winner) as (w, second):
        await is_kept_out(w, LOSER, by=second)
        second.close()
        await w.until_idle()
        await w.client(source=winner)


async def test_a_connection_that_is_seen_before_the_end_of_the_former_one_is_served(
    tmp_path: Path,
) -> None:
    async with taken_over(tmp_path, winner=LOSER) as (w, second):
        again = await w.asks(source=LOSER)
        await w.pass_time(0.3)
        second.close()
        await controls(w, again)


async def test_a_connection_waits_while_the_bytes_of_the_former_one_are_sent(
    tmp_path: Path,
) -> None:
    async with taken_over(tmp_path, winner=LOSER) as (w, second):
        w.board.calls.room = 0
        await second.send(b"x" * 300_000)  # more than the port takes: the session goes on
        await w.until(lambda: w.status.sent_bytes > 65536)
        await second.reads_what_has_come()  # or closing would reset the connection
        second.close()
        await turns(20)
        again = await w.asks(source=LOSER)
        await w.pass_time(2.0)
        assert (w.status.controls, w.status.refused) == (second.name, 0)
        w.board.calls.room = None
        await w.board.reads_bytes(300_000)
        await controls(w, again)


async def test_a_free_port_is_had_at_once_by_a_client_that_was_replaced(tmp_path: Path) -> None:
    async with taken_over(tmp_path, winner=LOSER) as (w, second):
        second.close()
        await w.until_idle()
        taken = await w.client(source=LOSER)
        # And is taken from it by the client that had replaced it, which has the same address.
        await took_over(w, LOSER, from_=taken)


async def test_a_client_that_waits_beside_one_that_was_replaced_comes_first(
    tmp_path: Path,
) -> None:
    async with taken_over(tmp_path) as (w, second):
        again = await w.asks(source=LOSER)
        await turns(20)
        third = await took_over(w, THIRD, from_=second)
        third.close()
        await controls(w, again)


async def test_the_memory_of_replaced_clients_is_bounded(tmp_path: Path) -> None:
    async with taken_over(tmp_path) as (w, second):
        has_it = second
        for number in range(256):
            has_it = await took_over(w, f"127.0.1.{number}", from_=has_it)
        await took_over(w, LOSER, from_=has_it)


# --- preempt


async def test_the_client_that_was_suspended_last_resumes_first(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        first, second, third, fourth = [await w.client() for _ in range(4)]
        assert w.status.observes == f"{first.name}, {second.name}, {third.name}"
        third.close()  # observers may leave
        await w.until(lambda: w.status.observes == f"{first.name}, {second.name}")
        for leaves, resumes in ((fourth, second), (second, first)):
            leaves.close()
            await controls(w, resumes)
        first.close()
        await w.until(State.IDLE)


async def test_a_client_may_be_preempted_again_and_again(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        for source in (LOSER, WINNER, LOSER):
            client = await w.client(source=source)
            await controls(w, client)


@pytest.mark.parametrize("sharing", ["takeover", "preempt"])
async def test_a_client_whose_board_is_being_prepared_is_not_disturbed(
    tmp_path: Path, sharing: str
) -> None:
    async with world(tmp_path, f"sharing: {sharing}, on_connect: reset") as w:
        first = await w.asks()
        await w.until(lambda: w.board.lines[-1] == RESET)
        second = await w.asks()
        await w.pass_time(0.04)
        await w.board.write(b"not for it yet")
        await w.until(lambda: w.recorded)
        await turns(20)
        assert first.has_more() is second.has_more() is False
        await w.pass_until(lambda: w.status.controls == second.name)
        assert w.status.sessions == 2


async def test_a_claim_is_not_preempted(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        async with w.claim("10.0.0.9"):
            client = await w.asks()
            await w.pass_time(5.0)
            assert (w.status.controls, w.logged(Logged.REFUSED)) == ("10.0.0.9", [])
        await controls(w, client)


# --- shared


async def test_shared_lets_all_write_and_keeps_what_was_set_last(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: shared") as w:
        one, other = await w.client(), await w.client()
        assert w.status.controls == f"{one.name}, {other.name}"
        await one.send(b"1")
        await w.board.reads(b"1")
        await other.send(b"2")
        await w.board.reads(b"12")
        await one.set_baudrate(9600)
        await other.set_baudrate(74880)
        await w.board.write(b"to both")
        for client in (one, other):
            await client.receive_data(b"to both")
        other.close()
        await controls(w, one)
        assert w.board.baudrate == 74880
        one.close()
        await w.until(State.IDLE)
        assert w.board.baudrate == 115200


async def test_a_client_that_joins_while_the_board_is_prepared_has_it_with_the_first(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "sharing: shared, on_connect: reset") as w:
        first, second = await w.asks(), await w.asks()
        await w.until(lambda: w.board.lines[-1] == RESET)
        await w.pass_until(lambda: w.status.controls == f"{first.name}, {second.name}")
        assert w.board.lines[2:] == [RESET, IDLE]


async def test_a_client_that_leaves_shared_lines_in_a_reset_does_not_leave_them_so(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "sharing: shared") as w:
        stays, leaves = await w.client(), await w.client()
        await leaves.control(Control.RTS_ON, Control.BREAK_ON)
        assert w.board.lines[-1] == RESET
        leaves.close()
        await w.pass_until(lambda: w.board.lines[-1] == IDLE)
        await w.until(lambda: w.board.calls.named("break")[-1].value is False)
        await stays.settled()


# --- clients that do not keep up


MUCH = bytes(range(250)) * 32_000  # more than what the kernel takes for a client


@pytest.mark.parametrize("sharing", ["preempt", "shared"])
async def test_the_board_is_not_stopped_for_an_observer_nor_for_the_slower_of_two(
    tmp_path: Path, sharing: str
) -> None:
    async with world(tmp_path, f"sharing: {sharing}") as w:
        await w.client(receive_buffer_bytes=4096)  # reads nothing
        fast = await w.client()
        writing = asyncio.create_task(w.board.write(MUCH))
        await fast.receive(lambda: len(fast.received) >= len(MUCH))
        await writing
        await fast.receive_data(MUCH)


@pytest.mark.parametrize("comes", ["reads", "joins"])
async def test_the_board_is_stopped_while_no_client_reads_and_goes_on_with_one(
    tmp_path: Path, comes: str
) -> None:
    async with world(tmp_path, "sharing: shared") as w:
        one = await w.client(receive_buffer_bytes=4096)
        other = await w.client(receive_buffer_bytes=4096)
        writing = asyncio.create_task(w.board.write(MUCH))
        received_bytes = -1
        while received_bytes != w.status.received_bytes:
            received_bytes = w.status.received_bytes
            await turns(200)
        assert not writing.done()
        if comes == "reads":
            one.close()
            other.set_receive_buffer(1 << 20)
            await other.receive(writing.done)
        else:
            third = await w.connect(SPEAKS_TELNET)
            await turns(300)
            writing.cancel()
            await third.reads_what_has_come()
            assert third.data
