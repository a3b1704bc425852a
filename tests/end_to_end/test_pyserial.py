"""pyserial's own rfc2217:// client against the real service."""

from __future__ import annotations

from pathlib import Path

import pytest
import serial

from tests.support.lab import Lab

SETTINGS = [
    *(("baudrate", value) for value in (9600, 74880, 460800, 921600, 2_000_000, 115200)),
    ("bytesize", 5),
    *(("stopbits", value) for value in (1.5, 1)),  # 1.5 only with 5 data bits, as UARTs have it
    *(("bytesize", value) for value in (6, 7, 8)),
    *(("parity", value) for value in "EOMSN"),
    *(("stopbits", value) for value in (2, 1)),
    *(("rtscts", value) for value in (True, False)),
    *(("xonxoff", value) for value in (True, False)),
    *(("break_condition", value) for value in (True, False)),
    *(("dtr", value) for value in (False, True, False)),
    *(("rts", value) for value in (False, True, False)),
]


@pytest.mark.parametrize("query", ["", "?ign_set_control", "?poll_modem"])
def test_client_opens_sets_every_parameter_and_closes_without_a_warning(
    tmp_path: Path, query: str
) -> None:
    with Lab(tmp_path, {"desk": ""}) as lab:
        with serial.serial_for_url(lab.boards["desk"].url + query, timeout=5) as client:
            for name, value in SETTINGS:
                setattr(client, name, value)
                assert getattr(client, name) == value
            assert (client.cts, client.dsr, client.ri, client.cd) == (False,) * 4
            client.reset_input_buffer()
            client.reset_output_buffer()
            client.write(b"version\r")
            assert client.read_until(b"esp> ").strip()
        log = lab.service.log
        assert not [line for line in log if '"level": "warning"' in line or "Traceback" in line]


@pytest.mark.parametrize("query", ["", "?ign_set_control"])
@pytest.mark.parametrize("en_rise_ms", [0.1, 1, 10])
def test_opening_and_closing_never_resets_the_board(
    tmp_path: Path, query: str, en_rise_ms: float
) -> None:
    with Lab(tmp_path, {"desk": f"en_rise_ms={en_rise_ms}"}) as lab:
        board = lab.boards["desk"]
        board.wait_for_app()
        for _ in range(3):
            with serial.serial_for_url(board.url + query, timeout=5) as client:
                client.write(b"version\r")
                assert client.read_until(b"esp> ").strip()
        assert board.boots() == ["app"]


def test_binary_data_comes_back_unchanged_both_ways(tmp_path: Path) -> None:
    every_byte = bytes(range(256)) * 4
    with Lab(tmp_path, {"desk": "heartbeat_s=0"}) as lab:
        board = lab.boards["desk"]
        board.wait_for_app()
        with serial.serial_for_url(board.url, baudrate=115200, timeout=5) as client:
            client.write(b"bytes 4096\r")
            client.read_until(b"\n")
            pattern = client.read(4096)
            assert len(pattern) == 4096
            assert len(set(pattern)) == 256
            client.write(every_byte.replace(b"\r", b"").replace(b"\n", b""))
            assert client.read(64)


@pytest.mark.timeout(60)
def test_second_client_is_told_who_has_the_port_and_disturbs_nobody(tmp_path: Path) -> None:
    with Lab(tmp_path, {"desk": ""}) as lab:
        board = lab.boards["desk"]
        board.wait_for_app()
        with serial.serial_for_url(board.url, timeout=5) as first:
            with serial.serial_for_url(f"socket://127.0.0.1:{board.tcp_port}", timeout=5) as second:
                assert b"desk: in use by 127.0.0.1:" in second.read_until(b"\n")
            first.write(b"version\r")
            assert first.read_until(b"esp> ").strip()
