"""ser2net 4 as the client: it connects out to the real service and passes its own clients on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import serial

from tests.end_to_end.conftest import BoardOf
from tests.support.lab import LabBoard, exchange
from tests.support.peers import program
from tests.support.processes import BackgroundProcess, free_tcp_port
from tests.support.shim import build_shim


@contextlib.contextmanager
def ser2net(folder: Path, board: LabBoard, accepter: str) -> Iterator[int]:
    """ser2net between its own clients, which use the accepter, and the board; gives its port."""
    command = program("ser2net", "ser2net")
    tcp_port = free_tcp_port()
    config = folder / "ser2net.yaml"
    config.write_text(
        "%YAML 1.1\n---\nconnection: &desk\n"
        f"  accepter: {accepter},127.0.0.1,{tcp_port}\n"
        f"  connector: telnet(rfc2217),tcp,127.0.0.1,{board.tcp_port}\n"
    )
    process = BackgroundProcess([command, "-n", "-d", "-c", config, "-P", folder / "ser2net.pid"])
    process.start()
    try:
        process.wait_until_listening(tcp_port)
        yield tcp_port
    finally:
        process.kill()  # told to end, it ends with 1


def test_settings_pass_through_ser2net_to_the_board(board_of: BoardOf, tmp_path: Path) -> None:
    shim = build_shim(tmp_path)
    board = board_of("heartbeat_s=0", env=shim.env())
    with ser2net(tmp_path, board, "telnet(rfc2217),tcp") as tcp_port:
        url = f"rfc2217://127.0.0.1:{tcp_port}"
        with serial.serial_for_url(url, baudrate=115200, timeout=20) as client:
            board.wait_for_state(dtr=True, rts=True)
            exchange(client)
            # pyserial waits for each answer, so ser2net has got ours.
            client.bytesize = 7
            client.parity = serial.PARITY_EVEN
            client.stopbits = serial.STOPBITS_TWO
            client.baudrate = 460800
            board.wait_for_state(host_baudrate=460800)
            client.break_condition = True
            shim.wait_for_call("TIOCSBRK")
            client.break_condition = False
            shim.wait_for_call("TIOCCBRK")
            client.rts = False
            board.wait_for_state(dtr=True, rts=False)
            client.dtr = False
            board.wait_for_state(dtr=False, rts=False)
        board.wait_for_state(host_baudrate=115200)
    assert board.boots() == ["app"]
    assert not board.warnings()


def test_a_plain_tcp_client_of_ser2net_gets_the_bytes_unchanged(
    board_of: BoardOf, tmp_path: Path
) -> None:
    board = board_of("heartbeat_s=0")
    with ser2net(tmp_path, board, "tcp") as tcp_port:
        for _ in range(2):
            url = f"socket://127.0.0.1:{tcp_port}"
            with serial.serial_for_url(url, timeout=20) as client:
                client.write(b"\r")
                client.read_until(b"esp> ")
                exchange(client)
                client.write(b"\r")
                client.read_until(b"esp> ")
    assert board.boots() == ["app"]
