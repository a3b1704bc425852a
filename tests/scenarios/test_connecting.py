"""Ports with `connect`: the gateway connects to its client, again and again."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from gateway.net.tls_context import server_context
from tests.support.certificates import Authority
from tests.support.far_end import FarEnd
from tests.support.resolver import Resolver
from tests.support.tcp_client import GREETING, TcpClient, com_port
from tests.support.telnet_wire import RFC2217_CLIENT
from tests.support.world import BOTH, IDLE, RESET, Logged, State, World, world

RAW = "protocol: raw"
#: Longer than any wait before the next attempt.
ANY_WAIT_S = 10.0
HUNG_UP = "hung up without having sent anything"


@asynccontextmanager
async def dialling(
    tmp_path: Path,
    address: str,
    keys: str = RAW,
    *,
    plugged_in: bool = True,
    waits: bool = True,
) -> AsyncIterator[World]:
    """A port that connects to `address` whenever its board is there."""
    async with world(
        tmp_path,
        f"connect: '{address}', grace_s: 0, {keys}",
        plugged_in=plugged_in,
        waits=waits,
    ) as w:
        yield w


async def has_board(w: World) -> None:
    """Let time pass until the far end controls the port."""
    await w.pass_until(lambda: w.state == State.IN_USE)


async def fails(w: World, times: int) -> None:
    """Let time pass until so many attempts have failed."""
    await w.pass_until(lambda: w.dial_failures >= times)


# The kernel needs its time for a connection, also where the clock stands still: time passes until
# the next attempt only.


def is_waiting(w: World) -> bool:
    """Whether the port waits for the time of its next attempt."""
    return "next try at" in w.status.reason


async def is_refused(w: World, times: int) -> None:
    """Let time pass until so many attempts have failed that are refused at once."""
    while w.dial_failures < times:
        failed = w.dial_failures
        await w.pass_until(lambda failed=failed: w.dial_failures > failed or not is_waiting(w))  # type: ignore[misc]
        await w.until(lambda failed=failed: w.dial_failures > failed)  # type: ignore[misc]


async def is_called(w: World, far_end: FarEnd) -> None:
    """Let time pass until the next attempt."""
    await w.pass_until(lambda: far_end.has_call or not is_waiting(w))
    await w.until(lambda: far_end.has_call)


# --- a connection


async def test_bytes_go_both_ways(tmp_path: Path) -> None:
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address) as w:
            with await far_end.accept() as client:
                await client.send(bytes(range(256)))
                await has_board(w)
                await w.board.reads(bytes(range(256)))
                await w.board.write(bytes(range(256)))
                await client.receive(lambda: client.received == bytes(range(256)))
                assert w.said(Logged.DIAL_CONNECTED, "connect") == [far_end.address]
                assert w.status.address == f"-> {far_end.address}"


async def test_the_far_end_may_be_an_rfc_2217_client(tmp_path: Path) -> None:
    rate = (9600).to_bytes(4, "big")
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address, "protocol: rfc2217"):
            with await far_end.accept() as client:
                await client.send(RFC2217_CLIENT + com_port(1, rate))
                await client.receive_wire(GREETING)
                await client.receive_wire(com_port(101, rate))


async def test_an_rfc_2217_client_is_greeted_before_it_gets_the_board(tmp_path: Path) -> None:
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address, "protocol: rfc2217, on_connect: reset") as w:
            with await far_end.accept() as client:
                await w.pass_time(0.1)
                await client.receive_wire(GREETING)
                assert (w.board.lines, w.status.sessions) == ([BOTH, IDLE], 0)


async def test_a_far_end_that_sends_something_gets_the_board_at_once(tmp_path: Path) -> None:
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address, f"{RAW}, on_connect: reset") as w:
            with await far_end.accept() as client:
                await client.send(b"1234\r\n")
                await w.until(lambda: w.logged(Logged.DIAL_CONNECTED))  # no time has passed
                await w.pass_time(0.1)
                await w.board.reads(b"1234\r\n")
                assert w.board.lines == [BOTH, IDLE, RESET, IDLE]


async def test_a_far_end_that_stays_gets_the_board_though_it_sends_nothing(tmp_path: Path) -> None:
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address, f"{RAW}, on_connect: reset") as w:
            with await far_end.accept() as client:
                await w.pass_time(1.9)
                assert (w.logged(Logged.DIAL_CONNECTED), w.board.lines) == ([], [BOTH, IDLE])
                await w.pass_time(0.3)
                assert w.board.lines == [BOTH, IDLE, RESET, IDLE]
                await w.board.write(b"booted")
                await client.receive(lambda: client.received == b"booted")


@pytest.mark.parametrize("end", [TcpClient.close, TcpClient.reset, TcpClient.stop_sending])
async def test_there_is_one_connection_at_a_time_and_another_when_it_has_ended(
    tmp_path: Path, end: object
) -> None:
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address) as w:
            with await far_end.accept() as client:
                await has_board(w)
                for _ in range(10):
                    await w.clock.advance(ANY_WAIT_S)
                assert not far_end.has_call
                end(client)  # type: ignore[operator]
                await w.pass_until(lambda: w.state != State.IN_USE)
                await w.pass_time(ANY_WAIT_S)
                (await far_end.accept()).close()


async def test_the_connection_ends_with_the_board_and_comes_back_with_it(tmp_path: Path) -> None:
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address, plugged_in=False) as w:
            assert w.state == State.ABSENT
            for _ in range(2):
                await w.pass_time(30.0)
                assert not far_end.has_call
                w.board.plug()
                await w.pass_until(lambda: far_end.has_call)
                with await far_end.accept() as client:
                    await has_board(w)
                    w.board.unplug()
                    assert (await w.run(client.receive_to_end())) == b""
                    await w.pass_until(lambda: w.state == State.ABSENT)


async def test_a_far_end_that_dies_without_a_word_is_noticed_by_keepalive(tmp_path: Path) -> None:
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address) as w:
            with await far_end.accept():
                await has_board(w)
                with socket_to(far_end) as ours:
                    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 15


def socket_to(far_end: FarEnd) -> socket.socket:
    """The gateway's own socket, found among the descriptors of this process."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        if entry.is_symlink() and str(entry.readlink()).startswith("socket:"):
            found = socket.socket(fileno=os.dup(int(entry.name)))
            with suppress(OSError):
                if found.getpeername() == ("127.0.0.1", far_end.tcp_port):
                    return found
            found.close()
    raise AssertionError


# --- attempts that fail


async def test_waits_grow_to_ten_seconds_and_are_never_all_alike(tmp_path: Path) -> None:
    failed_at_s: list[float] = []
    with FarEnd(listens=False) as far_end:
        async with dialling(tmp_path, far_end.address) as w:
            for number in range(1, 20):
                await is_refused(w, number)
                failed_at_s.append(w.clock.now_s)
            assert w.said(Logged.DIAL_FAILED, "reason") == ["connection refused"]
            assert w.state == State.NOT_CONNECTED
    waits = [after - before for before, after in pairwise(failed_at_s)]
    for wait_s, at_most_s in zip(waits, [0.5, 1, 2, 4, 8, *13 * [10]], strict=True):
        assert at_most_s / 2 <= wait_s <= at_most_s + 0.25
    assert len(set(waits[5:])) > 1


async def test_waits_start_again_after_a_connection_that_has_lasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda *_: 1)
    waits: list[float] = []
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address) as w:
            for lasted_s in [*6 * [1], 5, 1]:
                with await far_end.accept() as client:
                    await client.send(b"x")
                    await has_board(w)
                    await w.pass_time(lasted_s)
                await w.until(State.NOT_CONNECTED)
                ended_s = w.clock.now_s
                await is_called(w, far_end)
                waits.append(w.clock.now_s - ended_s)
    assert waits == pytest.approx([0.5, 1, 2, 4, 8, 10, 0.5, 1], abs=0.01)


@pytest.mark.parametrize("keys", ["", ", accept_any_protocol: true"])
@pytest.mark.parametrize("stays_s", [0.0, 1.9])
async def test_a_far_end_that_hangs_up_does_nothing_to_the_board(
    tmp_path: Path, stays_s: float, keys: str
) -> None:
    """As a tunnel does that accepts and finds its own far end missing."""
    resets = f"{RAW}, on_connect: reset, on_disconnect: reset{keys}"
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address, resets) as w:
            for tried in range(1, 5):
                with await far_end.accept():
                    await w.pass_time(stays_s)
                await w.until(lambda tried=tried: w.dial_failures == tried)  # type: ignore[misc]
                assert w.state == State.NOT_CONNECTED
                assert w.status.reason.startswith(f"{HUNG_UP}; next try at ")
                await is_called(w, far_end)
            assert (w.board.lines, w.status.sessions) == ([BOTH, IDLE], 0)
            events = {Logged.DIAL_CONNECTED, Logged.CONNECTED, Logged.DISCONNECTED}
            assert not events & set(w.events)
            assert w.said(Logged.DIAL_FAILED, "reason") == [HUNG_UP]


async def test_a_reason_is_logged_at_each_change_and_again_after_a_success(tmp_path: Path) -> None:
    with FarEnd(listens=False) as far_end:
        async with dialling(tmp_path, far_end.address) as w:
            await is_refused(w, 3)
            assert w.status.reason.startswith("connection refused; next try at ")
            far_end.listen()
            for number in (4, 5):
                await is_called(w, far_end)
                (await far_end.accept()).close()
                await w.until(lambda n=number: w.dial_failures == n)  # type: ignore[misc]
            far_end.stop_listening()
            await is_refused(w, 7)
            far_end.listen()
            await is_called(w, far_end)
            with await far_end.accept() as client:
                await client.send(b"x")
                await has_board(w)
                far_end.stop_listening()
            await w.until(State.NOT_CONNECTED)
            await fails(w, 9)
            refused = "connection refused"
            assert w.said(Logged.DIAL_FAILED, "reason") == [refused, HUNG_UP, refused, refused]


async def test_a_far_end_that_speaks_another_protocol_is_named(tmp_path: Path) -> None:
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address, f"{RAW}, on_connect: reset") as w:
            with await far_end.accept() as client:
                await client.send(b"SSH-2.0-OpenSSH_9.2\r\n")
                await w.run(client.receive_to_end())
            await fails(w, 1)
            assert w.status.reason.startswith("speaks SSH; next try at ")
            assert w.said(Logged.DIAL_FAILED, "reason") == ["speaks SSH"]
            assert w.board.lines == [BOTH, IDLE]


async def test_a_name_is_looked_up_and_each_of_its_addresses_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver()
    resolver.answers.set()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.getaddrinfo)
    with (
        FarEnd(listens=False) as far_end,
        socket.create_server(("127.0.0.2", far_end.tcp_port)) as listener,
    ):
        async with dialling(tmp_path, f"lab.example:{far_end.tcp_port}") as w:
            with await w.run(TcpClient.accepted(listener)):  # which 127.0.0.1 has refused
                await has_board(w)
    async with dialling(tmp_path, "nowhere:1") as w:
        await fails(w, 1)
        assert w.said(Logged.DIAL_FAILED, "reason") == ["name or service not known"]


async def test_a_far_end_that_does_not_answer_is_given_up_after_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def sock_connect(connection: socket.socket, address: object) -> None:
        await never.wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", sock_connect)
    async with dialling(tmp_path, "127.0.0.1:1") as w:
        await w.pass_time(4.9)
        assert not w.logged(Logged.DIAL_FAILED)
        await w.pass_time(0.2)
        assert w.said(Logged.DIAL_FAILED, "reason") == ["no answer"]


# --- TLS


async def test_a_far_end_with_tls_knows_the_gateway_by_its_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = server_context(authority.server())  # it wants a certificate of the gateway
    cert, key = authority.issue("gw", "gw@lab.example", common_name="gw")
    keys = f"{RAW}, tls: {{cert: {cert}, key: {key}, ca: {authority.path}}}"
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address, keys) as w:
            with await far_end.accept_tls(context) as client:
                # In one segment with the end of the handshake, which the gateway has done first.
                await client.send(b"hello")
                await has_board(w)
                assert w.status.controls.endswith(" (gateway)")
                await w.pass_time(0.1)  # it may have been the start of another protocol's greeting
                await w.board.reads(b"hello")
                await w.board.write(b"hello, too")
                await client.receive(lambda: client.received == b"hello, too")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("authority", "tls: certificate not accepted: unable to get local issuer certificate"),
        ("name", "tls: certificate not accepted: hostname mismatch, certificate is not valid for"),
        ("protocol", "tls: wrong version number"),
        ("hangs up", "tls: hung up during the handshake"),
        ("silent", "tls: no handshake within 10 s"),
    ],
)
async def test_a_far_end_that_is_not_the_right_one_gets_no_byte_of_the_board(
    tmp_path: Path, wrong: str, reason: str
) -> None:
    authority = Authority(tmp_path)
    trusted = Authority(tmp_path, "other") if wrong == "authority" else authority
    name = ", server_name: lab.example" if wrong == "name" else ""
    keys = f"{RAW}, tls: {{ca: {trusted.path}{name}}}"
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address, keys) as w:
            if wrong in {"authority", "name"}:
                context = server_context(authority.server_for_all())
                with suppress(ssl.SSLError, ConnectionResetError):  # TLS 1.3 is done before
                    await (await far_end.accept_tls(context)).receive_to_end()
            else:
                with await far_end.accept() as client:
                    if wrong == "protocol":
                        await client.send(b"220 welcome")
                        await client.receive_to_end()
                    elif wrong == "silent":
                        await w.pass_time(10.1)
                    else:
                        await client.receive(lambda: client.received)
            await fails(w, 1)
            assert w.status.sessions == 0
            assert str(w.said(Logged.DIAL_FAILED, "reason")[0]).startswith(reason)


# --- stopping


@pytest.mark.parametrize("state", ["in use", "handshake", "asking"])
async def test_stopping_ends_the_connection_whatever_its_state(tmp_path: Path, state: str) -> None:
    keys = RAW
    if state == "handshake":
        keys += f", tls: {{ca: {Authority(tmp_path).path}}}"
    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address, keys) as w:
            with await far_end.accept() as client:
                if state == "in use":
                    await has_board(w)
                elif state == "handshake":
                    await client.receive(lambda: client.received)
                stopping = asyncio.create_task(w.stop())
                await w.run(client.receive_to_end())
                await w.pass_until(stopping.done)
                await stopping
            await w.pass_time(ANY_WAIT_S)
            assert not far_end.has_call


async def test_stopping_before_the_client_has_its_connection_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[socket.socket] = []

    async def create_connection(protocol: object, *, sock: socket.socket) -> None:
        with sock:
            held.append(sock)
            await asyncio.Event().wait()

    with FarEnd() as far_end:
        async with dialling(tmp_path, far_end.address, waits=False) as w:
            monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
            with await far_end.accept() as client:
                await w.until(lambda: held)
                await w.run(w.stop())
                assert await client.receive_to_end() == b""
            assert w.status.sessions == 0
