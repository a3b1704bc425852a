"""Tools of the ESP world beside esptool: esp-idf-monitor, miniterm, mpremote, pytest-embedded.

With pyserial's rfc2217:// and with the gateway's own gateway://. PlatformIO's `pio device monitor`
is miniterm.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import BoardOf
from tests.end_to_end.test_esptool import ESPTOOL5, esptool, random_image
from tests.support.gateway_client import client_env
from tests.support.lab import LabBoard
from tests.support.played_ttys import MicroPythonBoard
from tests.support.processes import BackgroundProcess, Service, free_tcp_port, run_tool
from tests.support.shim import build_shim
from tests.support.terminal import Terminal
from tests.support.world import Notice

_LIMIT_S = 100.0
QUIT = b"\x1d"  # Ctrl-]
MENU = b"\x14"  # Ctrl-T
CTRL_P, CTRL_R = b"\x10", b"\x12"

SCHEMES = pytest.mark.parametrize("scheme", ["rfc2217", "gateway"])

#: What a project's own test of its firmware looks like.
FIRMWARE_TEST = """
def test_firmware(dut):
    dut.expect(r"heartbeat \\d+")
    dut.write("version")
    dut.expect_exact("desk simulated app")
"""


def python_module(name: str, package: str) -> str:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"no {package} here (a package of pip's; `make test` installs it)")
    return name


def idf_monitor(board: LabBoard, *options: str, scheme: str = "rfc2217") -> Terminal:
    command = [sys.executable, "-m", "esp_idf_monitor", "--port", board.url_for(scheme), *options]
    return Terminal(command, client_env(board.folder))


@SCHEMES
def test_idf_monitor_leaves_the_board_as_it_finds_it_and_resets_it_when_asked(
    board_of: BoardOf, scheme: str
) -> None:
    board = board_of()
    for _ in range(2):
        with idf_monitor(board, "--no-reset", scheme=scheme) as monitor:
            monitor.wait_for(b"heartbeat")
            monitor.type(QUIT)
            assert monitor.wait_until_ended() == 0
    assert board.boots() == ["app"]
    with idf_monitor(board, scheme=scheme) as monitor:  # its own default: a reset at the start
        assert board.wait_for_boots(2) == ["app", "app"]
        monitor.wait_for(b"heartbeat 1")
        monitor.type(MENU + CTRL_R)
        assert board.wait_for_boots(3) == ["app"] * 3
        monitor.type(MENU + CTRL_P)
        assert board.wait_for_boots(4) == [*["app"] * 3, "download"]
        monitor.wait_for(b"waiting for download")
        monitor.type(QUIT)
        assert monitor.wait_until_ended() == 0


@SCHEMES
def test_miniterm_is_a_console_that_does_not_reset_the_board(
    board_of: BoardOf, scheme: str
) -> None:
    board = board_of()
    command = [sys.executable, "-m", "serial.tools.miniterm", "--raw", board.url_for(scheme)]
    for _ in range(2):
        with Terminal([*command, "115200"], client_env(board.folder)) as terminal:
            terminal.wait_for(b"heartbeat")
            terminal.type(b"\rversion\r")
            terminal.wait_for(b"simulated app")
            terminal.type(QUIT)
            assert terminal.wait_until_ended() == 0
    assert board.boots() == ["app"]


@SCHEMES
def test_mpremote_runs_code_on_a_board_without_resetting_it(tmp_path: Path, scheme: str) -> None:
    module = python_module("mpremote", "mpremote")
    shim = build_shim(tmp_path)
    config = tmp_path / "gateway.yaml"
    tcp_port = free_tcp_port()
    env = client_env(tmp_path)
    with MicroPythonBoard() as board:
        config.write_text(
            f"ports:\n  - name: desk\n    tcp: {tcp_port}\n    device: {board.tty_path}\n"
        )
        with Service(config, env=shim.env()) as service:
            service.wait_for_line("device_opened")
            url = f"{scheme}://127.0.0.1:{tcp_port}"
            command = [sys.executable, "-m", module, "connect", url, "resume"]
            for _ in range(2):
                done = run_tool([*command, "exec", "1 + 1"], _LIMIT_S, env)
                assert done.returncode == 0, done.stdout + done.stderr
                assert done.stdout.strip() == "1 + 1"
            if scheme == "gateway":
                # pyserial's rfc2217 client has no descriptor for its prompt, whatever the server.
                with Terminal([*command, "repl"], env) as prompt:
                    prompt.wait_for(b"Connected to MicroPython")
                    prompt.type(b"\x01")  # the board's own answer, through select() on the port
                    prompt.wait_for(b"raw REPL")
                    prompt.type(QUIT)
                    assert prompt.wait_until_ended() == 0
            assert not [line for line in service.log if '"level": "warning"' in line]
    lines = [(call.dtr, call.rts) for call in shim.calls("TIOCMSET")]
    assert (True, True) in lines
    assert (False, True) not in lines, "EN is low then"


@SCHEMES
def test_pytest_embedded_tests_the_firmware_of_a_board(
    board_of: BoardOf, tmp_path: Path, scheme: str
) -> None:
    python_module("pytest_embedded_serial", "pytest-embedded-serial")
    tests = tmp_path / "firmware"
    tests.mkdir()
    (tests / "test_firmware.py").write_text(FIRMWARE_TEST)
    (tests / "pytest.ini").write_text("[pytest]\n")  # else our own settings would be looked for
    board = board_of()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--root-logdir={tests}"]
    command += ["--embedded-services", "serial", "--port", board.url_for(scheme)]
    ours = dict.fromkeys((name for name in os.environ if name.startswith("PYTEST_")), "")
    done = run_tool(command, _LIMIT_S, {**ours, **client_env(tmp_path)}, cwd=tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert board.boots() == ["app"]


@pytest.mark.timeout(600)
def test_idf_monitor_stays_open_while_esptool_flashes(board_of: BoardOf, tmp_path: Path) -> None:
    image = random_image(tmp_path / "app.bin", 64 * 1024)
    board = board_of(keys={"sharing": "preempt"})
    with idf_monitor(board, "--no-reset") as monitor:
        monitor.wait_for(b"heartbeat")
        for turn in (1, 2):
            written = esptool(board, "--baud", "921600", "write-flash", "0x10000", image)
            assert "Hash of data verified" in written
            monitor.wait_for(Notice.RESUMED, count=turn)
            assert monitor.screen.count(b"--- desk: ") == 2 * turn
            booted = monitor.screen.count(b"heartbeat")
            monitor.wait_for(b"heartbeat", count=booted + 2)
        assert board.boots() == ["app", *["download", "app"] * 2]
        monitor.type(b"version\r")
        monitor.wait_for(b"simulated app")
        monitor.type(QUIT)
        assert monitor.wait_until_ended() == 0
    assert board.boots() == ["app", *["download", "app"] * 2]


@pytest.mark.timeout(600)
def test_esptool_that_opens_its_port_again_does_not_take_it_back(
    board_of: BoardOf, tmp_path: Path
) -> None:
    """It does so each second when it is cut off while it writes, here from the other's address."""
    image = random_image(tmp_path / "app.bin", 512 * 1024)
    board = board_of(keys={"sharing": "takeover"})
    command = [*ESPTOOL5, "--port", board.url, "write-flash", "0x10000", str(image)]
    first = BackgroundProcess(command, {"PYTHONUNBUFFERED": "1"})
    first.start()
    try:
        first.wait_for_line("Writing at", 120)
        assert "Detected flash size" in esptool(board, "flash-id")
        first.wait_for_line("Lost connection, retrying")
    finally:
        first.kill()
    board.service.wait_for_line('taken over from your address.*"event": "client_refused"')
