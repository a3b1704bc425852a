"""The process of a simulated board behind a bridge: tty, control socket, folder, start and end."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import serial

from gateway.errors import DeviceError
from gateway.simulator import host
from gateway.simulator.attachment import UsbIds
from gateway.simulator.board import PROMPT, pattern
from gateway.simulator.host import (
    EXIT_WITH_STDIN,
    MAX_REQUEST_BYTES,
    SimulatedLines,
    UsbDevice,
    read_log,
    start_board,
)
from gateway.simulator.url import parse_url
from tests.support.boards import RunningBoard
from tests.support.processes import BackgroundProcess, run_tool

#: For hung tests only.
LIMIT_S = 20.0

#: pyserial leaves at least this between two line commands over RFC 2217.
NAIVE_PAUSE_S = 0.05

INTO_APP = [(False, True, 0.01), (False, False, 0.0)]
INTO_DOWNLOAD_MODE = [(False, True, 0.01), (True, False, 0.05), (False, False, 0.0)]


def board_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway.simulator", *arguments]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "board"


@pytest.fixture
def board(folder: Path) -> Iterator[RunningBoard]:
    with RunningBoard(f"sim://esp32?name=desk&heartbeat_s=0&dir={folder}") as board:
        board.wait_for("app_started")
        settle(board)
        yield board


def settle(board: RunningBoard) -> None:
    """Return when all that the board prints at its start has left it.

    The first Enter ends what the tty may have echoed before pyserial set raw mode.
    """
    answer = b"? hello\r\n" + PROMPT
    with board.open_tty() as tty:
        tty.write(b"\rhello\r")
        assert tty.read_until(answer).endswith(answer)


def reset(board: RunningBoard, steps: list[tuple[bool, bool, float]]) -> None:
    n_boots = len(board.boots())
    board.play(steps)
    board.wait_for("boot", n_boots + 1)


# Its files.


def test_ready_line_names_a_tty_that_can_be_opened(board: RunningBoard) -> None:
    assert board.log == [f"ready {board.tty_path}"]
    serial.Serial(str(board.tty_path)).close()


def test_folder_is_private_and_empty_but_for_the_log_afterwards(folder: Path) -> None:
    with RunningBoard(f"sim://esp32?dir={folder}"):
        assert folder.stat().st_mode & 0o777 == 0o700
        names = {path.name for path in folder.iterdir()}
        assert names == {"tty", "by-path", "usb.json", "control", "log.jsonl"}
        assert (folder / "by-path").readlink() == Path("tty")
    assert [path.name for path in folder.iterdir()] == ["log.jsonl"]


def test_folder_may_lie_deeper_than_a_socket_path_is_long(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100) / "board"
    with RunningBoard(f"sim://esp32?heartbeat_s=0&dir={folder}") as board:
        board.play([(True, True, 0)])
        board.wait_for("lines")


def test_without_a_folder_a_temporary_one_is_used_and_removed() -> None:
    with BackgroundProcess(board_command("sim://esp32")) as process:
        tty_path = Path(process.wait_for_line("^ready (.+)")[1])
        serial.Serial(str(tty_path)).close()
    assert not tty_path.parent.exists()


def test_what_a_killed_process_left_is_taken_over(folder: Path) -> None:
    url = f"sim://esp32?dir={folder}"
    killed = BackgroundProcess(board_command(url))
    killed.start()
    killed.wait_for_line("^ready ")
    killed.kill()
    assert (folder / "control").exists()
    (folder / ".tty.new").symlink_to("/dev/null")
    with RunningBoard(url) as board:
        board.open_tty().close()


def test_end_of_standard_input_ends_it_if_requested(folder: Path) -> None:
    process = subprocess.Popen(
        board_command(EXIT_WITH_STDIN, f"sim://esp32?dir={folder}"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"ready ")
        process.stdin.close()
        assert process.wait(LIMIT_S) == 0
    assert not (folder / "tty").is_symlink()


def test_second_board_in_the_same_folder_is_refused(board: RunningBoard) -> None:
    result = run_tool(board_command(f"sim://esp32?dir={board.folder}"), LIMIT_S)
    assert result.returncode == 1
    assert re.fullmatch(r"failed .* in use by another simulated board\n", result.stdout)
    board.open_tty().close()


@pytest.mark.parametrize("args", [["sim://esp99"], ["sim://esp32?speed=1"], []])
def test_mistake_in_the_url_is_one_line(args: list[str]) -> None:
    result = run_tool(board_command(*args), LIMIT_S)
    assert result.returncode == 1
    assert re.fullmatch(r"failed .*expected .*\n", result.stdout)
    assert result.stderr == ""


# Its tty.


def test_boot_log_and_prompt_follow_a_reset(board: RunningBoard) -> None:
    with board.open_tty() as tty:
        reset(board, INTO_APP)
        text = tty.read_until(PROMPT)
    assert text.startswith(b"ets Jul 29 2019 12:21:46\r\n\r\nrst:0x1 (POWERON_RESET),boot:0x13 ")
    assert text.endswith(b"I (0) app: ready\r\n" + PROMPT)


def test_app_echoes_and_answers_at_the_right_rate_only(board: RunningBoard) -> None:
    with board.open_tty(9600) as tty:
        tty.write(b"version\r")
        assert not set(tty.read(8)) & set(b"version")
        tty.baudrate = 115200
        tty.write(b"\r")
        tty.read_until(PROMPT)
        tty.write(b"version\r")
        assert tty.read_until(PROMPT) == b"version\r\ndesk simulated app 1.0\r\n" + PROMPT
        tty.write(b"bytes 5000\r")
        assert tty.read_until(b"\r\n") == b"bytes 5000\r\n"
        assert tty.read(5000) == pattern(5000)


def test_heartbeat_comes_by_itself(folder: Path) -> None:
    with (
        RunningBoard(f"sim://esp32?heartbeat_s=0.01&dir={folder}") as board,
        board.open_tty() as tty,
    ):
        text = b"".join(tty.read_until(b"heartbeat ") for _ in range(5))
    numbers = [int(number) for number in re.findall(rb"heartbeat (\d+)\r\n", text)]
    assert len(numbers) == 4
    assert numbers == sorted(set(numbers))


def test_bytes_leave_at_the_pace_of_the_line(board: RunningBoard) -> None:
    # 43 s at 115200 baud: a reset that follows the first ones cuts off all but a few.
    n_bytes = 500_000
    with board.open_tty() as tty:
        tty.write(b"bytes %d\r" % n_bytes)
        tty.read_until(b"\r\n")
        received = tty.read(1000)
        reset(board, INTO_APP)
        received += tty.read_until(b"ets Jul 29").removesuffix(b"ets Jul 29")
    assert len(received) < n_bytes
    assert received == pattern(len(received))


def test_reset_with_io0_low_in_one_step_enters_download_mode(board: RunningBoard) -> None:
    with board.open_tty() as tty:
        reset(board, INTO_DOWNLOAD_MODE)
        text = tty.read_until(b"waiting for download\r\n")
    assert b"boot:0x3 (DOWNLOAD_BOOT" in text
    assert board.boots() == ["app", "download"]


def test_naively_forwarded_reset_boots_the_app(board: RunningBoard) -> None:
    steps = [(False, True), (True, True), (True, False), (False, False)]
    board.play((*lines, NAIVE_PAUSE_S) for lines in steps)
    board.wait_for("lines", 4)
    assert board.boots() == ["app", "app"]


def test_opening_and_closing_the_tty_does_not_reset_the_board(board: RunningBoard) -> None:
    for _ in range(3):
        board.open_tty().close()
    board.play([(True, True, 0), (False, False, 0)])
    board.wait_for("lines", 2)
    assert board.boots() == ["app"]


# Its control socket.


def test_state_tells_what_runs_and_how_the_wire_is(board: RunningBoard) -> None:
    with board.open_tty(57600):
        board.play([(True, True, 0)])
        board.wait_for("lines")
        assert board.state() == {
            "name": "desk",
            "chip": "esp32",
            "runs": "app",
            "mode": "app",
            "baudrate": 115200,
            "host_baudrate": 57600,
            "dtr": True,
            "rts": True,
            "usb": "bridge",
            "usb_number": 1,
            "usb_ids": "10c4:ea60",
            "tty": str(board.tty_path.readlink()),
        }


@pytest.mark.parametrize(
    "request_line",
    ["", "reboot", "lines 1", "lines 2 0 1", "lines 1 0 soon", "lines 1 0 -5", "\x00\x7f"],
)
def test_wrong_request_is_answered_once_and_the_connection_goes_on(
    board: RunningBoard, request_line: str
) -> None:
    error, state = board.ask(request_line, "state?")
    assert error.startswith("error ")
    assert '"runs": "app"' in state


def test_a_request_that_is_too_long_ends_the_connection_only(board: RunningBoard) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(LIMIT_S)
        control.connect(str(board.control_path))
        with contextlib.suppress(ConnectionError):
            control.sendall(b"x" * (MAX_REQUEST_BYTES + 1) + b"\n")
            assert control.recv(1) == b""
    assert board.state()["runs"] == "app"


def test_unplugging_hangs_the_tty_up_and_plugging_boots_anew(board: RunningBoard) -> None:
    with board.open_tty() as tty:
        assert board.ask("unplug", "state?")[0] == "ok"
        with pytest.raises(serial.SerialException):
            tty.read(1)
    assert not board.tty_path.is_symlink()
    assert board.ask("plug", "plug") == ["ok", "ok"]
    board.wait_for("app_started", 2)
    settle(board)
    assert board.boots() == ["app", "app"]
    assert len(board.events("plugged")) == 2
    assert len(board.events("unplugged")) == 1


def test_unplugging_ends_the_connections_that_set_lines_and_no_other(board: RunningBoard) -> None:
    with closing(SimulatedLines(board.control_path)) as lines:
        lines.set_lines(dtr=True, rts=True)
        board.wait_for("lines")
        answers = board.ask("unplug", "lines 0 0 1", "plug")
        assert answers == ["ok", "error the board is unplugged", "ok"]
        with pytest.raises(OSError, match="gone"):
            lines.set_lines(dtr=False, rts=False)
    board.play([(True, True, 0)])
    board.wait_for("lines", 2)


def test_lines_can_not_be_set_when_the_process_is_gone(board: RunningBoard) -> None:
    with closing(SimulatedLines(board.control_path)) as lines:
        board.stop()
        with pytest.raises(OSError, match="gone"):
            lines.set_lines(dtr=True, rts=True)
    with pytest.raises(FileNotFoundError):
        SimulatedLines(board.control_path)


def test_real_esptool_flashes_it_at_a_higher_rate(board: RunningBoard, tmp_path: Path) -> None:
    image = tmp_path / "image.bin"
    image.write_bytes(pattern(20_000))
    reset(board, INTO_DOWNLOAD_MODE)
    esptool = [sys.executable, "-m", "esptool", "--port", str(board.tty_path)]
    esptool += ["--chip", "esp32", "--before", "no-reset", "--after", "no-reset"]
    result = run_tool([*esptool, "--baud", "921600", "write-flash", "0x10000", image], 60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Hash of data verified" in result.stdout
    assert [entry["baudrate"] for entry in board.events("baudrate")] == [921600]
    assert len(board.events("stub_started")) == 1
    written = [entry["size"] for entry in board.events("flash_written")]
    assert sum(int(str(size)) for size in written) >= 20_000


# As the gateway starts it.


async def test_started_board_can_be_opened_and_is_gone_after_stop() -> None:
    board = await start_board(parse_url("sim://esp32c3"))
    try:
        assert board.is_running
        serial.Serial(str(board.tty_path)).close()
        SimulatedLines(board.control_path).close()
        assert read_log(board.log_path)[0]["event"] == "plugged"
        assert board.usb_ids == (0x303A, 0x1001)
        assert board.usb_device == UsbDevice(1, UsbIds(0x303A, 0x1001), "tty")
        assert board.by_path.resolve() == board.tty_path.resolve()
    finally:
        await board.stop()
        await board.stop()
    assert not board.is_running
    assert board.usb_device is None
    assert board.usb_ids is None
    assert not board.folder.exists()


async def test_folder_of_the_url_is_used_and_keeps_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "with space & more"
    board = await start_board(parse_url("sim://esp32?dir=" + str(folder).replace("&", "%26")))
    await board.stop()
    assert board.log_path == folder / "log.jsonl"
    assert [entry["event"] for entry in read_log(board.log_path)][-1] == "unplugged"


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
    with pytest.raises(DeviceError, match="/dev/null/board"):
        await start_board(parse_url("sim://esp32?dir=/dev/null/board"))


@pytest.mark.parametrize(
    ("module", "name", "value", "reason"),
    [
        (host, "START_LIMIT_S", 0.0, "not ready within"),
        (sys, "executable", "/bin/false", "ended"),
        (sys, "executable", "/nonexistent/python", "nonexistent"),
    ],
)
async def test_process_that_does_not_get_ready_is_an_error(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, value: object, reason: str
) -> None:
    monkeypatch.setattr(module, name, value)
    with pytest.raises(DeviceError, match=reason):
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
