"""The real esptool on boards without a UART bridge, over a network, as if it were a local port."""

import time
from pathlib import Path

import pytest
import serial

from tests.support.delay_proxy import DelayProxy
from tests.support.lab import Lab
from tests.support.processes import run_tool
from tests.tools.reset_matrix import SLOW_LINK_CFG

LIMIT_S = 120.0

COMMAND = ("--no-stub", "read-mac")

#: Each board with esptool's options.
BOARDS = [
    ("esp32c3", "", ()),
    ("esp32c3", "", ("--before", "usb-reset")),
    ("esp32c3", "reenumerates=1", ()),
    ("esp32s2", "", ()),
    ("esp32s2", "", ("--before", "usb-reset")),
]


@pytest.mark.parametrize(("chip", "parameters", "options"), BOARDS)
@pytest.mark.parametrize("delay_s", [0.0, 0.1])
def test_esptool_enters_the_bootloader_at_the_first_try(
    tmp_path: Path, chip: str, parameters: str, options: tuple[str, ...], delay_s: float
) -> None:
    (tmp_path / "esptool.cfg").write_text(SLOW_LINK_CFG)
    with Lab(tmp_path, {"board": parameters}, chip=chip) as lab:
        board = lab.boards["board"]
        board.wait_for_app()
        boots = len(board.boots())
        with DelayProxy(board.tcp_port, delay_s) as proxy:
            done = run_tool(
                ["esptool", "--port", f"rfc2217://127.0.0.1:{proxy.port}", *options, *COMMAND],
                LIMIT_S,
                env={"ESPTOOL_CFGFILE": str(tmp_path / "esptool.cfg")},
            )
        assert done.returncode == 0, done.stdout + done.stderr
        assert board.boots()[boots : boots + 1] == ["download"]


#: Each reset makes the board leave the bus for longer than its client needs to leave.
LEAVES_THE_BUS = "reenumerates=1&reenumerate_s=2.5"


@pytest.mark.parametrize("protocol", ["rfc2217", "raw"])
def test_a_client_that_goes_while_its_board_is_away_leaves_it_in_its_app(
    tmp_path: Path, protocol: str
) -> None:
    keys = {"protocol": protocol}
    if protocol == "raw":
        keys |= {"on_connect": "bootloader", "on_disconnect": "reset"}
    with Lab(tmp_path, {"board": LEAVES_THE_BUS}, chip="esp32c3", keys=keys) as lab:
        board = lab.boards["board"]
        board.wait_for_app()
        url = board.socket_url if protocol == "raw" else board.url
        with serial.serial_for_url(url, 115200, timeout=20) as client:
            if protocol == "rfc2217":  # up to where IO0 is low; the end is never sent
                client.dtr, client.rts = False, True
                client.rts = True
                time.sleep(0.1)
                client.dtr, client.rts = True, False
            assert board.wait_for_boots(2) == ["app", "download"]
        assert board.wait_for_boots(3) == ["app", "download", "app"]
