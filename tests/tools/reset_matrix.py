"""Does a board do what its user meant, at the first attempt? Every tool, over slow networks.

`make reset-matrix` runs it all and writes docs/reset-matrix.md; `make test` runs a slice. Each run
is a real tool against the real service through a proxy that delays; the board's own log says
what happened to the board.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import serial

from tests.support.delay_proxy import DelayProxy
from tests.support.lab import Lab, LabBoard
from tests.support.processes import run_tool
from tests.support.terminal import Terminal

DELAYS_S = (0.0, 0.05, 0.15, 0.25)
QUERIES = ("", "?ign_set_control")

#: Of the delay, added at random to each chunk.
JITTER = 0.2

#: esptool waits 0.1 s for each answer while it synchronises: too little from 50 ms each way on,
#: over any server. What users of slow links put into their esptool.cfg.
SLOW_LINK_CFG = "[esptool]\nsync_timeout = 3\ntimeout = 10\n"

#: pyserial's client waits for each setting, ten at each change of its timeout: at 250 ms each
#: way a command takes minutes.
_RUN_LIMIT_S = 900

#: A key that was lost is not waited for as long as that.
_KEY_LIMIT_S = 120

#: A client that has sent nothing for so long, and four times the delay, has opened its port: until
#: then it waits for one answer after the other.
_QUIET_S = 2.0
_LOOK_S = 0.05

DOCUMENT = Path(__file__).parents[2] / "docs" / "reset-matrix.md"


@dataclass(frozen=True)
class Board:
    """A kind of simulated board."""

    label: str
    chip: str
    parameters: str = ""


BOARDS = (
    Board("ESP32, EN rises in 0.1 ms", "esp32", "en_rise_ms=0.1"),
    Board("ESP32, EN rises in 1 ms", "esp32", "en_rise_ms=1"),
    Board("ESP32, EN rises in 10 ms", "esp32", "en_rise_ms=10"),
    Board("ESP8266", "esp8266"),
    Board("ESP32-C3, USB-Serial/JTAG", "esp32c3"),
    Board("ESP32-S2, USB-OTG", "esp32s2"),
)


@dataclass(frozen=True)
class Place:
    """Where one run happens."""

    board: LabBoard
    url: str  # through the slow network
    folder: Path
    delay_s: float  # each way
    proxy: DelayProxy


@dataclass(frozen=True)
class Tool:
    """A tool, what it is made to do, and what the board has to do then.

    `use` returns what it has said against its user, empty if it has ended well. `meant` is how
    the board's log of boots has to begin.
    """

    label: str
    use: Callable[[Place], str]
    meant: tuple[str, ...]
    runs: int
    only: tuple[str, ...] = ()  # chips; all if empty


def _esptool(*arguments: str, executable: tuple[str, ...] = ()) -> Callable[[Place], str]:
    def use(place: Place) -> str:
        config = place.folder / f"{place.board.name}-esptool.cfg"
        config.write_text(SLOW_LINK_CFG)
        tool = executable or (sys.executable, "-m", "esptool")
        done = run_tool(
            [*tool, "--port", place.url, *arguments],
            timeout_s=_RUN_LIMIT_S,
            env={"ESPTOOL_CFGFILE": str(config)},
        )
        return "" if done.returncode == 0 else done.stdout + done.stderr

    return use


_CTRL_T, _CTRL_R, _CTRL_P = b"\x14", b"\x12", b"\x10"


def _monitor_keys(*keys: bytes) -> Callable[[Place], str]:
    """Ctrl-T Ctrl-R resets the board, Ctrl-T Ctrl-P resets it into its bootloader."""
    return lambda place: _press_in_monitor(place, keys)


def _press_in_monitor(place: Place, keys: tuple[bytes, ...]) -> str:
    boots = len(place.board.boots())
    with Terminal(_monitor(place), limit_s=_RUN_LIMIT_S) as monitor:
        monitor.wait_until_it_reads_keys()
        # It drops keys until its port is open, and boards on USB-OTG say nothing meanwhile.
        while place.proxy.quiet_s() < _QUIET_S + 4 * place.delay_s:
            time.sleep(_LOOK_S)
        for key in keys:
            monitor.type(_CTRL_T + key)
            boots += 1
            place.board.wait_for_boots(boots, limit_s=_KEY_LIMIT_S)
        monitor.type(b"\x1d")
        return "" if monitor.wait_until_ended() == 0 else monitor.screen.decode()


def _monitor(place: Place) -> list[str]:
    return [sys.executable, "-m", "esp_idf_monitor", "--no-reset", "--port", place.url]


def _attach(*command: str, shown: bytes) -> Callable[[Place], str]:
    """Open a terminal program on the board, and quit it with Ctrl-]."""

    def use(place: Place) -> str:
        arguments = [place.url if word == "URL" else word for word in command]
        with Terminal([sys.executable, "-m", *arguments], limit_s=_RUN_LIMIT_S) as terminal:
            terminal.wait_for(shown)
            terminal.wait_until_it_reads_keys()
            terminal.type(b"\x1d")
            terminal.wait_until_ended()
        return ""

    return use


def _open_and_close(place: Place) -> str:
    for _ in range(2):
        with serial.serial_for_url(place.url, timeout=_RUN_LIMIT_S):
            pass
    return ""


def _mpremote(place: Place) -> str:
    # Something else has to follow: it would open its prompt, which no rfc2217:// URL serves.
    command = [sys.executable, "-m", "mpremote", "connect", place.url, "disconnect"]
    command += ["connect", "list"]
    done = run_tool(command, timeout_s=_RUN_LIMIT_S)
    return "" if done.returncode == 0 else done.stdout + done.stderr


_READ_MAC = ("--no-stub", "read-mac")

_OTG_CHIPS = ("esp32s2",)
_BRIDGE_AND_JTAG_CHIPS = ("esp32", "esp8266", "esp32c3")

_ESPTOOL4 = (os.environ.get("ESPTOOL4", ""),)

TOOLS = (
    Tool("esptool 5", _esptool(*_READ_MAC), ("download",), 20),
    Tool(
        "esptool 4.8",
        _esptool("--no-stub", "read_mac", executable=_ESPTOOL4),
        ("download",),
        20,
    ),
    Tool(
        "esptool 5 --before usb-reset",
        _esptool("--before", "usb-reset", *_READ_MAC),
        ("download",),
        20,
        only=("esp32c3", "esp32s2"),
    ),
    Tool(
        "esp-idf-monitor's reset and bootloader keys",
        _monitor_keys(_CTRL_R, _CTRL_P),
        ("app", "download"),
        5,
        _BRIDGE_AND_JTAG_CHIPS,
    ),
    # Firmware on USB-OTG can't be reset by any line: there is nothing to be pressed for it.
    Tool("esp-idf-monitor's bootloader key", _monitor_keys(_CTRL_P), ("download",), 5, _OTG_CHIPS),
    Tool("pyserial, opened and closed twice", _open_and_close, (), 5),
    Tool(
        "miniterm, attached and left",
        _attach("serial.tools.miniterm", "--raw", "URL", "115200", shown=b"Miniterm on"),
        (),
        5,
    ),
    Tool("mpremote, connected and disconnected", _mpremote, (), 5),
)


@dataclass(frozen=True)
class Network:
    """How the client reaches the gateway, and with which option of pyserial's."""

    delay_s: float
    query: str


@dataclass(frozen=True)
class Run:
    """How one run ended."""

    boots: tuple[object, ...]
    meant: tuple[str, ...]
    complaint: str

    @property
    def landed(self) -> bool:
        """Whether the board did at once what was meant, and nothing if nothing was."""
        return self.boots[: len(self.meant) or None] == self.meant


def run_once(tool: Tool, board: LabBoard, network: Network, folder: Path, seed: int) -> Run:
    """One tool on one board."""
    board.wait_for_app()
    boots_before = len(board.boots())
    jitter_s = network.delay_s * JITTER
    with DelayProxy(board.tcp_port, network.delay_s, jitter_s, seed) as proxy:
        url = f"rfc2217://127.0.0.1:{proxy.port}{network.query}"
        try:
            complaint = tool.use(Place(board, url, folder, network.delay_s, proxy))
        except (pytest.fail.Exception, serial.SerialException) as error:
            complaint = str(error)
    return Run(tuple(board.boots()[boots_before:]), tool.meant, complaint)


def run_cell(tool: Tool, boards: list[LabBoard], network: Network, folder: Path) -> list[Run]:
    """One run on each board, all at the same time."""
    with ThreadPoolExecutor(len(boards)) as pool:
        runs = [
            pool.submit(run_once, tool, board, network, folder, seed)
            for seed, board in enumerate(boards)
        ]
        return [run.result() for run in runs]


def run_tool_on(board: Board, tool: Tool, most_runs: int) -> list[tuple[str, list[Run]]]:
    """All networks of one tool on one kind of board: a row of the table and its runs for each."""
    names = [f"board{number}" for number in range(min(tool.runs, most_runs))]
    rows = []
    for delay_s, query in itertools.product(DELAYS_S, QUERIES):
        network = Network(delay_s, query)
        with tempfile.TemporaryDirectory() as folder_name:
            folder = Path(folder_name)
            # New boards for each cell: one on USB-OTG stays in its bootloader.
            with Lab(folder, dict.fromkeys(names, board.parameters), chip=board.chip) as lab:
                runs = run_cell(tool, list(lab.boards.values()), network, folder)
        rows.append((_row(board, tool, network, runs), runs))
        print(rows[-1][0], flush=True)
    return rows


def run_matrix(only: str, most_runs: int, jobs: int) -> list[tuple[str, list[Run]]]:
    """Every row that has `only` in it, with its runs; `jobs` boards and tools at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        pending = [
            pool.submit(run_tool_on, board, tool, most_runs)
            for board, tool in itertools.product(BOARDS, TOOLS)
            if not tool.only or board.chip in tool.only
            if only in f"{board.label} | {tool.label}"
        ]
        return [row for done in pending for row in done.result()]


def _row(board: Board, tool: Tool, network: Network, runs: list[Run]) -> str:
    landed = sum(run.landed for run in runs)
    content = sum(not run.complaint for run in runs)
    return (
        f"| {board.label} | {tool.label} | {network.delay_s * 1000:g} | {network.query or 'none'} "
        f"| {landed} of {len(runs)} | {content} of {len(runs)} |"
    )


_HEAD = f"""\
# Reset matrix

Made by `make reset-matrix`: real tools through the gateway, with a proxy that delays each way by
what the third column says and up to {JITTER:.0%} more at random, on simulated boards. "meant"
counts the runs in which the board's own log says that it did at the first attempt what its user
meant (enter the bootloader; reset, then enter the bootloader; or nothing at all), "well" those
that the tool ended without a complaint. esptool runs `--no-stub read-mac`, with its
`sync_timeout` raised to 3 s, as users of slow links have to. Rows that are not there have not been
run since the table got its present form.

| board | tool | ms each way | client option | meant | well |
|---|---|---|---|---|---|
"""


def _write(rows: list[str]) -> None:
    """Put the rows into the document, in place of those of the same cells."""
    table = {_cell_of(row): row for row in DOCUMENT.read_text().splitlines() if row[:1] == "|"}
    table = {cell: row for cell, row in table.items() if cell in _ALL_CELLS}
    table |= {_cell_of(row): row for row in rows}
    in_order = sorted(table, key=_ALL_CELLS.index)
    DOCUMENT.write_text(_HEAD + "\n".join(table[cell] for cell in in_order) + "\n")


def _cell_of(row: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in row.split("|")[1:5])


_ALL_CELLS: list[tuple[str, ...]] = [
    (board.label, tool.label, f"{delay_s * 1000:g}", query or "none")
    for board, tool in itertools.product(BOARDS, TOOLS)
    for delay_s, query in itertools.product(DELAYS_S, QUERIES)
]


def main() -> int:
    """Run the matrix; exit code 1 if any run missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="at most, per cell")
    parser.add_argument("--jobs", type=int, default=4, help="boards and tools at a time")
    parser.add_argument("--only", default="", help="part of `BOARD | TOOL`: run only these rows")
    arguments = parser.parse_args()
    rows = run_matrix(arguments.only, arguments.runs, arguments.jobs)
    missed = [(row, run) for row, runs in rows for run in runs if run.complaint or not run.landed]
    for row, run in missed:
        print(f"{row}\nboots: {run.boots}\n{run.complaint}", file=sys.stderr)
    _write([row for row, _ in rows])
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
