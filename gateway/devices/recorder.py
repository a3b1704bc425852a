"""Keeps the last of what a board has said, with the times, for whoever comes too late.

Pure: times are arguments. What is written to the board is not kept: it may hold secrets that
somebody typed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

#: What arrives within this belongs to one moment: two reads of one burst are one entry.
_MOMENT_S = 0.01

#: A board that sends byte by byte would fill the memory with times: each entry costs about 150
#: bytes beside its own.
_MOST_ENTRIES = 4096

#: One entry grows to this at most, so that the oldest can be dropped in small steps.
_LARGEST_ENTRY_BYTES = 4096


@dataclass(slots=True)
class _Entry:
    at: float
    data: bytearray


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of output: the position of its first byte, and the time of that or a bit later."""

    seq: int
    at: float
    data: bytes


#: Told of a piece of output: the position of its first byte, and the bytes.
Follower = Callable[[int, bytes], None]


class Recorder:
    """The last `limit_bytes` of a board's output; 0 keeps nothing.

    Positions count every byte since the first, kept or not. `end` is that of the next byte.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.end = 0
        self._followers: tuple[Follower, ...] = ()
        self._limit_bytes = limit_bytes
        self._entries: deque[_Entry] = deque()
        self._n_bytes = 0

    def record(self, at: float, data: bytes) -> None:
        """The board has sent `data` at `at`, seconds of any clock that does not go back."""
        seq = self.end
        self.end += len(data)
        if self._limit_bytes:
            self._keep(at, data[-self._limit_bytes :])
        for follower in self._followers:
            follower(seq, data)

    @property
    def begin(self) -> int:
        """The position of the first byte that is kept; `end` if none is."""
        return self.end - self._n_bytes

    def follow(self, follower: Follower) -> None:
        """Tell `follower` of all that comes from now on, at once."""
        self._followers = (*self._followers, follower)

    def unfollow(self, follower: Follower) -> None:
        """Tell it no more."""
        left = list(self._followers)
        left.remove(follower)
        self._followers = tuple(left)

    def pieces(self, since: int) -> list[Piece]:
        """What is kept from the position `since` on, oldest first."""
        found: list[Piece] = []
        seq = self.end
        for entry in reversed(self._entries):
            if seq <= since:
                break
            seq -= len(entry.data)
            skipped = max(0, since - seq)
            found.append(Piece(seq + skipped, entry.at, bytes(entry.data[skipped:])))
        return found[::-1]

    def _keep(self, at: float, data: bytes) -> None:
        last = self._entries[-1] if self._entries else None
        if (
            last is not None
            and at - last.at <= _MOMENT_S
            and len(last.data) + len(data) <= _LARGEST_ENTRY_BYTES
        ):
            last.data += data
        else:
            self._entries.append(_Entry(at, bytearray(data)))
        self._n_bytes += len(data)
        if self._n_bytes > self._limit_bytes or len(self._entries) > _MOST_ENTRIES:
            self._forget()

    def tail(self) -> bytes:
        """All that is kept, oldest first."""
        return b"".join(entry.data for entry in self._entries)

    def entries(self, since: float = float("-inf")) -> list[tuple[float, bytes]]:
        """What is kept from `since` on, each piece with the time of its first byte."""
        return [(entry.at, bytes(entry.data)) for entry in self._entries if entry.at >= since]

    def _forget(self) -> None:
        while self._n_bytes > self._limit_bytes or len(self._entries) > _MOST_ENTRIES:
            oldest = self._entries[0]
            excess = self._n_bytes - self._limit_bytes
            if len(self._entries) > _MOST_ENTRIES or excess >= len(oldest.data):
                self._n_bytes -= len(oldest.data)
                self._entries.popleft()
            else:
                del oldest.data[:excess]
                self._n_bytes -= excess
