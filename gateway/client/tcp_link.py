"""The TCP connection of a client, with or without TLS: whole messages out, bytes in.

One thread receives while any number of others send. What the bytes mean is `wire`'s matter.
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

#: How often someone who waits for the network looks whether to go on waiting. Nobody else waits
#: for this: what can be sent is sent at once.
_LOOK_S = 0.1

#: The receiving thread waits for ever; a number all the same, since without one both halves of
#: the socket would block, and with one only that which it is set for.
_FOR_EVER_S = 1e6


class SendTimeoutError(Exception):
    """The deadline has passed or sending was cancelled; what was begun goes first next time."""


class Link:
    """One connection, made on creation; raises OSError when there is none to be had."""

    def __init__(self, address: Address) -> None:
        self._tls: TlsLayer | None = None
        self._lock = threading.Lock()  # held by who sends
        self._owed = b""  # begun and not finished, goes before all else
        self._later: deque[bytes] = deque()  # from who may not wait
        # Two objects, since Python keeps a socket's time-out in the object.
        self._receiver = socket.create_connection((address.host, address.port), address.timeout_s)
        try:
            self._set_options()
            if address.tls:
                self._start_tls(address)
            self._receiver.settimeout(_FOR_EVER_S)
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
        """What has come, waited for; b"" when the other side has said its last."""
        if self._tls is None:
            return self._receiver.recv(_RECEIVE_BYTES)
        # What came with the end of the handshake is still in there.
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

        Raises SendTimeoutError at the deadline (of time.monotonic(); None waits for ever) or once
        `is_cancelled` says so; data that the kernel has begun to take then goes out later.
        """
        while not self._lock.acquire(timeout=_slice_s(deadline_s)):
            _raise_if_over(deadline_s, is_cancelled)
        try:
            self._push(self._encrypted(self._take_later() + data), deadline_s, is_cancelled)
        finally:
            self._lock.release()
        self._send_later()

    def send_soon(self, data: bytes) -> None:
        """Send it as soon as that is possible, without waiting now: for the receiving thread,
        on which the other side may wait before it takes more from us.
        """
        self._later.append(data)
        self._send_later()

    def finish(self) -> None:
        """Tell the other side that no more comes. What it sends is still received."""
        try:
            if self._tls is not None and self._lock.acquire(timeout=_LOOK_S):
                try:
                    self._push(self._tls.farewell(), time.monotonic(), lambda: False)
                finally:
                    self._lock.release()
            self._receiver.shutdown(socket.SHUT_WR)
        except (OSError, SendTimeoutError):
            pass  # it has gone before us

    def interrupt(self) -> None:
        """End it. A `receive` that waits returns."""
        with contextlib.suppress(OSError):  # the other side was quicker
            self._receiver.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the sockets; nobody may be receiving or sending any more."""
        self._receiver.close()
        self._sender.close()

    def _take_later(self) -> bytes:
        later = b""
        while self._later:
            later += self._later.popleft()
        return later

    def _send_later(self) -> None:
        # Who finds the lock taken leaves it to the holder, who looks once more after releasing.
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
