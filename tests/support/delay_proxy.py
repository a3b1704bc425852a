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
from enum import Enum, auto
from typing import Any, Self, TypeVar, cast

T = TypeVar("T")

#: What one direction of one connection may hold before its sender is made to wait. More than a
#: second of a 2 Mbaud line.
MAX_HELD_BYTES = 256 * 1024

#: How long the loop's thread may take to answer: it only ever does short things.
_CALL_LIMIT_S = 10.0

#: SO_LINGER on with 0 s: closing sends RST instead of FIN.
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class _Mark(Enum):
    """What travels besides data."""

    END = auto()  # the sender has shut down its sending half
    RESET = auto()  # the sender has reset the connection


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
        self._target_port = target_port
        self._network = _Network(delay_s, jitter_s, random.Random(seed), clock, trickle_s)
        self._connections: set[_Connection] = set()
        self._errors: list[dict[str, Any]] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="delay")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def held_bytes(self) -> tuple[int, int]:
        """What waits inside the proxy: from clients to the target, and from it to clients."""
        return self._sum_of_pipes(lambda pipe: pipe.held_bytes)

    def held_ends(self) -> tuple[int, int]:
        """How many half-closes and resets wait inside the proxy, each way."""
        return self._sum_of_pipes(lambda pipe: pipe.held_ends)

    def quiet_s(self) -> float:
        """How long clients have sent nothing; 0 before they have sent anything."""
        heard_at = self._network.heard_at
        return 0.0 if heard_at is None else self._network.clock() - heard_at

    def poke(self) -> None:
        """Looks at the clock: what is due has been handed to the kernel when this returns."""

        async def deliver() -> None:
            for connection in list(self._connections):
                connection.up.deliver()
                connection.down.deliver()

        self._call(deliver())

    def cut(self) -> None:
        """Pulls the cable: nothing passes any more, old or new, and nobody is told.

        Each end's kernel still talks to the proxy's: a sender notices by full buffers, not by
        TCP's own time-outs.
        """

        async def cut() -> None:
            self._network.is_cut = True

        self._call(cut())

    def reset(self) -> None:
        """Resets every connection on both sides at once, as a router that lost its state does."""

        async def reset() -> None:
            for connection in list(self._connections):
                connection.reset()

        self._call(reset())

    def _sum_of_pipes(self, value: Callable[[_Pipe], int]) -> tuple[int, int]:
        async def sums() -> tuple[int, int]:
            ups = [value(connection.up) for connection in self._connections]
            downs = [value(connection.down) for connection in self._connections]
            return sum(ups), sum(downs)

        return self._call(sums())

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_CALL_LIMIT_S)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda _, context: self._errors.append(context))
        self._stop = asyncio.Event()
        server = await self._loop.create_server(self._accept, "127.0.0.1", 0)
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            self._started.set()
            await self._stop.wait()
            for connection in list(self._connections):
                connection.reset()

    def _accept(self) -> _Side:
        connection = _Connection(self._network, self._target_port, self._connections.discard)
        self._connections.add(connection)
        return connection.client

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(_CALL_LIMIT_S), "the proxy did not start"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_CALL_LIMIT_S)
        assert not self._errors, self._errors


class _Network:
    """What all connections of a proxy share: the delay and the clock, and whether it is cut."""

    def __init__(
        self,
        delay_s: float,
        jitter_s: float,
        rng: random.Random,
        clock: Callable[[], float],
        trickle_s: float,
    ) -> None:
        self.is_cut = False
        self.heard_at: float | None = None  # when a client sent last
        self.clock = clock
        self.trickle_s = trickle_s
        self._delay_s = delay_s
        self._jitter_s = jitter_s
        self._rng = rng

    def due(self) -> float:
        """When something that comes now shall leave."""
        return self.clock() + self._delay_s + self._rng.uniform(0, self._jitter_s)


class _Connection:
    """One client and its connection to the target, joined by two pipes."""

    def __init__(
        self, network: _Network, target_port: int, on_end: Callable[[_Connection], None]
    ) -> None:
        self._network = network
        self._target_port = target_port
        self._on_end = on_end
        self._connecting: asyncio.Task[None] | None = None
        self.up = _Pipe(network, self)
        self.down = _Pipe(network, self)
        self.client = _Side(self, outgoing=self.up, incoming=self.down)
        self.target = _Side(self, outgoing=self.down, incoming=self.up)

    def connected(self, side: _Side) -> None:
        """One side is there; the client's comes first."""
        if side is self.client:
            self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self.target, "127.0.0.1", self._target_port
            )
        except OSError:
            self.reset()

    def came(self, side: _Side) -> None:
        """One side has sent something."""
        if side is self.client:
            self._network.heard_at = self._network.clock()

    def half_ended(self) -> None:
        """One direction has passed its end on; with both, nothing is left to do."""
        if self.up.ended and self.down.ended:
            for side in (self.client, self.target):
                if side.transport is not None:
                    side.transport.close()

    def lost(self, side: _Side, error: Exception | None) -> None:
        """One side's socket is closed, by its peer's reset if there is an error."""
        side.transport = None
        side.incoming.drop()
        if error is not None:
            side.outgoing.put(_Mark.RESET)
        if self.client.transport is None and self.target.transport is None:
            self._end()

    def reset(self) -> None:
        """Sends RST to both sides, drops what is held."""
        for side in (self.client, self.target):
            if side.transport is not None:
                linger = (socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
                side.transport.get_extra_info("socket").setsockopt(*linger)
                side.transport.abort()
        self._end()

    def _end(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        self.up.drop()
        self.down.drop()
        self._on_end(self)


class _Side(asyncio.Protocol):
    """One of a connection's two sockets. asyncio sets TCP_NODELAY on them by itself."""

    def __init__(self, connection: _Connection, outgoing: _Pipe, incoming: _Pipe) -> None:
        self.transport: asyncio.Transport | None = None
        self.outgoing = outgoing  # where this side's bytes go
        self.incoming = incoming  # where bytes for this side come from
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.outgoing.source = self.transport
        self.incoming.sink = self.transport
        self._connection.connected(self)
        self.incoming.deliver()

    def data_received(self, data: bytes) -> None:
        self._connection.came(self)
        self.outgoing.put(data)

    def eof_received(self) -> bool:
        self.outgoing.put(_Mark.END)
        return True  # the other direction stays open

    def pause_writing(self) -> None:
        self.incoming.sink_is_full = True

    def resume_writing(self) -> None:
        self.incoming.sink_is_full = False
        self.incoming.deliver()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost(self, exc)


class _Pipe:
    """One direction: what came, each with the time when it is due at the other end."""

    def __init__(self, network: _Network, connection: _Connection) -> None:
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self.sink_is_full = False
        self.ended = False
        self.held_bytes = 0
        self.held_ends = 0
        self._network = network
        self._connection = connection
        self._held: deque[tuple[float, bytes | _Mark]] = deque()
        self._latest_due = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def put(self, what: bytes | _Mark) -> None:
        """Something has come from the source."""
        trickle_s = self._network.trickle_s
        if isinstance(what, bytes) and trickle_s:
            for index in range(len(what)):
                self._hold(what[index : index + 1], trickle_s)
        else:
            self._hold(what, 0.0)
        self.deliver()

    def _hold(self, what: bytes | _Mark, gap_s: float) -> None:
        # The order is kept whatever the jitter.
        self._latest_due = max(self._latest_due + gap_s, self._network.due())
        self._held.append((self._latest_due, what))
        self._count(what, 1)

    def deliver(self) -> None:
        """Passes on what is due, and wakes up for the rest."""
        self._stop_timer()
        while self._may_pass() and self._held[0][0] <= self._network.clock():
            _, what = self._held.popleft()
            self._count(what, -1)
            self._pass_on(what)
        if self._may_pass():
            wait_s = self._held[0][0] - self._network.clock()
            self._timer = asyncio.get_running_loop().call_later(wait_s, self.deliver)

    def drop(self) -> None:
        """The sink is gone: nothing that is held or comes will arrive."""
        self._stop_timer()
        self._held.clear()
        self.held_bytes = self.held_ends = 0
        self.sink = None

    def _may_pass(self) -> bool:
        ready = self.sink is not None and not self.sink_is_full
        return bool(self._held) and ready and not self._network.is_cut

    def _pass_on(self, what: bytes | _Mark) -> None:
        assert self.sink is not None
        if isinstance(what, bytes):
            self.sink.write(what)
        elif what is _Mark.END:
            with contextlib.suppress(OSError):  # the sink has reset the connection meanwhile
                self.sink.write_eof()
            self.ended = True
            self._connection.half_ended()
        else:
            self._connection.reset()

    def _count(self, what: bytes | _Mark, sign: int) -> None:
        if isinstance(what, bytes):
            self.held_bytes += sign * len(what)
        else:
            self.held_ends += sign
        if self.source is not None:
            if self.held_bytes > MAX_HELD_BYTES:
                self.source.pause_reading()
            else:
                self.source.resume_reading()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
