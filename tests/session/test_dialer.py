"""A gateway that connects to its client, over real TCP and a real tty."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import structlog
from structlog.testing import capture_logs

from gateway import clock as gateway_clock
from gateway.config.document import Access, Address, OnConnect, OnDisconnect
from gateway.net.tls_context import Tls, TlsContext, client_context, server_context
from gateway.port_document import PortState
from gateway.protocol.access_server import RawPipe
from gateway.protocol.reset import BOTH, IDLE, RESET
from gateway.session import dialer as dialer_module
from gateway.session.dialer import Dialer
from gateway.session.requests import Conversation
from gateway.session.session import SessionState
from tests.support.certificates import Authority
from tests.support.pty_board import (
    LoopClock,
    PtyBoard,
    access_server,
    pass_silence,
    port_config,
    port_of,
    turns,
    until,
)
from tests.support.tcp_client import GREETING, TcpClient, com_port
from tests.support.telnet_wire import RFC2217_CLIENT
from tests.support.tls_client import TlsClient

#: Longer than any wait before the next attempt.
ANY_WAIT_S = 10.0


class FarEnd:
    """Whom the gateway connects to; listens inside its `with`."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = Address("127.0.0.1", probe.getsockname()[1])

    @property
    def has_call(self) -> bool:
        """Whether a connection waits to be accepted."""
        return bool(select.select([self._listener], [], [], 0)[0])

    async def accept(self) -> TcpClient:
        """The next connection."""
        await until(lambda: self.has_call)
        return TcpClient.of(self._listener.accept()[0])

    async def accept_tls(self, context: ssl.SSLContext) -> TlsClient:
        """The same with TLS; raises what comes of a gateway that does not like it."""
        await until(lambda: self.has_call)
        client = TlsClient.of(self._listener.accept()[0])
        try:
            await client.accept_tls(context)
        except BaseException:
            client.close()
            raise
        return client

    def __enter__(self) -> Self:
        self._listener = socket.create_server((self.address.host, self.address.tcp_port))
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()


@asynccontextmanager
async def dialling(
    board: PtyBoard,
    address: Address,
    converse: Callable[[], Conversation] = RawPipe,
    tls: Tls | None = None,
    *,
    on_connect: OnConnect = OnConnect.NOTHING,
    on_disconnect: OnDisconnect = OnDisconnect.NOTHING,
    accept_any_protocol: bool = False,
) -> AsyncIterator[Dialer]:
    """A board that is connected to `address` whenever it is there."""
    device = port_of(board, on_connect=on_connect, on_disconnect=on_disconnect)
    log = structlog.get_logger().bind(device="desk")
    config = replace(port_config(), tcp_port=None, connect=address, tls=tls)
    config = replace(config, access=Access(accept_any_protocol=accept_any_protocol))
    now = None if tls is None else TlsContext(client_context(tls))
    dialer = Dialer(config, device, converse, log, now)
    device.start()
    await until(lambda: device.state is not PortState.OPENING)
    await dialer.start()
    try:
        yield dialer
    finally:
        await asyncio.gather(dialer.stop("the test is over"), device.stop())
    assert not dialer.sessions


async def active(dialer: Dialer) -> None:
    """Wait until a session has the device; a held clock moves for it."""
    await pass_silence(lambda: dialer.sessions)
    await until(lambda: [each.state for each in dialer.sessions] == [SessionState.ACTIVE])


async def another_failure(dialer: Dialer, clock: LoopClock) -> None:
    """Let the next attempt be due and fail, before any limit of its own can pass."""
    failures = dialer.failures
    await clock.advance(ANY_WAIT_S)
    await until(lambda: dialer.failures > failures)


def named(logs: list[object], event: str) -> list[dict[str, object]]:
    return [entry for entry in logs if isinstance(entry, dict) and entry["event"] == event]


async def test_bytes_go_both_ways_over_a_connection_that_the_gateway_has_made(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, FarEnd() as far_end, capture_logs() as logs:
        async with dialling(board, far_end.address) as dialer:
            with await far_end.accept() as client:
                await active(dialer)
                board.start_echoing()
                await client.send(bytes(range(256)))
                await client.receive(lambda: len(client.received) >= 256)
                assert client.received == bytes(range(256))
    (connected,) = named([*logs], "dial_connected")
    assert connected["connect"] == str(far_end.address)


async def test_the_far_end_may_be_an_rfc_2217_client(tmp_path: Path) -> None:
    set_baudrate = (9600).to_bytes(4, "big")
    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        async with dialling(board, far_end.address, access_server):
            with await far_end.accept() as client:
                await client.send(RFC2217_CLIENT + com_port(1, set_baudrate))
                await client.receive_wire(GREETING)
                await client.receive_wire(com_port(101, set_baudrate))


async def test_dials_again_when_the_connection_has_ended(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        async with dialling(board, far_end.address) as dialer:
            for end in (TcpClient.close, TcpClient.reset, TcpClient.stop_sending):
                with await far_end.accept() as client:
                    await active(dialer)
                    end(client)
                    with LoopClock() as clock:
                        await until(lambda: not dialer.sessions)
                        await clock.advance(ANY_WAIT_S)


async def test_only_one_connection_at_a_time(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        async with dialling(board, far_end.address) as dialer:
            with await far_end.accept():
                await active(dialer)
                with LoopClock() as clock:
                    for _ in range(10):
                        await clock.advance(ANY_WAIT_S)
                    assert not far_end.has_call


async def test_a_far_end_that_listens_later_is_found(tmp_path: Path) -> None:
    far_end = FarEnd()
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with dialling(board, far_end.address) as dialer:
            with LoopClock() as clock:
                await until(lambda: dialer.failures == 1)
                for _ in range(5):
                    await another_failure(dialer, clock)
                with far_end:
                    await clock.advance(ANY_WAIT_S)
                    await active(dialer)
                    (failed,) = named([*logs], "dial_failed")
                    assert failed["reason"] == "connection refused"


async def test_a_failure_is_told_again_after_a_success(tmp_path: Path) -> None:
    far_end = FarEnd()
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with dialling(board, far_end.address) as dialer:
            with LoopClock() as clock:
                await until(lambda: len(named([*logs], "dial_failed")) == 1)
                with far_end:
                    await clock.advance(ANY_WAIT_S)
                    with await far_end.accept():
                        await active(dialer)
                    await until(lambda: named([*logs], "client_disconnected"))
                    await until(lambda: not dialer.sessions)
                    await turns(5)
                await clock.advance(ANY_WAIT_S)
                await until(lambda: len(named([*logs], "dial_failed")) == 2)


async def test_waits_grow_to_ten_seconds_and_are_never_all_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[float] = []

    async def refused(_: Address) -> socket.socket:
        dialled.append(gateway_clock.time())
        raise ConnectionRefusedError

    monkeypatch.setattr("gateway.session.dialer._connected", refused)
    with PtyBoard(tmp_path) as board:
        async with dialling(board, Address("lab", 1)):
            with LoopClock() as clock:
                while len(dialled) < 20:
                    await clock.advance(0.25)
    waits = [after - before for before, after in pairwise(dialled)]
    # The test's clock goes in steps of 0.25 s.
    for wait_s, at_most_s in zip(waits, [0.5, 1, 2, 4, 8, *14 * [10]], strict=True):
        assert at_most_s / 2 <= wait_s <= at_most_s + 0.25
    assert len(set(waits[5:])) > 1


async def test_waits_start_anew_after_a_connection_that_has_lasted_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[float] = []
    connect = dialer_module._connected

    async def noted(far_end: Address) -> socket.socket:
        dialled.append(gateway_clock.time())
        return await connect(far_end)

    monkeypatch.setattr("gateway.session.dialer._connected", noted)
    monkeypatch.setattr("gateway.session.dialer.random.uniform", lambda *_: 1)

    async def wait_after(lasted_s: float, dialer: Dialer, clock: LoopClock) -> float:
        """How long after a connection of that length the next attempt comes."""
        with await far_end.accept():
            await active(dialer)
            attempts = len(dialled)
            await clock.advance(lasted_s)
        await until(lambda: not dialer.sessions)
        await turns(5)
        ended = clock.now_s
        while len(dialled) == attempts:
            await clock.advance(0.25)
        return dialled[-1] - ended

    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        async with dialling(board, far_end.address) as dialer:
            with LoopClock() as clock:
                waits = [await wait_after(lasted_s, dialer, clock) for lasted_s in [*6 * [1], 5, 1]]
    assert waits == pytest.approx([0.5, 1, 2, 4, 8, 10, 0.5, 1])


def reasons(logs: list[object]) -> list[object]:
    return [entry["reason"] for entry in named(logs, "dial_failed")]


HUNG_UP = "hung up without having sent anything"


@pytest.mark.parametrize("accept_any_protocol", [False, True])
@pytest.mark.parametrize("stays_s", [0.0, 0.2, 1.9])
async def test_a_far_end_that_hangs_up_does_nothing_to_the_board(
    tmp_path: Path, stays_s: float, accept_any_protocol: bool
) -> None:
    """As a tunnel does that accepts and finds its own far end missing."""
    with PtyBoard(tmp_path) as board, FarEnd() as far_end, capture_logs() as logs:
        async with dialling(
            board,
            far_end.address,
            on_connect=OnConnect.RESET,
            on_disconnect=OnDisconnect.RESET,
            accept_any_protocol=accept_any_protocol,
        ) as dialer:
            with LoopClock() as clock:
                for tried in range(1, 6):
                    with await far_end.accept():
                        await until(lambda: dialer.sessions)
                        for _ in range(round(stays_s / 0.1)):
                            await clock.advance(0.1)
                    await until(lambda tried=tried: dialer.failures == tried)  # type: ignore[misc]
                    assert dialer.trouble.startswith(f"{HUNG_UP}; next try at ")
                    assert not dialer.is_connected
                    await clock.advance(ANY_WAIT_S)
            assert board.lines == [BOTH, IDLE]  # as at its open
            assert dialer._port.sessions == 0
    events = {entry["event"] for entry in logs}
    assert not events & {"dial_connected", "client_connected", "client_disconnected"}
    assert reasons([*logs]) == [HUNG_UP]


async def test_a_far_end_that_stays_gets_the_board_though_it_sends_nothing(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, FarEnd() as far_end, capture_logs() as logs:
        async with dialling(board, far_end.address, on_connect=OnConnect.RESET) as dialer:
            with await far_end.accept() as client:
                with LoopClock() as clock:
                    await until(lambda: dialer.sessions)
                    for _ in range(19):
                        await clock.advance(0.1)
                    assert not named([*logs], "dial_connected")
                    assert board.lines == [BOTH, IDLE]
                    await clock.advance(0.2)
                    await until(lambda: named([*logs], "dial_connected"))
                await until(lambda: board.lines == [BOTH, IDLE, RESET, IDLE])
                await active(dialer)
                assert dialer.is_connected
                await board.write(b"booted")
                await client.receive(lambda: client.received == b"booted")


async def test_a_far_end_that_sends_something_gets_the_board_at_once(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        async with dialling(board, far_end.address, on_connect=OnConnect.RESET) as dialer:
            with await far_end.accept() as client, LoopClock() as clock:
                await until(lambda: dialer.sessions)
                await client.send(b"1234\r\n")
                await until(lambda: dialer.is_connected)  # no time has passed
                board.start_reading()
                while len(board.received) < 6:
                    await clock.advance(0.02)
                assert board.received == b"1234\r\n"
                assert board.lines == [BOTH, IDLE, RESET, IDLE]


async def test_an_rfc_2217_client_at_the_far_end_is_greeted_before_it_gets_the_board(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        async with dialling(
            board, far_end.address, access_server, on_connect=OnConnect.RESET
        ) as dialer:
            with await far_end.accept() as client, LoopClock() as clock:
                await until(lambda: dialer.sessions)
                await clock.advance(0.1)
                await client.receive_wire(GREETING)
                assert board.lines == [BOTH, IDLE]
                assert dialer._port.sessions == 0


async def test_a_reason_is_logged_once_for_each_change(tmp_path: Path) -> None:
    far_end = FarEnd()
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with dialling(board, far_end.address) as dialer:
            with LoopClock() as clock:
                await until(lambda: dialer.failures == 1)
                assert dialer.trouble.startswith("connection refused; next try at ")
                for _ in range(3):
                    await another_failure(dialer, clock)
                with far_end:
                    for _ in range(3):
                        failures = dialer.failures
                        await clock.advance(ANY_WAIT_S)
                        (await far_end.accept()).close()
                        await until(lambda n=failures: dialer.failures > n)  # type: ignore[misc]
                for _ in range(3):
                    await another_failure(dialer, clock)
    assert reasons([*logs]) == ["connection refused", HUNG_UP, "connection refused"]


async def test_a_far_end_that_speaks_another_protocol_is_named(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, FarEnd() as far_end, capture_logs() as logs:
        async with dialling(board, far_end.address, on_connect=OnConnect.RESET) as dialer:
            with await far_end.accept() as client:
                await client.send(b"SSH-2.0-OpenSSH_9.2\r\n")
                await client.receive_to_end()
            await until(lambda: dialer.failures)
            assert dialer.trouble.startswith("speaks SSH; next try at ")
            assert board.lines == [BOTH, IDLE]
    assert reasons([*logs]) == ["speaks SSH"]


async def test_nobody_is_called_before_the_board_is_there(tmp_path: Path) -> None:
    with PtyBoard(tmp_path, plugged_in=False) as board, FarEnd() as far_end:
        async with dialling(board, far_end.address) as dialer:
            with LoopClock() as clock:
                for _ in range(5):
                    await clock.advance(ANY_WAIT_S)
                assert not far_end.has_call
                board.plug()
                await clock.advance(ANY_WAIT_S)
                await active(dialer)


async def test_the_connection_ends_with_the_board_and_comes_back_with_it(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        async with dialling(board, far_end.address) as dialer:
            with await far_end.accept() as client:
                await active(dialer)
                board.unplug()
                assert await client.receive_to_end() == b""
            with LoopClock() as clock:
                await until(lambda: not dialer.sessions)
                for _ in range(5):
                    await clock.advance(ANY_WAIT_S)
                assert not far_end.has_call
                board.plug()
                await clock.advance(ANY_WAIT_S)
                await active(dialer)


async def test_a_name_is_looked_up_and_one_without_address_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"lab.example": "127.0.0.1"}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, tcp_port: int, *, type: int) -> object:  # noqa: A002
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(names[host], tcp_port, type=type)

    monkeypatch.setattr("gateway.net.name_lookup.socket.getaddrinfo", getaddrinfo)
    with PtyBoard(tmp_path) as board, FarEnd() as far_end, capture_logs() as logs:
        async with dialling(board, Address("lab.example", far_end.address.tcp_port)):
            (await far_end.accept()).close()
        async with dialling(board, Address("nowhere.example", 1)):
            await until(lambda: named([*logs], "dial_failed"))
    (failed,) = named([*logs], "dial_failed")
    assert failed["reason"] == "name or service not known"


async def test_an_address_that_refuses_is_followed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = FarEnd()
    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        entries = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", (end.address.host, end.address.tcp_port))
            for end in (nobody, far_end)
        ]
        monkeypatch.setattr("gateway.net.name_lookup.socket.getaddrinfo", lambda *_, **__: entries)
        async with dialling(board, Address("lab.example", 1)) as dialer:
            with await far_end.accept():
                await active(dialer)


async def test_a_far_end_that_does_not_answer_is_given_up_for_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def sock_connect(connection: socket.socket, address: object) -> None:
        await never.wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", sock_connect)
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with dialling(board, Address("127.0.0.1", 1)):
            with LoopClock() as clock:
                await turns(20)
                assert not named([*logs], "dial_failed")
                await clock.advance(5)
                await until(lambda: named([*logs], "dial_failed"))
    assert [entry["reason"] for entry in named([*logs], "dial_failed")] == ["no answer"]


async def test_stopping_ends_the_connection(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        async with dialling(board, far_end.address) as dialer:
            with await far_end.accept() as client:
                await active(dialer)
                _, received = await asyncio.gather(dialer.stop("over"), client.receive_to_end())
                assert received == b""
                assert not dialer.sessions


async def test_a_connection_that_has_died_is_noticed(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        async with dialling(board, far_end.address) as dialer:
            with await far_end.accept():
                await active(dialer)
                (session,) = dialer.sessions
                ours = session._transport.get_extra_info("socket")
                assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 15


async def test_a_far_end_with_tls_knows_the_gateway_and_is_known_by_its_certificate(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    far = server_context(authority.server())  # it wants a certificate of the gateway
    cert, key = authority.issue("gw", "gw@lab.example", common_name="gw")
    tls = Tls(str(cert), str(key), ca=str(authority.path))
    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        async with dialling(board, far_end.address, tls=tls) as dialer:
            with await far_end.accept_tls(far) as client:
                # In one segment with the end of the handshake, which the gateway has done first.
                await client.send(b"hello")
                await active(dialer)
                assert dialer._port.arbiter.controller_names.endswith(" (gateway)")
                board.start_echoing()
                await client.receive(lambda: client.received == b"hello")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("authority", "tls: certificate not accepted: unable to get local issuer certificate"),
        ("name", "tls: certificate not accepted: hostname mismatch, certificate is not valid for"),
        ("protocol", "tls: wrong version number"),
        ("hangs up", "tls: hung up during the handshake"),
    ],
)
async def test_a_far_end_that_is_not_who_it_should_be_gets_no_byte_of_the_board(
    tmp_path: Path, wrong: str, reason: str
) -> None:
    authority = Authority(tmp_path)
    trusted = Authority(tmp_path, "other") if wrong == "authority" else authority
    name = "lab.example" if wrong == "name" else None
    tls = Tls(ca=str(trusted.path), server_name=name)
    with PtyBoard(tmp_path) as board, FarEnd() as far_end, capture_logs() as logs:
        async with dialling(board, far_end.address, tls=tls) as dialer:
            if wrong in {"authority", "name"}:
                context = server_context(authority.server_for_all())
                with suppress(ssl.SSLError, ConnectionResetError):  # TLS 1.3 is done before
                    await (await far_end.accept_tls(context)).receive_to_end()
            else:
                with await far_end.accept() as client:
                    if wrong == "protocol":
                        await client.send(b"220 welcome")
                        await client.receive_to_end()
            await until(lambda: named([*logs], "dial_failed"))
            assert dialer._port.sessions == 0
    assert str(named([*logs], "dial_failed")[0]["reason"]).startswith(reason)


async def test_a_far_end_that_never_ends_its_handshake_is_given_up(tmp_path: Path) -> None:
    tls = Tls(ca=str(Authority(tmp_path).path))
    with PtyBoard(tmp_path) as board, FarEnd() as far_end, capture_logs() as logs:
        async with dialling(board, far_end.address, tls=tls):
            with await far_end.accept() as client, LoopClock() as clock:
                await client.receive(lambda: client.received)
                await clock.advance(10.1)
                await until(lambda: named([*logs], "dial_failed"))
    assert named([*logs], "dial_failed")[0]["reason"] == "tls: no handshake within 10 s"


async def test_stopping_during_a_handshake_leaves_nothing(tmp_path: Path) -> None:
    tls = Tls(ca=str(Authority(tmp_path).path))
    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        async with dialling(board, far_end.address, tls=tls) as dialer:
            with await far_end.accept() as client:
                await client.receive(lambda: client.received)
                await dialer.stop("over")
                await client.receive_to_end()


async def test_stopping_before_a_session_has_its_connection_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def create_connection(protocol: object, *, sock: socket.socket) -> None:
        with sock:
            await never.wait()

    with PtyBoard(tmp_path) as board, FarEnd() as far_end:
        async with dialling(board, far_end.address) as dialer:
            loop = asyncio.get_running_loop()
            monkeypatch.setattr(loop, "create_connection", create_connection)
            with await far_end.accept(), LoopClock():  # so that no limit passes
                await until(lambda: dialer.sessions)
                await dialer.stop("over")
                assert not dialer.sessions
