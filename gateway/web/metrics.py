"""`/metrics`: counts and times of the service for Prometheus.

Names follow https://prometheus.io/docs/practices/naming/. The text is written a few ports at a
time, each in a turn of the event loop: a thread would keep the loop from the interpreter's lock
for 5 ms again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Final

from aiohttp import hdrs, web
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

from gateway import clock
from gateway.net.access import Rejection
from gateway.port_document import ClientState, PortDocument, UsbDocument
from gateway.ports.running_port import document
from gateway.tty.port_counts import Histogram
from gateway.web.http_answers import LAB, SharedBuild, send

#: Between two measurements of the loop's lag: two timers a second cost nothing.
SAMPLE_EVERY_S: Final = 0.5

#: From what a timer is always late to what breaks resets, in seconds.
LOOP_LAG_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

#: Ports that are written in one turn of the event loop: 2 ms on a PC.
_PORTS_PER_TURN: Final = 8

#: All that ask within it get the same text.
_EVERY_S: Final = 1.0

#: The other format that is written, if the client accepts it in any version.
_OPEN_METRICS: Final = "application/openmetrics-text"

_PREFIX: Final = "esp_gateway"


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[_LAG] = Histogram(LOOP_LAG_BOUNDS_S)
    app[_TEXTS] = {
        accepted: SharedBuild(partial(_write, app, accepted), _EVERY_S)
        for accepted in ("", f"{_OPEN_METRICS};version=1.0.0")
    }
    app.cleanup_ctx.append(_measure_lag)
    for each in app[_TEXTS].values():
        app.on_cleanup.append(each.stop)
    app.router.add_get("/metrics", show_metrics)


_LAG: web.AppKey[Histogram] = web.AppKey("loop_lag", Histogram)
_TEXTS: web.AppKey[dict[str, SharedBuild[tuple[str, bytes]]]] = web.AppKey("metrics", dict)


async def show_metrics(request: web.Request) -> web.StreamResponse:
    """All metrics."""
    default, open_metrics = request.app[_TEXTS].values()
    is_open = _OPEN_METRICS in request.headers.get(hdrs.ACCEPT, "")
    return await send(request, *await (open_metrics if is_open else default).get())


async def _write(app: web.Application, accepted: str) -> tuple[str, bytes]:
    lab = app[LAB]
    written = Exposition(accepted)
    written.add(
        ServiceMetrics(
            lab.version,
            app[_LAG].copy(),
            {each.value: lab.rejections[each] for each in Rejection},
            dict(lab.errors),
        )
    )
    ports = list(lab.ports())
    for at in range(0, len(ports), _PORTS_PER_TURN):
        written.add(PortMetrics([document(port) for port in ports[at : at + _PORTS_PER_TURN]]))
        await asyncio.sleep(0)
    written.add(ProcessCollector(registry=None))
    return written.content_type, written.text()


async def _measure_lag(app: web.Application) -> AsyncIterator[None]:
    """Measure how late a timer is, periodically, while the server runs."""
    timer: clock.Timer

    def look(due: float) -> None:
        nonlocal timer
        now = clock.time()
        app[_LAG].observe(max(0.0, now - due))
        timer = clock.call_at(now + SAMPLE_EVERY_S, look, now + SAMPLE_EVERY_S)

    timer = clock.call_later(SAMPLE_EVERY_S, look, clock.time() + SAMPLE_EVERY_S)
    yield
    timer.cancel()


@dataclass(frozen=True, eq=False)
class ServiceMetrics(Collector):
    """The service's own counts at one moment: HTTP connections by reason, answers by status."""

    version: str
    loop_lag: Histogram
    http_rejected: dict[str, int] = field(default_factory=dict)
    http_errors: dict[int, int] = field(default_factory=dict)

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus_client asks for them."""
        yield InfoMetricFamily(_PREFIX, "The gateway", {"version": self.version})
        lag = HistogramMetricFamily(
            f"{_PREFIX}_loop_lag_seconds", "How much later than due the event loop runs a timer"
        )
        lag.add_metric([], _buckets(self.loop_lag), self.loop_lag.sum)
        yield lag
        rejected = CounterMetricFamily(
            f"{_PREFIX}_http_rejected_connections",
            "Connections of the HTTP server that were closed before a request",
            labels=["reason"],
        )
        for reason, count in self.http_rejected.items():
            rejected.add_metric([reason], count)
        errors = CounterMetricFamily(
            f"{_PREFIX}_http_errors", "Requests answered with an error", labels=["status"]
        )
        for status, count in self.http_errors.items():
            errors.add_metric([str(status)], count)
        yield from (rejected, errors)


#: A metric of ports: its name, its help, and its value for a port, None where it has none.
_Row = tuple[str, str, Callable[[PortDocument], float | None]]

_GAUGES: Final[tuple[_Row, ...]] = (
    (
        "device_present",
        "Whether the board is plugged in and works",
        lambda port: port.is_present,
    ),
    (
        "port_listening",
        "Whether clients can connect, of ports that listen",
        lambda port: port.tcp_port is not None if port.connect is None else None,
    ),
    (
        "port_connected",
        "Whether the peer is connected, of ports that dial out",
        lambda port: port.peer_connected,
    ),
)

_COUNTERS: Final[tuple[_Row, ...]] = (
    ("received_bytes", "Bytes received from the board", lambda port: port.received_bytes),
    ("sent_bytes", "Bytes sent to the board", lambda port: port.sent_bytes),
    (
        "output_dropped_bytes",
        "Bytes of the board's output that clients were too slow for",
        lambda port: port.output_dropped_bytes,
    ),
    (
        "input_dropped_bytes",
        "Bytes of clients that the board has not accepted, or was gone for",
        lambda port: port.input_dropped_bytes,
    ),
    ("sessions", "Clients that have had the port", lambda port: port.sessions),
    (
        "dial_failures",
        "Attempts to connect to the peer that have failed",
        lambda port: None if port.connect is None else port.dial_failures,
    ),
    ("device_reconnects", "How often the tty was opened again", lambda port: port.reconnects),
)


@dataclass(frozen=True, eq=False)
class PortMetrics(Collector):
    """The counts of some ports at one moment."""

    ports: Sequence[PortDocument]

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus_client asks for them."""
        yield self._info()
        for name, help_text, value_of in _GAUGES:
            gauge = GaugeMetricFamily(f"{_PREFIX}_{name}", help_text, labels=["port"])
            yield self._filled(gauge, value_of)
        for name, help_text, value_of in _COUNTERS:
            counter = CounterMetricFamily(f"{_PREFIX}_{name}", help_text, labels=["port"])
            yield self._filled(counter, value_of)
        clients = GaugeMetricFamily(
            f"{_PREFIX}_clients", "Connected clients", labels=["port", "state"]
        )
        resets = CounterMetricFamily(
            f"{_PREFIX}_resets",
            "Resets of the board by the gateway",
            labels=["port", "into", "strategy"],
        )
        rejected = CounterMetricFamily(
            f"{_PREFIX}_rejected_clients",
            "Clients that were not served",
            labels=["port", "reason"],
        )
        calls = HistogramMetricFamily(
            f"{_PREFIX}_control_call_duration_seconds",
            "Calls on the tty that may block in the kernel: opening, settings, lines, draining",
            labels=["port"],
        )
        for port in self.ports:
            for state in ClientState:
                clients.add_metric([port.name, state], len(port.addresses_of(state)))
            for (into, strategy), count in port.resets.items():
                resets.add_metric([port.name, into, strategy], count)
            for reason, count in port.rejected.items():
                rejected.add_metric([port.name, reason], count)
            if port.control_calls is not None:
                buckets = _buckets(port.control_calls)
                calls.add_metric([port.name], buckets, port.control_calls.sum)
        yield from (clients, resets, rejected, calls)

    def _info(self) -> Metric:
        labels = ["port", "device", "protocol", "usb", "chip"]
        family = InfoMetricFamily(f"{_PREFIX}_port", "What is served at a port", labels=labels)
        for port in self.ports:
            usb = port.usb or UsbDocument("")
            family.add_metric([port.name, port.device, port.protocol, usb.ids, usb.chip], {})
        return family

    def _filled(
        self,
        family: GaugeMetricFamily | CounterMetricFamily,
        value_of: Callable[[PortDocument], float | None],
    ) -> Metric:
        for port in self.ports:
            if (value := value_of(port)) is not None:
                family.add_metric([port.name], value)
        return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


#: How a metric begins in both formats, and how OpenMetrics ends.
_HEAD: Final = b"# HELP "
_END: Final = b"# EOF\n"


class Exposition:
    """The metrics in the best format that is accepted, put together in steps.

    The format has all samples of a metric in one place, so what each step writes is collected by
    the metric's name.
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

    def text(self) -> bytes:
        """All of it."""
        written = b"".join(part for family in self._families.values() for part in family)
        is_open = self.content_type.startswith(_OPEN_METRICS)
        return written + _END if is_open else written


def _without_head(family: bytes) -> bytes:
    """Its samples; lines that describe it begin with "#", which no sample does."""
    _, _, rest = family.partition(b"\n")
    while rest.startswith(b"#"):
        _, _, rest = rest.partition(b"\n")
    return rest
