"""The real esptool on boards without a UART bridge, over a network, as if it were a local port."""

from pathlib import Path

import pytest

from tests.reset_matrix import SLOW_LINK_CFG
from tests.support.delay_proxy import DelayProxy
from tests.support.lab import Lab
from tests.support.processes import run_tool

LIMIT_S = 120.0

COMMAND = ("--no-stub", "read-mac")

#: Each board with esptool's options.
BOARDS = [
    ("esp32c3", "", ()),
    ("esp32c3", "", ("--before", "usb-reset")),
    ("esp32c3", "reenumerates=1", ()),
    ("esp32s2", "", ()),
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
