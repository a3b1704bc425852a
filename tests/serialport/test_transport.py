"""What comes of calls and bytes for a tty that has been closed, or has failed.

What a transport does with an open tty is in tests/scenarios: test_stream_order.py, test_kernel.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.errors import DeviceError
from gateway.protocol.serial_settings import SerialSettings
from gateway.serialport.transport import Opening, SerialTransport
from gateway.serialport.tty import Tty, TtyLocation
from tests.support.bare_pty import BarePty
from tests.support.tty_board import turns, until


class Owner(asyncio.Protocol):
    def __init__(self) -> None:
        self.opened: list[SerialTransport] = []
        self.lost: list[Exception | None] = []

    def failed(self, error: DeviceError) -> None:
        raise error

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


@asynccontextmanager
async def opened() -> AsyncIterator[tuple[Owner, SerialTransport]]:
    owner = Owner()
    with BarePty() as board:
        tty = Tty(TtyLocation(board.path), SerialSettings())
        opening = Opening(owner, lambda _: None)
        opening.begin(tty, owner.opened.append, owner.failed)
        opening.end()
        await until(lambda: owner.opened)
        (transport,) = owner.opened
        try:
            yield owner, transport
        finally:
            transport.close()
            await until(lambda: not tty.is_open)


def call_in_order(transport: SerialTransport, done: Callable[[object], None]) -> None:
    transport.call_in_order(lambda: None, done)


def purge_received(transport: SerialTransport, done: Callable[[object], None]) -> None:
    transport.purge(receive=True, transmit=False, done=done)


def purge_unsent(transport: SerialTransport, done: Callable[[object], None]) -> None:
    transport.purge(receive=False, transmit=True, done=done)


@pytest.mark.parametrize(
    "ask", [call_in_order, purge_received, purge_unsent, SerialTransport.read_states]
)
async def test_a_closed_tty_answers_nothing(
    ask: Callable[[SerialTransport, Callable[[object], None]], None],
) -> None:
    async with opened() as (owner, transport):
        transport.close()
        answers: list[object] = []
        ask(transport, answers.append)
        transport.close()
        await until(lambda: not transport.tty.is_open)
        await turns(5)
        assert (answers, owner.lost) == ([], [])


async def test_bytes_that_follow_a_failure_are_kept_in_order_for_the_tty_that_comes_next() -> None:
    async with opened() as (owner, transport):
        transport.fail(DeviceError("stopped working"))
        transport.write(b"written before the owner ")
        transport.write(b"knows")
        await until(lambda: owner.lost)
        unsent = transport.take_unsent()
        assert (unsent.cut_off_bytes, unsent.whole) == (0, b"written before the owner knows")
        assert transport.get_write_buffer_size() == 0
