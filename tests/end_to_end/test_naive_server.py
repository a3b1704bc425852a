"""The simulated board is as strict as hardware: forwarding DTR and RTS as they come fails on it.

The server is pyserial's own `serial.rfc2217.PortManager`, as its documentation's example runs it.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import serial
import serial.rfc2217

from gateway.simulator.host import SimulatedLines
from tests.support.boards import RunningBoard
from tests.support.processes import run_tool


class _SerialWithLines(serial.Serial):
    """pyserial's port on the board's pty; each line moves by itself, as its ioctls do."""

    def __init__(self, board: RunningBoard) -> None:
        self._lines = SimulatedLines(board.control_path)
        super().__init__(str(board.tty_path), baudrate=115200, timeout=0.05)

    def _update_dtr_state(self) -> None:
        self._lines.set_lines(self.dtr, self.rts)

    def _update_rts_state(self) -> None:
        self._lines.set_lines(self.dtr, self.rts)

    def _update_break_state(self) -> None:
        """A pty has no break."""

    cts = dsr = ri = cd = property(lambda _self: False)

    def close(self) -> None:
        super().close()
        self._lines.close()


class _Connection:
    """What PortManager writes its answers to."""

    def __init__(self, connection: socket.socket) -> None:
        self.write = connection.sendall


@contextlib.contextmanager
def naive_server(board: RunningBoard) -> Iterator[int]:
    """One client served by PortManager; gives the TCP port."""
    with socket.create_server(("127.0.0.1", 0)) as listening, _SerialWithLines(board) as port:
        ended = threading.Event()
        server = threading.Thread(target=_serve, args=(listening, port, ended))
        server.start()
        try:
            yield listening.getsockname()[1]
        finally:
            ended.set()
            server.join()


def _serve(listening: socket.socket, port: Any, ended: threading.Event) -> None:
    connection, _ = listening.accept()
    with connection:
        manager = serial.rfc2217.PortManager(port, cast("Any", _Connection(connection)))
        sender = threading.Thread(target=_send_output, args=(connection, manager, port, ended))
        sender.start()
        with contextlib.suppress(ConnectionError):
            while received := connection.recv(1024):
                port.write(b"".join(manager.filter(received)))
        ended.set()
        sender.join()


def _send_output(
    connection: socket.socket, manager: Any, port: Any, ended: threading.Event
) -> None:
    with contextlib.suppress(ConnectionError):
        while not ended.is_set():
            if data := port.read(port.in_waiting or 1):
                connection.sendall(b"".join(manager.escape(data)))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("en_rise_ms", [0.1, 1, 10])
def test_forwarding_each_line_as_it_comes_never_enters_the_bootloader(
    tmp_path: Path, en_rise_ms: float
) -> None:
    with RunningBoard(f"sim://esp32?en_rise_ms={en_rise_ms}&dir={tmp_path}/board") as board:
        with naive_server(board) as tcp_port:
            done = run_tool(
                [
                    *(sys.executable, "-m", "esptool", "--connect-attempts", "2"),
                    *("--port", f"rfc2217://127.0.0.1:{tcp_port}", "--no-stub", "read-mac"),
                ],
                timeout_s=150,
            )
        assert done.returncode != 0
        boots = [entry["mode"] for entry in board.board_log() if entry["event"] == "boot"]
        # It was reset again and again, and each time ran its app.
        assert len(boots) > 2
        assert set(boots) == {"app"}
