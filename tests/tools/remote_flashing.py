"""Measure flashing by every way to a board over networks of several delays, and write the table.

`make remote-flashing REMOTE_FLASHING_ARGS="..."` measures what is missing, then writes
docs/remote-flashing.md:

    --delays 0      only these delays (ms each way)
    --ways gateway  only ways with this in their name
    --again         measure again what has been measured
    --at-once 4     so many cells that wait for the network at a time

Each cell is kept in `.remote-flashing.json` once it is measured, so a stopped run is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.gateway_client import ROOT
from tests.support.shim import Shim, build_shim
from tests.tools.benchmarks.__main__ import machine
from tests.tools.benchmarks.report import replaced
from tests.tools.flashing_ways import (
    COMMANDS,
    LOCAL,
    ON_GATEWAY,
    SIZE_BYTES,
    WAYS,
    Reached,
    Way,
    reached,
)

DOCUMENT = ROOT / "docs" / "remote-flashing.md"
RESULTS = ROOT / ".remote-flashing.json"

BAUDRATES = (921600, 2_000_000)
DELAYS_MS = (0, 20, 50, 100)

#: A command that takes longer is of no use to anybody.
LIMIT_S = 600.0

BEGIN = "<!-- make remote-flashing writes from here -->"

#: Of a command behind one that has failed: it would fail too, or have nothing to read.
NOT_TRIED = "not tried"

#: What a round also knows: how many cells were measured at once, and when esptool was started on
#: the gateway, in seconds since the command was, which is when the images were there.
AT_ONCE, UPLOADED = "at once", "uploaded"

_HEAD = (
    "| each way | way | flash-id, s | write 1 MB, s | read 1 MB, s |",
    "|---|---|---|---|---|",
)

#: What came of one round of a cell: of each command seconds, or why there are none.
Round = dict[str, str]


@dataclass(frozen=True)
class Cell:
    """A row of a table."""

    way: Way
    baudrate: int
    delay_ms: int

    @property
    def key(self) -> str:
        """Under which it is kept."""
        return f"{self.way.name} {self.baudrate} {self.delay_ms}"

    @property
    def exists(self) -> bool:
        """Nothing local is far away, and settings for slow links are for these."""
        if self.delay_ms:
            return not self.way.is_local and not self.way.is_only_near
        return not self.way.is_for_slow_links

    @property
    def is_alone(self) -> bool:
        """Whether nothing else may be measured meanwhile: it is not the network that it waits for.

        On the gateway it is the board's, however far away who asked for it is.
        """
        return not self.delay_ms or self.way.is_on_gateway


@dataclass
class Results:
    """What has been measured so far."""

    machine: str = ""
    cells: dict[str, list[Round]] = field(default_factory=dict)

    def rounds(self, cell: Cell) -> list[Round]:
        """Those of a cell."""
        return self.cells.get(cell.key, [])

    def median(self, cell: Cell, name: str) -> float | None:
        """None if there is none, or not of each round."""
        seconds = [_number(each.get(name, "")) for each in self.rounds(cell)]
        known = [each for each in seconds if each is not None]
        return statistics.median(known) if known and len(known) == len(seconds) else None

    def shown(self, cell: Cell, name: str) -> str:
        """The median, or what has gone wrong in a round, or "-" if there is no such command."""
        if (median := self.median(cell, name)) is not None:
            return f"{median:.1f}"
        texts = [each[name] for each in self.rounds(cell) if name in each]
        return next((text for text in texts if _number(text) is None), "-")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.remote_flashing")
    parser.add_argument("--delays", default="", help="ms each way, with commas")
    parser.add_argument("--bauds", default="", help="with commas")
    parser.add_argument("--ways", default="", help="part of a way's name")
    parser.add_argument("--again", action="store_true", help="what has been measured, too")
    parser.add_argument("--at-once", type=int, default=1, help="cells that wait for the network")
    parser.add_argument("--write-only", action="store_true", help="the document, nothing measured")
    arguments = parser.parse_args()
    if arguments.at_once < 1:
        parser.error("--at-once: at least 1")
    delays = [int(each) for each in arguments.delays.split(",") if each] or DELAYS_MS
    bauds = [int(each) for each in arguments.bauds.split(",") if each] or BAUDRATES
    results = Results(**json.loads(RESULTS.read_text())) if RESULTS.exists() else Results()
    if not arguments.write_only:
        ways = [way for way in WAYS if arguments.ways in way.name]
        cells = [Cell(way, baud, delay) for delay in delays for baud in bauds for way in ways]
        if arguments.again:
            for cell in cells:
                results.cells.pop(cell.key, None)
        measure(cells, results, at_once=arguments.at_once)
    DOCUMENT.write_text(replaced(DOCUMENT.read_text(), report(results), BEGIN))
    print(report(results))
    return 0


def missing_rounds(cells: Sequence[Cell], results: Results) -> Iterator[Cell]:
    """What is to be measured: cells that are compared come in turn, not each as often in a row."""
    for number in range(max(way.rounds for way in WAYS)):
        for cell in cells:
            if cell.exists and len(results.rounds(cell)) <= number < cell.way.rounds:
                yield cell


def measure(cells: Sequence[Cell], results: Results, *, at_once: int) -> None:
    """Measure the cells that are missing, keeping each as soon as it is known."""
    results.machine = machine()
    missing = list(missing_rounds(cells, results))
    with tempfile.TemporaryDirectory() as name:
        measuring = _Measuring(results, Path(name), build_shim(Path(name)).library)
        for cell in missing:
            if cell.is_alone:
                measuring.round_of(cell, 1)
        side_by_side = [cell for cell in missing if not cell.is_alone]
        with ThreadPoolExecutor(at_once) as pool:
            try:
                running = [pool.submit(measuring.round_of, cell, at_once) for cell in side_by_side]
                for each in as_completed(running):
                    each.result()
            except KeyboardInterrupt:
                # What is under way is interrupted by it too, and has not failed.
                measuring.is_interrupted = True
                raise
            finally:
                pool.shutdown(cancel_futures=True)


class _Measuring:
    """Rounds of cells; several threads may have one each measured."""

    def __init__(self, results: Results, folder: Path, shim_library: Path) -> None:
        self.is_interrupted = False
        self._results = results
        self._folder = folder
        self._shim_library = shim_library
        self._lock = threading.Lock()

    def round_of(self, cell: Cell, at_once: int) -> None:
        """Measure it once more."""
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        # Its files tell of one board only.
        measured = one_round(cell, folder, Shim(self._shim_library, folder))
        measured[AT_ONCE] = str(at_once)
        with self._lock:
            if self.is_interrupted:
                return
            self._results.cells.setdefault(cell.key, []).append(measured)
            content = {"machine": self._results.machine, "cells": self._results.cells}
            RESULTS.write_text(json.dumps(content, indent=1))
            print(f"{cell.key}: {measured}", file=sys.stderr, flush=True)


def one_round(cell: Cell, folder: Path, shim: Shim) -> Round:
    """Seconds of each command, or why there are none."""
    if reason := cell.way.missing():
        return dict.fromkeys(cell.way.commands, reason)
    with reached(cell.way, cell.delay_ms, folder, shim) as board:
        return run_all(board, cell.baudrate, folder)


def run_all(board: Reached, baudrate: int, folder: Path) -> Round:
    """One command after the other, until one fails."""
    image, back = folder / "image.bin", folder / "back.bin"
    image.write_bytes(random.Random(0).randbytes(SIZE_BYTES))
    measured: Round = {}
    has_failed = False
    for name, command in board.commands(baudrate, image, back).items():
        if has_failed:
            measured[name] = NOT_TRIED
            continue
        measured[name], started_s = run(command, board.env)
        if started_s is not None:
            measured[UPLOADED] = f"{started_s:.2f}"
        has_failed = _number(measured[name]) is None
    if _number(measured.get("read", "")) is not None and back.read_bytes() != image.read_bytes():
        measured["read"] = "wrong data"
    return measured


def run(command: Sequence[str], env: Mapping[str, str]) -> tuple[str, float | None]:
    """Run it; how many seconds it took, or how it failed, and when the gateway started esptool."""
    begin_s = time.monotonic()
    started_s = None
    said: list[str] = []
    with subprocess.Popen(
        command,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        try:
            for line in process.stdout:
                said.append(line)
                if '"event": "started"' in line:
                    started_s = time.monotonic() - begin_s
            code = process.wait()
        finally:
            limit.cancel()
            process.kill()
    took_s = time.monotonic() - begin_s
    if code == 0:
        return f"{took_s:.1f}", started_s
    if took_s >= LIMIT_S:
        return f"> {LIMIT_S:g}", started_s
    print("".join(said)[-600:], file=sys.stderr)
    return "fails", started_s


def report(results: Results) -> str:
    """How it was measured, a table for each baud rate, and what the gateway's esptool adds."""
    parts = [" ".join([results.machine, *_how_measured(results)]).strip()]
    for baudrate in BAUDRATES:
        lines = []
        for cell in _known(results, baudrate):
            shown = " | ".join(results.shown(cell, command) for command in COMMANDS)
            each_way = "any" if cell.way.is_local else f"{cell.delay_ms} ms"
            lines.append(f"| {each_way} | {cell.way.name} | {shown} |")
        if lines:
            parts.append("\n".join([f"### {baudrate} baud", "", *_HEAD, *lines]))
    return "\n\n".join([*parts, *_against_local(results)])


def _known(results: Results, baudrate: int) -> Iterable[Cell]:
    cells = (Cell(way, baudrate, delay_ms) for delay_ms in DELAYS_MS for way in WAYS)
    return [cell for cell in cells if results.rounds(cell)]


def _how_measured(results: Results) -> Iterator[str]:
    known = [cell for baudrate in BAUDRATES for cell in _known(results, baudrate)]
    repeated = [cell for cell in known if cell.way.rounds > 1]
    if repeated:
        least = min(len(results.rounds(cell)) for cell in repeated)
        yield (
            f"`{LOCAL.name}` and `{ON_GATEWAY.name}` are medians of {least} runs, taken in turn;"
            " all else ran once."
        )
    rounds = [each for cell in known for each in results.rounds(cell)]
    at_once = max((int(each[AT_ONCE]) for each in rounds), default=1)
    if at_once > 1:
        yield (
            f"Rows with a delay were measured up to {at_once} at once, but for"
            f" `{ON_GATEWAY.name}`; all else alone."
        )
    elif rounds:
        yield "One row was measured after the other."


def _against_local(results: Results) -> Iterator[str]:
    """What a write on the gateway takes besides the upload, against one at the board."""
    lines = []
    for baudrate in BAUDRATES:
        local_s = results.median(Cell(LOCAL, baudrate, 0), "write")
        for delay_ms in DELAYS_MS:
            cell = Cell(ON_GATEWAY, baudrate, delay_ms)
            write_s, upload_s = results.median(cell, "write"), results.median(cell, UPLOADED)
            if local_s is not None and write_s is not None and upload_s is not None:
                more = 100 * ((write_s - upload_s) / local_s - 1)
                lines.append(
                    f"| {baudrate} | {delay_ms} ms | {local_s:.1f} | {write_s:.1f}"
                    f" | {upload_s:.1f} | {more:+.1f} % |"
                )
    if lines:
        yield "\n".join(
            [
                f"### `{ON_GATEWAY.name}` against `{LOCAL.name}`",
                "",
                "| baud rate | each way | local, s | on this gateway, s"
                " | of that before esptool starts, s | the rest against local |",
                "|---|---|---|---|---|---|",
                *lines,
            ]
        )


if __name__ == "__main__":
    sys.exit(main())
