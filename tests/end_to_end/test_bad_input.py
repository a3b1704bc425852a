"""What an open network sends: the real service keeps its size, and its other client its board."""

from __future__ import annotations

import contextlib
import random
import re
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial

from tests.support.lab import Lab, LabBoard
from tests.support.telnet_wire import RFC2217_CLIENT, SB, command, do, subnegotiation, will

_LIMIT_S = 30.0

#: What an attack tries to send, and for how long: a board takes 11 kB/s, and what it does not take
#: must not be kept.
SENT_BYTES = 40_000_000
ATTACK_S = 2.0

SCANS = 200

#: The service may grow by this once, whatever comes: buffers of two sessions and the heap's slack.
MAX_GROWTH_KIB = 4 * 1024

NOISE = random.Random(1).randbytes(100_000)
RATES = [subnegotiation(b"\x2c\x01" + rate.to_bytes(4)) for rate in (9600, 115200)]
ATTACKS = {
    "random bytes": NOISE,
    "plain data": b"x" * 65536,
    "half a negotiation": b"\xff\xfb",
    "half a negotiation, then data": b"\xff\xfb" + NOISE.replace(b"\xff", b"\xfe"),
    "never-ending subnegotiation": command(SB) + b"x" * 65536,
    "settings to and fro": RFC2217_CLIENT + b"".join(RATES) * 2000,
    "options": (do(31) + will(31)) * 10_000,
}


def connect(board: LabBoard) -> socket.socket:
    return socket.create_connection(("127.0.0.1", board.tcp_port), timeout=_LIMIT_S)


def name_of(client: socket.socket) -> str:
    host, tcp_port = client.getsockname()
    return f"{host}:{tcp_port}"


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def attack(client: socket.socket, piece: bytes) -> None:
    """Send a piece again and again and drop the answers, until hung up on or time is up."""
    deadline = time.monotonic() + ATTACK_S
    view = memoryview(piece * max(1, SENT_BYTES // len(piece)) if len(piece) > 2 else piece)
    client.setblocking(False)
    with contextlib.suppress(ConnectionError):
        while view and time.monotonic() < deadline:
            readable, writable, _ = select.select([client], [client], [], ATTACK_S)
            if readable and not client.recv(65536):
                return
            if writable:
                view = view[client.send(view) :]


def assert_answers(client: serial.SerialBase) -> None:
    """The board answers its client."""
    client.write(b"\rversion\r")
    said = client.read_until(b"app 1.0\r\n")
    assert said.endswith(b"app 1.0\r\n"), said


@contextlib.contextmanager
def service_with_a_quiet_user(folder: Path) -> Iterator[Lab]:
    """A service whose board `other` is in use meanwhile, and is so still in the end."""
    with Lab(folder, {"desk": "heartbeat_s=0", "other": "heartbeat_s=0"}) as lab:
        other = lab.boards["other"]
        for board in lab.boards.values():
            board.wait_for_app()
        with serial.serial_for_url(other.url, baudrate=115200, timeout=_LIMIT_S) as client:
            assert_answers(client)
            yield lab
            assert_answers(client)
        assert other.boots() == ["app"]
        assert not [line for line in lab.service.log if "Traceback" in line]


def events_of(lab: Lab, client: str) -> Counter[str]:
    """What the service has logged about a client."""
    lines = [line for line in lab.service.log if f'"client": "{client}"' in line]
    return Counter(found for line in lines for found in re.findall(r'"event": "(\w+)"', line))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_leaves_the_service_as_it_was(tmp_path: Path, name: str) -> None:
    with service_with_a_quiet_user(tmp_path) as lab:
        before_kib = lab.service.figures.resident_kib()
        with connect(lab.boards["desk"]) as client:
            attacker = name_of(client)
            client.recv(1)  # greeted: one that has reset before it was accepted has no name
            attack(client, ATTACKS[name])
            grown_kib = lab.service.figures.resident_kib() - before_kib
            reset(client)
        # What it had sent is let out first, at 115200 baud.
        lab.service.wait_for_line(
            rf'"client": "{attacker}".*"event": "client_disconnected"', limit_s=200
        )
        events = events_of(lab, attacker)
        assert events["client_connected"] == events["client_disconnected"] == 1
        assert events["client_violated_protocol"] <= 1
        assert grown_kib < MAX_GROWTH_KIB


def test_a_port_scan_leaves_the_service_as_it_was(tmp_path: Path) -> None:
    with service_with_a_quiet_user(tmp_path) as lab:
        desk = lab.boards["desk"]
        before_kib = lab.service.figures.resident_kib()
        for index in range(SCANS):
            with connect(desk) as client:
                if index % 2:
                    reset(client)
        # Of so many at once, those above `max_sessions` are dropped; then the port is free again.
        deadline = time.monotonic() + _LIMIT_S
        greeting = b""
        while greeting != b"\xff":
            assert time.monotonic() < deadline
            time.sleep(0.1)
            with connect(desk) as client:
                greeting = client.recv(1)
        with serial.serial_for_url(desk.url, baudrate=115200, timeout=_LIMIT_S) as client:
            assert_answers(client)
        assert lab.service.figures.resident_kib() - before_kib < MAX_GROWTH_KIB
        assert desk.boots() == ["app"]
