"""Whether there is an HTTP server: what the configuration says, over time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp
import pytest
import structlog
from structlog.testing import capture_logs

from gateway.config.document import HttpConfig
from gateway.config.reader import parse_config
from gateway.net.access import Admission
from gateway.net.tls_context import TlsContexts
from gateway.ports.running_port import RunningPort
from gateway.service import Service
from gateway.web.server import HttpServer, HttpService
from tests.support.http_lab import running
from tests.support.pty_board import PtyBoard, serving, until


def service(ports: Callable[[], Sequence[RunningPort]]) -> HttpService:
    return HttpService("1", ports, dict, TlsContexts(structlog.get_logger()), Admission())


async def status_of(tcp_port: int | None, token: str = "") -> int:
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{tcp_port}/api/v1/ports"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with session.post(url, json={}, headers=headers) as response:
            return response.status


async def test_there_is_one_as_long_as_the_configuration_says(tmp_path: Path) -> None:
    http = service(list)
    await http.follow(None)
    assert http.tcp_port is None
    config = HttpConfig("127.0.0.1", 0)
    await http.follow(config)
    first = http.tcp_port
    assert await status_of(first) == 405
    await http.follow(config)
    assert http.tcp_port == first
    await http.follow(HttpConfig("localhost", 0))
    assert await status_of(http.tcp_port) == 405
    await http.follow(None)
    assert http.tcp_port is None
    await http.stop()


async def test_a_console_is_told_that_the_server_has_another_configuration(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            ports = running(served)
            http = service(lambda: ports)
            await http.follow(HttpConfig("127.0.0.1", 0))
            url = f"http://127.0.0.1:{http.tcp_port}/api/v1/ports/desk/console"
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(url) as console,
            ):
                await http.follow(HttpConfig("localhost", 0))
                said = [message.data async for message in console]
            await http.stop()
    reason = "desk: the configuration of the HTTP server has changed"
    assert json.loads(said[-1]) == {"type": "closed", "error": reason}


async def test_a_server_that_does_not_start_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    http = service(list)

    async def fail(_: HttpServer) -> None:
        raise RuntimeError("a mistake of ours")

    with monkeypatch.context() as patched:
        patched.setattr(HttpServer, "start", fail)
        with pytest.raises(RuntimeError):
            await http.follow(HttpConfig("127.0.0.1", 0))
    await http.follow(HttpConfig("127.0.0.1", 0))
    assert await status_of(http.tcp_port) == 405
    await http.stop()


async def test_the_token_is_read_again_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    config = HttpConfig("127.0.0.1", 0, token_file=str(file))
    file.touch(mode=0o600)
    file.write_text("a" * 16)
    http = service(list)
    await http.follow(config)
    assert await status_of(http.tcp_port) == 401
    file.write_text("b" * 16)
    await http.follow(config)
    assert await status_of(http.tcp_port, "a" * 16) == 401
    assert await status_of(http.tcp_port, "b" * 16) == 405
    file.unlink()
    with capture_logs() as logs:
        await http.follow(config)
    assert [each["event"] for each in logs] == ["http_files_not_read"]
    assert await status_of(http.tcp_port, "b" * 16) == 405
    await http.stop()


async def test_the_service_serves_its_ports(tmp_path: Path) -> None:
    def config(http: str) -> str:
        return f"ports:\n  - {{name: desk, tcp: 0, device: {tmp_path}/tty}}\n{http}"

    gateway = Service(tmp_path)
    await gateway.start(parse_config(config("http: 127.0.0.1:0"), "f.yaml"))
    # Until then, the port is still looking for its board.
    await until(lambda: (counts := gateway.counts()) and counts.absent)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{gateway.http_port}/api/v1/ports") as response,
    ):
        [desk] = (await response.json())["ports"]
        assert (desk["name"], desk["state"]) == ("desk", "absent")
    await gateway.reload(parse_config(config(""), "f.yaml"))
    assert gateway.http_port is None
    await gateway.stop()


def test_nothing_of_it_is_loaded_unless_it_is_asked_for() -> None:
    program = (
        "import sys, gateway.cli.main, gateway.service\n"
        "print([name for name in ('aiohttp', 'multidict', 'gateway.web') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"
