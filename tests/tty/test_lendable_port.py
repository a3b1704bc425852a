"""A port whose tty is lent to a local tool under its users, on real ptys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.lendable_port import LendablePort
from tests.support.pty_board import LoopClock, PtyBoard, turns, until
from tests.tty.test_lasting_port import Owner


@asynccontextmanager
async def opened(board: PtyBoard) -> AsyncIterator[tuple[LendablePort, Owner]]:
    owner = Owner()
    port = LendablePort(lambda: board.location, SerialSettings(), owner, structlog.get_logger())
    port.start()
    try:
        await until(lambda: owner.reports == ["opened"])
        yield port, owner
    finally:
        await port.stop()


async def test_what_is_asked_while_it_is_lent_is_done_when_it_is_back(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with opened(board) as (port, owner):
            closed: list[bool] = []
            port.lend("for esptool", lambda: closed.append(True))
            await until(lambda: closed)
            assert owner.reports == ["opened", "away"]
            assert str(owner.errors[0]) == "for esptool"
            tries = board.tries
            port.write(b"later")
            port.look_again(in_use=True)  # udev has seen something
            await turns(50)
            assert board.tries == tries
            port.take_back()
            await until(lambda: owner.reports == ["opened", "away", "back"])
            board.start_reading()
            await until(lambda: board.received == b"later")


async def test_a_board_that_does_not_come_back_is_lost_and_opened_later(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        async with opened(board) as (port, owner):
            closed: list[bool] = []
            port.lend("for esptool", lambda: closed.append(True))
            await until(lambda: closed)
            board.unplug()
            port.take_back()
            for _ in range(100):
                await clock.advance(0.2)
            assert owner.reports[2] == "lost"
            assert str(owner.errors[1]) == "not back within 10 s of being lent out"
            board.plug()
            for _ in range(40):
                await clock.advance(0.2)
            await until(lambda: owner.reports[-1] == "opened")


async def test_a_board_that_is_away_can_be_lent(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with opened(board) as (port, owner):
            port.grace_s = 60.0
            board.unplug()
            await until(lambda: owner.reports == ["opened", "away"])
            closed: list[bool] = []
            port.lend("for esptool", lambda: closed.append(True))
            await until(lambda: closed)
            board.plug()
            await turns(50)
            assert owner.reports[-1] == "away"
            port.take_back()
            await until(lambda: owner.reports[-1] == "back")


async def test_what_is_not_lent_is_not_taken_back(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with opened(board) as (port, owner):
            port.take_back()
            await turns(10)
            assert (owner.reports, board.tries) == (["opened"], 1)
