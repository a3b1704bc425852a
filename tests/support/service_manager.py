"""The service manager's end of sd_notify(3): a datagram socket that keeps what it is told."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Self

import pytest

from tests.support.processes import START_LIMIT_S

_MAX_MESSAGE_BYTES = 4096


class ServiceManager:
    """Listens at a notify socket while it is a context; `environment` is what a service gets."""

    def __init__(self, folder: Path, **environment: str) -> None:
        path = folder / "notify"
        self.environment = {"NOTIFY_SOCKET": str(path), **environment}
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def receive(self, limit_s: float = START_LIMIT_S) -> str:
        """The next message; the test fails if none comes."""
        self._socket.settimeout(limit_s)
        try:
            message = self._socket.recv(_MAX_MESSAGE_BYTES).decode()
        except TimeoutError:
            pytest.fail(f"no message in {limit_s:g} s after {self.messages}")
        self.messages.append(message)
        return message

    def receive_until(self, wanted: str, limit_s: float = START_LIMIT_S) -> list[str]:
        """The messages up to the one wanted, and this one."""
        first = len(self.messages)
        deadline = time.monotonic() + limit_s
        while self.receive(max(deadline - time.monotonic(), 0.001)) != wanted:
            pass
        return self.messages[first:]

    def waiting(self) -> list[str]:
        """The messages that have come and not been received yet."""
        found = []
        self._socket.setblocking(False)
        try:
            while True:
                found.append(self._socket.recv(_MAX_MESSAGE_BYTES).decode())
        except BlockingIOError:
            self.messages += found
            return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
