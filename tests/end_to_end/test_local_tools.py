"""Tools on the gateway's host use a board's tty while the gateway has let go of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.config.document import Opening
from gateway.config.reader import parse_config
from gateway.port.port import Port
from gateway.port_document import PortState
from gateway.protocol.reset import Starts
from gateway.service import Service
from tests.support.processes import run_tool
from tests.support.pty_board import until

_TOOL_LIMIT_S = 120


@asynccontextmanager
async def serving(folder: Path, opening: Opening) -> AsyncIterator[tuple[Port, str]]:
    """A simulated board behind a service: its device, and the URL of its port."""
    service = Service(folder)
    url = f"sim://esp32?heartbeat_s=0&dir={folder / 'board'}"
    text = f"ports:\n  - {{name: desk, tcp: 0, open: {opening.value}, device: '{url}'}}\n"
    await service.start(parse_config(text, "test.yaml"))
    try:
        (port,) = service._ports
        yield port.port, f"rfc2217://127.0.0.1:{port.way_in.tcp_port}"
    finally:
        await service.stop()


async def read_mac(port: str, *options: str) -> str:
    """What esptool prints."""
    command = [sys.executable, "-m", "esptool", "--port", port, *options, "read-mac"]
    done = await asyncio.to_thread(run_tool, command, timeout_s=_TOOL_LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def test_esptool_has_the_tty_while_it_is_released(tmp_path: Path) -> None:
    async with serving(tmp_path, Opening.ALWAYS) as (device, url):
        await until(lambda: device.state is PortState.IDLE)
        await device.start_board(Starts.BOOTLOADER)
        await device.release("for esptool")
        # The lines of a simulated board are the gateway's alone, so it is in its bootloader by now.
        local = await read_mac(device.tty_path, "--before", "no-reset", "--after", "no-reset")
        assert "MAC:" in local
        device.resume()
        await until(lambda: device.state is PortState.IDLE)
        assert "MAC:" in await read_mac(url)


async def test_esptool_over_the_network_opens_the_tty_and_leaves_it_to_local_tools(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, Opening.ON_CONNECT) as (device, url):
        assert device.state is PortState.RELEASED
        assert "MAC:" in await read_mac(url, "--after", "no-reset")
        await until(lambda: device.state is PortState.RELEASED)
        local = await read_mac(device.tty_path, "--before", "no-reset", "--after", "no-reset")
        assert "MAC:" in local
        assert "MAC:" in await read_mac(url)
