"""The web console as a client of a port like any other: order, control, slowness, loss, its end.

What is special to the WebSocket, its messages and its access is in tests/web/test_console.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.scenarios.test_client_output import until_stopped
from tests.support.gateway_end import GatewayEnd
from tests.support.http_lab import http_client
from tests.support.world import (
    RESET,
    STRAP,
    Logged,
    Notice,
    State,
    World,
    until,
    world,
)
from tests.web.test_console import Terminal, console, transport_of

PREEMPT = "sharing: preempt"
FLOOD = random.Random(3).randbytes(3_000_000)


@asynccontextmanager
async def opened(w: World) -> AsyncIterator[Terminal]:
    """A console that has the port."""
    async with http_client([w.port]) as client, console(client) as terminal:
        await w.run(terminal.notice("granted"))
        yield terminal


def name_of(terminal: Terminal) -> str:
    """How the gateway calls the console's client."""
    host, tcp_port = transport_of(terminal).get_extra_info("sockname")[:2]
    return f"{host}:{tcp_port} (web)"


def slow(terminal: Terminal) -> None:
    """Read no more, and have the kernel keep little."""
    transport = transport_of(terminal)
    GatewayEnd(transport.get_extra_info("sockname")[:2]).keep_little()
    transport.pause_reading()


async def says(w: World, data: bytes) -> None:
    """The board says something, and the gateway has heard it."""
    heard_bytes = w.status.received_bytes + len(data)
    await w.board.write(data)
    await until(lambda: w.status.received_bytes == heard_bytes)


# --- order


async def test_bytes_and_commands_are_carried_out_and_answered_in_order(tmp_path: Path) -> None:
    async with world(tmp_path) as w, opened(w) as terminal:
        w.board.calls.forget()
        await terminal.socket.send_bytes(b"a")
        for command in (
            {"type": "settings", "baudrate": 9600},
            {"type": "lines", "dtr": True},
            {"type": "break", "on": True},
        ):
            await terminal.socket.send_json(command)
            await terminal.socket.send_bytes(str(command["type"])[:1].encode())
        await w.board.reads(b"aslb")
        assert w.board.calls.since(0, "write", "settings", "lines", "break") == [
            ("write", b"a"),
            ("settings", "9600 8N1"),
            ("write", b"s"),
            ("lines", STRAP),
            ("write", b"l"),
            ("break", True),
            ("write", b"b"),
        ]
        answers = [(await terminal.notice("done"))["of"] for _ in range(3)]
        assert answers == ["settings", "lines", "break"]
        await terminal.socket.send_json({"type": "lines", "dtr": False})
        assert (await terminal.notice("done"))["lines"]["dtr"] is False
        assert terminal.notices == []


async def test_on_connect_is_played_before_the_first_byte_of_a_console(tmp_path: Path) -> None:
    async with world(tmp_path, "on_connect: reset") as w:
        w.board.calls.forget()
        async with opened(w) as terminal:
            assert RESET in w.board.lines
            await terminal.socket.send_bytes(b"hello")
            await w.board.reads(b"hello")
            assert w.board.calls.since(0)[-1] == ("write", b"hello")


# --- control


async def test_a_suspended_console_observes_and_its_input_is_counted(tmp_path: Path) -> None:
    async with world(tmp_path, PREEMPT) as w, opened(w) as terminal:
        w.board.start_reading()
        await terminal.ask(type="settings", baudrate=74880)
        flasher = await w.client()
        await terminal.notice("suspended")
        assert w.status.settings == "115200 8N1"
        assert w.status.observes == name_of(terminal)
        await terminal.socket.send_bytes(b"dropped")
        answer = await terminal.ask(type="settings", baudrate=9600)
        assert (answer["settings"]["baudrate"], w.board.baudrate) == (9600, 115200)
        await w.board.write(b"seen by both")
        await terminal.hear(b"seen by both")
        await flasher.receive_data(b"seen by both")
        flasher.close()
        await terminal.notice("resumed")
        await until(lambda: w.board.baudrate == 9600)
        assert w.said(Logged.CLIENT_RESUMED, "dropped_bytes") == [7]
        assert w.status.dropped_bytes == 7
        await terminal.socket.send_bytes(b"kept")
        await until(lambda: w.board.received == b"kept")


async def test_commands_that_hang_when_control_is_lost_are_answered_once(tmp_path: Path) -> None:
    async with world(tmp_path, PREEMPT) as w, opened(w) as terminal:
        begun: list[str] = []
        w.board.calls.on_call = begun.append
        w.board.calls.hang("lines")
        for command in (
            {"type": "lines", "dtr": True},
            {"type": "settings", "baudrate": 9600},
            {"type": "lines", "rts": True},
        ):
            await terminal.socket.send_json(command)
        await until(lambda: "lines" in begun)
        await w.asks()
        while len(answers := answers_in(terminal)) < 3:
            await terminal.receive()
        assert answers == ["refused", "done", "refused"]  # settings wait for control to return
        notice = "lines: perhaps not done: another client controls the port"
        assert notice in [each.get("notice") for each in terminal.notices]
        w.board.calls.answer()
        await terminal.socket.send_json({"type": "settings", "baudrate": 19200})
        while len(answers_in(terminal)) < 4:
            await terminal.receive()
        assert answers_in(terminal) == [*answers, "done"]


def answers_in(terminal: Terminal) -> list[str]:
    """The kinds of answers to commands that have come and were not taken."""
    kinds = [notice["type"] for notice in terminal.notices]
    return [kind for kind in kinds if kind in {"done", "refused"}]


async def test_a_console_preempts_a_client_and_gives_control_back(tmp_path: Path) -> None:
    async with world(tmp_path, PREEMPT) as w:
        monitor = await w.client()
        await monitor.set_baudrate(74880)
        async with opened(w) as terminal:
            label = name_of(terminal)
            assert w.status.controls == label
            await monitor.is_told(Notice.suspended(label))
            await monitor.send(b"dropped")
            await terminal.socket.send_bytes(b"web")
            await w.board.reads(b"web")
        await monitor.is_told(Notice.RESUMED)
        await until(lambda: w.board.baudrate == 74880)
        ends = [e["reason"] for e in w.logged(Logged.DISCONNECTED) if e["client"] == label]
        assert ends == ["left"]


# --- a browser that does not read


async def test_a_console_that_does_not_read_stops_the_board_without_loss(tmp_path: Path) -> None:
    async with world(tmp_path) as w, opened(w) as terminal:
        slow(terminal)
        writing = asyncio.create_task(w.board.write(FLOOD))
        await until_stopped(w, writing)
        assert not writing.done()
        transport_of(terminal).resume_reading()
        await terminal.hear(FLOOD)
        await writing


async def test_a_console_that_does_not_read_loses_the_oldest_output(tmp_path: Path) -> None:
    keys = "slow_client: drop_oldest, client_buffer_kib: 100"
    async with world(tmp_path, keys) as w, opened(w) as terminal:
        slow(terminal)
        await says(w, FLOOD)
        transport_of(terminal).resume_reading()
        while not terminal.said.endswith(FLOOD[-1000:]):
            await terminal.receive()
        dropped_bytes = w.status.output_dropped_bytes
        assert len(terminal.said) == len(FLOOD) - dropped_bytes
        assert terminal.said.endswith(FLOOD[-100 * 1024 :])
        await terminal.notice("dropped")
        assert len(w.logged(Logged.OUTPUT_DROPPED)) == 1


async def test_a_console_that_does_not_read_is_closed_where_the_yaml_says_so(
    tmp_path: Path,
) -> None:
    keys = "slow_client: disconnect, client_buffer_kib: 16"
    async with world(tmp_path, keys) as w, opened(w) as terminal:
        slow(terminal)
        writing = asyncio.create_task(w.board.write(FLOOD))
        await w.pass_until(lambda: w.logged(Logged.DISCONNECTED))
        transport_of(terminal).resume_reading()
        assert "does not take the board's output" in await terminal.end()
        await writing


# --- a newcomer, and silence


async def test_a_console_is_told_and_closed_when_it_is_taken_over(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: takeover") as w, opened(w) as terminal:
        newcomer = await w.client()
        assert await terminal.end() == f"desk: {newcomer.name} takes the port over"


async def test_an_idle_console_is_told_and_closed(tmp_path: Path) -> None:
    async with world(tmp_path, "idle_timeout_s: 60") as w, opened(w) as terminal:
        assert await w.run(terminal.end()) == "desk: no byte for 60 s"


# --- a board that is lost, or takes nothing


async def test_a_console_keeps_its_port_while_the_board_is_away(tmp_path: Path) -> None:
    async with world(tmp_path) as w, opened(w) as terminal:
        w.board.unplug()
        await w.until(State.OFFLINE)
        await terminal.socket.send_bytes(b"waits")
        await terminal.ask(type="settings", baudrate=9600)
        w.board.plug()
        await w.pass_until(lambda: w.state == State.IN_USE)
        await w.board.reads(b"waits")
        assert w.board.baudrate == 9600
        await w.board.write(b"back")
        await terminal.hear(b"back")


@pytest.mark.parametrize("grace_s", [0, 10])
async def test_a_console_ends_with_its_board_after_the_board_s_last_bytes(
    tmp_path: Path, grace_s: int
) -> None:
    async with world(tmp_path, f"grace_s: {grace_s}") as w, opened(w) as terminal:
        label = w.status.controls
        await says(w, b"last words")
        w.board.unplug()
        reason = await w.run(terminal.end())
        assert terminal.said == b"last words"
        (end,) = w.logged(Logged.DISCONNECTED)
        assert (reason, end["client"]) == (f"desk: {end['reason']}", label)


async def test_a_port_is_free_ten_seconds_after_its_console_closed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        async with opened(w) as terminal:
            await terminal.socket.send_bytes(b"x" * 60_000)
            await until(lambda: w.status.sent_bytes == 60_000)
        await w.until(State.CLEANUP)
        await w.pass_time(9.9)
        assert w.state == State.CLEANUP
        await w.pass_time(0.2)
        assert w.state == State.IDLE
        assert w.status.dropped_bytes == sum(w.said(Logged.DROPPED, "unsent_bytes")) > 0
