"""What the gateway is to reach, against ser2net tuned in the same run or as such."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.tools.benchmarks.report import Table


@dataclass(frozen=True)
class Target:
    """At most `most` in one cell: a ratio to the reference's median, or the number itself."""

    table: str
    key: str
    most: float
    is_ratio: bool = True
    says: str = ""


def _bulk() -> Iterable[Target]:
    for to_serial in ("to", "from"):
        for payload, most in (("random", 1.0), ("ASCII", 1.0), ("all 0xFF", 1.2)):
            where = f"bulk {to_serial} serial, {payload}"
            yield Target(where, "cpu_ms_per_mb", most, says=f"CPU a MB, {where[5:]}")


TARGETS = (
    *_bulk(),
    Target("round trip, idle", "1_p50", 1.2, says="round trip of 1 byte, p50"),
    Target("round trip, idle", "64_p50", 1.2, says="round trip of 64 bytes, p50"),
    Target("flash", "overhead_921600", 0.3, False, "flash overhead at 921600 baud, %"),
    Target("flash", "overhead_2000000", 0.6, False, "flash overhead at 2 Mbaud, %"),
    Target("64 ports", "late_bytes", 0, False, "64 ports: late bytes"),
    Target("64 ports", "lost_bytes", 0, False, "64 ports: lost bytes"),
    Target("64 ports", "cpu_percent", 1.0, says="64 ports: CPU"),
    Target("64 ports", "lag_p99", 1.0, says="64 ports: lag p99"),
    Target("64 ports", "rss_mb", 45, False, "64 ports: resident memory, MB"),
    Target("start", "accept_s", 0.35, False, "first accept, s"),
    Target("start", "cpu_64", 0.1, False, "idle CPU with 64 ports, %"),
)


def markdown(tables: Mapping[str, Table], servers: Iterable[str], reference: str) -> str:
    """A row for each target, a column for each of our servers, a dash without a measurement."""
    servers = list(servers)
    lines = [
        "| target | at most | " + " | ".join(servers) + " |",
        "|---" * (len(servers) + 2) + "|",
    ]
    for target in TARGETS:
        most = f"{target.most:g}x" if target.is_ratio else f"{target.most:g}"
        cells = [_cell(target, tables, server, reference) for server in servers]
        lines.append(f"| {target.says} | {most} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(target: Target, tables: Mapping[str, Table], server: str, reference: str) -> str:
    table = tables.get(target.table)
    if table is None:
        return "-"
    if target.is_ratio:
        value = table.ratio(server, target.key, reference)
    else:
        value = table.median(server, target.key)
    if value is None:
        return "-"
    unit = "x" if target.is_ratio else ""
    shown = f"{value:.2f}{unit}" if value % 1 else f"{value:g}{unit}"
    return shown if round(value, 2) <= target.most else f"**missed:** {shown}"
