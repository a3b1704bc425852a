import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.tty.serial_transport import SerialTransport, Unsent
from tests.support.loops import watched_descriptors
from tests.support.pty_board import turns, until

HIGH_BYTES = 50_000
LOW_BYTES = 10_000


class Protocol(asyncio.Protocol):
    """Notes what it is told, data as a whole."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received = b""
        self.sizes: list[int] = []  # of what it was told at a time
        self.lost: list[Exception | None] = []
        self.on_resume: Callable[[], None] = lambda: None

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.sizes.append(len(data))

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")
        self.on_resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Bench:
    """A transport on one end of a socket pair, whose descriptor behaves like a tty's.

    With datagrams each read gives what was sent at a time, as a tty gives 4095 bytes at most.
    """

    def __init__(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
        self.far, self.near = socket.socketpair(type=kind)
        for end in (self.far, self.near):
            end.setblocking(False)
        self.protocol = Protocol()
        self.transport = SerialTransport(
            asyncio.get_running_loop(),
            self.protocol,
            self.near.fileno(),
            high_bytes=HIGH_BYTES,
            low_bytes=LOW_BYTES,
        )

    @property
    def unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    def fill(self) -> bytes:
        """Write until something is left unsent; returns all that was written."""
        written = b""
        while not self.unsent:
            data = bytes([len(written) // 4096 % 251]) * 4096
            self.transport.write(data)
            written += data
        return written

    def read_some(self) -> bytes:
        try:
            return self.far.recv(65536)
        except BlockingIOError:
            return b""

    async def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self.read_some()
            await asyncio.sleep(0)
        return data

    def is_watched(self) -> bool:
        """Whether the loop has the descriptor among those that it waits for."""
        return self.near.fileno() in watched_descriptors()


@asynccontextmanager
async def running(kind: socket.SocketKind = socket.SOCK_STREAM) -> AsyncIterator[Bench]:
    bench = Bench(kind)
    try:
        yield bench
    finally:
        bench.transport.abort()
        await turns(2)
        bench.near.close()
        bench.far.close()


async def test_what_the_kernel_takes_is_sent_at_once() -> None:
    async with running() as bench:
        bench.transport.write(b"now")
        assert bench.read_some() == b"now"
        assert bench.unsent == 0


async def test_what_it_does_not_take_follows_in_order() -> None:
    async with running() as bench:
        written = bench.fill()
        bench.transport.write(b"more")
        assert await bench.read(len(written) + 4) == written + b"more"
        assert bench.unsent == 0
        assert bench.transport.gone_bytes == bench.transport.written_bytes == len(written) + 4


async def test_writing_is_paused_above_the_high_mark_and_resumed_at_the_low_one() -> None:
    async with running() as bench:
        written = bench.fill()
        bench.transport.write(bytes(HIGH_BYTES - bench.unsent))
        assert bench.protocol.events == []
        bench.transport.write(b"1")
        assert bench.protocol.events == ["pause"]
        bench.transport.write(b"2")
        assert bench.protocol.events == ["pause"]
        seen: list[int] = []
        bench.protocol.on_resume = lambda: seen.append(bench.unsent)
        await bench.read(len(written))
        await until(lambda: bench.read_some() or not bench.unsent)
        assert bench.protocol.events == ["pause", "resume"]
        assert seen[0] <= LOW_BYTES


async def test_what_is_written_from_resume_writing_comes_last() -> None:
    async with running() as bench:
        written = bench.fill()
        rest = bytes(HIGH_BYTES)
        bench.transport.write(rest)
        bench.protocol.on_resume = lambda: bench.transport.write(b"last")
        data = await bench.read(len(written) + len(rest) + 4)
        assert data == written + rest + b"last"


async def test_nothing_passes_the_gate_before_it_opens() -> None:
    async with running() as bench:
        reached: list[int] = []
        written = bench.fill()
        bench.transport.close_gate(len(written), lambda: reached.append(bench.unsent))
        bench.transport.write(b"behind")
        assert reached == []
        assert await bench.read(len(written)) == written
        assert reached == [6]
        await turns(3)
        assert bench.read_some() == b""
        bench.transport.open_gate()
        assert await bench.read(6) == b"behind"
        assert reached == [6]


async def test_a_gate_that_is_reached_already_says_so_at_once_and_holds() -> None:
    async with running() as bench:
        bench.transport.write(b"before")
        reached: list[bool] = []
        bench.transport.close_gate(6, lambda: reached.append(True))
        assert reached == [True]
        bench.transport.write(b"behind")
        await turns(3)
        assert bench.read_some() == b"before"
        assert bench.unsent == 6


async def test_a_gate_can_be_moved_on() -> None:
    async with running() as bench:
        reached: list[str] = []
        bench.transport.close_gate(0, lambda: reached.append("first"))
        bench.transport.write(b"one")
        bench.transport.write(b"two")
        bench.transport.close_gate(3, lambda: reached.append("second"))
        assert reached == ["first"]
        assert await bench.read(3) == b"one"
        await until(lambda: len(reached) == 2)
        assert bench.read_some() == b""
        bench.transport.open_gate()
        assert await bench.read(3) == b"two"


async def test_bytes_that_wait_at_the_gate_pause_the_writer() -> None:
    async with running() as bench:
        bench.transport.close_gate(0, lambda: None)
        bench.transport.write(bytes(HIGH_BYTES + 1))
        assert bench.protocol.events == ["pause"]


async def test_flush_drops_what_is_unsent_and_lets_the_gate_be_reached() -> None:
    async with running() as bench:
        reached: list[bool] = []
        bench.fill()
        bench.transport.write(bytes(HIGH_BYTES))
        bench.transport.close_gate(bench.transport.written_bytes, lambda: reached.append(True))
        bench.transport.write(b"behind")
        bench.transport.flush()
        assert bench.unsent == 0
        assert reached == [True]
        assert bench.protocol.events == ["pause", "resume"]
        bench.transport.open_gate()
        while bench.read_some():
            pass
        bench.transport.write(b"new")
        assert await bench.read(3) == b"new"


async def test_what_resume_writing_writes_during_a_flush_is_not_dropped() -> None:
    async with running() as bench:
        bench.fill()
        bench.transport.write(bytes(HIGH_BYTES))
        bench.transport.close_gate(bench.transport.written_bytes, lambda: None)
        bench.protocol.on_resume = lambda: bench.transport.write(b"new")
        bench.transport.flush()
        assert bench.unsent == 3
        while bench.read_some():
            pass
        bench.transport.open_gate()
        assert await bench.read(3) == b"new"


async def test_received_bytes_are_delivered() -> None:
    async with running() as bench:
        bench.far.send(b"from the board")
        await until(lambda: bench.protocol.received)
        assert bench.protocol.received == b"from the board"


async def test_a_pause_before_the_first_turn_of_the_loop_counts() -> None:
    async with running() as bench:
        bench.transport.pause_reading()
        bench.far.send(b"data")
        await turns(3)
        assert bench.protocol.received == b""
        bench.transport.resume_reading()
        await until(lambda: bench.protocol.received)


@pytest.mark.parametrize("resumed_first", [False, True])
async def test_reading_goes_on_when_it_is_neither_held_nor_paused(*, resumed_first: bool) -> None:
    async with running() as bench:
        both = [bench.transport.resume_reading, bench.transport.release_reading]
        await turns(2)
        bench.transport.pause_reading()
        bench.transport.hold_reading()
        bench.far.send(b"data")
        first, second = both if resumed_first else reversed(both)
        first()
        await turns(3)
        assert bench.protocol.received == b""
        second()
        await until(lambda: bench.protocol.received)


async def test_the_loop_does_not_know_the_descriptor_while_reading_is_held() -> None:
    async with running() as bench:
        await turns(2)
        assert bench.is_watched()
        bench.transport.hold_reading()
        assert not bench.is_watched()


async def test_a_hang_up_delivers_what_came_before_and_then_tells() -> None:
    async with running() as bench:
        bench.far.send(b"last words")
        bench.far.close()
        await until(lambda: bench.protocol.lost)
        assert bench.protocol.received == b"last words"
        [error] = bench.protocol.lost
        assert str(error) == "hung up"


async def test_a_failing_write_tells_once_and_keeps_what_was_written() -> None:
    async with running() as bench:
        bench.transport.pause_reading()
        bench.far.close()
        bench.transport.write(b"one")
        bench.transport.write(b"two")
        assert bench.protocol.lost == []  # not from inside the caller's call
        await until(lambda: bench.protocol.lost)
        [error] = bench.protocol.lost
        assert isinstance(error, BrokenPipeError)
        unsent = bench.transport.take_unsent()
        assert unsent == Unsent(cut_off_bytes=0, whole=b"onetwo", is_cut_off=False)
        assert bench.unsent == 0


async def test_what_is_unsent_at_a_failure_is_cut_off_up_to_the_gate() -> None:
    async with running() as bench:
        bench.fill()
        n_unsent = bench.unsent
        bench.transport.close_gate(bench.transport.written_bytes, lambda: None)
        bench.transport.write(b"behind")
        bench.transport.abort()
        bench.transport.write(b" late")
        unsent = bench.transport.take_unsent()
        assert unsent == Unsent(cut_off_bytes=n_unsent, whole=b"behind late", is_cut_off=False)


async def test_without_a_gate_what_follows_goes_on_with_what_is_cut_off() -> None:
    async with running() as bench:
        bench.fill()
        n_unsent = bench.unsent
        bench.transport.abort()
        bench.transport.write(b"late")
        unsent = bench.transport.take_unsent()
        assert unsent == Unsent(cut_off_bytes=n_unsent, whole=b"late", is_cut_off=True)


async def test_a_write_that_fails_later_tells_too() -> None:
    async with running() as bench:
        bench.fill()
        bench.transport.pause_reading()
        bench.far.close()
        await until(lambda: bench.protocol.lost)
        assert isinstance(bench.protocol.lost[0], ConnectionError)


async def test_abort_lets_go_of_the_descriptor_at_once_and_leaves_it_open() -> None:
    async with running() as bench:
        await turns(2)
        bench.fill()
        bench.transport.abort()
        assert not bench.is_watched()
        bench.transport.write(b"kept")
        bench.transport.resume_reading()
        bench.transport.release_reading()
        bench.transport.open_gate()
        assert not bench.is_watched()
        await turns(2)
        os.fstat(bench.near.fileno())
        assert bench.protocol.lost == [None]


async def test_a_gate_is_not_reached_after_abort() -> None:
    async with running() as bench:
        written = bench.fill()
        reached: list[bool] = []
        bench.transport.close_gate(len(written), lambda: reached.append(True))
        bench.transport.abort()
        while bench.read_some():
            await turns(1)
        assert reached == []


async def test_a_burst_is_read_on_at_once() -> None:
    async with running(socket.SOCK_DGRAM) as bench:
        for size in (4095, 4095, 100, 50):
            bench.far.send(bytes(size))
        await until(lambda: len(bench.protocol.received) == 8340)
        assert bench.protocol.sizes == [8290, 50]


async def test_a_burst_without_end_is_told_in_pieces() -> None:
    async with running(socket.SOCK_DGRAM) as bench:
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += bench.far.send(bytes(16384))
        await until(lambda: len(bench.protocol.received) == sent)
        assert bench.protocol.sizes[0] == 65536 < sent


async def test_what_came_before_the_port_failed_is_told_before_the_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes: list[bytes | OSError] = [bytes(4095), OSError("gone"), OSError("gone")]

    def read(_fd: int, _size: int) -> bytes:
        outcome = outcomes.pop(0)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    async with running() as bench:
        await turns(2)
        with monkeypatch.context() as patch:
            patch.setattr("gateway.tty.serial_transport.os.read", read)
            bench.far.send(b"!")
            await until(lambda: bool(bench.protocol.lost))
        assert bench.protocol.sizes == [4095]
        assert [str(error) for error in bench.protocol.lost] == ["gone"]
