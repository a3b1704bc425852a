"""What is counted of one board's port, for who watches the gateway over months.

Counted where it happens, read by whoever asks; nothing here knows of metrics or their names.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

#: From what an ioctl takes on a good host to what makes a client give up, in seconds. Draining what
#: was written before takes its time on the wire: 64 KiB at 115200 baud are 5.7 s.
CONTROL_CALL_BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)


class Histogram:
    """How many values were at most each of some ascending bounds, and their sum.

    `counts` has one more for what was above all bounds; they are not cumulative.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> Histogram:
        """The same now, for another thread to read."""
        copied = Histogram(self.bounds)
        copied.counts = list(self.counts)
        copied.sum = self.sum
        return copied


class PortCounts:
    """What has happened since the port is served.

    `resets` counts by what the board was to start (bootloader, app) and by the strategy;
    `control_calls` how long calls took that may block in the kernel.
    """

    def __init__(self) -> None:
        self.opened = 0  # how often the tty was opened
        self.input_dropped_bytes = 0  # sent by clients for the board, which has not got them
        self.resets: Counter[tuple[str, str]] = Counter()
        self.control_calls = Histogram(CONTROL_CALL_BOUNDS_S)
