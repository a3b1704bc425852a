"""The ports as JSON: `/api/v1/ports`, and `/api/v1/events`, which streams them as they change.

A client of the stream that does not keep up is cut off: a browser connects again by itself and gets
everything again.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aiohttp import hdrs, web

from gateway import clock
from gateway.config.document import ConnectionLimits
from gateway.port.recorder import Recorder
from gateway.port_document import API, not_served_json
from gateway.running_port import RunningPort, document
from gateway.web.http_access import JSON
from gateway.web.http_answers import (
    LAB,
    Lab,
    Places,
    SharedBuild,
    answer,
    port_asked_for,
    stream,
)

#: Ports, and outputs of boards, that are described in one turn of the event loop: 1 ms on a PC.
_PORTS_PER_TURN: Final = 32

#: How often all ports are described, however many clients ask.
LOOK_S: Final = 0.25

#: How often ports are sent of which only these counters have changed.
_COUNTERS_S: Final = 1.0
_COUNTERS: Final = frozenset({"received_bytes", "sent_bytes", "recorded_from", "recorded_to"})

#: After so long without an event a comment is sent.
_SILENCE_S: Final = 5.0

#: Of a board's output since the last look.
MAX_OUTPUT_BYTES: Final = 4096

#: Waiting for a client besides what the kernel has: all ports of a large lab take some of it.
MAX_UNSENT_BYTES: Final = 4 << 20

#: A page has one stream. A proxy in front of a team can't take the rest from other addresses.
STREAM_LIMITS: Final = ConnectionLimits(max=64, max_per_address=48)


@dataclass(frozen=True, slots=True)
class AllPorts:
    """The answer of `GET /api/v1/ports` at one moment: its parts, and its JSON in pieces."""

    documents: list[dict[str, Any]]
    not_served: list[dict[str, str]]
    pieces: list[bytes]

    def without_counters(self) -> list[dict[str, Any]]:
        """What is sent at once when it has changed."""
        ports = [
            {name: value for name, value in port.items() if name not in _COUNTERS}
            for port in self.documents
        ]
        return [*ports, *self.not_served]

    def frame(self) -> bytes:
        """The event of a stream."""
        return _frame("ports", b"".join(self.pieces).rstrip())


_ALL_PORTS: Final[web.AppKey[SharedBuild[AllPorts]]] = web.AppKey("all_ports", SharedBuild)


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[_ALL_PORTS] = SharedBuild(partial(_describe_all, app[LAB]), LOOK_S)
    app.on_cleanup.append(app[_ALL_PORTS].stop)
    app[_EVENTS] = Events(app[LAB], app[_ALL_PORTS])
    app.on_shutdown.append(app[_EVENTS].stop)
    app.router.add_get(f"{API}/ports", list_ports)
    app.router.add_get(f"{API}/ports/{{name}}", show_port)
    app.router.add_get(f"{API}/events", show_events)


def document_of(port: RunningPort) -> dict[str, Any]:
    """The port as the interface describes it."""
    return document(port).to_json()


async def list_ports(request: web.Request) -> web.StreamResponse:
    """All ports, in the order of the configuration."""
    shown = await request.app[_ALL_PORTS].get()

    async def pieces() -> AsyncIterator[bytes]:
        for piece in shown.pieces:
            yield piece

    n_bytes = sum(map(len, shown.pieces))
    return await stream(request, JSON, pieces(), n_bytes=n_bytes)


async def show_port(request: web.Request) -> web.Response:
    """One port."""
    return answer(document_of(port_asked_for(request)))


async def _describe_all(lab: Lab) -> AllPorts:
    documents: list[dict[str, Any]] = []
    pieces = [f'{{"version": {json.dumps(lab.version)}, "ports": ['.encode()]
    ports = list(lab.ports())
    for at in range(0, len(ports), _PORTS_PER_TURN):
        some = [document_of(port) for port in ports[at : at + _PORTS_PER_TURN]]
        documents += some
        pieces.append(((", " if at else "") + ", ".join(map(json.dumps, some))).encode())
        await asyncio.sleep(0)
    not_served = not_served_json(lab.not_served())
    pieces.append(f'], "not_served": {json.dumps(not_served)}}}\n'.encode())
    return AllPorts(documents, not_served, pieces)


async def show_events(request: web.Request) -> web.StreamResponse:
    """All events from now on, the ports as they are now first."""
    events = request.app[_EVENTS]
    with events.places.taken_by(request):
        client = await events.enter(request)
        try:
            response = web.StreamResponse(
                headers={
                    hdrs.CONTENT_TYPE: "text/event-stream",
                    hdrs.CACHE_CONTROL: "no-store",
                    "X-Accel-Buffering": "no",
                }
            )
            await response.prepare(request)
            while frame := await client.next():
                await response.write(frame)
        finally:
            events.leave(client)
    return response


class Client:
    """A client's stream: the frames that wait to be sent to it."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._frames: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._news = asyncio.Event()
        self._is_ended = False

    def add(self, frame: bytes) -> None:
        """Queue a frame; a client that is too slow for that is cut off."""
        self._frames.append(frame)
        self._unsent_bytes += len(frame)
        self._news.set()
        if self._unsent_bytes > MAX_UNSENT_BYTES and self._request.transport is not None:
            self._request.transport.abort()

    def end(self) -> None:
        """End the stream behind the frame that is being sent."""
        self._is_ended = True
        self._news.set()

    async def next(self) -> bytes:
        """The next frame, empty at the end; a comment after _SILENCE_S without one."""
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
    """The clients of the stream, and one task that looks at the ports for all of them."""

    def __init__(self, lab: Lab, all_ports: SharedBuild[AllPorts]) -> None:
        self.places = Places(STREAM_LIMITS, "streams of events")
        self._lab = lab
        self._all_ports = all_ports
        self._clients: set[Client] = set()
        self._task: asyncio.Task[None] | None = None
        self._sent = AllPorts([], [], [])
        self._sent_at = 0.0
        self._recorded_to: dict[Recorder, int] = {}  # as far as output was sent

    async def enter(self, request: web.Request) -> Client:
        """Add a client, for which the ports as they are now wait already."""
        shown = await self._all_ports.get()
        client = Client(request)
        client.add(shown.frame())
        self._clients.add(client)
        if self._task is None:
            self._sent = shown
            recorders = [port.recorder for port in self._lab.ports()]
            self._recorded_to = {recorder: recorder.end for recorder in recorders}
            self._task = asyncio.create_task(self._follow())
        return client

    def leave(self, client: Client) -> None:
        """Drop a client."""
        self._clients.discard(client)
        if not self._clients and self._task is not None:
            self._task.cancel()
            self._task = None

    async def stop(self, _: object = None) -> None:
        """End all streams."""
        for client in self._clients:
            client.end()

    async def _follow(self) -> None:
        while True:
            shown = await self._all_ports.get()
            now = clock.time()
            frames = []
            if shown.without_counters() != self._sent.without_counters() or (
                shown.documents != self._sent.documents and now - self._sent_at >= _COUNTERS_S
            ):
                self._sent, self._sent_at = shown, now
                frames.append(shown.frame())
            frames += await self._output_frames()
            if frames:
                frame = b"".join(frames)
                for client in tuple(self._clients):
                    client.add(frame)
                    await self._lab.turns.wait()  # those of a large lab are long
            await clock.sleep(LOOK_S)

    async def _output_frames(self) -> list[bytes]:
        """What boards have sent since the last look."""
        frames: list[bytes] = []
        recorded_to = {}
        for port in list(self._lab.ports()):
            recorder = port.recorder
            since = self._recorded_to.get(recorder, 0)
            recorded_to[recorder] = recorder.end
            if recorder.end > since:
                pieces = recorder.pieces(max(since, recorder.end - MAX_OUTPUT_BYTES))
                data = b"".join(piece.data for piece in pieces)
                output = {
                    "name": port.config.name,
                    "seq": recorder.end - len(data),
                    "data": data.decode(errors="replace"),
                }
                frames.append(_frame("output", json.dumps(output).encode()))
                if len(frames) % _PORTS_PER_TURN == 0:
                    await asyncio.sleep(0)
        self._recorded_to = recorded_to
        return frames


_EVENTS = web.AppKey("events", Events)


def _frame(name: str, content: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), content)
