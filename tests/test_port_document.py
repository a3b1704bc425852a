"""The document of a port: its JSON, what the interface describes, and what it reports of a port."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from gateway.config.document import Sharing
from gateway.config.reader import parse_config
from gateway.config.usb_match import UsbTty
from gateway.net.access import Admission
from gateway.net.tls_context import TlsContexts
from gateway.port_document import (
    ClientState,
    Histogram,
    PortCounts,
    PortDocument,
    PortState,
    UsbDocument,
    service_json,
)
from gateway.protocol.board_kinds import UsbIds
from gateway.running_port import RunningPort, document, start_port
from gateway.serialport.tty import TtyLocation
from tests.support.documents import DESK
from tests.support.http_lab import check_schema, running
from tests.support.pty_board import PtyBoard, serving, until
from tests.support.tcp_client import GREETING, TcpClient
from tests.support.telnet_wire import ECHO, do

SCHEMA = {"$ref": "#/components/schemas/port"}
BARE = PortDocument(
    name="far",
    state=PortState.NOT_CONNECTED,
    device="/dev/b",
    protocol="raw",
    sharing="shared",
    connect="lab:7001",
    configured_baudrate=115200,
    rejected=DESK.rejected,
)


@pytest.mark.parametrize("port", [DESK, BARE])
def test_a_document_survives_the_way_through_json(port: PortDocument) -> None:
    content = json.loads(json.dumps(port.to_json()))
    check_schema(content, SCHEMA)
    assert PortDocument.from_json(content) == port
    assert PortDocument.from_json({**content, "of_a_newer_service": 1}) == port


def test_a_service_is_one_line_of_json() -> None:
    line = service_json("1.0", [DESK], {"10c4:ea60 at 1-1": "no tty"})
    assert "\n" not in line
    content = json.loads(line)
    check_schema(content, {"$ref": "#/components/schemas/ports"})
    assert content["not_served"] == [{"device": "10c4:ea60 at 1-1", "reason": "no tty"}]


@pytest.mark.parametrize(
    ("state", "present"),
    [
        ("idle", True),
        ("in use", True),
        ("cleanup", True),
        ("released", True),
        ("absent", False),
        ("offline", False),
        ("broken", False),
        ("stopped", False),
    ],
)
def test_a_board_is_present_when_it_is_there_and_works(state: str, present: bool) -> None:
    assert replace(DESK, state=PortState(state)).is_present is present


@asynccontextmanager
async def started(entry: str, location: TtyLocation) -> AsyncIterator[RunningPort]:
    config = parse_config(f"ports: [{{name: desk, {entry}}}]", "f").ports[0]
    log = structlog.get_logger()
    port = await start_port(config, lambda: location, log, TlsContexts(log), Admission())
    try:
        yield port
    finally:
        await port.stop("the test is over")


async def test_clients_and_bytes_are_reported(board: PtyBoard) -> None:
    async with started(f"tcp: 0, device: {board.path}", board.location) as port:
        await until(lambda: port.state is PortState.IDLE)
        idle = document(port)
        check_schema(idle.to_json(), SCHEMA)
        assert (idle.name, idle.clients, idle.sharing) == ("desk", (), "exclusive")
        assert idle.address == f"127.0.0.1:{port.way_in.tcp_port}"
        assert (str(idle.settings), str(idle.lines)) == ("115200 8N1", "DTR off, RTS off")
        assert port.way_in.tcp_port is not None
        board.start_reading()
        with await TcpClient.connect(port.way_in.tcp_port) as client:
            await client.send(b"four")
            await until(lambda: board.received == b"four")
            await board.write(b"eleven char")
            await until(lambda: document(port).received_bytes == 11)
            used = document(port)
            check_schema(used.to_json(), SCHEMA)
            assert used.state == "in use"
            [user] = used.clients
            assert (user.address, user.state) == (client.name, ClientState.CONTROLLER)
            age = datetime.now(UTC) - datetime.fromisoformat(user.connected_at)
            assert 0 <= age.total_seconds() < 600
            assert (used.sent_bytes, used.sessions) == (4, 1)
            with await TcpClient.connect(port.way_in.tcp_port) as rejected:
                assert b"in use by" in await rejected.receive_to_end()
            assert used.rejected["unavailable"] == 0
            assert document(port).rejected["unavailable"] == 1


async def test_a_suspended_client_is_distinguished_from_the_controller(board: PtyBoard) -> None:
    async with serving(board, sharing=Sharing.PREEMPT) as served:
        [port] = running(served)
        with await TcpClient.connect(served.tcp_port) as first:
            await first.receive_wire(GREETING)
            since = document(port).clients[0].connected_at
            with await TcpClient.connect(served.tcp_port) as second:
                await second.send(do(ECHO))
                await second.receive_wire(GREETING)
                await until(lambda: len(document(port).clients) == 2)
                controller, suspended = document(port).clients
                assert (controller.address, suspended.address) == (second.name, first.name)
                assert (controller.state, suspended.state) == ("controller", "suspended")
                assert suspended.connected_at == since
            await until(lambda: document(port).addresses_of(ClientState.SUSPENDED) == [])
            assert [each.connected_at for each in document(port).clients] == [since]


async def test_an_absent_board_has_a_reason_and_no_settings(tmp_path: Path) -> None:
    path = f"{tmp_path}/no"
    async with started(f"tcp: 0, device: {path}", TtyLocation(path)) as port:
        await until(lambda: port.state is PortState.ABSENT)
        absent = document(port)
        assert (absent.state, absent.reason) == ("absent", "not plugged in")
        assert (absent.settings, absent.lines, absent.is_present) == (None, None, False)


async def test_a_port_that_can_not_connect_reports_why_and_when_it_retries(tmp_path: Path) -> None:
    with socket.socket() as unused, PtyBoard(tmp_path) as board:
        unused.bind(("127.0.0.1", 0))
        peer = f"127.0.0.1:{unused.getsockname()[1]}"
        entry = f"connect: '{peer}', device: {board.path}"
        async with started(entry, board.location) as port:
            await until(lambda: document(port).reason.startswith("connection refused"))
            seen = document(port)
            check_schema(seen.to_json(), SCHEMA)
            assert seen.state == "not connected"
            assert re.fullmatch(r"connection refused; next try at \d\d:\d\d:\d\d", seen.reason)
            assert (seen.address, seen.connect, seen.host) == (f"-> {peer}", peer, None)
            assert seen.peer_connected is False
            assert seen.dial_failures > 0
            board.unplug()
            await until(lambda: port.state is PortState.ABSENT)


@pytest.mark.parametrize(
    ("ids", "tty", "shown"),
    [
        (None, None, None),
        (
            (0x10C4, 0xEA60),
            None,
            UsbDocument("10c4:ea60", "UART bridge", "CP2102, CP2102N, CP2104"),
        ),
        ((0x0001, 0xFFFF), None, UsbDocument("0001:ffff")),
        (
            (0x0001, 0xFFFF),
            UsbTty("/dev/ttyUSB0", 0x1A86, 0x7523, "1-1", "usb-1", serial="8a2f"),
            UsbDocument("1a86:7523", "UART bridge", "CH340", "8a2f"),
        ),
    ],
)
async def test_a_usb_device_is_named(
    ids: UsbIds | None, tty: UsbTty | None, shown: UsbDocument | None, board: PtyBoard
) -> None:
    location = board.location if ids is None else replace(board.location, usb_ids=lambda: ids)
    async with started(f"tcp: 0, device: {board.path}", location) as port:
        port.usb_tty = lambda: tty
        await until(lambda: port.state is PortState.IDLE)
        check_schema(document(port).to_json(), SCHEMA)
        assert document(port).usb == shown


# --- counts and histograms


@pytest.mark.parametrize(
    ("value", "counts"),
    [(0.0, [1, 0, 0]), (1.0, [1, 0, 0]), (1.5, [0, 1, 0]), (2.0, [0, 1, 0]), (2.5, [0, 0, 1])],
)
def test_a_value_counts_for_the_first_bound_that_it_does_not_exceed(
    value: float, counts: list[int]
) -> None:
    histogram = Histogram([1.0, 2.0])
    histogram.observe(value)
    assert histogram.counts == counts
    assert histogram.sum == value


def test_a_copy_of_a_histogram_does_not_change() -> None:
    histogram = Histogram([1.0])
    histogram.observe(0.5)
    copied = histogram.copy()
    histogram.observe(2.0)
    assert (copied.bounds, copied.counts, copied.sum) == ((1.0,), [1, 0], 0.5)


def test_a_port_begins_with_nothing() -> None:
    counts = PortCounts()
    assert counts.opened == 0
    assert not counts.resets
    assert sum(counts.control_calls.counts) == 0
