"""A TCP proxy that plays a slow network between a client and the gateway.

Each chunk leaves `delay_s` plus a random part of `jitter_s` after it came, each way, in order;
the end of a direction and a reset travel behind the data, as late as it. The proxy runs an event
loop in a thread of its own: the test may block, and may be run by a loop itself.

It delays, cuts, resets and trickles; it does not lose or reorder: TCP hides that from both ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")

#: What one direction of one connection may hold before its sender is made to wait. More than a
#: second of a 2 Mbaud line.
MAX_HELD_BYTES = 256 * 1024
READ_BYTES = 65536

#: How long the loop's thread may take to answer: it only ever does short things.
_CALL_LIMIT_S = 10.0

#: SO_LINGER on with 0 s: closing sends RST instead of FIN.
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)

_END = b""  # travels behind the data when the sender has shut down its sending half
_RESET = None  # and when it has reset the connection


class DelayProxy:
    """Listens on `port` of 127.0.0.1 and connects each client to `target_port` there.

    A context manager. `clock` tells seconds; with one that does not advance by itself, call
    `poke` after advancing it. The same `seed` gives the same sequence of jitter. With `trickle_s`
    each byte travels in a segment of its own, at least so long after the one before.
    """

    def __init__(
        self,
        target_port: int,
        delay_s: float,
        jitter_s: float = 0.0,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        *,
        trickle_s: float = 0.0,
    ) -> None:
        self.port = 0  # given by the kernel at start
        self.clock = clock
        self.trickle_s = trickle_s
        self.heard_at: float | None = None  # when a client sent last
        self.is_cut = False
        self.poked = asyncio.Event()
        self._target_port = target_port
        self._delay_s, self._jitter_s, self._rng = delay_s, jitter_s, random.Random(seed)
        self._connections: dict[asyncio.Task[Any], list[_Pipe]] = {}
        self._errors: list[dict[str, Any]] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="delay")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def held_bytes(self) -> tuple[int, int]:
        """What waits inside the proxy: from clients to the target, and from it to clients."""
        return self._sum_of_pipes(lambda pipe: pipe.held_bytes)

    def held_ends(self) -> tuple[int, int]:
        """How many half-closes and resets wait inside the proxy, each way."""
        return self._sum_of_pipes(lambda pipe: sum(not what for _, what in pipe.held))

    def quiet_s(self) -> float:
        """How long clients have sent nothing; 0 before they have sent anything."""
        return 0.0 if self.heard_at is None else self.clock() - self.heard_at

    def poke(self) -> None:
        """Look at the clock: what is due is passed on."""

        async def poke() -> None:
            self.poked.set()
            self.poked.clear()

        self._call(poke())

    def cut(self) -> None:
        """Pull the cable: nothing passes any longer, old or new, and no end is informed.

        Each end's kernel still talks to the proxy's: a sender notices by full buffers, not by
        TCP's own time-outs.
        """
        self.is_cut = True

    def reset(self) -> None:
        """Reset every connection on both sides at once, as a router that lost its state does."""
        self._call(self._reset_all())

    def due(self) -> float:
        """When something that comes now shall leave."""
        return self.clock() + self._delay_s + self._rng.uniform(0, self._jitter_s)

    async def _reset_all(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def _sum_of_pipes(self, value: Callable[[_Pipe], int]) -> tuple[int, int]:
        async def sums() -> tuple[int, int]:
            pipes = list(self._connections.values())
            return sum(value(up) for up, _ in pipes), sum(value(down) for _, down in pipes)

        return self._call(sums())

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_CALL_LIMIT_S)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _, context: self._errors.append(context))
        async with await asyncio.start_server(self._carry, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._started.set()
            await self._stop.wait()
            await self._reset_all()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until both directions have ended; anything else resets both sides."""
        writers = [writer]
        task = asyncio.current_task()
        assert task is not None
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target_port)
            writers.append(there[1])
            pipes = [_Pipe(self, reader, there[1]), _Pipe(self, there[0], writer)]
            self._connections[task] = pipes
            async with asyncio.TaskGroup() as group:
                group.create_task(pipes[0].take(self._hear))
                group.create_task(pipes[1].take(lambda: None))
                for pipe in pipes:
                    group.create_task(pipe.pass_on())
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            for each in writers:
                linger = (socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                with contextlib.suppress(OSError):  # it is closed already
                    each.get_extra_info("socket").setsockopt(*linger)
                each.transport.abort()
        finally:
            self._connections.pop(task, None)
            for each in writers:
                each.close()

    def _hear(self) -> None:
        self.heard_at = self.clock()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(_CALL_LIMIT_S), "the proxy did not start"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_CALL_LIMIT_S)
        assert not self._errors, self._errors


class _Pipe:
    """One direction: what came, each with the time when it is due at the other end."""

    def __init__(
        self, proxy: DelayProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.held: deque[tuple[float, bytes | None]] = deque()
        self.held_bytes = 0
        self._proxy, self._reader, self._writer = proxy, reader, writer
        self._latest_due = float("-inf")
        self._changed = asyncio.Condition()

    async def take(self, heard: Callable[[], None]) -> None:
        """Hold what comes, until the end."""
        data: bytes | None = b"."
        while data:
            try:
                data = await self._reader.read(READ_BYTES)
            except ConnectionError:
                data = _RESET
            if data:
                heard()
            gap_s = self._proxy.trickle_s if data else 0.0
            for piece in [data[i : i + 1] for i in range(len(data))] if data and gap_s else [data]:
                # The order is kept whatever the jitter.
                self._latest_due = max(self._latest_due + gap_s, self._proxy.due())
                self.held.append((self._latest_due, piece))
            self.held_bytes += len(data or b"")
            async with self._changed:
                self._changed.notify_all()
                await self._changed.wait_for(lambda: self.held_bytes <= MAX_HELD_BYTES)

    async def pass_on(self) -> None:
        """Pass on what is due, until the end. Raises ConnectionResetError behind a reset."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self.held)
            due, what = self.held[0]
            while self._proxy.is_cut or (wait_s := due - self._proxy.clock()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if self._proxy.is_cut else wait_s):
                        await self._proxy.poked.wait()
            async with self._changed:
                self.held.popleft()
                self.held_bytes -= len(what or b"")
                self._changed.notify_all()
            if what is _RESET:
                raise ConnectionResetError
            if what == _END:
                with contextlib.suppress(OSError):  # the sink has reset the connection meanwhile
                    self._writer.write_eof()
                return
            self._writer.write(what)
            await self._writer.drain()
