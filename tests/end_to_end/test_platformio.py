"""PlatformIO's `pio test`, which resets the board and reads what the app says from its boot on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import BoardOf
from tests.support.peers import program
from tests.support.processes import run_tool

_LIMIT_S = 120.0

#: A platform that builds and uploads nothing, so that no package is fetched.
PLATFORM = {
    "name": "lab",
    "title": "lab",
    "version": "1.0.0",
    "description": "nothing to build",
    "engines": {"platformio": ">=6"},
    "packages": {},
}
PLATFORM_CODE = """
from platformio.public import PlatformBase

class LabPlatform(PlatformBase):
    pass
"""
BOARD = {
    "name": "desk",
    "vendor": "lab",
    "url": "",
    "frameworks": [],
    "build": {"mcu": "esp32", "hwids": []},
    "upload": {"maximum_ram_size": 1, "maximum_size": 1},
}
#: Says each line of the board, and is content when the app is ready.
RUNNER = """
from platformio.public import TestCase, TestRunnerBase, TestStatus

class CustomTestRunner(TestRunnerBase):
    def on_testing_line_output(self, line):
        print("board:", line.strip(), flush=True)
        if "ready" in line:
            self.test_suite.add_case(TestCase(name="boot", status=TestStatus.PASSED))
            self.test_suite.on_finish()
"""
PROJECT = """
[env:desk]
platform = symlink://{platform}
board = desk
test_framework = custom
test_speed = 115200
"""


def project(folder: Path) -> Path:
    """A project with one test, and its platform."""
    platform, project = folder / "platform", folder / "project"
    (platform / "boards").mkdir(parents=True)
    (platform / "platform.json").write_text(json.dumps(PLATFORM))
    (platform / "platform.py").write_text(PLATFORM_CODE)
    (platform / "boards" / "desk.json").write_text(json.dumps(BOARD))
    (project / "src").mkdir(parents=True)
    (project / "test" / "test_boot").mkdir(parents=True)
    (project / "test" / "test_boot" / "main.c").write_text("\n")
    (project / "test" / "test_custom_runner.py").write_text(RUNNER)
    (project / "platformio.ini").write_text(PROJECT.format(platform=platform))
    return project


@pytest.mark.timeout(300)
@pytest.mark.parametrize("chip", ["esp32", "esp32c3"])
@pytest.mark.parametrize(
    "options", [[], ["--monitor-rts=1", "--monitor-dtr=1"]], ids=["default", "lines on"]
)
def test_pio_test_resets_the_board_and_sees_its_boot_log_from_the_first_word(
    board_of: BoardOf, tmp_path: Path, chip: str, options: list[str]
) -> None:
    pio = program("pio", "none; pip install platformio")
    env = {
        "PLATFORMIO_CORE_DIR": str(tmp_path / "core"),
        "PLATFORMIO_SETTING_ENABLE_TELEMETRY": "no",
        "PLATFORMIO_SETTING_CHECK_PLATFORMIO_INTERVAL": "1000",
        "PLATFORMIO_NO_ANSI": "true",
    }
    board = board_of("heartbeat_s=0", chip=chip)
    command = [pio, "test", "--without-building", "--without-uploading"]
    done = run_tool(
        [*command, "--test-port", board.url, *options], _LIMIT_S, env, project(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("board: ")]
    assert said[0].startswith(("board: ets ", "board: ESP-ROM:")), said
    assert board.boots() == ["app", "app"]


@pytest.mark.timeout(120)
def test_a_script_that_relies_on_the_reset_at_open_finds_its_board_reset(board_of: BoardOf) -> None:
    script = """
import sys, serial
port = serial.serial_for_url(sys.argv[1], baudrate=115200, timeout=20)
port.dtr = False
port.rts = False
port.write(b"version\\r")
assert b"simulated app" in port.read_until(b"esp> simulated app"), "no app"
"""
    keys = {"on_connect": "reset"}
    board = board_of("heartbeat_s=0", keys=keys)
    for boots in (2, 3):
        done = run_tool([sys.executable, "-c", script, board.url], _LIMIT_S)
        assert done.returncode == 0, done.stderr
        assert board.boots() == ["app"] * boots
