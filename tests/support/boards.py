"""A simulated board without a gateway: its process, its files, its log."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Self

import serial

from gateway.simulator.host import SimulatedLines, UsbDevice, read_log, read_usb_device
from gateway.simulator.url import parse_url
from tests.support.processes import BackgroundProcess

#: For hung tests only.
_LIMIT_S = 60.0
#: Between two looks at files, which can't be waited for.
_POLL_S = 0.005


class RunningBoard(BackgroundProcess):
    """`python -m gateway.simulator URL`; the URL must say where its files go (`dir`)."""

    def __init__(self, url: str) -> None:
        super().__init__([sys.executable, "-m", "gateway.simulator", url])
        folder = parse_url(url).folder
        assert folder is not None
        self.folder = folder
        self.tty_path = folder / "tty"
        self.by_path = folder / "by-path"
        self.control_path = folder / "control"
        self._log_path: Path = folder / "log.jsonl"

    def board_log(self) -> list[dict[str, object]]:
        """What has happened to the board, oldest first."""
        return read_log(self._log_path)

    def events(self, name: str) -> list[dict[str, object]]:
        """The log's entries of one kind."""
        return [entry for entry in self.board_log() if entry["event"] == name]

    def boots(self) -> list[object]:
        """What each boot since power-up led to: "app" or "download"."""
        return [entry["mode"] for entry in self.events("boot")]

    def wait_for(self, name: str, count: int = 1) -> None:
        """Wait until that has happened `count` times since power-up."""
        wait_until(lambda: len(self.events(name)) >= count)

    def usb_device(self) -> UsbDevice | None:
        """The USB device that the board is at the moment."""
        return read_usb_device(self.folder)

    def wait_for_usb_device(self, number: int) -> UsbDevice:
        """Wait until the board is its USB device of that number, from 1 on, and has a tty."""
        wait_until(lambda: (device := self.usb_device()) is not None and device.number >= number)
        wait_until(self.by_path.exists)
        device = self.usb_device()
        assert device is not None
        assert device.number == number
        return device

    def play(self, steps: Iterable[tuple[bool, bool, float]]) -> None:
        """Set DTR and RTS as one opener of the tty; each step tells the pause behind it, too.

        Raises OSError when the device goes while there are steps left.
        """
        with closing(SimulatedLines(self.control_path)) as lines:
            for dtr, rts, pause_s in steps:
                lines.set_lines(dtr, rts)
                time.sleep(pause_s)

    def open_tty(self, baudrate: int = 115200) -> serial.Serial:
        """The board's tty, by the name that stays."""
        return serial.Serial(str(self.by_path), baudrate, timeout=_LIMIT_S)

    def ask(self, *requests: str) -> list[str]:
        """What the control socket answers to each request; every one must have an answer."""
        with socket.socket(socket.AF_UNIX) as control, control.makefile("rw") as stream:
            control.settimeout(_LIMIT_S)
            control.connect(str(self.control_path))
            answers = []
            for request in requests:
                stream.write(request + "\n")
                stream.flush()
                answers.append(stream.readline().rstrip("\n"))
        return answers

    def state(self) -> dict[str, object]:
        """The board's state, by the control socket."""
        state: dict[str, object] = json.loads(self.ask("state?")[0])
        return state

    def __enter__(self) -> Self:
        super().__enter__()
        self.wait_for_line("ready ")
        return self


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until a condition holds."""
    deadline_s = time.monotonic() + _LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(_POLL_S)
