"""A slice of `make reset-matrix`: the cells where a naive server fails most surely."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lab import Lab
from tests.tools.reset_matrix import BOARDS, TOOLS, Network, run_cell


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("board", "tool", "network"),
    [
        ("ESP32, EN rises in 0.1 ms", "esptool 5", Network(0.05, "")),
        ("ESP32, EN rises in 10 ms", "esptool 5", Network(0.1, "?ign_set_control")),
        ("ESP8266", "esptool 5", Network(0.02, "")),
        ("ESP32-C3, USB-Serial/JTAG", "esptool 5", Network(0.05, "")),
        ("ESP32-C3, USB-Serial/JTAG", "esptool 5 --before usb-reset", Network(0.02, "")),
        ("ESP32-C3, USB-Serial/JTAG", "pyserial, opened and closed twice", Network(0.05, "")),
        ("ESP32-S2, USB-OTG", "esptool 5", Network(0.02, "")),
        ("ESP32, EN rises in 1 ms", "mpremote, connected and disconnected", Network(0.05, "")),
    ],
    ids=str,
)
def test_board_does_at_once_what_was_meant_over_a_slow_network(
    tmp_path: Path, board: str, tool: str, network: Network
) -> None:
    (kind,) = [kind for kind in BOARDS if kind.label == board]
    (used,) = [
        used for used in TOOLS if used.label == tool and (not used.only or kind.chip in used.only)
    ]
    boards = {"one": kind.parameters, "two": kind.parameters}
    with Lab(tmp_path, boards, chip=kind.chip) as lab:
        for run in run_cell(used, list(lab.boards.values()), network, tmp_path):
            assert run.landed, run
            assert not run.complaint
