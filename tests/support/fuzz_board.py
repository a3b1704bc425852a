"""A board in this process for the session's fuzzer, at the place of the kernel's tty.

The gateway's own code runs on it from the session down to the transport; only the calls that
would block in the kernel are replaced, and the thread that makes them. What is written to the
board is there at once, so that every run is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar
from unittest import mock

from gateway.protocol.reset import IDLE, Lines
from gateway.protocol.rfc2217 import Linestate, Modemstate
from gateway.protocol.serial_settings import SerialSettings
from gateway.serialport.states import EventCounts, PortStates
from gateway.serialport.tty import Tty, TtyLocation
from gateway.serialport.worker import Worker

T = TypeVar("T")

#: What a control call takes on the loop's clock.
_CALL_S = 0.001

#: A rate that drivers refuse.
_HIGHEST_BAUDRATE = 4_000_000

_READ_BYTES = 65536

_ALL_SENT = Linestate.TRANSMIT_HOLDING_EMPTY | Linestate.TRANSMIT_SHIFT_EMPTY


class FuzzBoard:
    """The board: what it has got, and what it is asked to print."""

    def __init__(self, *, echoes: bool = False) -> None:
        self.received = bytearray()
        self.keeps = True  # what it has got
        self.lines = IDLE
        self.break_on = False
        self.states = PortStates(Modemstate(0), _ALL_SENT, EventCounts(*[0] * 8))
        self._echoes = echoes
        self._unsent = bytearray()
        self._listens = False
        self.gateway_end, self._end = socket.socketpair()
        for end in (self.gateway_end, self._end):
            end.setblocking(False)

    def listen(self) -> None:
        """Read what comes."""
        if not self._listens:
            self._listens = True
            asyncio.get_running_loop().add_reader(self._end, self._read)

    def be_deaf(self) -> None:
        """Leave what comes in the kernel."""
        self._listens = False
        asyncio.get_running_loop().remove_reader(self._end)

    def say(self, data: bytes) -> None:
        """Print; what the gateway does not take yet comes later."""
        self._unsent += data
        self._write()

    def purge(self, *, receive: bool, transmit: bool) -> None:
        """What tcflush does."""
        with contextlib.suppress(BlockingIOError):
            while receive and self.gateway_end.recv(_READ_BYTES):
                pass
        with contextlib.suppress(BlockingIOError):
            while transmit and self._end.recv(_READ_BYTES):
                pass

    def change_states(self, bits: int) -> None:
        """Its lines as the upper bits of NOTIFY-MODEMSTATE say, errors where a lower one is set."""
        errors = [bits >> bit & 1 for bit in range(4)]
        counts = self.states.counts
        assert counts is not None
        counts = replace(
            counts,
            ri=counts.ri + errors[0],
            frame=counts.frame + errors[1],
            overrun=counts.overrun + errors[2],
            brk=counts.brk + errors[3],
        )
        self.states = PortStates(Modemstate(bits & 0xF0), _ALL_SENT, counts)

    def close(self) -> None:
        """Nothing is left then."""
        self.be_deaf()
        asyncio.get_running_loop().remove_writer(self._end)
        self.gateway_end.close()
        self._end.close()

    def _read(self) -> None:
        data = self._end.recv(_READ_BYTES)
        if self.keeps:
            self.received += data
        if self._echoes:
            self.say(data)

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._unsent[: self._end.send(self._unsent)]
        loop = asyncio.get_running_loop()
        if self._unsent:
            loop.add_writer(self._end, self._write)
        else:
            loop.remove_writer(self._end)


class _BoardTty(Tty):
    """The calls of a tty that ask the kernel, on a board."""

    def __init__(self, board: FuzzBoard, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._board = board

    def open(self) -> None:
        self.fd = self.descriptor = self._board.gateway_end.fileno()
        self.is_open = True
        self._board.lines = IDLE

    def close(self) -> None:
        self.is_open = False

    def set_lines(self, lines: Lines) -> None:
        self._board.lines = lines

    def modemstate(self) -> Modemstate:
        return self._board.states.modemstate

    def states(self) -> PortStates:
        return self._board.states

    def apply(self, settings: SerialSettings) -> SerialSettings:
        if settings.baudrate <= _HIGHEST_BAUDRATE:
            self.in_force = settings
        return self.in_force

    def set_break(self, on: bool) -> None:
        self._board.break_on = on

    def purge(self, *, receive: bool, transmit: bool) -> None:
        self._board.purge(receive=receive, transmit=transmit)

    def drain(self, limit_s: float) -> bool:
        return True

    def stop_draining(self) -> None:
        pass


class _LoopThread:
    """A control thread that runs its calls on the loop, one after the other, a moment later."""

    def __init__(
        self, name: str, on_stuck: Callable[[float], None], took: Callable[[float], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Callable[[], None]] = deque()
        self._next: asyncio.TimerHandle | None = None
        self._stopped = False

    def submit(
        self,
        run: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[Exception], None],
        *,
        limit_s: float,
    ) -> None:
        if self._stopped:
            return
        self._waiting.append(lambda: self._make(run, done, failed))
        self._schedule()

    def stop(self, last: Callable[[], None]) -> None:
        if not self._stopped:
            self._stopped = True
            self._waiting.clear()
            last()

    def _schedule(self) -> None:
        if self._next is None and self._waiting:
            self._next = self._loop.call_later(_CALL_S, self._run)

    def _run(self) -> None:
        self._next = None
        if not self._stopped:
            self._waiting.popleft()()
            self._schedule()

    def _make(
        self, run: Callable[[], T], done: Callable[[T], None], failed: Callable[[Exception], None]
    ) -> None:
        try:
            result = run()
        except OSError as error:
            failed(error)
        else:
            if not self._stopped:
                done(result)


@contextlib.contextmanager
def boards_for_ttys(boards: dict[str, FuzzBoard]) -> Iterator[None]:
    """Put boards at the place of ttys, by path, wherever the gateway opens one meanwhile."""

    def tty(location: TtyLocation, *arguments: Any, **named: Any) -> Tty:
        return _BoardTty(boards[location.path], location, *arguments, **named)

    with contextlib.ExitStack() as patches:
        for original, replacement in ((Tty, tty), (Worker, _LoopThread)):
            for module in _importers(original):
                patches.enter_context(mock.patch.object(module, original.__name__, replacement))
        yield


def _importers(original: type) -> list[Any]:
    """Modules of the gateway that use a class made in another."""
    return [
        module
        for name, module in sys.modules.items()
        if name.startswith("gateway.")
        and name != original.__module__
        and getattr(module, original.__name__, None) is original
    ]
