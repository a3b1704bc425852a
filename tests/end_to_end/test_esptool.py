"""The real esptool flashes simulated boards through the real service, by each of its URLs."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.end_to_end.conftest import BoardOf
from tests.support.gateway_client import client_env
from tests.support.lab import Lab, LabBoard
from tests.support.processes import run_tool

#: Over rfc2217:// pyserial's client takes 0.1 s for each of its settings at each change of its
#: timeout, so one command of esptool takes 20 to 40 s over any server.
_TOOL_LIMIT_S = 300

ESPTOOL5 = [sys.executable, "-m", "esptool"]
FAST = ("--baud", "921600")


def esptool(
    board: LabBoard,
    *arguments: str | Path,
    tool: list[str] | None = None,
    scheme: str = "rfc2217",
    query: str = "",
) -> str:
    done = run_tool(
        [*(tool or ESPTOOL5), "--port", board.url_for(scheme) + query, *arguments],
        _TOOL_LIMIT_S,
        client_env(board.folder) if scheme == "gateway" else None,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Chip was NOT reset" not in done.stdout
    return done.stdout


def esptool4() -> list[str]:
    path = os.environ.get("ESPTOOL4", "")
    if not shutil.which(path):
        pytest.skip("ESPTOOL4 does not name an esptool 4 executable; `make test` installs one")
    return [path]


def tool_of(major: int) -> list[str]:
    return ESPTOOL5 if major == 5 else esptool4()


def named(major: int, command: str) -> str:
    """The command as that version of esptool has it."""
    return command if major == 5 else command.replace("-", "_")


def boots_of_one_command(major: int) -> list[str]:
    """What one command makes an ESP32 do, each reset landing at once.

    esptool 4 resets it a second time: its way to ask for the chip is not known to the ESP32's
    ROM ("Unsupported detection protocol, switching and trying again").
    """
    return ["download", "app"] if major == 5 else ["download", "download", "app"]


def random_image(path: Path, size_bytes: int) -> Path:
    path.write_bytes(random.Random(size_bytes).randbytes(size_bytes))
    return path


def write_verify_read_back(
    board: LabBoard, folder: Path, size_bytes: int, scheme: str = "rfc2217", major: int = 5
) -> None:
    """Three commands: bootloader at the first attempt, app afterwards."""
    image = random_image(folder / f"{board.name}.bin", size_bytes)
    back = folder / f"{board.name}-back.bin"
    tool = tool_of(major)
    commands: list[tuple[str | Path, ...]] = [
        (named(major, "write-flash"), "0x10000", image),
        (named(major, "verify-flash"), "0x10000", image),
        (named(major, "read-flash"), hex(0x10000 + size_bytes // 4), hex(size_bytes // 4), back),
    ]
    said = [esptool(board, *FAST, *each, tool=tool, scheme=scheme) for each in commands]
    assert "Hash of data verified" in said[0]
    assert "erification successful" in said[1] or "verify OK (digest matched)" in said[1]
    assert back.read_bytes() == image.read_bytes()[size_bytes // 4 : size_bytes // 2]
    expected = ["app", *boots_of_one_command(major) * 3]
    assert board.wait_for_boots(len(expected)) == expected


@pytest.mark.timeout(600)
def test_two_boards_are_flashed_verified_and_read_back_at_the_same_time(tmp_path: Path) -> None:
    with (
        Lab(tmp_path, {"desk": "", "shelf": "en_rise_ms=10"}) as lab,
        ThreadPoolExecutor() as pool,
    ):
        for flashed in [
            pool.submit(write_verify_read_back, board, tmp_path, 256 * 1024)
            for board in lab.boards.values()
        ]:
            flashed.result()


@pytest.mark.timeout(600)
def test_flash_is_written_verified_and_read_back_over_gateway(
    board_of: BoardOf, tmp_path: Path
) -> None:
    board = board_of()
    write_verify_read_back(board, tmp_path, 128 * 1024, "gateway")
    assert not board.warnings()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("major", "scheme", "query", "en_rise_ms"),
    [
        (5, "rfc2217", "", 0.1),
        (5, "rfc2217", "?ign_set_control", 0.1),
        *((major, "gateway", "", rise) for major in (5, 4) for rise in (0.1, 10)),
    ],
)
def test_flash_id_enters_the_bootloader_at_once_and_boots_the_app_again(
    board_of: BoardOf, major: int, scheme: str, query: str, en_rise_ms: float
) -> None:
    board = board_of(f"en_rise_ms={en_rise_ms}")
    command = named(major, "flash-id")
    said = esptool(board, command, tool=tool_of(major), scheme=scheme, query=query)
    assert "ESP32" in said
    assert "Detected flash size: 4MB" in said
    expected = ["app", *boots_of_one_command(major)]
    assert board.wait_for_boots(len(expected)) == expected


@pytest.mark.timeout(400)
def test_esptool_4_writes_flash_and_boots_the_app(board_of: BoardOf, tmp_path: Path) -> None:
    tool = esptool4()
    board = board_of()
    image = random_image(tmp_path / "image.bin", 64 * 1024)
    said = esptool(board, *FAST, "write_flash", "0x10000", image, tool=tool)
    assert "Hash of data verified" in said
    assert board.wait_for_boots(4) == ["app", *boots_of_one_command(major=4)]


@pytest.mark.timeout(400)
def test_board_is_left_alone_when_a_flasher_is_killed_in_the_middle(board_of: BoardOf) -> None:
    board = board_of()
    flasher = subprocess.Popen(
        [*ESPTOOL5, "--port", board.url, "flash-id"], stdout=subprocess.DEVNULL
    )
    board.wait_for(lambda log: any(entry["event"] == "sync" for entry in log))
    flasher.kill()
    flasher.wait()
    board.service.wait_for_line('"event": "client_disconnected"')
    # The port is free and the next one, without a stub, gets through at its first attempt.
    assert "MAC: " in esptool(board, "--no-stub", "read-mac")
    assert board.wait_for_boots(4) == ["app", "download", "download", "app"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("major", [5, 4])
def test_a_megabyte_is_written_verified_and_read_back(
    board_of: BoardOf, tmp_path: Path, major: int
) -> None:
    write_verify_read_back(board_of(), tmp_path, 1024 * 1024, major=major)
