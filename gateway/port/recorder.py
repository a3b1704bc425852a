"""Keep the last of a board's output, with its times, for clients that connect later.

Pure: times are arguments. What is written to the board is not kept: it may hold secrets that
somebody typed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

#: What arrives within this belongs to one moment: two reads of one burst are one entry.
_MOMENT_S = 0.01

#: One entry grows to this at most, so that the oldest can be dropped in small steps.
_LARGEST_ENTRY_BYTES = 4096

#: An entry costs about 150 bytes of memory beside its own, so a board that sends byte by byte would
#: fill the memory with times. The latest of this many moments keep their times; of what was before
#: them, neighbours of up to _MERGED_BYTES together share the first one's.
_MOST_MOMENTS = 4096
_MERGED_BYTES = 1024


@dataclass(slots=True)
class _Entry:
    at: float
    data: bytearray


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of output: the position of its first byte, and when the first byte of those arrived
    that were recorded together with it.
    """

    seq: int
    at: float
    data: bytes


#: Told of a piece of output: the position of its first byte, and the bytes.
Follower = Callable[[int, bytes], None]


class Recorder:
    """The last `limit_bytes` of a board's output; 0 keeps nothing.

    Positions count every byte since the first, kept or not. `end` is that of the next byte. All of
    the bytes are kept however small the pieces in which they came; the memory for their times is
    bounded: 0.6 MB, and 0.3 times `limit_bytes`.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.end = 0
        self._followers: tuple[Follower, ...] = ()
        self._limit_bytes = limit_bytes
        self._old: deque[_Entry] = deque()  # older than all of the recent, merged where small
        self._recent: deque[_Entry] = deque()
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
        for entry in chain(reversed(self._recent), reversed(self._old)):
            if seq <= since:
                break
            seq -= len(entry.data)
            skipped = max(0, since - seq)
            found.append(Piece(seq + skipped, entry.at, bytes(entry.data[skipped:])))
        return found[::-1]

    def first(self, since: int, n_bytes: int) -> list[Piece]:
        """What is kept from the position `since` on, oldest first, of it the first `n_bytes`.

        Copies nothing else, so that all can be read in steps.
        """
        since = max(since, self.begin)
        newer: list[tuple[int, _Entry]] = []
        if since - self.begin < self.end - since:
            seq = self.begin
            for entry in chain(self._old, self._recent):
                if seq >= since + n_bytes:
                    break
                if seq + len(entry.data) > since:
                    newer.append((seq, entry))
                seq += len(entry.data)
        else:
            seq = self.end
            for entry in chain(reversed(self._recent), reversed(self._old)):
                if seq <= since:
                    break
                seq -= len(entry.data)
                if seq < since + n_bytes:
                    newer.append((seq, entry))
            newer.reverse()
        found: list[Piece] = []
        for seq, entry in newer:
            begin = max(0, since - seq)
            data = bytes(entry.data[begin : since + n_bytes - seq])
            if data:
                found.append(Piece(seq + begin, entry.at, data))
        return found

    def tail(self) -> bytes:
        """All that is kept, oldest first."""
        return b"".join(entry.data for entry in chain(self._old, self._recent))

    def _keep(self, at: float, data: bytes) -> None:
        last = self._recent[-1] if self._recent else None
        if (
            last is not None
            and at - last.at <= _MOMENT_S
            and len(last.data) + len(data) <= _LARGEST_ENTRY_BYTES
        ):
            last.data += data
        else:
            self._recent.append(_Entry(at, bytearray(data)))
            if len(self._recent) > _MOST_MOMENTS:
                self._age()
        self._n_bytes += len(data)
        if self._n_bytes > self._limit_bytes:
            self._forget()

    def _age(self) -> None:
        """Move the oldest of the recent entries to the old ones."""
        entry = self._recent.popleft()
        last = self._old[-1] if self._old else None
        if last is not None and len(last.data) + len(entry.data) <= _MERGED_BYTES:
            last.data += entry.data
        else:
            self._old.append(entry)

    def _forget(self) -> None:
        excess = self._n_bytes - self._limit_bytes
        self._n_bytes = self._limit_bytes
        while excess:
            entries = self._old or self._recent
            oldest = entries[0].data
            if excess < len(oldest):
                del oldest[:excess]
                return
            excess -= len(oldest)
            entries.popleft()
