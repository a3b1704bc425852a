"""One client on one board, over real TCP and a real tty."""

from __future__ import annotations

import asyncio
import random
import re
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.port_document import PortState
from gateway.protocol.access_server import RawPipe
from gateway.protocol.reset import IDLE, RESET, STRAP
from gateway.protocol.rfc2217 import Control
from gateway.protocol.serial_settings import SerialSettings
from gateway.session.session import Session, SessionState
from tests.support.pty_board import LoopClock, PtyBoard, Served, serving, turns, until
from tests.support.tcp_client import (
    GREETED_ACCEPTS_COM_PORT,
    GREETING,
    SPEAKS_TELNET,
    TcpClient,
    com_port,
)
from tests.support.telnet_wire import (
    AO,
    AYT,
    BRK,
    DM,
    IP,
    RFC2217_CLIENT,
    SB,
    WIRE_CASES,
    command,
    do,
    will,
)

SET_BAUDRATE, SET_CONTROL, NOTIFY_MODEMSTATE, SUSPEND, RESUME, PURGE = 1, 5, 7, 8, 9, 12
SIGNATURE = 0
ALL_BYTES = bytes(range(256))

#: The most that a session may keep of what a client has sent: 64 KiB that the tty has not taken,
#: 256 KiB that wait, with one more read on top of each.
KEPT_BYTES = 65536 + 262144 + 2 * 65536
#: And of what a board has sent: the rest of one read, with all its bytes doubled.
ONE_READ_BYTES = 2 * 65536
#: More than the kernel takes on the way to a client that does not read: what a socket may send
#: (4 MB on most machines), 64 KiB that this client's may receive, and 64 KiB of a pty.
MUCH = random.Random(1).randbytes(
    int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2]) + 2_000_000
)
SLOW, FAST = SerialSettings(baudrate=300), SerialSettings(baudrate=921600)
STATUS_LINE = b"\r\ndesk: 115200 8N1, DTR off, RTS off\r\n"


def control(code: Control) -> bytes:
    return com_port(SET_CONTROL, bytes([code]))


def answer(code: Control) -> bytes:
    return com_port(SET_CONTROL + 100, bytes([code]))


def doubled(data: bytes) -> bytes:
    return data.replace(b"\xff", b"\xff\xff")


async def rfc2217_client(served: Served, receive_buffer_bytes: int | None = None) -> TcpClient:
    """A client that speaks RFC 2217 and has been served."""
    client = await TcpClient.connect(served.tcp_port, receive_buffer_bytes=receive_buffer_bytes)
    await client.send(RFC2217_CLIENT)
    await client.receive_wire(GREETING + GREETED_ACCEPTS_COM_PORT)
    return client


async def settled(client: TcpClient) -> None:
    """Wait until all that the client has sent so far has been carried out."""
    before = client.received.count(answer(Control.DTR_OFF))
    await client.send(control(Control.REQUEST_DTR))
    await client.receive(lambda: client.received.count(answer(Control.DTR_OFF)) > before)


async def check_served(served: Served, board: PtyBoard) -> None:
    """The board can be had, and is as a new client expects it."""
    await served.until_idle()
    assert board.lines[-1] == IDLE
    assert served.port.status.settings == SerialSettings()
    with await rfc2217_client(served) as client:
        board.start_reading()
        await client.send(b"ping")
        await until(lambda: board.received.endswith(b"ping"))


# --- bytes and their order


async def test_greets_a_client_as_a_console_that_echoes(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)
                await served.session()
                assert client.received == GREETING


async def test_bytes_of_all_values_go_both_ways_unchanged(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                board.start_reading()
                await client.send(doubled(ALL_BYTES * 300))
                await until(lambda: len(board.received) >= 256 * 300)
                assert board.received == ALL_BYTES * 300
                writing = asyncio.create_task(board.write(ALL_BYTES * 300))
                await client.receive_data(ALL_BYTES * 300)
                await writing


async def test_the_clients_stream_may_be_cut_at_each_byte(tmp_path: Path) -> None:
    set_baudrate = com_port(SET_BAUDRATE, (0xFFFF).to_bytes(4, "big"))
    stream = RFC2217_CLIENT + doubled(ALL_BYTES) + set_baudrate + b"end\xff\xff"
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                board.start_reading()
                session = await served.session()
                for index in range(len(stream)):
                    await client.send(stream[index : index + 1])
                    while session.received_bytes <= index:
                        await turns(1)
                await until(lambda: len(board.received) >= 256 + 4)
                assert board.received == ALL_BYTES + b"end\xff"
                await client.receive_wire(com_port(SET_BAUDRATE + 100, (0xFFFF).to_bytes(4, "big")))


async def test_a_change_comes_between_the_bytes_around_it(tmp_path: Path) -> None:
    in_pty_bytes = 200_000  # more than what a pty holds
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                before, behind = b"a" * 1_000_000, b"b" * 1_000_000
                sending = asyncio.create_task(
                    client.send(before + control(Control.DTR_ON) + behind)
                )
                set_after: list[int] = []

                def got(_: bytes) -> None:
                    if board.lines[-1] == STRAP and not set_after:
                        set_after.append(len(board.received))

                board.start_reading(got)
                await until(lambda: len(board.received) >= 2_000_000)
                await sending
                assert board.received == before + behind
                assert 1_000_000 - in_pty_bytes < set_after[0] < 1_000_000 + in_pty_bytes
                await client.receive_wire(answer(Control.DTR_ON))


async def test_a_reset_whose_two_ends_come_in_one_segment_is_a_reset(tmp_path: Path) -> None:
    entry = (Control.RTS_ON, Control.DTR_ON, Control.RTS_OFF, Control.DTR_OFF)
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                board.lines.clear()
                await client.send(b"".join(map(control, entry)))
                await until(lambda: len(board.lines) >= 3)
                assert board.lines == [RESET, STRAP, IDLE]


async def test_a_line_has_moved_when_its_command_is_answered(tmp_path: Path) -> None:
    steps = [
        (Control.DTR_ON, STRAP),
        (Control.DTR_OFF, IDLE),
        (Control.RTS_ON, RESET),
        (Control.RTS_OFF, IDLE),
    ]
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with LoopClock() as clock, await rfc2217_client(served) as client:
                for code, lines in steps:
                    await client.send(control(code))
                    await client.receive_wire(answer(code))  # no time passes
                    assert board.lines[-1] == lines
                    await clock.advance(0.2)


async def test_a_line_that_does_not_move_is_answered_all_the_same(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                board.answers.clear()  # the driver hangs
                await client.send(control(Control.DTR_ON))
                await client.receive_wire(answer(Control.DTR_ON))
                assert board.lines[-1] == IDLE
                board.answers.set()
                await until(lambda: board.lines[-1] == STRAP)


async def test_lines_that_come_in_one_segment_are_set_in_one_step(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                await client.send(control(Control.DTR_ON) + control(Control.RTS_ON))
                await client.receive_wire(answer(Control.DTR_ON) + answer(Control.RTS_ON))
                await until(lambda: len(board.lines) == 3)
                assert board.lines[1:] == [IDLE, type(IDLE)(dtr=True, rts=True)]


# --- who is served


async def test_a_second_client_is_refused_and_the_first_does_not_notice(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            with await rfc2217_client(served) as first:
                with LoopClock() as clock, await TcpClient.connect(served.tcp_port) as second:
                    await second.send(b"is anybody there?")
                    await until(lambda: served.states() == ["active", "waiting"])
                    await clock.advance(0.5)
                    said = await second.receive_to_end()
                first_name = re.escape(first.name)
                expected = rf"desk: in use by {first_name} since \d\d:\d\d:\d\d\r\n"
                assert re.fullmatch(expected, said.decode())
                board.start_reading()
                await first.send(b"still here")
                await until(lambda: board.received == b"still here")
                await board.write(b"so am I")
                await first.receive_data(b"so am I")
                await until(lambda: served.states() == ["active"])
    refusals = [entry for entry in logs if entry["event"] == "client_refused"]
    assert len(refusals) == 1
    assert "client_violated_protocol" not in {entry["event"] for entry in logs}


async def test_a_client_that_comes_back_at_once_is_served(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with LoopClock():
                for _ in range(10):
                    with await TcpClient.connect(served.tcp_port) as client:
                        await client.send(SPEAKS_TELNET)
                        await client.receive_wire(GREETING)
            await served.until_idle()
            # The other way round: the new connection is there before the old one is gone.
            old = await rfc2217_client(served)
            with LoopClock(), await TcpClient.connect(served.tcp_port) as new:
                await new.send(SPEAKS_TELNET)
                await until(lambda: served.states() == ["active", "waiting"])
                old.close()
                await new.receive_wire(GREETING)


async def test_what_a_client_had_sent_arrives_before_its_lines_and_settings_go(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                await client.send(com_port(SET_BAUDRATE, (9600).to_bytes(4, "big")))
                await client.send(control(Control.RTS_ON))
                await client.receive_wire(answer(Control.RTS_ON))
                await client.send(b"x" * 60_000)
                session = await served.session()
            await until(lambda: session.state is not SessionState.ACTIVE)
            assert served.port.status.settings.baudrate == 9600
            assert board.lines[-1] == RESET
            board.start_reading()
            await served.until_idle()
            await until(lambda: len(board.received) >= 60_000)
            assert board.received == b"x" * 60_000
            assert board.lines[-2:] == [RESET, IDLE]
            assert served.port.status.settings == SerialSettings()
    ends = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert [entry["reason"] for entry in ends] == ["left"]


# --- who does not keep up


async def test_a_board_that_does_not_read_stops_the_client_and_loses_nothing(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                session = await served.session()
                sending = asyncio.create_task(client.send(doubled(MUCH)))
                await until(lambda: session.received_bytes > 65536)
                await turns(300)
                assert session.received_bytes <= KEPT_BYTES
                assert served.port.unsent_bytes <= KEPT_BYTES
                board.start_reading()
                await sending
                await until(lambda: len(board.received) >= len(MUCH))
                assert board.received == MUCH


async def test_a_client_that_does_not_read_stops_the_board_and_loses_nothing(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served, receive_buffer_bytes=65536) as client:
                await settled(client)
                client.received.clear()
                session = await served.session()
                writing = asyncio.create_task(board.write(MUCH))
                await until(lambda: unread_bytes(served))
                await turns(300)
                assert unread_bytes(served) <= ONE_READ_BYTES
                assert not writing.done()
                # The other direction is not concerned.
                board.start_reading()
                await client.send(b"stop it")
                await until(lambda: board.received == b"stop it")
                assert session.state is SessionState.ACTIVE
                await client.receive(lambda: len(client.received) >= len(doubled(MUCH)))
                await writing
                assert client.data == MUCH


def unread_bytes(served: Served) -> int:
    """What the gateway keeps of the board's output for its client."""
    return sum(session._transport.get_write_buffer_size() for session in served.active)


async def test_a_client_that_asks_and_never_reads_the_answers_is_read_no_more(
    tmp_path: Path,
) -> None:
    one_read_bytes = 65536 // 2 * (len(STATUS_LINE) + 2)
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port, receive_buffer_bytes=4096) as client:
                session = await served.session()
                # The kernel would take megabytes of answers, each of which has to be made.
                connection = session._transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
                sending = asyncio.create_task(client.send(command(AYT) * 8_000_000))
                await until(lambda: not session._transport.is_reading())
                await turns(100)
                assert unread_bytes(served) <= 262144 + one_read_bytes
                assert not sending.done()
                sending.cancel()
                # Having read them, it is served again.
                client.set_receive_buffer(1 << 20)
                received_bytes = session.received_bytes
                reading = asyncio.create_task(client.receive_to_end())
                await until(lambda: session.received_bytes > received_bytes)
                reading.cancel()
                await asyncio.gather(sending, reading, return_exceptions=True)
                client.reset()
            await check_served(served, board)


async def test_an_echoing_board_gets_all_from_a_client_that_never_reads(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            board.start_echoing()
            with await rfc2217_client(served, receive_buffer_bytes=4096) as client:
                session = await served.session()
                sending = asyncio.create_task(client.send(b"y" * 16_000_000))
                await until(lambda: served.port.unsent_bytes > 65536)
                await until(lambda: unread_bytes(served))
                await turns(100)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                client.reset()
            with LoopClock():  # nothing waits for a time limit
                await served.until_idle()
            sent_bytes = session.received_bytes - len(RFC2217_CLIENT)
            await until(lambda: len(board.received) >= sent_bytes)
            assert board.received == b"y" * sent_bytes
    assert "unsent_dropped" not in {entry["event"] for entry in logs}


async def carried_out(served: Served, client: TcpClient, request: bytes) -> None:
    """Send a request, and wait until the session has nothing left to do for it."""
    session = await served.session()
    wanted_bytes = session.received_bytes + len(request)
    await client.send(request)
    await until(lambda: session.received_bytes == wanted_bytes and session._requests.is_empty)


async def test_suspended_output_waits_at_the_board_and_answers_with_it(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                await settled(client)
                await carried_out(served, client, com_port(SUSPEND))
                while client.has_more():  # a modem state that came before
                    await client.receive_some()
                before = bytes(client.received)
                await board.write(b"held")
                await until(lambda: board.unread_bytes == 4)
                await carried_out(served, client, command(AYT) + control(Control.RTS_ON))
                assert board.lines[-1] == RESET, "carried out, though not answered"
                await turns(20)
                assert not client.has_more()
                await client.send(com_port(RESUME))
                await client.receive_wire(b"held")
                said = bytes(client.received).removeprefix(before)
                assert said.index(STATUS_LINE) < said.index(answer(Control.RTS_ON))


async def test_a_client_that_suspends_and_asks_without_end_is_closed(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                await client.send(com_port(SUSPEND) + command(AYT) * 10_000)
                await client.receive_to_end()
            await check_served(served, board)
    ends = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert ends[0]["reason"] == "asks without end for answers that it has suspended"
    assert ends[0]["log_level"] == "warning"


async def test_a_resume_behind_bytes_that_the_board_does_not_take_is_heeded(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                await carried_out(served, client, com_port(SUSPEND))
                await board.write(b"held")
                # More than the tty takes.
                await client.send(b"x" * 300_000 + com_port(RESUME))
                await client.receive_wire(b"held")


@pytest.mark.parametrize("request_bytes", [com_port(PURGE, b"\x01"), command(AO)])
async def test_a_purge_drops_what_the_board_has_sent(tmp_path: Path, request_bytes: bytes) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                await carried_out(served, client, com_port(SUSPEND))
                await board.write(b"stale")
                await until(lambda: board.unread_bytes == 5)
                await carried_out(served, client, request_bytes)
                assert board.unread_bytes == 0
                await client.send(com_port(RESUME))
                await settled(client)
                await board.write(b"fresh")
                await client.receive_data(b"fresh")


@pytest.mark.parametrize("buffers", [b"\x02", b"\x03"])
@pytest.mark.parametrize("stuck_bytes", [20_000, 100_000, 330_000])
async def test_a_purge_gets_through_to_a_board_that_takes_nothing(
    tmp_path: Path, buffers: bytes, stuck_bytes: int
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                session = await served.session()
                await client.send(b"x" * (stuck_bytes // 2))
                await client.send(control(Control.RTS_ON) + b"x" * (stuck_bytes // 2))
                before = session.received_bytes
                await client.send(com_port(PURGE, buffers))
                purged = com_port(PURGE + 100, buffers)
                await client.receive_wire(purged)
                assert session.received_bytes > before
                assert answer(Control.RTS_ON) in client.received.partition(purged)[0]
                board.start_reading()
                await client.send(b"fresh")
                await until(lambda: board.received.endswith(b"fresh"))
                # What the far end of the pty had taken before counts as sent.
                assert len(board.received) < 20_000


async def test_a_synch_with_its_urgent_byte_takes_nothing_along(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                board.start_reading()
                await client.send(b"before" + command(IP))
                client.send_urgent(command(DM))
                await client.send(b"behind")
                await until(lambda: len(board.received) >= 13)
                assert board.received == b"before\x03behind"


async def test_are_you_there_is_answered_with_the_state_of_the_port(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(command(AYT))
                await client.receive_data(STATUS_LINE)


async def test_a_break_that_the_tty_cannot_send_ends_nothing(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                board.start_reading()
                await client.send(b"before" + command(BRK) + b"behind")
                await until(lambda: board.received == b"beforebehind")


# --- the board goes


async def test_a_board_that_is_unplugged_ends_the_session_after_its_last_bytes(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                session = await served.session()
                await board.write(b"last words")
                await until(lambda: session.sent_bytes == 10)
                board.unplug()
                said = await client.receive_to_end()
            assert said.startswith(b"last words\r\ndesk: stopped working")
            board.plug()
            await check_served(served, board)
    ends = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert ends[0]["reason"].startswith("stopped working")
    assert [entry["event"] for entry in logs].count("device_lost") == 1


async def test_a_client_that_is_sending_gets_the_last_bytes_too(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served, receive_buffer_bytes=4096) as client:
                session = await served.session()
                sending = asyncio.create_task(client.send(doubled(MUCH)))
                await until(lambda: served.port.unsent_bytes > 65536)
                await board.write(b"z" * 500_000)
                await until(lambda: session.sent_bytes == 500_000)
                board.unplug()
                await until(lambda: session.state is SessionState.CLOSED)
                await turns(5)
                # No connection reset before the end, although the gateway had not read it all.
                await client.receive(lambda: len(client.data) == 500_000)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)


# --- clients that leave in odd ways


async def stall(served: Served, client: TcpClient) -> None:
    """Send until the client is not read any more, and little more than was read."""
    session = await served.session()
    while session._transport.is_reading():
        await client.send(b"x" * 8192)
        await turns(5)


async def test_a_client_that_leaves_while_it_is_not_read_is_noticed(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                await client.send(control(Control.RTS_ON))
                await client.receive_wire(answer(Control.RTS_ON))
                session = await served.session()
                await stall(served, client)
            with LoopClock() as clock:
                while session.state is SessionState.ACTIVE:
                    await clock.advance(1.0)
                while served.port.state is not PortState.IDLE:
                    await clock.advance(1.0)
            assert board.lines[-2:] == [RESET, IDLE]
    ends = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert [entry["reason"] for entry in ends] == ["disconnected; board not accepting data"]
    dropped = [entry["unsent_bytes"] for entry in logs if entry["event"] == "unsent_dropped"]
    assert sum(dropped) == served.port.counts.input_dropped_bytes > 65536


async def test_a_client_that_leaves_at_once_has_all_sent_that_a_slow_board_takes(
    tmp_path: Path,
) -> None:
    sent = b"".join(b"%07d\n" % number for number in range(40_000))
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, converse=RawPipe) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(sent)
            await until(lambda: served.port.sent_bytes > 65536)
            with LoopClock() as clock:
                began = clock.now_s
                while len(board.received) < len(sent):
                    board.read_some(16384)
                    await clock.advance(4.0)
                assert clock.now_s - began > 60.0
            await served.until_idle()
            assert board.received == sent
    assert "unsent_dropped" not in [entry["event"] for entry in logs]


@pytest.mark.parametrize("sent_bytes", [50_000, 200_000, 300_000])
async def test_a_port_is_free_ten_seconds_after_a_stuck_board_took_the_last_byte(
    tmp_path: Path, sent_bytes: int
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=RawPipe) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                session = await served.session()
                await client.send(b"x" * sent_bytes)
                await until(lambda: session.received_bytes == sent_bytes)
                await turns(200)  # the kernel makes room in a pty a moment later
            with LoopClock() as clock:
                await until(lambda: not served.active)
                await clock.advance(9.9)
                assert served.port.state is not PortState.IDLE
                await clock.advance(0.2)
                await served.until_idle()
            board.start_reading()
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(b"next")
                await until(lambda: board.received.endswith(b"next"))


async def take_some(board: PtyBoard, served: Served) -> None:
    """Let the board take some bytes, and the gateway send as many more if there are."""
    unsent_bytes = served.port.unsent_bytes
    board.read_some(16384)
    for _ in range(500):  # the kernel makes room in a pty a moment later
        if served.port.unsent_bytes != unsent_bytes:
            break
        await turns(1)


async def test_a_board_that_takes_a_little_now_and_then_is_given_up_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.port.claim.LONGEST_S", 30.0)
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, settings=FAST, converse=RawPipe) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(b"x" * 300_000)
            await until(lambda: served.port.sent_bytes > 65536)
            with LoopClock() as clock:
                began = clock.now_s
                while served.port.state is not PortState.IDLE:
                    await take_some(board, served)
                    await clock.advance(4.0)
                assert 28.0 <= clock.now_s - began <= 36.0
    assert "unsent_dropped" in [entry["event"] for entry in logs]


async def test_a_board_at_a_low_baud_rate_has_more_time_for_each_step(tmp_path: Path) -> None:
    sent = b"x" * 250_000
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, settings=SLOW, converse=RawPipe) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(sent)
            await until(lambda: served.port.sent_bytes > 65536)
            with LoopClock() as clock:
                while served.port.state is not PortState.IDLE:
                    await take_some(board, served)
                    for _ in range(6):  # 10 s without progress are too long at 115200 baud
                        await clock.advance(2.0)
            board.start_reading()  # what the kernel has taken
            await until(lambda: board.received == sent)
    assert "unsent_dropped" not in [entry["event"] for entry in logs]


async def test_a_client_that_pauses_on_a_stuck_board_keeps_it(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                session = await served.session()
                await stall(served, client)
                with LoopClock() as clock:
                    for _ in range(60):
                        await clock.advance(1.0)
                assert session.state is SessionState.ACTIVE


async def test_a_client_that_closes_one_direction_and_does_not_read_has_left(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served, receive_buffer_bytes=4096) as client:
                writing = asyncio.create_task(board.write(MUCH))
                await until(lambda: unread_bytes(served))
                client.stop_sending()
                await until(lambda: served.port.state is PortState.IDLE)
                await writing  # nobody reads it, so it is dropped
                assert len(client.received) < len(MUCH)


async def test_a_connection_that_ends_while_it_waits_is_forgotten(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as client, LoopClock():
                with await TcpClient.connect(served.tcp_port) as other:
                    await other.send(SPEAKS_TELNET)
                    await until(lambda: served.states() == ["active", "waiting"])
                    (waiting,) = served.sessions - set(served.active)
                    waiting._transport.abort()
                    await until(lambda: served.states() == ["active"])
                await settled(client)


async def test_a_reset_connection_ends_the_session(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                await client.send(control(Control.RTS_ON) + b"x" * 1000 + b"\xff")
                await client.receive_wire(answer(Control.RTS_ON))
                client.reset()
            await check_served(served, board)
    reasons = [entry["reason"] for entry in logs if entry["event"] == "client_disconnected"]
    assert reasons[0] == "connection reset by peer"


async def test_a_port_scan_leaves_nothing_behind(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            for leave in (TcpClient.close, TcpClient.reset):
                for _ in range(3):
                    leave(await TcpClient.connect(served.tcp_port))
                    await served.until_idle()
            scanners = [await TcpClient.connect(served.tcp_port) for _ in range(60)]
            for index, scanner in enumerate(scanners):
                scanner.close() if index % 2 else scanner.reset()
            await check_served(served, board)
    connected = [entry["client"] for entry in logs if entry["event"] == "client_connected"]
    ends = [entry["client"] for entry in logs if entry["event"] == "client_disconnected"]
    assert connected == ends
    assert not [entry for entry in logs if entry["log_level"] in {"error", "critical"}]


# --- what is no RFC 2217

#: What a client sends, and the reasons that are logged for it.
BAD_INPUT = {
    "half a negotiation": (b"\xff\xfb", ["left"]),
    "half a subnegotiation": (command(SB) + b"\x2c\x01\0", ["left"]),
    "never-ending subnegotiation": (
        command(SB) + b"\x2c" * 100_000,
        ["subnegotiation longer than 256 bytes"],
    ),
    "unknown command": (
        RFC2217_CLIENT + com_port(99, b"x") * 1000,
        ["COM-PORT-OPTION: unknown command 99", "left"],
    ),
    "undefined value": (
        RFC2217_CLIENT + com_port(SET_CONTROL, b"\xee") * 1000,
        ["SET-CONTROL with undefined value 238", "left"],
    ),
    "subnegotiations of a refused option": (
        (command(SB) + b"\x1f\0\x50\0\x19" + command(240)) * 1000,
        ["subnegotiation of refused option 31", "left"],
    ),
    "negotiations": ((do(31) + will(31)) * 5000, ["more than 1000 option negotiations"]),
    "commands without COM-PORT-OPTION": (com_port(SET_BAUDRATE, b"\0\0\0\x01") * 3, ["left"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
async def test_bad_input_is_told_in_one_line_and_hurts_nobody(tmp_path: Path, case: str) -> None:
    bad, reasons = BAD_INPUT[case]
    (tmp_path / "other").mkdir()
    with PtyBoard(tmp_path) as board, PtyBoard(tmp_path / "other") as other_board:
        board.start_reading()
        other_board.start_echoing()
        async with serving(board) as served, serving(other_board, "other") as other:
            with await rfc2217_client(other) as other_client:
                await other_client.send(b"one")
                with capture_logs() as logs:
                    with await TcpClient.connect(served.tcp_port) as client:
                        session = await served.session()
                        await client.send(bad)
                        await until(
                            lambda: (
                                session.received_bytes == len(bad) or session not in served.active
                            )
                        )
                        client.stop_sending()
                        await client.receive_to_end()
                    await served.until_idle()
                await other_client.send(b"two")
                await other_client.receive_data(b"onetwo")
            await check_served(served, board)
    said = [entry["reason"] for entry in logs if "reason" in entry]
    assert said == reasons


async def session_has(session: Session, sent: bytes) -> None:
    """Wait until the session has read it all, or has ended."""
    await until(
        lambda: session.received_bytes == len(sent) or session.state is not SessionState.ACTIVE
    )


async def test_random_bytes_end_in_a_board_that_is_served_again(tmp_path: Path) -> None:
    pieces = [case[0] for case in WIRE_CASES.values()]
    pieces += [com_port(code, bytes([value])) for code in range(14) for value in (0, 1, 9, 255)]
    for seed in range(12):
        rng = random.Random(seed)
        noise = rng.randbytes(20_000) if seed % 2 else b"".join(rng.choices(pieces, k=400))
        folder = tmp_path / str(seed)
        folder.mkdir()
        with PtyBoard(folder) as board, capture_logs() as logs:
            board.start_reading()
            async with serving(board) as served:
                with await TcpClient.connect(served.tcp_port) as client:
                    session = await served.session()
                    reading = asyncio.create_task(client.receive_to_end())
                    await client.send(noise)
                    await session_has(session, noise)
                    client.stop_sending()
                    await reading
                await check_served(served, board)
        events = [entry["event"] for entry in logs]
        assert events.count("client_violated_protocol") <= 1
        assert events.count("client_disconnected") == 2


async def test_a_client_names_itself_once_in_the_log(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            with await rfc2217_client(served) as client:
                await client.send(com_port(SIGNATURE, b"tool 1.0\x1b[2J") * 100)
                await settled(client)
                await client.send(com_port(SIGNATURE))
                await client.receive_wire(com_port(SIGNATURE + 100, b"gateway under test"))
    names = [entry["signature"] for entry in logs if entry["event"] == "client_identified"]
    assert names == [r"'tool 1.0\x1b[2J'"]


async def test_what_is_read_although_the_board_is_not_there_yet_is_kept(tmp_path: Path) -> None:
    # uvloop reads once before it pauses.
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await rfc2217_client(served) as first:
                board.start_reading()
                with await TcpClient.connect(served.tcp_port) as second:
                    await until(lambda: "waiting" in served.states())
                    (waiting,) = [each for each in served.sessions if each.label == second.name]
                    for early in (b"ear", b"ly "):
                        waiting.get_buffer(-1)[: len(early)] = early
                        waiting.buffer_updated(len(early))
                    await second.send(b"and late")
                    first.close()
                    await until(lambda: board.received == b"early and late")


async def test_a_session_that_is_closed_before_its_connection_is_made_hangs_up(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            session = served.listener._new_session()
            session.close("the gateway is shutting down")
            ours, theirs = socket.socketpair()
            with theirs:
                connected = asyncio.get_running_loop().connect_accepted_socket
                transport, _ = await connected(lambda: session, ours)
                assert transport.is_closing()
                served.listener.session_ended(session)
            await served.until_idle()
