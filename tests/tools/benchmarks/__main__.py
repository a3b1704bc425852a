"""Measure all servers, interleaved, and write docs/performance.md."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.shim import build_shim
from tests.tools.benchmarks import targets
from tests.tools.benchmarks.report import Table, replaced
from tests.tools.benchmarks.rows import FULL, QUICK, Bench, Effort, LoadError, Row, rows
from tests.tools.benchmarks.servers import OURS, OURS_WITH_UVLOOP, SER2NET_TUNED, SERVERS, Server

DOCUMENT = Path(__file__).parents[3] / "docs" / "performance.md"
_REFERENCE = SER2NET_TUNED.name


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute; writes no document")
    parser.add_argument("--rounds", type=int, help="rounds to take the median of")
    parser.add_argument("--rows", default="", help="only rows whose name begins so; no document")
    parser.add_argument("--servers", default="", help="only servers whose name has this in it")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    prefixes = (arguments.rows,) if arguments.rows else effort.rows
    chosen = [row for row in rows(effort) if row.key.startswith(prefixes)]
    servers = [server for server in SERVERS if arguments.servers in server.name]
    rounds = arguments.rounds or effort.rounds
    before = machine()
    measure(chosen, servers, effort, rounds)
    measured = report(chosen, servers, rounds, before)
    print(measured)
    if not arguments.quick and not arguments.rows and not arguments.servers:
        DOCUMENT.write_text(replaced(DOCUMENT.read_text(), measured))
    return 0


def measure(chosen: Sequence[Row], servers: Sequence[Server], effort: Effort, rounds: int) -> None:
    """Every row on every server in turn, so that what else the machine does is felt by all."""
    present = []
    for server in servers:
        if reason := server.missing():
            for row in chosen:
                row.table.remarks[server.name] = reason
        else:
            present.append(server)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(build_shim(Path(name)), Path(name), effort)
        for number in range(rounds):
            for row in chosen:
                for server in present[number % len(present) :] + present[: number % len(present)]:
                    _measure_one(row, server, bench)


def _measure_one(row: Row, server: Server, bench: Bench) -> None:
    began = time.monotonic()
    try:
        row.table.add(server.name, row.measure(bench, server))
        outcome = ""
    except LoadError as error:
        row.table.remarks[server.name] = outcome = f"failed: {error}"
    seconds = time.monotonic() - began
    print(f"{seconds:5.1f} s  {row.key}: {server.name} {outcome}", file=sys.stderr, flush=True)


def report(
    chosen: Sequence[Row], servers: Sequence[Server], rounds: int, machine_before: str
) -> str:
    """What was measured, as the document's part."""
    names = [server.name for server in servers]
    tables: dict[str, Table] = {row.key: row.table for row in chosen}
    ours = [server.name for server in (OURS, OURS_WITH_UVLOOP)]
    parts = [
        f"Median (least to most) of {rounds} round{'s' if rounds > 1 else ''}, and the ratio to "
        f"“{_REFERENCE}” in the same run. {machine_before}",
        "## Targets\n\n" + targets.markdown(tables, ours, _REFERENCE),
        "## All that was measured",
        *(table.markdown(names, _REFERENCE) for table in tables.values()),
    ]
    return "\n\n".join(part.strip() for part in parts)


def machine() -> str:
    """The machine in words, and how busy it is."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model"}:
            model = value.strip()
    load = os.getloadavg()[0]
    return (
        f"Measured on {os.cpu_count()} cores of {model}, Linux {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}; "
        f"the machine's load average before was {load:.1f}."
    )


if __name__ == "__main__":
    sys.exit(main())
