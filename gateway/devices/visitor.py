"""Who has a device for one task of the gateway's own, from a request over HTTP to the end of it.

It comes by the port's sharing rule as any client does; once it has the device nobody takes that
over, and what the board says meanwhile is for others. The task is the matter of who inherits.
"""

from __future__ import annotations

import asyncio

from gateway.devices.device import Device
from gateway.errors import ClientError


class Visitor:
    """All of `sharing.DeviceUser` but what is done when the device is taken away.

    `label` is told to who comes meanwhile.
    """

    def __init__(self, device: Device, label: str) -> None:
        self.label = label
        self._device = device
        self._has_it: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def origin(self) -> str:
        """None: it is never replaced, so it never comes back."""
        return ""

    @property
    def is_leaving(self) -> bool:
        """True: what was asked for is carried out, whoever comes meanwhile."""
        return True

    def attached(self) -> None:
        """It is ours."""
        if not self._has_it.done():
            self._has_it.set_result(None)

    def refused(self, error: ClientError) -> None:
        """It is not to be had."""
        if not self._has_it.done():
            self._has_it.set_exception(error)

    def muted(self, by: str) -> None:
        """Nobody mutes one that is leaving."""

    def resumed(self) -> None:
        """Nor can it be resumed."""

    def replaced(self, by: str) -> None:
        """Nor replaced."""

    def data_received(self, data: bytes) -> None:
        """What the board says is for others."""

    def board_busy(self) -> None:
        """So little is written that it does not matter."""

    def board_ready(self) -> None:
        """Nor does this."""
