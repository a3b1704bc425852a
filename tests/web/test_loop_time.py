"""No client of the HTTP server holds the event loop, on which all boards' bytes are carried."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp.web_protocol import RequestHandler

from gateway.running_port import RunningPort
from gateway.session.listener import Listener
from gateway.web import metrics, ports_api
from gateway.web.connection import PIECE_BYTES, PacedConnection
from gateway.web.http_answers import PIECE_BYTES as WRITTEN_PIECE_BYTES
from gateway.web.ports_api import document_of
from tests.support.http_lab import LOOPBACK, client_of, from_address, http_server, running
from tests.support.pty_board import PtyBoard, port_config, port_of, serving
from tests.support.tcp_client import GREETING, TcpClient
from tests.support.turns import TurnMeter

PORTS = 256
CLIENTS = 24
LIMIT_S = 120.0


class NotListening:
    """Stands for a port's listener."""

    tcp_port = 4001
    rejected: Counter[Any] = Counter()  # noqa: RUF012 - nobody counts


def many_ports(folder: Path) -> list[RunningPort]:
    board = PtyBoard(folder, plugged_in=False)
    way_in = cast("Listener", NotListening())
    return [
        RunningPort(
            replace(port_config(f"port-{number}"), tcp_port=4001 + number),
            port_of(board, f"port-{number}"),
            way_in,
            None,
        )
        for number in range(PORTS)
    ]


@contextmanager
def clients_in_threads(tcp_port: int, path: str, answers: list[int]) -> Iterator[None]:
    """Clients that ask again as soon as they are answered; `answers` are how many they got."""
    stop = threading.Event()
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    def ask_again_and_again(number: int) -> None:
        with socket.create_connection((LOOPBACK, tcp_port)) as connection:
            connection.settimeout(LIMIT_S)
            with connection.makefile("rb") as answer:
                while not stop.is_set():
                    connection.sendall(request)
                    length = 0
                    while (line := answer.readline()) not in {b"\r\n", b""}:
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    if len(answer.read(length)) < length or not length:
                        return
                    answers[number] += 1

    threads = [
        threading.Thread(target=ask_again_and_again, args=(number,))
        for number in range(len(answers))
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT_S)


@asynccontextmanager
async def asked_by_many(tcp_port: int, path: str, answers: list[int]) -> AsyncIterator[None]:
    clients = clients_in_threads(tcp_port, path, answers)
    await asyncio.to_thread(clients.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(clients.__exit__, None, None, None)


@pytest.mark.parametrize("path", ["/api/v1/ports", "/metrics", "/static/vendor/xterm/xterm.js"])
async def test_many_clients_in_a_closed_loop_share_what_takes_long(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = TurnMeter()
    meter.counting(monkeypatch, ports_api, "document_of", lambda _: 1)
    meter.counting(monkeypatch, metrics, "document", lambda _: 1)
    meter.counting(monkeypatch, RequestHandler, "data_received", lambda _, data: len(data))
    meter.counting(monkeypatch, PacedConnection, "write", lambda _, data: len(data))
    ports = many_ports(tmp_path)
    answers = [0] * CLIENTS
    async with http_server(ports) as server:
        assert server.tcp_port is not None
        with meter.running():
            async with asked_by_many(server.tcp_port, path, answers):
                await until_asyncio(lambda: min(answers) >= 3)
    # One slice of a build, and one piece of an answer, is done in a turn; a head is its own write.
    assert meter.most("document_of") <= 2 * ports_api._PORTS_PER_TURN
    assert meter.most("document") <= 2 * metrics._PORTS_PER_TURN
    assert meter.most("data_received") <= 2 * PIECE_BYTES
    assert meter.most("write") <= 2 * WRITTEN_PIECE_BYTES + 8192
    # Far fewer are built than are answered.
    builds = (meter.total("document_of") + meter.total("document")) / PORTS
    assert builds <= sum(answers) / 4
    # A build at once, as each request would be without that, takes several times as long.
    started_s = time.thread_time()
    json.dumps([document_of(port) for port in ports])
    assert max(meter.cpu_s) < 2 * (time.thread_time() - started_s)


async def until_asyncio(condition: Any) -> None:
    """Wait without a pause that would hold the loop itself."""
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "what the test waits for has not happened"
        await asyncio.sleep(0.01)


HEAD = b"POST /api/v1/ports/desk/flash HTTP/1.1\r\nHost: localhost\r\n"
TYPE = b"Content-Type: application/octet-stream\r\n"
GET = b"GET /api/v1/ports HTTP/1.1\r\nHost: localhost\r\n"

FLOODS = {
    "newlines before a request": b"\r\n" * 500_000,
    "newlines as an upload": HEAD + TYPE + b"Content-Length: 1000000\r\n\r\n" + b"\n" * 1_000_000,
    "chunks of one byte": HEAD
    + TYPE
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"1\r\nx\r\n" * 99999,
    "requests in one segment": (GET + b"\r\n") * 3000,
    "many headers": (GET + b"a:\r\n" * 120 + b"\r\n") * 300,
    "a compressed body": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\n123456789",
    "large JSON": b"POST /api/v1/ports/desk/wait HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 65000\r\n\r\n" + b'{"a":' * 13000,
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_of_one_kind_leaves_a_neighbour_its_turns(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight connections send it again and again, while a client of a port is echoed to."""
    meter = TurnMeter()
    meter.counting(monkeypatch, RequestHandler, "data_received", lambda _, data: len(data))
    flood = FLOODS[name]
    with PtyBoard(tmp_path) as board:
        board.start_echoing()
        async with serving(board) as served, http_server(running(served)) as server:
            assert server.tcp_port is not None
            with await TcpClient.connect(served.tcp_port) as neighbour:
                await neighbour.receive_wire(GREETING)
                stop = threading.Event()
                threads = [
                    threading.Thread(
                        target=send_again_and_again, args=(server.tcp_port, flood, stop)
                    )
                    for _ in range(8)
                ]
                for thread in threads:
                    thread.start()
                try:
                    with meter.running():
                        await until_asyncio(lambda: meter.total("data_received") > 50_000)
                        for number in range(1, 21):
                            await neighbour.send(b"x")
                            await neighbour.receive_data(b"x" * number)
                finally:
                    stop.set()
                    for thread in threads:
                        await asyncio.to_thread(thread.join)
            await served.until_idle()
            # Of the flood's address, connections may still be open.
            async with client_of(server) as client, from_address("127.0.0.2", client) as other:
                assert (await other.get("/api/v1/ports")).status == 200
    assert meter.most("data_received") <= 2 * PIECE_BYTES


def send_again_and_again(tcp_port: int, data: bytes, stop: threading.Event) -> None:
    while not stop.is_set():
        with (
            contextlib.suppress(OSError),
            socket.create_connection((LOOPBACK, tcp_port)) as connection,
        ):
            connection.settimeout(1)
            connection.sendall(data)
