"""Which client controls a port and what the others see, by each rule of `sharing`; `on_connect`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.com_port import baudrate_answer, purge, purge_answer, stopsize, stopsize_answer
from tests.support.gateway_end import GatewayEnd, deliver, until_stalled
from tests.support.tcp_client import SPEAKS_TELNET, TcpClient
from tests.support.telnet_wire import AYT, command
from tests.support.world import (
    BOTH,
    IDLE,
    RESET,
    STRAP,
    Client,
    Control,
    Lines,
    Logged,
    Notice,
    State,
    World,
    baudrate,
    control,
    control_answers,
    until,
    world,
)

LINES_ON = (Control.DTR_ON, Control.RTS_ON)
LINES_OFF = (Control.DTR_OFF, Control.RTS_OFF)
RESETS = "on_connect: bootloader, on_disconnect: reset"
BOOTLOADER, APP = [RESET, STRAP, IDLE], [RESET, IDLE]


async def in_control_again(client: Client, w: World) -> None:
    await client.is_told(Notice.RESUMED)
    await until(lambda: w.status.controls == client.name)


async def asked(client: Client, request: bytes, answer: bytes) -> None:
    """Send a request, and wait for its answer."""
    seen = len(client.received)
    await client.send(request)
    await client.receive(lambda: answer in client.received[seen:])


# --- waiting


async def test_a_waiting_client_is_not_read_and_loses_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, "accept_any_protocol: true") as w:
        w.board.start_reading()
        first = await w.client()
        second = await w.connect(b"early ")
        sending = asyncio.create_task(second.send(b"x" * 10_000_000))
        # One read before it is paused, or two: the rest stays in the kernel.
        assert await until_stalled(second) <= 2 * 65536
        first.close()
        await until(lambda: w.is_served(second))
        await sending
        await until(lambda: len(w.board.received) == 10_000_006)
        assert w.board.received == b"early " + b"x" * 10_000_000


@pytest.mark.parametrize("leave", [TcpClient.close, TcpClient.reset])
async def test_a_waiting_client_that_leaves_is_forgotten(
    tmp_path: Path, leave: Callable[[TcpClient], None]
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        waiting = await w.connect()
        await deliver(waiting, SPEAKS_TELNET)
        leave(waiting)
        await w.pass_time(1.0)
        await client.settled()
        client.close()
        await w.until_idle()
        assert not w.is_served(waiting)


# --- takeover


async def test_a_newcomer_takes_over_from_a_client_which_is_told_and_closed(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: takeover, on_connect: bootloader") as w:
        w.board.start_reading()
        first = await w.run(w.client())
        await first.set_baudrate(9600)
        n_lines = len(w.board.lines)
        second = await w.run(w.client())
        assert await first.receive_to_end() == Notice.taken_over(second)
        assert w.ends(first) == [f"{second.name} takes the port over"]
        assert w.status.settings == "115200 8N1"
        assert w.board.lines[n_lines:] == BOOTLOADER
        await second.send(b"mine")
        await until(lambda: w.board.received == b"mine")


async def test_a_stuck_board_does_not_keep_the_newcomer_waiting(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: takeover") as w:
        first = await w.client()
        await deliver(first, b"x" * 200_000)
        second = await w.run(w.client())
        assert w.status.controls == second.name
        dropped = [entry["unsent_bytes"] for entry in w.logged(Logged.DROPPED)]
        assert sum(dropped) == w.status.dropped_bytes > 0


# --- preempt


async def test_a_newcomer_controls_the_port_and_the_first_client_observes(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        w.board.start_reading()
        monitor = await w.client()
        await monitor.set_baudrate(74880)
        flasher = await w.client()
        await monitor.is_told(Notice.suspended(flasher))
        assert w.status.settings == "115200 8N1"
        assert (w.status.controls, w.status.observes) == (flasher.name, monitor.name)
        await flasher.send(b"flash")
        await flasher.set_baudrate(921600)
        await w.board.write(b"OK")
        await flasher.receive_data(b"OK")
        await monitor.receive(lambda: monitor.data.endswith(b"\r\nOK"))
        flasher.close()
        await in_control_again(monitor, w)
        await until(lambda: w.status.settings == "74880 8N1")
        await monitor.send(b"typed")
        await until(lambda: w.board.received == b"flashtyped")
        monitor.close()
        await w.until_idle()
        assert w.status.settings == "115200 8N1"


async def test_a_suspended_client_is_answered_from_its_own_view(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        w.board.start_reading()
        monitor = await w.client()
        flasher = await w.client()
        await monitor.is_told(Notice.suspended(flasher))
        n_lines = len(w.board.lines)
        await monitor.send(b"typed")
        for request, answer in (
            (baudrate(9600), baudrate_answer(9600)),
            (baudrate(0), baudrate_answer(9600)),
            (control(Control.RTS_ON), control_answers(Control.RTS_ON)),
            (control(Control.REQUEST_RTS), control_answers(Control.RTS_ON)),
            (control(Control.BREAK_ON), control_answers(Control.BREAK_ON)),
            (control(Control.REQUEST_BREAK), control_answers(Control.BREAK_ON)),
            (control(Control.BREAK_OFF), control_answers(Control.BREAK_OFF)),
            (purge(3), purge_answer(3)),
            (command(AYT), b"desk: 9600 8N1, DTR off, RTS on"),
        ):
            await asked(monitor, request, answer)
        await asked(flasher, b"flash" + baudrate(0), baudrate_answer(115200))
        await until(lambda: w.board.received == b"flash")
        assert w.board.lines[n_lines:] == []
        assert w.board.baudrate == 115200
        flasher.close()
        await in_control_again(monitor, w)
        await until(lambda: w.board.baudrate == 9600)
        assert RESET not in w.board.lines
        (resumed,) = w.logged_for(monitor, Logged.CLIENT_RESUMED)
        assert resumed["dropped_bytes"] == w.status.dropped_bytes == len(b"typed")


async def test_lines_that_were_both_on_return_in_one_step(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        monitor = await w.client()
        await asked(monitor, control(*LINES_ON), control_answers(*LINES_ON))
        await until(lambda: w.board.lines[-1] == BOTH)
        flasher = await w.client()
        await monitor.is_told(Notice.suspended(flasher))
        assert w.board.lines[-1] == IDLE
        flasher.close()
        await in_control_again(monitor, w)
        await until(lambda: w.board.lines == [BOTH, IDLE, BOTH, IDLE, BOTH])


@pytest.mark.parametrize("ends", [False, True])
async def test_a_break_begins_again_with_control_unless_it_was_ended(
    tmp_path: Path, ends: bool
) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        monitor = await w.client()
        await monitor.control(Control.BREAK_ON)
        flasher = await w.client()
        await monitor.is_told(Notice.suspended(flasher))
        if ends:
            await monitor.control(Control.BREAK_OFF)
        flasher.close()
        await in_control_again(monitor, w)
        await asked(monitor, b"x" + purge(1), purge_answer(1))
        breaks = [call.value for call in w.board.calls.named("break")]
        assert breaks == ([True, False] if ends else [True, False, True])


async def test_a_reset_that_was_interrupted_is_not_continued(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        monitor = await w.client()
        await monitor.control(Control.RTS_ON)
        await until(lambda: w.board.lines[-1] == RESET)
        flasher = await w.run(w.client())
        await monitor.is_told(Notice.suspended(flasher))
        n_lines = len(w.board.lines)
        flasher.close()
        await in_control_again(monitor, w)
        await asked(monitor, control(Control.REQUEST_RTS), control_answers(Control.RTS_OFF))
        assert w.board.lines[n_lines - 1 :] == [IDLE]


@pytest.mark.parametrize("hangs", ["lines", "settings"])
async def test_a_request_that_hangs_when_its_client_is_suspended_is_answered_once(
    tmp_path: Path, hangs: str
) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        monitor = await w.client()
        w.board.calls.hang(hangs)
        await deliver(monitor, baudrate(9600) + control(Control.DTR_ON) + b"x")
        flasher = await w.asks()
        await monitor.is_told(Notice.suspended(flasher))
        await monitor.receive_wire(control_answers(Control.DTR_ON))
        w.board.calls.answer()
        await asked(monitor, control(Control.REQUEST_DTR), control_answers(Control.DTR_ON))
        assert monitor.received.count(baudrate_answer(9600)) == 1
        flasher.close()
        await in_control_again(monitor, w)
        await until(lambda: w.board.baudrate == 9600)
        assert w.status.dropped_bytes == 1


async def test_settings_the_tty_does_not_have_are_seen_when_control_returns(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        monitor = await w.client()
        flasher = await w.client()
        await monitor.is_told(Notice.suspended(flasher))
        await asked(monitor, stopsize(3), stopsize_answer(3))  # 1.5 bits, of which a pty makes 2
        flasher.close()
        await in_control_again(monitor, w)
        await until(lambda: w.status.settings == "115200 8N2")
        await asked(monitor, stopsize(0), stopsize_answer(2))


async def test_a_client_suspended_twice_keeps_what_it_has_set(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        monitor = await w.client()
        await monitor.set_baudrate(9600)
        for _ in range(2):
            flasher = await w.client()
            flasher.close()
        await in_control_again(monitor, w)
        await until(lambda: w.board.baudrate == 9600)
        assert await monitor.baudrate() == 9600


async def test_a_suspended_client_that_leaves_is_not_resumed(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        first = await w.client()
        second = await w.client()
        await first.is_told(Notice.suspended(second))
        first.reset()
        await until(lambda: not w.status.observes)
        await w.board.write(b"on")
        await second.receive_data(b"on")
        second.close()
        await w.until_idle()
        assert w.logged(Logged.CLIENT_RESUMED) == []


async def test_all_are_told_when_the_board_has_gone(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt, grace_s: 0") as w:
        first = await w.client()
        second = await w.client()
        await first.is_told(Notice.suspended(second))
        w.board.unplug()
        await first.receive_to_end()
        await second.receive_to_end()
        assert w.ends(first) == w.ends(second)
        assert (w.status.controls, w.status.observes) == ("", "")


async def test_a_slow_observer_loses_output_and_the_controller_none(tmp_path: Path) -> None:
    flood = random.Random(2).randbytes(1_000_000).replace(b"\xff", b"\xfe")
    async with world(tmp_path, "sharing: preempt, client_buffer_kib: 97") as w:
        slow = await w.client(receive_buffer_bytes=4096)
        GatewayEnd(slow).keep_little()
        controller = await w.client()
        writing = asyncio.create_task(w.board.write(flood))
        await controller.receive_data(flood)
        await writing
        await slow.receive(lambda: slow.data.endswith(flood[-97 * 1024 :]))
        assert len(slow.data) < len(flood)
        assert len(w.logged_for(slow, Logged.OUTPUT_DROPPED)) == 1


# --- shared


async def test_a_client_that_joins_a_stuck_board_writes_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: shared") as w:
        first = await w.client()
        await deliver(first, b"x" * 200_000)
        second = await w.client()
        before = w.status.sent_bytes
        await deliver(second, b"y" * 100_000)
        assert w.status.sent_bytes == before, "written behind bytes that the board does not take"
        w.board.start_reading()
        await until(lambda: len(w.board.received) == 300_000)
        assert w.board.received.count(b"y") == 100_000


async def test_commands_of_two_clients_are_not_taken_for_a_reset(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: shared") as w:
        board = w.board
        board.start_reading()
        first, second = await w.client(), await w.client()
        before = len(board.lines)
        for client, codes in ((first, LINES_ON), (first, LINES_OFF), (second, LINES_ON)):
            await asked(client, control(*codes), control_answers(*codes))
        await until(lambda: board.lines[before:] == [BOTH, IDLE, BOTH])
        await second.send(b"settled")
        await until(lambda: board.received == b"settled")
        assert board.lines[before:] == [BOTH, IDLE, BOTH]
        # The same from one client is a reset.
        for codes in (LINES_OFF, LINES_ON):
            await w.run(asked(second, control(*codes), control_answers(*codes)))
        await w.pass_until(lambda: board.lines[before + 3 :] == [IDLE, BOTH, RESET, BOTH])


# --- on_connect and on_disconnect


@pytest.mark.parametrize(("on_connect", "played"), [("bootloader", BOOTLOADER), ("reset", APP)])
async def test_the_board_is_reset_before_the_first_command_and_byte_of_its_client(
    tmp_path: Path, on_connect: str, played: list[Lines]
) -> None:
    async with world(tmp_path, f"on_connect: {on_connect}") as w:
        board = w.board
        before = len(board.lines)
        lines_at_first_byte: list[list[Lines]] = []
        board.start_reading(lambda _: lines_at_first_byte.append(board.lines[before:]))
        board.calls.hang("lines")  # the reset hangs while the client sends
        client = await w.connect()
        await client.send(control(*LINES_ON) + b"hello")
        await w.pass_until(lambda: w.state == State.IN_USE)
        assert client.received == b""
        board.calls.answer()
        await w.pass_until(lambda: board.received == b"hello")
        await board.write(b"ets Jul 29 2019")  # seen from the reset on
        await client.receive(lambda: client.data.endswith(b"ets Jul 29 2019"))
        client.close()
        await w.until_idle()
        assert lines_at_first_byte[0] == [*played, BOTH]
        assert board.lines[before:] == [*played, BOTH, IDLE]


async def test_on_connect_and_on_disconnect_count_clients_one_by_one(tmp_path: Path) -> None:
    async with world(tmp_path, RESETS) as w:
        for _ in range(2):
            before = len(w.board.lines)
            client = await w.run(w.client())
            assert w.board.lines[before:] == BOOTLOADER
            await client.send(control(*LINES_ON))
            await w.pass_until(lambda: w.board.lines[-1] == BOTH)
            client.close()
            await w.until_idle()
            assert w.board.lines[before:] == [*BOOTLOADER, BOTH, *APP]


async def test_a_client_that_resumes_does_not_reset_the_board(tmp_path: Path) -> None:
    async with world(
        tmp_path, "sharing: preempt, on_connect: bootloader, on_disconnect: reset"
    ) as w:
        monitor = await w.run(w.client())
        before = len(w.board.lines)
        flasher = await w.run(w.client())
        assert w.board.lines[before:] == BOOTLOADER  # for the newcomer
        await w.run(flasher.settled())
        flasher.close()
        await w.run(in_control_again(monitor, w))
        await w.run(monitor.settled())
        assert w.board.lines[before:] == [*BOOTLOADER, *APP]  # the flasher has left
        monitor.close()
        await w.until_idle()
        assert w.board.lines[before:] == [*BOOTLOADER, *APP, *APP]


async def test_a_client_that_joins_does_not_reset_the_board_of_the_others(tmp_path: Path) -> None:
    async with world(
        tmp_path, "sharing: shared, on_connect: bootloader, on_disconnect: reset"
    ) as w:
        first = await w.run(w.client())
        before = len(w.board.lines)
        second = await w.run(w.client())
        await w.run(second.settled())
        second.close()
        await w.pass_until(lambda: w.status.controls == first.name)
        assert w.board.lines[before:] == []
        first.close()
        await w.until_idle()
        assert w.board.lines[before:] == APP  # the last has left
