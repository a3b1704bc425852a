"""Who gets in at a port with TLS, and what becomes of those who do not."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import ssl
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.net.access import Admission, Rejection
from gateway.net.tls import TlsConnection
from gateway.net.tls_context import TlsContext, server_context
from gateway.protocol.access_server import RawPipe
from tests.support.certificates import Authority
from tests.support.pty_board import LoopClock, PtyBoard, Served, serving, turns, until
from tests.support.tcp_client import GREETING, SPEAKS_TELNET, TcpClient
from tests.support.tls_client import TlsClient

#: More than the kernel's buffers take from a peer that does not read.
KERNEL_BYTES = 16 << 20


def tls_of(authority: Authority) -> TlsContext:
    return TlsContext(server_context(authority.server()))


async def refused(served: Served, context: ssl.SSLContext) -> ssl.SSLError:
    """Why a client is not let in; with TLS 1.3 it hears of it when it has shaken hands."""
    try:
        with await TlsClient.connect_tls(served.tcp_port, context) as client:
            await client.receive_to_end()
    except ssl.SSLError as error:
        return error
    pytest.fail("the client was let in")


async def test_a_client_is_known_by_its_certificate_in_the_log_and_in_the_status(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, tls=tls_of(authority)) as served:
            with await TlsClient.connect_tls(served.tcp_port, authority.client("bob")) as client:
                await client.receive_wire(GREETING)
                assert served.device.users.names == f"{client.name} (bob)"
                name = client.name
            await served.until_idle()
    (connected,) = [entry for entry in logs if entry["event"] == "client_connected"]
    assert connected["client"] == f"{name} (bob)"


async def test_a_certificate_without_a_common_name_is_known_by_its_other_names(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    context = authority.client(None)
    context.load_cert_chain(*authority.issue("ci", "ci@lab.example"))
    with PtyBoard(tmp_path) as board:
        async with serving(board, tls=tls_of(authority)) as served:
            with await TlsClient.connect_tls(served.tcp_port, context) as client:
                await client.receive_wire(GREETING)
                assert served.device.users.names == f"{client.name} (ci@lab.example)"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shows", ["nothing", "another authority's", "an expired one"])
async def test_who_has_no_certificate_of_the_authority_is_refused_counted_and_logged(
    tmp_path: Path, shows: str, version: ssl.TLSVersion
) -> None:
    authority = Authority(tmp_path)
    context = authority.client(None)
    context.maximum_version = version
    reason = "TLS: peer did not return a certificate"
    if shows == "another authority's":
        (tmp_path / "other").mkdir()
        context.load_cert_chain(*Authority(tmp_path / "other").issue("eve", "eve@lab.example"))
        reason = "TLS: certificate not accepted: unable to get local issuer certificate"
    elif shows == "an expired one":
        yesterday = datetime.now(UTC) - timedelta(days=1)
        context.load_cert_chain(*authority.issue("old", "old@lab.example", not_after=yesterday))
        reason = "TLS: certificate not accepted: certificate has expired"
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, tls=tls_of(authority)) as served:
            for _ in range(3):
                assert "ALERT" in (await refused(served, context)).reason
            assert served.device.sessions == 0
            assert served.listener.rejected == {Rejection.NOT_SECURED: 3}
    told = [entry for entry in logs if str(entry["event"]).startswith("client_")]
    assert [(each["event"], each["network"], each["count"], each["reason"]) for each in told] == [
        ("client_rejected", "127.0.0.0/24", 1, reason),
        ("client_rejected", "127.0.0.0/24", 2, reason),
    ]


async def test_without_a_client_ca_everybody_is_let_in(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    now = TlsContext(server_context(authority.server_for_all()))
    with PtyBoard(tmp_path) as board:
        async with serving(board, tls=now) as served:
            with await TlsClient.connect_tls(served.tcp_port, authority.client(None)) as client:
                await client.receive_wire(GREETING)
                assert served.device.users.names == client.name


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
    tmp_path: Path, sent: bytes, begin: bytes, end: bytes
) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, tls=tls_of(Authority(tmp_path))) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(sent)
                answer = await client.receive_to_end()
    assert answer.startswith(begin)
    assert answer.endswith(end)
    (rejected,) = [entry for entry in logs if entry["event"] == "client_rejected"]
    assert rejected["reason"] == "TLS: the client does not speak TLS"


async def test_handshakes_that_do_not_go_on_end_in_time_and_disturb_nobody(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    with PtyBoard(tmp_path) as board, ExitStack() as connections, capture_logs() as logs:
        async with serving(board, tls=tls_of(authority)) as served:
            with LoopClock() as clock:
                silent = [
                    connections.enter_context(await TcpClient.connect(served.tcp_port))
                    for _ in range(5)
                ]
                half = connections.enter_context(await TcpClient.connect(served.tcp_port))
                await half.send(b"\x16\x03\x01\x00\xff")
                context = authority.client()
                with await TlsClient.connect_tls(served.tcp_port, context) as client:
                    await client.send(SPEAKS_TELNET)
                    await client.receive_wire(GREETING)
                    await clock.advance(10.1)
                    for each in (*silent, half):
                        await each.receive_to_end()
                    await clock.advance(1.1)
                    assert served.states() == ["active"]
                    await board.write(b"undisturbed")
                    await client.receive_data(b"undisturbed")
            await until(lambda: not served.admission.handshakes.count)
    (first,) = [entry for entry in logs if entry["event"] == "client_rejected"][:1]
    assert first["reason"] == "TLS: no handshake within 10 s"


async def test_silent_connections_over_all_ports_keep_no_client_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.net.tls.MAX_HANDSHAKES", 4)
    authority = Authority(tmp_path)
    admission = Admission()
    (tmp_path / "other").mkdir()
    with (
        PtyBoard(tmp_path) as board,
        PtyBoard(tmp_path / "other") as other_board,
        ExitStack() as connections,
        LoopClock(),  # so that the oldest do not end by themselves
    ):
        async with (
            serving(board, tls=tls_of(authority), admission=admission) as served,
            serving(other_board, "other", tls=tls_of(authority), admission=admission) as other,
        ):
            # All before the loop turns: several handshakes begin in one turn.
            silent = [
                connections.enter_context(TcpClient(connection))
                for tcp_port in 6 * [served.tcp_port, other.tcp_port]
                for connection in [socket.create_connection(("127.0.0.1", tcp_port))]
            ]
            rejected = [served.listener.rejected, other.listener.rejected]
            await until(lambda: sum(each[Rejection.NOT_SECURED] for each in rejected) == 8)
            # Closed at once, not when they have had time to read why.
            await until(lambda: admission.connections.count == 4)
            assert admission.handshakes.count == 4
            ended = 0
            for each in silent:
                if each.has_more():
                    assert await each.receive_to_end() == b""
                    ended += 1
            assert ended == 8
            with await TlsClient.connect_tls(served.tcp_port, authority.client()) as client:
                await client.send(SPEAKS_TELNET)
                await client.receive_wire(GREETING)
            await until(lambda: admission.handshakes.count == 3)


async def test_a_flood_from_one_address_drops_its_own_handshakes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.net.tls.MAX_HANDSHAKES", 8)
    authority = Authority(tmp_path)
    with PtyBoard(tmp_path) as board, ExitStack() as connections:
        async with serving(board, tls=tls_of(authority)) as served:
            honest = connections.enter_context(await TlsClient.connect(served.tcp_port))
            for _ in range(50):
                flood = await TcpClient.connect(served.tcp_port, source="127.0.0.2")
                connections.enter_context(flood)
            await until(lambda: served.listener.rejected[Rejection.NOT_SECURED] == 43)
            await honest.shake_hands(authority.client())
            await honest.receive_wire(GREETING)


async def test_of_two_addresses_with_as_many_the_one_that_wants_another_gives_one_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.net.tls.MAX_HANDSHAKES", 4)
    authority = Authority(tmp_path)
    with PtyBoard(tmp_path) as board, ExitStack() as connections, LoopClock():
        async with serving(board, tls=tls_of(authority)) as served:
            clients = [
                connections.enter_context(await TlsClient.connect(served.tcp_port, source=source))
                for source in ("127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.2")
            ]
            await until(lambda: served.listener.rejected[Rejection.NOT_SECURED] == 1)
            assert await clients[2].receive_rest() == b""
            assert [client.has_more() for client in clients] == [False, False, True, False, False]


async def test_the_loop_makes_one_step_of_a_handshake_per_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is some milliseconds of arithmetic, and the client says when it is due."""
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

    authority = Authority(tmp_path)
    with PtyBoard(tmp_path) as board, ExitStack() as connections:
        async with serving(board, tls=tls_of(authority)) as served:
            clients = [
                connections.enter_context(await TlsClient.connect(served.tcp_port))
                for _ in range(20)
            ]
            await until(lambda: served.admission.handshakes.count == 20)
            note_turn()
            await asyncio.gather(*(each.shake_hands(authority.client()) for each in clients))
            await until(lambda: len(steps) == 2 * 20)
    assert max(after - before for before, after in itertools.pairwise(per_turn)) == 1


async def test_a_client_is_not_read_while_a_step_of_its_handshake_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_bytes = 0
    with PtyBoard(tmp_path) as board:
        async with serving(board, tls=tls_of(Authority(tmp_path))) as served:
            monkeypatch.setattr(served.admission.handshakes.turns, "add", lambda _: None)
            with await TcpClient.connect(served.tcp_port) as client:

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


async def test_a_client_that_sends_its_last_with_the_end_of_the_handshake_loses_nothing(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    with PtyBoard(tmp_path) as board:
        async with serving(board, tls=tls_of(authority), converse=RawPipe) as served:
            board.start_reading()
            for number in range(1, 11):
                client = await TlsClient.connect_tls(
                    served.tcp_port, authority.client(), with_end=b"last words"
                )
                with client:
                    client.stop_sending()
                    await client.receive_to_end()
                await served.until_idle()
                await until(lambda wanted=number: board.received == wanted * b"last words")  # type: ignore[misc]


async def test_a_rejected_client_that_goes_on_sending_is_not_reset_before_it_has_read_why(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    with PtyBoard(tmp_path) as board:
        async with serving(board, tls=tls_of(authority)) as served:
            with (
                LoopClock() as clock,
                await TlsClient.connect_tls(
                    served.tcp_port, authority.client(None), with_end=b"x" * 100_000
                ) as client,
            ):
                await until(lambda: served.listener.rejected[Rejection.NOT_SECURED] == 1)
                await TcpClient.send(client, bytes(2 * KERNEL_BYTES))  # all of it is read
                await clock.advance(1.1)
                await until(lambda: served.admission.connections.count == 0)
                with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
                    await client.receive_to_end()
                assert await client.receive_rest() == b""  # and not that it was reset


async def test_stopping_gives_up_the_handshakes(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, tls=tls_of(Authority(tmp_path))) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await until(lambda: served.admission.handshakes.count)
                await served.listener.stop("over")
                with suppress(ConnectionResetError):
                    assert await client.receive_to_end() == b""
            await until(lambda: not served.admission.handshakes.count)
            assert not served.listener.rejected  # nobody else has done it


async def test_a_client_that_comes_after_a_renewal_gets_the_new_certificate(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    now = tls_of(authority)
    with PtyBoard(tmp_path) as board:
        async with serving(board, tls=now) as served:
            with await TlsClient.connect_tls(served.tcp_port, authority.client()) as before:
                await before.receive_wire(GREETING)
                other = Authority(tmp_path, "other")
                now.context = server_context(other.server())
                assert "CERTIFICATE_VERIFY_FAILED" in str(await refused(served, authority.client()))
                await board.write(b"still there")
                await before.receive_data(b"still there")
            await served.until_idle()
            with await TlsClient.connect_tls(served.tcp_port, other.client()) as after:
                await after.receive_wire(GREETING)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_bytes_come_only_their_own_connection_ends(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    authority = Authority(tmp_path)
    with PtyBoard(tmp_path) as board:
        async with serving(board, tls=tls_of(authority)) as served:
            with await TlsClient.connect_tls(served.tcp_port, authority.client()) as neighbour:
                await neighbour.receive_wire(GREETING)
                with await TcpClient.connect(served.tcp_port) as client:
                    # A record that says it is a handshake, or another, and what is none.
                    await client.send(
                        bytes([chance.choice([0x16, 0x15, 0x17, 0x80])]) + b"\x03\x01"
                    )
                    await client.send(chance.randbytes(chance.randrange(1, 20_000)))
                    client.stop_sending()
                    with suppress(ConnectionResetError):
                        await client.receive_to_end()
                await board.write(b"undisturbed")
                await neighbour.receive_data(b"undisturbed")
            assert served.listener.rejected[Rejection.NOT_SECURED] == 1


@pytest.mark.parametrize("seed", range(20))
async def test_a_handshake_cut_anywhere_is_only_a_refusal(tmp_path: Path, seed: int) -> None:
    """What a real client sends first, cut off or with a byte changed."""
    chance = random.Random(seed)
    authority = Authority(tmp_path)
    hello = ssl.MemoryBIO()
    tls = authority.client().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    wire = bytearray(hello.read())
    if seed % 2:
        del wire[chance.randrange(1, len(wire)) :]
    else:
        wire[chance.randrange(len(wire))] ^= 1 << chance.randrange(8)
    with PtyBoard(tmp_path) as board:
        async with serving(board, tls=tls_of(authority)) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(bytes(wire))
                client.stop_sending()
                with suppress(ConnectionResetError):
                    await client.receive_to_end()
            await until(lambda: served.listener.rejected[Rejection.NOT_SECURED] == 1)
            with await TlsClient.connect_tls(served.tcp_port, authority.client()) as after:
                await after.receive_wire(GREETING)
