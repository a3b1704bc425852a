"""The sockets of an address: bound now or later, who connects to them, and their end."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network

import pytest
import structlog

from gateway.config.choices import Access
from gateway.config.networks import EVERYBODY, Networks
from gateway.tcp.bound_sockets import BoundSockets, is_free
from gateway.tcp.door import Door, Refusal
from tests.support.processes import free_tcp_port
from tests.support.pty_board import LoopClock, turns, until
from tests.support.resolver import Resolver, resolver_that_hangs
from tests.support.tcp_client import TcpClient


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    with resolver_that_hangs(monkeypatch) as stands_in:
        yield stands_in


class Owner:
    """Says hello to whoever connects, and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.connections: list[asyncio.Transport] = []

    def bound(self) -> None:
        self.told.append("bound")

    def not_bound(self, reason: str) -> None:
        self.told.append(reason)

    def arrived(self, transport: asyncio.Transport) -> None:
        self.connections.append(transport)
        transport.write(b"hello")


@asynccontextmanager
async def bound_sockets(
    tcp_port: int = 0, host: str = "127.0.0.1", allow: Networks = EVERYBODY
) -> AsyncIterator[tuple[BoundSockets, Owner, Door]]:
    """Sockets that are not opened yet; at the end all is closed."""
    owner, door = Owner(), Door(Access(allow), structlog.get_logger())
    sockets = BoundSockets(host, tcp_port, door, owner)
    try:
        yield sockets, owner, door
    finally:
        await sockets.close()
        door.close()
        for connection in owner.connections:
            connection.abort()


async def test_who_connects_is_handed_to_the_owner() -> None:
    async with bound_sockets() as (sockets, owner, _):
        assert sockets.tcp_port is None
        await sockets.open()
        assert owner.told == ["bound"]
        assert sockets.tcp_port is not None
        assert sockets.addresses == ("127.0.0.1",)
        with await TcpClient.connect(sockets.tcp_port) as client:
            await client.receive_data(b"hello")


async def test_an_address_that_is_taken_is_bound_when_it_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker, LoopClock() as clock:
        tcp_port = blocker.getsockname()[1]
        async with bound_sockets(tcp_port) as (sockets, owner, _):
            await sockets.open()
            for _ in range(10):
                await clock.advance(5.0)
            assert sockets.tcp_port is None
            blocker.close()
            while owner.told[-1] != "bound":
                await clock.advance(5.0)
            assert sockets.tcp_port == tcp_port
    # Said once, however often it was tried.
    reason, then = owner.told
    assert reason.endswith("address already in use")
    assert then == "bound"


async def test_an_address_of_another_machine_is_told_and_tried_again() -> None:
    async with bound_sockets(host="192.0.2.1") as (sockets, owner, _):  # TEST-NET-1, RFC 5737
        with LoopClock() as clock:
            await sockets.open()
            for _ in range(3):
                await clock.advance(5.0)
            assert sockets.tcp_port is None
            assert sockets.addresses == ()
    assert owner.told == ["no interface of this machine has the address"]


async def test_one_who_takes_the_port_between_binding_and_listening_is_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def start_serving(_server: asyncio.Server) -> None:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    tcp_port = free_tcp_port()
    async with bound_sockets(tcp_port) as (sockets, owner, _):
        with LoopClock() as clock:
            with monkeypatch.context() as patched:
                patched.setattr(asyncio.Server, "start_serving", start_serving)
                await sockets.open()
            assert sockets.tcp_port is None
            while owner.told[-1] != "bound":
                await clock.advance(1.0)
    assert owner.told == ["Address already in use", "bound"]


async def test_a_name_is_listened_at_wherever_it_leads(resolver: Resolver) -> None:
    resolver.answers.set()
    async with bound_sockets(host="lab") as (sockets, owner, _):
        await sockets.open()
        assert sockets.addresses == ("127.0.0.1", "127.0.0.2")
        assert owner.told == ["bound"]


@pytest.mark.parametrize(
    ("host", "outcome"), [("lab", "bound"), ("nowhere", "Name or service not known")]
)
async def test_a_name_that_is_not_found_in_time_is_looked_up_again(
    resolver: Resolver, host: str, outcome: str
) -> None:
    async with bound_sockets(host=host) as (sockets, owner, _):
        with LoopClock() as clock:
            opening = asyncio.create_task(sockets.open())
            await until(lambda: resolver.asked)
            while not opening.done():
                await clock.advance(1.0)
            assert owner.told == ["the resolver does not answer"]
            resolver.answers.set()
            while len(owner.told) < 2:
                await clock.advance(1.0)
    assert owner.told == ["the resolver does not answer", outcome]


async def test_who_is_not_allowed_gets_no_byte_and_the_owner_hears_nothing_of_it() -> None:
    others = Networks((ip_network("192.0.2.0/24"),))
    async with bound_sockets(allow=others) as (sockets, owner, door):
        await sockets.open()
        assert sockets.tcp_port is not None
        with await TcpClient.connect(sockets.tcp_port) as client:
            assert await client.receive_to_end() == b""
        assert door.turned_away == {Refusal.NOT_ALLOWED: 1}
        assert not owner.connections


async def test_closing_frees_the_address_and_leaves_connections_alone() -> None:
    async with bound_sockets() as (sockets, owner, _):
        await sockets.open()
        tcp_port = sockets.tcp_port
        assert tcp_port is not None
        with await TcpClient.connect(tcp_port) as client:
            await client.receive_data(b"hello")
            assert not sockets.is_closed
            await sockets.close()
            assert sockets.is_closed
            assert sockets.tcp_port is None
            assert is_free("127.0.0.1", tcp_port)
            (connection,) = owner.connections
            assert not connection.is_closing()


@pytest.mark.parametrize("loop_turns", range(6))
async def test_a_connection_that_comes_while_closing_is_closed(loop_turns: int) -> None:
    async with bound_sockets() as (sockets, owner, _):
        await sockets.open()
        assert sockets.tcp_port is not None
        with await TcpClient.connect(sockets.tcp_port) as client:
            await turns(loop_turns)
            await sockets.close()
            n_before = len(owner.connections)
            await turns(3)
            assert len(owner.connections) == n_before
            for connection in owner.connections:
                connection.abort()
            with suppress(ConnectionResetError):  # the kernel had it, and nobody else
                assert await client.receive_to_end() in {b"", b"hello"}


async def test_a_connection_accepted_in_the_turn_before_closing_is_closed() -> None:
    loop = asyncio.get_running_loop()
    first, second = socket.socketpair()
    with first, second:
        async with bound_sockets() as (sockets, owner, _):
            await sockets.open()
            woken = loop.create_future()
            loop.add_reader(second, woken.set_result, None)
            first.send(b"x")  # the loop sees this first, then the connection
            with socket.create_connection(("127.0.0.1", sockets.tcp_port)) as connection:
                await woken
                loop.remove_reader(second)
                await sockets.close()
                assert owner.connections == []
                with TcpClient.of(connection) as client, suppress(ConnectionResetError):
                    assert await client.receive_to_end() == b""


@pytest.mark.parametrize("loop_turns", range(8))
async def test_closing_while_it_is_being_bound_leaves_nothing(loop_turns: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker, LoopClock() as clock:
        tcp_port = blocker.getsockname()[1]
        async with bound_sockets(tcp_port) as (sockets, _, _):
            await sockets.open()
            blocker.close()
            await clock.advance(0)
            clock.jump(0.3)  # the next attempt is due
            for _ in range(loop_turns):
                await asyncio.sleep(0)
            await sockets.close()
            assert sockets.tcp_port is None
            assert is_free("127.0.0.1", tcp_port)


def test_an_address_is_free_until_somebody_listens() -> None:
    tcp_port = free_tcp_port()
    assert is_free("127.0.0.1", tcp_port)
    with socket.create_server(("127.0.0.1", tcp_port)):
        assert not is_free("127.0.0.1", tcp_port)
    assert is_free("127.0.0.1", tcp_port)
