"""A slice of `make reset-matrix`: the cells where a naive server fails most surely."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reset_matrix import Cell, run_cell
from tests.support.lab import Lab


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "cell",
    [Cell(0.05, "", 0.1), Cell(0.1, "?ign_set_control", 10), Cell(0.02, "", 1)],
    ids=str,
)
def test_first_reset_over_a_slow_network_enters_the_bootloader(tmp_path: Path, cell: Cell) -> None:
    parameters = f"en_rise_ms={cell.en_rise_ms}"
    with Lab(tmp_path, {"one": parameters, "two": parameters}) as lab:
        for run in run_cell(cell, list(lab.boards.values()), tmp_path):
            assert run.first_boot == "download"
            assert run.has_connected, run.said
