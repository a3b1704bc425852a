"""Unmodified esptool against a chip in download mode, over a TCP socket without any gateway."""

import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.simulator.chips import CHIPS
from gateway.simulator.flash import Flash
from gateway.simulator.rom import (
    BaudrateChanged,
    CommandRefused,
    DownloadMode,
    Event,
    FlashErased,
    FlashWritten,
    StubStarted,
)

IMAGE_BYTES = 64 * 1024
IMAGE_OFFSET = 0x10000

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

    def events_of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


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
    assert board.events_of(StubStarted)
    assert not [event for event in board.events_of(CommandRefused) if event.opcode != 0x14]
