"""`esp-gateway demo`: boards to try without hardware, wherever there is room for them."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

import gateway.config.http
from gateway.cli import serving
from tests.support.processes import BackgroundProcess, free_tcp_port
from tests.support.tcp_client import GREETING, TcpClient


@pytest.fixture
def first_tcp_port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port that the demo takes for its first, for 4001 may be in use on this machine."""
    tcp_port = free_tcp_port()
    monkeypatch.setattr(serving, "_DEMO_TCP_PORT", tcp_port)
    return tcp_port


def test_boards_are_on_the_documented_ports() -> None:
    assert serving._DEMO_TCP_PORT == 4001


def test_a_taken_port_is_replaced_by_any_free_one(first_tcp_port: int) -> None:
    assert serving.demo_configuration().ports[0].tcp_port == first_tcp_port
    with socket.create_server(("127.0.0.1", first_tcp_port)):
        ports = serving.demo_configuration().ports
    assert ports[0].tcp_port == 0
    assert [port.name for port in ports] == ["desk", "shelf"]
    assert {port.host for port in ports} == {"127.0.0.1"}


def test_the_commands_are_for_the_ports_that_the_boards_have_got() -> None:
    text = serving.commands_to_try({"desk": 50001, "shelf": 50002}, 50003)
    assert "Simulated ESP32 'desk' is served at rfc2217://127.0.0.1:50001" in text
    assert "Simulated ESP32 'shelf' is served at rfc2217://127.0.0.1:50002" in text
    assert "esptool --port rfc2217://127.0.0.1:50001 flash-id" in text
    assert "telnet 127.0.0.1 50001" in text
    assert "The page with them is at http://127.0.0.1:50003/" in text
    assert "{" not in text


def test_without_the_package_for_the_page_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert serving.demo_configuration().http is not None
    monkeypatch.setattr(gateway.config.http, "PACKAGES", ("no_such_package",))
    assert serving.demo_configuration().http is None
    assert "esp-serial-gateway[web]" in serving.commands_to_try({"desk": 50001}, None)


def test_the_demo_serves_what_it_prints_although_its_ports_are_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as blocker:
        taken = blocker.getsockname()[1]
        script = (
            "from gateway.cli import main, serving\n"
            f"serving._DEMO_TCP_PORT = {taken}\n"
            "raise SystemExit(main.main(['demo']))"
        )
        with BackgroundProcess([sys.executable, "-c", script]) as process:
            url = process.wait_for_line(r"'desk' is served at rfc2217://127\.0\.0\.1:(\d+)")
            page = process.wait_for_line(r"The page with them is at http://127\.0\.0\.1:(\d+)/")
            process.wait_for_line("Ctrl-C ends")
            with socket.create_connection(("127.0.0.1", int(page[1]))) as client:
                client.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
                assert b" 200 " in client.recv(100)
            tcp_port = int(url[1])
            assert tcp_port != taken
            asyncio.run(greeted(tcp_port))
    commands = [line for line in process.log if re.match(r"  \S", line)]
    assert len(commands) == 5
    assert all(str(tcp_port) in command for command in commands)


def test_the_demo_ends_when_its_terminal_is_closed_unless_that_is_ignored() -> None:
    with BackgroundProcess([sys.executable, "-m", "gateway", "demo"]) as process:
        process.wait_for_line("Ctrl-C ends")
        process.send_signal(signal.SIGHUP)
        process.wait_for_line("service_stopped")
        assert process.wait_for_end() == 0
    with BackgroundProcess(["nohup", sys.executable, "-m", "gateway", "demo"]) as process:
        process.wait_for_line("Ctrl-C ends")
        status = Path(f"/proc/{process.pid}/status").read_text()
        [ignored] = re.findall(r"^SigIgn:\t(.*)$", status, re.MULTILINE)
        assert int(ignored, 16) & 1 << signal.SIGHUP - 1


async def greeted(tcp_port: int) -> None:
    """Connect and be welcome."""
    with await TcpClient.connect(tcp_port) as client:
        await client.receive_wire(GREETING)
