"""The HTTP server from start to end, and as the configuration changes."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

import aiohttp
import pytest
import structlog
from structlog.testing import capture_logs

from gateway.config.document import ConnectionLimits, HttpConfig, Networks
from gateway.config.reader import parse_config
from gateway.net.access import AcceptOptions, Admission
from gateway.net.tls_context import TlsContexts
from gateway.running_port import RunningPort
from gateway.service import Service
from gateway.web import server as module
from gateway.web.http_access import Policy
from gateway.web.http_answers import Lab
from gateway.web.server import HttpServer, HttpService
from tests.support.http_lab import (
    LOOPBACK,
    HttpClient,
    client_of,
    exchange,
    http_client,
    http_server,
    running,
)
from tests.support.pty_board import LoopClock, PtyBoard, serving, until
from tests.support.resolver import resolver_that_hangs

CONFIG = HttpConfig(LOOPBACK, 0)
GET = b"GET /api/v1/ports HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


# --- connections


async def test_an_address_that_is_not_allowed_is_closed_without_a_byte() -> None:
    others = HttpConfig(LOOPBACK, 0, allow=Networks((ip_network("192.0.2.0/24"),)))
    with capture_logs() as logs:
        async with http_server([], config=others) as server:
            assert server.tcp_port is not None
            assert await exchange(server.tcp_port, b"", to_end=True) == b""
    (rejected,) = [each for each in logs if each["event"] == "client_rejected"]
    assert (rejected["server"], rejected["reason"]) == ("http", "address not in allow")


async def test_an_address_that_is_taken_is_retried() -> None:
    with socket.create_server((LOOPBACK, 0)) as blocker:
        config = HttpConfig(LOOPBACK, blocker.getsockname()[1])
        async with http_server([], config=config) as server:
            assert server.tcp_port is None  # and it can be stopped
        with capture_logs() as logs:
            async with http_server([], config=config) as server:
                assert logs[0]["event"] == "http_failed_to_listen"
                blocker.close()
                await until(lambda: server.tcp_port)
                async with client_of(server) as client:
                    assert (await client.get("/api/v1/ports")).status == 200


async def test_a_resolver_that_hangs_does_not_delay_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab = Lab("1.2.3", list, dict, Policy(None))
    server = HttpServer(HttpConfig("lab", 0), lab, AcceptOptions())
    with resolver_that_hangs(monkeypatch) as resolver, LoopClock() as clock:
        with capture_logs() as logs:
            starting = asyncio.create_task(server.start())
            await until(lambda: resolver.asked)
            while not starting.done():
                await clock.advance(1.0)
            assert server.tcp_port is None
            resolver.answers.set()
            while server.tcp_port is None:
                await clock.advance(1.0)
        await server.stop()
    events = [(each["event"], each.get("reason")) for each in logs]
    assert events[0] == ("http_failed_to_listen", "the resolver does not answer")
    assert ("http_started", None) in events


@pytest.mark.parametrize(("limits", "served_elsewhere"), [((2, 2), False), ((4, 2), True)])
async def test_connections_are_bounded_over_all_and_for_each_address(
    limits: tuple[int, int], served_elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTION_LIMITS", ConnectionLimits(*limits))
    async with http_client([]) as client:
        two = [await asyncio.open_connection(LOOPBACK, client.tcp_port) for _ in range(2)]
        assert await exchange(client.tcp_port, b"", to_end=True) == b""
        elsewhere = ("127.0.0.2", 0)
        reader, writer = await asyncio.open_connection(
            LOOPBACK, client.tcp_port, local_addr=elsewhere
        )
        writer.write(GET)
        with suppress(ConnectionResetError):
            assert (b" 200 OK" in await reader.read()) == served_elsewhere
        writer.close()
        for _, each in two:
            each.close()
            await each.wait_closed()


@pytest.mark.parametrize("head", [b"", b"GET /api/v1/ports HTT"])
async def test_a_connection_without_a_whole_request_is_closed(
    head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IDLE_LIMIT_S", 0.05)
    async with http_client([]) as client:
        assert b" 200 " not in await exchange(client.tcp_port, head, to_end=True)


async def test_stopping_does_not_wait_for_idle_connections() -> None:
    async with http_server([]) as server:
        reader, writer = await asyncio.open_connection(LOOPBACK, server.tcp_port)
        await server.stop()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


# --- the configuration


@asynccontextmanager
async def service(
    ports: Callable[[], Sequence[RunningPort]] = list,
) -> AsyncIterator[HttpService]:
    made = HttpService("1", ports, dict, TlsContexts(structlog.get_logger()), Admission())
    yield made
    await made.stop()


async def status_of(tcp_port: int | None, token: str = "") -> int:
    """Of a request that changes something; 405 if the token permits it."""
    assert tcp_port is not None
    async with aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = HttpClient(session, tcp_port)
        return (await client.post("/api/v1/ports", {}, headers=headers)).status


async def test_there_is_a_server_while_the_configuration_says_so() -> None:
    async with service() as http:
        await http.follow(None)
        assert http.tcp_port is None
        await http.follow(CONFIG)
        first = http.tcp_port
        assert await status_of(first) == 405
        await http.follow(CONFIG)
        assert http.tcp_port == first
        await http.follow(HttpConfig("localhost", 0))
        assert await status_of(http.tcp_port) == 405
        await http.follow(None)
        assert http.tcp_port is None


async def test_a_console_is_closed_with_the_reason_when_the_server_changes(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            ports = running(served)
            async with service(lambda: ports) as http, aiohttp.ClientSession() as session:
                await http.follow(CONFIG)
                url = f"http://{LOOPBACK}:{http.tcp_port}/api/v1/ports/desk/console"
                async with session.ws_connect(url) as console:
                    await http.follow(HttpConfig("localhost", 0))
                    received = [message.data async for message in console]
    reason = "desk: the configuration of the HTTP server has changed"
    assert json.loads(received[-1]) == {"type": "closed", "error": reason}


async def test_a_server_that_does_not_start_is_retried_by_the_next_reload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(_: HttpServer) -> None:
        raise RuntimeError("a mistake of ours")

    async with service() as http:
        with monkeypatch.context() as patched:
            patched.setattr(HttpServer, "start", fail)
            with pytest.raises(RuntimeError):
                await http.follow(CONFIG)
        await http.follow(CONFIG)
        assert await status_of(http.tcp_port) == 405


async def test_the_token_is_read_again_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    config = HttpConfig(LOOPBACK, 0, token_file=str(file))
    file.touch(mode=0o600)
    file.write_text("a" * 16)
    async with service() as http:
        await http.follow(config)
        assert await status_of(http.tcp_port) == 401
        file.write_text("b" * 16)
        await http.follow(config)
        assert await status_of(http.tcp_port, "a" * 16) == 401
        assert await status_of(http.tcp_port, "b" * 16) == 405
        file.unlink()
        with capture_logs() as logs:
            await http.follow(config)
        assert [each["event"] for each in logs] == ["http_files_not_read"]
        assert await status_of(http.tcp_port, "b" * 16) == 405


async def test_the_service_serves_its_ports(tmp_path: Path) -> None:
    def config(http: str) -> str:
        return f"ports:\n  - {{name: desk, tcp: 0, device: {tmp_path}/tty}}\n{http}"

    gateway = Service(tmp_path)
    await gateway.start(parse_config(config("http: 127.0.0.1:0"), "f.yaml"))
    # Until then, the port is still looking for its board.
    await until(lambda: (counts := gateway.counts()) and counts.absent)
    assert gateway.http_port is not None
    async with aiohttp.ClientSession() as session:
        client = HttpClient(session, gateway.http_port)
        [desk] = (await client.get("/api/v1/ports")).content["ports"]
        assert (desk["name"], desk["state"]) == ("desk", "absent")
    await gateway.reload(parse_config(config(""), "f.yaml"))
    assert gateway.http_port is None
    await gateway.stop()


def test_nothing_of_the_server_is_loaded_unless_it_is_configured() -> None:
    program = (
        "import sys, gateway.cli.main, gateway.service\n"
        "print([name for name in ('aiohttp', 'multidict', 'gateway.web') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"
