"""What becomes of a connection by its first bytes: over real TCP, on a real tty."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from http.client import HTTPResponse
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest
from structlog.testing import capture_logs

from gateway.config.document import Access, OnConnect, Opening, Sharing
from gateway.net.access import Rejection
from gateway.protocol.access_server import RawPipe
from gateway.protocol.rfc2217 import Control
from gateway.session.requests import Conversation
from tests.protocol.test_greeting import FOR_BOARDS, OTHERS
from tests.session.test_session import answer, control, rfc2217_client
from tests.support.pty_board import (
    LoopClock,
    PtyBoard,
    Served,
    access_server,
    serving,
    turns,
    until,
)
from tests.support.tcp_client import GREETING, TcpClient, com_port
from tests.support.telnet_wire import ECHO, RFC2217_CLIENT, do

#: What a page may have a browser send behind its request: both lines, a reset, a baud rate, data.
COMMANDS = (
    RFC2217_CLIENT
    + control(Control.DTR_ON)
    + control(Control.DTR_OFF)
    + control(Control.RTS_ON)
    + control(Control.RTS_OFF)
    + com_port(1, (9600).to_bytes(4, "big"))
    + b"reset\r\n"
)
POST = (
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1:4001\r\nContent-Type: text/plain\r\n"
    + f"Content-Length: {len(COMMANDS)}\r\n\r\n".encode()
    + COMMANDS
)

CONVERSATIONS: list[Callable[[], Conversation]] = [access_server, RawPipe]


class _Received:
    """What a client has received, as a socket for http.client."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> BytesIO:
        return BytesIO(self._data)


def response_in(data: bytes, method: str = "GET") -> HTTPResponse:
    response = HTTPResponse(cast("object", _Received(data)), method=method)  # type: ignore[arg-type]
    response.begin()
    return response


def rejected(logs: list[object]) -> list[object]:
    return [
        entry["reason"]
        for entry in logs
        if isinstance(entry, dict) and entry["event"] == "client_rejected"
    ]


# --- other protocols


@pytest.mark.parametrize("converse", CONVERSATIONS)
@pytest.mark.parametrize("name", OTHERS)
async def test_nothing_of_another_protocol_reaches_the_board(
    tmp_path: Path, name: str, converse: Callable[[], Conversation]
) -> None:
    greeting, protocol = OTHERS[name]
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, converse=converse) as served:
            board.start_reading()
            lines = list(board.lines)
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(greeting + COMMANDS)
                await client.receive_to_end()
                assert b"\xff" not in client.received
            await served.until_idle()
            assert board.received == b""
            assert board.lines == lines
            assert served.port.sessions == 0
            assert served.listener.rejected == {Rejection.OTHER_PROTOCOL: 1}
    assert rejected([*logs]) == [f"speaks {protocol}"]
    assert "client_connected" not in [entry["event"] for entry in logs]


@pytest.mark.parametrize("converse", CONVERSATIONS)
async def test_nothing_of_a_request_is_obeyed_however_it_is_cut(
    tmp_path: Path, converse: Callable[[], Conversation]
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=converse) as served:
            board.start_reading()
            lines = list(board.lines)
            for at in range(1, len(POST) - len(COMMANDS) + 5):
                with await TcpClient.connect(served.tcp_port) as client:
                    await client.send(POST[:at])
                    await turns(2)
                    await client.send(POST[at:])
                    assert response_in(await client.receive_to_end()).status == 400
            await served.until_idle()
            assert board.received == b""
            assert board.lines == lines


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "BREW"])
@pytest.mark.parametrize(
    ("converse", "url"), [(access_server, "rfc2217://"), (RawPipe, "socket://")]
)
async def test_a_browser_gets_a_response_that_says_what_the_port_is(
    tmp_path: Path, method: str, converse: Callable[[], Conversation], url: str
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=converse) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(f"{method} /index.html HTTP/1.1\r\nHost: desk\r\n\r\n".encode())
                await client.receive_to_end()
            response = response_in(bytes(client.received), method)
            text = response.read().decode()
            assert response.status == 400
            assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Connection"] == "close"
            assert response.headers["Date"].endswith("GMT")
            assert not [name for name in response.headers if name.lower().startswith("access-")]
            _, _, body = bytes(client.received).partition(b"\r\n\r\n")
            assert (b"" if method == "HEAD" else text.encode()) == body
            if method != "HEAD":
                assert len(body) == int(response.headers["Content-Length"])
                assert text.startswith("desk: this is the serial port of a board, not a server")
                assert f"{url}HOST:{served.tcp_port}" in text


async def test_a_client_that_goes_on_sending_still_gets_the_response(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            board.start_reading()
            with await TcpClient.connect(served.tcp_port) as client:
                sending = asyncio.create_task(client.send(POST + b"x" * 2_000_000))
                assert response_in(await client.receive_to_end()).status == 400
                await asyncio.gather(sending, return_exceptions=True)
            await served.until_idle()
            assert board.received == b""


async def test_text_of_another_protocol_is_answered_with_a_line(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(b"SSH-2.0-OpenSSH_9.2\r\n")
                said = await client.receive_to_end()
            assert said.startswith(
                b"desk: this is the serial port of a board, not a server for SSH"
            )
            assert said.endswith(b"\r\n")
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(OTHERS["TLS 1.3"][0])
                assert await client.receive_to_end() == b""


async def test_rejected_clients_are_logged_once_a_minute_and_counted(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            for _ in range(5):
                with await TcpClient.connect(served.tcp_port) as client:
                    await client.send(POST)
                    await client.receive_to_end()
            assert rejected([*logs]) == ["speaks HTTP"]
            assert served.listener.rejected[Rejection.OTHER_PROTOCOL] == 5
    assert [each["count"] for each in logs if each["event"] == "client_rejected"] == [1, 4]


@pytest.mark.parametrize("sharing", Sharing)
async def test_another_protocol_takes_nothing_from_the_client_of_the_port(
    tmp_path: Path, sharing: Sharing
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=sharing) as served:
            board.start_reading()
            with await rfc2217_client(served) as owner:
                await owner.send(control(Control.DTR_ON) + control(Control.RTS_ON))
                await owner.receive_wire(answer(Control.RTS_ON))
                seen = len(owner.received)
                for greeting, _ in OTHERS.values():
                    with await TcpClient.connect(served.tcp_port) as client:
                        await client.send(greeting + COMMANDS)
                        await client.receive_to_end()
                await owner.send(b"mine" + control(Control.REQUEST_DTR))
                await owner.receive(lambda: answer(Control.DTR_ON) in owner.received[seen:])
                assert owner.data == b""
                await until(lambda: board.received)
                assert board.received == b"mine"
                assert served.port.arbiter.controller_names == owner.name


@pytest.mark.parametrize("on_connect", [OnConnect.RESET, OnConnect.BOOTLOADER])
async def test_nothing_is_done_to_the_board_for_another_protocol(
    tmp_path: Path, on_connect: OnConnect
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=RawPipe, on_connect=on_connect) as served:
            lines = list(board.lines)
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(POST)
                await client.receive_to_end()
            with await TcpClient.connect(served.tcp_port):  # a scanner that only looks
                pass
            await served.until_idle()
            assert board.lines == lines


async def test_no_tty_is_opened_for_another_protocol(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, opening=Opening.ON_CONNECT) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(POST)
                await client.receive_to_end()
            await until(lambda: not served.sessions)
            assert board.tries == 0


@pytest.mark.parametrize("converse", CONVERSATIONS)
async def test_a_greeting_that_comes_late_does_not_reach_the_board_either(
    tmp_path: Path, converse: Callable[[], Conversation]
) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, converse=converse) as served:
            board.start_reading()
            lines = list(board.lines)
            with await TcpClient.connect(served.tcp_port) as client:
                await served.session()
                for piece in (POST[:3], POST[3:]):
                    await client.send(piece)
                    await turns(3)
                await client.receive_to_end()
            await served.until_idle()
            assert board.received == b""
            assert board.lines == lines
    assert rejected([*logs]) == ["speaks HTTP"]
    (left,) = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert left["reason"] == "speaks HTTP"


async def test_a_port_can_be_made_to_accept_any_protocol(tmp_path: Path) -> None:
    access = Access(accept_any_protocol=True)
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=RawPipe, access=access) as served:
            board.start_reading()
            with LoopClock(), await TcpClient.connect(served.tcp_port) as client:
                await client.send(POST[:1])
                await until(lambda: board.received == POST[:1])
                await client.send(POST[1:])
                await until(lambda: len(board.received) >= len(POST))
                assert board.received == POST


# --- bytes for the board


@pytest.mark.parametrize("name", FOR_BOARDS)
async def test_bytes_for_the_board_reach_it_whole_whatever_follows(
    tmp_path: Path, name: str
) -> None:
    generator = random.Random(name)
    data = FOR_BOARDS[name] + POST
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=RawPipe) as served:
            board.start_reading()
            for _ in range(5):
                board.received.clear()
                with LoopClock(), await TcpClient.connect(served.tcp_port) as client:
                    await send_in_pieces(client, served, data, [len(FOR_BOARDS[name])], generator)
                    await until(lambda: len(board.received) >= len(data))
                assert board.received == data
                await served.until_idle()


@pytest.mark.parametrize("converse", CONVERSATIONS)
@pytest.mark.parametrize("pause_s", [0.051, 0.2])
async def test_what_a_person_types_reaches_the_board_whole(
    tmp_path: Path, converse: Callable[[], Conversation], pause_s: float
) -> None:
    """A person types a request at a modem that is connected already."""
    typed = b"GET / HTTP/1.1"
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=converse) as served:
            board.start_reading()
            with LoopClock() as clock, await TcpClient.connect(served.tcp_port) as client:
                for end in range(1, len(typed) + 1):
                    await client.send(typed[end - 1 : end])
                    await until(lambda end=end: bytes_from_client(served) >= end)  # type: ignore[misc]
                    await clock.advance(pause_s)
                    await until(lambda end=end: board.received == typed[:end])  # type: ignore[misc]


@pytest.mark.parametrize("converse", CONVERSATIONS)
async def test_bytes_that_might_become_a_greeting_wait_no_longer_than_50_ms(
    tmp_path: Path, converse: Callable[[], Conversation]
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=converse) as served:
            board.start_reading()
            with LoopClock() as clock, await TcpClient.connect(served.tcp_port) as client:
                await client.send(b"AT")
                await until(lambda: bytes_from_client(served) == 2)
                await clock.advance(0.049)
                await client.send(b"Z")
                await until(lambda: bytes_from_client(served) == 3)
                await turns(5)
                assert board.received == b""
                await clock.advance(0.001)
                await until(lambda: board.received == b"ATZ")
                await client.send(b" HTTP/1.1")
                await until(lambda: board.received == b"ATZ HTTP/1.1")


@pytest.mark.parametrize("converse", CONVERSATIONS)
async def test_a_script_that_sends_and_leaves_has_its_bytes_sent_to_the_board(
    tmp_path: Path, converse: Callable[[], Conversation]
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=converse) as served:
            board.start_reading()
            for data in (b"AT", b"GET /", b"reset\n"):
                board.received.clear()
                with LoopClock(), await TcpClient.connect(served.tcp_port) as client:
                    await client.send(data)
                    client.stop_sending()
                    await client.receive_to_end()
                    await until(lambda data=data: board.received == data)  # type: ignore[misc]
                await served.until_idle()


async def test_a_client_that_speaks_first_waits_for_nothing(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.PREEMPT) as served:
            with (
                LoopClock(),
                await rfc2217_client(served),
                await rfc2217_client(served) as second,
            ):
                assert served.port.arbiter.controller_names == second.name


# --- silence


@pytest.mark.parametrize("converse", CONVERSATIONS)
async def test_a_silent_client_has_a_free_port_after_50_ms(
    tmp_path: Path, converse: Callable[[], Conversation]
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=converse) as served:
            with LoopClock() as clock, await TcpClient.connect(served.tcp_port):
                await until(lambda: served.states() == ["screening"])
                await clock.advance(0.049)
                assert served.states() == ["screening"]
                await clock.advance(0.001)
                await until(lambda: served.active)


@pytest.mark.parametrize("sharing", [Sharing.PREEMPT, Sharing.TAKEOVER])
async def test_a_silent_client_takes_a_telnet_port_from_another_once_it_answers(
    tmp_path: Path, sharing: Sharing
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=sharing) as served:
            with (
                await rfc2217_client(served) as owner,
                LoopClock() as clock,
                await TcpClient.connect(served.tcp_port) as client,
            ):
                await until(lambda: "screening" in served.states())
                await clock.advance(0.05)
                await client.receive_wire(GREETING)
                await clock.advance(10.0)
                assert served.port.arbiter.controller_names == owner.name
                await client.send(do(ECHO))
                await until(lambda: served.port.arbiter.controller_names == client.name)


async def test_a_client_that_stays_silent_takes_a_telnet_port_after_12_s(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.PREEMPT) as served:
            with (
                await rfc2217_client(served) as owner,
                LoopClock() as clock,
                await TcpClient.connect(served.tcp_port) as client,
            ):
                await until(lambda: "screening" in served.states())
                for _ in range(23):
                    await clock.advance(0.5)
                assert served.port.arbiter.controller_names == owner.name
                for _ in range(2):
                    await clock.advance(0.5)
                await until(lambda: served.port.arbiter.controller_names == client.name)


async def test_a_silent_client_has_the_port_soon_after_the_other_has_left(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.PREEMPT) as served:
            owner = await rfc2217_client(served)
            with LoopClock() as clock, await TcpClient.connect(served.tcp_port) as client:
                await until(lambda: "screening" in served.states())
                await clock.advance(1.0)
                owner.close()
                await until(lambda: not served.port.arbiter)
                await clock.advance(0.5)
                await until(lambda: served.port.arbiter.controller_names == client.name)


async def test_a_silent_client_of_a_raw_port_has_the_board_reset_after_300_ms(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, converse=RawPipe, on_connect=OnConnect.RESET) as served:
            lines = list(board.lines)
            with LoopClock() as clock, await TcpClient.connect(served.tcp_port):
                await until(lambda: served.states() == ["screening"])
                await clock.advance(0.05)
                await clock.advance(0.24)
                assert board.lines == lines
                await clock.advance(0.01)
                await until(lambda: board.lines != lines)


async def test_a_port_that_closes_hangs_up_on_a_client_that_has_said_nothing(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with LoopClock(), await TcpClient.connect(served.tcp_port) as client:
                await until(lambda: served.states() == ["screening"])
                stopping = asyncio.create_task(served.listener.stop("over"))
                assert await client.receive_to_end() == b""
                client.close()
                await stopping


async def send_in_pieces(
    client: TcpClient, served: Served, data: bytes, cuts: list[int], generator: random.Random
) -> None:
    """Send data in pieces, cut at some places and at random, a piece when the last has come."""
    places = sorted(
        {*cuts, *(generator.randrange(cuts[0], len(data)) for _ in range(3)), len(data)}
    )
    for start, end in pairwise([0, *places]):
        await client.send(data[start:end])
        await until(lambda end=end: bytes_from_client(served) >= end)  # type: ignore[misc]


def bytes_from_client(served: Served) -> int:
    """How many bytes of its client the one session has got."""
    return sum(len(each._early) + each.received_bytes for each in served.sessions)


async def test_a_client_that_waits_is_not_read_however_much_it_sends(tmp_path: Path) -> None:
    access = Access(accept_any_protocol=True)
    with PtyBoard(tmp_path) as board, LoopClock():
        async with serving(board, access=access) as served:
            with await TcpClient.connect(served.tcp_port) as first:
                await served.session()
                with await TcpClient.connect(served.tcp_port) as second:
                    sending = asyncio.create_task(second.send(b"x" * 10_000_000))
                    await until(lambda: len(served.sessions) == 2)
                    await turns(200)
                    assert served.states() == ["active", "waiting"]
                    (waiting,) = served.sessions - set(served.active)
                    assert len(waiting._early) <= 2 * 65536
                    sending.cancel()
                    await asyncio.wait([sending])
                first.close()
