"""`/metrics`: counts and times of the service for Prometheus.

Copies the counts on the loop, some ports at a time, and writes them out on a thread: a thousand
ports take long enough to be felt. What they are called is `exposition`'s matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import hdrs, web

from gateway import clock
from gateway.ports.running_port import RunningPort
from gateway.protocol.board_kinds import row_of
from gateway.tty.port_counts import Histogram
from gateway.web.exposition import PortSample, ServiceSample, exposition
from gateway.web.lab import LAB

#: Between two looks at how late the loop is: two timers a second cost nothing.
SAMPLE_EVERY_S: Final = 0.5

#: How many ports are looked at before others have their turn on the loop.
_PORTS_AT_A_TIME: Final = 50

#: The one other format that is written, if the client accepts it in any version.
_OPEN_METRICS: Final = "application/openmetrics-text"

#: From what a timer is always late to what breaks resets, in seconds.
LOOP_LAG_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[_LAG] = Histogram(LOOP_LAG_BOUNDS_S)
    app.cleanup_ctx.append(_measure_lag)
    app.router.add_get("/metrics", show_metrics)


_LAG: web.AppKey[Histogram] = web.AppKey("loop_lag", Histogram)


async def show_metrics(request: web.Request) -> web.Response:
    """All metrics."""
    lab = request.app[LAB]
    ports = []
    for number, port in enumerate(list(lab.ports()), 1):
        ports.append(sample_of(port))
        if number % _PORTS_AT_A_TIME == 0:
            await asyncio.sleep(0)
    sample = ServiceSample(lab.version, ports, request.app[_LAG].copy())
    is_open = _OPEN_METRICS in request.headers.get(hdrs.ACCEPT, "")
    accepted = f"{_OPEN_METRICS};version=1.0.0" if is_open else ""
    body, content_type = await asyncio.to_thread(exposition, sample, accepted)
    return web.Response(body=body, headers={"Content-Type": content_type})


def sample_of(port: RunningPort) -> PortSample:
    """A port's counts now."""
    device = port.device
    ids = device.usb_ids
    row = row_of(ids)
    drivers = len(device.users.drivers)
    return PortSample(
        snapshot=port.snapshot(),
        usb="" if ids is None else f"{ids[0]:04x}:{ids[1]:04x}",
        chip="" if row is None else row.name,
        drivers=drivers,
        watchers=len(list(device.users)) - drivers,
        opened=device.counts.opened,
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
