"""What people leave open all day: esp-idf-monitor, miniterm, telnet, nc, on the real service."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest

from tests.support.lab import Lab, LabBoard
from tests.support.terminal import Terminal

QUIT = b"\x1d"  # Ctrl-]
MENU = b"\x14"  # Ctrl-T
CTRL_P, CTRL_R = b"\x10", b"\x12"


def idf_monitor(board: LabBoard, *options: str) -> Terminal:
    return Terminal([sys.executable, "-m", "esp_idf_monitor", "--port", board.url, *options])


def miniterm(board: LabBoard) -> Terminal:
    return Terminal([sys.executable, "-m", "serial.tools.miniterm", "--raw", board.url, "115200"])


def test_attaching_and_detaching_idf_monitor_does_not_reset_the_board(tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        for _ in range(2):
            with idf_monitor(board, "--no-reset") as monitor:
                monitor.wait_for(b"heartbeat")
                monitor.type(QUIT)
                assert monitor.wait_until_ended() == 0
        assert board.boots() == ["app"]


def test_idf_monitor_resets_the_board_when_asked(tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        with idf_monitor(board) as monitor:  # its own default: one reset at the start
            assert board.wait_for_boots(2) == ["app", "app"]
            monitor.wait_for(b"heartbeat 1")
            monitor.type(MENU + CTRL_R)
            assert board.wait_for_boots(3) == ["app"] * 3
            monitor.type(MENU + CTRL_P)
            assert board.wait_for_boots(4) == [*["app"] * 3, "download"]
            monitor.wait_for(b"waiting for download")
            monitor.type(QUIT)
            assert monitor.wait_until_ended() == 0


def test_attaching_and_detaching_miniterm_does_not_reset_the_board(tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        for _ in range(2):
            with miniterm(board) as terminal:
                terminal.wait_for(b"heartbeat")
                terminal.type(b"\rversion\r")
                terminal.wait_for(b"simulated app")
                terminal.type(QUIT)
                assert terminal.wait_until_ended() == 0
        assert board.boots() == ["app"]


def test_telnet_is_a_console_with_characters_as_they_are_typed(tmp_path: Path) -> None:
    if not shutil.which("telnet"):
        pytest.skip("no telnet here (Debian package inetutils-telnet)")
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        with Terminal(["telnet", "127.0.0.1", str(board.tcp_port)]) as telnet:
            telnet.wait_for(b"heartbeat")  # came behind the negotiation: telnet has seen that
            telnet.type(b"ver")
            telnet.wait_for(b"ver")  # the board's echo: no line was ended yet
            telnet.type(b"sion\r")
            telnet.wait_for(b"simulated app")
            assert telnet.screen.count(b"version") == 1
            telnet.type(QUIT)
            telnet.wait_for(b"telnet>")
            telnet.type(b"send ayt\r")
            telnet.wait_for(b"desk: 115200 8N1")
            telnet.type(QUIT)
            telnet.wait_for(b"telnet>", count=2)
            telnet.type(b"quit\r")
            telnet.wait_until_ended()
        assert board.boots() == ["app"]


def test_a_client_that_negotiates_nothing_gets_the_boards_bytes(tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": "heartbeat_s=0"}) as lab:
        board = lab.boards["desk"]
        board.wait_for_app()
        with socket.create_connection(("127.0.0.1", board.tcp_port), timeout=20) as client:
            client.sendall(b"\rversion\r\n")
            said = b""
            while b"simulated app" not in said:
                said += client.recv(4096)
        assert board.boots() == ["app"]
