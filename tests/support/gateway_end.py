"""The gateway's end of a test client's TCP connection, as the kernel has it.

Gateway and client are in one process: the socket is found among its descriptors by its peer. What
is read of it here needs nothing of the code that serves the connection.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.tcp_client import TcpClient
from tests.support.tty_board import turns, until

#: `tcpi_bytes_received` of struct tcp_info (linux/tcp.h).
_BYTES_RECEIVED = struct.Struct("Q")
_BYTES_RECEIVED_OFFSET = 128
_RETRANSMITS_OFFSET, _PROBES_OFFSET = 2, 3
_LAST_DATA_OFFSET, _LAST_ACK_OFFSET = 52, 56  # in ms

#: So many turns of the loop without a byte read: the gateway reads no more.
_STALLED_TURNS = 150


class GatewayEnd:
    """The other end of a client; it need not exist yet, and may be closed already.

    `client` is the test's client, or the address that any other connects from.
    """

    def __init__(self, client: TcpClient | tuple[str, int]) -> None:
        self._peer = client.address if isinstance(client, TcpClient) else client
        self._descriptor = -1

    @property
    def exists(self) -> bool:
        """Whether the connection is accepted, and not closed by the gateway."""
        with self._borrowed() as end:
            return end is not None

    @property
    def read_bytes(self) -> int:
        """What the gateway has read of all that has arrived; 0 without a connection."""
        with self._borrowed() as end:
            if end is None:
                return 0
            (received_bytes,) = _BYTES_RECEIVED.unpack_from(_tcp_info(end), _BYTES_RECEIVED_OFFSET)
            unread = array.array("i", [0])
            fcntl.ioctl(end, termios.FIONREAD, unread)
            return int(received_bytes) - unread[0]

    @property
    def silence_s(self) -> float:
        """How long nothing has come from the client, not even an acknowledgement."""
        with self._borrowed() as end:
            assert end is not None, "no connection"
            info = _tcp_info(end)
            offsets = (_LAST_DATA_OFFSET, _LAST_ACK_OFFSET)
            silence_ms: int = min(struct.unpack_from("I", info, at)[0] for at in offsets)
            return silence_ms / 1000

    def option(self, level: int, name: int) -> int:
        """A socket option."""
        with self._borrowed() as end:
            assert end is not None, "no connection"
            return end.getsockopt(level, name)

    def keep_little(self) -> None:
        """Have the kernel keep little of what the client does not take: 4 KiB, which it doubles."""
        with self._borrowed() as end:
            assert end is not None, "no connection"
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    @contextmanager
    def _borrowed(self) -> Iterator[socket.socket | None]:
        end = self._socket_at(self._descriptor)
        if end is None:
            descriptors = (int(entry.name) for entry in Path("/proc/self/fd").iterdir())
            end = next(filter(None, map(self._socket_at, descriptors)), None)
        try:
            yield end
        finally:
            if end is not None:
                self._descriptor = end.detach()

    def _socket_at(self, descriptor: int) -> socket.socket | None:
        """The socket of that descriptor if it is ours, else None."""
        if descriptor < 0:
            return None
        with contextlib.suppress(OSError):  # no descriptor, no socket, or not connected
            end = socket.socket(fileno=descriptor)
            if _peer_of(end) == self._peer:
                return end
            end.detach()
        return None


async def deliver(client: TcpClient, data: bytes) -> None:
    """Send, and wait until the gateway has read all that the client has sent so far."""
    await client.send(data)
    end = GatewayEnd(client)
    await until(lambda: end.read_bytes >= client.sent_bytes or not end.exists)


async def until_stalled(client: TcpClient) -> int:
    """Wait until the gateway reads no more of a client; how much it has read."""
    end = GatewayEnd(client)
    read_bytes, still = -1, 0
    while still < _STALLED_TURNS:
        await turns(1)
        now = end.read_bytes
        read_bytes, still = now, still + 1 if now == read_bytes else 0
    return read_bytes


class KernelSays:
    """What the kernel is made to say of one client's machine, whichever code asks it.

    `silence_s` is how long nothing has come from it, `unanswered` how many probes it has not
    answered (struct tcp_info, linux/tcp.h).
    """

    def __init__(self, patch: pytest.MonkeyPatch, client: TcpClient, silence_s: float) -> None:
        self.silence_s = silence_s
        self.unanswered = 0
        self._end = GatewayEnd(client)
        really = socket.socket.getsockopt

        def getsockopt(end: socket.socket, level: int, option: int, *size: int) -> Any:
            said: Any = really(end, level, option, *size)
            is_info = (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
            if is_info and len(said) > _LAST_ACK_OFFSET and _peer_of(end) == client.address:
                return self._changed(said)
            return said

        patch.setattr(socket.socket, "getsockopt", getsockopt)

    @property
    def probes_every_s(self) -> int:
        """How often the kernel is to ask the machine when nothing comes from it."""
        return self._end.option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)

    def _changed(self, info: bytes) -> bytes:
        changed = bytearray(info)
        changed[_RETRANSMITS_OFFSET], changed[_PROBES_OFFSET] = 0, self.unanswered
        for offset in (_LAST_DATA_OFFSET, _LAST_ACK_OFFSET):
            struct.pack_into("I", changed, offset, round(self.silence_s * 1000))
        return bytes(changed)


def _tcp_info(end: socket.socket) -> bytes:
    n_bytes = _BYTES_RECEIVED_OFFSET + _BYTES_RECEIVED.size
    return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, n_bytes)


def _peer_of(end: socket.socket) -> tuple[Any, ...]:
    """Address and port of the peer; empty without one."""
    try:
        peer = end.getpeername()
    except OSError:  # not connected
        return ()
    return peer[:2] if isinstance(peer, tuple) else ()  # a path or nothing: no TCP
