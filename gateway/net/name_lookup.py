"""Host names to addresses, without a resolver that hangs keeping anything else waiting.

A resolver whose servers are out of reach takes half a minute for each name, and can't be
interrupted. asyncio has it done on the threads on which files are read as well, and waits for
those when the loop ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

#: So many names are looked up at a time; others wait. They are as many as the configuration has,
#: since each is looked up once for all who ask meanwhile.
MOST_THREADS: Final = 8

#: Family and socket address of each address.
Addresses = list[tuple[int, Any]]

_lock = threading.Lock()
_waiting: deque[Callable[[], None]] = deque()
_n_threads = 0

#: Lookups that have not ended, by their loop and what is looked up.
_Key = tuple[asyncio.AbstractEventLoop, str, int]
_pending: dict[_Key, asyncio.Future[Addresses | OSError]] = {}


async def look_up(host: str, tcp_port: int) -> Addresses:
    """The addresses to connect to or to listen at; OSError if the resolver says that.

    Who stops waiting leaves the lookup to whoever asks next.
    """
    loop = asyncio.get_running_loop()
    key = loop, host, tcp_port
    found = _pending.get(key)
    if found is None:
        found = _pending[key] = loop.create_future()
        _start(lambda: _look_up(key))
    outcome = await asyncio.shield(found)
    if isinstance(outcome, OSError):
        raise outcome
    return outcome


def _look_up(key: _Key) -> None:
    loop, host, tcp_port = key
    outcome: Addresses | OSError
    try:
        entries = socket.getaddrinfo(host, tcp_port, type=socket.SOCK_STREAM)
        outcome = [(family, address) for family, _, _, _, address in entries]
    except OSError as error:
        outcome = error
    except UnicodeError:  # a label that no name server takes
        outcome = OSError("not a host name")
    found = _pending.pop(key)
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(found.set_result, outcome)


def _start(job: Callable[[], None]) -> None:
    """Do it on a thread, now or when one is free; nobody waits for these threads."""
    global _n_threads  # noqa: PLW0603 - threads belong to the process
    with _lock:
        if _n_threads >= MOST_THREADS:
            _waiting.append(job)
            return
        _n_threads += 1
    threading.Thread(target=_work, args=(job,), name="name lookup", daemon=True).start()


def _work(job: Callable[[], None]) -> None:
    global _n_threads  # noqa: PLW0603 - as above
    while True:
        job()
        with _lock:
            if not _waiting:
                _n_threads -= 1
                return
            job = _waiting.popleft()
