"""A pty of which the test is the far end, and the gateway's tty on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from gateway.protocol.serial_settings import SerialSettings
from gateway.serialport.tty import Tty, TtyLocation
from tests.support.bare_pty import BarePty


@pytest.fixture
def board() -> Iterator[BarePty]:
    with BarePty() as board:
        yield board


@contextlib.contextmanager
def opened(board: BarePty, settings: SerialSettings | None = None) -> Iterator[Tty]:
    """The tty on a pty, open inside."""
    tty = Tty(TtyLocation(board.path), settings or SerialSettings())
    tty.open()
    try:
        yield tty
    finally:
        tty.close()
