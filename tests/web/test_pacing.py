"""Connections whose received bytes are handed on a piece at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.turns import Turns
from gateway.web import connection as pacing
from gateway.web.connection import PIECE_BYTES, PacedConnection


class FakeTransport(asyncio.Transport):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 5)})
        self.reads = True
        self.is_closed = False
        self.written = bytearray()

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


class FakeProtocol(asyncio.Protocol):
    """Notes what it gets; `pauses` after each piece if it is to."""

    def __init__(self, *, pauses: bool = False) -> None:
        self.pieces: list[bytes] = []
        self.said: list[str] = []
        self.pauses = pauses
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        if data == b"fails":
            raise ValueError("planted")
        if self.pauses:
            assert self.transport is not None
            self.transport.pause_reading()

    def eof_received(self) -> bool | None:
        self.said.append(f"end after {sum(map(len, self.pieces))}")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.said.append("lost")


def connected(turns: Turns, protocol: FakeProtocol) -> tuple[PacedConnection, FakeTransport]:
    connection, transport = PacedConnection(protocol, turns), FakeTransport()
    connection.connection_made(transport)
    return connection, transport


async def until_idle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_each_turn_of_the_loop_has_one_piece_of_one_connection() -> None:
    turns = Turns()
    protocols = [FakeProtocol(), FakeProtocol()]
    connections = [connected(turns, protocol) for protocol in protocols]
    data = bytes(range(256)) * (PIECE_BYTES // 128)  # two pieces
    for connection, _ in connections:
        connection.data_received(data)
    for pieces in (0, 1, 2, 3, 4, 4):
        assert sum(len(protocol.pieces) for protocol in protocols) == pieces
        # A connection that has more waits behind the others.
        assert abs(len(protocols[0].pieces) - len(protocols[1].pieces)) <= 1
        await asyncio.sleep(0)
    assert [b"".join(protocol.pieces) for protocol in protocols] == [data, data]


async def test_no_more_is_read_while_pieces_wait() -> None:
    protocol = FakeProtocol()
    connection, transport = connected(Turns(), protocol)
    connection.data_received(b"x" * 3 * PIECE_BYTES)
    connection.data_received(b"y")  # uvloop reads once more
    while len(protocol.pieces) < 4:
        assert not transport.reads
        await asyncio.sleep(0)
    assert transport.reads


async def test_a_protocol_that_has_paused_gets_no_more() -> None:
    protocol = FakeProtocol(pauses=True)
    connection, transport = connected(Turns(), protocol)
    connection.data_received(b"x" * 2 * PIECE_BYTES)
    await until_idle()
    assert len(protocol.pieces) == 1
    assert not transport.reads
    protocol.pauses = False
    connection.resume_reading()
    await until_idle()
    assert len(protocol.pieces) == 2
    assert transport.reads
    connection.pause_reading()
    assert not transport.reads
    assert not connection.is_reading()
    connection.resume_reading()
    await until_idle()
    assert transport.reads
    assert connection.is_reading()


async def test_while_its_handler_does_not_read_so_much_is_handed_on_and_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pacing, "_HELD_BYTES", 2 * PIECE_BYTES)
    protocol = FakeProtocol()
    connection, transport = connected(Turns(), protocol)
    connection.hold()
    connection.data_received(b"x" * 4 * PIECE_BYTES)
    await until_idle()
    assert len(protocol.pieces) == 2
    assert not transport.reads
    connection.release()
    await until_idle()
    assert len(protocol.pieces) == 4
    assert transport.reads
    connection.hold()
    connection.hold()
    connection.eof_received()
    await until_idle()
    assert protocol.said == [f"end after {4 * PIECE_BYTES}"]


async def test_the_end_comes_behind_what_was_sent_before() -> None:
    protocol = FakeProtocol()
    connection, transport = connected(Turns(), protocol)
    connection.data_received(b"x" * 2 * PIECE_BYTES)
    assert connection.eof_received()
    assert protocol.said == []
    await until_idle()
    assert protocol.said == [f"end after {2 * PIECE_BYTES}"]
    assert transport.is_closed


async def test_what_waits_for_a_lost_connection_is_dropped() -> None:
    protocol = FakeProtocol()
    connection, _ = connected(Turns(), protocol)
    connection.data_received(b"x")
    connection.connection_lost(None)
    await until_idle()
    assert (protocol.pieces, protocol.said) == ([], ["lost"])
    connection.write(b"too late")
    connection.resume_reading()
    connection.close()
    assert connection.is_closing()
    assert connection.get_extra_info("peername") is None


async def test_a_protocol_that_fails_loses_its_connection_and_no_other_waits_for_it() -> None:
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    turns = Turns()
    failing, other = FakeProtocol(), FakeProtocol()
    connection, transport = connected(turns, failing)
    neighbour, _ = connected(turns, other)
    connection.data_received(b"fails")
    neighbour.data_received(b"hello")
    await until_idle()
    assert transport.is_closed
    assert other.pieces == [b"hello"]
    assert [str(each["exception"]) for each in failures] == ["planted"]


async def test_the_rest_is_the_transport_s() -> None:
    connection, transport = connected(Turns(), FakeProtocol())
    connection.write(b"abc")
    assert transport.written == b"abc"
    assert connection.get_extra_info("peername") == ("192.0.2.1", 5)
    connection.abort()
    assert transport.is_closed


@pytest.mark.parametrize("cancels", [False, True])
async def test_turns_are_given_in_order(cancels: bool) -> None:
    turns = Turns()
    order: list[int] = []

    async def wait(number: int) -> None:
        await turns.wait()
        order.append(number)

    waiting = [asyncio.ensure_future(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    if cancels:
        waiting[1].cancel()
    await asyncio.wait(waiting)
    assert order == ([0, 2] if cancels else [0, 1, 2])
