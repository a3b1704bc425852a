"""`/api/ports`: the ports and what is known of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from gateway.ports.running_port import RunningPort
from gateway.web.http_access import JSON
from gateway.web.http_answers import HttpError, answer, stream
from gateway.web.lab import LAB, Lab
from gateway.web.port_document import document_of
from gateway.web.shared_build import SharedBuild

#: Ports that are looked at in one turn of the event loop: 1 ms on a PC.
_PORTS_AT_A_TIME: Final = 32

#: How often all ports are looked at, however many ask for them.
LOOK_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class AllPorts:
    """What `GET /api/ports` answers, at one moment: each port, and in JSON the whole in pieces."""

    documents: list[dict[str, Any]]
    pieces: list[bytes]


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[ALL_PORTS] = SharedBuild(partial(_look_at_all, app[LAB]), LOOK_S)
    app.on_cleanup.append(_stop)
    app.router.add_get("/api/ports", list_ports)
    app.router.add_get("/api/ports/{name}", show_port)


ALL_PORTS: Final[web.AppKey[SharedBuild[AllPorts]]] = web.AppKey("all_ports", SharedBuild)


async def list_ports(request: web.Request) -> web.StreamResponse:
    """All ports, in the order of the configuration."""
    shown = await request.app[ALL_PORTS].get()

    async def pieces() -> AsyncIterator[bytes]:
        for piece in shown.pieces:
            yield piece

    n_bytes = sum(map(len, shown.pieces))
    return await stream(request, JSON, pieces(), n_bytes=n_bytes)


async def show_port(request: web.Request) -> web.Response:
    """One port."""
    return answer(document_of(port_asked_for(request)))


def port_asked_for(request: web.Request) -> RunningPort:
    """The port whose name is in the path; HttpError if there is none."""
    name = request.match_info["name"]
    port = request.app[LAB].port(name)
    if port is None:
        raise HttpError(HTTPStatus.NOT_FOUND, f"there is no port {name[:40]!r}")
    return port


async def _look_at_all(lab: Lab) -> AllPorts:
    shown = AllPorts([], [f'{{"version": {json.dumps(lab.version)}, "ports": ['.encode()])
    ports = list(lab.ports())
    for at in range(0, len(ports), _PORTS_AT_A_TIME):
        documents = [document_of(port) for port in ports[at : at + _PORTS_AT_A_TIME]]
        text = ", ".join(map(json.dumps, documents))
        shown.documents.extend(documents)
        shown.pieces.append((f", {text}" if at else text).encode())
        await asyncio.sleep(0)
    shown.pieces.append(b"]}\n")
    return shown


async def _stop(app: web.Application) -> None:
    await app[ALL_PORTS].stop()
