"""What a client has not taken yet of a board's output that goes on without it.

Bounded: the oldest goes first. Who drives a board is waited for instead, see `sharing`.
"""

from __future__ import annotations

from collections import deque

#: Besides what the kernel keeps for a connection (4 MiB). 23 s of output at 115200 baud.
BACKLOG_BYTES = 262144


class Backlog:
    """The last `BACKLOG_BYTES` of what was added and not taken."""

    def __init__(self) -> None:
        self.dropped_bytes = 0
        self._chunks: deque[bytes] = deque()
        self._n_bytes = 0

    def __len__(self) -> int:
        return self._n_bytes

    def add(self, data: bytes) -> None:
        """The board has sent `data`."""
        self._chunks.append(data)
        self._n_bytes += len(data)
        while self._n_bytes > BACKLOG_BYTES:
            oldest = self._chunks.popleft()
            dropped_bytes = min(self._n_bytes - BACKLOG_BYTES, len(oldest))
            if dropped_bytes < len(oldest):
                self._chunks.appendleft(oldest[dropped_bytes:])
            self._n_bytes -= dropped_bytes
            self.dropped_bytes += dropped_bytes

    def take(self) -> bytes:
        """The oldest chunk; the client has it now."""
        data = self._chunks.popleft()
        self._n_bytes -= len(data)
        return data

    def take_all(self) -> bytes:
        """All of it; the client has it now."""
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._n_bytes = 0
        return data
