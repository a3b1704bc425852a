"""The TCP connection of a client, with or without TLS: whole messages out, bytes in.

One thread receives while any number of others send.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from .address import Address

if TYPE_CHECKING:
    from .tls_layer import TlsLayer

_RECEIVE_BYTES = 65536

#: A dead gateway is noticed within a minute, not after two hours as the kernel would have it.
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 3}

#: How often a send that waits for the network checks whether to go on waiting.
_LOOK_S = 0.1

#: For the receiving thread. Without a number both halves of the socket would block.
_INDEFINITELY_S = 1e6


class SendTimeoutError(Exception):
    """The deadline has passed or sending was cancelled; what was begun goes first next time."""


class Link:
    """One connection, made on creation; raises OSError if that fails."""

    def __init__(self, address: Address) -> None:
        self._tls: TlsLayer | None = None
        self._lock = threading.Lock()  # held while sending
        self._owed = b""  # the rest of a message, goes before all else
        self._later: deque[bytes] = deque()  # from `send_soon`
        # Two objects, since Python keeps a socket's time-out in the object.
        self._receiver = socket.create_connection((address.host, address.port), address.timeout_s)
        try:
            self._set_options()
            if address.tls:
                self._start_tls(address)
            self._receiver.settimeout(_INDEFINITELY_S)
            self._sender = self._receiver.dup()
        except BaseException:
            self._receiver.close()
            raise

    def _set_options(self) -> None:
        self._receiver.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._receiver.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if (option := getattr(socket, name, None)) is not None:
                self._receiver.setsockopt(socket.IPPROTO_TCP, option, value)

    def _start_tls(self, address: Address) -> None:
        from .tls_layer import TlsLayer, context_of  # noqa: PLC0415  # its docstring

        tls = TlsLayer(context_of(address), address.host)
        agreed, answer = tls.shake_hands(b"")
        while not agreed:
            self._receiver.sendall(answer)
            received = self._receiver.recv(_RECEIVE_BYTES)
            if not received:
                raise OSError("the server has closed the connection instead of speaking TLS")
            agreed, answer = tls.shake_hands(received)
        self._receiver.sendall(answer)
        self._tls = tls

    def receive(self) -> bytes:
        """Wait for bytes and return them; b"" at the end of the stream."""
        if self._tls is None:
            return self._receiver.recv(_RECEIVE_BYTES)
        # Bytes that came with the end of the handshake are still in there.
        plain = self._tls.decrypt(b"")
        while not plain:
            received = self._receiver.recv(_RECEIVE_BYTES)
            if not received:
                return b""
            plain = self._tls.decrypt(received)
        return plain

    def send(
        self,
        data: bytes,
        deadline_s: float | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Hand all of it to the kernel, in one segment if it fits.

        Raises SendTimeoutError at the deadline (of time.monotonic(); None: indefinitely) or once
        `is_cancelled` returns True; a message that has been begun is finished later.
        """
        while not self._lock.acquire(timeout=_slice_s(deadline_s)):
            _raise_if_over(deadline_s, is_cancelled)
        try:
            self._push(self._encrypted(self._take_later() + data), deadline_s, is_cancelled)
        finally:
            self._lock.release()
        self._send_later()

    def send_soon(self, data: bytes) -> None:
        """Send as soon as possible without waiting: for the receiving thread, which must go on."""
        self._later.append(data)
        self._send_later()

    def finish(self) -> None:
        """End the sending half; the other half is still received."""
        try:
            if self._tls is not None and self._lock.acquire(timeout=_LOOK_S):
                try:
                    self._push(self._tls.farewell(), time.monotonic(), lambda: False)
                finally:
                    self._lock.release()
            self._receiver.shutdown(socket.SHUT_WR)
        except (OSError, SendTimeoutError):
            pass  # the other side was quicker

    def interrupt(self) -> None:
        """End the connection; a `receive` that waits returns."""
        with contextlib.suppress(OSError):  # the other side was quicker
            self._receiver.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the sockets, once no thread uses them."""
        self._receiver.close()
        self._sender.close()

    def _take_later(self) -> bytes:
        later = b""
        while self._later:
            later += self._later.popleft()
        return later

    def _send_later(self) -> None:
        # If the lock is taken, its holder sends this: it checks again after releasing.
        while self._later and self._lock.acquire(blocking=False):
            try:
                self._push(self._encrypted(self._take_later()), time.monotonic(), lambda: False)
            except (OSError, SendTimeoutError):
                return  # it is owed, or the receiving thread will find the end, too
            finally:
                self._lock.release()

    def _encrypted(self, data: bytes) -> bytes:
        return data if self._tls is None or not data else self._tls.encrypt(data)

    def _push(
        self, data: bytes, deadline_s: float | None, is_cancelled: Callable[[], bool]
    ) -> None:
        if self._owed:
            data = self._owed + data
        view = memoryview(data)
        try:
            while view:
                self._sender.settimeout(_slice_s(deadline_s))
                try:
                    view = view[self._sender.send(view) :]
                except (TimeoutError, BlockingIOError):
                    _raise_if_over(deadline_s, is_cancelled)
        finally:
            self._owed = bytes(view)


def _slice_s(deadline_s: float | None) -> float:
    if deadline_s is None:
        return _LOOK_S
    return min(max(deadline_s - time.monotonic(), 0.0), _LOOK_S)


def _raise_if_over(deadline_s: float | None, is_cancelled: Callable[[], bool]) -> None:
    if is_cancelled() or (deadline_s is not None and time.monotonic() >= deadline_s):
        raise SendTimeoutError
