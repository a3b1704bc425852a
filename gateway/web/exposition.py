"""The service's counts as Prometheus reads them: names, types and labels.

Names follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gateway.status import NOT_CONNECTED, PortSnapshot
from gateway.tty.port_counts import Histogram

_PREFIX: Final = "esp_gateway"

#: States of a device in which its board is there.
_PRESENT: Final = frozenset({"idle", "in use", "releasing", "released", "opening", NOT_CONNECTED})


@dataclass(frozen=True, slots=True)
class PortSample:
    """A port's counts at one moment; `usb` and `chip` are empty where that is not known.

    `is_connected` is None for a port that listens.
    """

    snapshot: PortSnapshot
    usb: str
    chip: str
    drivers: int
    watchers: int
    opened: int
    resets: dict[tuple[str, str], int]
    control_calls: Histogram
    is_connected: bool | None = None
    dial_failures: int = 0


@dataclass(frozen=True, eq=False)
class ServiceSample(Collector):
    """The service's own counts at one moment."""

    version: str
    loop_lag: Histogram

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus_client asks for them."""
        yield InfoMetricFamily(_PREFIX, "The gateway", {"version": self.version})
        yield _histogram(
            "loop_lag_seconds", "How much later than due the event loop runs a timer", self.loop_lag
        )


@dataclass(frozen=True, eq=False)
class PortSamples(Collector):
    """The counts of some ports."""

    ports: Sequence[PortSample]

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus_client asks for them."""
        yield from _info(self.ports)
        yield from _gauges(self.ports)
        yield from _counters(self.ports)
        yield _resets(self.ports)
        yield _refused(self.ports)
        yield _control_calls(self.ports)


def _info(ports: Iterable[PortSample]) -> Iterator[Metric]:
    labels = ["port", "device", "protocol", "usb", "chip"]
    family = InfoMetricFamily(f"{_PREFIX}_port", "What is served at a port", labels=labels)
    for port in ports:
        now = port.snapshot
        values = [now.name, now.device, now.protocol, port.usb, port.chip]
        family.add_metric(values, {})
    yield family


def _gauges(ports: Iterable[PortSample]) -> Iterator[Metric]:
    present = _gauge("device_present", "Whether the board is plugged in and works")
    bound = _gauge("port_listening", "Whether clients can connect, of ports that listen")
    connected = _gauge("port_connected", "Whether the far end has the board, of ports that connect")
    clients = _gauge("clients", "Clients that have the port now", "role")
    for port in ports:
        name = port.snapshot.name
        present.add_metric([name], port.snapshot.state in _PRESENT)
        if port.is_connected is None:
            bound.add_metric([name], bool(port.snapshot.address))
        else:
            connected.add_metric([name], port.is_connected)
        clients.add_metric([name, "drives"], port.drivers)
        clients.add_metric([name, "watches"], port.watchers)
    yield from (present, bound, connected, clients)


def _counters(ports: Iterable[PortSample]) -> Iterator[Metric]:
    received = _counter("received_bytes", "Bytes that have come from the board")
    sent = _counter("sent_bytes", "Bytes that were sent to the board")
    dropped = _counter(
        "output_dropped_bytes", "Bytes of the board's output that clients were too slow for"
    )
    undelivered = _counter(
        "input_dropped_bytes",
        "Bytes of clients that the board has not got: it took none, or was gone",
    )
    sessions = _counter("sessions", "Clients that have had the port")
    failures = _counter("dial_failures", "Tries to connect that have given the far end no board")
    reconnects = _counter("device_reconnects", "How often the tty was opened again")
    for port in ports:
        now = port.snapshot
        received.add_metric([now.name], now.received_bytes)
        sent.add_metric([now.name], now.sent_bytes)
        dropped.add_metric([now.name], now.output_dropped_bytes)
        undelivered.add_metric([now.name], now.input_dropped_bytes)
        sessions.add_metric([now.name], now.sessions)
        if port.is_connected is not None:
            failures.add_metric([now.name], port.dial_failures)
        reconnects.add_metric([now.name], max(0, port.opened - 1))
    yield from (received, sent, dropped, undelivered, sessions, failures, reconnects)


def _resets(ports: Iterable[PortSample]) -> Metric:
    resets = _counter("resets", "Resets of the board by the gateway", "into", "strategy")
    for port in ports:
        for (into, strategy), count in port.resets.items():
            resets.add_metric([port.snapshot.name, into, strategy], count)
    return resets


def _refused(ports: Iterable[PortSample]) -> Metric:
    refused = _counter("refused_clients", "Clients that were not served", "reason")
    for port in ports:
        now = port.snapshot
        for reason, count in (
            ("told", now.refused),
            ("not_allowed", now.not_allowed),
            ("too_many", now.too_many),
            ("not_secured", now.not_secured),
            ("other_protocol", now.other_protocol),
        ):
            refused.add_metric([now.name, reason], count)
    return refused


def _control_calls(ports: Iterable[PortSample]) -> Metric:
    family = HistogramMetricFamily(
        f"{_PREFIX}_control_call_duration_seconds",
        "Calls on the tty that may block in the kernel: opening, settings, lines, draining",
        labels=["port"],
    )
    for port in ports:
        family.add_metric(
            [port.snapshot.name], _buckets(port.control_calls), port.control_calls.sum
        )
    return family


def _gauge(name: str, help_text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", help_text, labels=["port", *labels])


def _counter(name: str, help_text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"{_PREFIX}_{name}", help_text, labels=["port", *labels])


def _histogram(name: str, help_text: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(f"{_PREFIX}_{name}", help_text)
    family.add_metric([], _buckets(histogram), histogram.sum)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


class Exposition:
    """The metrics in the best format that is accepted, put together in steps.

    The format has all samples of a metric in one place. Writing those of 256 ports takes 60 ms, so
    ports are added a few at a time, and what is written of each metric is collected by its name.
    """

    def __init__(self, accepted: str = "") -> None:
        self._encode, self.content_type = choose_encoder(accepted)
        self._families: dict[bytes, list[bytes]] = {}

    def add(self, collector: Collector) -> None:
        """Write the metrics of a collector behind those of the same names."""
        registry = CollectorRegistry()
        registry.register(collector)
        text = self._encode(registry).removesuffix(_END)
        for family in text.split(_HEAD)[1:]:
            name = family.partition(b" ")[0]
            written = self._families.get(name)
            if written is None:
                self._families[name] = [_HEAD, family]
            else:
                written.append(_without_head(family))

    def add_process(self) -> None:
        """Add the metrics of this process, which are the same for all programs."""
        self.add(ProcessCollector(registry=None))

    def text(self) -> bytes:
        """All of it."""
        written = b"".join(part for family in self._families.values() for part in family)
        return (
            written + _END if self.content_type.startswith("application/openmetrics") else written
        )


#: How a metric begins in both formats, and how OpenMetrics ends.
_HEAD: Final = b"# HELP "
_END: Final = b"# EOF\n"


def _without_head(family: bytes) -> bytes:
    """Its samples; lines that say what it is begin with "#", which no sample does."""
    _, _, rest = family.partition(b"\n")
    while rest.startswith(b"#"):
        _, _, rest = rest.partition(b"\n")
    return rest
