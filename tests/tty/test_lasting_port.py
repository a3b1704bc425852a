"""The port that survives its device, on real ptys that come and go."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.errors import DeviceAbsentError, DeviceError
from gateway.protocol.reset import BOTH, IDLE, RESET
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.lasting_port import LastingPort, Locate
from gateway.tty.retry_plan import FIRST_S
from gateway.tty.serial_tty import TtyLocation
from tests.support.pty_board import LoopClock, PtyBoard, turns, until

FAST = replace(SerialSettings(), baudrate=921600)


class Owner:
    """Writes down what the port reports."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.received = bytearray()
        self.errors: list[DeviceError] = []
        self.is_ready_at_once = True
        self.ready: Callable[[], None] = lambda: None

    def port_opened(self) -> None:
        self.reports.append("opened")

    def port_away(self, error: DeviceError) -> None:
        self.errors.append(error)
        self.reports.append("away")

    def port_back(self, ready: Callable[[], None]) -> None:
        self.reports.append("back")
        self.ready = ready
        if self.is_ready_at_once:
            ready()

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
async def lasting(
    board: PtyBoard, locate: Locate | None = None
) -> AsyncIterator[tuple[LastingPort, Owner]]:
    owner = Owner()
    locate = locate or (lambda: board.location)
    port = LastingPort(locate, SerialSettings(), owner, structlog.get_logger())
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


async def test_waits_for_a_board_start_again_once_it_was_open(tmp_path: Path) -> None:
    with PtyBoard(tmp_path, plugged_in=False) as board, LoopClock() as clock:
        async with lasting(board) as (_, owner):
            for _ in range(40):
                await clock.advance(0.5)
            board.plug()
            while "opened" not in owner.reports:
                await clock.advance(0.5)
            board.unplug()
            await until(lambda: owner.reports[-1] == "lost")
            board.plug()
            await clock.advance(FIRST_S)
            assert owner.reports[-1] == "opened"


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
            assert board.lines == [BOTH, IDLE]  # opened, brought to rest: the rest is its owner's


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


async def test_a_board_whose_user_has_left_is_waited_for_a_shorter_time_and_gets_nothing(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock, capture_logs() as logs:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.expect_return(1.0)  # it is there
            port.grace_s = 60.0
            for wait_s in (1.0, 100.0):
                board.unplug()
                await until(lambda: owner.reports[-1] == "away")
                port.write(b"in vain")
                port.forget_user()
                port.expect_return(wait_s)
                assert port.unsent_bytes == 0
                if wait_s == 1.0:
                    board.plug()
                    board.start_reading()
                    await clock.advance(0.1)
                    await until(lambda: owner.reports[-1] == "back")
            await clock.advance(59.0)
            assert owner.reports[-1] == "away"
            await clock.advance(1.1)
            await until(lambda: "lost" in owner.reports)
            assert isinstance(owner.errors[-1], DeviceAbsentError)
            assert board.received == b""
    assert [log["unsent_bytes"] for log in logs if log["event"] == "unsent_dropped"] == [7, 7]


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
            await until(lambda: owner.reports[-1] == "back")
            await turns(20)
            assert port.unsent_bytes > 65536
            assert owner.reports[-1] == "back"
            board.start_reading()
            await until(lambda: len(board.received) == 100_000)
            await until(lambda: owner.reports[-1] == "ready")
            assert owner.reports == ["opened", "away", "busy", "back", "ready"]


async def test_too_many_bytes_for_a_tty_that_has_just_died_stop_their_writer(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 60.0
            board.unplug()
            port.write(bytes(100_000))
            await until(lambda: "away" in owner.reports)
            await turns(20)
            assert owner.reports == ["opened", "away", "busy"]


async def test_a_board_that_comes_back_with_little_waiting_is_not_told_of(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 60.0
            board.unplug()
            await until(lambda: owner.reports[-1] == "away")
            port.write(b"little")
            board.plug()
            board.start_reading()
            await until(lambda: board.received == b"little")
            assert owner.reports == ["opened", "away", "back"]


async def test_a_writer_stays_stopped_until_its_bytes_have_left_also_over_an_absence(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 60.0
            port.write(bytes(100_000))
            assert owner.reports == ["opened", "busy"]
            port.apply(FAST, lambda _: None)  # what follows it is kept for the board
            port.write(bytes(100_000))
            board.unplug()
            await until(lambda: "away" in owner.reports)
            await turns(20)
            assert owner.reports == ["opened", "busy", "away"]
            board.plug()
            await until(lambda: "back" in owner.reports)
            await turns(20)
            assert owner.reports == ["opened", "busy", "away", "back"]
            board.start_reading()
            await until(lambda: owner.reports[-1] == "ready")
            await turns(20)
            assert owner.reports == ["opened", "busy", "away", "back", "ready"]


async def test_a_writer_waits_while_a_board_that_is_back_is_prepared(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 60.0
            owner.is_ready_at_once = False
            board.unplug()
            await until(lambda: owner.reports[-1] == "away")
            port.write(b"kept")
            board.plug()
            board.start_reading()
            await until(lambda: "back" in owner.reports)
            assert owner.reports == ["opened", "away", "back", "busy"]
            assert port.unsent_bytes == 4
            owner.ready()
            assert owner.reports[-1] == "ready"
            await until(lambda: board.received == b"kept")


async def test_the_next_open_port_stops_its_writer_again(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.write(bytes(100_000))
            board.unplug()
            await until(lambda: owner.reports == ["opened", "busy", "lost"])
            board.plug()
            await until(lambda: owner.reports[-1] == "opened")
            port.write(bytes(100_000))
            assert owner.reports[-1] == "busy"


async def test_a_port_that_fails_to_open_while_it_is_released_is_released(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        board.open_error = OSError(errno.EIO, "Input/output error")
        board.answers.clear()
        async with lasting(board) as (port, owner):
            await until(lambda: board.tries)
            released: list[bool] = []
            port.release(lambda: released.append(True))
            await turns(20)
            assert not released
            board.answers.set()
            await until(lambda: released or owner.reports)
            assert (released, owner.reports) == ([True], [])


async def test_stopping_while_a_board_is_away_leaves_nothing(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 60.0
            board.unplug()
            await until(lambda: owner.reports[-1] == "away")
        await asyncio.sleep(0.2)
        assert owner.reports == ["opened", "away"]


class Place:
    """Where a device is, as the test says."""

    def __init__(self) -> None:
        self.board: PtyBoard | None = None
        self.error: DeviceError = DeviceAbsentError("not plugged in")

    def locate(self) -> TtyLocation:
        if self.board is None:
            raise self.error
        return self.board.location


async def test_a_device_that_has_come_is_opened_at_once(tmp_path: Path) -> None:
    place = Place()
    with PtyBoard(tmp_path) as board, LoopClock():
        async with lasting(board, place.locate) as (port, owner):
            await until(lambda: owner.reports == ["lost"])
            await turns(10)
            place.board = board
            port.look_again(in_use=False)
            await until(lambda: owner.reports == ["lost", "opened"])  # no time has passed


async def test_news_that_come_during_a_try_lead_to_another_one(tmp_path: Path) -> None:
    place = Place()
    with PtyBoard(tmp_path) as board, LoopClock():
        place.board = board
        board.open_error = OSError("not this time")
        board.answers.clear()
        async with lasting(board, place.locate) as (port, owner):
            await until(lambda: board.tries == 1)
            port.look_again(in_use=False)
            board.answers.set()
            await until(lambda: board.tries == 2)
            await until(lambda: owner.reports == ["lost"])


@pytest.mark.parametrize("in_use", [False, True])
async def test_a_device_that_has_gone_is_given_up_before_its_tty_says_so(
    tmp_path: Path, in_use: bool
) -> None:
    place = Place()
    with PtyBoard(tmp_path) as board, LoopClock():
        place.board = board
        async with lasting(board, place.locate) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            place.board = None
            port.look_again(in_use=in_use)
            assert owner.reports == ["opened", "lost"]
            assert isinstance(owner.errors[0], DeviceAbsentError)


async def test_a_board_that_comes_back_elsewhere_is_found_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    place = Place()
    with PtyBoard(tmp_path / "a") as first, PtyBoard(tmp_path / "b", plugged_in=False) as second:
        place.board = first
        async with lasting(first, place.locate) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 60.0
            first.unplug()
            await until(lambda: owner.reports[-1] == "away")
            port.write(b"for you")
            place.board = None
            port.look_again(in_use=True)
            second.plug()
            place.board = second
            port.look_again(in_use=True)
            await until(lambda: owner.reports == ["opened", "away", "back"])
            second.start_reading()
            await until(lambda: second.received == b"for you")


async def test_who_uses_a_device_keeps_it_while_it_is_there(tmp_path: Path) -> None:
    place = Place()
    place.error = DeviceError("two of them")
    with PtyBoard(tmp_path) as board, LoopClock():
        place.board = board
        async with lasting(board, place.locate) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            place.board = None
            port.look_again(in_use=True)
            assert owner.reports == ["opened"]
            port.look_again(in_use=False)
            assert owner.reports == ["opened", "lost"]
            assert str(owner.errors[0]) == "two of them"


async def test_a_device_that_keeps_leaving_is_left_alone_for_a_while(tmp_path: Path) -> None:
    place = Place()
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        place.board = board
        held = board.descriptors()  # by the board itself
        async with lasting(board, place.locate) as (port, owner):
            for number in range(1, 12):
                await until(lambda n=number: owner.reports.count("opened") == n)  # type: ignore[misc]
                place.board = None
                port.look_again(in_use=False)
                # The same tty can't be opened while it is still being closed.
                await until(lambda: board.descriptors() == held)
                place.board = board
                port.look_again(in_use=False)
            assert "keeps leaving" in str(owner.errors[-1])
            await turns(20)
            assert owner.reports.count("opened") == 11
            await clock.advance(5.1)
            await until(lambda: owner.reports.count("opened") == 12)
