"""Unmodified esptool against a chip in download mode, over a TCP socket without any gateway."""

import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gateway.simulator.chips import CHIPS
from gateway.simulator.flash import Flash
from gateway.simulator.loader import BaudrateChanged, DownloadMode, Event, ResetRequested

IMAGE_BYTES = 64 * 1024
IMAGE_OFFSET = 0x10000

EventT = TypeVar("EventT")

#: For a hung esptool only; the slowest run here takes some seconds.
PROCESS_LIMIT_S = 60


class Board:
    """A chip in download mode behind `url`; every connection finds it as if just reset."""

    def __init__(self, chip_name: str = "esp32") -> None:
        self.flash = Flash(CHIPS[chip_name].flash_bytes)
        self.events: list[Event] = []
        self.keeps_state = False
        self._chip = CHIPS[chip_name]
        self._download_mode: DownloadMode | None = None
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"socket://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self._download_mode is None or not self.keeps_state:
                self._download_mode = DownloadMode(self._chip, self.flash)
            with client:
                self._talk(client, self._download_mode)

    def _talk(self, client: socket.socket, download_mode: DownloadMode) -> None:
        try:
            while data := client.recv(65536):
                self.events += download_mode.receive_data(data)
                client.sendall(download_mode.data_to_send())
        except ConnectionError:
            return

    def events_of(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self.events if isinstance(event, kind)]

    def logged(self, name: str) -> list[dict[str, Any]]:
        events = [event for event in self.events if isinstance(event, dict)]
        return [event for event in events if event["event"] == name]


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.stop()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.bin"
    path.write_bytes(random.Random(1).randbytes(IMAGE_BYTES))
    return path


def run(command: list[str], *arguments: str) -> str:
    result = subprocess.run(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PROCESS_LIMIT_S,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def esptool(board: Board, *arguments: str) -> str:
    return run(
        [sys.executable, "-m", "esptool", "--port", board.url, "--before", "no-reset"],
        *("--after", "no-reset", *arguments),
    )


def test_flash_id_names_chip_and_flash(board: Board) -> None:
    output = esptool(board, "flash-id")
    assert "ESP32-D0WD-V3 (revision v3.1)" in output
    assert "40MHz" in output
    assert "Manufacturer: ef" in output
    assert "Device: 4016" in output
    assert "Detected flash size: 4MB" in output
    assert "3.3V" in output
    assert board.logged("stub_started")
    # The ESP32 does not know GET_SECURITY_INFO, which esptool tries first.
    assert {event["opcode"] for event in board.logged("command_refused")} == {0x14}


def test_read_mac_reads_the_chips_address(board: Board) -> None:
    assert "24:0a:c4:00:00:01" in esptool(board, "--no-stub", "read-mac")


@pytest.mark.parametrize("loader", [(), ("--no-stub",)], ids=["stub", "rom"])
@pytest.mark.parametrize("compression", ["--compress", "--no-compress"])
def test_write_flash_is_verified_and_reads_back(
    board: Board, image: Path, tmp_path: Path, loader: tuple[str, ...], compression: str
) -> None:
    board.flash.write(IMAGE_OFFSET, bytes(IMAGE_BYTES))  # only an erase makes room
    offset = hex(IMAGE_OFFSET)
    output = esptool(board, *loader, "write-flash", compression, offset, str(image))
    assert "Hash of data verified" in output
    assert "Verification successful" in esptool(board, *loader, "verify-flash", offset, str(image))
    copy = tmp_path / "copy.bin"
    read_bytes = IMAGE_BYTES if not loader else 2048  # the ROM reads 64 bytes at a time
    esptool(board, *loader, "read-flash", offset, str(read_bytes), str(copy))
    assert copy.read_bytes() == image.read_bytes()[:read_bytes]
    assert bool(board.logged("stub_started")) == (not loader)
    assert sum(event["size"] for event in board.logged("flash_written")) == IMAGE_BYTES


def test_write_flash_leaves_the_sectors_around_it_alone(board: Board, image: Path) -> None:
    board.flash.write(0, bytes(board.flash.size_bytes))
    esptool(board, "write-flash", hex(IMAGE_OFFSET), str(image))
    assert board.flash.read(0, IMAGE_OFFSET) == bytes(IMAGE_OFFSET)
    assert board.flash.read(IMAGE_OFFSET, IMAGE_BYTES) == image.read_bytes()
    assert board.flash.read(IMAGE_OFFSET + IMAGE_BYTES, 4096) == bytes(4096)


def test_erase_flash_leaves_nothing(board: Board) -> None:
    board.flash.write(0, bytes(board.flash.size_bytes))
    esptool(board, "erase-flash")
    assert board.flash.read(0, board.flash.size_bytes).count(0xFF) == board.flash.size_bytes
    assert {"event": "flash_erased", "offset": 0, "size": board.flash.size_bytes} in board.events


def test_erase_region_leaves_the_rest(board: Board) -> None:
    board.flash.write(0, bytes(board.flash.size_bytes))
    esptool(board, "erase-region", "0x20000", "0x2000")
    assert board.flash.read(0x1F000, 0x4000) == bytes(4096) + b"\xff" * 8192 + bytes(4096)


@pytest.mark.parametrize("loader", [(), ("--no-stub",)], ids=["stub", "rom"])
def test_baud_is_changed_to_exactly_the_rate_asked_for(
    board: Board, image: Path, loader: tuple[str, ...]
) -> None:
    output = esptool(
        board, "--baud", "921600", *loader, "write-flash", hex(IMAGE_OFFSET), str(image)
    )
    assert "Hash of data verified" in output
    assert board.events_of(BaudrateChanged) == [BaudrateChanged(921600)]


def test_a_running_stub_is_found_again(board: Board) -> None:
    board.keeps_state = True
    esptool(board, "--after", "no-reset-stub", "flash-id")
    output = esptool(board, "flash-id")
    assert "Stub flasher is already running" in output
    assert len(board.logged("stub_started")) == 1


def test_flash_status_and_sfdp_are_those_of_the_flash_chip(board: Board) -> None:
    esptool(board, "write-flash-status", "--non-volatile", "--bytes", "2", "0x0200")
    assert "0x0200" in esptool(board, "read-flash-status", "--bytes", "2")
    assert "0x53 0x46 0x44 0x50" in esptool(board, "read-flash-sfdp", "0", "4")


@pytest.mark.parametrize("loader", [(), ("--no-stub",)], ids=["stub", "rom"])
@pytest.mark.parametrize(
    ("chip_name", "description", "mac"),
    [
        ("esp32c3", "ESP32-C3 (QFN32) (revision v0.4)", "a0:76:4e:00:00:01"),
        ("esp32s2", "ESP32-S2 (revision v0.0)", "7c:df:a1:00:00:01"),
        ("esp8266", "ESP8266EX", "5c:cf:7f:00:00:01"),
    ],
)
def test_other_chips_are_named_and_flashed(
    chip_name: str, description: str, mac: str, loader: tuple[str, ...], image: Path
) -> None:
    board = Board(chip_name)
    board.flash.write(0, bytes(board.flash.size_bytes))
    try:
        output = esptool(board, *loader, "flash-id")
        esptool(board, *loader, "write-flash", "--flash-size", "4MB", "0x10000", str(image))
    finally:
        board.stop()
    assert description in output
    assert mac in output
    assert ("26MHz" if chip_name == "esp8266" else "40MHz") in output
    assert "Detected flash size: 4MB" in output
    around = board.flash.read(IMAGE_OFFSET - 1, IMAGE_BYTES + 2)
    assert around == b"\0" + image.read_bytes() + b"\0"


def test_watchdog_reset_is_answered_to_its_end() -> None:
    board = Board("esp32c3")
    try:
        esptool(board, "--after", "watchdog-reset", "read-mac")
    finally:
        board.stop()
    assert board.events[-1] == ResetRequested(into_bootloader=False)


@pytest.mark.skipif(
    "ESPTOOL4" not in os.environ, reason="ESPTOOL4 does not name an esptool 4.8 executable"
)
@pytest.mark.parametrize("loader", [(), ("--no-stub",)], ids=["stub", "rom"])
def test_esptool_4_writes_verifies_and_reads(
    board: Board, image: Path, tmp_path: Path, loader: tuple[str, ...]
) -> None:
    command = [os.environ["ESPTOOL4"], "--port", board.url, "--before", "no_reset"]
    command += ["--after", "no_reset", "--baud", "460800", *loader]
    offset = hex(IMAGE_OFFSET)
    assert "ESP32-D0WD-V3" in run(command, "flash_id")
    assert "Hash of data verified" in run(command, "write_flash", offset, str(image))
    run(command, "write_flash", "-u", offset, str(image))
    assert "verify OK" in run(command, "verify_flash", offset, str(image))
    copy = tmp_path / "copy.bin"
    run(command, "read_flash", offset, "2048", str(copy))
    assert copy.read_bytes() == image.read_bytes()[:2048]
    # Its stub goes back into the boot ROM's loader when told to stay; the ROM is there already.
    resets = set(board.events_of(ResetRequested))
    assert resets == (set() if loader else {ResetRequested(into_bootloader=True)})
