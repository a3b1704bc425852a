"""What a client has not taken yet of a board's output that goes on without it.

Bounded: the oldest goes first. Who is waited for instead is `session`'s and `sharing`'s matter.
"""

from __future__ import annotations

from collections import deque


class Backlog:
    """The last `limit_bytes` of what was added and not taken."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.dropped_bytes = 0
        self._chunks: deque[bytes] = deque()
        self._n_bytes = 0

    def __len__(self) -> int:
        return self._n_bytes

    def fits(self, data: bytes) -> bool:
        """Whether all of `data` can be kept without anything being dropped."""
        return self._n_bytes + len(data) <= self._limit_bytes

    def add(self, data: bytes) -> int:
        """The board has sent `data`; returns how many bytes were dropped for it."""
        dropped_before = self.dropped_bytes
        self._chunks.append(data)
        self._n_bytes += len(data)
        while self._n_bytes > self._limit_bytes:
            oldest = self._chunks.popleft()
            dropped_bytes = min(self._n_bytes - self._limit_bytes, len(oldest))
            if dropped_bytes < len(oldest):
                self._chunks.appendleft(oldest[dropped_bytes:])
            self._n_bytes -= dropped_bytes
            self.dropped_bytes += dropped_bytes
        return self.dropped_bytes - dropped_before

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
