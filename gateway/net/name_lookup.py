"""Look up host names on threads of its own.

A resolver whose servers are unreachable takes half a minute for each name and can't be interrupted.
asyncio would use the threads on which files are read, and join them when the loop ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import deque
from typing import Any, Final

#: Lookups at a time; further ones wait. Each name is looked up once for all who wait for it.
MOST_THREADS: Final = 8

#: Family and socket address of each address.
Addresses = list[tuple[int, Any]]

_Key = tuple[asyncio.AbstractEventLoop, str, int]

_lock = threading.Lock()
_waiting: deque[_Key] = deque()
_n_threads = 0
#: Unfinished lookups. The outcome of each is the result, an error too: nobody may await it.
_pending: dict[_Key, asyncio.Future[Addresses | OSError]] = {}


async def look_up(host: str, tcp_port: int) -> Addresses:
    """Return the addresses of a host. Raises OSError with the resolver's reason.

    Cancelling leaves the lookup running; the next call for the same name waits for it.
    """
    loop = asyncio.get_running_loop()
    key = loop, host, tcp_port
    found = _pending.get(key)
    if found is None:
        found = _pending[key] = loop.create_future()
        _start(key)
    outcome = await asyncio.shield(found)
    if isinstance(outcome, OSError):
        raise outcome
    return outcome


def _start(key: _Key) -> None:
    global _n_threads  # noqa: PLW0603 - threads belong to the process
    with _lock:
        if _n_threads >= MOST_THREADS:
            _waiting.append(key)
            return
        _n_threads += 1
    threading.Thread(target=_work, args=(key,), name="name lookup", daemon=True).start()


def _work(key: _Key) -> None:
    global _n_threads  # noqa: PLW0603 - as above
    while True:
        loop, host, tcp_port = key
        outcome = _resolved(host, tcp_port)
        found = _pending.pop(key)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(found.set_result, outcome)
        with _lock:
            if not _waiting:
                _n_threads -= 1
                return
            key = _waiting.popleft()


def _resolved(host: str, tcp_port: int) -> Addresses | OSError:
    try:
        entries = socket.getaddrinfo(host, tcp_port, type=socket.SOCK_STREAM)
    except OSError as error:
        return error
    except UnicodeError:  # a label that no name server accepts
        return OSError("not a host name")
    return [(family, address) for family, _, _, _, address in entries]
