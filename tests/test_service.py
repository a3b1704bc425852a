"""The running gateway: all ports of a configuration, from start to a clean end."""

from __future__ import annotations

import asyncio
import itertools
import os
import pty
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway import running_port, service
from gateway.config.document import GatewayConfig
from gateway.config.reader import parse_config
from gateway.errors import DeviceError
from gateway.port.output_log import OutputLog
from gateway.protocol.rfc2217 import Control
from gateway.service import serve
from gateway.simulator.host import SimulatedBoard
from tests.support.fake_sysfs import CH340
from tests.support.processes import Service, free_tcp_port
from tests.support.pty_board import until
from tests.support.shim import build_shim
from tests.support.tcp_client import GREETING, TcpClient, com_port
from tests.support.telnet_wire import RFC2217_CLIENT
from tests.support.usb_lab import usb_lab

SET_CONTROL = 5


def configuration(devices: dict[str, str]) -> GatewayConfig:
    """Ports on free TCP ports of loopback, each a name and its device."""
    lines = ["ports:"]
    for name, device in devices.items():
        lines += [f"  - name: {name}", "    tcp: 0", f"    device: {device}"]
    return parse_config("\n".join(lines), "test.yaml")


async def test_serves_present_and_absent_devices_in_the_order_of_the_file(tmp_path: Path) -> None:
    # The simulated board takes the longest to start and comes first all the same.
    config = configuration(
        {"simulated": "sim://esp32?heartbeat_s=0", "absent": str(tmp_path / "ttyUSB0")}
    )
    gateway = service.Service()
    await gateway.start(config)
    tcp_ports = gateway.tcp_ports()
    assert list(tcp_ports) == ["simulated", "absent"]
    with await TcpClient.connect(tcp_ports["absent"] or 0) as client:
        assert await client.receive_to_end() == b"absent: absent: not plugged in\r\n"
    with await TcpClient.connect(tcp_ports["simulated"] or 0) as client:
        await client.receive_wire(GREETING)
        reading = asyncio.create_task(client.receive_to_end())
        await gateway.stop()
        assert (await reading).endswith(b"simulated: the gateway is shutting down\r\n")
    assert gateway.tcp_ports() == {"simulated": None, "absent": None}


async def test_a_port_that_is_taken_does_not_keep_the_others(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker:
        taken = blocker.getsockname()[1]
        config = parse_config(
            f"ports:\n  - {{name: a, tcp: {taken}, device: {tmp_path}/a}}\n"
            f"  - {{name: b, tcp: 0, device: {tmp_path}/b}}\n",
            "test.yaml",
        )
        gateway = service.Service()
        await gateway.start(config)
        assert gateway.tcp_ports()["a"] is None
        assert gateway.tcp_ports()["b"] is not None
        await gateway.stop()


async def test_a_port_that_connects_is_not_waited_for_before_the_service_is_ready(
    tmp_path: Path,
) -> None:
    config = parse_config(
        f"ports:\n  - {{name: a, connect: 'nowhere.invalid:1', device: {tmp_path}/a}}\n"
        f"  - {{name: b, tcp: 0, protocol: raw, device: {tmp_path}/b}}\n",
        "test.yaml",
    )
    gateway = service.Service()
    await gateway.start(config)
    tcp_ports = gateway.tcp_ports()
    assert tcp_ports["a"] is None
    counts = gateway.counts()
    assert counts is not None
    assert (counts.ports, counts.listening) == (2, 2)
    with await TcpClient.connect(tcp_ports["b"] or 0) as client:
        # No telnet greeting comes first.
        assert (await client.receive_to_end()).startswith(b"b: ")
        assert client.received.startswith(b"b: ")
    await gateway.stop()


async def test_a_simulated_board_that_does_not_start_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_board = running_port._start_board

    async def fail_at_once(url: str) -> SimulatedBoard:
        if "wrong" in url:
            raise DeviceError(f"{url} can't be started")
        return await start_board(url)

    monkeypatch.setattr(running_port, "_start_board", fail_at_once)
    config = configuration(
        {
            "wrong": "sim://esp32?name=wrong",
            "right": "sim://esp32",
            "absent": str(tmp_path / "ttyUSB0"),
        }
    )
    gateway = service.Service()
    with pytest.raises(DeviceError, match="can't be started"):
        await gateway.start(config)
    # `stop` knows of all that run meanwhile; that nothing is left is every test's last check.
    assert list(gateway.tcp_ports()) == ["right", "absent"]
    await gateway.stop()


async def test_a_client_that_waits_is_told_that_its_port_is_reloaded(tmp_path: Path) -> None:
    entry = "ports: [{{name: desk, tcp: 0, device: {}/no, on_absent: wait, baudrate: {}}}]"
    gateway = service.Service()
    await gateway.start(parse_config(entry.format(tmp_path, 9600), "test.yaml"))
    # A client that connects before the board is known to be absent waits as well, but not for that.
    await until(lambda: (counts := gateway.counts()) and counts.absent)
    with capture_logs() as logs:
        client = await TcpClient.connect(gateway.tcp_ports()["desk"] or 0)
        await until(lambda: "client_waits" in [entry["event"] for entry in logs])
    with client:
        await gateway.reload(parse_config(entry.format(tmp_path, 115200), "test.yaml"))
        assert await client.receive_to_end() == b"desk: its configuration has changed\r\n"
    await gateway.stop()


async def test_a_reload_changes_the_limits_of_connections_and_keeps_clients(tmp_path: Path) -> None:
    ports = f"ports: [{{name: desk, tcp: 0, device: {tmp_path}/no, on_absent: wait}}]\n"
    gateway = service.Service(tmp_path)
    await gateway.start(parse_config(ports + "connections: {max_per_address: 1}", "test.yaml"))
    await until(lambda: (counts := gateway.counts()) and counts.absent)
    tcp_port = gateway.tcp_ports()["desk"] or 0
    with capture_logs() as logs, await TcpClient.connect(tcp_port) as first:
        with await TcpClient.connect(tcp_port) as rejected:
            assert await rejected.receive_to_end() == b""
        await gateway.reload(parse_config(ports, "test.yaml"))
        assert gateway.tcp_ports()["desk"] == tcp_port
        with await TcpClient.connect(tcp_port) as second:
            await until(lambda: [each["event"] for each in logs].count("client_waits") == 2)
            stopping = asyncio.create_task(gateway.stop())
            for client in (first, second):
                assert await client.receive_to_end() == b"desk: the gateway is shutting down\r\n"
            await stopping


async def test_a_mistake_while_ports_of_a_pool_are_started_is_logged_and_the_next_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tcp_port = free_tcp_port()

    def fail(_: int) -> int:
        raise RuntimeError("a mistake of ours")

    async with usb_lab(tmp_path) as lab:
        await lab.start(f"name: shelf, tcp: {tcp_port}-{tcp_port + 1}, device: {{usb: '1a86:*'}}")
        with monkeypatch.context() as patched, capture_logs() as logs:
            patched.setattr(service, "reserved_descriptors", fail)
            lab.plug(CH340, "1-1")
            await until(lambda: "reconcile_failed" in [entry["event"] for entry in logs])
        lab.plug(CH340, "1-2")
        await lab.until_open(f"shelf-{tcp_port}", f"shelf-{tcp_port + 1}")


async def test_log_files_of_all_ports_are_closed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_ports = 40  # more than the threads of asyncio's executor
    together = threading.Barrier(n_ports)
    close = OutputLog.close

    def close_together(log: OutputLog) -> None:
        together.wait()  # as on a disk that does not answer
        close(log)

    monkeypatch.setattr(OutputLog, "close", close_together)
    entries = [
        f"  - {{name: p{n}, tcp: 0, device: {tmp_path}/tty{n}, log_file: {tmp_path}/{n}.log}}"
        for n in range(n_ports)
    ]
    gateway = service.Service()
    await gateway.start(parse_config("\n".join(["ports:", *entries]), "test.yaml"))
    await gateway.stop()


#: Put into a simulated board's process by PYTHONPATH: it never gets past its imports.
NEVER_IMPORTED = """
import sys, time
if "gateway.simulator" in sys.orig_argv:
    time.sleep(3600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_start_ends_the_service(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "sitecustomize.py").write_text(NEVER_IMPORTED)
    config = tmp_path / "gateway.yaml"
    entries = [f"  - {{name: b{i}, tcp: 0, device: 'sim://esp32?name=b{i}'}}" for i in range(4)]
    config.write_text("\n".join(["ports:", *entries, "  - {name: c, tcp: 0, device: /dev/no}"]))
    with Service(config, {"PYTHONPATH": str(tmp_path)}) as process:
        process.wait_for_line('"device": "c".*listen_started')
        process.send_signal(number)
        process.wait_for_line("service_stopped")
        # Leaving the context asserts that it ends by itself, with exit code 0 and no process left.
    assert "Traceback" not in "\n".join(process.log)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_service_in_its_order(
    tmp_path: Path, number: signal.Signals
) -> None:
    started: list[service.Service] = []
    with capture_logs() as logs:
        config = configuration({"absent": str(tmp_path / "ttyUSB0")})
        serving = asyncio.create_task(serve(config, started=started.append))
        await until(lambda: started)
        await until(lambda: "device_open_failed" in [entry["event"] for entry in logs])
        signal.raise_signal(number)
        signal.raise_signal(number)
        await serving
    events = [entry["event"] for entry in logs]
    assert events[0] == "service_started"
    assert events[-1] == "service_stopped"
    assert "listen_started" in events


def test_sigterm_hangs_up_on_clients_and_releases_their_boards(tmp_path: Path) -> None:
    shim = build_shim(tmp_path)
    ttys = [pty.openpty() for _ in range(2)]
    paths = [os.ttyname(slave) for _, slave in ttys]
    config = tmp_path / "gateway.yaml"
    entries = [f"  - {{name: b{i}, tcp: 0, device: {path}}}" for i, path in enumerate(paths)]
    config.write_text("\n".join(["ports:", *entries]))
    with Service(config, shim.env()) as process:
        tcp_ports = [
            int(process.wait_for_line(rf'"device": "b{i}".*"tcp_port": (\d+)')[1]) for i in range(2)
        ]
        asyncio.run(hold_in_reset(tcp_ports, lambda: process.send_signal(signal.SIGTERM)))
        # Leaving the context asserts that the process ends by itself, with exit code 0.
    for fd in itertools.chain.from_iterable(ttys):
        os.close(fd)
    for path in paths:
        calls = [call for call in shim.calls("TIOCMSET") if call.path == path]
        assert [(call.dtr, call.rts) for call in calls] == [
            (False, False),
            (False, True),
            (False, False),
        ]
    log = "\n".join(process.log)
    assert log.count('"reason": "the gateway is shutting down"') == 2
    assert '"event": "service_stopped"' in process.log[-1]
    assert "Traceback" not in log


async def hold_in_reset(tcp_ports: list[int], then: Callable[[], None]) -> None:
    """Be a client of each port that holds its board in reset; see it hang up on what is done."""
    clients = [await TcpClient.connect(tcp_port) for tcp_port in tcp_ports]
    for client in clients:
        await client.send(RFC2217_CLIENT + com_port(SET_CONTROL, bytes([Control.RTS_ON])))
        await client.receive_wire(com_port(SET_CONTROL + 100, bytes([Control.RTS_ON])))
        # Answered behind the change: the line has moved.
        await client.send(com_port(SET_CONTROL, bytes([Control.REQUEST_DTR])))
        await client.receive_wire(com_port(SET_CONTROL + 100, bytes([Control.DTR_OFF])))
    then()
    for client in clients:
        await client.receive_to_end()
        client.close()
