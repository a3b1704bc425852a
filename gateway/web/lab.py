"""What the rooms of the HTTP server see of the service, and what they share.

Made by `http_server`, found in each request's `app[LAB]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from aiohttp import web

from gateway.ports.running_port import RunningPort
from gateway.web.http_access import Policy


@dataclass
class Lab:
    """The service behind the server. `ports` gives the ports that run, in the order of the file.

    `policy` may be another one after a reload.
    """

    ports: Callable[[], Sequence[RunningPort]]
    version: str
    policy: Policy
    log: structlog.typing.FilteringBoundLogger

    def port(self, name: str) -> RunningPort | None:
        """The port of that name."""
        return next((port for port in self.ports() if port.config.name == name), None)


LAB: web.AppKey[Lab] = web.AppKey("lab", Lab)
