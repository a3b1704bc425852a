"""Who gets in at a port with TLS, and what becomes of those who do not."""

from __future__ import annotations

import asyncio
import random
import ssl
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.ports import handshakes
from gateway.tcp.door import Refusal
from gateway.tls.contexts import TlsNow
from gateway.tls.files import server_context
from tests.support.certificates import Authority
from tests.support.pty_board import LoopClock, PtyBoard, Served, serving, until
from tests.support.tcp_client import GREETING, TcpClient
from tests.support.tls_client import TlsClient


def tls_of(authority: Authority) -> TlsNow:
    return TlsNow(server_context(authority.server()))


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
    reason = "peer did not return a certificate"
    if shows == "another authority's":
        (tmp_path / "other").mkdir()
        context.load_cert_chain(*Authority(tmp_path / "other").issue("eve", "eve@lab.example"))
        reason = "certificate not accepted: unable to get local issuer certificate"
    elif shows == "an expired one":
        yesterday = datetime.now(UTC) - timedelta(days=1)
        context.load_cert_chain(*authority.issue("old", "old@lab.example", not_after=yesterday))
        reason = "certificate not accepted: certificate has expired"
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, tls=tls_of(authority)) as served:
            for _ in range(3):
                assert "ALERT" in (await refused(served, context)).reason
            assert served.device.sessions == 0
            assert served.listener.turned_away == {Refusal.TLS_FAILED: 3}
    told = [entry for entry in logs if str(entry["event"]).startswith("client_")]
    assert [(each["event"], each["network"], each["count"], each["reason"]) for each in told] == [
        ("client_not_secured", "127.0.0.0/24", 1, reason),
        ("client_not_secured", "127.0.0.0/24", 2, reason),
    ]


async def test_without_a_client_ca_everybody_is_let_in(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    now = TlsNow(server_context(authority.server_for_all()))
    with PtyBoard(tmp_path) as board:
        async with serving(board, tls=now) as served:
            with await TlsClient.connect_tls(served.tcp_port, authority.client(None)) as client:
                await client.receive_wire(GREETING)
                assert served.device.users.names == client.name


async def test_a_client_that_speaks_no_tls_is_told_so_in_one_line(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, tls=tls_of(Authority(tmp_path))) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.send(b"\xff\xfb\x2c")
                await client.receive_to_end()
                assert client.received == b"desk: this port is for TLS\r\n"
    (told,) = [entry for entry in logs if entry["event"] == "client_not_secured"]
    assert told["reason"] == "does not speak TLS"


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
                    await client.receive_wire(GREETING)
                    await clock.advance(10.1)
                    for each in (*silent, half):
                        await each.receive_to_end()
                    await clock.advance(1.1)
                    assert served.states() == ["active"]
                    await board.write(b"undisturbed")
                    await client.receive_data(b"undisturbed")
            pending = served.listener._handshakes
            assert pending is not None
            await until(lambda: not pending._pending)
    (first,) = [entry for entry in logs if entry["event"] == "client_not_secured"][:1]
    assert first["reason"] == "no handshake within 10 s"


async def test_more_silent_connections_than_there_is_room_for_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshakes, "MOST", 4)
    authority = Authority(tmp_path)
    with PtyBoard(tmp_path) as board, ExitStack() as connections:
        async with serving(board, tls=tls_of(authority)) as served:
            silent = [
                connections.enter_context(await TcpClient.connect(served.tcp_port))
                for _ in range(12)
            ]
            pending = served.listener._handshakes
            assert pending is not None
            await until(lambda: served.listener.turned_away[Refusal.TLS_FAILED] == 8)
            assert len(pending._pending) == 4
            with await TlsClient.connect_tls(served.tcp_port, authority.client()) as client:
                await client.receive_wire(GREETING)
            for each in silent[:9]:
                await each.receive_to_end()


async def test_stopping_gives_up_the_handshakes(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, tls=tls_of(Authority(tmp_path))) as served:
            pending = served.listener._handshakes
            assert pending is not None
            with await TcpClient.connect(served.tcp_port) as client:
                await until(lambda: pending._pending)
                await served.listener.stop("over")
                with suppress(ConnectionResetError):
                    assert await client.receive_to_end() == b""
            await until(lambda: not pending._pending)
            assert not served.listener.turned_away  # nobody else has done it


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
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
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
            assert served.listener.turned_away[Refusal.TLS_FAILED] == 1
    assert not errors


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
            await until(lambda: served.listener.turned_away[Refusal.TLS_FAILED] == 1)
            with await TlsClient.connect_tls(served.tcp_port, authority.client()) as after:
                await after.receive_wire(GREETING)
