"""HTTP over TLS."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from gateway.tls.contexts import TlsNow
from gateway.tls.files import server_context
from gateway.web import https, page
from tests.support.certificates import Authority
from tests.support.http_lab import http_server
from tests.support.pty_board import until


async def get(tcp_port: int | None, context: ssl.SSLContext, path: str = "/api/ports") -> bytes:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"https://localhost:{tcp_port}{path}", ssl=context) as response,
    ):
        assert response.status == 200
        return await response.read()


async def test_it_is_spoken_with_who_trusts_the_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = TlsNow(server_context(authority.server_for_all()))
    async with http_server([], tls=tls) as server:
        assert b'"ports": []' in await get(server.tcp_port, authority.client(None))


async def test_a_renewed_certificate_counts_for_the_next_connection(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    tls = TlsNow(server_context(old.server_for_all()))
    async with http_server([], tls=tls) as server:
        await get(server.tcp_port, old.client(None))
        tls.context = server_context(new.server_for_all())
        await get(server.tcp_port, new.client(None))


async def test_files_are_served_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "large.js").write_bytes(b"x" * 1_000_000)
    monkeypatch.setattr(page, "STATIC", tmp_path)
    tls = TlsNow(server_context(authority.server_for_all()))
    async with http_server([], tls=tls) as server:
        got = await get(server.tcp_port, authority.client(None), "/static/large.js")
        assert got == b"x" * 1_000_000


async def test_who_has_no_certificate_is_not_let_in_if_one_is_wanted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = TlsNow(server_context(authority.server()))
    with capture_logs() as logs:
        async with http_server([], tls=tls) as server:
            await get(server.tcp_port, authority.client("alice"))
            with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
                await get(server.tcp_port, authority.client(None))
            await until(lambda: [log for log in logs if log["event"] == "client_not_secured"])


async def test_who_speaks_no_tls_is_closed(tmp_path: Path) -> None:
    tls = TlsNow(server_context(Authority(tmp_path).server_for_all()))
    async with http_server([], tls=tls) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.tcp_port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP" not in await reader.read()
        writer.close()


@pytest.mark.parametrize("leaves", [False, True])
async def test_handshakes_that_are_not_done_keep_nobody_out(
    leaves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(https, "MAX_HANDSHAKES", 1)
    authority = Authority(tmp_path)
    tls = TlsNow(server_context(authority.server_for_all()))
    async with http_server([], tls=tls) as server:
        assert server._https is not None
        pending = server._https._pending
        _, writer = await asyncio.open_connection("127.0.0.1", server.tcp_port)
        await until(lambda: pending)
        other, other_writer = await asyncio.open_connection("127.0.0.1", server.tcp_port)
        assert await other.read() == b""
        other_writer.close()
        if leaves:
            writer.close()
            await until(lambda: not pending)
            await get(server.tcp_port, authority.client(None))
        writer.close()


async def test_a_handshake_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "_HANDSHAKE_LIMIT_S", 0.01)
    tls = TlsNow(server_context(Authority(tmp_path).server_for_all()))
    async with http_server([], tls=tls) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.tcp_port)
        assert await reader.read() == b""
        writer.close()
