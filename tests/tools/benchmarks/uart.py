"""The wire behind a tty as arithmetic: when each byte has left a UART, and what it still takes."""

from __future__ import annotations

_BITS_PER_BYTE = 10  # start, 8 data, stop

#: What the driver and the bridge chip hold of bytes that have not left: a page, as most drivers.
BUFFER_BYTES = 4096


class Uart:
    """One direction of a serial line at a fixed rate; times in seconds of any clock."""

    def __init__(self, baudrate: int) -> None:
        self._byte_s = _BITS_PER_BYTE / baudrate
        self.free_at = 0.0  # when the last byte taken has left

    def room(self, now: float) -> int:
        """How many bytes it takes now."""
        waiting = max(0.0, self.free_at - now) / self._byte_s
        return max(0, BUFFER_BYTES - round(waiting))

    def take(self, now: float, count: int) -> None:
        """Bytes have come: they leave behind those that wait, or from now on."""
        self.free_at = max(self.free_at, now) + self.duration(count)

    def duration(self, count: int) -> float:
        """How long so many bytes take."""
        return count * self._byte_s
