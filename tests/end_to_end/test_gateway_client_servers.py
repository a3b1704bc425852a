"""gateway:// against servers that are not ours, and against ours behind TLS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serial import SerialException

from gateway.client.protocol_gateway import Serial
from gateway.simulator.board import pattern
from tests.end_to_end.conftest import BoardOf
from tests.end_to_end.test_esptool import ESPTOOL5
from tests.end_to_end.test_tls import keys_of
from tests.support.boards import RunningBoard, wait_until
from tests.support.certificates import Authority
from tests.support.gateway_client import client_env
from tests.support.processes import run_tool
from tests.support.shim import build_shim
from tests.tools.benchmarks.servers import (
    ESP_SERVER,
    PYSERIAL,
    SER2NET,
    SER2NET_TUNED,
    RunningServer,
    Server,
)

SIZE = 20_000
LIMIT_S = 300.0

each_server = pytest.mark.parametrize(
    "server", [SER2NET, SER2NET_TUNED, ESP_SERVER, PYSERIAL], ids=lambda server: server.name
)


@contextmanager
def served(folder: Path, server: Server, parameters: str) -> Iterator[tuple[RunningBoard, str]]:
    """A simulated board behind a server; gives the board and its URL."""
    if reason := server.missing():
        pytest.skip(reason)
    shim = build_shim(folder)
    with RunningBoard(f"sim://esp32?dir={folder / 'board'}&{parameters}") as board:
        board.wait_for("app_started")
        shim.set_controls({board.tty_path: board.control_path})
        with RunningServer(server, [str(board.tty_path)], folder, shim.env()) as running:
            yield board, f"gateway://127.0.0.1:{running.tcp_ports[0]}"


def has_answered(port: Serial) -> bool:
    port.write(b"bytes %d\r" % SIZE)
    port.flush()
    return port.read_until(pattern(SIZE)).endswith(pattern(SIZE))


@each_server
def test_data_settings_and_lines_reach_the_board(tmp_path: Path, server: Server) -> None:
    # On pyserial, one thread's read fails when another purges or sets the port at that moment:
    # these two servers then hang up, and they reset the board just before.
    tries = 5 if server in {ESP_SERVER, PYSERIAL} else 1
    with served(tmp_path, server, "heartbeat_s=0") as (_, url):
        while True:
            tries -= 1
            try:
                use_all(url, server)
            except SerialException:
                if not tries:
                    raise
            else:
                return


def use_all(url: str, server: Server) -> None:
    """Data, settings and lines, through one connection."""
    port = Serial(None, baudrate=115200, timeout=20)
    port.port = url
    if server is ESP_SERVER:
        # It resets the board at each DTR, into the bootloader, and at each RTS off.
        port.dtr = port.rts = False
    with port:
        if server is ESP_SERVER:
            port.read_until(b"esp> ")
        for baudrate in (460800, 115200):
            port.baudrate = baudrate
        port.stopbits = 2
        port.stopbits = 1
        # Commands are lost on a board that a server resets meanwhile.
        assert any(has_answered(port) for _ in range(5))
        port.read_until(b"esp> ")
        assert (port.ri, port.cd) == (False, False)
        port.write(b"x" * 20)
        wait_until(lambda: port.in_waiting >= 20)
        port.reset_input_buffer()
        assert port.in_waiting == 0
        port.write(b"y")
        assert port.read(1) == b"y"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("server", [ESP_SERVER, SER2NET], ids=lambda server: server.name)
def test_esptool_gets_as_far_as_the_server_lets_it(tmp_path: Path, server: Server) -> None:
    # ser2net passes each line on by itself, which enters the bootloader of boards whose EN
    # rises slowly enough only (docs/reset.md).
    with served(tmp_path, server, "en_rise_ms=10") as (_, url):
        command = [*ESPTOOL5, "--port", url, "flash-id"]
        done = run_tool(command, LIMIT_S, client_env(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Detected flash size: 4MB" in done.stdout


@pytest.mark.timeout(180)
@pytest.mark.parametrize("en_rise_ms", [0.1, 1, 10])
def test_forwarding_each_line_as_it_comes_never_enters_the_bootloader(
    tmp_path: Path, en_rise_ms: float
) -> None:
    """So strict are the simulated boards: as hardware is with pyserial's documented server."""
    with served(tmp_path, PYSERIAL, f"en_rise_ms={en_rise_ms}") as (board, url):
        command = [*ESPTOOL5, "--connect-attempts", "2", "--no-stub", "--port"]
        done = run_tool([*command, url.replace("gateway", "rfc2217"), "read-mac"], timeout_s=150)
        boots = board.boots()
    assert done.returncode != 0
    # It was reset again and again, and each time ran its app.
    assert len(boots) > 2
    assert set(boots) == {"app"}


@pytest.mark.timeout(400)
def test_esptool_flashes_through_tls_with_its_own_certificate(
    board_of: BoardOf, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("alice", "alice@lab.example", common_name="alice")
    options = f"?ca={authority.path}&cert={cert}&key={key}"
    image, back = tmp_path / "image.bin", tmp_path / "back.bin"
    image.write_bytes(pattern(65536))
    board = board_of(keys={"tls": keys_of(authority.server())})
    url = f"gateway://localhost:{board.tcp_port}{options}"
    esptool = [*ESPTOOL5, "--port", url, "--baud", "921600"]
    for arguments in (
        ["write-flash", "0x10000", str(image)],
        ["read-flash", "0x10000", "65536", str(back)],
    ):
        done = run_tool([*esptool, *arguments], LIMIT_S, client_env(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
    assert back.read_bytes() == image.read_bytes()
    assert board.wait_for_boots(5) == ["app", "download", "app", "download", "app"]
    board.service.wait_for_line(r'"client": "127.0.0.1:\d+ \(alice\)".*client_disconnected')
