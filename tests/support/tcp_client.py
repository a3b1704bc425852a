"""A TCP client that sends exactly the bytes it is told to, and reads only when it is told to."""

from __future__ import annotations

import array
import asyncio
import ctypes
import fcntl
import re
import select
import socket
import struct
import termios
from collections.abc import Callable
from typing import Self

from tests.support.telnet_wire import BINARY, COM_PORT, ECHO, SGA, do, subnegotiation, will

#: Tells the gateway that a client speaks telnet, and nothing else: it waits for no more then.
SPEAKS_TELNET = b"\xff\xf1"

#: What the gateway sends first.
GREETING = will(ECHO) + will(SGA) + do(BINARY)

#: What it answers behind that when a client agrees to COM-PORT-OPTION.
GREETED_ACCEPTS_COM_PORT = do(COM_PORT) + will(BINARY)

#: asm-generic/socket.h and linux/bpf_common.h: a filter of one instruction, which lets 0 bytes in.
_SO_ATTACH_FILTER = 26
_BPF_RET = 0x06

_COMMAND = rb"\xff(?:(\xff)|[\xfb-\xfe].|\xfa(?:[^\xff]|\xff\xff)*\xff\xf0|[^\xfa-\xff])"
_UNFINISHED = rb"\xff(?:[\xfb-\xfe]|\xfa(?:[^\xff]|\xff\xff)*\xff?)?\Z"
_WHOLE = re.compile(_COMMAND, re.DOTALL)
_SO_FAR = re.compile(_COMMAND + b"|" + _UNFINISHED, re.DOTALL)


def data_of(wire: bytes) -> bytes:
    """The data in all that the gateway has sent, without telnet commands."""
    return _WHOLE.sub(lambda match: match[1] or b"", wire)


def data_so_far(wire: bytes) -> bytes:
    """The data in what has come so far; the last command may lack its end."""
    return _SO_FAR.sub(lambda match: match[1] or b"", wire)


def com_port(code: int, value: bytes = b"") -> bytes:
    """A COM-PORT-OPTION command; the gateway's answers have 100 added to the code."""
    return subnegotiation(bytes([44, code]) + value)


class TcpClient:
    """A connection to a gateway on loopback; `await connect`, then use it with `with`.

    `received` is all that has been read so far.
    """

    def __init__(self, connection: socket.socket | None = None) -> None:
        self.received = bytearray()
        self._socket = connection or socket.socket()
        self._socket.setblocking(False)
        self._address: tuple[str, int] | None = None
        self.sent_bytes = 0

    @classmethod
    async def connect(
        cls, tcp_port: int, *, receive_buffer_bytes: int | None = None, source: str = "127.0.0.1"
    ) -> Self:
        """Connect; a small receive buffer makes a client that does not read felt early."""
        client = cls()
        client._socket.bind((source, 0))
        if receive_buffer_bytes is not None:
            client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(client._socket, ("127.0.0.1", tcp_port))
        client._address = client._socket.getsockname()
        return client

    @classmethod
    def of(cls, connection: socket.socket) -> Self:
        """A connection that the gateway has made."""
        client = cls(connection)
        connection.setblocking(False)
        return client

    @property
    def address(self) -> tuple[str, int]:
        """Where it connects from; once connected, also after its end."""
        if self._address is None:
            host, tcp_port = self._socket.getsockname()
            self._address = host, tcp_port
        return self._address

    @classmethod
    async def accepted(cls, listener: socket.socket) -> Self:
        """The next connection that the gateway makes to a listening socket."""
        listener.setblocking(False)
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        return cls.of(connection)

    @property
    def name(self) -> str:
        """How the gateway calls this client."""
        host, tcp_port = self.address
        return f"{host}:{tcp_port}"

    @property
    def data(self) -> bytes:
        """The board's bytes in what has been read."""
        return data_so_far(bytes(self.received))

    async def send(self, data: bytes) -> None:
        """Send all of it; waits while the gateway does not read."""
        await asyncio.get_running_loop().sock_sendall(self._socket, data)
        self.sent_bytes += len(data)

    async def receive(self, is_enough: Callable[[], object]) -> None:
        """Read until a condition holds, which may look at `received` and `data`."""
        while not is_enough():
            chunk = await self._receive_some()
            assert chunk, f"the gateway hung up after {bytes(self.received)!r}"
            self.received += chunk

    async def receive_some(self) -> None:
        """Read once."""
        n_bytes = len(self.received)
        await self.receive(lambda: len(self.received) > n_bytes)

    def set_receive_buffer(self, n_bytes: int) -> None:
        """Of a small one, the kernel makes much use only every 40 ms."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, n_bytes)

    def has_more(self) -> bool:
        """Whether anything has come that has not been read."""
        return bool(select.select([self._socket], [], [], 0)[0])

    @property
    def unread_bytes(self) -> int:
        """What has come and has not been read."""
        count = array.array("i", [0])
        fcntl.ioctl(self._socket, termios.FIONREAD, count)
        return count[0]

    async def receive_wire(self, wanted: bytes) -> None:
        """Read until these very bytes have come."""
        await self.receive(lambda: wanted in self.received)

    async def receive_data(self, wanted: bytes) -> None:
        """Read until all of the board's bytes so far are `wanted`."""
        await self.receive(lambda: len(self.data) >= len(wanted))
        assert self.data == wanted

    async def receive_to_end(self) -> bytes:
        """Read until the gateway hangs up; all that was ever received, without telnet commands."""
        while chunk := await self._receive_some():
            self.received += chunk
        return data_of(bytes(self.received))

    async def _receive_some(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, 65536)

    def send_urgent(self, data: bytes) -> None:
        """Send a few bytes, the last of them as TCP urgent data."""
        self.sent_bytes += self._socket.send(data, socket.MSG_OOB)

    def stop_sending(self) -> None:
        """Close our direction only."""
        self._socket.shutdown(socket.SHUT_WR)

    def fall_silent(self) -> None:
        """Be as on a machine that has died: the kernel drops what comes, and answers nothing."""
        return_nothing = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RET, 0, 0, 0))
        program = struct.pack("HP", 1, ctypes.addressof(return_nothing))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def reset(self) -> None:
        """Leave with a TCP RST, as a program that dies with unread data does."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
