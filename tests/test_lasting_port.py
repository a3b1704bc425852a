"""The port that survives its device, on real ptys that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.errors import DeviceError
from gateway.lasting_port import LastingPort
from gateway.protocol.reset import BOTH, IDLE, RESET
from gateway.protocol.serial_settings import SerialSettings
from tests.support.pty_board import PtyBoard, until

FAST = replace(SerialSettings(), baudrate=921600)


class Owner:
    """Writes down what the port reports."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.received = bytearray()
        self.errors: list[DeviceError] = []

    def port_opened(self) -> None:
        self.reports.append("opened")

    def port_away(self, error: DeviceError) -> None:
        self.errors.append(error)
        self.reports.append("away")

    def port_back(self) -> None:
        self.reports.append("back")

    def port_lost(self, error: DeviceError) -> None:
        self.errors.append(error)
        self.reports.append("lost")

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None:
        self.reports.append("busy")

    def resume_writing(self) -> None:
        self.reports.append("ready")


@asynccontextmanager
async def lasting(board: PtyBoard) -> AsyncIterator[tuple[LastingPort, Owner]]:
    owner = Owner()
    port = LastingPort(board.location, SerialSettings(), owner, structlog.get_logger())
    port.start()
    try:
        yield port, owner
    finally:
        await port.stop()


async def test_a_board_that_is_absent_is_opened_when_it_comes(tmp_path: Path) -> None:
    with PtyBoard(tmp_path, plugged_in=False) as board:
        async with lasting(board) as (_, owner):
            await until(lambda: owner.reports)
            assert set(owner.reports) == {"lost"}
            board.plug()
            await until(lambda: owner.reports[-1] == "opened")


async def test_without_grace_a_vanished_board_is_lost_and_opened_again(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with lasting(board) as (_, owner):
            await until(lambda: owner.reports == ["opened"])
            board.unplug()
            await until(lambda: "lost" in owner.reports)
            board.plug()
            await until(lambda: owner.reports[-1] == "opened")
            assert "away" not in owner.reports


async def test_within_the_grace_bytes_and_settings_wait_for_the_board(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 60.0
            board.unplug()
            await until(lambda: owner.reports == ["opened", "away"])
            done: list[str] = []
            port.apply(FAST, lambda _: done.append("applied"))
            port.set_lines(BOTH, lambda: done.append("lines"))
            port.write(b"for you")
            assert done == ["applied", "lines"]
            assert port.settings == FAST
            board.lines.clear()
            board.plug()
            board.start_reading()
            await until(lambda: owner.reports == ["opened", "away", "back"])
            await until(lambda: board.received == b"for you")
            await until(lambda: port.settings == FAST)
            assert board.lines == [BOTH, IDLE, BOTH]  # opened, brought to rest, as was asked


async def test_a_change_that_was_being_made_is_done_once(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 60.0
            done: list[str] = []
            board.answers.clear()
            port.set_lines(RESET, lambda: done.append("lines"))
            board.unplug()
            await until(lambda: owner.reports == ["opened", "away"])
            assert done == ["lines"]
            board.answers.set()
            board.plug()
            await until(lambda: owner.reports[-1] == "back")
            assert done == ["lines"]


async def test_a_board_that_stays_away_is_lost_with_the_reason(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 0.2
            board.unplug()
            await until(lambda: owner.reports[-1] == "away")
            port.write(b"in vain")
            await until(lambda: "lost" in owner.reports)
            assert "not back within 0.2 s" in str(owner.errors[1])
            assert [log["unsent_bytes"] for log in logs if log["event"] == "unsent_dropped"] == [7]
            with pytest.raises(RuntimeError):
                port.write(b"nobody has it")


async def test_too_many_bytes_for_a_board_that_is_away_stop_their_writer(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 60.0
            board.unplug()
            await until(lambda: owner.reports[-1] == "away")
            port.write(bytes(100_000))
            assert owner.reports[-1] == "busy"
            board.plug()
            board.start_reading()
            await until(lambda: len(board.received) == 100_000)
            await until(lambda: owner.reports[-1] == "ready")


async def test_stopping_while_a_board_is_away_leaves_nothing(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 60.0
            board.unplug()
            await until(lambda: owner.reports[-1] == "away")
        await asyncio.sleep(0.2)
        assert owner.reports == ["opened", "away"]
