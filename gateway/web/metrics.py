"""`/metrics`: counts and times of the service for Prometheus.

Names follow https://prometheus.io/docs/practices/naming/. The text is written a few ports at a
time, each in a turn of the event loop: a thread would keep the loop from the interpreter's lock
for 5 ms again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from gateway.port_document import UNKNOWN_USB, ClientState, Histogram, PortDocument
from gateway.running_port import document
from gateway.web.http_answers import LAB, Lab, SharedBuild, send

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
    written.add(service_metrics(lab, app[_LAG]))
    ports = list(lab.ports())
    for at in range(0, len(ports), _PORTS_PER_TURN):
        written.add(port_metrics([document(port) for port in ports[at : at + _PORTS_PER_TURN]]))
        await asyncio.sleep(0)
    written.add(ProcessCollector(registry=None).collect())
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


def service_metrics(lab: Lab, loop_lag: Histogram) -> Iterator[Metric]:
    """The metrics of the service and of its HTTP server."""
    yield InfoMetricFamily(_PREFIX, "The gateway", {"version": lab.version})
    lag = HistogramMetricFamily(
        f"{_PREFIX}_loop_lag_seconds", "How much later than due the event loop runs a timer"
    )
    lag.add_metric([], _buckets(loop_lag), loop_lag.sum)
    rejected = _counter(
        "http_rejected_connections",
        "Connections of the HTTP server that were closed before a request",
        "reason",
    )
    for reason in Rejection:
        rejected.add_metric([reason.value], lab.rejections[reason])
    errors = _counter("http_errors", "Requests answered with an error", "status")
    for status, count in lab.errors.items():
        errors.add_metric([str(status)], count)
    yield from (lag, rejected, errors)


#: Counters of a port: the field of its document, the metric's name, its help.
_COUNTERS: Final = (
    ("received_bytes", "received_bytes", "Bytes received from the board"),
    ("sent_bytes", "sent_bytes", "Bytes sent to the board"),
    (
        "output_dropped_bytes",
        "output_dropped_bytes",
        "Bytes of the board's output that clients were too slow for",
    ),
    (
        "input_dropped_bytes",
        "input_dropped_bytes",
        "Bytes of clients that the board has not accepted, or was gone for",
    ),
    ("sessions", "sessions", "Clients that have had the port"),
    ("reconnects", "device_reconnects", "How often the tty was opened again"),
)


def port_metrics(ports: Sequence[PortDocument]) -> Iterator[Metric]:
    """The metrics of some ports."""
    labels = ["port", "device", "protocol", "usb", "chip"]
    info = InfoMetricFamily(f"{_PREFIX}_port", "What is served at a port", labels=labels)
    present = _gauge("device_present", "Whether the board is plugged in and works")
    listening = _gauge("port_listening", "Whether clients can connect, of ports that listen")
    connected = _gauge("port_connected", "Whether the peer is connected, of ports that dial out")
    failures = _counter("dial_failures", "Attempts to connect to the peer that failed", "port")
    clients = _gauge("clients", "Connected clients", "state")
    resets = _counter("resets", "Resets of the board by the gateway", "port", "into", "strategy")
    rejected = _counter("rejected_clients", "Clients that were not served", "port", "reason")
    calls = HistogramMetricFamily(
        f"{_PREFIX}_control_call_duration_seconds",
        "Calls on the tty that may block in the kernel: opening, settings, lines, draining",
        labels=["port"],
    )
    for port in ports:
        usb = port.usb or UNKNOWN_USB
        info.add_metric([port.name, port.device, port.protocol, usb.ids, usb.chip], {})
        present.add_metric([port.name], port.is_present)
        if port.connect is None:
            listening.add_metric([port.name], port.tcp_port is not None)
        else:
            connected.add_metric([port.name], bool(port.peer_connected))
            failures.add_metric([port.name], port.dial_failures)
        for state in ClientState:
            clients.add_metric([port.name, state], len(port.addresses_of(state)))
        for (into, strategy), count in port.resets.items():
            resets.add_metric([port.name, into, strategy], count)
        for reason, count in port.rejected.items():
            rejected.add_metric([port.name, reason], count)
        if port.control_calls is not None:
            calls.add_metric([port.name], _buckets(port.control_calls), port.control_calls.sum)
    yield from (info, present, listening, connected, failures, clients, resets, rejected, calls)
    for field, name, help_text in _COUNTERS:
        counter = _counter(name, help_text, "port")
        for port in ports:
            counter.add_metric([port.name], getattr(port, field))
        yield counter


def _gauge(name: str, help_text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", help_text, labels=["port", *labels])


def _counter(name: str, help_text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"{_PREFIX}_{name}", help_text, labels=labels)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


#: How a metric begins in both formats, and how OpenMetrics ends.
_HEAD: Final = b"# HELP "
_END: Final = b"# EOF\n"


@dataclass(frozen=True, eq=False)
class _Collected(Collector):
    metrics: list[Metric]

    def collect(self) -> list[Metric]:
        """The metrics, as prometheus_client asks for them."""
        return self.metrics


class Exposition:
    """The metrics in the best format that is accepted, put together in steps.

    The format has all samples of a metric in one place, so what each step writes is collected by
    the metric's name.
    """

    def __init__(self, accepted: str = "") -> None:
        self._encode, self.content_type = choose_encoder(accepted)
        self._families: dict[bytes, list[bytes]] = {}

    def add(self, metrics: Iterable[Metric]) -> None:
        """Write metrics behind those of the same names."""
        registry = CollectorRegistry()
        registry.register(_Collected(list(metrics)))
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
