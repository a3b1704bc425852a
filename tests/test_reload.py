"""Reloading: the reloader by itself, and the real service with clients that stream meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest
from structlog.testing import capture_logs

from gateway.config.document import GatewayConfig
from gateway.config.reader import parse_config
from gateway.errors import ConfigError, ConfigProblem
from gateway.port_document import PortDocument
from gateway.service import LOAD_LIMIT_S, Reloader
from gateway.simulator.board import pattern
from gateway.status import ask, parse
from tests.support.processes import Service, free_tcp_port
from tests.support.pty_board import LoopClock, turns, until
from tests.support.tcp_client import data_so_far
from tests.support.telnet_wire import RFC2217_CLIENT

CONFIG = parse_config("ports: [{name: a, tcp: 0, device: /dev/null}]", "f")


ONCE = ["started", "load", "serve", "ended"]


class Bench:
    """A reloader whose file and service are the test's; stopped at the end of the context."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.errors: dict[str, Exception] = {}  # of "load" and "serve"
        self.may_load = threading.Event()
        self.may_load.set()
        self.may_serve = asyncio.Event()
        self.may_serve.set()
        self.reloader = Reloader(
            self.load,
            self.serve,
            lambda: self.events.append("started"),
            lambda is_served: self.events.append("ended" if is_served else "failed"),
        )

    def load(self) -> GatewayConfig:
        self.events.append("load")
        self.may_load.wait()
        if "load" in self.errors:
            raise self.errors["load"]
        return CONFIG

    async def serve(self, config: GatewayConfig) -> None:
        assert config is CONFIG
        self.events.append("serve")
        if "serve" in self.errors:
            raise self.errors["serve"]
        await self.may_serve.wait()

    async def reload(self, last: str = "ended") -> list[str]:
        """Request a reload and wait for an event of it; returns its events."""
        self.events.clear()
        self.reloader.request()
        await until(lambda: self.events[-1:] == [last])
        return list(self.events)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.reloader.stop()


async def test_what_is_requested_during_a_reload_is_one_more_after_it() -> None:
    async with Bench() as bench:
        bench.may_serve.clear()
        await bench.reload("serve")
        for _ in range(5):
            bench.reloader.request()
        bench.may_serve.set()
        await until(lambda: bench.events.count("ended") == 2)
        await turns(5)
        assert bench.events == ONCE * 2
        assert await bench.reload() == ONCE


@pytest.mark.parametrize(
    ("stage", "error", "logged"),
    [
        (
            "load",
            ConfigError([ConfigProblem("f", line, "k", "x", "y") for line in (1, 2)]),
            [("configuration_rejected", f"f:{line}: k: x: expected y") for line in (1, 2)],
        ),
        ("load", RuntimeError("a mistake"), [("reload_failed", "a mistake")]),
        ("serve", RuntimeError("a mistake"), [("reload_failed", "a mistake")]),
    ],
)
async def test_a_reload_that_fails_is_logged_and_the_next_works(
    stage: str, error: Exception, logged: list[tuple[str, str]]
) -> None:
    async with Bench() as bench:
        bench.errors = {stage: error}
        with capture_logs() as logs:
            events = await bench.reload("failed")
        assert events == ["started", "load", *(["serve"] if stage == "serve" else []), "failed"]
        assert [(log["event"], log.get("problem") or log["reason"]) for log in logs] == logged
        bench.errors = {}
        assert await bench.reload() == ONCE


async def test_stop_cancels_the_reload_that_runs() -> None:
    async with Bench() as bench:
        bench.may_serve.clear()
        await bench.reload("serve")
        bench.reloader.request()
        await bench.reloader.stop()
        assert bench.events == ["started", "load", "serve", "failed"]


async def test_a_file_whose_reading_does_not_end_is_left_behind() -> None:
    async with Bench() as bench:
        bench.may_load.clear()
        with LoopClock() as clock, capture_logs() as logs:
            await bench.reload("load")
            await clock.advance(LOAD_LIMIT_S)
            await until(lambda: bench.events[-1:] == ["failed"])
            assert await bench.reload("failed") == ["started", "failed"]
        assert [log["reason"] for log in logs] == [
            f"reading the file took longer than {LOAD_LIMIT_S:g} s",
            "an earlier reload is still reading the file",
        ]
        # When it has ended after all, the file is read again: what was read then is old.
        bench.may_load.set()
        await until(lambda: "configuration" not in {each.name for each in threading.enumerate()})
        await turns(2)
        assert await bench.reload() == ONCE


async def test_stop_does_not_wait_for_a_read_that_does_not_end() -> None:
    async with Bench() as bench:
        bench.may_load.clear()
        await bench.reload("load")
        await bench.reloader.stop()
        assert bench.events == ["started", "load", "failed"]
        bench.may_load.set()


class RunningGateway:
    """The real service on simulated boards, its file rewritten under it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "gateway.yaml"
        self.socket = folder / "status.sock"
        self.tcp = {name: free_tcp_port() for name in "abc"}
        self.write(self.port("a"), self.port("b"))
        self.service = Service(self.config, {"RUNTIME_DIRECTORY": str(folder)})

    def port(self, name: str, tcp: str | None = None, **keys: object) -> str:
        lines = [f"  - name: {name}", f"    tcp: {self.tcp[tcp or name]}"]
        lines.append(f"    device: sim://esp32?name={name}&heartbeat_s=0&dir={self.folder}/{name}")
        return "\n".join([*lines, *(f"    {key}: {value}" for key, value in keys.items())])

    def write(self, *ports: str) -> None:
        self.config.write_text("\n".join(["ports:", *ports]) + "\n")

    def reload(self, event: str = "configuration_reloaded") -> dict[str, object]:
        seen = sum(f'"event": "{event}"' in line for line in self.service.log)
        self.service.send_signal(signal.SIGHUP)
        self.service.wait_for_line(rf'"event": "{event}"', count=seen + 1)
        lines = [line for line in self.service.log if f'"event": "{event}"' in line]
        found: dict[str, object] = json.loads(lines[-1])
        return found

    def status(self) -> dict[str, PortDocument]:
        return {port.name: port for port in parse(ask(self.socket))[0]}


@contextmanager
def running(folder: Path) -> Iterator[RunningGateway]:
    gateway = RunningGateway(folder)
    with gateway.service:
        for name in "ab":
            gateway.service.wait_for_line(rf'"device": "{name}".*"event": "device_opened"')
            gateway.service.wait_for_line(rf'"device": "{name}".*"event": "listen_started"')
        gateway.service.wait_for_line("status_served")
        yield gateway


class Stream:
    """A client that has asked the board for a long pattern and reads it bit by bit."""

    N_BYTES = 30_000

    def __init__(self, tcp_port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", tcp_port), timeout=30)
        self._received = b""
        # As an RFC 2217 client, so that the pattern comes as it is.
        self._socket.sendall(RFC2217_CLIENT)
        self._ask(b"\r", until=b"esp> ")
        command = b"bytes %d\r" % self.N_BYTES
        self._ask(command, until=command + b"\n")  # the board may have said more before: it boots

    def _ask(self, line: bytes, until: bytes) -> None:
        self._socket.sendall(line)
        while until not in self._data:
            self._read()
        self._start = self._data.index(until) + len(until)

    @property
    def _data(self) -> bytes:
        return data_so_far(self._received)

    def _read(self) -> None:
        data = self._socket.recv(4096)
        assert data
        self._received += data

    def read_pattern(self) -> bytes:
        while len(self._data) < self._start + self.N_BYTES:
            self._read()
        return self._data[self._start : self._start + self.N_BYTES]

    def close(self) -> None:
        self._socket.close()


def test_an_entry_that_did_not_change_keeps_its_client_and_every_byte(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        stream = Stream(gateway.tcp["a"])
        gateway.write(gateway.port("a"), gateway.port("c"))
        reloaded = gateway.reload()
        assert (reloaded["added"], reloaded["removed"], reloaded["changed"]) == (["c"], ["b"], [])
        gateway.write(gateway.port("a"), gateway.port("c", baudrate=74880))
        assert gateway.reload()["changed"] == ["c"]
        assert stream.read_pattern() == pattern(Stream.N_BYTES)
        assert gateway.status()["a"].sessions == 1
        assert str(gateway.status()["c"].settings) == "74880 8N1"
        stream.close()


def test_an_entry_that_is_removed_has_its_client_closed_and_its_port_freed(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        client = socket.create_connection(("127.0.0.1", gateway.tcp["b"]), timeout=30)
        gateway.service.wait_for_line('"device": "b".*"event": "client_connected"')
        assert client.recv(1)  # it has the port
        gateway.write(gateway.port("a"))
        gateway.reload()
        said = b"".join(iter(lambda: client.recv(4096), b""))
        assert b"b: its configuration has changed" in said
        client.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", gateway.tcp["b"]), timeout=30)
        assert list(gateway.status()) == ["a"]


def test_two_entries_may_swap_their_tcp_ports(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        gateway.write(gateway.port("a", tcp="b"), gateway.port("b", tcp="a"))
        assert gateway.reload()["changed"] == ["a", "b"]
        addresses = {name: port.address for name, port in gateway.status().items()}
        assert addresses == {
            "a": f"127.0.0.1:{gateway.tcp['b']}",
            "b": f"127.0.0.1:{gateway.tcp['a']}",
        }


def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        before = gateway.status()
        gateway.write("  - name: a\n    tcp: many\n    device: /dev/ttyUSB0")
        refused = gateway.reload("configuration_rejected")
        assert "gateway.yaml:3: ports[0]: invalid tcp" in str(refused["problem"])
        assert {name: port.address for name, port in gateway.status().items()} == {
            name: port.address for name, port in before.items()
        }


def test_what_is_no_file_in_the_place_of_the_configuration_changes_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        good = gateway.config.read_text()
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        huge = tmp_path / "huge"
        huge.write_bytes(b"#" * 2_000_000)
        # The last is a regular file that can be opened and has no end, nor a beginning.
        for path in (fifo, huge, tmp_path, Path("/dev/zero"), Path("/proc/self/mem")):
            gateway.config.unlink()
            gateway.config.symlink_to(path)
            gateway.reload("configuration_rejected")
        gateway.config.unlink()
        gateway.reload("configuration_rejected")
        gateway.config.write_text(good)
        assert gateway.reload()["unchanged"] == 2
        gateway.config.unlink()
        gateway.config.symlink_to(fifo)
        gateway.service.send_signal(signal.SIGHUP)
        # Leaving the context asserts that it stops all the same.
