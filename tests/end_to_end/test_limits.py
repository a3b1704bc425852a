"""Clients that use up what the service has: it says so, serves the others, and recovers."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from gateway.net.tls import MAX_HANDSHAKES
from gateway.status import ask
from tests.support.certificates import Authority
from tests.support.processes import BackgroundProcess, free_tcp_port
from tests.support.pty_board import PtyBoard
from tests.support.tcp_client import TcpClient
from tests.support.tls_client import TlsClient

#: Few enough for a test to use them up, as many as the service needs and some for clients.
FEW_DESCRIPTORS = 160

#: What a client costs at most that is connected and waits for its board, and one whose TLS
#: handshake is not complete: the service's memory, without the kernel's.
CLIENT_KIB = 40
HANDSHAKE_KIB = 100


class LimitedService(BackgroundProcess):
    """A service with a hard limit of descriptors."""

    def __init__(self, folder: Path, config: str, descriptors: int = 2048) -> None:
        path = folder / "gateway.yaml"
        path.write_text(config)
        self.status = folder / "status.sock"
        command: list[str | Path] = [sys.executable, "-m", "gateway", "run", "--config", path]
        # The soft limit is the half, for the service to raise.
        limits = f'ulimit -Sn {descriptors // 2} && ulimit -Hn {descriptors} && exec "$@"'
        super().__init__(["sh", "-c", limits, "sh", *command, "--socket", self.status])

    def told(self, event: str) -> list[dict[str, object]]:
        """The log lines of an event."""
        lines = [json.loads(line) for line in self.log if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


class Lab:
    """A service with a board `desk` that echoes, and one that is not plugged in yet."""

    def __init__(self, service: LimitedService, desk: int, late: int, board: PtyBoard) -> None:
        self.service = service
        self.desk = desk
        self.late = late
        self.board = board


@asynccontextmanager
async def lab(folder: Path, descriptors: int = FEW_DESCRIPTORS) -> AsyncIterator[Lab]:
    tcp_ports = free_tcp_port(), free_tcp_port()
    for name in ("desk", "late"):
        (folder / name).mkdir()
    with PtyBoard(folder / "desk") as desk, PtyBoard(folder / "late", plugged_in=False) as late:
        desk.start_echoing()
        config = (
            "defaults: {protocol: raw, max_sessions: 1000}\n"
            "ports:\n"
            f"  - {{name: desk, tcp: {tcp_ports[0]}, device: {desk.path}}}\n"
            f"  - {{name: late, tcp: {tcp_ports[1]}, device: {late.path}, on_absent: wait}}\n"
        )
        with LimitedService(folder, config, descriptors) as service:
            service.wait_until_listening(*tcp_ports)
            service.wait_for_line("status_served")
            yield Lab(service, *tcp_ports, late)
        desk.stop_reading()


async def echoes(client: TcpClient, word: bytes) -> None:
    n_bytes = len(client.received)
    await client.send(word)
    await client.receive(lambda: len(client.received) >= n_bytes + len(word))
    assert client.received[n_bytes:] == word


async def until_served(tcp_port: int) -> None:
    """Connect until the connection is not rejected: the clients before may still be leaving."""
    while True:
        with await TcpClient.connect(tcp_port) as client, suppress(AssertionError, OSError):
            await echoes(client, b"after")
            return


async def test_clients_that_take_all_descriptors_leave_the_service_working(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as here:
        with ExitStack() as flood, await TcpClient.connect(here.desk) as neighbour:
            await echoes(neighbour, b"before")
            for _ in range(FEW_DESCRIPTORS + 50):
                flood.enter_context(socket.create_connection(("127.0.0.1", here.late)))
            await asyncio.to_thread(here.service.wait_for_line, "client_rejected")

            await echoes(neighbour, b"meanwhile")
            status = await asyncio.to_thread(ask, here.service.status)
            _, late = json.loads(status)["ports"]
            assert late["rejected"]["too_many"] > 50
            here.board.plug()
            await asyncio.to_thread(here.service.wait_for_line, '"device": "late".*device_opened')
            neighbour.close()
        await until_served(here.desk)
    rejected = here.service.told("client_rejected")
    assert rejected[0]["reason"] == f"file descriptors are running out (limit {FEW_DESCRIPTORS})"
    assert "Traceback" not in "\n".join(here.service.log)


async def test_a_service_without_any_descriptor_goes_on_when_there_are_some(
    tmp_path: Path,
) -> None:
    async with lab(tmp_path) as here:
        with await TcpClient.connect(here.desk) as neighbour:
            await echoes(neighbour, b"before")
            limits = resource.RLIMIT_NOFILE
            resource.prlimit(here.service.pid, limits, (5, FEW_DESCRIPTORS))
            with await TcpClient.connect(here.late) as waiting:
                asking = asyncio.create_task(asyncio.to_thread(ask, here.service.status))
                await asyncio.to_thread(here.service.wait_for_line, '"server": "status".*accept_f')
                await asyncio.to_thread(here.service.wait_for_line, '"too many open .*accept_f', 5)
                await echoes(neighbour, b"meanwhile")
                resource.prlimit(here.service.pid, limits, (FEW_DESCRIPTORS, FEW_DESCRIPTORS))
                assert "late" in await asking
                await asyncio.to_thread(
                    here.service.wait_for_line, rf'"client": "{waiting.name}".*client_waits'
                )
    assert len(here.service.told("accept_failed")) == 2  # however often it was tried
    assert "Traceback" not in "\n".join(here.service.log)


async def test_a_host_with_sessions_on_all_ports_of_a_large_lab_is_served(tmp_path: Path) -> None:
    """As CI with 64 boards, or all users of an SSH tunnel; with the defaults."""
    sessions = 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * sessions:
        pytest.skip(f"this process may only have {hard} descriptors")
    tcp_ports: set[int] = set()
    while len(tcp_ports) < 64:
        tcp_ports.add(free_tcp_port())
    entries = [
        f"  - {{name: p{number}, tcp: {tcp_port}, device: {tmp_path}/{number}, on_absent: wait}}\n"
        for number, tcp_port in enumerate(tcp_ports)
    ]
    config = "ports:\n" + "".join(entries)
    with ExitStack() as held, LimitedService(tmp_path, config, 2 * sessions) as service:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2 * sessions, hard))
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        service.wait_until_listening(*tcp_ports)
        for number in range(sessions):
            held.enter_context(await TcpClient.connect(list(tcp_ports)[number % 64]))
        await asyncio.to_thread(service.wait_for_line, "client_waits", count=sessions)
        one = tcp_ports.pop()
        with await TcpClient.connect(one) as too_many:
            assert await too_many.receive_to_end() == b""
        with await TcpClient.connect(one, source="127.0.0.2") as other:
            await asyncio.to_thread(service.wait_for_line, rf'"client": "{other.name}".*client_w')
    (rejected,) = service.told("client_rejected")
    assert rejected["reason"] == f"too many connections from this address (limit {sessions})"


async def test_the_memory_of_waiting_clients_and_of_handshakes_is_bounded(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    tls = authority.server_for_all()
    plain, secured = free_tcp_port(), free_tcp_port()
    config = (
        "defaults: {max_sessions: 1000, on_absent: wait}\n"
        "ports:\n"
        f"  - {{name: plain, tcp: {plain}, device: {tmp_path}/no}}\n"
        f"  - {{name: secured, tcp: {secured}, device: {tmp_path}/none,"
        f" tls: {{cert: {tls.cert}, key: {tls.key}}}}}\n"
    )
    with LimitedService(tmp_path, config) as service:
        service.wait_until_listening(plain, secured)
        service.wait_for_line("status_served")
        with ExitStack() as held:
            with await TlsClient.connect_tls(secured, authority.client(None)):
                pass  # what OpenSSL loads with the first
            before_kib = service.figures.resident_kib()
            for _ in range(MAX_HANDSHAKES):
                client = held.enter_context(await TcpClient.connect(secured))
                await client.send(hello(authority))
                await client.receive_some()
            handshake_kib = (service.figures.resident_kib() - before_kib) / MAX_HANDSHAKES
            assert handshake_kib < HANDSHAKE_KIB
        with ExitStack() as held:
            before_kib = service.figures.resident_kib()
            for _ in range(500):
                client = held.enter_context(await TcpClient.connect(plain))
            await asyncio.to_thread(service.wait_for_line, "client_waits", count=500)
            client_kib = (service.figures.resident_kib() - before_kib) / 500
            assert client_kib < CLIENT_KIB
        print(f"{handshake_kib:.0f} KiB a handshake, {client_kib:.0f} KiB a client")  # noqa: T201


def hello(authority: Authority) -> bytes:
    """A ClientHello."""
    wire = ssl.MemoryBIO()
    tls = authority.client(None).wrap_bio(ssl.MemoryBIO(), wire, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return wire.read()
