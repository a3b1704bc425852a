"""A client of the session's fuzzer and the TCP connection to it, as asyncio shows it to a session.

It reads what it is sent at once unless it stalls; each segment that it sends is one read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from gateway.session.session import Session

#: As Linux numbers the states of a TCP connection.
_ESTABLISHED, _CLOSE_WAIT = 1, 8


class FuzzClient(asyncio.Transport):
    """See the module; `keeps` says whether `received` is kept."""

    def __init__(self, session: Session, number: int, *, keeps: bool) -> None:
        super().__init__()
        self._keeps = keeps
        self.received = bytearray()  # by the client
        self.written_bytes = 0
        self.taken_bytes = 0  # of what the client has sent
        self._session = session
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._unread = bytearray()
        self._segments: deque[bytes] = deque()
        self._stalled = False
        self._paused = False
        self._high_bytes = 65536  # asyncio's own mark, above which a transport asks for no more
        self._reads = True
        self._left = False
        self._closed = False
        self._reading: asyncio.Handle | None = None
        session.connection_made(self)

    # --- the client's side

    @property
    def unread_bytes(self) -> int:
        """What the client has not read yet."""
        return len(self._unread)

    def deliver(self, data: bytes) -> None:
        """The client sends a segment."""
        if not self._left and data:
            self._segments.append(data)
            self._read_on()

    def stall(self) -> None:
        """The client stops reading."""
        self._stalled = True

    def read(self) -> None:
        """The client reads again."""
        self._stalled = False
        self._pass_on()

    def leave(self) -> None:
        """The client closes its socket; it reads to the end before it does."""
        self.read()
        self._left = True
        self._read_on()

    def reset(self) -> None:
        """The client's machine drops the connection, with what is on its way."""
        self._left = True
        self._segments.clear()
        self._end(ConnectionResetError(104, "Connection reset by peer"))

    def _pass_on(self) -> None:
        if self._keeps:
            self.received += self._unread
        self._unread.clear()
        if self._paused:
            self._paused = False
            self._session.resume_writing()

    def _read_on(self) -> None:
        has_news = bool(self._segments) or self._left
        if has_news and self._reading is None and self._reads and not self._closed:
            self._reading = self._loop.call_soon(self._read_one)

    def _read_one(self) -> None:
        self._reading = None
        if not self._reads or self._closed:
            return
        if self._segments:
            self._take(self._segments.popleft())
            self._read_on()
        elif self._left:
            self._reads = False
            if not self._session.eof_received():
                self._end(None)

    def _take(self, segment: bytes) -> None:
        buffer = self._session.get_buffer(-1)
        taken = segment[: len(buffer)]
        if len(taken) < len(segment):
            self._segments.appendleft(segment[len(taken) :])
        buffer[: len(taken)] = taken
        self.taken_bytes += len(taken)
        self._session.buffer_updated(len(taken))

    def _end(self, error: Exception | None) -> None:
        if not self._closed:
            self._closed = True
            self._loop.call_soon(self._session.connection_lost, error)

    # --- asyncio.Transport

    def write(self, data: Any) -> None:
        if self._closed:
            return
        self.written_bytes += len(data)
        self._unread += data
        if not self._stalled:
            self._pass_on()
        elif len(self._unread) > self._high_bytes and not self._paused:
            self._paused = True
            self._session.pause_writing()

    def get_write_buffer_size(self) -> int:
        return len(self._unread)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        self._high_bytes = high

    def pause_reading(self) -> None:
        self._reads = False

    def resume_reading(self) -> None:
        self._reads = True
        self._read_on()

    def is_reading(self) -> bool:
        return self._reads and not self._closed

    def write_eof(self) -> None:
        pass  # the client stays a while, which the session has to end

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        self._end(None)

    def is_closing(self) -> bool:
        return self._closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        match name:
            case "peername":
                return ("192.0.2.1", self._number)
            case "socket":
                return self
        return default

    # --- socket.socket

    def setsockopt(self, *option: object) -> None:
        pass

    def getsockopt(self, *option: object) -> bytes:
        return bytes([_CLOSE_WAIT if self._left else _ESTABLISHED]).ljust(148, b"\0")
