"""Tools of the ESP world beside esptool and monitors, on the real service: mpremote,
pytest-embedded.

PlatformIO's `pio device monitor` is pyserial's miniterm, which test_monitors tries.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from tests.support.lab import Lab
from tests.support.played_ttys import MicroPythonBoard
from tests.support.processes import Service, free_tcp_port, run_tool
from tests.support.shim import build_shim

_LIMIT_S = 100

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


def test_mpremote_runs_code_on_a_board_without_resetting_it(tmp_path: Path) -> None:
    # Its interactive prompt needs a file descriptor of pyserial's rfc2217 client, which has none,
    # whatever the server (1.29, AttributeError in mpremote/console.py).
    module = python_module("mpremote", "mpremote")
    shim = build_shim(tmp_path)
    config = tmp_path / "gateway.yaml"
    tcp_port = free_tcp_port()
    with MicroPythonBoard() as board:
        config.write_text(
            f"ports:\n  - name: desk\n    tcp: {tcp_port}\n    device: {board.tty_path}\n"
        )
        with Service(config, env=shim.env()) as service:
            service.wait_for_line("device_opened")
            for _ in range(2):
                url = f"rfc2217://127.0.0.1:{tcp_port}"
                command = [sys.executable, "-m", module, "connect", url, "resume", "exec", "1 + 1"]
                done = run_tool(command, timeout_s=_LIMIT_S)
                assert done.returncode == 0, done.stdout + done.stderr
                assert done.stdout.strip() == "1 + 1"
            assert not [line for line in service.log if '"level": "warning"' in line]
    lines = [(call.dtr, call.rts) for call in shim.calls("TIOCMSET")]
    assert (True, True) in lines
    assert (False, True) not in lines, "EN is low then"


def test_pytest_embedded_tests_the_firmware_of_a_board(tmp_path: Path) -> None:
    python_module("pytest_embedded_serial", "pytest-embedded-serial")
    tests = tmp_path / "firmware"
    tests.mkdir()
    (tests / "test_firmware.py").write_text(FIRMWARE_TEST)
    (tests / "pytest.ini").write_text("[pytest]\n")  # else our own settings would be looked for
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        board.wait_for_app()
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        options = ["--embedded-services", "serial", "--port", board.url, f"--root-logdir={tests}"]
        ours = [name for name in os.environ if name.startswith("PYTEST_")]
        done = run_tool(
            [*command, *options],
            timeout_s=_LIMIT_S,
            env=dict.fromkeys(ours, ""),
            cwd=tests,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 passed" in done.stdout
        assert board.boots() == ["app"]
