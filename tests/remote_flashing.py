"""Measure esptool by every way to a board over networks of several delays, and write the table.

    python -m tests.remote_flashing                 what is missing, then docs/remote-flashing.md
    python -m tests.remote_flashing --delays 0      these delays only (ms each way)
    python -m tests.remote_flashing --ways gateway  ways whose name has this in it
    python -m tests.remote_flashing --again         measures anew what has been measured

Each cell is kept in `.remote-flashing.json` when it is measured, so that a run that was stopped
goes on where it was. The same simulated board, its UART at its real speed, is behind every server;
its lines are those of a circuit whose EN rises in 10 ms, so that servers that pass each line on by
itself have their chance.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.__main__ import machine
from tests.benchmarks.report import replaced
from tests.benchmarks.servers import ESP_SERVER, OURS, SER2NET_TUNED, RunningServer, Server
from tests.support.boards import RunningBoard
from tests.support.delay_proxy import DelayProxy
from tests.support.gateway_client import ROOT, client_env
from tests.support.shim import Shim, build_shim

DOCUMENT = ROOT / "docs" / "remote-flashing.md"
RESULTS = ROOT / ".remote-flashing.json"

BAUDRATES = (921600, 2_000_000)
DELAYS_MS = (0, 20, 50, 100)
SIZE_BYTES = 1024 * 1024

#: A command that takes longer is of no use to anybody.
LIMIT_S = 600.0

BEGIN = "<!-- make remote-flashing writes from here -->"

#: What docs/remote-flashing.md recommends for the plain client on slow links.
ESPTOOL_CFG = ROOT / "tests" / "esptool-slow-link.cfg"

Url = Callable[[int], str]


@dataclass(frozen=True)
class Way:
    """How esptool comes to the board: through which server, by which URL; None: the tty itself."""

    name: str
    server: Server | None
    scheme: str = ""
    query: str = ""
    env: tuple[tuple[str, str], ...] = ()
    is_for_slow_links: bool = False

    def missing(self) -> str:
        """What there is not, or ""."""
        return self.server.missing() if self.server else ""


WAYS = (
    Way("local", None),
    Way("`gateway://`, this gateway", OURS, "gateway"),
    Way("`rfc2217://`, this gateway", OURS, "rfc2217"),
    Way("the same with esptool.cfg", OURS, "rfc2217", "?timeout=10", (
        ("ESPTOOL_CFGFILE", str(ESPTOOL_CFG)),
    ), is_for_slow_links=True),
    Way("`rfc2217://`, esp_rfc2217_server", ESP_SERVER, "rfc2217", "?ign_set_control"),
    Way("`rfc2217://`, ser2net tuned", SER2NET_TUNED, "rfc2217"),
    Way("`gateway://`, esp_rfc2217_server", ESP_SERVER, "gateway"),
    Way("`gateway://`, ser2net tuned", SER2NET_TUNED, "gateway"),
)  # fmt: skip

#: Commands, in the order in which one board gets them.
COMMANDS = ("flash-id", "write", "read")

Results = dict[str, dict[str, str]]


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.remote_flashing")
    parser.add_argument("--delays", default="", help="ms each way, with commas")
    parser.add_argument("--bauds", default="", help="with commas")
    parser.add_argument("--ways", default="", help="part of a way's name")
    parser.add_argument("--again", action="store_true", help="what has been measured, too")
    parser.add_argument("--write-only", action="store_true", help="the document, nothing measured")
    arguments = parser.parse_args()
    delays = [int(each) for each in arguments.delays.split(",") if each] or DELAYS_MS
    bauds = [int(each) for each in arguments.bauds.split(",") if each] or BAUDRATES
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not arguments.write_only:
        cells = [
            (way, baud, delay)
            for delay in delays
            for baud in bauds
            for way in WAYS
            if arguments.ways in way.name
        ]
        measure(cells, results, again=arguments.again)
    DOCUMENT.write_text(replaced(DOCUMENT.read_text(), report(results), BEGIN))
    print(report(results))
    return 0


def key_of(way: Way, baudrate: int, delay_ms: int) -> str:
    """Under which a cell is kept."""
    return f"{way.name} {baudrate} {delay_ms}"


def measure(cells: Iterable[tuple[Way, int, int]], results: Results, *, again: bool) -> None:
    """Measure the cells that are missing, keeping each as soon as it is known."""
    results["machine"] = {"": machine()}
    with tempfile.TemporaryDirectory() as name:
        shim = build_shim(Path(name))
        for number, (way, baudrate, delay_ms) in enumerate(cells):
            key = key_of(way, baudrate, delay_ms)
            if not is_measured(way, delay_ms) or (key in results and not again):
                continue
            folder = Path(name) / str(number)
            folder.mkdir()
            results[key] = one_cell(way, baudrate, delay_ms, folder, shim)
            print(f"{key}: {results[key]}", file=sys.stderr, flush=True)
            RESULTS.write_text(json.dumps(results, indent=1))


def is_measured(way: Way, delay_ms: int) -> bool:
    """Whether there is such a cell: nothing local is far away."""
    if delay_ms and way.server is None:
        return False
    return bool(delay_ms) or not way.is_for_slow_links


def one_cell(way: Way, baudrate: int, delay_ms: int, folder: Path, shim: Shim) -> dict[str, str]:
    """Seconds of each command, or why there are none."""
    if reason := way.missing():
        return dict.fromkeys(COMMANDS, reason)
    image, back = folder / "image.bin", folder / "back.bin"
    image.write_bytes(random.Random(0).randbytes(SIZE_BYTES))
    baud = ["--baud", str(baudrate)]
    commands = {
        "flash-id": ["flash-id"],
        "write": [*baud, "write-flash", "0x10000", str(image)],
        "read": [*baud, "read-flash", "0x10000", str(SIZE_BYTES), str(back)],
    }
    seconds = {}
    with way_to_board(way, delay_ms, folder, shim) as (port, env):
        for name, arguments in commands.items():
            begin_s = time.monotonic()
            failure = run([*arguments], port, env)
            seconds[name] = failure or f"{time.monotonic() - begin_s:.1f}"
    if "." in seconds["read"] and back.read_bytes() != image.read_bytes():
        seconds["read"] = "wrong data"
    return seconds


def run(arguments: list[str], port: str, env: dict[str, str]) -> str:
    """Run esptool; "" or how it failed."""
    command = [sys.executable, "-m", "esptool", "--port", port, *arguments]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"> {LIMIT_S:g}"
    if done.returncode == 0:
        return ""
    print(done.stdout[-600:], file=sys.stderr)
    return "fails"


@contextmanager
def way_to_board(
    way: Way, delay_ms: int, folder: Path, shim: Shim
) -> Iterator[tuple[str, dict[str, str]]]:
    """A board and all that is in front of it; what `--port` gets, and the environment."""
    with RunningBoard(f"sim://esp32?dir={folder / 'board'}&en_rise_ms=10") as board:
        board.wait_for("app_started")
        shim.set_controls({board.tty_path: board.control_path})
        if way.server is None:
            yield str(board.tty_path), shim.env()
            return
        with RunningServer(way.server, [str(board.tty_path)], folder, shim.env()) as server:
            env = {**client_env(folder), **dict(way.env)}
            [tcp_port] = server.tcp_ports
            if not delay_ms:
                yield url_of(way, tcp_port), env
                return
            with DelayProxy(tcp_port, delay_ms / 1000) as proxy:
                yield url_of(way, proxy.port), env


def url_of(way: Way, tcp_port: int) -> str:
    """What esptool gets."""
    return f"{way.scheme}://127.0.0.1:{tcp_port}{way.query}"


def report(results: Results) -> str:
    """A table for each baud rate: a row for each delay and way."""
    parts = [results.get("machine", {}).get("", "")]
    for baudrate in BAUDRATES:
        lines = [
            f"### {baudrate} baud",
            "",
            "| each way | way | flash-id, s | write 1 MB, s | read 1 MB, s |",
            "|---|---|---|---|---|",
        ]
        for delay_ms in DELAYS_MS:
            for way in WAYS:
                cell = results.get(key_of(way, baudrate, delay_ms))
                if cell is not None:
                    shown = " | ".join(cell[command] for command in COMMANDS)
                    lines.append(f"| {delay_ms} ms | {way.name} | {shown} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
