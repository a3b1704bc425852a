"""Tools on a port that replays: a flasher is not confused by it, a person sees the crash."""

from __future__ import annotations

import pytest
import serial

from tests.end_to_end.conftest import BoardOf
from tests.end_to_end.test_esptool import boots_of_one_command, esptool, esptool4
from tests.support.peers import program
from tests.support.terminal import Terminal

REPLAYS = {"replay": "true"}

#: What the app answers to `version`.
SAID = b"simulated app"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("major", [5, 4])
def test_esptool_is_not_confused_by_what_the_board_said_before(
    board_of: BoardOf, major: int
) -> None:
    tool = None if major == 5 else esptool4()
    read_mac = "read-mac" if major == 5 else "read_mac"
    board = board_of("heartbeat_s=0.01", keys=REPLAYS)
    assert "MAC:" in esptool(board, read_mac, tool=tool)
    assert board.wait_for_boots(3)[1:] == boots_of_one_command(major)


@pytest.mark.parametrize("protocol", ["rfc2217", "raw"])
def test_a_person_sees_what_the_board_said_while_nobody_was_there(
    board_of: BoardOf, protocol: str
) -> None:
    keys = REPLAYS | {"protocol": protocol}
    board = board_of("heartbeat_s=0", keys=keys)
    url = board.socket_url if protocol == "raw" else board.url
    with serial.serial_for_url(url, 115200, timeout=20) as client:
        client.write(b"\rversion\r")
        assert SAID in client.read_until(SAID)
    if protocol == "raw":
        command = [program("nc", "netcat-openbsd"), "127.0.0.1", str(board.tcp_port)]
    else:
        command = [program("telnet", "inetutils-telnet"), "127.0.0.1", str(board.tcp_port)]
    with Terminal(command) as terminal:
        terminal.wait_for(SAID)
    with serial.serial_for_url(url, 115200, timeout=20) as client:
        assert SAID in client.read_until(SAID)
        client.write(b"\rversion\r")
        assert SAID in client.read_until(SAID)
    assert board.boots() == ["app"]
