"""`GET /api/events`: the ports whenever they change, and what boards say, as server-sent events.

One task looks at all ports for all clients. A client that does not keep up is cut off: a browser
connects again by itself and gets all of it again.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any, Final

from aiohttp import hdrs, web

from gateway import clock
from gateway.config.document import ConnectionLimits
from gateway.devices.recorder import Recorder
from gateway.web.http_answers import Places
from gateway.web.lab import LAB, Lab
from gateway.web.ports_api import ALL_PORTS, LOOK_S, AllPorts
from gateway.web.shared_build import SharedBuild

#: How often ports are sent of which only counters have changed.
_COUNTERS_S: Final = 1.0

#: What only counts on.
_COUNTERS: Final = frozenset({"received_bytes", "sent_bytes", "recorded_from", "recorded_to"})

#: After so long without an event a comment is sent.
_SILENCE_S: Final = 5.0

#: Of what a board has said since the last look: a flood is not for people.
MAX_OUTPUT_BYTES: Final = 4096

#: Outputs that are put together in one turn of the event loop: 1 ms on a PC.
_OUTPUTS_AT_A_TIME: Final = 32

#: What waits for a client besides what the kernel has: all ports of a large lab take some of it.
MAX_UNSENT_BYTES: Final = 4 << 20

#: A page has one stream. A proxy in front of a team can't take the rest from other addresses.
STREAM_LIMITS: Final = ConnectionLimits(max=64, max_per_address=48)


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[_EVENTS] = Events(app[LAB], app[ALL_PORTS])
    app.on_shutdown.append(_stop)
    app.router.add_get("/api/events", show_events)


async def show_events(request: web.Request) -> web.StreamResponse:
    """All events from now on, the ports as they are now first."""
    events = request.app[_EVENTS]
    with events.places.taken_by(request):
        client = await events.enter(request)
        try:
            response = web.StreamResponse(
                headers={hdrs.CONTENT_TYPE: "text/event-stream", "X-Accel-Buffering": "no"}
            )
            response.headers[hdrs.CACHE_CONTROL] = "no-store"
            await response.prepare(request)
            while frame := await client.next():
                await response.write(frame)
        finally:
            events.leave(client)
    return response


class Client:
    """A client's stream: what waits to be sent to it."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._frames: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._news = asyncio.Event()
        self._is_ended = False

    def add(self, frame: bytes) -> None:
        """Send `frame` in its turn; a client that is too slow for that is cut off."""
        self._frames.append(frame)
        self._unsent_bytes += len(frame)
        self._news.set()
        if self._unsent_bytes > MAX_UNSENT_BYTES and self._request.transport is not None:
            self._request.transport.abort()

    def end(self) -> None:
        """End the stream behind what is being sent."""
        self._is_ended = True
        self._news.set()

    async def next(self) -> bytes:
        """What is to be sent now, empty at the end; a comment when nothing has come for long."""
        try:
            async with clock.timeout(_SILENCE_S):
                await self._news.wait()
        except TimeoutError:
            return b": nothing new\n\n"
        if self._is_ended:
            return b""
        frame = self._frames.popleft()
        self._unsent_bytes -= len(frame)
        if not self._frames:
            self._news.clear()
        return frame


class Events:
    """The clients, and the look at the ports for all of them; made and used on the loop."""

    def __init__(self, lab: Lab, all_ports: SharedBuild[AllPorts]) -> None:
        self.places = Places(STREAM_LIMITS, "streams of events")
        self._lab = lab
        self._all_ports = all_ports
        self._clients: set[Client] = set()
        self._looking: asyncio.Task[None] | None = None
        self._told: AllPorts = AllPorts([], [])
        self._told_at = 0.0
        self._heard: dict[Recorder, int] = {}

    async def enter(self, request: web.Request) -> Client:
        """A new client, for which the ports as they are now wait already."""
        shown = await self._all_ports.get()
        client = Client(request)
        client.add(_ports_frame(shown))
        self._clients.add(client)
        if self._looking is None:
            self._told = shown
            self._heard = {
                port.device.recorder: port.device.recorder.end for port in self._lab.ports()
            }
            self._looking = asyncio.create_task(self._look_again_and_again())
        return client

    def leave(self, client: Client) -> None:
        """Drop a client."""
        self._clients.discard(client)
        if not self._clients and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def stop(self) -> None:
        """End all streams."""
        for client in self._clients:
            client.end()

    async def _look_again_and_again(self) -> None:
        while True:
            await self._look()
            await clock.sleep(LOOK_S)

    async def _look(self) -> None:
        """Tell what has changed since the last look."""
        shown = await self._all_ports.get()
        now = clock.time()
        frames = []
        if _without_counters(shown) != _without_counters(self._told) or (
            shown.documents != self._told.documents and now - self._told_at >= _COUNTERS_S
        ):
            self._told, self._told_at = shown, now
            frames.append(_ports_frame(shown))
        frames += await self._output_frames()
        if not frames:
            return
        frame = b"".join(frames)
        for client in tuple(self._clients):
            client.add(frame)
            await self._lab.turns.wait()  # those of a large lab are long

    async def _output_frames(self) -> list[bytes]:
        frames: list[bytes] = []
        heard = {}
        for port in list(self._lab.ports()):
            recorder = port.device.recorder
            since = self._heard.get(recorder, 0)
            heard[recorder] = recorder.end
            if recorder.end > since:
                pieces = recorder.pieces(max(since, recorder.end - MAX_OUTPUT_BYTES))
                data = b"".join(piece.data for piece in pieces)
                output = {
                    "name": port.config.name,
                    "seq": recorder.end - len(data),
                    "data": data.decode(errors="replace"),
                }
                frames.append(_frame("output", json.dumps(output).encode()))
                if len(frames) % _OUTPUTS_AT_A_TIME == 0:
                    await asyncio.sleep(0)
        self._heard = heard
        return frames


_EVENTS = web.AppKey("events", Events)


async def _stop(app: web.Application) -> None:
    await app[_EVENTS].stop()


def _ports_frame(shown: AllPorts) -> bytes:
    return _frame("ports", b"".join(shown.pieces).rstrip())


def _frame(name: str, content: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), content)


def _without_counters(shown: AllPorts) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in port.items() if name not in _COUNTERS}
        for port in shown.documents
    ]
