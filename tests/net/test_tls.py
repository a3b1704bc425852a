"""A port with TLS: who gets in, what the others learn, and no byte lost on the way."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from gateway.net.access import Admission, Rejection
from gateway.net.tls import TlsConnection
from gateway.net.tls_context import TlsContext, server_context
from gateway.protocol.access_server import RawPipe
from tests.support.certificates import Authority
from tests.support.pty_board import LoopClock, PtyBoard, Served, serving, turns, until
from tests.support.tcp_client import GREETING, SPEAKS_TELNET, TcpClient, com_port
from tests.support.telnet_wire import RFC2217_CLIENT
from tests.support.tls_client import TlsClient

#: More than the kernel's buffers take from or to a peer that does not read.
KERNEL_BYTES = 16 << 20
MUCH = random.Random(1).randbytes(
    int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2]) + 2_000_000
)
#: The most that a session and TLS keep of a client's bytes: 64 KiB at the tty, 256 KiB that wait,
#: a read on top of each, and a read of records.
KEPT_BYTES = 65536 + 262144 + 3 * 65536
#: And of a board's output: two reads, with all bytes doubled.
OUTPUT_BYTES = 4 * 65536


@dataclass
class Secured:
    """A board behind a listener with TLS, and the authority of its clients."""

    authority: Authority
    served: Served
    context: TlsContext

    @property
    def board(self) -> PtyBoard:
        return self.served.board

    @property
    def tcp_port(self) -> int:
        return self.served.tcp_port

    @property
    def not_secured(self) -> int:
        """How many handshakes have failed."""
        return self.served.listener.rejected[Rejection.NOT_SECURED]

    @property
    def handshakes(self) -> int:
        return self.served.admission.handshakes.count

    async def connect(self, context: ssl.SSLContext | None = None, **options: Any) -> TlsClient:
        context = context or self.authority.client()
        return await TlsClient.connect_tls(self.tcp_port, context, **options)

    async def alert_for(self, context: ssl.SSLContext) -> str:
        """Why a client is rejected; with TLS 1.3 it learns it after its own handshake."""
        with pytest.raises(ssl.SSLError) as caught, await self.connect(context) as client:
            await client.receive_to_end()
        return str(caught.value)


@asynccontextmanager
async def secured(folder: Path, **options: Any) -> AsyncIterator[Secured]:
    authority = Authority(folder)
    context = TlsContext(server_context(authority.server()))
    with PtyBoard(folder) as board:
        async with serving(board, tls=context, **options) as served:
            yield Secured(authority, served, context)


@pytest.fixture
@asynccontextmanager
async def desk(tmp_path: Path) -> AsyncIterator[Secured]:
    async with secured(tmp_path) as made:
        yield made


@pytest.fixture
@asynccontextmanager
async def raw(tmp_path: Path) -> AsyncIterator[Secured]:
    async with secured(tmp_path, converse=RawPipe) as made:
        yield made


@pytest.fixture
def few_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.net.tls.MAX_HANDSHAKES", 4)


def entries(logs: list[EventDict], event: str) -> list[EventDict]:
    return [entry for entry in logs if entry["event"] == event]


# --- who gets in


@pytest.mark.parametrize("name", ["common name", "alternative name", "no certificate"])
async def test_a_client_has_the_name_of_its_certificate(tmp_path: Path, name: str) -> None:
    authority = Authority(tmp_path)
    tls, context, identity = authority.server(), authority.client("bob"), " (bob)"
    if name == "alternative name":
        context = authority.client(None)
        context.load_cert_chain(*authority.issue("ci", "ci@lab.example"))
        identity = " (ci@lab.example)"
    elif name == "no certificate":
        tls, context, identity = authority.server_for_all(), authority.client(None), ""
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, tls=TlsContext(server_context(tls))) as served:
            with await TlsClient.connect_tls(served.tcp_port, context) as client:
                await client.receive_wire(GREETING)
                (entry,) = entries(logs, "client_connected")
                assert entry["client"] == client.name + identity


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shows", ["nothing", "another authority's", "an expired one"])
async def test_a_client_without_an_accepted_certificate_is_rejected_counted_and_logged(
    desk: Secured, tmp_path: Path, shows: str, version: ssl.TLSVersion
) -> None:
    context = desk.authority.client(None)
    context.maximum_version = version
    reason = "TLS: peer did not return a certificate"
    if shows == "another authority's":
        (tmp_path / "other").mkdir()
        context.load_cert_chain(*Authority(tmp_path / "other").issue("eve", "eve@lab.example"))
        reason = "TLS: certificate not accepted: unable to get local issuer certificate"
    elif shows == "an expired one":
        yesterday = datetime.now(UTC) - timedelta(days=1)
        context.load_cert_chain(*desk.authority.issue("old", "old@lab", not_after=yesterday))
        reason = "TLS: certificate not accepted: certificate has expired"
    with capture_logs() as logs:
        for _ in range(3):
            assert "ALERT" in await desk.alert_for(context)
        assert desk.served.listener.rejected == {Rejection.NOT_SECURED: 3}
        await desk.served.listener.stop("over")
    assert not entries(logs, "client_connected")
    rejected = entries(logs, "client_rejected")
    assert [(each["network"], each["count"], each["reason"]) for each in rejected] == [
        ("127.0.0.0/24", 1, reason),
        ("127.0.0.0/24", 2, reason),
    ]


NOTICE = b"desk: this port is for TLS"


@pytest.mark.parametrize(
    ("sent", "begin", "end"),
    [
        (b"\xff\xfb\x2c", NOTICE, b"\r\n"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NOTICE, b"\r\n"),
        (b"GE", NOTICE, b"\r\n"),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"\r\n\r\n" + NOTICE + b"\n"),
        (b"HEAD / HTTP/1.0\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n", b"\r\n\r\n"),
    ],
)
async def test_a_client_that_does_not_speak_tls_gets_the_reason_as_text_or_http(
    desk: Secured, sent: bytes, begin: bytes, end: bytes
) -> None:
    with capture_logs() as logs, await TcpClient.connect(desk.tcp_port) as client:
        await client.send(sent)
        answer = await client.receive_to_end()
    assert answer.startswith(begin)
    assert answer.endswith(end)
    (rejected,) = entries(logs, "client_rejected")
    assert rejected["reason"] == "TLS: the client does not speak TLS"


async def test_a_client_after_a_renewal_gets_the_new_certificate(
    desk: Secured, tmp_path: Path
) -> None:
    with await desk.connect() as before:
        await before.receive_wire(GREETING)
        other = Authority(tmp_path, "other")
        desk.context.context = server_context(other.server())
        assert "CERTIFICATE_VERIFY_FAILED" in await desk.alert_for(desk.authority.client())
        await desk.board.write(b"still there")
        await before.receive_data(b"still there")
    await desk.served.until_idle()
    with await desk.connect(other.client()) as after:
        await after.receive_wire(GREETING)


# --- handshakes that fail


async def test_handshakes_that_do_not_go_on_end_in_time_and_disturb_nobody(desk: Secured) -> None:
    with ExitStack() as connections, LoopClock() as clock, capture_logs() as logs:
        stuck = [
            connections.enter_context(await TcpClient.connect(desk.tcp_port)) for _ in range(6)
        ]
        await stuck[0].send(b"\x16\x03\x01\x00\xff")
        with await desk.connect() as client:
            await client.send(SPEAKS_TELNET)
            await client.receive_wire(GREETING)
            await clock.advance(10.1)
            for each in stuck:
                await each.receive_to_end()
            await clock.advance(1.1)
            assert desk.served.states() == ["active"]
            await desk.board.write(b"undisturbed")
            await client.receive_data(b"undisturbed")
        await until(lambda: not desk.handshakes)
    assert entries(logs, "client_rejected")[0]["reason"] == "TLS: no handshake within 10 s"


async def test_a_client_that_hangs_up_during_the_handshake_is_logged(desk: Secured) -> None:
    with capture_logs() as logs:
        for ends in (TcpClient.stop_sending, TcpClient.reset):
            with await TcpClient.connect(desk.tcp_port) as client:
                await until(lambda: desk.handshakes)
                ends(client)
                await until(lambda: not desk.handshakes)
    assert [entry["reason"] for entry in entries(logs, "client_rejected")] == [
        "TLS: hung up during the handshake",
        "TLS: connection reset by peer during the handshake",
    ]


async def test_silent_connections_over_all_ports_keep_no_client_out(
    tmp_path: Path, few_handshakes: None
) -> None:
    admission = Admission()
    (tmp_path / "other").mkdir()
    with ExitStack() as connections, LoopClock():  # so that the oldest do not end by themselves
        async with (
            secured(tmp_path, admission=admission) as one,
            secured(tmp_path / "other", name="other", admission=admission) as other,
        ):
            # All before the loop turns: several handshakes begin in one turn.
            silent = [
                connections.enter_context(TcpClient(connection))
                for tcp_port in 6 * [one.tcp_port, other.tcp_port]
                for connection in [socket.create_connection(("127.0.0.1", tcp_port))]
            ]
            await until(lambda: one.not_secured + other.not_secured == 8)
            # Closed at once, not when they have had time to read the reason.
            await until(lambda: admission.connections.count == 4)
            assert admission.handshakes.count == 4
            ended = [each for each in silent if each.has_more()]
            assert len(ended) == 8
            for each in ended:
                assert await each.receive_to_end() == b""
            with await one.connect() as client:
                await client.send(SPEAKS_TELNET)
                await client.receive_wire(GREETING)
            await until(lambda: admission.handshakes.count == 3)


async def test_a_flood_from_one_address_evicts_its_own_handshakes_only(
    desk: Secured, few_handshakes: None
) -> None:
    with ExitStack() as connections:
        honest = connections.enter_context(await TlsClient.connect(desk.tcp_port))
        for _ in range(50):
            flood = await TcpClient.connect(desk.tcp_port, source="127.0.0.2")
            connections.enter_context(flood)
        await until(lambda: desk.not_secured == 47)
        await honest.shake_hands(desk.authority.client())
        await honest.receive_wire(GREETING)


async def test_of_two_addresses_with_equal_shares_the_newcomer_s_is_evicted(
    desk: Secured, few_handshakes: None
) -> None:
    with ExitStack() as connections, LoopClock():
        clients = [
            connections.enter_context(await TlsClient.connect(desk.tcp_port, source=source))
            for source in ("127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.2")
        ]
        await until(lambda: desk.not_secured == 1)
        assert await clients[2].receive_rest() == b""
        assert [client.has_more() for client in clients] == [False, False, True, False, False]


async def test_the_loop_runs_one_step_of_a_handshake_per_turn(
    desk: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is some milliseconds of arithmetic, and the client chooses when it is due."""
    steps: list[int] = []
    real = TlsConnection._shake_hands

    def shake_hands(connection: TlsConnection) -> None:
        steps.append(1)
        real(connection)

    monkeypatch.setattr(TlsConnection, "_shake_hands", shake_hands)
    loop = asyncio.get_running_loop()
    per_turn: list[int] = []

    def note_turn() -> None:
        per_turn.append(len(steps))
        if len(steps) < 2 * 20:
            loop.call_soon(note_turn)

    with ExitStack() as connections:
        clients = [
            connections.enter_context(await TlsClient.connect(desk.tcp_port)) for _ in range(20)
        ]
        await until(lambda: desk.handshakes == 20)
        note_turn()
        await asyncio.gather(*(each.shake_hands(desk.authority.client()) for each in clients))
        await until(lambda: len(steps) == 2 * 20)
    assert max(after - before for before, after in itertools.pairwise(per_turn)) == 1


async def test_a_client_is_not_read_while_a_step_of_its_handshake_is_due(
    desk: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk.served.admission.handshakes.turns, "add", lambda _: None)
    taken_bytes = 0
    with await TcpClient.connect(desk.tcp_port) as client:

        async def flood() -> None:
            nonlocal taken_bytes
            while True:
                await client.send(b"\x16\x03\x01" + bytes(65536))
                taken_bytes += 65536

        flooding = asyncio.create_task(flood())
        seen_bytes = -1
        while not taken_bytes or taken_bytes != seen_bytes:
            seen_bytes = taken_bytes
            await turns(200)
        assert taken_bytes < KERNEL_BYTES
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)


async def test_a_rejected_client_that_goes_on_sending_can_read_the_alert(desk: Secured) -> None:
    context = desk.authority.client(None)
    with LoopClock() as clock, await desk.connect(context, with_end=b"x" * 100_000) as client:
        await until(lambda: desk.not_secured == 1)
        await TcpClient.send(client, bytes(2 * KERNEL_BYTES))  # all of it is read
        await clock.advance(1.1)
        await until(lambda: desk.served.admission.connections.count == 0)
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            await client.receive_to_end()
        assert await client.receive_rest() == b""  # and no reset


async def test_stopping_gives_up_the_handshakes(desk: Secured) -> None:
    with await TcpClient.connect(desk.tcp_port) as client:
        await until(lambda: desk.handshakes)
        await desk.served.listener.stop("over")
        with suppress(ConnectionResetError):
            assert await client.receive_to_end() == b""
    await until(lambda: not desk.handshakes)
    assert not desk.not_secured  # not the client's fault


def client_hello(authority: Authority) -> bytearray:
    hello = ssl.MemoryBIO()
    tls = authority.client().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return bytearray(hello.read())


@pytest.mark.parametrize("seed", range(40))
async def test_any_bytes_end_their_own_connection_only(desk: Secured, seed: int) -> None:
    """Records of any kind and none; a client's hello, cut off or with a bit changed."""
    chance = random.Random(seed)
    wire = client_hello(desk.authority)
    if seed < 20:
        kind = chance.choice([0x16, 0x15, 0x17, 0x80])
        wire = bytearray([kind, 3, 1]) + chance.randbytes(chance.randrange(1, 20_000))
    elif seed % 2:
        del wire[chance.randrange(1, len(wire)) :]
    else:
        wire[chance.randrange(len(wire))] ^= 1 << chance.randrange(8)
    with await desk.connect() as neighbour:
        await neighbour.receive_wire(GREETING)
        with await TcpClient.connect(desk.tcp_port) as client:
            await client.send(bytes(wire))
            client.stop_sending()
            with suppress(ConnectionResetError):
                await client.receive_to_end()
        await until(lambda: desk.not_secured == 1)
        await desk.board.write(b"undisturbed")
        await neighbour.receive_data(b"undisturbed")


# --- bytes


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_byte_is_lost_either_way_with_a_slow_board_or_client(
    raw: Secured, version: ssl.TLSVersion
) -> None:
    context = raw.authority.client()
    context.maximum_version = version
    board = raw.board
    with await raw.connect(context, receive_buffer_bytes=65536) as client:
        session = await raw.served.session()
        sending = asyncio.create_task(client.send(MUCH))
        await until(lambda: session.received_bytes > 65536)
        await turns(300)
        assert session.received_bytes <= KEPT_BYTES
        board.start_reading()
        await sending
        await until(lambda: len(board.received) >= len(MUCH))
        assert board.received == MUCH

        writing = asyncio.create_task(board.write(MUCH))
        await until(session._transport.get_write_buffer_size)
        await turns(300)
        assert session._transport.get_write_buffer_size() <= OUTPUT_BYTES
        await client.receive(lambda: len(client.received) >= len(MUCH))
        await writing
        assert client.received == MUCH


@pytest.mark.parametrize("leaves", ["close_notify", "FIN", "close_notify and FIN"])
async def test_all_that_a_client_sent_before_it_left_reaches_a_slow_board(
    raw: Secured, leaves: str
) -> None:
    with capture_logs() as logs:
        with await raw.connect() as client:
            session = await raw.served.session()
            sending = asyncio.create_task(client.send(MUCH))
            # The board takes nothing, so that the connection is paused with records in hand.
            await until(lambda: not session._transport.is_reading())
            raw.board.start_reading()
            await sending
            if "close_notify" in leaves:
                await client.send_close_notify()
            if "FIN" in leaves:
                client.stop_sending()
            await client.receive_to_end()
        await raw.served.until_idle()
        await until(lambda: len(raw.board.received) >= len(MUCH))
        assert raw.board.received == MUCH
    (end,) = entries(logs, "client_disconnected")
    assert end["reason"] == "left"


async def test_a_client_that_leaves_with_records_in_hand_loses_none(raw: Secured) -> None:
    client = await raw.connect()
    connection = (await raw.served.session())._transport
    assert isinstance(connection, TlsConnection)
    connection.pause_reading()
    await client.send(b"x" * 200_000)
    await turns(20)
    client.close()
    await turns(20)
    connection.resume_reading()
    raw.board.start_reading()
    await until(lambda: len(raw.board.received) == 200_000)
    await raw.served.until_idle()


async def test_bytes_in_one_segment_with_the_end_of_the_handshake_are_not_lost(
    raw: Secured,
) -> None:
    raw.board.start_reading()
    for number in range(1, 11):
        with await raw.connect(with_end=b"last words") as client:
            client.stop_sending()
            await client.receive_to_end()
        await raw.served.until_idle()
        await until(lambda wanted=number: raw.board.received == wanted * b"last words")  # type: ignore[misc]


async def test_settings_are_answered_as_without_tls(desk: Secured) -> None:
    set_baudrate = (9600).to_bytes(4, "big")
    with await desk.connect() as client:
        await client.send(RFC2217_CLIENT + com_port(1, set_baudrate))
        await client.receive_wire(com_port(101, set_baudrate))


async def test_the_last_line_reaches_a_client_that_is_still_sending(desk: Secured) -> None:
    with await desk.connect() as client:
        await client.receive_wire(GREETING)
        session = await desk.served.session()
        sending = asyncio.create_task(client.send(b"x" * len(MUCH)))
        await until(lambda: not session._transport.is_reading())
        stopping = asyncio.create_task(desk.served.listener.stop("closing time"))
        assert (await client.receive_to_end()).endswith(b"\r\ndesk: closing time\r\n")
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    await stopping


async def test_a_client_at_a_busy_port_gets_the_reason(raw: Secured) -> None:
    with await raw.connect():
        await raw.served.session()
        with await raw.connect() as second, LoopClock() as clock:
            await second.send(SPEAKS_TELNET)
            await until(lambda: raw.served.states() == ["active", "waiting"])
            await clock.advance(0.6)
            answer = await second.receive_to_end()
    assert answer.startswith(b"desk: in use by 127.0.0.1:")
    assert b" (alice) since " in answer


async def test_a_client_that_no_longer_speaks_tls_is_closed(raw: Secured) -> None:
    with capture_logs() as logs:
        with await raw.connect() as client:
            await raw.served.session()
            await TcpClient.send(client, b"this is no record at all")
            await until(lambda: not raw.served.sessions)
        await raw.served.until_idle()
    (end,) = entries(logs, "client_disconnected")
    assert str(end["reason"]).startswith("tls: ")


async def test_a_client_that_causes_answers_without_end_and_reads_nothing_is_not_read(
    raw: Secured,
) -> None:
    """Python's OpenSSL can't send a KeyUpdate: output stands for the answers."""
    with await raw.connect(receive_buffer_bytes=4096) as client:
        session = await raw.served.session()
        connection = session._transport
        assert isinstance(connection, TlsConnection)
        while connection.get_write_buffer_size() <= 1_000_000:
            connection.write(bytes(100_000))
            await turns(1)
        await client.send(b"x")
        await until(lambda: session.received_bytes == 1)
        assert not connection._tcp.is_reading()
        await client.receive(lambda: not connection.get_write_buffer_size())
        await until(connection._tcp.is_reading)


@pytest.mark.parametrize("use", [TlsConnection.close, TlsConnection.write_eof])
async def test_a_closed_connection_drops_what_is_written(
    raw: Secured, use: Callable[[TlsConnection], None]
) -> None:
    with await raw.connect() as client:
        connection = (await raw.served.session())._transport
        assert isinstance(connection, TlsConnection)
        connection.write(b"before")
        use(connection)
        connection.write(b"after")
        connection.close()
        assert await client.receive_to_end() == b"before"
