"""An address of the configuration: bound now or later, connections and their limits, its end."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs
from structlog.typing import EventDict

from gateway import runtime
from gateway.config.document import Address, ConnectionLimits, Networks
from gateway.net.acceptor import ACCEPT_RETRY_S, BACKLOG, Acceptor, is_free
from gateway.net.access import (
    ACCEPTS_PER_TURN,
    PERIOD_S,
    AcceptOptions,
    Admission,
    Rejection,
)
from gateway.net.client_socket import USER_TIMEOUT_MS
from tests.support.processes import free_tcp_port
from tests.support.pty_board import LoopClock, turns, until
from tests.support.resolver import Resolver, resolver_that_hangs
from tests.support.tcp_client import TcpClient


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    with resolver_that_hangs(monkeypatch) as stands_in:
        yield stands_in


class Owner:
    """Greets each client, and keeps the acceptor's reports."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.connections: list[asyncio.Transport] = []

    def listening(self) -> None:
        self.reports.append("listening")

    def not_listening(self, reason: str) -> None:
        self.reports.append(reason)

    def connected(self, transport: asyncio.Transport) -> None:
        self.connections.append(transport)
        transport.set_protocol(asyncio.Protocol())
        transport.write(b"hello")


@asynccontextmanager
async def acceptor(
    tcp_port: int = 0, host: str = "127.0.0.1", options: AcceptOptions | None = None
) -> AsyncIterator[tuple[Acceptor, Owner]]:
    """An acceptor that is not open yet; at the end all is closed."""
    owner = Owner()
    address = Address(host, tcp_port)
    accepting = Acceptor(address, owner, structlog.get_logger(), options or AcceptOptions())
    try:
        yield accepting, owner
    finally:
        await accepting.close()
        for connection in owner.connections:
            connection.abort()
        await turns(3)


@asynccontextmanager
async def accepting_at(
    options: AcceptOptions | None = None,
) -> AsyncIterator[tuple[int, Acceptor, Owner]]:
    """An open acceptor, and its TCP port."""
    async with acceptor(options=options) as (accepting, owner):
        await accepting.open()
        assert accepting.tcp_port is not None
        yield accepting.tcp_port, accepting, owner


def limited(limit: int, per_address: int) -> AcceptOptions:
    return AcceptOptions(Admission(ConnectionLimits(limit, per_address)))


async def is_served(tcp_port: int, source: str = "127.0.0.1") -> bool:
    """Whether a new client is greeted; else it is closed without a byte."""
    with await TcpClient.connect(tcp_port, source=source) as client:
        return await client._receive_some() == b"hello"


def rejections(logs: list[EventDict]) -> list[tuple[str, int]]:
    return [(each["reason"], each["count"]) for each in logs if each["event"] == "client_rejected"]


async def test_a_connection_is_handed_to_the_owner() -> None:
    async with acceptor() as (accepting, owner):
        assert accepting.tcp_port is None
        await accepting.open()
        assert owner.reports == ["listening"]
        assert accepting.tcp_port is not None
        assert accepting.addresses == ("127.0.0.1",)
        with await TcpClient.connect(accepting.tcp_port) as client:
            await client.receive_data(b"hello")
            connection = owner.connections[0].get_extra_info("socket")
            option = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert connection.getsockopt(*option) == USER_TIMEOUT_MS


# --- addresses


async def test_an_address_in_use_is_tried_less_and_less_often_and_reported_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker, LoopClock() as clock:
        tcp_port = blocker.getsockname()[1]
        async with acceptor(tcp_port) as (accepting, owner):
            await accepting.open()
            for wait_s in (0.25, 0.5, 1.0, 2.0, 4.0, 5.0):
                await clock.advance(wait_s)
            assert accepting.tcp_port is None
            blocker.close()
            await clock.advance(4.9)
            assert "listening" not in owner.reports
            await clock.advance(0.2)
            assert accepting.tcp_port == tcp_port
    reason, then = owner.reports
    assert reason.endswith("address already in use")
    assert then == "listening"


async def test_an_address_of_another_machine_is_reported() -> None:
    async with acceptor(host="192.0.2.1") as (accepting, owner):  # TEST-NET-1, RFC 5737
        await accepting.open()
        assert (accepting.tcp_port, accepting.addresses) == (None, ())
    assert owner.reports == ["no interface of this machine has the address"]


@pytest.mark.parametrize(
    ("host", "outcome"), [("lab", "listening"), ("nowhere", "name or service not known")]
)
async def test_a_name_without_an_answer_in_time_is_looked_up_again(
    resolver: Resolver, host: str, outcome: str
) -> None:
    async with acceptor(host=host) as (accepting, owner):
        with LoopClock() as clock:
            opening = asyncio.create_task(accepting.open())
            await until(lambda: resolver.asked)
            while not opening.done():
                await clock.advance(1.0)
            assert owner.reports == ["the resolver does not answer"]
            resolver.answers.set()
            while len(owner.reports) < 2:
                await clock.advance(1.0)
    assert owner.reports == ["the resolver does not answer", outcome]


async def test_all_addresses_of_a_name_share_one_free_port(resolver: Resolver) -> None:
    resolver.answers.set()
    async with acceptor(host="lab") as (accepting, owner):
        await accepting.open()
        assert accepting.addresses == ("127.0.0.1", "127.0.0.2")
        assert owner.reports == ["listening"]
        assert accepting.tcp_port is not None
        for address in accepting.addresses:
            with socket.socket() as client:
                client.connect((address, accepting.tcp_port))
        await until(lambda: len(owner.connections) == 2)


async def test_both_wildcard_addresses_have_the_same_port_to_themselves() -> None:
    async with acceptor(host="0.0.0.0") as (v4, _):
        await v4.open()
        async with acceptor(v4.tcp_port or 0, host="::") as (v6, owner):
            await v6.open()
            assert owner.reports == ["listening"]
            assert (v4.addresses, v6.addresses) == (("0.0.0.0",), ("::",))


@pytest.mark.parametrize("scope", ["lo", str(socket.if_nametoindex("lo"))])
async def test_the_interface_of_an_address_is_a_name_or_a_number(scope: str) -> None:
    async with acceptor(host=f"::1%{scope}") as (accepting, owner):
        await accepting.open()
        assert accepting.tcp_port is not None
        with socket.create_connection(("::1", accepting.tcp_port)):
            await until(lambda: owner.connections)


def test_an_address_is_free_while_nothing_listens_on_it() -> None:
    tcp_port = free_tcp_port()
    assert is_free("127.0.0.1", tcp_port)
    with socket.create_server(("127.0.0.1", tcp_port)):
        assert not is_free("127.0.0.1", tcp_port)
    assert is_free("127.0.0.1", tcp_port)


# --- the end


async def test_closing_frees_the_address_and_keeps_connections() -> None:
    async with accepting_at() as (tcp_port, accepting, owner):
        with await TcpClient.connect(tcp_port) as client:
            await client.receive_data(b"hello")
            await accepting.close()
            assert accepting.tcp_port is None
            assert is_free("127.0.0.1", tcp_port)
            (connection,) = owner.connections
            assert not connection.is_closing()


@pytest.mark.parametrize("loop_turns", range(6))
async def test_a_connection_that_arrives_while_closing_is_closed(loop_turns: int) -> None:
    async with accepting_at() as (tcp_port, accepting, owner):
        with await TcpClient.connect(tcp_port) as client:
            await turns(loop_turns)
            await accepting.close()
            n_before = len(owner.connections)
            await turns(3)
            assert len(owner.connections) == n_before
            for connection in owner.connections:
                connection.abort()
            with suppress(ConnectionResetError):  # it was still in the kernel
                assert await client.receive_to_end() in {b"", b"hello"}


async def test_a_connection_accepted_in_the_turn_before_closing_is_closed() -> None:
    loop = asyncio.get_running_loop()
    first, second = socket.socketpair()
    with first, second:
        async with accepting_at() as (tcp_port, accepting, owner):
            woken = loop.create_future()
            loop.add_reader(second, woken.set_result, None)
            first.send(b"x")  # the loop sees this first, then the connection
            with socket.create_connection(("127.0.0.1", tcp_port)) as connection:
                await woken
                loop.remove_reader(second)
                await accepting.close()
                assert owner.connections == []
                with TcpClient.of(connection) as client, suppress(ConnectionResetError):
                    assert await client.receive_to_end() == b""


@pytest.mark.parametrize("loop_turns", range(8))
async def test_closing_while_it_is_being_bound_leaves_nothing(loop_turns: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker, LoopClock() as clock:
        tcp_port = blocker.getsockname()[1]
        async with acceptor(tcp_port) as (accepting, _):
            await accepting.open()
            blocker.close()
            await clock.advance(0)
            clock.jump(0.3)  # the next attempt is due
            for _ in range(loop_turns):
                await asyncio.sleep(0)
            await accepting.close()
            assert accepting.tcp_port is None
            assert is_free("127.0.0.1", tcp_port)


# --- access list and limits


async def test_a_peer_outside_the_access_list_gets_no_byte() -> None:
    others = AcceptOptions(allow=Networks((ip_network("192.0.2.0/24"),)))
    with capture_logs() as logs:
        async with accepting_at(others) as (tcp_port, accepting, owner):
            assert not await is_served(tcp_port)
            assert accepting.rejections.counts == {Rejection.NOT_ALLOWED: 1}
            assert not owner.connections
            assert others.admission.connections.count == 0
    assert rejections(logs) == [("address not in allow", 1)]


async def test_an_address_has_at_most_its_share_and_its_place_is_free_again() -> None:
    options = limited(100, 3)
    with capture_logs() as logs, ExitStack() as held:
        async with accepting_at(options) as (tcp_port, accepting, owner):
            mine = [held.enter_context(await TcpClient.connect(tcp_port)) for _ in range(3)]
            for client in mine:
                await client.receive_data(b"hello")
            assert not await is_served(tcp_port)
            assert await is_served(tcp_port, "127.0.0.2")
            mine[0].close()
            await until(lambda: options.admission.connections.count == 2)
            assert await is_served(tcp_port)
            assert accepting.rejections.counts == {Rejection.TOO_MANY: 1}
            assert len(owner.connections) == 5
    assert rejections(logs) == [("too many connections from this address (limit 3)", 1)]


async def test_the_limit_holds_over_all_acceptors() -> None:
    options = limited(4, 2)
    with capture_logs() as logs, ExitStack() as held:
        async with accepting_at(options) as (first, _, _), accepting_at(options) as (second, _, _):
            for number, tcp_port in enumerate((first, second, first, second)):
                client = await TcpClient.connect(tcp_port, source=f"127.0.0.{number + 1}")
                await held.enter_context(client).receive_data(b"hello")
            for tcp_port in (first, second):
                assert not await is_served(tcp_port, "127.0.0.9")
    assert rejections(logs) == [("too many connections (limit 4)", 1)] * 2


async def test_lowered_limits_reject_new_connections_and_keep_the_others() -> None:
    options = limited(100, 100)
    with ExitStack() as held:
        async with accepting_at(options) as (tcp_port, _, owner):
            for _ in range(2):
                client = held.enter_context(await TcpClient.connect(tcp_port))
                await client.receive_data(b"hello")
            options.admission.connections.limits = ConnectionLimits(1, 1)
            assert not await is_served(tcp_port)
            assert not any(each.is_closing() for each in owner.connections)


async def test_the_limits_of_one_acceptor_do_not_concern_others() -> None:
    admission = Admission()
    few = AcceptOptions(admission, limits=ConnectionLimits(4, 2))
    rest = AcceptOptions(admission)
    with ExitStack() as held:
        async with accepting_at(few) as (first, accepting, _), accepting_at(rest) as (second, _, _):
            for _ in range(2):
                client = held.enter_context(await TcpClient.connect(first))
                await client.receive_data(b"hello")
            assert not await is_served(first)
            assert await is_served(second)
            assert accepting.rejections.counts == {Rejection.TOO_MANY: 1}
            client.close()
            await until(lambda: admission.connections.count == 1)
            assert await is_served(first)


@pytest.mark.parametrize("ends", ["client", "abort", "close", "reset"])
async def test_a_connection_counts_until_its_descriptor_is_closed(ends: str) -> None:
    options = AcceptOptions()
    async with accepting_at(options) as (tcp_port, _, owner):
        with await TcpClient.connect(tcp_port) as client:
            await client.receive_data(b"hello")
            assert options.admission.connections.count == 1
            ours = owner.connections[0]
            {"client": client.close, "reset": client.reset, "abort": ours.abort}.get(
                ends, ours.close
            )()
            await until(lambda: options.admission.connections.count == 0)


async def test_a_flood_is_accepted_a_few_connections_per_turn_over_all_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = counted_accepts(monkeypatch)
    loop = asyncio.get_running_loop()
    per_turn: list[int] = []

    def note_turn() -> None:
        per_turn.append(len(tries))
        if len(tries) < 122:
            loop.call_soon(note_turn)

    options = AcceptOptions()
    with ExitStack() as held:
        one_of, other_of = accepting_at(options), accepting_at(options)
        async with one_of as (first, _, one), other_of as (second, _, two):
            for tcp_port in 100 * [first] + 20 * [second]:
                held.enter_context(socket.create_connection(("127.0.0.1", tcp_port)))
            note_turn()
            await until(lambda: len(two.connections) == 20)
            assert len(one.connections) < 30  # in turn, however many wait at the other
            await until(lambda: len(one.connections) == 100)
            # And one for each port that finds nothing more.
            await until(lambda: len(tries) == 122)
            steps = [after - before for before, after in itertools.pairwise(per_turn)]
            assert max(steps) == ACCEPTS_PER_TURN


SOMAXCONN = int(Path("/proc/sys/net/core/somaxconn").read_text())


async def test_the_kernel_keeps_a_bounded_number_of_connections_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of `struct tcp_info` (linux/tcp.h), of a socket that listens: queue and limit at 24, 28."""
    limit = min(BACKLOG, SOMAXCONN)
    with ExitStack() as held:
        async with accepting_at() as (tcp_port, accepting, _):
            monkeypatch.setattr("gateway.turns.Turns.add", lambda *_: None)  # accept nothing
            for _ in range(limit + 50):
                client = held.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", tcp_port))
            assert accepting._accept_loop is not None
            (listening,) = accepting._accept_loop.sockets
            info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
            assert struct.unpack_from("II", info, 24) == (limit + 1, limit)


async def test_an_error_in_our_own_code_stops_no_listener(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    with socket.socket() as client:
        async with accepting_at() as (tcp_port, accepting, owner):
            with monkeypatch.context() as broken:
                broken.setattr(Networks, "have", lambda *_: False)
                broken.setattr(accepting.rejections, "add", lambda *_: 1 / 0)
                client.connect(("127.0.0.1", tcp_port))
                await until(lambda: errors)
            assert await is_served(tcp_port)
            assert len(owner.connections) == 1
    assert len(errors) == 1


# --- descriptors, and other shortages of the kernel


def counted_accepts(monkeypatch: pytest.MonkeyPatch, *errors: OSError) -> list[int]:
    """Each accept that is tried from now on; the first fail with these errors."""
    tries: list[int] = []
    failures = list(errors)
    real = socket.socket.accept

    def accept(listening: socket.socket) -> object:
        tries.append(1)
        if failures:
            raise failures.pop(0)
        return real(listening)

    monkeypatch.setattr(socket.socket, "accept", accept)
    return tries


@contextmanager
def descriptor_limit(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def descriptors_left(count: int) -> Iterator[int]:
    """Let this process open only so many more descriptors; gives the limit."""
    os.close(os.dup(0))
    # There may be gaps above it, but below the limit none is left.
    taken = [os.dup(0) for _ in range(64)]
    limit = taken[-1] + 1 + count
    try:
        with descriptor_limit(limit):
            yield limit
    finally:
        for each in taken:
            os.close(each)


@pytest.mark.parametrize("rule", ["reserved", "highest numbers"])
@pytest.mark.parametrize("room", [20, 25])
async def test_connections_leave_descriptors_to_the_rest(
    rule: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    admission = Admission()
    with capture_logs() as logs, ExitStack() as held:
        async with accepting_at(AcceptOptions(admission)) as (tcp_port, accepting, owner):
            clients = [held.enter_context(socket.socket()) for _ in range(30)]
            with descriptors_left(30) as limit:
                if rule == "reserved":
                    monkeypatch.setattr(runtime, "BASE_DESCRIPTORS", 0)
                    admission.reserved_descriptors = limit - room
                else:
                    monkeypatch.setattr(runtime, "BASE_DESCRIPTORS", 30 - room)
                    admission.reserved_descriptors = 0
                for client in clients:
                    client.connect(("127.0.0.1", tcp_port))
                await until(
                    lambda: accepting.rejections.counts.total() + len(owner.connections) == 30
                )
                # libuv takes a descriptor with its first connection.
                assert len(owner.connections) in {room, room - 1}
                files = [os.dup(0) for _ in range(29 - room)]  # the rest can have what is left
                for each in files:
                    os.close(each)
                for client in clients:
                    client.close()
                await until(lambda: admission.connections.count == 0)
                with socket.socket() as again:
                    again.connect(("127.0.0.1", tcp_port))
                    again.setblocking(False)
                    assert await asyncio.get_running_loop().sock_recv(again, 5) == b"hello"
    assert rejections(logs)[0] == (f"file descriptors are running out (limit {limit})", 1)


def test_a_service_with_more_ports_than_descriptors_accepts_some_connections() -> None:
    reserved = runtime.reserved_descriptors(256)
    with descriptors_left(0) as limit:
        assert reserved > limit
        assert runtime.may_have_descriptor(3, limit // 8 - 1, reserved)
        assert not runtime.may_have_descriptor(3, limit // 8, reserved)


@pytest.mark.parametrize("may_raise", [True, False])
def test_the_soft_limit_is_raised_to_the_hard_one_if_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, may_raise: bool
) -> None:
    def setrlimit(_limit: int, _limits: tuple[int, int]) -> None:
        raise PermissionError  # as systemd's filter of system calls has it

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = min(soft, hard - 1)
    with descriptor_limit(lower), monkeypatch.context() as patched:
        if not may_raise:
            patched.setattr(resource, "setrlimit", setrlimit)
        runtime.raise_descriptor_limit()
        now = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert now == ((hard if may_raise else lower), hard)
        patched.undo()


async def test_without_a_descriptor_clients_wait_until_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as client, capture_logs() as logs:
        async with accepting_at() as (tcp_port, _, owner):
            with LoopClock() as clock:
                with descriptors_left(0):
                    tries = counted_accepts(monkeypatch)
                    client.connect(("127.0.0.1", tcp_port))
                    await turns(200)
                    assert len(tries) == 1  # neither loop spins on a socket that stays readable
                    clock.jump(ACCEPT_RETRY_S)
                    await turns(200)
                    assert len(tries) == 2
                await clock.advance(ACCEPT_RETRY_S)
                await until(lambda: owner.connections)
    assert [each["reason"] for each in logs if each["event"] == "accept_failed"] == [
        "too many open files"
    ]


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EIO]
)
async def test_a_shortage_is_logged_once_a_minute_over_all_acceptors_and_survived(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = AcceptOptions()
    shortage = OSError(number, os.strerror(number))
    with capture_logs() as logs, ExitStack() as held, LoopClock() as clock:
        async with (
            accepting_at(options) as (first, _, one),
            accepting_at(options) as (second, _, two),
        ):
            tries = counted_accepts(monkeypatch, *[shortage] * 6)
            for tcp_port in (first, second):
                held.enter_context(socket.create_connection(("127.0.0.1", tcp_port)))
            while len(tries) < 6:
                await clock.advance(ACCEPT_RETRY_S)
            await clock.advance(ACCEPT_RETRY_S)
            await until(lambda: one.connections and two.connections)
            assert len(logs) == 1
            await clock.advance(PERIOD_S)
            assert options.admission.accept_failures.is_due()
    assert logs[0]["reason"] == os.strerror(number).lower()


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN])
async def test_a_connection_that_fails_before_it_is_accepted_delays_no_other(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture_logs() as logs, LoopClock():  # so that no time passes
        async with accepting_at() as (tcp_port, _, owner):
            counted_accepts(monkeypatch, OSError(number, os.strerror(number)))
            with socket.create_connection(("127.0.0.1", tcp_port)):
                await until(lambda: owner.connections)
    assert not logs


async def test_an_acceptor_that_waits_for_descriptors_can_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with LoopClock() as clock:
        async with accepting_at() as (tcp_port, accepting, owner):
            counted_accepts(monkeypatch, OSError(errno.EMFILE, "Too many open files"))
            with socket.create_connection(("127.0.0.1", tcp_port)):
                await turns(5)
                await accepting.close()
                await clock.advance(10 * ACCEPT_RETRY_S)
                assert not owner.connections
                assert is_free("127.0.0.1", tcp_port)


async def test_a_connection_without_a_transport_is_closed_and_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def set_options(_: socket.socket) -> None:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    monkeypatch.setattr("gateway.net.acceptor.set_options", set_options)
    options = AcceptOptions()
    with capture_logs() as logs:
        async with accepting_at(options) as (tcp_port, _, _):
            assert not await is_served(tcp_port)
            await until(lambda: options.admission.connections.count == 0)
    assert [each["event"] for each in logs] == ["accept_failed"]
