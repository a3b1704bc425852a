"""Measured numbers as tables: median, least and most of the rounds, and the ratio to a peer."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

#: Between these lines of the document stands what was measured; the rest is written by people.
BEGIN = "<!-- make bench writes from here -->"
END = "<!-- to here -->"


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that is at least as large as `percent` % of all."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]


@dataclass(frozen=True)
class Metric:
    """A column: what is measured, in which unit; `digits` behind the point."""

    key: str
    title: str
    digits: int = 1


@dataclass
class Table:
    """One kind of measurement: servers as rows, metrics as columns, a value for each round."""

    title: str
    explanation: str
    metrics: Sequence[Metric]
    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)  # server: why it has no values

    def add(self, server: str, measured: Mapping[str, float | None]) -> None:
        """The results of one round; None where a server can't do it."""
        for key, value in measured.items():
            if value is not None:
                self.values.setdefault((server, key), []).append(value)

    def median(self, server: str, key: str) -> float | None:
        """None without a value."""
        values = self.values.get((server, key))
        return statistics.median(values) if values else None

    def ratio(self, server: str, key: str, reference: str) -> float | None:
        """How many times the reference's median; None if there is none or it is 0."""
        own, other = self.median(server, key), self.median(reference, key)
        return own / other if own is not None and other else None

    def markdown(self, servers: Iterable[str], reference: str) -> str:
        """The table; a cell is `median (least to most) ratio`."""
        head = "| server | " + " | ".join(metric.title for metric in self.metrics) + " |"
        rule = "|---" * (len(self.metrics) + 1) + "|"
        rows = [self._row(server, reference) for server in servers]
        return "\n".join([f"### {self.title}", "", self.explanation, "", head, rule, *rows]) + "\n"

    def _row(self, server: str, reference: str) -> str:
        if server in self.remarks:
            cells = [self.remarks[server]] + [""] * (len(self.metrics) - 1)
        else:
            cells = [self._cell(server, metric, reference) for metric in self.metrics]
        return f"| {server} | " + " | ".join(cells) + " |"

    def _cell(self, server: str, metric: Metric, reference: str) -> str:
        values = self.values.get((server, metric.key))
        if not values:
            return "-"
        middle, least, most = (
            f"{value:.{metric.digits}f}"
            for value in (statistics.median(values), min(values), max(values))
        )
        cell = f"**{middle}** ({least} to {most})" if len(values) > 1 else f"**{middle}**"
        ratio = self.ratio(server, metric.key, reference)
        return cell if ratio is None else f"{cell} {ratio:.2f}x"


def replaced(document: str, measured: str, begin_mark: str = BEGIN) -> str:
    """The document with its measured part replaced. Raises ValueError if it has none."""
    head, begin, rest = document.partition(begin_mark)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks {begin_mark} or {END}")
    return f"{head}{begin_mark}\n\n{measured.strip()}\n\n{END}{tail}"
