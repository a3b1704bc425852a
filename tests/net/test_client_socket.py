"""A client's TCP connection in the kernel."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest

from gateway.net.client_socket import (
    kernel_socket,
    peer_host,
    peer_name,
    peer_origin,
    probe_every_second,
    reason_of,
    sends_no_more,
    set_option,
    set_options,
    tcp_link,
)
from tests.support.pty_board import turns, until
from tests.support.tcp_client import TcpClient


class OnSocket:
    """A transport of which only its socket and its peer matter."""

    def __init__(self, connection: socket.socket | None, peer: object, identity: str) -> None:
        self._info = {"socket": connection, "peername": peer, "peer_identity": identity}

    def get_extra_info(self, name: str) -> object:
        return self._info.get(name)


def on_socket(
    connection: socket.socket | None, peer: object = None, identity: str = ""
) -> asyncio.Transport:
    return cast("asyncio.Transport", OnSocket(connection, peer, identity))


@contextmanager
def accepted() -> Iterator[tuple[TcpClient, socket.socket]]:
    """A client, and the gateway's end of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = TcpClient(socket.create_connection(server.getsockname()))
        ours, _ = server.accept()
        with client, ours:
            yield client, ours


async def test_a_peer_that_has_closed_its_end_sends_no_more_though_bytes_are_left() -> None:
    with accepted() as (client, ours):
        set_options(ours)
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await client.send(b"bytes")
        assert not sends_no_more(on_socket(ours))
        client.stop_sending()
        await until(lambda: sends_no_more(on_socket(ours)))
        assert ours.recv(100) == b"bytes"


def test_a_link_shows_that_the_peer_acknowledges_nothing() -> None:
    with accepted() as (client, ours):
        before = tcp_link(ours)
        assert before is not None
        assert not before.is_unacked
        client.fall_silent()
        ours.sendall(b"into the void")
        while (link := tcp_link(ours)) is not None and link.unanswered < 2:
            time.sleep(0.01)
        assert link is not None
        assert link.is_unacked
        assert link.silence_s > before.silence_s
        ours.close()
        assert tcp_link(ours) is None


@pytest.mark.parametrize("was_asked_for", [True, False])
async def test_the_end_of_a_connection_is_no_error_on_any_loop(was_asked_for: bool) -> None:
    """asyncio's sockets raise OSError then, uvloop's ValueError, or there is none."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.getsockname())
        server.accept()[0].close()
        connection = kernel_socket(transport) if was_asked_for else None
        assert (tcp_link(connection) is not None) is was_asked_for
        transport.abort()
        await turns(3)
        assert tcp_link(connection) is None
        assert tcp_link(kernel_socket(transport)) is None
        assert sends_no_more(transport)
        set_option(connection, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
        probe_every_second(connection, True)
        assert peer_name(transport) in {f"127.0.0.1:{server.getsockname()[1]}", "unknown"}


async def test_a_client_that_was_gone_before_it_was_accepted_may_have_no_name() -> None:
    loop = asyncio.get_running_loop()
    transports: list[asyncio.Transport] = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.append(cast("asyncio.Transport", transport))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = TcpClient(socket.create_connection(listening.getsockname()))
        name = client.name
        client.reset()
        server = await loop.create_server(Protocol, sock=listening.dup())
        await until(lambda: transports and transports[0].is_closing())
        await turns(3)
        server.close()
        await server.wait_closed()
        # asyncio's loop has the address from accept(2).
        assert peer_name(transports[0]) in {"unknown", name}
        assert peer_host(transports[0]) in {"", "127.0.0.1"}


@pytest.mark.parametrize(
    ("peer", "identity", "name", "origin"),
    [
        (("10.0.0.5", 4001), "", "10.0.0.5:4001", "10.0.0.5"),
        (("10.0.0.5", 4002), "alice", "10.0.0.5:4002 (alice)", "10.0.0.5 (alice)"),
        (("fe80::1", 4001, 0, 0), "", "[fe80::1]:4001", "fe80::1"),
        (None, "", "unknown", ""),
    ],
)
def test_a_peer_has_a_name_as_in_a_url_and_an_origin_without_the_port(
    peer: object, identity: str, name: str, origin: str
) -> None:
    transport = on_socket(None, peer, identity)
    assert (peer_name(transport), peer_origin(transport)) == (name, origin)


def test_a_reason_is_the_kernel_s_in_lower_case() -> None:
    assert reason_of(OSError(104, "Connection reset by peer")) == "connection reset by peer"
    assert reason_of(ValueError("Odd")) == "odd"
