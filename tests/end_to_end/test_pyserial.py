"""pyserial's own rfc2217:// client and the gateway's own gateway:// on the real service."""

from __future__ import annotations

from typing import Any

import pytest
import serial

from gateway.client.protocol_gateway import Serial
from tests.end_to_end.conftest import BoardOf
from tests.support.lab import LabBoard, exchange

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


def opened(board: LabBoard, scheme: str, timeout: float = 5, query: str = "") -> Any:
    """A port that is open, with the client of the scheme, whatever is installed here."""
    if scheme == "gateway":
        return Serial(board.url_for(scheme), baudrate=115200, timeout=timeout)
    url = board.url_for(scheme) + query
    return serial.serial_for_url(url, baudrate=115200, timeout=timeout)


@pytest.mark.parametrize("query", ["", "?ign_set_control", "?poll_modem"])
def test_client_opens_sets_every_parameter_and_closes_without_a_warning(
    board_of: BoardOf, query: str
) -> None:
    board = board_of()
    with opened(board, "rfc2217", query=query) as client:
        for name, value in SETTINGS:
            setattr(client, name, value)
            assert getattr(client, name) == value
        assert (client.cts, client.dsr, client.ri, client.cd) == (False,) * 4
        client.reset_input_buffer()
        client.reset_output_buffer()
        client.write(b"version\r")
        assert client.read_until(b"esp> ").strip()
    assert not board.warnings()


@pytest.mark.parametrize("query", ["", "?ign_set_control"])
@pytest.mark.parametrize("en_rise_ms", [0.1, 1, 10])
def test_opening_and_closing_never_resets_the_board(
    board_of: BoardOf, query: str, en_rise_ms: float
) -> None:
    board = board_of(f"en_rise_ms={en_rise_ms}")
    for _ in range(3):
        with opened(board, "rfc2217", query=query) as client:
            client.write(b"version\r")
            assert client.read_until(b"esp> ").strip()
    assert board.boots() == ["app"]


@pytest.mark.parametrize("scheme", ["rfc2217", "gateway"])
def test_bytes_of_all_values_pass_both_ways_unchanged(board_of: BoardOf, scheme: str) -> None:
    board = board_of("heartbeat_s=0")
    with opened(board, scheme, timeout=60) as client:
        exchange(client)
        assert (client.cts, client.dsr, client.ri, client.cd) == (False,) * 4
        client.flush()
        client.send_break(0.001)
    assert board.boots() == ["app"]


@pytest.mark.timeout(60)
def test_a_second_client_gets_the_reason_and_disturbs_nothing(board_of: BoardOf) -> None:
    board = board_of()
    with opened(board, "rfc2217") as first:
        with opened(board, "socket") as second:
            assert b"desk: in use by 127.0.0.1:" in second.read_until(b"\n")
        with pytest.raises(serial.SerialException, match="desk: in use by 127"):
            opened(board, "gateway")
        first.write(b"version\r")
        assert first.read_until(b"esp> ").strip()
        first.dtr = True
    board.service.wait_for_line('"event": "client_disconnected"')
    opened(board, "gateway").close()
    # Closing has waited for the server: the next one gets it.
    opened(board, "gateway").close()
