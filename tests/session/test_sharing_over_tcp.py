"""Several clients at one port, over real TCP and a real tty, by each of the YAML's rules."""

from __future__ import annotations

import asyncio
import random
import socket
from pathlib import Path

from structlog.testing import capture_logs

from gateway.config.document import ClientLimits, Sharing
from gateway.port_document import PortState
from gateway.protocol.reset import BOTH, IDLE, RESET
from gateway.protocol.rfc2217 import Control
from tests.session.test_session import answer, control, rfc2217_client
from tests.support.pty_board import PtyBoard, Served, serving, until
from tests.support.tcp_client import TcpClient, com_port

SET_BAUDRATE = 1


def baudrate(bps: int) -> bytes:
    return com_port(SET_BAUDRATE, bps.to_bytes(4, "big"))


def told_baudrate(bps: int) -> bytes:
    return com_port(SET_BAUDRATE + 100, bps.to_bytes(4, "big"))


async def watching(client: TcpClient, by: TcpClient) -> None:
    """Wait until the client has been told that another drives the port."""
    marker = f"--- desk: {by.name} controls the port, your input is dropped ---\r\n"
    await client.receive(lambda: marker.encode() in client.data)


async def driving_again(client: TcpClient, served: Served) -> None:
    """Wait until the client has been told that the port is its own, and it is."""
    await client.receive(lambda: b"control returned to you ---" in client.data)
    await until(lambda: served.port.arbiter.controller_names == client.name)


# --- exclusive


async def test_the_second_is_refused_with_one_line_that_says_who_has_the_port(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as first:
                with await TcpClient.connect(served.tcp_port) as second:
                    said = await second.receive_to_end()
                since = served.port.arbiter.since_text
                assert said == f"desk: in use by {first.name} since {since}\r\n".encode()
                await board.write(b"still here")
                await first.receive(lambda: first.data == b"still here")


# --- takeover


async def test_the_newcomer_replaces_the_first_which_is_told_and_closed(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.TAKEOVER) as served:
            with await rfc2217_client(served) as first:
                await first.send(baudrate(9600))
                await first.receive_wire(told_baudrate(9600))
                with await rfc2217_client(served) as second:
                    said = await first.receive_to_end()
                    assert (
                        said == f"\r\n--- desk: {second.name} takes the port over ---\r\n".encode()
                    )
                    assert served.port.status.settings.baudrate == 115200
                    board.start_reading()
                    await second.send(b"mine")
                    await until(lambda: board.received == b"mine")
            await served.until_idle()


async def test_a_board_that_takes_no_bytes_does_not_keep_the_newcomer_waiting(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, sharing=Sharing.TAKEOVER) as served:
            with await rfc2217_client(served) as first:
                await first.send(b"x" * 200_000)
                await until(lambda: served.port.unsent_bytes)
                with await rfc2217_client(served) as second:
                    assert served.port.arbiter.controller_names == second.name
    assert "unsent_dropped" in [entry["event"] for entry in logs]


# --- preempt


async def test_the_newcomer_drives_and_the_first_watches_and_resumes(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.PREEMPT) as served:
            board.start_reading()
            with await rfc2217_client(served) as monitor:
                await monitor.send(baudrate(74880))
                await monitor.receive_wire(told_baudrate(74880))
                with await rfc2217_client(served) as flasher:
                    await watching(monitor, by=flasher)
                    assert served.port.status.settings.baudrate == 115200
                    await flasher.send(baudrate(921600) + b"flash")
                    await flasher.receive_wire(told_baudrate(921600))
                    await until(lambda: board.received == b"flash")
                    await board.write(b"OK")
                    await flasher.receive(lambda: flasher.data == b"OK")
                    await monitor.receive(lambda: monitor.data.endswith(b"\r\nOK"))
                await driving_again(monitor, served)
                await until(lambda: served.port.status.settings.baudrate == 74880)
                await monitor.send(b"typed")
                await until(lambda: board.received == b"flashtyped")
            await served.until_idle()
            assert served.port.status.settings.baudrate == 115200


async def test_what_a_muted_client_asks_for_is_answered_and_not_done(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, sharing=Sharing.PREEMPT) as served:
            board.start_reading()
            with await rfc2217_client(served) as monitor:
                with await rfc2217_client(served) as flasher:
                    await watching(monitor, by=flasher)
                    before = list(board.lines)
                    await monitor.send(b"typed" + baudrate(9600) + control(Control.RTS_ON))
                    await monitor.receive_wire(told_baudrate(9600))
                    await monitor.receive_wire(answer(Control.RTS_ON))
                    await flasher.send(b"flash")
                    await until(lambda: board.received)
                    assert board.received == b"flash"
                    assert board.lines == before
                    assert served.port.status.settings.baudrate == 115200
                await driving_again(monitor, served)
                await until(lambda: served.port.status.settings.baudrate == 9600)
                assert RESET not in board.lines
    (resumed,) = [entry for entry in logs if entry["event"] == "client_resumed"]
    assert resumed["dropped_bytes"] == len(b"typed")


async def test_lines_that_were_both_on_come_back_without_a_reset(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.PREEMPT) as served:
            with await rfc2217_client(served) as monitor:
                await monitor.send(control(Control.DTR_ON) + control(Control.RTS_ON))
                await monitor.receive_wire(answer(Control.RTS_ON))
                await until(lambda: board.lines[-1] == BOTH)
                with await rfc2217_client(served) as flasher:
                    await watching(monitor, by=flasher)
                    assert board.lines[-1] == IDLE
                await driving_again(monitor, served)
                await until(lambda: board.lines[-1] == BOTH)
                assert board.lines == [BOTH, IDLE, BOTH, IDLE, BOTH]


async def test_a_stack_of_clients_resumes_from_the_top(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.PREEMPT) as served:
            with await rfc2217_client(served) as first:
                second = await rfc2217_client(served)
                await watching(first, by=second)
                with await rfc2217_client(served) as third:
                    await watching(second, by=third)
                    assert served.port.arbiter.observer_names == f"{first.name}, {second.name}"
                await driving_again(second, served)
                second.close()
                await driving_again(first, served)


async def test_a_client_that_leaves_while_muted_is_not_resumed(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.PREEMPT) as served:
            first = await rfc2217_client(served)
            with await rfc2217_client(served) as second:
                await watching(first, by=second)
                first.reset()
                await until(lambda: len(served.sessions) == 1)
                await board.write(b"on")
                await second.receive(lambda: second.data == b"on")
            await served.until_idle()


async def test_the_last_bytes_of_one_that_has_left_are_sent_before_another_drives(
    tmp_path: Path,
) -> None:
    data = random.Random(1).randbytes(150_000).replace(b"\xff", b"\xfe")
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.PREEMPT) as served:
            first = await rfc2217_client(served)
            await first.send(data)
            await until(lambda: served.port.unsent_bytes)
            first.close()
            connecting = asyncio.create_task(rfc2217_client(served))
            await asyncio.sleep(1)  # longer than a newcomer usually waits
            board.start_reading()
            with await connecting as second:
                await until(lambda: len(board.received) >= len(data))  # from the kernel's buffer
                assert board.received == data
                await second.send(b"second")
                await until(lambda: board.received == data + b"second")


async def test_all_are_told_when_the_board_has_gone(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.PREEMPT) as served:
            with await rfc2217_client(served) as first, await rfc2217_client(served) as second:
                await watching(first, by=second)
                board.unplug()
                await first.receive_to_end()
                await second.receive_to_end()
            await until(lambda: not served.sessions)
            assert len(served.port.arbiter) == 0


async def test_a_board_that_vanishes_as_its_driver_leaves_is_waited_for_by_the_other(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.PREEMPT, grace_s=30) as served:
            with await rfc2217_client(served) as monitor:
                await monitor.send(baudrate(9600))
                await monitor.receive_wire(told_baudrate(9600))
                flasher = await rfc2217_client(served)
                await watching(monitor, by=flasher)
                board.unplug()
                await until(lambda: served.port.state is PortState.OFFLINE)
                flasher.close()
                await driving_again(monitor, served)
                board.plug()
                await until(lambda: served.port.state is PortState.IN_USE)
                await until(lambda: served.port.status.settings.baudrate == 9600)
                await board.write(b"back")
                await monitor.receive(lambda: monitor.data.endswith(b"back"))


async def test_a_slow_watcher_loses_the_oldest_and_the_driver_nothing(
    tmp_path: Path,
) -> None:
    limits = ClientLimits(client_buffer_kib=97)
    flood = random.Random(2).randbytes(1_000_000).replace(b"\xff", b"\xfe")
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, sharing=Sharing.PREEMPT, limits=limits) as served:
            with await rfc2217_client(served, receive_buffer_bytes=4096) as slow:
                connection = (await served.session())._transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                with await rfc2217_client(served) as driver:
                    writing = asyncio.create_task(board.write(flood))
                    await driver.receive(lambda: driver.data.endswith(flood[-100:]))
                    await writing
                    assert driver.data.endswith(flood)
                    await slow.receive(lambda: slow.data.endswith(flood[-97 * 1024 :]))
                    assert len(slow.received) < len(flood)
    assert [entry["event"] for entry in logs].count("output_dropped") == 1


# --- shared


async def test_all_see_the_output_and_all_may_write(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.SHARED) as served:
            board.start_reading()
            with await rfc2217_client(served) as one, await rfc2217_client(served) as other:
                await board.write(b"hello")
                await one.receive_data(b"hello")
                await other.receive_data(b"hello")
                await one.send(b"1")
                await until(lambda: board.received == b"1")
                await other.send(b"2")
                await until(lambda: board.received == b"12")
                assert served.port.arbiter.controller_names == f"{one.name}, {other.name}"


async def test_settings_are_whose_asked_last_until_the_last_has_left(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.SHARED) as served:
            with await rfc2217_client(served) as one:
                with await rfc2217_client(served) as other:
                    await one.send(baudrate(9600))
                    await one.receive_wire(told_baudrate(9600))
                    await other.send(baudrate(74880))
                    await other.receive_wire(told_baudrate(74880))
                await until(lambda: len(served.sessions) == 1)
                assert served.port.status.settings.baudrate == 74880
            await served.until_idle()
            assert served.port.status.settings.baudrate == 115200


async def test_who_leaves_in_the_middle_of_a_reset_does_not_leave_the_board_in_it(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.SHARED) as served:
            with await rfc2217_client(served) as stays:
                dies = await rfc2217_client(served)
                await dies.send(control(Control.RTS_ON))
                await dies.receive_wire(answer(Control.RTS_ON))
                await until(lambda: board.lines[-1] == RESET)
                dies.close()
                await until(lambda: board.lines[-1] == IDLE)
                await board.write(b"boots")
                await stays.receive_data(b"boots")


async def test_one_that_joins_a_board_that_takes_nothing_writes_nothing_either(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.SHARED) as served:
            with await rfc2217_client(served) as first:
                await first.send(b"x" * 200_000)
                await until(lambda: served.port._is_busy)
                with await rfc2217_client(served) as second:
                    before = served.port.unsent_bytes
                    await second.send(b"y" * 100_000)
                    (joined,) = [each for each in served.active if each.label == second.name]
                    await until(lambda: joined.received_bytes >= 65536)
                    assert served.port.unsent_bytes == before
                    board.start_reading()
                    await until(lambda: len(board.received) == 300_000)
                    assert board.received.count(b"y") == 100_000


async def test_commands_of_two_clients_are_not_taken_for_one_clients_reset(tmp_path: Path) -> None:
    lines_off, lines_on = (Control.DTR_OFF, Control.RTS_OFF), (Control.DTR_ON, Control.RTS_ON)

    async def set_lines(client: TcpClient, codes: tuple[Control, Control]) -> None:
        seen = len(client.received)
        await client.send(b"".join(map(control, codes)))
        answers = b"".join(map(answer, codes))
        await client.receive(lambda: answers in client.received[seen:])

    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.SHARED) as served:
            board.start_reading()
            with await rfc2217_client(served) as first, await rfc2217_client(served) as second:
                before = len(board.lines)
                await set_lines(first, lines_on)
                await set_lines(first, lines_off)
                await set_lines(second, lines_on)
                await until(lambda: len(board.lines) == before + 3)
                await second.send(b"settled")
                await until(lambda: board.received == b"settled")
                assert board.lines[before:] == [BOTH, IDLE, BOTH]
                # The same from one client is a reset.
                await set_lines(second, lines_off)
                await set_lines(second, lines_on)
                await until(lambda: board.lines[before + 3 :] == [IDLE, BOTH, RESET, BOTH])
