"""Who uses a device, and what it is told.

What is done to the device for it is `device`'s matter.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from gateway.errors import ClientError, DeviceError


class DeviceUser(Protocol):
    """Who uses a device; every call is made on the loop."""

    @property
    def label(self) -> str:
        """Who it is, for the person who is refused meanwhile."""

    def attached(self) -> None:
        """The device is yours."""

    def refused(self, error: ClientError) -> None:
        """The device is not to be had."""

    def data_received(self, data: bytes) -> None:
        """The board has sent bytes."""

    def board_busy(self) -> None:
        """Too many bytes wait to be sent to the board: write no more."""

    def board_ready(self) -> None:
        """Bytes can be written again."""

    def device_lost(self, error: DeviceError) -> None:
        """The device is gone, and not yours any more."""


def local_now() -> datetime:
    """The lab's time of day: who is refused asks the person next to them, not a server."""
    return datetime.now()


def since_text(since: datetime) -> str:
    """The time of day, with the date if that was not today."""
    is_today = since.date() == local_now().date()
    return since.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S")
