"""A machine's resolver in the test's hands: it hangs until it is told to answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Resolver:
    """Stands in for the machine's; while `answers` is not set, it hangs.

    Each host is at 127.0.0.1 and 127.0.0.2, but for "nowhere".
    """

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, tcp_port: int, *, type: int) -> list[object]:  # noqa: A002
        """As the function of that name in `socket`."""
        self.asked.append(host)
        assert self.answers.wait(60)
        if host == "nowhere":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        ends = ["127.0.0.1", "127.0.0.2"]
        return [(socket.AF_INET, type, 0, "", (end, tcp_port)) for end in ends]


@contextmanager
def resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    """The one that the gateway asks inside the `with`; at its end, it answers."""
    stands_in = Resolver()
    monkeypatch.setattr("gateway.net.name_lookup.socket.getaddrinfo", stands_in.getaddrinfo)
    try:
        yield stands_in
    finally:
        stands_in.answers.set()
