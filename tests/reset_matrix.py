"""Does the first reset of each run land where the client meant? Every tool over slow networks.

`make reset-matrix` runs it all and writes docs/reset-matrix.md; `make test` runs a slice. Each run
is the real esptool against the real service through a proxy that delays; the board's own log
says what its first reset led to.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.support.delay_proxy import DelayProxy
from tests.support.lab import Lab, LabBoard
from tests.support.processes import run_tool

DELAYS_S = (0.0, 0.02, 0.05, 0.1, 0.25)
EN_RISES_MS = (0.1, 1.0, 10.0)
QUERIES = ("", "?ign_set_control")

#: Of the delay, added at random to each chunk.
JITTER = 0.2

#: esptool waits 0.1 s for each answer while it synchronises: too little from 50 ms each way on,
#: over any server. What users of slow links put into their esptool.cfg.
SLOW_LINK_CFG = "[esptool]\nsync_timeout = 3\ntimeout = 10\n"

#: pyserial's client waits for each setting, ten at each change of its timeout: at 250 ms each
#: way a command takes minutes.
_RUN_LIMIT_S = 900

DOCUMENT = Path(__file__).parents[1] / "docs" / "reset-matrix.md"


@dataclass(frozen=True)
class Cell:
    """One combination of network, client option and board."""

    delay_s: float
    query: str
    en_rise_ms: float


@dataclass(frozen=True)
class Run:
    """How one run ended."""

    first_boot: object  # "download", "app", or None if nothing was reset
    has_connected: bool
    said: str


def run_esptool(board: LabBoard, cell: Cell, folder: Path, seed: int) -> Run:
    """`esptool --no-stub read-mac` on a board through a slow network."""
    config = folder / f"{board.name}-esptool.cfg"
    config.write_text(SLOW_LINK_CFG)
    board.wait_for_app()
    boots_before = len(board.boots())
    with DelayProxy(board.tcp_port, cell.delay_s, cell.delay_s * JITTER, seed) as proxy:
        done = run_tool(
            [
                *(sys.executable, "-m", "esptool", "--port"),
                f"rfc2217://127.0.0.1:{proxy.port}{cell.query}",
                *("--no-stub", "read-mac"),
            ],
            timeout_s=_RUN_LIMIT_S,
            env={"ESPTOOL_CFGFILE": str(config)},
        )
    boots = board.boots()[boots_before:]
    return Run(boots[0] if boots else None, done.returncode == 0, done.stdout + done.stderr)


def run_cell(cell: Cell, boards: list[LabBoard], folder: Path) -> list[Run]:
    """One run on each board, all at the same time."""
    with ThreadPoolExecutor(len(boards)) as pool:
        return list(
            pool.map(
                lambda numbered: run_esptool(numbered[1], cell, folder, seed=numbered[0]),
                enumerate(boards),
            )
        )


def run_matrix(runs_per_cell: int) -> Iterator[tuple[Cell, list[Run]]]:
    """Every cell in turn, each with its runs."""
    for en_rise_ms in EN_RISES_MS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            parameters = f"en_rise_ms={en_rise_ms}"
            wanted = {f"board{number}": parameters for number in range(runs_per_cell)}
            with Lab(folder, wanted) as lab:
                for delay_s, query in itertools.product(DELAYS_S, QUERIES):
                    cell = Cell(delay_s, query, en_rise_ms)
                    yield cell, run_cell(cell, list(lab.boards.values()), folder)


def _row(cell: Cell, runs: list[Run]) -> str:
    entered = sum(run.first_boot == "download" for run in runs)
    connected = sum(run.has_connected for run in runs)
    return (
        f"| {cell.delay_s * 1000:g} | {cell.query or 'none'} | {cell.en_rise_ms:g} "
        f"| {entered} of {len(runs)} | {connected} of {len(runs)} |"
    )


_HEAD = """\
# Reset matrix

Made by `make reset-matrix`: the real esptool (`--no-stub read-mac`) through the gateway, with a
proxy that delays each way by what the first column says and up to {jitter:.0%} more at random, on
simulated ESP32 boards. "first reset" counts the runs whose first reset led to the bootloader, by
the board's own log; "connected" those that esptool ended successfully. esptool's `sync_timeout`
is raised to 3 s, as users of slow links have to.

| delay each way, ms | client option | EN rise, ms | first reset | connected |
|---|---|---|---|---|
"""


def main() -> int:
    """Run the matrix; exit code 1 if any run missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="runs per cell")
    runs_per_cell = parser.parse_args().runs
    rows = []
    has_missed = False
    for cell, runs in run_matrix(runs_per_cell):
        rows.append(_row(cell, runs))
        print(rows[-1], flush=True)
        for run in runs:
            if run.first_boot != "download" or not run.has_connected:
                has_missed = True
                print(run.said, file=sys.stderr)
    DOCUMENT.write_text(_HEAD.format(jitter=JITTER) + "\n".join(rows) + "\n")
    return int(has_missed)


if __name__ == "__main__":
    sys.exit(main())
