"""What has come from a port and nobody has read yet; reading waits here.

One thread feeds, any number of others take. All of it is guarded by the connection's condition,
which who waits for the server's answers waits for, too.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import deque

#: What may wait to be read, as in a tty's driver, only that nothing is lost above it: the
#: receiving thread pauses, and with it the server. Ten seconds of the fastest serial line.
MAX_WAITING_BYTES = 4 * 1024 * 1024

#: While somebody waits for an answer of the server's, data in front of it is taken all the same.
#: No serial line sends as much within an answer's time-out.
MAX_WAITING_BYTES_AHEAD_OF_ANSWERS = 64 * 1024 * 1024


class ConnectionEndedError(Exception):
    """Nothing more comes, and all that came has been read. Its text says why."""


class Received:
    """The bytes between the receiving thread and those that read.

    Times are of `time.monotonic`; time-outs in seconds, None waits for ever.
    """

    def __init__(self, news: threading.Condition) -> None:
        self.news = news
        self.ended: str | None = None  # why nothing more comes
        self.answers_awaited = 0  # how many threads wait for answers
        self._data = bytearray()
        self._last_feed_s = 0.0
        self._wanted = 0.0  # how much somebody waits for at once
        self._purges: deque[float] = deque()  # until when each is waited for
        self._cancelled = False
        self._dropped = False
        self._signal: tuple[socket.socket, socket.socket] | None = None
        self._signalled = False

    def __len__(self) -> int:
        return len(self._data)

    # For the receiving thread.

    def wait_for_room(self) -> None:
        """Returns once more may be received."""
        with self.news:
            while not self._has_room():
                self.news.wait()

    def feed(self, data: bytes) -> None:
        """Data has come."""
        with self.news:
            now_s = time.monotonic()
            while self._purges and self._purges[0] < now_s:
                self._purges.popleft()
            if self._purges or self._dropped:
                return
            self._data += data
            self._last_feed_s = now_s
            self._tell()
            self.news.notify_all()

    def end(self, reason: str) -> None:
        """Nothing more comes."""
        with self.news:
            self.ended = reason
            self._tell()
            self.news.notify_all()

    def _has_room(self) -> bool:
        if self.ended is not None or self._dropped:
            return True
        if self.answers_awaited:
            return len(self._data) < MAX_WAITING_BYTES_AHEAD_OF_ANSWERS
        return len(self._data) < max(MAX_WAITING_BYTES, self._wanted)

    # For everybody else.

    def purge(self, give_up_s: float) -> None:
        """Forget what has come, and what comes until `purged`, or until that time."""
        with self.news:
            self._forget(len(self._data))
            self._purges.append(give_up_s)

    def purged(self) -> None:
        """The server has said that what comes now was received after the oldest purge."""
        with self.news:
            if self._purges:
                self._purges.popleft()

    def drop(self) -> None:
        """Forget all that has come and will."""
        with self.news:
            self._dropped = True
            self._forget(len(self._data))
            self.news.notify_all()

    def cancel(self) -> None:
        """Let the read that waits, or else the next that would have to, return what there is."""
        with self.news:
            self._cancelled = True
            self.news.notify_all()

    def take(
        self, size: int, timeout_s: float | None, gap_s: float | None, reply_due_s: float
    ) -> bytes:
        """`size` bytes, or fewer after `timeout_s`, or once none came for `gap_s` since the last.

        `reply_due_s` is when the answer to what was written last can be here at the earliest: a
        reader that has got nothing at all waits `timeout_s` from then on, as it does at a port
        without a network. Raises ConnectionEndedError when there is nothing and never will be.
        """
        with self.news:
            if len(self._data) < size:
                self._wait(size, timeout_s, gap_s, reply_due_s)
            return self._forget(min(size, len(self._data)))

    def _wait(
        self, size: int, timeout_s: float | None, gap_s: float | None, reply_due_s: float
    ) -> None:
        begin_s = time.monotonic()
        deadline_s = math.inf if timeout_s is None else begin_s + timeout_s
        empty_deadline_s = max(deadline_s, reply_due_s + timeout_s) if timeout_s else deadline_s
        while len(self._data) < size:
            until_s = deadline_s if self._data else empty_deadline_s
            if gap_s is not None and self._data:
                until_s = min(until_s, max(begin_s, self._last_feed_s) + gap_s)
            if not self._wait_for_more(size, until_s):
                return

    def take_until(  # what a reader wants to know, no more
        self,
        expected: bytes,
        size: int | None,
        timeout_s: float | None,
        reply_due_s: float,
        *,
        restart: bool,
    ) -> bytes:
        """All up to and with `expected`, or `size` bytes, or what there is after `timeout_s`.

        With `restart` the time-out begins anew with everything that comes.
        """
        with self.news:
            begin_s, searched = time.monotonic(), 0
            while True:
                if (length := self._length_of(expected, searched, size)) is not None:
                    return self._forget(length)
                searched = len(self._data)
                until_s = math.inf
                if timeout_s is not None:
                    since_s = max(begin_s, self._last_feed_s) if restart else begin_s
                    if not self._data and timeout_s:
                        since_s = max(since_s, reply_due_s)
                    until_s = since_s + timeout_s
                if not self._wait_for_more(math.inf if size is None else size, until_s):
                    return self._forget(len(self._data))

    def _length_of(self, expected: bytes, searched: int, size: int | None) -> int | None:
        found = self._data.find(expected, max(0, searched - len(expected) + 1))
        length = found + len(expected) if found >= 0 else None
        if size is not None and len(self._data) >= size:
            return min(size, length or size)
        return length

    def _wait_for_more(self, wanted: float, until_s: float) -> bool:
        """Whether it is worth looking again."""
        if self._cancelled:
            self._cancelled = False
            return False
        if self.ended is not None:
            if not self._data:
                raise ConnectionEndedError(self.ended)
            return False
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return False
        self._wanted = wanted
        if len(self._data) >= MAX_WAITING_BYTES:
            self.news.notify_all()  # the receiving thread pauses
        try:
            self.news.wait(None if left_s == math.inf else left_s)
        finally:
            self._wanted = 0
        return True

    def _forget(self, size: int) -> bytes:
        was_full = len(self._data) >= MAX_WAITING_BYTES
        taken = bytes(self._data[:size])
        del self._data[:size]
        if was_full:
            self.news.notify_all()
        if self._signalled and not self._data and self.ended is None:
            self._signalled = False
            if self._signal is not None:
                self._signal[0].recv(1)
        return taken

    # For those who wait with select().

    def fileno(self) -> int:
        """A descriptor that can be read while there is something to take, or nothing will be."""
        with self.news:
            if self._signal is None:
                self._signal = socket.socketpair()
                if self._data or self.ended is not None:
                    self._tell()
            return self._signal[0].fileno()

    def close(self) -> None:
        """Let go of the descriptor."""
        with self.news:
            if self._signal is not None:
                for end in self._signal:
                    end.close()
                self._signal = None

    def _tell(self) -> None:
        if self._signal is not None and not self._signalled:
            self._signalled = True
            self._signal[1].send(b"!")
