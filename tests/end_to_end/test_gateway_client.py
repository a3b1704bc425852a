"""gateway:// in programs that know only pyserial, against the real service: one word is changed."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import serial

from gateway.client.protocol_gateway import Serial
from gateway.simulator.board import pattern
from tests.end_to_end.test_esptool import ESPTOOL5, boots_of_one_command, esptool4
from tests.end_to_end.test_interop_tools import FIRMWARE_TEST, python_module
from tests.support.gateway_client import client_env, gateway_url
from tests.support.lab import Lab, LabBoard
from tests.support.played_ttys import MicroPythonBoard
from tests.support.processes import Service, free_tcp_port, run_tool
from tests.support.terminal import Terminal

_LIMIT_S = 300.0
QUIT = b"\x1d"  # Ctrl-]
MENU = b"\x14"  # Ctrl-T
CTRL_P, CTRL_R = b"\x10", b"\x12"


def esptool(folder: Path, board: LabBoard, *arguments: str | Path, tool: list[str]) -> str:
    command = [*tool, "--port", gateway_url(board.url), *arguments]
    done = run_tool(command, _LIMIT_S, client_env(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(400)
@pytest.mark.parametrize("major", [5, 4])
@pytest.mark.parametrize("en_rise_ms", [0.1, 10])
def test_esptool_enters_the_bootloader_at_once(
    tmp_path: Path, major: int, en_rise_ms: float
) -> None:
    tool = ESPTOOL5 if major == 5 else esptool4()
    with Lab(tmp_path, {"desk": f"en_rise_ms={en_rise_ms}"}) as lab:
        board = lab.boards["desk"]
        said = esptool(tmp_path, board, f"flash{'-' if major == 5 else '_'}id", tool=tool)
        assert "Detected flash size: 4MB" in said
        assert "Chip was NOT reset" not in said
        expected = ["app", *boots_of_one_command(major)]
        assert board.wait_for_boots(len(expected)) == expected


@pytest.mark.timeout(600)
def test_esptool_writes_verifies_and_reads_flash(tmp_path: Path) -> None:
    image, back = tmp_path / "image.bin", tmp_path / "back.bin"
    image.write_bytes(random.Random(1).randbytes(128 * 1024))
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        baud = ["--baud", "921600"]
        commands: list[list[str | Path]] = [
            ["write-flash", "0x10000", image],
            ["verify-flash", "0x10000", image],
            ["read-flash", "0x10000", str(128 * 1024), back],
        ]
        for arguments in commands:
            esptool(tmp_path, board, *baud, *arguments, tool=ESPTOOL5)
        assert back.read_bytes() == image.read_bytes()
        assert board.wait_for_boots(7) == ["app", *["download", "app"] * 3]
        assert not [line for line in lab.service.log if '"level": "warning"' in line]


def test_idf_monitor_shows_resets_and_leaves_the_board_as_it_finds_it(tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        command = [sys.executable, "-m", "esp_idf_monitor", "--port", gateway_url(board.url)]
        with Terminal([*command, "--no-reset"], client_env(tmp_path)) as monitor:
            monitor.wait_for(b"heartbeat")
            monitor.type(QUIT)
            assert monitor.wait_until_ended() == 0
        assert board.boots() == ["app"]
        with Terminal(command, client_env(tmp_path)) as monitor:
            assert board.wait_for_boots(2) == ["app", "app"]
            monitor.wait_for(b"heartbeat 1")
            monitor.type(MENU + CTRL_R)
            assert board.wait_for_boots(3) == ["app"] * 3
            monitor.type(MENU + CTRL_P)
            assert board.wait_for_boots(4) == [*["app"] * 3, "download"]
            monitor.wait_for(b"waiting for download")
            monitor.type(QUIT)
            assert monitor.wait_until_ended() == 0


def test_miniterm_is_a_console(tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        command = [sys.executable, "-m", "serial.tools.miniterm", "--raw", gateway_url(board.url)]
        for _ in range(2):
            with Terminal([*command, "115200"], client_env(tmp_path)) as terminal:
                terminal.wait_for(b"heartbeat")
                terminal.type(b"\rversion\r")
                terminal.wait_for(b"simulated app")
                terminal.type(QUIT)
                assert terminal.wait_until_ended() == 0
        assert board.boots() == ["app"]


def test_mpremote_runs_code_and_has_its_prompt_too(tmp_path: Path) -> None:
    module = python_module("mpremote", "mpremote")
    config = tmp_path / "gateway.yaml"
    tcp_port = free_tcp_port()
    with MicroPythonBoard() as board:
        config.write_text(
            f"ports:\n  - name: desk\n    tcp: {tcp_port}\n    device: {board.tty_path}\n"
        )
        with Service(config) as service:
            service.wait_for_line("device_opened")
            url = f"gateway://127.0.0.1:{tcp_port}"
            command = [sys.executable, "-m", module, "connect", url, "resume"]
            done = run_tool([*command, "exec", "1 + 1"], _LIMIT_S, client_env(tmp_path))
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stdout.strip() == "1 + 1"
            with Terminal([*command, "repl"], client_env(tmp_path)) as prompt:
                prompt.wait_for(b"Connected to MicroPython")
                prompt.type(b"\x01")  # the board's own answer, through select() on the port
                prompt.wait_for(b"raw REPL")
                prompt.type(QUIT)
                assert prompt.wait_until_ended() == 0


def test_pytest_embedded_tests_the_firmware_of_a_board(tmp_path: Path) -> None:
    python_module("pytest_embedded_serial", "pytest-embedded-serial")
    tests = tmp_path / "firmware"
    tests.mkdir()
    (tests / "test_firmware.py").write_text(FIRMWARE_TEST)
    (tests / "pytest.ini").write_text("[pytest]\n")
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        board.wait_for_app()
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        options = ["--embedded-services", "serial", f"--root-logdir={tests}"]
        options += ["--port", gateway_url(board.url)]
        env = {"PYTEST_ADDOPTS": "", "PYTEST_CURRENT_TEST": "", **client_env(tmp_path)}
        done = run_tool([*command, *options], _LIMIT_S, env, cwd=tests)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout
        assert board.boots() == ["app"]


def test_bulk_data_comes_at_the_speed_of_the_line(tmp_path: Path) -> None:
    size = 20_000
    with Lab(tmp_path, {"desk": "heartbeat_s=0"}) as lab:
        board = lab.boards["desk"]
        board.wait_for_app()
        with Serial(gateway_url(board.url), baudrate=115200, timeout=60) as port:
            port.write(b"bytes %d\r" % size)
            wanted = b"bytes %d\r\n" % size + pattern(size) + b"\r\nesp> "
            assert port.read(len(wanted)) == wanted
            assert (port.cts, port.dsr, port.ri, port.cd) == (False,) * 4
            port.flush()
            port.send_break(0.001)
        assert board.boots() == ["app"]


def test_a_port_in_use_says_so(tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": ""}) as lab:
        url = gateway_url(lab.boards["desk"].url)
        with Serial(url) as port:
            with pytest.raises(serial.SerialException, match="desk: in use by 127"):
                Serial(url)
            port.dtr = True
        # Closing has waited for the server: the next one gets it.
        Serial(url).close()
