"""The fields of one port."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.config.document import Address, Sharing
from gateway.ports.running_port import RunningPort
from gateway.web.port_document import document_of
from tests.support.http_lab import check_schema, running
from tests.support.pty_board import PtyBoard, serving, until
from tests.support.tcp_client import GREETING, TcpClient
from tests.support.telnet_wire import ECHO, do

PORT = {"$ref": "#/components/schemas/port"}


async def test_it_is_what_the_interface_describes(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            [port] = running(served)
            document = document_of(port)
            check_schema(document, PORT)
            assert (document["host"], document["protocol"]) == ("127.0.0.1", "rfc2217")
            assert document["sharing"] == "exclusive"


async def test_one_that_connects_listens_nowhere(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            [port] = running(served)
            config = replace(port.config, connect=Address("lab.example", 7001))
            document = document_of(RunningPort(config, port.device, port.way_in, None))
            check_schema(document, PORT)
            assert document["host"] is None
            assert document["address"] == "-> lab.example:7001"


@pytest.mark.parametrize(
    ("ids", "shown"),
    [
        ((0x10C4, 0xEA60), {"ids": "10c4:ea60", "chip": "CP2102, CP2102N, CP2104"}),
        ((0x0001, 0xFFFF), {"ids": "0001:ffff", "chip": None}),
    ],
)
async def test_a_usb_device_is_named(
    ids: tuple[int, int], shown: dict[str, str | None], tmp_path: Path
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            served.device._port.usb_ids = ids
            document = document_of(running(served)[0])
            check_schema(document, PORT)
            assert document["usb"] == shown


async def test_who_watches_is_told_apart_from_who_drives(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board, sharing=Sharing.PREEMPT) as served:
            with await TcpClient.connect(served.tcp_port) as first:
                await first.receive_wire(GREETING)
                with await TcpClient.connect(served.tcp_port) as second:
                    await second.send(do(ECHO))
                    await second.receive_wire(GREETING)
                    await until(lambda: served.device.users.names == second.name)
                    document = document_of(running(served)[0])
                    check_schema(document, PORT)
                    assert document["clients"] == [
                        {"name": second.name, "drives": True},
                        {"name": first.name, "drives": False},
                    ]
