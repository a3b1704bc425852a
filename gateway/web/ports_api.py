"""`/api/ports`: what there is to be seen of the ports."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web

from gateway.ports.running_port import RunningPort
from gateway.web.http_answers import HttpError, answer
from gateway.web.lab import LAB, Lab
from gateway.web.port_document import document_of


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app.router.add_get("/api/ports", list_ports)
    app.router.add_get("/api/ports/{name}", show_port)


async def list_ports(request: web.Request) -> web.Response:
    """All ports, in the order of the configuration."""
    return answer(all_ports(request.app[LAB]))


async def show_port(request: web.Request) -> web.Response:
    """One port."""
    return answer(document_of(port_asked_for(request)))


def all_ports(lab: Lab) -> dict[str, object]:
    """What `GET /api/ports` answers."""
    return {"version": lab.version, "ports": [document_of(port) for port in lab.ports()]}


def port_asked_for(request: web.Request) -> RunningPort:
    """The port whose name is in the path; HttpError if there is none."""
    name = request.match_info["name"]
    port = request.app[LAB].port(name)
    if port is None:
        raise HttpError(HTTPStatus.NOT_FOUND, f"there is no port {name[:40]!r}")
    return port
