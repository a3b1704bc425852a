"""Looks after one client every few seconds: whether it is idle, and whether it only does not read.

How a client is told and closed is `session`'s matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Protocol

from gateway.client_socket import USER_TIMEOUT_MS

#: Several times within USER_TIMEOUT_MS, so that a client that has just stopped reading is seen.
_LOOK_S = 4.0

#: Where `struct tcp_info` has the segments on their way, and the bytes that are not: linux/tcp.h.
_TCPI_UNACKED_OFFSET = 24
_TCPI_NOTSENT_BYTES_OFFSET = 144
_TCP_INFO_BYTES = 148


class Watched(Protocol):
    """The session of the client."""

    received_bytes: int
    sent_bytes: int

    def close(self, reason: str) -> None:
        """End it."""


class ClientWatch:
    """See the module; made on the loop, looks from `start` to `stop`.

    The client is closed when no byte has gone either way for `idle_timeout_s` (0: never), and up
    to one look more.

    Linux ends a connection whose TCP_USER_TIMEOUT is over also while the peer acknowledges
    everything and has only no room for more (seen on 6.18): a monitor stopped by Ctrl-Z would be
    lost after 15 s. Such a peer is alive, so the option is off while bytes wait for a peer and
    none are on their way. If it dies then, the kernel gives up after 15 probes without an answer,
    which takes some 15 minutes.
    """

    def __init__(self, client: Watched, idle_timeout_s: float) -> None:
        self._client = client
        self._idle_timeout_s = idle_timeout_s
        self._loop = asyncio.get_running_loop()
        self._seen_bytes = 0
        self._seen_at = 0.0
        self._user_timeout_ms = USER_TIMEOUT_MS
        self._timer: asyncio.TimerHandle | None = None

    def start(self, transport: asyncio.Transport) -> None:
        """Look from now on; `transport` is connected."""
        self._socket = transport.get_extra_info("socket")
        self._seen_bytes = self._moved_bytes
        self._seen_at = self._loop.time()
        self._look_later()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _moved_bytes(self) -> int:
        return self._client.received_bytes + self._client.sent_bytes

    def _look_later(self) -> None:
        wait_s = min(_LOOK_S, self._idle_timeout_s) if self._idle_timeout_s else _LOOK_S
        self._timer = self._loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        self._set_user_timeout()
        moved_bytes = self._moved_bytes
        now = self._loop.time()
        if moved_bytes != self._seen_bytes:
            self._seen_bytes, self._seen_at = moved_bytes, now
        elif self._idle_timeout_s and now - self._seen_at >= self._idle_timeout_s:
            self._timer = None
            self._client.close(f"no byte for {self._idle_timeout_s:g} s")
            return
        self._look_later()

    def _set_user_timeout(self) -> None:
        """Put TCP_USER_TIMEOUT in force, unless the peer has acknowledged all that it let come."""
        with contextlib.suppress(OSError):  # the connection is gone, which is reported soon
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            (unacked,) = struct.unpack_from("I", info, _TCPI_UNACKED_OFFSET)
            (unsent_bytes,) = struct.unpack_from("I", info, _TCPI_NOTSENT_BYTES_OFFSET)
            wanted_ms = 0 if unsent_bytes and not unacked else USER_TIMEOUT_MS
            if wanted_ms != self._user_timeout_ms:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, wanted_ms)
                self._user_timeout_ms = wanted_ms
