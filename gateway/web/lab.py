"""What the rooms of the HTTP server see of the service, and what they share.

Made by `http_server`, found in each request's `app[LAB]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import structlog
from aiohttp import web

from gateway import clock
from gateway.ports.running_port import RunningPort
from gateway.turns import Turns
from gateway.web.host_names import own_names
from gateway.web.http_access import Policy

#: A host learns its domain from the network, perhaps after the gateway has started.
_NAMES_AGE_S: Final = 10.0


@dataclass
class Lab:
    """The service behind the server. `ports` gives the ports that run, in the order of the file.

    `policy` may be another one after a reload.
    """

    ports: Callable[[], Sequence[RunningPort]]
    version: str
    policy: Policy
    log: structlog.typing.FilteringBoundLogger
    turns: Turns = field(default_factory=Turns)
    stop_reason: str = "the gateway is shutting down"  # for clients, when the server stops
    _names_read_at: float | None = field(default=None, init=False)

    async def read_own_names(self) -> None:
        """Read the host's names, unless that was done just now."""
        now = clock.time()
        if self._names_read_at is not None and now - self._names_read_at < _NAMES_AGE_S:
            return
        self._names_read_at = now
        names = await asyncio.to_thread(own_names)
        self.policy = replace(self.policy, own_names=names)

    def port(self, name: str) -> RunningPort | None:
        """The port of that name."""
        return next((port for port in self.ports() if port.config.name == name), None)


LAB: web.AppKey[Lab] = web.AppKey("lab", Lab)
