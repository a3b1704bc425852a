from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from gateway.config.reader import parse_config
from gateway.devices.device import DeviceState
from gateway.net.access import Admission
from gateway.net.tls_context import TlsContexts
from gateway.ports.running_port import start_port
from gateway.protocol.board_kinds import UsbIds
from gateway.status import to_table
from gateway.tty.serial_tty import TtyLocation
from gateway.web.metrics import sample_of
from tests.support.pty_board import PtyBoard, until
from tests.support.tcp_client import TcpClient


async def test_the_snapshot_tells_who_uses_the_port_and_how_much_went_through(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        config = parse_config(f"ports: [{{name: desk, tcp: 0, device: {board.path}}}]", "f").ports[
            0
        ]
        log = structlog.get_logger()
        port = await start_port(config, lambda: board.location, log, TlsContexts(log), Admission())
        try:
            await until(lambda: port.device.state is DeviceState.IDLE)
            idle = port.snapshot()
            assert (idle.name, idle.state, idle.client, idle.since) == ("desk", "idle", "", "")
            assert idle.address == f"127.0.0.1:{port.way_in.tcp_port}"
            assert idle.settings == "115200 8N1"
            assert idle.lines == "DTR off, RTS off"
            assert port.way_in.tcp_port is not None
            board.start_reading()
            with await TcpClient.connect(port.way_in.tcp_port) as client:
                await client.send(b"four")
                await until(lambda: board.received == b"four")
                await board.write(b"eleven char")
                await until(lambda: port.snapshot().received_bytes == 11)
                used = port.snapshot()
                assert used.state == "in use"
                assert used.client.startswith("127.0.0.1:")
                assert used.since
                assert (used.sent_bytes, used.sessions) == (4, 1)
                with await TcpClient.connect(port.way_in.tcp_port) as refused:
                    assert b"in use by" in await refused.receive_to_end()
                assert (used.refused, port.snapshot().refused) == (0, 1)
        finally:
            await port.stop("the test is over")


async def test_the_snapshot_of_an_absent_board_has_its_reason_and_no_settings(
    tmp_path: Path,
) -> None:
    config = parse_config(f"ports: [{{name: desk, tcp: 0, device: {tmp_path}/no}}]", "f").ports[0]
    log = structlog.get_logger()
    port = await start_port(
        config, lambda: TtyLocation(f"{tmp_path}/no"), log, TlsContexts(log), Admission()
    )
    try:
        await until(lambda: port.device.state is DeviceState.ABSENT)
        absent = port.snapshot()
        assert (absent.state, absent.reason) == ("absent", "not plugged in")
        assert (absent.settings, absent.lines) == ("", "")
    finally:
        await port.stop("the test is over")


async def test_a_port_that_can_not_connect_tells_why_and_when_it_tries_again(
    tmp_path: Path,
) -> None:
    with socket.socket() as unused, PtyBoard(tmp_path) as board:
        unused.bind(("127.0.0.1", 0))
        far_end = f"127.0.0.1:{unused.getsockname()[1]}"
        text = f"ports: [{{name: desk, connect: '{far_end}', device: {board.path}}}]"
        config = parse_config(text, "f").ports[0]
        log = structlog.get_logger()
        port = await start_port(config, lambda: board.location, log, TlsContexts(log), Admission())
        try:
            await until(lambda: port.snapshot().reason.startswith("connection refused"))
            told = port.snapshot()
            assert told.state == "not connected"
            assert re.fullmatch(r"connection refused; next try at \d\d:\d\d:\d\d", told.reason)
            assert told.address == f"-> {far_end}"
            row = to_table([told]).splitlines()[1]
            assert f"not connected: {told.reason}" in row
            sample = sample_of(port)
            assert sample.is_connected is False
            assert sample.dial_failures > 0
            board.unplug()
            await until(lambda: port.snapshot().state == "absent")
        finally:
            await port.stop("the test is over")


@pytest.mark.parametrize("ids", [None, (0x10C4, 0xEA60)])
async def test_a_port_is_announced_with_the_chip_of_its_board_if_that_is_known(
    tmp_path: Path, ids: UsbIds | None
) -> None:
    with PtyBoard(tmp_path) as board:
        text = f"ports: [{{name: desk, tcp: 0, device: {board.path}}}]"
        config = parse_config(text, "f").ports[0]
        location = board.location
        if ids is not None:
            location = replace(location, usb_ids=lambda: ids)
        log = structlog.get_logger()
        port = await start_port(config, lambda: location, log, TlsContexts(log), Admission())
        try:
            await until(lambda: port.device.state is DeviceState.IDLE)
            facts = port.announced(None)
            assert facts is not None
            assert (facts.name, facts.tcp_port) == ("desk", port.way_in.tcp_port)
            assert facts.usb == ("" if ids is None else "10c4:ea60")
            assert bool(facts.chip) == bool(facts.kind) == (ids is not None)
            assert facts.is_present
        finally:
            await port.stop("the test is over")
