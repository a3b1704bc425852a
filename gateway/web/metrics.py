"""`/metrics`: counts and times of the service for Prometheus.

Written a few ports at a time, each in a turn of the event loop: on a thread it would keep the loop
from the interpreter's lock for 5 ms again and again. Their names are in `exposition`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

from aiohttp import hdrs, web

from gateway import clock
from gateway.ports.dialer import Dialer
from gateway.ports.running_port import RunningPort
from gateway.protocol.board_kinds import row_of
from gateway.tty.port_counts import Histogram
from gateway.web.exposition import Exposition, PortSample, PortSamples, ServiceSample
from gateway.web.http_answers import send
from gateway.web.lab import LAB
from gateway.web.shared_build import SharedBuild

#: Between two looks at how late the loop is: two timers a second cost nothing.
SAMPLE_EVERY_S: Final = 0.5

#: Ports that are written in one turn of the event loop: 2 ms on a PC.
_PORTS_AT_A_TIME: Final = 8

#: All that ask within it get the same text.
_EVERY_S: Final = 1.0

#: The one other format that is written, if the client accepts it in any version.
_OPEN_METRICS: Final = "application/openmetrics-text"

#: From what a timer is always late to what breaks resets, in seconds.
LOOP_LAG_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[_LAG] = Histogram(LOOP_LAG_BOUNDS_S)
    app[_TEXTS] = {
        accepted: SharedBuild(partial(_write, app, accepted), _EVERY_S)
        for accepted in ("", f"{_OPEN_METRICS};version=1.0.0")
    }
    app.cleanup_ctx.append(_measure_lag)
    app.on_cleanup.append(_stop)
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
    written.add(ServiceSample(lab.version, app[_LAG].copy()))
    ports = list(lab.ports())
    for at in range(0, len(ports), _PORTS_AT_A_TIME):
        written.add(PortSamples([sample_of(port) for port in ports[at : at + _PORTS_AT_A_TIME]]))
        await asyncio.sleep(0)
    written.add_process()
    return written.content_type, written.text()


async def _stop(app: web.Application) -> None:
    for each in app[_TEXTS].values():
        await each.stop()


def sample_of(port: RunningPort) -> PortSample:
    """A port's counts now."""
    device = port.device
    ids = device.usb_ids
    row = row_of(ids)
    drivers = len(device.users.drivers)
    dialer = port.way_in if isinstance(port.way_in, Dialer) else None
    return PortSample(
        snapshot=port.snapshot(),
        usb="" if ids is None else f"{ids[0]:04x}:{ids[1]:04x}",
        chip="" if row is None else row.name,
        drivers=drivers,
        watchers=len(list(device.users)) - drivers,
        opened=device.counts.opened,
        is_connected=None if dialer is None else dialer.is_connected,
        dial_failures=0 if dialer is None else dialer.failures,
        resets=dict(device.counts.resets),
        control_calls=device.counts.control_calls.copy(),
    )


async def _measure_lag(app: web.Application) -> AsyncIterator[None]:
    """Look at how late a timer is, again and again, as long as the server runs."""
    timer: clock.Timer

    def look(due: float) -> None:
        nonlocal timer
        now = clock.time()
        app[_LAG].observe(max(0.0, now - due))
        timer = clock.call_at(now + SAMPLE_EVERY_S, look, now + SAMPLE_EVERY_S)

    timer = clock.call_later(SAMPLE_EVERY_S, look, clock.time() + SAMPLE_EVERY_S)
    yield
    timer.cancel()
