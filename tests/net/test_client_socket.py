"""A client's TCP connection as the kernel has it."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import cast

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


def test_a_peer_that_has_closed_its_end_sends_no_more_though_bytes_are_left() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
        with client, ours:
            set_options(ours)
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            client.sendall(b"bytes")
            assert not sends_no_more(on_socket(ours))
            client.shutdown(socket.SHUT_WR)
            while not sends_no_more(on_socket(ours)):
                pass
            assert ours.recv(100) == b"bytes"


def test_the_kernel_tells_of_a_peer_that_acknowledges_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = TcpClient(socket.create_connection(server.getsockname()))
        ours, _ = server.accept()
        with client:
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


async def test_a_connection_that_has_ended_is_none_any_longer_on_every_loop() -> None:
    """asyncio's sockets raise OSError then, uvloop's ValueError, or there is none."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.getsockname())
        server.accept()[0].close()
        connection = kernel_socket(transport)
        assert connection is not None
        assert tcp_link(connection) is not None
        transport.abort()
        await turns(3)
        assert tcp_link(connection) is None
        assert tcp_link(kernel_socket(transport)) is None
        assert sends_no_more(transport)
        set_option(connection, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
        probe_every_second(connection, True)
        assert peer_name(transport) == f"127.0.0.1:{server.getsockname()[1]}"


async def test_a_client_that_was_gone_before_it_was_accepted_can_be_asked_for_its_name() -> None:
    loop = asyncio.get_running_loop()
    accepted: list[asyncio.Transport] = []

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(cast("asyncio.Transport", transport))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = TcpClient(socket.create_connection(listening.getsockname()))
        name = client.name
        client.reset()
        server = await loop.create_server(Protocol, sock=listening.dup())
        await until(lambda: accepted and accepted[0].is_closing())
        await turns(3)
        server.close()
        await server.wait_closed()
        # asyncio's loop has been told by accept(2).
        assert peer_name(accepted[0]) in {"unknown", name}
        assert peer_host(accepted[0]) in {"", "127.0.0.1"}


async def test_a_connection_whose_socket_was_never_asked_for_may_end_as_well() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.getsockname())
        transport.abort()
        await turns(3)
        assert sends_no_more(transport)
        assert tcp_link(kernel_socket(transport)) is None


def test_a_peer_is_named_as_in_a_url() -> None:
    assert peer_name(on_socket(None, ("10.0.0.5", 4001))) == "10.0.0.5:4001"
    assert peer_name(on_socket(None, ("fe80::1", 4001, 0, 0))) == "[fe80::1]:4001"
    assert peer_name(on_socket(None)) == "unknown"


def test_the_origin_of_a_client_is_the_same_for_each_of_its_connections() -> None:
    for tcp_port in (4001, 4002):
        assert peer_origin(on_socket(None, ("10.0.0.5", tcp_port))) == "10.0.0.5"
    assert peer_origin(on_socket(None, ("fe80::1", 4001, 0, 0))) == "fe80::1"
    assert peer_origin(on_socket(None)) == ""
    assert peer_origin(on_socket(None, ("10.0.0.5", 4001), "alice")) == "10.0.0.5 (alice)"


def test_a_reason_is_the_kernel_s_in_lower_case() -> None:
    assert reason_of(OSError(104, "Connection reset by peer")) == "connection reset by peer"
    assert reason_of(ValueError("Odd")) == "odd"
