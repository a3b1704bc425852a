"""A client of a port whose connection is a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from structlog.testing import capture_logs

from gateway.config.document import ConnectionLimits, Sharing
from gateway.protocol.reset import IDLE, RESET
from gateway.web import connection
from gateway.web import console as module
from gateway.web.connection import HttpHandler
from tests.scenarios.test_floods import BUSY_S, READ_BYTES, TURN_LIMIT_S
from tests.support.http_fuzz import ws_frame
from tests.support.http_lab import (
    HttpClient,
    Lab,
    check_schema,
    from_address,
    http_client,
    http_server,
    running,
)
from tests.support.pty_board import PtyBoard, Served, serving, turns, until
from tests.support.quiet_client import quiet_client
from tests.support.tcp_client import GREETING, TcpClient
from tests.support.telnet_wire import RFC2217_CLIENT
from tests.support.turns import TurnMeter

TOKEN = "0123456789abcdef"  # noqa: S105 - nobody's


class Terminal:
    """The far end of a console."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.said = bytearray()  # by the board
        self.notices: list[dict[str, Any]] = []

    async def receive(self) -> bool:
        """Take the next message; False when it was the end."""
        message = await self.socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            self.said += message.data
        elif message.type is aiohttp.WSMsgType.TEXT:
            notice = json.loads(message.data)
            check_schema(notice, {"$ref": "#/components/schemas/consoleNotice"})
            self.notices.append(notice)
        else:
            return False
        return True

    async def notice(self, kind: str) -> dict[str, Any]:
        """The next notice of a kind."""
        while True:
            for notice in self.notices:
                if notice["type"] == kind:
                    self.notices.remove(notice)
                    return notice
            assert await self.receive(), f"no {kind}: {self.notices}"

    async def hear(self, wanted: bytes) -> None:
        """Wait until the board has said all of this, and no more."""
        while len(self.said) < len(wanted):
            assert await self.receive()
        assert bytes(self.said) == wanted

    async def ask(self, **command: object) -> dict[str, Any]:
        """Ask for something; the answer."""
        check_schema(command, {"$ref": "#/components/schemas/consoleCommand"})
        await self.socket.send_json(command)
        return await self.notice("done")

    async def end(self) -> str:
        """Wait for the end; the reason."""
        while await self.receive():
            pass
        notice = self.notices[-1]
        assert notice["type"] == "closed"
        return str(notice["error"])


@asynccontextmanager
async def console(client: HttpClient, **options: Any) -> AsyncIterator[Terminal]:
    url = f"{client.url}/api/v1/ports/desk/console"
    async with client.session.ws_connect(url, **options) as socket:
        yield Terminal(socket)


@asynccontextmanager
async def console_of(board: PtyBoard, **options: Any) -> AsyncIterator[tuple[Served, Terminal]]:
    async with (
        serving(board, **options) as served,
        http_client(running(served)) as client,
        console(client) as terminal,
    ):
        await terminal.notice("granted")
        yield served, terminal


def transport_of(terminal: Terminal) -> asyncio.Transport:
    """The far end's TCP connection."""
    connection = terminal.socket._response.connection
    assert connection is not None
    return cast("asyncio.Transport", connection.transport)  # uvloop's are none by their class


async def test_bytes_go_both_ways(board: PtyBoard) -> None:
    async with console_of(board) as (served, terminal):
        board.start_reading()
        await board.write(b"\x00\xffboot")
        await terminal.hear(b"\x00\xffboot")
        await terminal.socket.send_bytes(b"\xff\x00\r")
        await until(lambda: board.received == b"\xff\x00\r")
        assert served.port.arbiter.controller_names.endswith(" (web)")
        await terminal.socket.close()
        await served.until_idle()


async def test_a_port_in_use_is_refused_with_who_has_it(lab: Lab) -> None:
    with await TcpClient.connect(lab.served.tcp_port) as user:
        await user.receive_wire(GREETING)
        async with console(lab.client) as terminal:
            assert (await terminal.end()).startswith(f"desk: in use by {user.name} since ")
            assert terminal.socket.close_code == 4409
        await lab.board.write(b"still")
        await user.receive_data(b"still")


async def test_it_gets_the_port_of_a_client_that_has_died_at_its_address(lab: Lab) -> None:
    with await quiet_client(lab.served) as dead:
        dead.fall_silent()
        async with console(lab.client) as terminal:
            await terminal.notice("granted")
            assert lab.served.port.arbiter.controller_names.endswith(" (web)")


async def test_what_is_meant_for_the_moment_is_refused_while_another_has_control(
    board: PtyBoard,
) -> None:
    async with console_of(board, sharing=Sharing.PREEMPT) as (served, terminal):
        with await TcpClient.connect(served.tcp_port) as user:
            await user.send(RFC2217_CLIENT)
            await terminal.notice("suspended")
            before = len(board.lines)
            for command in (
                {"type": "break", "on": True},
                {"type": "lines", "dtr": True, "rts": True},
                {"type": "reset"},
                {"type": "bootloader"},
            ):
                await terminal.socket.send_json(command)
                notice = (await terminal.notice("refused"))["notice"]
                assert notice == f"{command['type']}: another client controls the port"
            # Settings wait for control to return.
            await terminal.socket.send_json({"type": "settings", "baudrate": 9600})
            assert (await terminal.notice("done"))["settings"]["baudrate"] == 9600
            assert served.port.status.settings.baudrate == 115200
            assert board.lines[before:] == []
        await terminal.notice("resumed")
        await until(lambda: served.port.status.settings.baudrate == 9600)
        assert not served.port.status.break_on
        assert board.lines[before:] == []


UPGRADE = (
    b"GET /api/v1/ports/desk/console HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
CLOSE = 0x88
PROTOCOL_ERROR, INVALID_TEXT, TOO_BIG = 1002, 1007, 1009
LONG_HEAD = bytes([0x82, 0xFF]) + (1 << 62).to_bytes(8, "big") + b"mask"


@pytest.mark.parametrize("in_one_segment", [False, True])
@pytest.mark.parametrize(
    ("frames", "code", "reason"),
    [
        (ws_frame(0x82, b"x", masked=False), PROTOCOL_ERROR, "must be masked"),
        (ws_frame(0x82, b"ok") + ws_frame(0x82, b"x", masked=False), PROTOCOL_ERROR, "masked"),
        (bytes([0x82, 0xFE, 0, 5]) + b"maskhello", PROTOCOL_ERROR, "as few bytes as possible"),
        (bytes([0x82, 0xFF, 0, 0, 0, 0, 0, 0, 1, 0]) + b"mask", PROTOCOL_ERROR, "as few bytes"),
        (ws_frame(0xC2, b"x"), PROTOCOL_ERROR, "reserved bits"),
        (ws_frame(0x83, b"x"), PROTOCOL_ERROR, "opcode=3"),
        (ws_frame(0x09, b"x"), PROTOCOL_ERROR, "fragmented control frame"),
        (ws_frame(0x89, b"x" * 126), PROTOCOL_ERROR, "Control frame"),
        (ws_frame(0x80, b"x"), PROTOCOL_ERROR, "Continuation frame"),
        (ws_frame(CLOSE, b"\x03"), PROTOCOL_ERROR, "Invalid close frame"),
        (ws_frame(0x81, b"\xff"), INVALID_TEXT, "Invalid UTF-8"),
        (LONG_HEAD, TOO_BIG, "exceeds limit"),
        (b"GET / HTTP/1.1\r\n\r\n", PROTOCOL_ERROR, "WebSocket: "),
    ],
)
async def test_a_protocol_error_closes_it_with_its_code(
    lab: Lab, frames: bytes, code: int, reason: str, in_one_segment: bool
) -> None:
    lab.board.start_reading()
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.client.tcp_port)
    with capture_logs() as logs:
        writer.write(UPGRADE + frames if in_one_segment else UPGRADE)
        if not in_one_segment:
            await reader.readuntil(b'{"type": "granted"}')
            writer.write(frames[:1])
            await turns(10)
            writer.write(frames[1:])
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        await lab.served.until_idle()
    assert answer[-4:] == bytes([CLOSE, 2]) + code.to_bytes(2, "big")
    [end] = [each for each in logs if each["event"] == "client_disconnected"]
    assert reason in end["reason"]
    assert end["log_level"] == "warning"
    assert not [each for each in logs if "exc_info" in each]
    assert bytes(lab.board.received) == (b"ok" if frames.startswith(b"\x82\x82") else b"")


async def test_frames_without_contents_are_bounded_while_it_does_not_read(
    tmp_path: Path,
) -> None:
    """Its port is another's: the console waits for it."""
    flood = ws_frame(0x82, b"") * 200_000
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_server(running(served)) as server:
            with await quiet_client(served):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.tcp_port)
                writer.write(UPGRADE + flood)
                await reader.readuntil(b"\r\n\r\n")
                await turns(50)
                [handler] = server._runner.server.connections  # type: ignore[union-attr]
                assert isinstance(handler, HttpHandler)
                held = handler.transport._held_bytes  # type: ignore[union-attr]
                assert held is not None
                assert 0 < held <= connection._HELD_BYTES + connection.PIECE_BYTES
                writer.transport.abort()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()


async def test_a_command_is_short(board: PtyBoard) -> None:
    async with console_of(board) as (_, terminal):
        await terminal.socket.send_str(" " * 5000)
        notice = (await terminal.notice("refused"))["notice"]
        assert notice == "a command has at most 4096 characters"


async def test_settings_lines_and_resets_are_asked_for(board: PtyBoard) -> None:
    async with console_of(board) as (served, terminal):
        answer = await terminal.ask(type="settings", baudrate=74880)
        assert answer["settings"]["baudrate"] == 74880
        answer = await terminal.ask(type="lines", rts=True)
        assert answer["lines"] == {"dtr": False, "rts": True}
        assert board.lines[-1] == RESET
        assert (await terminal.ask(type="lines", rts=False))["lines"]["rts"] is False
        before = len(board.lines)
        await terminal.ask(type="reset")
        assert board.lines[before:] == [RESET, IDLE]
        await terminal.ask(type="bootloader")
        assert (await terminal.ask(type="break", on=True))["of"] == "break"
        await terminal.ask(type="break", on=False)
        await terminal.socket.close()
        await served.until_idle()
        # As the YAML says, for the next.
        assert served.port.status.settings.baudrate == 115200


async def test_what_is_not_understood_is_told_and_changes_nothing(board: PtyBoard) -> None:
    async with console_of(board) as (_, terminal):
        before = len(board.lines)
        await terminal.socket.send_str("{")
        notice = (await terminal.notice("refused"))["notice"]
        assert notice.startswith("this is not JSON: Expecting property name")
        await board.write(b"alive")
        await terminal.hear(b"alive")
        assert len(board.lines) == before


async def test_a_board_that_takes_nothing_stops_the_client(board: PtyBoard) -> None:
    async with console_of(board) as (served, terminal):
        data = bytes(range(256)) * 1024
        sent = 0

        async def paste() -> None:
            nonlocal sent
            for _ in range(40):
                await terminal.socket.send_bytes(data)
                sent += len(data)

        pasting = asyncio.create_task(paste())
        await until(lambda: served.port.unsent_bytes)
        await asyncio.sleep(0.1)
        # Read ahead is a piece, whatever else the connection holds.
        assert served.port.unsent_bytes <= 3 * 65536
        board.start_reading()
        await pasting
        await until(lambda: len(board.received) == sent)
        assert bytes(board.received) == data * 40


async def test_a_message_that_is_too_large_ends_it(board: PtyBoard) -> None:
    async with console_of(board) as (served, terminal):
        await terminal.socket.send_bytes(b"x" * (module.MAX_MESSAGE_BYTES + 1))
        while await terminal.receive():
            pass
        assert terminal.socket.close_code == 1009
        await served.until_idle()


async def test_a_console_ends_with_its_port(board: PtyBoard) -> None:
    async with console_of(board) as (served, terminal):
        [port] = running(served)
        await port.stop("its configuration has changed")
        assert await terminal.end() == "desk: its configuration has changed"
        assert not served.port.arbiter


async def test_the_token_is_wanted_and_taken_as_a_protocol(board: PtyBoard) -> None:
    async with serving(board) as served, http_client(running(served), TOKEN) as client:
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            async with console(client):
                pass
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            async with console(client, protocols=("esp-gateway", "bearer.wrong")):
                pass
        protocols = ("esp-gateway", f"bearer.{TOKEN}")
        async with console(client, protocols=protocols) as terminal:
            assert terminal.socket.protocol == "esp-gateway"
            await terminal.notice("granted")


async def test_a_page_of_others_gets_none(lab: Lab) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        async with console(lab.client, origin="http://evil.example"):
            pass
    async with console(lab.client, origin=lab.client.url) as terminal:
        await terminal.notice("granted")


async def test_what_is_no_websocket_is_told(lab: Lab) -> None:
    answered = await lab.client.get("/api/v1/ports/desk/console")
    assert (answered.status, answered.error) == (426, "a console is a WebSocket")


async def test_only_so_many_are_open_in_all_and_of_one_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONSOLE_LIMITS", ConnectionLimits(2, 1))
    with PtyBoard(tmp_path) as board:
        async with (
            serving(board, sharing=Sharing.SHARED) as served,
            http_client(running(served)) as client,
            from_address("127.0.0.2", client) as other,
            from_address("127.0.0.3", client) as third,
        ):
            async with console(client) as terminal:
                await terminal.notice("granted")
                with pytest.raises(aiohttp.WSServerHandshakeError, match="429"):
                    async with console(client):
                        pass
                async with console(other) as second:
                    await second.notice("granted")
                    with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                        async with console(third):
                            pass
            await served.until_idle()


async def test_the_server_ends_it_when_it_stops(board: PtyBoard) -> None:
    async with serving(board) as served:
        async with http_client(running(served)) as client:
            socket = await client.session.ws_connect(f"{client.url}/api/v1/ports/desk/console")
            terminal = Terminal(socket)
            await terminal.notice("granted")
            ending = asyncio.create_task(terminal.end())
        # The client's session is closed before the server is stopped: it need not get a reason.
        await asyncio.gather(ending, return_exceptions=True)
        await served.until_idle()


def frame(kind: aiohttp.WSMsgType, payload: bytes) -> bytes:
    """A client's frame as it goes over the wire (RFC 6455 section 5.2), its mask is 0."""
    assert len(payload) < 126
    return bytes([0x80 | int(kind), 0x80 | len(payload), 0, 0, 0, 0]) + payload


@pytest.mark.parametrize(
    "one",
    [
        frame(aiohttp.WSMsgType.BINARY, b"x"),
        frame(aiohttp.WSMsgType.BINARY, b""),
        frame(aiohttp.WSMsgType.TEXT, b"{"),
        frame(aiohttp.WSMsgType.TEXT, b'{"type": "lines"}'),
        frame(aiohttp.WSMsgType.TEXT, b'{"type": "settings", "baud": 9600}'),
        frame(aiohttp.WSMsgType.PING, b""),
    ],
)
async def test_a_flood_of_messages_delays_no_port(board: PtyBoard, one: bytes) -> None:
    async with console_of(board) as (_, terminal):
        board.start_reading()
        terminal.socket._reader.set_exception(ConnectionError("nothing is read any more"))
        meter = TurnMeter()
        with meter.running():
            transport_of(terminal).write(one * (3 * READ_BYTES // len(one)))
            seen, is_busy = 0, True
            while is_busy:
                for _ in range(200):
                    await asyncio.sleep(0)
                is_busy = not seen or max(meter.cpu_s[seen:]) > BUSY_S
                seen = len(meter.cpu_s)
        assert max(meter.cpu_s) < TURN_LIMIT_S
