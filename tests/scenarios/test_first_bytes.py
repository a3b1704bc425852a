"""What becomes of a connection by its first bytes, and by its silence."""

from __future__ import annotations

import asyncio
import random
from http.client import HTTPResponse
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from tests.protocol.test_greeting import FOR_BOARDS, OTHERS
from tests.support.gateway_end import GatewayEnd, deliver
from tests.support.tcp_client import GREETING
from tests.support.telnet_wire import ECHO, RFC2217_CLIENT, do
from tests.support.world import (
    Client,
    Control,
    Logged,
    Notice,
    State,
    baudrate,
    control,
    turns,
    until,
    world,
)

#: What a page may have a browser send behind its request: both lines, a reset, a baud rate, data.
COMMANDS = (
    RFC2217_CLIENT
    + control(Control.DTR_ON, Control.DTR_OFF, Control.RTS_ON, Control.RTS_OFF)
    + baudrate(9600)
    + b"reset\r\n"
)
POST = (
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1:4001\r\nContent-Type: text/plain\r\n"
    + f"Content-Length: {len(COMMANDS)}\r\n\r\n".encode()
    + COMMANDS
)
HEAD_BYTES = len(POST) - len(COMMANDS)

PROTOCOLS = ["protocol: rfc2217", "protocol: raw"]


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


async def accepted(client: Client) -> None:
    """Wait until the gateway has the connection, and has looked at it."""
    await until(lambda: GatewayEnd(client).exists)
    await turns(20)


# --- other protocols


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", OTHERS)
async def test_nothing_of_another_protocol_reaches_the_board(
    tmp_path: Path, name: str, protocol: str
) -> None:
    greeting, other = OTHERS[name]
    async with world(tmp_path, protocol) as w:
        w.board.start_reading()
        w.board.calls.forget()
        client = await w.connect(greeting + COMMANDS)
        await w.run(client.receive_to_end())
        assert b"\xff" not in client.received
        await w.until_idle()
        assert not w.board.received
        assert not w.board.calls.log
        assert w.status.sessions == 0
        assert w.said(Logged.REJECTED, "reason") == [f"speaks {other}"]
        assert not w.logged(Logged.CONNECTED)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_nothing_of_a_request_is_obeyed_wherever_it_is_cut(
    tmp_path: Path, protocol: str
) -> None:
    async with world(tmp_path, protocol) as w:
        w.board.start_reading()
        w.board.calls.forget()
        for at in range(1, HEAD_BYTES + 5):
            client = await w.connect(POST[:at])
            await turns(2)
            await client.send(POST[at:])
            assert response_in(await client.receive_to_end()).status == 400
            client.close()
        assert not w.board.received
        assert not w.board.calls.log


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "HEAD", "OPTIONS", "BREW"])
@pytest.mark.parametrize(
    ("protocol", "url"), [(PROTOCOLS[0], "rfc2217://"), (PROTOCOLS[1], "socket://")]
)
async def test_a_browser_gets_a_response_that_says_what_the_port_is(
    tmp_path: Path, method: str, protocol: str, url: str
) -> None:
    async with world(tmp_path, protocol) as w:
        client = await w.connect(f"{method} /index.html HTTP/1.1\r\nHost: desk\r\n\r\n".encode())
        await client.receive_to_end()
        response = response_in(bytes(client.received), method)
        text = response.read().decode()
        headers = response.headers
        assert response.status == 400
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Connection"] == "close"
        assert headers["Date"].endswith("GMT")
        assert not [name for name in headers if name.lower().startswith("access-")]
        _, _, body = bytes(client.received).partition(b"\r\n\r\n")
        assert (b"" if method == "HEAD" else text.encode()) == body
        if method != "HEAD":
            assert len(body) == int(headers["Content-Length"])
            assert text.startswith("desk: this is the serial port of a board, not a server")
            assert f"{url}HOST:{w.tcp_port}" in text


async def test_a_client_that_goes_on_sending_still_gets_the_response(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.board.start_reading()
        client = await w.connect()
        sending = asyncio.create_task(client.send(POST + b"x" * 2_000_000))
        assert response_in(await client.receive_to_end()).status == 400
        client.close()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await w.until_idle()
        assert not w.board.calls.named("write")


async def test_only_a_text_protocol_is_answered_with_a_line(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.connect(b"SSH-2.0-OpenSSH_9.2\r\n")
        said = await client.receive_to_end()
        assert said.startswith(b"desk: this is the serial port of a board, not a server for SSH")
        assert said.endswith(b"\r\n")
        client = await w.connect(OTHERS["TLS 1.3"][0])
        assert await client.receive_to_end() == b""


async def test_rejected_clients_are_counted_and_logged_once_a_minute(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for _ in range(5):
            client = await w.connect(POST)
            await client.receive_to_end()
        assert w.said(Logged.REJECTED, "count") == [1]
        await w.pass_time(60.1)
        assert w.said(Logged.REJECTED, "count") == [1, 4]


@pytest.mark.parametrize("sharing", ["exclusive", "takeover", "preempt", "shared"])
async def test_another_protocol_takes_nothing_from_the_client_of_the_port(
    tmp_path: Path, sharing: str
) -> None:
    async with world(tmp_path, f"sharing: {sharing}") as w:
        w.board.start_reading()
        owner = await w.client()
        await w.run(owner.control(Control.DTR_ON, Control.RTS_ON))
        for greeting, _ in OTHERS.values():
            client = await w.connect(greeting + COMMANDS)
            await w.run(client.receive_to_end())
        await owner.send(b"mine")
        await owner.ask(1, bytes(4), (115200).to_bytes(4, "big"))
        assert owner.data == b""
        await until(lambda: w.board.received == b"mine")
        assert w.status.controls == owner.name


@pytest.mark.parametrize("keys", ["on_connect: reset", "on_connect: bootloader"])
async def test_nothing_is_done_to_the_board_for_another_protocol_or_a_scanner(
    tmp_path: Path, keys: str
) -> None:
    async with world(tmp_path, f"protocol: raw, {keys}") as w:
        w.board.calls.forget()
        client = await w.connect(POST)
        await client.receive_to_end()
        scanner = await w.connect()
        await accepted(scanner)
        scanner.close()
        await w.pass_time(1.0)
        assert w.board.calls.log == []


async def test_no_tty_is_opened_for_another_protocol(tmp_path: Path) -> None:
    async with world(tmp_path, "open: on_connect") as w:
        client = await w.connect(POST)
        await client.receive_to_end()
        await w.pass_time(1.0)
        assert (w.state, w.board.calls.tries) == (State.RELEASED, 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_greeting_that_comes_late_does_not_reach_the_board_either(
    tmp_path: Path, protocol: str
) -> None:
    async with world(tmp_path, protocol) as w:
        w.board.start_reading()
        w.board.calls.forget()
        client = await w.connect()
        await w.pass_until(lambda: w.is_served(client))
        await deliver(client, POST[:3])
        await client.send(POST[3:])
        await client.receive_to_end()
        assert not w.board.received
        assert not w.board.calls.named("write", "lines")
        assert w.said(Logged.REJECTED, "reason") == w.ends(client) == ["speaks HTTP"]


async def test_a_port_can_accept_any_protocol(tmp_path: Path) -> None:
    async with world(tmp_path, "protocol: raw, accept_any_protocol: true") as w:
        w.board.start_reading()
        client = await w.connect(POST[:1])
        await until(lambda: w.board.received == POST[:1])
        await client.send(POST[1:])
        await until(lambda: w.board.received == POST)


# --- bytes for the board


@pytest.mark.parametrize("name", FOR_BOARDS)
async def test_bytes_for_the_board_reach_it_whole_whatever_follows(
    tmp_path: Path, name: str
) -> None:
    generator = random.Random(name)
    data, first_cut = FOR_BOARDS[name] + POST, len(FOR_BOARDS[name])
    async with world(tmp_path, "protocol: raw") as w:
        w.board.start_reading()
        for _ in range(5):
            w.board.received.clear()
            cuts = {first_cut, *(generator.randrange(first_cut, len(data)) for _ in range(3))}
            client = await w.connect()
            for start, end in pairwise([0, *sorted(cuts), len(data)]):
                await deliver(client, data[start:end])
            await until(lambda: len(w.board.received) >= len(data))
            assert w.board.received == data
            client.close()
            await w.until_idle()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("pause_s", [0.051, 0.2])
async def test_what_a_person_types_reaches_the_board_whole(
    tmp_path: Path, protocol: str, pause_s: float
) -> None:
    """A person types a request at a modem that is connected already."""
    typed = b"GET / HTTP/1.1"
    async with world(tmp_path, protocol) as w:
        w.board.start_reading()
        client = await w.connect()
        for end in range(1, len(typed) + 1):
            await deliver(client, typed[end - 1 : end])
            await w.pass_time(pause_s)
            await until(lambda end=end: w.board.received == typed[:end])  # type: ignore[misc]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_bytes_that_may_begin_a_greeting_wait_no_longer_than_50_ms(
    tmp_path: Path, protocol: str
) -> None:
    async with world(tmp_path, protocol) as w:
        w.board.start_reading()
        client = await w.connect()
        await deliver(client, b"AT")
        await w.pass_time(0.049)
        await deliver(client, b"Z")
        await turns(5)
        assert w.board.calls.named("write") == []
        await w.pass_time(0.001)
        await until(lambda: w.board.received == b"ATZ")
        await client.send(b" HTTP/1.1")
        await until(lambda: w.board.received == b"ATZ HTTP/1.1")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_script_that_sends_and_leaves_has_its_bytes_sent(
    tmp_path: Path, protocol: str
) -> None:
    async with world(tmp_path, protocol) as w:
        w.board.start_reading()
        for data in (b"AT", b"GET /", b"reset\n"):
            w.board.received.clear()
            client = await w.connect(data)
            client.stop_sending()
            await client.receive_to_end()
            await until(lambda data=data: w.board.received == data)  # type: ignore[misc]
            await w.until_idle()


# --- silence


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_silent_client_has_a_free_port_after_50_ms(tmp_path: Path, protocol: str) -> None:
    async with world(tmp_path, protocol) as w:
        client = await w.connect()
        await accepted(client)
        await w.pass_time(0.049)
        assert not w.is_served(client)
        await w.pass_time(0.001)
        await until(lambda: w.is_served(client))


@pytest.mark.parametrize("sharing", ["preempt", "takeover"])
async def test_a_silent_client_takes_a_telnet_port_from_another_once_it_answers(
    tmp_path: Path, sharing: str
) -> None:
    async with world(tmp_path, f"sharing: {sharing}") as w:
        owner = await w.client()
        client = await w.connect()
        await accepted(client)
        await w.pass_time(0.05)
        await client.receive_wire(GREETING)
        await w.pass_time(10.0)
        assert w.status.controls == owner.name
        await client.send(do(ECHO))
        await until(lambda: w.status.controls == client.name)


async def test_a_client_that_stays_silent_takes_a_telnet_port_after_12_s(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        owner = await w.client()
        client = await w.connect()
        await accepted(client)
        await w.pass_time(11.9)
        assert w.status.controls == owner.name
        await w.pass_time(0.6)
        assert w.status.controls == client.name
        await owner.is_told(Notice.suspended(client))


async def test_a_silent_client_has_the_port_soon_after_the_other_has_left(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        owner = await w.client()
        client = await w.connect()
        await accepted(client)
        await w.pass_time(1.0)
        owner.close()
        await until(lambda: w.ends(owner))
        await w.pass_time(0.5)
        assert w.is_served(client)


async def test_a_silent_raw_client_has_the_board_reset_after_300_ms(tmp_path: Path) -> None:
    async with world(tmp_path, "protocol: raw, on_connect: reset") as w:
        w.board.calls.forget()
        client = await w.connect()
        await accepted(client)
        await w.pass_time(0.299)
        assert w.board.calls.log == []
        await w.pass_time(0.001)
        await until(lambda: w.board.lines)


async def test_a_port_that_closes_hangs_up_on_a_silent_client(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.connect()
        await accepted(client)
        stopping = asyncio.create_task(w.stop())
        assert await client.receive_to_end() == b""
        client.close()
        await w.pass_until(stopping.done)
        await stopping
        assert not w.is_served(client)


async def test_beyond_max_sessions_a_client_takes_a_silent_one_s_place(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt, max_sessions: 2") as w:
        owner = await w.client()
        silent = await w.connect()
        await accepted(silent)
        await w.pass_time(1.0)
        third = await w.client()
        assert (await silent.receive_to_end(), w.is_served(silent)) == (b"", False)
        assert (w.status.controls, w.status.observes) == (third.name, owner.name)
