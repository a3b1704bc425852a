import asyncio
import sys
from pathlib import Path

import pytest
import serial

from gateway.errors import DeviceError
from gateway.simulator import host
from gateway.simulator.attachment import UsbIds
from gateway.simulator.host import SimulatedLines, UsbDevice, read_log, start_board
from gateway.simulator.url import parse_url


async def test_started_board_can_be_opened_and_is_gone_after_stop() -> None:
    board = await start_board(parse_url("sim://esp32"))
    try:
        assert board.is_running
        serial.Serial(str(board.tty_path)).close()
        SimulatedLines(board.control_path).close()
        assert read_log(board.log_path)[0]["event"] == "plugged"
    finally:
        await board.stop()
    assert not board.is_running
    assert not _exists(board.log_path.parent)


async def test_folder_of_the_url_is_used_and_keeps_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "with space & more"
    board = await start_board(parse_url("sim://esp32?dir=" + str(folder).replace("&", "%26")))
    await board.stop()
    assert board.log_path == folder / "log.jsonl"
    assert [entry["event"] for entry in read_log(board.log_path)][-1] == "unplugged"


async def test_board_tells_which_usb_device_it_is() -> None:
    board = await start_board(parse_url("sim://esp32c3"))
    try:
        assert board.usb_ids == (0x303A, 0x1001)
        assert board.usb_device == UsbDevice(1, UsbIds(0x303A, 0x1001), "tty")
        assert board.by_path.resolve() == board.tty_path.resolve()
    finally:
        await board.stop()
    assert board.usb_device is None
    assert board.usb_ids is None


async def test_stopping_twice_is_fine() -> None:
    board = await start_board(parse_url("sim://esp32"))
    await board.stop()
    await board.stop()


async def test_many_boards_start_at_once() -> None:
    url = parse_url("sim://esp32")
    boards = await asyncio.gather(*(start_board(url) for _ in range(4)))
    assert len({board.tty_path for board in boards}) == 4
    await asyncio.gather(*(board.stop() for board in boards))


async def test_board_that_can_not_start_says_why(tmp_path: Path) -> None:
    url = parse_url(f"sim://esp32?dir={tmp_path}")
    board = await start_board(url)
    with pytest.raises(DeviceError, match="in use by another simulated board"):
        await start_board(url)
    await board.stop()


async def test_folder_that_can_not_be_made_is_an_error() -> None:
    with pytest.raises(DeviceError, match="/dev/null/board"):
        await start_board(parse_url("sim://esp32?dir=/dev/null/board"))


async def test_process_that_is_not_ready_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "START_LIMIT_S", 0.0)
    with pytest.raises(DeviceError, match="not ready within"):
        await start_board(parse_url("sim://esp32"))


async def test_process_that_fails_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DeviceError, match="ended"):
        await start_board(parse_url(f"sim://esp32?dir={tmp_path}"))


async def test_missing_interpreter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(DeviceError, match="nonexistent"):
        await start_board(parse_url("sim://esp32"))


async def test_cancelled_start_leaves_no_process() -> None:
    start = asyncio.create_task(start_board(parse_url("sim://esp32")))
    await asyncio.sleep(0.02)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start


def test_half_written_log_line_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"t_ns": 1, "event": "boot"}\n{"t_ns": 2, "ev')
    assert read_log(log) == [{"t_ns": 1, "event": "boot"}]


def _exists(path: Path) -> bool:
    return path.exists()
