"""The process of a simulated board, from outside: pyserial on its tty, text on its socket."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import serial

from gateway.simulator.board import pattern
from gateway.simulator.host import EXIT_WITH_STDIN, MAX_REQUEST_BYTES, SimulatedLines, read_log
from tests.support.processes import BackgroundProcess, run_tool

#: For hung tests only.
LIMIT_S = 20.0

#: pyserial leaves at least this between two line commands over RFC 2217.
NAIVE_PAUSE_S = 0.05

PROMPT = b"esp> "


def board_command(url: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "gateway.simulator", *options, url]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.005)


class Board:
    """A board whose process runs, with its files in `folder`."""

    def __init__(self, folder: Path, process: BackgroundProcess) -> None:
        self.folder = folder
        self.process = process
        self.tty_path = folder / "tty"
        self.control_path = folder / "control"

    def events(self, name: str) -> list[dict[str, object]]:
        log = read_log(self.folder / "log.jsonl")
        return [entry for entry in log if entry["event"] == name]

    def boot_modes(self) -> list[object]:
        return [entry["mode"] for entry in self.events("boot")]

    def wait_for(self, event: str, count: int = 1) -> None:
        wait_until(lambda: len(self.events(event)) >= count)

    def open_tty(self, baudrate: int = 115200) -> serial.Serial:
        return serial.Serial(str(self.tty_path), baudrate, timeout=LIMIT_S)

    def settle(self) -> None:
        """Return when all that the board prints at its start has left it.

        The first Enter ends what the tty may have echoed before pyserial set raw mode.
        """
        answer = b"? hello\r\n" + PROMPT
        with self.open_tty() as tty:
            tty.write(b"\rhello\r")
            assert tty.read_until(answer).endswith(answer)

    def ask(self, *requests: bytes) -> list[bytes]:
        """What the control socket answers to each request; every one must have an answer."""
        with socket.socket(socket.AF_UNIX) as control, control.makefile("rwb") as stream:
            control.settimeout(LIMIT_S)
            control.connect(str(self.control_path))
            answers = []
            for request in requests:
                stream.write(request + b"\n")
                stream.flush()
                answers.append(stream.readline().rstrip(b"\n"))
        return answers

    def set_lines(self, *steps: tuple[bool, bool, float]) -> None:
        """DTR, RTS and the pause after them, for each step."""
        with closing(SimulatedLines(self.control_path)) as lines:
            for dtr, rts, pause_s in steps:
                lines.set_lines(dtr, rts)
                time.sleep(pause_s)

    def reset_into_app(self) -> None:
        n_boots = len(self.events("boot"))
        self.set_lines((False, True, 0.01), (False, False, 0))
        self.wait_for("boot", n_boots + 1)

    def reset_into_download_mode(self) -> None:
        n_boots = len(self.events("boot"))
        self.set_lines((False, True, 0.01), (True, False, 0.05), (False, False, 0))
        self.wait_for("boot", n_boots + 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "board"


@pytest.fixture
def board(folder: Path) -> Iterator[Board]:
    command = board_command(f"sim://esp32?name=desk&heartbeat_s=0&dir={folder}")
    with BackgroundProcess(command) as process:
        process.wait_for_line("^ready ")
        board = Board(folder, process)
        board.wait_for("app_started")
        board.settle()
        yield board


def test_ready_line_names_a_tty_that_can_be_opened(board: Board) -> None:
    assert board.process.log == [f"ready {board.tty_path}"]
    board.open_tty().close()


def test_folder_is_private_and_empty_but_for_the_log_afterwards(folder: Path) -> None:
    with BackgroundProcess(board_command(f"sim://esp32?dir={folder}")) as process:
        process.wait_for_line("^ready ")
        assert folder.stat().st_mode & 0o777 == 0o700
        names = {path.name for path in folder.iterdir()}
        assert names == {"tty", "by-path", "usb.json", "control", "log.jsonl"}
    assert [path.name for path in folder.iterdir()] == ["log.jsonl"]


def test_folder_may_lie_deeper_than_a_socket_path_is_long(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100) / "board"
    with BackgroundProcess(board_command(f"sim://esp32?heartbeat_s=0&dir={folder}")) as process:
        process.wait_for_line("^ready ")
        board = Board(folder, process)
        board.set_lines((True, True, 0))
        board.wait_for("lines")


def test_without_a_folder_a_temporary_one_is_used_and_removed() -> None:
    with BackgroundProcess(board_command("sim://esp32")) as process:
        tty_path = Path(process.wait_for_line("^ready (.+)")[1])
        serial.Serial(str(tty_path)).close()
    assert not tty_path.parent.exists()


def test_what_a_killed_process_left_is_taken_over(folder: Path) -> None:
    command = board_command(f"sim://esp32?dir={folder}")
    killed = BackgroundProcess(command)
    killed.start()
    killed.wait_for_line("^ready ")
    killed.kill()
    assert (folder / "control").exists()
    with BackgroundProcess(command) as process:
        process.wait_for_line("^ready ")
        Board(folder, process).open_tty().close()


def test_end_of_standard_input_ends_it_if_asked_to(folder: Path) -> None:
    process = subprocess.Popen(
        board_command(f"sim://esp32?dir={folder}", EXIT_WITH_STDIN),
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


def test_second_board_in_the_same_folder_is_refused(board: Board) -> None:
    result = run_tool(board_command(f"sim://esp32?dir={board.folder}"), LIMIT_S)
    assert result.returncode == 1
    assert re.fullmatch(r"failed .* in use by another simulated board\n", result.stdout)
    board.open_tty().close()


@pytest.mark.parametrize("args", [["sim://esp99"], ["sim://esp32?speed=1"], []])
def test_mistake_in_the_url_is_told_in_one_line(args: list[str]) -> None:
    result = run_tool([sys.executable, "-m", "gateway.simulator", *args], LIMIT_S)
    assert result.returncode == 1
    assert re.fullmatch(r"failed .*expected .*\n", result.stdout)
    assert result.stderr == ""


def test_boot_log_and_prompt_follow_a_reset(board: Board) -> None:
    with board.open_tty() as tty:
        board.reset_into_app()
        text = tty.read_until(PROMPT)
    assert text.startswith(b"ets Jul 29 2019 12:21:46\r\n\r\nrst:0x1 (POWERON_RESET),boot:0x13 ")
    assert text.endswith(b"I (0) app: ready\r\n" + PROMPT)


def test_app_echoes_and_answers(board: Board) -> None:
    with board.open_tty() as tty:
        tty.write(b"version\r")
        assert tty.read_until(PROMPT) == b"version\r\ndesk simulated app 1.0\r\n" + PROMPT


def test_long_answer_arrives_whole(board: Board) -> None:
    with board.open_tty() as tty:
        tty.write(b"bytes 5000\r")
        assert tty.read_until(b"\r\n") == b"bytes 5000\r\n"
        assert tty.read(5000) == pattern(5000)


def test_heartbeat_comes_by_itself(folder: Path) -> None:
    command = board_command(f"sim://esp32?heartbeat_s=0.01&dir={folder}")
    with BackgroundProcess(command) as process:
        process.wait_for_line("^ready ")
        with Board(folder, process).open_tty() as tty:
            text = b"".join(tty.read_until(b"heartbeat ") for _ in range(5))
    numbers = [int(number) for number in re.findall(rb"heartbeat (\d+)\r\n", text)]
    assert len(numbers) == 4
    assert numbers == sorted(set(numbers))


def test_wrong_baud_rate_gives_garbage_and_the_right_one_text_again(board: Board) -> None:
    with board.open_tty(9600) as tty:
        tty.write(b"version\r")
        assert not set(tty.read(8)) & set(b"version")
        tty.baudrate = 115200
        tty.write(b"\r")
        tty.read_until(PROMPT)
        tty.write(b"version\r")
        assert b"desk simulated app" in tty.read_until(PROMPT)


def test_bytes_leave_at_the_pace_of_the_line(board: Board) -> None:
    # 43 s at 115200 baud: a reset that follows the first ones cuts off all but a few.
    n_bytes = 500_000
    with board.open_tty() as tty:
        tty.write(b"bytes %d\r" % n_bytes)
        tty.read_until(b"\r\n")
        received = tty.read(1000)
        board.reset_into_app()
        received += tty.read_until(b"ets Jul 29").removesuffix(b"ets Jul 29")
    assert len(received) < n_bytes
    assert received == pattern(len(received))


def test_reset_with_io0_low_in_one_step_enters_download_mode(board: Board) -> None:
    with board.open_tty() as tty:
        board.reset_into_download_mode()
        text = tty.read_until(b"waiting for download\r\n")
    assert b"boot:0x3 (DOWNLOAD_BOOT" in text
    assert board.boot_modes() == ["app", "download"]


def test_naively_forwarded_reset_boots_the_app(board: Board) -> None:
    board.set_lines(
        (False, True, NAIVE_PAUSE_S),
        (True, True, NAIVE_PAUSE_S),
        (True, False, NAIVE_PAUSE_S),
        (False, False, 0),
    )
    board.wait_for("lines", 4)
    assert board.boot_modes() == ["app", "app"]


def test_opening_and_closing_the_tty_does_not_reset_the_board(board: Board) -> None:
    for _ in range(3):
        board.open_tty().close()
    board.set_lines((True, True, 0), (False, False, 0))
    board.wait_for("lines", 2)
    assert board.boot_modes() == ["app"]


def test_state_tells_what_runs_and_how_the_wire_is(board: Board) -> None:
    with board.open_tty(57600):
        board.set_lines((True, True, 0))
        board.wait_for("lines")
        (answer,) = board.ask(b"state?")
    assert json.loads(answer) == {
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
    [
        b"",
        b"reboot",
        b"lines 1",
        b"lines 2 0 1",
        b"lines 1 0 soon",
        b"lines 1 0 -5",
        b"\xff\xfe",
    ],
)
def test_wrong_request_is_answered_once_and_the_connection_goes_on(
    board: Board, request_line: bytes
) -> None:
    error, state = board.ask(request_line, b"state?")
    assert error.startswith(b"error ")
    assert json.loads(state)["runs"] == "app"


def test_a_request_that_is_too_long_ends_the_connection_only(board: Board) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(LIMIT_S)
        control.connect(str(board.control_path))
        with contextlib.suppress(ConnectionError):
            control.sendall(b"x" * (MAX_REQUEST_BYTES + 1) + b"\n")
            assert control.recv(1) == b""
    assert json.loads(board.ask(b"state?")[0])["runs"] == "app"


def test_unplugging_hangs_the_tty_up_and_plugging_boots_anew(board: Board) -> None:
    with board.open_tty() as tty:
        assert board.ask(b"unplug", b"state?")[0] == b"ok"
        with pytest.raises(serial.SerialException):
            tty.read(1)
    assert not board.tty_path.is_symlink()
    assert board.ask(b"plug", b"plug") == [b"ok", b"ok"]
    board.wait_for("app_started", 2)
    board.settle()
    assert board.boot_modes() == ["app", "app"]
    assert len(board.events("plugged")) == 2
    assert len(board.events("unplugged")) == 1


def test_unplugging_ends_the_connections_that_set_lines_and_no_other(board: Board) -> None:
    with closing(SimulatedLines(board.control_path)) as lines:
        lines.set_lines(dtr=True, rts=True)
        board.wait_for("lines")
        answers = board.ask(b"unplug", b"lines 0 0 1", b"plug")
        assert answers == [b"ok", b"error the board is unplugged", b"ok"]
        with pytest.raises(OSError, match="gone"):
            lines.set_lines(dtr=False, rts=False)
    board.set_lines((True, True, 0))
    board.wait_for("lines", 2)


def test_lines_can_not_be_set_when_the_process_is_gone(board: Board) -> None:
    with closing(SimulatedLines(board.control_path)) as lines:
        board.process.stop()
        with pytest.raises(OSError, match="gone"):
            lines.set_lines(dtr=True, rts=True)
    with pytest.raises(FileNotFoundError):
        SimulatedLines(board.control_path)


def test_real_esptool_flashes_it_at_a_higher_rate(board: Board, tmp_path: Path) -> None:
    image = tmp_path / "image.bin"
    image.write_bytes(pattern(20_000))
    board.reset_into_download_mode()
    esptool = [sys.executable, "-m", "esptool", "--port", str(board.tty_path)]
    esptool += ["--chip", "esp32", "--before", "no-reset", "--after", "no-reset"]
    result = run_tool([*esptool, "--baud", "921600", "write-flash", "0x10000", image], 60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Hash of data verified" in result.stdout
    assert [entry["baudrate"] for entry in board.events("baudrate")] == [921600]
    written = [entry["size"] for entry in board.events("flash_written")]
    assert sum(int(str(size)) for size in written) >= 20_000


def test_real_esptool_reads_the_flash_id(board: Board) -> None:
    board.reset_into_download_mode()
    esptool = [sys.executable, "-m", "esptool", "--port", str(board.tty_path)]
    result = run_tool([*esptool, "--before", "no-reset", "--after", "no-reset", "flash-id"], 60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Detected flash size: 4MB" in result.stdout
    assert len(board.events("stub_started")) == 1
