"""An open serial port on a pty, with what it tells its owner and what is done to its tty.

The test is the board at the far end of the pty. A call on the tty can be made to block or to
fail, as an ioctl on a USB device does that has just vanished.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from gateway.errors import DeviceError
from gateway.protocol.reset import Lines
from gateway.protocol.rfc2217 import Modemstate
from gateway.protocol.serial_settings import SerialSettings
from gateway.serialport.states import PortStates
from gateway.serialport.transport import Opening, SerialTransport
from gateway.serialport.tty import Tty, TtyLocation
from tests.support.bare_pty import LIMIT_S, BarePty
from tests.support.loops import watched_descriptors
from tests.support.pty_board import turns, until

SETTINGS = SerialSettings()
OTHER = replace(SETTINGS, baudrate=74880)


class WatchedTty(Tty):
    """A tty that notes each call in `calls`, and each thread in `threads`.

    The call named by `blocks` waits at `door` once it has noted itself; `error` is what the call
    named by `fails` raises. `unsent_bytes` is what the kernel is said to hold, or None for what
    it holds.
    """

    def __init__(self, path: str) -> None:
        super().__init__(TtyLocation(path), SETTINGS)
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.blocks = ""
        self.door = threading.Event()
        self.fails = ""
        self.error: Exception = OSError("fails")
        self.unsent_bytes: int | None = None
        self.at_close: Callable[[], None] = lambda: None
        self.before: Callable[[str], None] = lambda _: None

    def note(self, call: str) -> None:
        self.threads.add(threading.get_ident())
        self.before(call)
        self.calls.append(call)
        if call == self.blocks:
            assert self.door.wait(LIMIT_S)
        if call == self.fails:
            raise self.error

    def open(self) -> None:
        self.note("open")
        super().open()

    def close(self) -> None:
        if self.is_open:
            self.at_close()
            self.note("close")
        super().close()

    def apply(self, settings: SerialSettings) -> SerialSettings:
        self.note(f"apply {settings.baudrate}")
        return super().apply(settings)

    def set_lines(self, lines: Lines) -> None:
        if self.is_open:
            self.note("lines")
        super().set_lines(lines)

    def set_break(self, on: bool) -> None:
        self.note("break")
        super().set_break(on)

    def purge(self, *, receive: bool, transmit: bool) -> None:
        self.note("purge")
        if transmit:
            self.unsent_bytes = None
        super().purge(receive=receive, transmit=transmit)

    def drain(self, limit_s: float) -> bool:
        self.note("drain")
        return super().drain(limit_s)

    def modemstate(self) -> Modemstate:
        self.note("modemstate")
        return super().modemstate()

    def _unsent_in_kernel(self) -> int:
        return super()._unsent_in_kernel() if self.unsent_bytes is None else self.unsent_bytes


class BenchPort:
    """What the gateway asks of a transport, under the names of the operations."""

    def __init__(self, transport: SerialTransport) -> None:
        self._transport = transport
        self._tty = transport.tty
        self.write = transport.write
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.take_unsent = transport.take_unsent
        self.purge = transport.purge
        self.close = transport.close
        self.lose = transport.fail
        self.worker = transport._worker

    @property
    def settings(self) -> SerialSettings:
        return self._tty.in_force

    @property
    def unsent_bytes(self) -> int:
        size: int = self._transport.get_write_buffer_size()
        return size

    def apply(self, settings: SerialSettings, done: Callable[[SerialSettings], None]) -> None:
        self._transport.call_in_order(lambda: self._tty.apply(settings), done, holds_reading=True)

    def set_lines(self, lines: Lines, done: Callable[[], None]) -> None:
        self._transport.call_in_order(lambda: self._tty.set_lines(lines), lambda _: done())

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        self._transport.call_in_order(lambda: self._tty.set_break(on), lambda _: done())

    def when_sent(self, done: Callable[[], None]) -> None:
        self._transport.call_in_order(lambda: None, lambda _: done())

    def read_states(self, done: Callable[[PortStates], None]) -> None:
        self._transport.read_states(done)


class PortBench(asyncio.Protocol):
    """The port, its owner's ears, and the board."""

    def __init__(self, board: BarePty) -> None:
        self.board = board
        self.tty = WatchedTty(board.path)
        self.events: list[Any] = []  # all but data
        self.received = bytearray()  # by the port's owner
        self.sent = bytearray()  # by the port, as far as the board has read
        self.lost: list[DeviceError] = []
        self.opened: BenchPort | None = None
        self.on_resume: Callable[[], None] = lambda: None

    @property
    def port(self) -> BenchPort:
        assert self.opened is not None
        return self.opened

    def open(self) -> None:
        opening = Opening(self, lambda _: None)
        opening.begin(self.tty, self._opened, self._failed)
        opening.end()

    def _opened(self, transport: SerialTransport) -> None:
        self.opened = BenchPort(transport)
        self.events.append("opened")

    def _failed(self, error: DeviceError) -> None:
        self.events.append(error)

    # What the transport reports (asyncio.Protocol).

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")
        self.on_resume()

    def connection_lost(self, exc: Exception | None) -> None:
        assert isinstance(exc, DeviceError)
        self.lost.append(exc)
        self.events.append("lost")

    # What tests do and wait for.

    def noting(self, name: str) -> Callable[..., None]:
        """A `done` that appends its name to `events`."""
        return lambda *_: self.events.append(name)

    async def until_events(self, *events: Any) -> None:
        """Wait until as many events have come as are given; they are to be these."""
        await until(lambda: len(self.events) >= len(events))
        assert self.events == list(events)

    def forget(self) -> None:
        """Begin with no events and no calls."""
        self.events.clear()
        self.tty.calls.clear()

    def fill(self) -> bytes:
        """Write until the kernel takes no more for now; returns what was written.

        It moves what it has from one buffer of a pty to the next, on a thread of its own, and
        takes up to 4 KiB more then: more than that is left unsent.
        """
        written = b""
        while self.port.unsent_bytes < 20_000:
            data = bytes([len(written) // 1000 % 251]) * 1000
            self.port.write(data)
            written += data
        return written

    def read_some(self) -> None:
        """Read what the board can read now."""
        with suppress(BlockingIOError):
            self.sent += os.read(self.board.master, 65536)

    async def until_sent(self, size: int) -> bytes:
        """Be a board that reads, until it has got that much."""

        def has_read() -> bool:
            self.read_some()
            return len(self.sent) >= size

        await until(has_read)
        return bytes(self.sent)

    @property
    def is_watched(self) -> bool:
        """Whether the loop has the descriptor among those that it waits for."""
        return self.tty.descriptor in watched_descriptors()


@asynccontextmanager
async def open_bench() -> AsyncIterator[PortBench]:
    """A bench whose port is open and has noted nothing; it is closed in the end."""
    with BarePty() as board:
        bench = PortBench(board)
        bench.open()
        await bench.until_events("opened")
        bench.forget()
        try:
            yield bench
        finally:
            bench.tty.door.set()
            bench.port.close()
            await until(lambda: not bench.tty.is_open)
            await turns(2)
