"""Host names, while the resolver answers and while it does not."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from gateway.net import name_lookup
from gateway.net.name_lookup import MOST_THREADS, look_up
from tests.support.pty_board import until
from tests.support.resolver import Resolver, resolver_that_hangs


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    with resolver_that_hangs(monkeypatch) as stands_in:
        yield stands_in


async def test_a_name_has_its_addresses_and_one_without_is_an_error(resolver: Resolver) -> None:
    resolver.answers.set()
    assert await look_up("lab", 4001) == [
        (socket.AF_INET, ("127.0.0.1", 4001)),
        (socket.AF_INET, ("127.0.0.2", 4001)),
    ]
    with pytest.raises(OSError, match="Name or service not known"):
        await look_up("nowhere", 1)


async def test_a_resolver_that_hangs_is_asked_once_for_each_name_and_keeps_no_thread_else(
    resolver: Resolver,
) -> None:
    for _ in range(3):  # as a dialer that tries again and again
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await look_up("lab", 4001)
    waiting = [asyncio.create_task(look_up("lab", 4001)) for _ in range(3)]
    # What else is done on threads goes on.
    assert await asyncio.to_thread(lambda: "done") == "done"
    await until(lambda: resolver.asked)
    resolver.answers.set()
    assert len({str(addresses) for addresses in await asyncio.gather(*waiting)}) == 1
    assert resolver.asked == ["lab"]


async def test_threads_are_few_and_every_name_gets_its_turn(resolver: Resolver) -> None:
    names = [f"lab{number}" for number in range(5 * MOST_THREADS)]
    waiting = [asyncio.create_task(look_up(name, 1)) for name in names]
    await until(lambda: len(resolver.asked) == MOST_THREADS)
    threads = [thread for thread in threading.enumerate() if thread.name == "name lookup"]
    assert len(threads) == MOST_THREADS
    resolver.answers.set()
    await asyncio.gather(*waiting)
    assert sorted(resolver.asked) == sorted(names)
    assert not name_lookup._pending
