"""The real esptool flashes simulated boards through the real service."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.lab import Lab, LabBoard
from tests.support.processes import run_tool

#: pyserial's client takes 0.1 s for each of its settings at each change of its timeout, so one
#: command of esptool takes 20 to 40 s over any server.
_TOOL_LIMIT_S = 300

ESPTOOL5 = [sys.executable, "-m", "esptool"]


def esptool(
    board: LabBoard, *arguments: str | Path, tool: list[str] | None = None, query: str = ""
) -> str:
    done = run_tool(
        [*(tool or ESPTOOL5), "--port", board.url + query, *arguments], timeout_s=_TOOL_LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def esptool4() -> list[str]:
    path = os.environ.get("ESPTOOL4", "")
    if not shutil.which(path):
        pytest.skip("ESPTOOL4 does not name an esptool 4 executable; `make test` installs one")
    return [path]


def boots_of_one_command(major: int) -> list[str]:
    """What one command makes an ESP32 do, each reset landing at once.

    esptool 4 resets it a second time: its way to ask for the chip is not known to the ESP32's
    ROM ("Unsupported detection protocol, switching and trying again").
    """
    return ["download", "app"] if major == 5 else ["download", "download", "app"]


def random_image(path: Path, size_bytes: int) -> Path:
    path.write_bytes(random.Random(size_bytes).randbytes(size_bytes))
    return path


def write_verify_read_back(board: LabBoard, folder: Path, size_bytes: int) -> None:
    image = random_image(folder / f"{board.name}.bin", size_bytes)
    part = folder / f"{board.name}-part.bin"
    baud = ["--baud", "921600"]
    written = esptool(board, *baud, "write-flash", "0x10000", image)
    assert "Hash of data verified" in written
    assert "Verification successful" in esptool(board, *baud, "verify-flash", "0x10000", image)
    esptool(board, *baud, "read-flash", "0x14000", "0x4000", part)
    assert part.read_bytes() == image.read_bytes()[0x4000:0x8000]


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
        for board in lab.boards.values():
            # Each of the three commands: bootloader at the first attempt, app afterwards.
            assert board.wait_for_boots(7) == ["app", *["download", "app"] * 3]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("query", ["", "?ign_set_control"])
def test_flash_id_enters_the_bootloader_at_once_and_boots_the_app_again(
    tmp_path: Path, query: str
) -> None:
    with Lab(tmp_path, {"desk": "en_rise_ms=0.1"}) as lab:
        board = lab.boards["desk"]
        said = esptool(board, "flash-id", query=query)
        assert "ESP32" in said
        assert "Detected flash size: 4MB" in said
        assert board.wait_for_boots(3) == ["app", "download", "app"]


@pytest.mark.timeout(400)
def test_esptool_4_writes_flash_and_boots_the_app(tmp_path: Path) -> None:
    tool = esptool4()
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        image = random_image(tmp_path / "image.bin", 64 * 1024)
        said = esptool(board, "--baud", "921600", "write_flash", "0x10000", image, tool=tool)
        assert "Hash of data verified" in said
        assert board.wait_for_boots(4) == ["app", *boots_of_one_command(major=4)]


@pytest.mark.timeout(400)
def test_rom_loader_without_stub_reads_the_mac_over_the_network(tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        assert "MAC: " in esptool(board, "--no-stub", "read-mac")
        assert board.wait_for_boots(3) == ["app", "download", "app"]


@pytest.mark.timeout(400)
def test_board_is_left_alone_when_a_flasher_is_killed_in_the_middle(tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        flasher = subprocess.Popen(
            [*ESPTOOL5, "--port", board.url, "flash-id"], stdout=subprocess.DEVNULL
        )
        board.wait_for(lambda log: any(entry["event"] == "sync" for entry in log))
        flasher.kill()
        flasher.wait()
        lab.service.wait_for_line('"event": "client_disconnected"')
        # The port is free and the next one gets through at its first attempt.
        assert "MAC: " in esptool(board, "--no-stub", "read-mac")
        assert board.wait_for_boots(4) == ["app", "download", "download", "app"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("major", [5, 4])
def test_a_megabyte_is_written_verified_and_read_back(tmp_path: Path, major: int) -> None:
    tool = ESPTOOL5 if major == 5 else esptool4()
    dash = "-" if major == 5 else "_"
    baud = ["--baud", "921600"]
    image = random_image(tmp_path / "image.bin", 1024 * 1024)
    back = tmp_path / "back.bin"
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        esptool(board, *baud, f"write{dash}flash", "0x10000", image, tool=tool)
        esptool(board, *baud, f"verify{dash}flash", "0x10000", image, tool=tool)
        esptool(board, *baud, f"read{dash}flash", "0x10000", "0x100000", back, tool=tool)
        assert back.read_bytes() == image.read_bytes()
        expected = ["app", *boots_of_one_command(major) * 3]
        assert board.wait_for_boots(len(expected)) == expected
