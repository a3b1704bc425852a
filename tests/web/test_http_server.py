"""The HTTP server from start to end."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from ipaddress import ip_network

import pytest
from structlog.testing import capture_logs

from gateway.config.document import ConnectionLimits, HttpConfig, Networks
from gateway.net.access import AcceptOptions
from gateway.web import server as module
from gateway.web.http_access import Policy
from gateway.web.http_answers import Lab
from tests.support.http_lab import client_of, http_client, http_server
from tests.support.pty_board import LoopClock, until
from tests.support.resolver import resolver_that_hangs


async def test_who_is_not_allowed_is_closed_without_a_byte() -> None:
    others = HttpConfig("127.0.0.1", 0, allow=Networks((ip_network("192.0.2.0/24"),)))
    with capture_logs() as logs:
        async with http_server([], config=others) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.tcp_port)
            assert await reader.read() == b""
            writer.close()
    (rejected,) = [each for each in logs if each["event"] == "client_rejected"]
    assert (rejected["server"], rejected["reason"]) == ("http", "address not in allow")


async def test_an_address_that_is_taken_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker:
        config = HttpConfig("127.0.0.1", blocker.getsockname()[1])
        with capture_logs() as logs:
            async with http_server([], config=config) as server:
                assert server.tcp_port is None
                assert logs[0]["event"] == "http_failed_to_listen"
                blocker.close()
                await until(lambda: server.tcp_port)
                async with client_of(server) as client:
                    assert (await client.get("/api/v1/ports")).status == 200


async def test_one_that_could_never_be_bound_can_be_stopped() -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker:
        config = HttpConfig("127.0.0.1", blocker.getsockname()[1])
        async with http_server([], config=config) as server:
            assert server.tcp_port is None


async def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = HttpConfig("lab", 0)
    server = module.HttpServer(config, Lab("1.2.3", list, dict, Policy(None)), AcceptOptions())
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
        two = [await asyncio.open_connection("127.0.0.1", client.tcp_port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", client.tcp_port)
        assert await reader.read() == b""
        writer.close()
        elsewhere = ("127.0.0.2", 0)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", client.tcp_port, local_addr=elsewhere
        )
        writer.write(b"GET /api/v1/ports HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
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
        reader, writer = await asyncio.open_connection("127.0.0.1", client.tcp_port)
        writer.write(head)
        assert b" 200 " not in await reader.read()
        writer.close()
        await writer.wait_closed()


async def test_stopping_does_not_wait_for_idle_connections() -> None:
    async with http_server([]) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.tcp_port)
        await server.stop()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_a_new_token_counts_from_then_on() -> None:
    async with http_server([], "a" * 16) as server, client_of(server) as client:
        headers = {"Authorization": "Bearer " + "b" * 16}
        assert (await client.post("/api/v1/ports", {}, headers=headers)).status == 401
        server.use_token("b" * 16)
        assert (await client.post("/api/v1/ports", {}, headers=headers)).status == 405
