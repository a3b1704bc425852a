"""What is seen to when a device's users have left: last bytes, lines, settings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from gateway.devices.device_controls import DeviceControls
from gateway.devices.end_of_use import FINISH_LIMIT_S, HANDOVER_S, EndOfUse
from gateway.protocol.access_server import PortStatus
from gateway.protocol.reset import IDLE
from gateway.protocol.serial_settings import SerialSettings
from tests.support.pty_board import LoopClock

SETTINGS = SerialSettings(baudrate=74880)


class SlowBoard(DeviceControls):
    """A device that notes what it is asked for; what it was sent leaves when the test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.waiting_bytes = 100
        self.is_touched = False
        self.sent: Callable[[], None] = lambda: None

    @property
    def status(self) -> PortStatus:
        return PortStatus(SETTINGS, IDLE, break_on=False)

    @property
    def is_touched_by_leaving(self) -> bool:
        return self.is_touched

    @property
    def unsent_bytes(self) -> int:
        return self.waiting_bytes

    @property
    def taken_bytes(self) -> int:
        return 1000 - self.waiting_bytes

    def when_sent(self, done: Callable[[], None]) -> None:
        self.asked.append("sent?")
        self.sent = done

    def drop_unsent(self, reason: str) -> None:
        assert reason == "the board does not accept data"
        self.asked.append("drop")
        self.waiting_bytes = 0
        self.sent()

    def reset(self, done: Callable[[], None]) -> None:
        self.asked.append("reset")
        done()

    def bring_back(
        self, settings: SerialSettings, done: Callable[[], None], *, has_left: bool
    ) -> None:
        self.asked.append(f"bring back {settings.baudrate}")
        done()

    def ended(self) -> None:
        self.asked.append("done")


def ending(board: SlowBoard) -> EndOfUse:
    return EndOfUse(board, SETTINGS)


async def test_lines_and_settings_go_back_behind_the_last_byte() -> None:
    board = SlowBoard()
    with LoopClock() as clock, capture_logs() as logs:
        ending(board).begin(board.ended, is_hurried=False, resets=False)
        await clock.advance(FINISH_LIMIT_S - 0.1)
        assert board.asked == ["sent?"]
        board.sent()
        assert board.asked == ["sent?", "bring back 74880", "done"]
        await clock.advance(FINISH_LIMIT_S)
        assert board.asked[-1] == "done"
    assert not logs


async def test_the_board_is_reset_behind_the_last_byte_and_before_its_lines_go_back() -> None:
    board = SlowBoard()
    ending(board).begin(board.ended, is_hurried=False, resets=True)
    board.sent()
    assert board.asked == ["sent?", "reset", "bring back 74880", "done"]


@pytest.mark.parametrize(("has_left", "asked"), [(True, []), (False, ["reset"])])
async def test_a_touch_of_a_client_that_has_left_is_not_undone_by_a_reset(
    has_left: bool, asked: list[str]
) -> None:
    board = SlowBoard()
    board.is_touched = True
    ending(board).begin(board.ended, is_hurried=False, resets=True, has_left=has_left)
    board.sent()
    assert board.asked == ["sent?", *asked, "bring back 74880", "done"]


async def test_bytes_that_do_not_leave_are_dropped_at_the_limit() -> None:
    board = SlowBoard()
    with LoopClock() as clock:
        end = ending(board)
        end.begin(board.ended, is_hurried=False, resets=False)
        await clock.advance(FINISH_LIMIT_S)
        assert board.asked == ["sent?", "drop", "bring back 74880", "done"]
        end.hurry()
        await clock.advance(FINISH_LIMIT_S)
    assert board.asked.count("drop") == 1


async def test_bytes_that_leave_are_let_out_however_long_that_takes() -> None:
    board = SlowBoard()
    with LoopClock() as clock, capture_logs() as logs:
        ending(board).begin(board.ended, is_hurried=False, resets=False)
        while board.waiting_bytes > 10:
            await clock.advance(FINISH_LIMIT_S - 2.0)
            board.waiting_bytes -= 10
        assert board.asked == ["sent?"]
        board.sent()
        assert board.asked[-1] == "done"
    assert not logs


async def test_another_who_waits_makes_the_limit_short() -> None:
    board = SlowBoard()
    with LoopClock() as clock:
        end = ending(board)
        end.begin(board.ended, is_hurried=False, resets=False)
        await clock.advance(1.0)
        end.hurry()
        await clock.advance(HANDOVER_S)
        assert "drop" in board.asked


async def test_who_is_to_hurry_from_the_start_is_not_let_out_longer_though_bytes_leave() -> None:
    board = SlowBoard()
    with LoopClock() as clock:
        ending(board).begin(board.ended, is_hurried=True, resets=False)
        for _ in range(5):
            await clock.advance(HANDOVER_S / 5)
            board.waiting_bytes -= 1
        await clock.advance(0.01)
        assert "drop" in board.asked


async def test_a_device_that_is_lost_needs_no_end() -> None:
    board = SlowBoard()
    with LoopClock() as clock:
        end = ending(board)
        end.begin(board.ended, is_hurried=False, resets=False)
        end.cancel()
        await clock.advance(2 * FINISH_LIMIT_S)
        assert board.asked == ["sent?"]
