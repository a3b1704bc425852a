"""Each measurement: what is set up, what is asked of the load process, what becomes of it.

A measurement runs on a server that has just been started for it. Its numbers are those of one
round; rounds and servers are interleaved by the caller.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.shim import Shim
from tests.tools.benchmarks.load import BLOCK_BYTES
from tests.tools.benchmarks.report import Metric, Table, percentile
from tests.tools.benchmarks.servers import RunningServer, Server
from tests.tools.benchmarks.wire import Payload

Measured = dict[str, float | None]

#: What a developer's shell may have set makes Python compile all modules at each start.
_AS_INSTALLED = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONUNBUFFERED": ""}

#: How long a load process may take; a server that hangs is reported.
_LOAD_LIMIT_S = 120


@dataclass(frozen=True)
class Effort:
    """How much is measured in one round."""

    bulk_bytes: int
    round_trips: int
    flash_s: float
    duplex_s: float
    commands: int
    idle_s: float
    duplex_ports: tuple[int, ...]
    flash_bauds: tuple[int, ...]
    rounds: int
    #: Rows that are measured, by how their names begin.
    rows: tuple[str, ...] = ("",)


FULL = Effort(
    bulk_bytes=8_000_000,
    round_trips=1000,
    flash_s=4,
    duplex_s=5,
    commands=200,
    idle_s=10,
    duplex_ports=(1, 8, 32, 64),
    flash_bauds=(115200, 921600, 2_000_000),
    rounds=5,
)
QUICK = replace(
    FULL,
    bulk_bytes=1_000_000,
    round_trips=200,
    flash_s=0.5,
    duplex_s=0.7,
    commands=20,
    idle_s=0.5,
    duplex_ports=(8,),
    flash_bauds=(921600,),
    rounds=1,
    rows=(
        "bulk to serial, random",
        "bulk from serial, random",
        "round trip, idle",
        "flash",
        "8 ports",
        "DTR, idle",
    ),
)


@dataclass
class Bench:
    """Where a measurement happens."""

    shim: Shim
    folder: Path
    effort: Effort


class Site:
    """One server on fresh ttys, for one measurement."""

    def __init__(self, server: RunningServer, masters: Sequence[int], ttys: Sequence[str]) -> None:
        self.server = server
        self.ttys = ttys
        self._masters = masters

    def load(self, job: str, ports: slice = slice(None), **arguments: Any) -> dict[str, Any]:
        """Run one job to its end. Raises LoadError with what it said."""
        with self.background(job, ports, **arguments) as process:
            return _result_of(process)

    @contextlib.contextmanager
    def background(
        self, job: str, ports: slice = slice(None), baudrate: int = 115200, **arguments: Any
    ) -> Iterator[subprocess.Popen[str]]:
        """A job that runs meanwhile, its ports connected; it is killed at the end."""
        is_telnet = self.server.server.is_telnet
        pairs = list(zip(self.server.tcp_ports, self._masters, strict=True))[ports]
        given = [(tcp_port, master, is_telnet, baudrate) for tcp_port, master in pairs]
        line = {
            "job": job,
            "ports": given,
            "pids": self.server.pids,
            "baudrate": baudrate,
            "limit_s": _LOAD_LIMIT_S,
        }
        with subprocess.Popen(
            [sys.executable, "-m", "tests.tools.benchmarks.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[master for _, master in pairs],
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(line | arguments) + "\n")
                process.stdin.flush()
                if not process.stdout.readline():
                    _result_of(process)
                yield process
            finally:
                process.kill()


class LoadError(Exception):
    """A load process has failed: the server hung up, or did not deliver."""


def _result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate()
    if process.returncode:
        raise LoadError(err.strip().rpartition("\n")[2] or f"no end in {_LOAD_LIMIT_S} s")
    result: dict[str, Any] = json.loads(out)
    return result


@contextlib.contextmanager
def site(
    bench: Bench, server: Server, ports: int, env: dict[str, str] | None = None
) -> Iterator[Site]:
    """A server on that many ptys; every server gets modem lines from the same library."""
    preload = {"LD_PRELOAD": str(bench.shim.library), **_AS_INSTALLED, **(env or {})}
    with (
        ptys(ports) as (masters, ttys),
        RunningServer(server, ttys, bench.folder, preload) as running,
    ):
        yield Site(running, masters, ttys)


@contextlib.contextmanager
def ptys(count: int) -> Iterator[tuple[list[int], list[str]]]:
    """Raw ptys: the far ends, and the names of the near ones."""
    masters, slaves = [], []
    try:
        for _ in range(count):
            master, slave = os.openpty()
            masters.append(master)
            slaves.append(slave)
            tty.setraw(slave)
        yield masters, [os.ttyname(slave) for slave in slaves]
    finally:
        for descriptor in masters + slaves:
            os.close(descriptor)


def bulk(bench: Bench, server: Server, payload: Payload, *, to_serial: bool) -> Measured:
    """8 MB as fast as it goes."""
    with site(bench, server, 1) as here:
        size = bench.effort.bulk_bytes
        return here.load("bulk", payload=payload.value, size_bytes=size, to_serial=to_serial)


def round_trip(bench: Bench, server: Server, others: str) -> Measured:
    """1 and 64 bytes there and back, alone, beside 20 idle clients, or beside 4 busy ones."""
    count = {"alone": 1, "idle": 21, "busy": 5}[others]
    measured: Measured = {}
    with site(bench, server, count) as here, contextlib.ExitStack() as stack:
        if others == "idle":
            stack.enter_context(here.background("idle", slice(1, None), seconds=_LOAD_LIMIT_S))
        elif others == "busy":
            stack.enter_context(_busy(here, slice(1, None)))
        trips = bench.effort.round_trips
        result = here.load("round_trip", slice(1), sizes=[1, 64], count=trips)
    if others != "busy":  # the others' bytes would be counted
        measured["cpu_us"] = result["cpu_us"]
    for size, times in result["times_us"].items():
        measured[f"{size}_p50"] = percentile(times, 50)
        measured[f"{size}_p99"] = percentile(times, 99)
    return measured


def _busy(here: Site, ports: slice) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    return here.background("duplex", ports, 921600, seconds=_LOAD_LIMIT_S)


def flash(bench: Bench, server: Server) -> Measured:
    """Stop and wait, as a boot loader has it, at the pace of a UART."""
    measured: Measured = {}
    for baudrate in bench.effort.flash_bauds:
        blocks = max(1, round(bench.effort.flash_s * baudrate / 10 / BLOCK_BYTES))
        with site(bench, server, 1) as here:
            result = here.load("flash", baudrate=baudrate, blocks=blocks)
        measured[f"overhead_{baudrate}"] = result["overhead_percent"]
        measured[f"cpu_{baudrate}"] = result["cpu_percent"]
    return measured


def duplex(bench: Bench, server: Server, ports: int) -> Measured:
    """Full duplex on every port at 921600 baud."""
    with site(bench, server, ports) as here:
        result = here.load("duplex", baudrate=921600, seconds=bench.effort.duplex_s)
    lags_us = result.pop("lags_us")
    result["lag_p50"] = percentile(lags_us, 50) / 1000 if lags_us else None
    result["lag_p99"] = percentile(lags_us, 99) / 1000 if lags_us else None
    return result


_IOCTLS = {
    "baudrate": ("tcsetattr", "TCSETS", "TCSETSW", "TCSETSF", "TCSETS2", "TCSETSW2", "TCSETSF2"),
    "dtr": ("TIOCMSET", "TIOCMBIS", "TIOCMBIC"),
}
#: A device that does not answer, and how long a command to another is waited for beside it.
_STUCK_MS = 1000
_COMMAND_LIMIT_S = {"alone": 2.0, "busy": 2.0, "stuck": 10.0}
_COMMAND_GAP_S = 0.002


def command(bench: Bench, server: Server, name: str, others: str) -> Measured:
    """A command's answer, and the call on the tty that it leads to; in two runs, for logging the
    calls costs time."""
    if not server.is_telnet:
        return {}
    env = {}
    if others == "stuck":
        env["MODEM_SHIM_DELAY_FILE"] = str(bench.shim.delay)
    asked = _command(bench, server, name, others, env)
    env["MODEM_SHIM_LOG"] = str(bench.shim.log)
    env["MODEM_SHIM_LOG_ONLY"] = " ".join(_IOCTLS[name])
    bench.shim.log.write_text("")
    logged = _command(bench, server, name, others, env)
    calls_us = _until_calls_us(bench, logged["asked_ns"], name, logged["tty"])
    return {
        "answer_p50": percentile(asked["times_us"], 50) if asked["times_us"] else None,
        "answer_p99": percentile(asked["times_us"], 99) if asked["times_us"] else None,
        "ioctl_p50": percentile(calls_us, 50) if calls_us else None,
        "ioctl_p99": percentile(calls_us, 99) if calls_us else None,
    }


def _command(
    bench: Bench, server: Server, name: str, others: str, env: dict[str, str]
) -> dict[str, Any]:
    count = {"alone": 1, "busy": 5, "stuck": 2}[others]
    bench.shim.set_delay_ms(0)
    with site(bench, server, count, env) as here, contextlib.ExitStack() as stack:
        if others == "busy":
            stack.enter_context(_busy(here, slice(1, None)))
        is_stuck = others == "stuck"
        result = here.load(
            "command",
            slice(2 if is_stuck else 1),
            command=name,
            count=min(20, bench.effort.commands) if is_stuck else bench.effort.commands,
            answer_limit_s=_COMMAND_LIMIT_S[others],
            gap_s=_COMMAND_GAP_S,
            delay_file=str(bench.shim.delay),
            delays=f"{here.ttys[1]} {_STUCK_MS}\n" if is_stuck else "",
        )
        return result | {"tty": here.ttys[0]}


def _until_calls_us(bench: Bench, asked_ns: list[int], name: str, path: str) -> list[float]:
    """From each request to the first call on the tty behind it; requests that led to none apart."""
    times_ns = [call.time_ns for call in bench.shim.calls(*_IOCTLS[name]) if call.path == path]
    found = []
    for asked, until in zip(asked_ns, [*asked_ns[1:], float("inf")], strict=True):
        if (first := next((at for at in times_ns if asked <= at < until), None)) is not None:
            found.append((first - asked) / 1000)
    return found


def start(bench: Bench, server: Server) -> Measured:
    """From the command to the first accept; at rest with one port and with 64."""
    measured: Measured = {}
    preload = {"LD_PRELOAD": str(bench.shim.library), **_AS_INSTALLED}
    with ptys(1) as (_, ttys):
        running = RunningServer(server, ttys, bench.folder, preload)
        try:
            measured["accept_s"] = running.start_timed()
        finally:
            running.__exit__(None, None, None)
    for ports in (1, 64):
        with site(bench, server, ports) as here:
            time.sleep(_SETTLE_S)
            result = here.load("idle", slice(0), seconds=bench.effort.idle_s)
        measured |= {f"{key}_{ports}": result[f"{key}"] for key in ("rss_mb", "pss_mb")}
        measured[f"cpu_{ports}"] = result["cpu_percent"]
    return measured


#: What a server does only once after its start is over by then.
_SETTLE_S = 1.0

_LATENCY = (
    Metric("answer_p50", "to the answer, p50, µs", 0),
    Metric("answer_p99", "p99, µs", 0),
    Metric("ioctl_p50", "to the call on the tty, p50, µs", 0),
    Metric("ioctl_p99", "p99, µs", 0),
)


@dataclass(frozen=True)
class Row:
    """A measurement with its table."""

    key: str
    table: Table
    measure: Callable[[Bench, Server], Measured]


def rows(effort: Effort) -> Iterator[Row]:
    """All that is measured."""
    yield from _bulk_rows(effort)
    yield from _round_trip_rows()
    yield _flash_row(effort)
    yield from _duplex_rows(effort)
    yield from _command_rows()
    yield _start_row()


def _bulk_rows(effort: Effort) -> Iterator[Row]:
    metrics = (Metric("cpu_ms_per_mb", "CPU, ms a MB", 2), Metric("mb_per_s", "MB/s", 0))
    size_mb = effort.bulk_bytes / 1e6
    for to_serial in (True, False):
        for payload in Payload:
            key = f"bulk {'to' if to_serial else 'from'} serial, {payload.value}"
            table = Table(key.capitalize(), f"{size_mb:g} MB as fast as it goes.", metrics)
            yield Row(key, table, partial(bulk, payload=payload, to_serial=to_serial))


def _round_trip_rows() -> Iterator[Row]:
    metrics = tuple(
        Metric(f"{size}_{part}", f"{size} B, {part}, µs", 0)
        for size in (1, 64)
        for part in ("p50", "p99")
    )
    metrics += (Metric("cpu_us", "CPU, µs each", 1),)
    for others, key, says in (
        ("alone", "round trip, idle", "One port."),
        ("idle", "round trip, 20 idle ports", "20 more ports with a client each, which is quiet."),
        ("busy", "round trip, 4 busy ports", "4 more ports, full duplex at 921600 baud."),
    ):
        table = Table(key.capitalize(), f"Client to board and back. {says}", metrics)
        yield Row(key, table, partial(round_trip, others=others))


def _flash_row(effort: Effort) -> Row:
    metrics = [
        Metric(f"{kind}_{baudrate}", f"{title} {baudrate} baud, %", digits)
        for baudrate in effort.flash_bauds
        for kind, title, digits in (("overhead", "overhead at", 2), ("cpu", "CPU at", 1))
    ]
    says = (
        "16 KiB of random bytes, an answer of 10 bytes, the next block; the far end takes bytes as "
        "fast as a UART sends them and has 4 KiB of buffer. Overhead over the time on the wire."
    )
    return Row("flash", Table("Flashing, stop and wait", says, metrics), flash)


def _duplex_rows(effort: Effort) -> Iterator[Row]:
    metrics = (
        Metric("cpu_percent", "CPU, %"),
        Metric("rss_mb", "resident, MB"),
        Metric("pss_mb", "shared pages divided, MB"),
        Metric("lag_p50", "lag p50, ms", 2),
        Metric("lag_p99", "lag p99, ms", 2),
        Metric("late_bytes", "late bytes", 0),
        Metric("lost_bytes", "lost bytes", 0),
    )
    says = "Full duplex at 921600 baud on each, 512 bytes at once. Late is what takes over 100 ms."
    for count in effort.duplex_ports:
        key = f"{count} port{'s' if count > 1 else ''}"
        yield Row(key, Table(key, says, metrics), partial(duplex, ports=count))


def _command_rows() -> Iterator[Row]:
    for name, title in (("baudrate", "SET-BAUDRATE"), ("dtr", "DTR")):
        for others, where in (
            ("alone", "idle"),
            ("busy", "4 busy ports"),
            ("stuck", "another port stuck"),
        ):
            key = f"{title}, {where}"
            table = Table(key, _COMMAND_SAYS[others], _LATENCY)
            yield Row(key, table, partial(command, name=name, others=others))


_COMMAND_SAYS = {
    "alone": "One port.",
    "busy": "4 more ports, full duplex at 921600 baud.",
    "stuck": f"A call on the tty of another port hangs for {_STUCK_MS / 1000:g} s.",
}


def _start_row() -> Row:
    metrics = (
        Metric("accept_s", "first accept, s", 3),
        Metric("cpu_1", "idle CPU, 1 port, %", 3),
        Metric("cpu_64", "64 ports, %", 3),
        Metric("rss_mb_1", "resident, 1 port, MB"),
        Metric("rss_mb_64", "64 ports, MB"),
        Metric("pss_mb_64", "shared pages divided, 64 ports, MB"),
    )
    return Row("start", Table("Start and rest", "No clients.", metrics), start)
