"""HTTP connections whose received bytes are passed on one piece per turn of the event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.turns import Turns
from gateway.web import connection as module
from gateway.web.connection import PIECE_BYTES, PacedConnection
from tests.support.pty_board import turns

PEER = ("192.0.2.1", 5)


class Transport(asyncio.Transport):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__({"peername": PEER})
        self.reads = True
        self.is_closed = False
        self.written = b""

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.is_closed = True

    abort = close


class Paced(asyncio.Protocol):
    """A protocol behind a PacedConnection, with what it was given."""

    def __init__(self, shared: Turns | None = None, *, pauses: bool = False) -> None:
        self.pieces: list[bytes] = []
        self.ends: list[str] = []
        self.pauses = pauses  # after each piece
        self.transport = Transport()
        self.connection = PacedConnection(self, shared or Turns())
        self.connection.connection_made(self.transport)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        if data == b"fails":
            raise ValueError("planted")
        if self.pauses:
            self.connection.pause_reading()

    def eof_received(self) -> bool | None:
        self.ends.append(f"end after {sum(map(len, self.pieces))}")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends.append("lost")


async def test_each_turn_of_the_loop_has_one_piece_of_one_connection() -> None:
    shared = Turns()
    each = [Paced(shared), Paced(shared)]
    data = bytes(range(256)) * (PIECE_BYTES // 128)  # two pieces
    for paced in each:
        paced.connection.data_received(data)
    for pieces in (0, 1, 2, 3, 4, 4):
        assert sum(len(paced.pieces) for paced in each) == pieces
        # A connection with more data waits behind the others.
        assert abs(len(each[0].pieces) - len(each[1].pieces)) <= 1
        await asyncio.sleep(0)
    assert [b"".join(paced.pieces) for paced in each] == [data, data]


async def test_the_transport_is_not_read_while_pieces_wait_or_the_protocol_pauses() -> None:
    paced = Paced()
    paced.connection.data_received(b"x" * 3 * PIECE_BYTES)
    paced.connection.data_received(b"y")  # uvloop reads once more
    while len(paced.pieces) < 4:
        assert not paced.transport.reads
        await asyncio.sleep(0)
    assert paced.transport.reads
    paced = Paced(pauses=True)
    paced.connection.data_received(b"x" * 2 * PIECE_BYTES)
    await turns(20)
    assert (len(paced.pieces), paced.transport.reads) == (1, False)
    assert not paced.connection.is_reading()
    paced.pauses = False
    paced.connection.resume_reading()
    await turns(20)
    assert (len(paced.pieces), paced.transport.reads) == (2, True)
    assert paced.connection.is_reading()


async def test_a_held_connection_passes_on_a_bounded_number_of_bytes_and_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_HELD_BYTES", 2 * PIECE_BYTES)
    paced = Paced()
    paced.connection.hold()
    paced.connection.data_received(b"x" * 4 * PIECE_BYTES)
    await turns(20)
    assert (len(paced.pieces), paced.transport.reads) == (2, False)
    paced.connection.release()
    await turns(20)
    assert (len(paced.pieces), paced.transport.reads) == (4, True)
    paced.connection.hold()
    paced.connection.hold()
    paced.connection.data_received(b"x" * PIECE_BYTES)
    assert paced.connection.eof_received()
    assert paced.ends == []  # behind the bytes sent before
    await turns(20)
    assert paced.ends == [f"end after {5 * PIECE_BYTES}"]
    assert paced.transport.is_closed


async def test_a_lost_connection_drops_what_waits_and_can_still_be_used() -> None:
    paced = Paced()
    paced.connection.write(b"abc")
    assert paced.transport.written == b"abc"
    assert paced.connection.get_extra_info("peername") == PEER
    paced.connection.data_received(b"x")
    paced.connection.connection_lost(None)
    await turns(20)
    assert (paced.pieces, paced.ends) == ([], ["lost"])
    paced.connection.write(b"too late")
    paced.connection.resume_reading()
    paced.connection.close()
    paced.connection.abort()
    assert paced.connection.is_closing()
    assert paced.connection.get_extra_info("peername") is None


async def test_a_protocol_that_fails_loses_its_connection_and_delays_no_other() -> None:
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    shared = Turns()
    failing, other = Paced(shared), Paced(shared)
    failing.connection.data_received(b"fails")
    other.connection.data_received(b"hello")
    await turns(20)
    assert failing.transport.is_closed
    assert other.pieces == [b"hello"]
    assert [str(each["exception"]) for each in failures] == ["planted"]


@pytest.mark.parametrize("cancels", [False, True])
async def test_turns_are_given_in_order(cancels: bool) -> None:
    shared = Turns()
    order: list[int] = []

    async def wait(number: int) -> None:
        await shared.wait()
        order.append(number)

    waiting = [asyncio.ensure_future(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    if cancels:
        waiting[1].cancel()
    await asyncio.wait(waiting)
    assert order == ([0, 2] if cancels else [0, 1, 2])
