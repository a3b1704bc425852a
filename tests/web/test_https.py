"""HTTP over TLS: the same accept path and the same TLS as a port's."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.net import client_socket
from gateway.net.access import Admission
from gateway.net.tls_context import TlsContext, server_context
from gateway.running_port import RunningPort
from gateway.web import ports_api as events
from gateway.web import server as module
from gateway.web.http_answers import takes
from tests.support.certificates import Authority
from tests.support.http_lab import http_server, running
from tests.support.pty_board import PtyBoard, serving, turns, until
from tests.support.tcp_client import TcpClient
from tests.support.tls_client import TlsClient

REQUEST = b"GET /api/v1/ports HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSING_REQUEST = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

#: More than the buffers of the kernel and of ours take from a peer that does not read.
MUCH_BYTES = 64 << 20
KERNEL_BYTES = 16 << 20


class Lab:
    """An HTTPS server on a free port, and how to reach it."""

    def __init__(self, tcp_port: int, authority: Authority, admission: Admission) -> None:
        self.tcp_port = tcp_port
        self.context = authority.client(None)
        self.admission = admission

    async def get(self, path: str = "/api/v1/ports") -> bytes:
        """What a client gets that is alone on its connection."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.url(path), ssl=self.context) as response,
        ):
            assert response.status == 200
            return await response.read()

    def url(self, path: str) -> str:
        return f"https://localhost:{self.tcp_port}{path}"


@asynccontextmanager
async def https(
    folder: Path, *ports: RunningPort, admission: Admission | None = None
) -> AsyncIterator[Lab]:
    """A server whose clients need no certificate."""
    authority = Authority(folder)
    tls = TlsContext(server_context(authority.server_for_all()))
    admission = admission or Admission()
    async with http_server(ports, tls=tls, admission=admission) as server:
        assert server.tcp_port is not None
        yield Lab(server.tcp_port, authority, admission)


async def test_a_renewed_certificate_counts_for_the_next_connection(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    tls = TlsContext(server_context(old.server_for_all()))
    async with http_server([], tls=tls) as server:
        assert server.tcp_port is not None
        await Lab(server.tcp_port, old, Admission()).get()
        tls.context = server_context(new.server_for_all())
        await Lab(server.tcp_port, new, Admission()).get()


async def test_a_client_without_the_certificate_that_is_wanted_is_rejected(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = TlsContext(server_context(authority.server()))
    with capture_logs() as logs:
        async with http_server([], tls=tls) as server:
            assert server.tcp_port is not None
            lab = Lab(server.tcp_port, authority, Admission())
            with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                await lab.get()
            await until(lambda: [log for log in logs if log["event"] == "client_rejected"])
            lab.context = authority.client("alice")
            await lab.get()
    rejected, *_ = [log for log in logs if log["event"] == "client_rejected"]
    assert (rejected["server"], rejected["reason"]) == (
        "http",
        "TLS: peer did not return a certificate",
    )


async def test_a_browser_that_comes_without_tls_is_told_what_the_port_is_for(
    tmp_path: Path,
) -> None:
    async with https(tmp_path) as lab:
        with await TcpClient.connect(lab.tcp_port) as client:
            await client.send(REQUEST)
            answer = await client.receive_to_end()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"\r\n\r\nThis port is for HTTPS.\n")


# --- the accept path


async def test_a_hello_that_comes_with_the_connection_is_answered(tmp_path: Path) -> None:
    async with https(tmp_path) as lab:
        for _ in range(20):
            # Both before the loop turns: the server finds the hello when it accepts.
            connection = socket.create_connection(("127.0.0.1", lab.tcp_port))
            with TlsClient(connection) as client:
                await client.shake_hands(lab.context)
                await client.send(CLOSING_REQUEST)
                assert (await client.receive_to_end()).startswith(b"HTTP/1.1 200 OK")
            # A request in one segment with the end of the handshake.
            with await TlsClient.connect_tls(
                lab.tcp_port, lab.context, with_end=CLOSING_REQUEST
            ) as client:
                assert (await client.receive_to_end()).startswith(b"HTTP/1.1 200 OK")


async def test_stopping_closes_all_connections(tmp_path: Path) -> None:
    admission = Admission()
    with ExitStack() as held:
        async with https(tmp_path, admission=admission) as lab:
            idle = held.enter_context(await TlsClient.connect_tls(lab.tcp_port, lab.context))
            held.enter_context(await TcpClient.connect(lab.tcp_port))  # amid its handshake
            await idle.send(REQUEST)
            await idle.receive_wire(b"HTTP/1.1 200 OK")
            await until(lambda: admission.handshakes.count == 1)
        await until(lambda: admission.connections.count == 0)
        assert admission.handshakes.count == 0


# --- aiohttp on this TLS


class Routes:
    """Routes of the test beside the server's own."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.sent_bytes = 0
        self.transport: asyncio.Transport | None = None
        self.ended = 0

    def add(self, app: web.Application) -> None:
        """As each of server.ROUTES."""
        app.router.add_get("/test/large", self.large)

        @takes("application/octet-stream")
        async def upload(request: web.Request) -> web.Response:
            return await self.upload(request)

        app.router.add_post("/test/upload", upload)
        app.router.add_get("/test/connection", self.connection)

    async def large(self, request: web.Request) -> web.StreamResponse:
        """Send a lot, as fast as it is taken."""
        response = web.StreamResponse()
        response.content_length = MUCH_BYTES
        self.transport = request.transport
        try:
            await response.prepare(request)
            for chunk in chunks():
                await response.write(chunk)
                self.sent_bytes += len(chunk)
        finally:
            self.ended += 1
        return response

    async def upload(self, request: web.Request) -> web.Response:
        """Take a lot, when the test says so."""
        await self.go_on.wait()
        digest = hashlib.sha256()
        async for chunk in request.content.iter_any():
            digest.update(chunk)
        return web.json_response({"sha256": digest.hexdigest()})

    async def connection(self, request: web.Request) -> web.Response:
        """What a handler can see of the connection."""
        transport = request.transport
        assert transport is not None
        tls = transport.get_extra_info("ssl_object")
        return web.json_response(
            {
                "scheme": request.scheme,
                "remote": request.remote,
                "version": tls.version(),
                "is_nodelay": bool(transport.get_extra_info("socket").getsockopt(6, 1)),
            }
        )


def chunks() -> list[bytes]:
    """What /test/large sends."""
    return [bytes([number % 251]) * 65536 for number in range(MUCH_BYTES // 65536)]


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> Routes:
    made = Routes()
    monkeypatch.setattr(module, "ROUTES", (*module.ROUTES, made.add))
    return made


async def test_a_handler_sees_the_connection_as_with_asyncio_s_tls(
    tmp_path: Path, routes: Routes
) -> None:
    async with https(tmp_path) as lab:
        assert json.loads(await lab.get("/test/connection")) == {
            "scheme": "https",
            "remote": "127.0.0.1",
            "version": "TLSv1.3",
            "is_nodelay": True,
        }


async def test_pipelined_requests_are_answered_in_their_order(tmp_path: Path) -> None:
    async with https(tmp_path) as lab:
        with await TlsClient.connect_tls(lab.tcp_port, lab.context) as client:
            await client.send(20 * REQUEST + CLOSING_REQUEST)
            assert (await client.receive_to_end()).count(b"HTTP/1.1 200 OK") == 21


async def test_a_download_waits_for_a_slow_reader_and_loses_nothing(
    tmp_path: Path, routes: Routes
) -> None:
    async with https(tmp_path) as lab:
        with await TlsClient.connect_tls(
            lab.tcp_port, lab.context, receive_buffer_bytes=65536
        ) as client:
            await client.send(CLOSING_REQUEST.replace(b"/api/v1/ports", b"/test/large"))
            await until(lambda: routes.transport and routes.transport.get_write_buffer_size())
            await until_still(lambda: routes.sent_bytes)
            assert routes.sent_bytes < KERNEL_BYTES
            assert routes.transport is not None
            # The high-water mark, and what two writes and their records add to it: aiohttp waits
            # for the transport when it has written more than 64 KiB.
            assert routes.transport.get_write_buffer_size() < 65536 + 2 * 65536 + 4096
            received = await client.receive_to_end()
    _, _, body = received.partition(b"\r\n\r\n")
    assert hashlib.sha256(body).digest() == hashlib.sha256(b"".join(chunks())).digest()


@pytest.mark.parametrize("secured", [False, True])
async def test_a_client_that_stops_reading_is_closed_by_the_kernel_in_time(
    tmp_path: Path, routes: Routes, secured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    option = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    shorter = [
        (*each[:2], 500) if each[:2] == option else each for each in client_socket._SOCKET_OPTIONS
    ]
    monkeypatch.setattr(client_socket, "_SOCKET_OPTIONS", shorter)
    admission = Admission()
    serving_http = http_server([], admission=admission)
    serving_https = https(tmp_path, admission=admission)
    async with serving_https as lab, serving_http as plain:
        client: TcpClient
        if secured:
            client = await TlsClient.connect_tls(
                lab.tcp_port, lab.context, receive_buffer_bytes=4096
            )
        else:
            client = await TcpClient.connect(plain.tcp_port or 0, receive_buffer_bytes=4096)
        with client:
            await client.send(REQUEST.replace(b"/api/v1/ports", b"/test/large"))
            await until(lambda: routes.sent_bytes)
            await until(lambda: admission.connections.count == 0)
            await until(lambda: routes.ended == 1)


async def test_an_upload_waits_for_its_handler_and_arrives_whole(
    tmp_path: Path, routes: Routes
) -> None:
    body = b"".join(chunks())
    taken_bytes = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken_bytes
        for chunk in chunks():
            yield chunk
            taken_bytes += len(chunk)

    async with https(tmp_path) as lab, aiohttp.ClientSession() as session:
        headers = {"Content-Type": "application/octet-stream"}
        asking = asyncio.create_task(
            post(session, lab.url("/test/upload"), ssl=lab.context, data=pieces(), headers=headers)
        )
        await until_still(lambda: taken_bytes)
        assert 0 < taken_bytes < KERNEL_BYTES
        routes.go_on.set()
        assert await asking == {"sha256": hashlib.sha256(body).hexdigest()}


async def post(session: aiohttp.ClientSession, url: str, **options: object) -> object:
    async with session.post(url, **options) as response:  # type: ignore[arg-type]
        return await response.json()


async def until_still(count: Callable[[], int]) -> None:
    """Wait until a count has begun and changes no more."""
    await until(count)
    seen = -1
    while seen != count():
        seen = count()
        await turns(200)


async def test_an_event_stream_without_a_reader_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_UNSENT_BYTES", 200_000)
    monkeypatch.setattr(events, "MAX_OUTPUT_BYTES", 65536)
    monkeypatch.setattr(events, "LOOK_S", 0.0)
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, https(tmp_path, *running(served)) as lab:
            with await TlsClient.connect_tls(
                lab.tcp_port, lab.context, receive_buffer_bytes=4096
            ) as client:
                await client.send(REQUEST.replace(b"/api/v1/ports", b"/api/v1/events"))
                await client.receive_wire(b"event: ports")
                assert lab.admission.connections.count == 1
                while lab.admission.connections.count:
                    await board.write(b"x" * 65536)


async def test_a_console_loses_nothing_either_way(tmp_path: Path) -> None:
    much = b"".join(number.to_bytes(4, "big") for number in range(100_000))
    with PtyBoard(tmp_path) as board:
        async with (
            serving(board) as served,
            https(tmp_path, *running(served)) as lab,
            aiohttp.ClientSession() as session,
            session.ws_connect(
                lab.url("/api/v1/ports/desk/console"), ssl=lab.context, protocols=("esp-gateway",)
            ) as console,
        ):
            assert await console.receive_json() == {"type": "granted"}
            # The client reads nothing of it, and is served all the same.
            writing = asyncio.create_task(board.write(much))
            board.start_reading()
            for at in range(0, len(much), 50_000):
                await console.send_bytes(much[at : at + 50_000])
            await until(lambda: len(board.received) == len(much))
            assert board.received == much
            received = b""
            while len(received) < len(much):
                received += await console.receive_bytes()
            await writing
            assert received == much
