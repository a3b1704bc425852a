"""A client whose board vanishes and comes back, over real TCP and a real tty."""

from __future__ import annotations

import os
import struct
from fcntl import ioctl
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.config.document import Sharing
from gateway.port_document import PortState
from gateway.protocol.access_server import RawPipe
from gateway.protocol.reset import BOTH, IDLE, RESET, Lines
from gateway.protocol.rfc2217 import Control
from gateway.protocol.serial_settings import SerialSettings
from tests.support.pty_board import LoopClock, PtyBoard, Served, serving, turns, until
from tests.support.tcp_client import GREETED_ACCEPTS_COM_PORT, GREETING, TcpClient, com_port
from tests.support.telnet_wire import RFC2217_CLIENT

GRACE_S = 10.0
SET_BAUDRATE, SET_CONTROL, PURGE = 1, 5, 12
PURGE_TRANSMIT = com_port(PURGE, b"\x02")


def control(*codes: Control) -> bytes:
    return b"".join(com_port(SET_CONTROL, bytes([code])) for code in codes)


def answers(*codes: Control) -> bytes:
    return b"".join(com_port(SET_CONTROL + 100, bytes([code])) for code in codes)


def baudrate(bps: int) -> bytes:
    return com_port(SET_BAUDRATE, bps.to_bytes(4, "big"))


def baudrate_answer(bps: int) -> bytes:
    return com_port(SET_BAUDRATE + 100, bps.to_bytes(4, "big"))


HARD_RESET = (Control.RTS_ON, Control.RTS_OFF)


async def rfc2217_client(served: Served) -> TcpClient:
    client = await TcpClient.connect(served.tcp_port)
    await client.send(RFC2217_CLIENT)
    await client.receive_wire(GREETING + GREETED_ACCEPTS_COM_PORT)
    return client


async def unplugged(board: PtyBoard, served: Served) -> None:
    board.unplug()
    await until(lambda: served.port.state is PortState.OFFLINE)


async def in_use_again(served: Served) -> None:
    await until(lambda: served.port.state is PortState.IN_USE)


async def sent_to(client: TcpClient, served: Served, data: bytes) -> None:
    """Send bytes, and wait until the device has been given them."""
    sent_bytes = served.port.sent_bytes + len(data)
    await client.send(data)
    await until(lambda: served.port.sent_bytes == sent_bytes)


def kernel_speed(board: PtyBoard) -> int:
    """The baud rate of the tty, as the kernel has it (struct termios2)."""
    fd = os.open(board.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        buffer = bytearray(44)
        ioctl(fd, 0x802C542A, buffer)
    finally:
        os.close(fd)
    speed: int = struct.unpack_from("I", buffer, 40)[0]
    return speed


def dropped(logs: object) -> list[int]:
    assert isinstance(logs, list)
    return [entry["unsent_bytes"] for entry in logs if entry["event"] == "unsent_dropped"]


def resets(logs: object) -> list[tuple[str, str]]:
    assert isinstance(logs, list)
    return [
        (entry["event"], entry["into"]) for entry in logs if entry["event"].startswith("board_res")
    ]


# --- bytes


async def test_what_is_sent_while_the_tty_dies_waits_for_the_board(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, grace_s=GRACE_S, converse=RawPipe) as served:
            with await TcpClient.connect(served.tcp_port):
                await served.session()
                board.unplug()
                # In the turn in which the tty has died, before the loop can tell.
                served.port.write(b"first, ")
                served.port.write(b"second, ")
                await until(lambda: served.port.state is PortState.OFFLINE)
                served.port.write(b"third")
                board.plug()
                board.start_reading()
                await until(lambda: board.received == b"first, second, third")
            await served.until_idle()
            assert served.port.counts.input_dropped_bytes == 0
    assert dropped(logs) == []


async def test_the_rest_of_what_a_vanished_board_has_begun_to_take_is_dropped_and_counted(
    tmp_path: Path,
) -> None:
    """Its beginning is lost in the kernel: a board that starts would be typed the middle of it."""
    with PtyBoard(tmp_path) as board, LoopClock() as clock, capture_logs() as logs:
        async with serving(board, grace_s=GRACE_S, converse=RawPipe) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                session = await served.session()
                await client.send(b"x" * 300_000)
                await until(lambda: session.received_bytes == 300_000)
                await turns(200)  # the kernel makes room in a pty a moment later
                device = served.port
                taken_bytes = device.sent_bytes - device.unsent_bytes
                await unplugged(board, served)
                await until(lambda: device.sent_bytes == 300_000)
                assert device.counts.input_dropped_bytes == 300_000 - taken_bytes
                await sent_to(client, served, b"still goes on")
                await clock.advance(0.5)
                await sent_to(client, served, b"begins anew")
                board.plug()
                board.start_reading()
                while len(board.received) < len(b"begins anew"):
                    await clock.advance(0.05)
                assert board.received == b"begins anew"
                n_dropped = 300_000 + len(b"still goes on") - taken_bytes
                assert device.counts.input_dropped_bytes == n_dropped
                assert sum(dropped(logs)) == n_dropped


@pytest.mark.parametrize("command", [control(*HARD_RESET), PURGE_TRANSMIT, baudrate(9600)])
async def test_a_command_begins_anew_behind_what_was_cut_off(
    tmp_path: Path, command: bytes
) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        async with serving(board, grace_s=GRACE_S) as served:
            with await rfc2217_client(served) as client:
                await client.send(b"x" * 100_000)
                await until(lambda: served.port.sent_bytes == 100_000)
                await unplugged(board, served)
                await client.send(b"dropped" + command + b"kept")
                while served.port.sent_bytes < 100_011:
                    await clock.advance(0.02)  # a reset takes its time
                board.plug()
                board.start_reading()
                while len(board.received) < 4:
                    await clock.advance(0.05)
                assert board.received == b"kept"
                assert served.port.counts.input_dropped_bytes > 50_000


async def test_a_client_may_send_again_when_a_purge_has_made_room(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, grace_s=GRACE_S) as served:
            with await rfc2217_client(served) as client:
                await unplugged(board, served)
                await client.send(b"x" * 400_000)
                await until(lambda: served.port.unsent_bytes > 65536)
                await client.send(PURGE_TRANSMIT + b"fresh")
                await client.receive_wire(com_port(PURGE + 100, b"\x02"))
                await until(lambda: served.port.unsent_bytes == 5)
                board.plug()
                board.start_reading()
                await until(lambda: board.received == b"fresh")


async def test_without_a_grace_all_that_the_board_has_not_got_is_counted(tmp_path: Path) -> None:
    sent_bytes = 200_000
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, converse=RawPipe) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                session = await served.session()
                await client.send(b"x" * sent_bytes)
                await until(lambda: session.received_bytes == sent_bytes)
                await turns(200)
                taken_bytes = served.port.sent_bytes - served.port.unsent_bytes
                board.unplug()
                await until(lambda: not served.active)
            counts = served.port.counts
            assert counts.input_dropped_bytes == sent_bytes - taken_bytes
    assert sum(dropped(logs)) == sent_bytes - taken_bytes


# --- settings


async def test_a_client_that_leaves_a_board_that_is_away_leaves_no_settings(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, grace_s=GRACE_S) as served:
            with await rfc2217_client(served) as client:
                await client.send(baudrate(921600))
                await client.receive_wire(baudrate_answer(921600))
                await unplugged(board, served)
            await until(lambda: not served.sessions)
            board.plug()
            await served.until_idle()
            assert kernel_speed(board) == 115200
            with await rfc2217_client(served) as client:
                await client.send(baudrate(0))
                await client.receive_wire(baudrate_answer(115200))


async def test_a_client_that_leaves_in_the_moment_of_return_leaves_no_settings(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, grace_s=GRACE_S) as served:
            with await rfc2217_client(served) as client:
                await client.send(baudrate(921600))
                await client.receive_wire(baudrate_answer(921600))
                await unplugged(board, served)
                board.plug()
                await in_use_again(served)
                (session,) = served.active
                session.close("closed by the test")
            await served.until_idle()
            assert kernel_speed(board) == 115200


async def test_a_setting_is_compared_with_what_was_asked_for_last(tmp_path: Path) -> None:
    """A client that asks for the former baud rate before the last one is in force gets it."""
    with PtyBoard(tmp_path) as board:
        async with serving(board, grace_s=GRACE_S) as served:
            with await rfc2217_client(served) as client:
                await unplugged(board, served)
                await client.send(baudrate(921600))
                await client.receive_wire(baudrate_answer(921600))
                board.plug()
                await in_use_again(served)
                former = SerialSettings()
                await client.send(baudrate(former.baudrate))
                await client.receive_wire(baudrate_answer(former.baudrate))
                assert kernel_speed(board) == former.baudrate


async def test_a_suspended_client_gets_a_board_that_is_away_without_the_other_ones_bytes(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, grace_s=GRACE_S, sharing=Sharing.PREEMPT) as served:
            with await rfc2217_client(served) as first:
                with await rfc2217_client(served) as second:
                    await second.send(baudrate(921600))
                    await second.receive_wire(baudrate_answer(921600))
                    await unplugged(board, served)
                    await sent_to(second, served, b"x" * 50_000)
                await first.receive(lambda: b"control returned to you" in first.received)
                await sent_to(first, served, b"mine")
                board.plug()
                board.start_reading()
                await until(lambda: board.received == b"mine")
                assert kernel_speed(board) == 115200
    assert sum(dropped(logs)) == 50_000


# --- resets


async def test_a_reset_asked_for_while_the_board_is_away_is_carried_out_when_it_is_back(
    tmp_path: Path,
) -> None:
    seen: list[tuple[bytes, Lines]] = []
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, grace_s=GRACE_S) as served:
            with await rfc2217_client(served) as client:
                await unplugged(board, served)
                board.lines.clear()
                await client.send(b"before" + control(*HARD_RESET) + b"behind")
                await client.receive_wire(answers(*HARD_RESET))
                await until(lambda: served.port.sent_bytes == 12)
                assert resets(logs) == [("board_reset_postponed", "app")]
                board.plug()
                board.start_reading(lambda data: seen.append((data, board.lines[-1])))
                await until(lambda: board.received == b"behind")
                assert board.lines == [BOTH, IDLE, RESET, IDLE]
                assert seen == [(b"behind", IDLE)]
                assert resets(logs)[1:] == [("board_reset", "app")]
                assert served.port.counts.resets["app", "classic"] == 1
    assert dropped(logs) == [len(b"before")]


async def test_the_last_of_several_resets_is_carried_out_also_for_a_client_that_has_left(
    tmp_path: Path,
) -> None:
    entry = (Control.RTS_ON, Control.DTR_ON, Control.RTS_OFF, Control.DTR_OFF)
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, grace_s=GRACE_S) as served:
            with await rfc2217_client(served) as client:
                await unplugged(board, served)
                await client.send(control(*entry))
                await client.receive_wire(answers(*entry))
                await until(lambda: resets(logs) == [("board_reset_postponed", "bootloader")])
                await client.send(control(*HARD_RESET))
                await client.receive_wire(answers(*HARD_RESET))
                await until(lambda: resets(logs)[1:] == [("board_reset_postponed", "app")])
            await until(lambda: not served.sessions)
            board.lines.clear()
            board.plug()
            await served.until_idle()
            assert board.lines == [BOTH, IDLE, RESET, IDLE]
    assert resets(logs)[2:] == [("board_reset", "app")]


async def test_a_reset_whose_board_stays_away_is_not_said_to_have_happened(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock, capture_logs() as logs:
        async with serving(board, grace_s=GRACE_S) as served:
            with await rfc2217_client(served) as client:
                await unplugged(board, served)
                await client.send(control(*HARD_RESET))
                while not resets(logs):
                    await clock.advance(0.02)  # a reset takes its time
                await client.receive_wire(answers(*HARD_RESET))
                await clock.advance(GRACE_S)
                await until(lambda: served.port.state is not PortState.OFFLINE)
            board.plug()
            await clock.advance(GRACE_S)
            await served.until_idle()
            assert board.lines[-2:] == [BOTH, IDLE]
    assert resets(logs) == [("board_reset_postponed", "app")]


async def test_a_reset_that_the_board_has_got_the_first_half_of_is_not_repeated(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, grace_s=GRACE_S) as served:
            with await rfc2217_client(served) as client:
                await client.send(control(Control.RTS_ON))
                await until(lambda: board.lines[-1] == RESET)
                await turns(20)
                await unplugged(board, served)
                await client.send(control(Control.RTS_OFF))
                await client.receive_wire(answers(Control.RTS_OFF))
                await until(lambda: resets(logs) == [("board_reset", "app")])
                board.lines.clear()
                board.plug()
                await in_use_again(served)
                await turns(20)
                assert board.lines == [BOTH, IDLE]
