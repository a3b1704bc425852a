"""The log file of one board: times, rotation, and a disk that does not take it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

import gateway.port.output_log
from gateway.port.output_log import OutputLog, TimedLines

AT = datetime(2026, 3, 1, 12, 30, 45, 678_901)
LATER = AT.replace(second=46, microsecond=5000)
STAMP = b"2026-03-01 12:30:45.678 "


def log_of(path: Path, max_bytes: int = 1 << 20, keep: int = 3) -> OutputLog:
    return OutputLog(path, max_bytes, keep, structlog.get_logger(), lambda: AT)


def test_each_line_begins_with_the_time_of_its_first_byte() -> None:
    lines = TimedLines()
    assert lines.add(AT, b"boot\r\nhal") == STAMP + b"boot\r\n" + STAMP + b"hal"
    assert lines.add(LATER, b"f\n") == b"f\n"
    assert lines.add(LATER, b"") == b""
    assert lines.add(LATER, b"\xff\n\n") == (
        b"2026-03-01 12:30:46.005 \xff\n2026-03-01 12:30:46.005 \n"
    )


def test_what_was_written_before_closing_is_in_the_file_behind_what_was_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "desk.log"
    path.write_bytes(b"before\n")
    log = log_of(path)
    log.write(b"one\n")
    log.write(b"two\n")
    log.close()
    assert path.read_bytes() == b"before\n" + STAMP + b"one\n" + STAMP + b"two\n"


def test_the_file_is_put_aside_between_lines_and_the_oldest_go(tmp_path: Path) -> None:
    line = len(STAMP + b"00\n")
    log = log_of(tmp_path / "desk.log", max_bytes=2 * line + 5, keep=2)
    log.write(b"".join(b"%02d\n" % number for number in range(9)))
    log.close()
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert kept == {
        "desk.log": STAMP + b"08\n",
        "desk.log.1": STAMP + b"06\n" + STAMP + b"07\n",
        "desk.log.2": STAMP + b"04\n" + STAMP + b"05\n",
    }


def test_nothing_put_aside_is_kept_if_none_shall_be(tmp_path: Path) -> None:
    log = log_of(tmp_path / "desk.log", max_bytes=len(STAMP + b"0\n"), keep=0)
    log.write(b"0\n1\n2\n")
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["desk.log"]
    assert (tmp_path / "desk.log").read_bytes() == STAMP + b"2\n"


def test_a_line_larger_than_the_file_is_cut(tmp_path: Path) -> None:
    log = log_of(tmp_path / "desk.log", max_bytes=100, keep=9)
    log.write(b"x" * 250)
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"desk.log": 74, "desk.log.1": 100, "desk.log.2": 100}


def wait_for(condition: Callable[[], object]) -> None:
    """Let the writing thread run until a condition holds."""
    while not condition():
        threading.Event().wait(0.001)


def test_a_full_disk_is_logged_once_and_costs_nothing_else() -> None:
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("no /dev/full here")
    with capture_logs() as logs:
        log = OutputLog(path, 1 << 20, 0, structlog.get_logger(), lambda: AT)
        for _ in range(3):
            log.write(b"x\n")
            log.reopen()
            wait_for(lambda: not log._reopening)
        log.close()
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("log_file_not_written", "no space left on device"),
        ("log_file_not_written", "the port was stopped before the disk had taken all"),
    ]
    assert logs[-1]["dropped_bytes"] == 6


@pytest.mark.parametrize("is_asked", [True, False])
def test_what_comes_while_the_file_can_t_be_written_is_kept(
    is_asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_asked:
        monkeypatch.setattr(gateway.port.output_log, "RETRY_S", 0.001)
    path = tmp_path / "later" / "desk.log"
    with capture_logs() as logs:
        log = log_of(path)
        log.write(b"one\n")
        wait_for(lambda: logs)
        log.write(b"two\n")
        path.parent.mkdir()
        if is_asked:
            log.reopen()
        wait_for(lambda: len(logs) > 1)
        log.close()
    assert [entry["event"] for entry in logs] == ["log_file_not_written", "log_file_written_again"]
    assert logs[1]["dropped_bytes"] == 0
    assert path.read_bytes() == STAMP + b"one\n" + STAMP + b"two\n"


def test_what_is_dropped_is_counted_logged_and_noted_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.port.output_log, "MAX_WAITING_BYTES", 10)
    path = tmp_path / "later" / "desk.log"
    with capture_logs() as logs:
        log = log_of(path)
        log.write(b"kept")
        wait_for(lambda: logs)
        log.write(b"dropped\n")
        log.write(b"3\n")  # would fit: but there is one gap, not many
        path.parent.mkdir()
        log.reopen()
        wait_for(lambda: len(logs) > 2)
        log.write(b"again\n")
        log.close()
    assert [entry["event"] for entry in logs] == [
        "log_file_not_written",
        "log_file_behind",
        "log_file_written_again",
    ]
    assert logs[2]["dropped_bytes"] == 10
    assert path.read_bytes() == b"".join(
        STAMP + line
        for line in (b"kept\n", b"--- esp-gateway: 10 bytes not written ---\n", b"again\n")
    )


def written(path: Path, content: bytes) -> Callable[[], bool]:
    return lambda: path.exists() and path.read_bytes() == content


def test_a_file_that_is_moved_away_is_followed_by_a_new_one(tmp_path: Path) -> None:
    path, moved = tmp_path / "desk.log", tmp_path / "moved.log"
    log = log_of(path)
    log.write(b"one\ntw")
    wait_for(written(path, STAMP + b"one\n" + STAMP + b"tw"))
    path.rename(moved)
    log.write(b"o\n")
    wait_for(written(path, STAMP + b"o\n"))
    path.unlink()
    log.write(b"three\n")
    wait_for(written(path, STAMP + b"three\n"))
    log.close()
    assert moved.read_bytes() == STAMP + b"one\n" + STAMP + b"tw"


def test_a_file_that_is_truncated_is_filled_again_and_put_aside_when_it_is_full(
    tmp_path: Path,
) -> None:
    path = tmp_path / "desk.log"
    line = STAMP + b"123\n"
    log = log_of(path, max_bytes=2 * len(line))
    log.write(b"123\n12")
    wait_for(written(path, line + STAMP + b"12"))
    path.write_bytes(b"")  # as logrotate's copytruncate does
    log.write(b"3\n123\n123\n")
    log.close()
    assert path.read_bytes() == line
    assert (tmp_path / "desk.log.1").read_bytes() == STAMP + b"3\n" + line


def test_a_full_file_that_is_opened_again_is_put_aside_and_the_next_begins_with_a_time(
    tmp_path: Path,
) -> None:
    path = tmp_path / "desk.log"
    log = log_of(path, max_bytes=100)
    log.write(b"x" * (100 - len(STAMP)))
    wait_for(written(path, STAMP + b"x" * (100 - len(STAMP))))
    log.reopen()
    wait_for((tmp_path / "desk.log.1").exists)
    log.write(b"y\n")
    log.close()
    assert path.read_bytes() == STAMP + b"y\n"


def test_a_file_that_was_replaced_is_opened_at_once_if_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "desk.log"
    log = log_of(path)
    log.write(b"one\n")
    wait_for(written(path, STAMP + b"one\n"))
    path.rename(tmp_path / "desk.log.1")
    log.reopen()
    wait_for(written(path, b""))
    log.close()


def test_a_fifo_in_the_place_of_the_file_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "desk.log"
    os.mkfifo(path)
    with capture_logs() as logs:
        log = log_of(path)
        log.write(b"one\n")
        wait_for(lambda: logs)
        path.unlink()
        log.reopen()
        wait_for(written(path, STAMP + b"one\n"))
        log.close()


def test_a_disk_that_hangs_bounds_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, entered = threading.Event(), threading.Event()
    write = os.write

    def slow_write(descriptor: int, data: bytes) -> int:
        entered.set()
        door.wait()
        return write(descriptor, data)

    monkeypatch.setattr(gateway.port.output_log, "MAX_WAITING_BYTES", 12)
    monkeypatch.setattr(os, "write", slow_write)
    with capture_logs() as logs:
        log = log_of(tmp_path / "desk.log")
        log.write(b"first\n")
        entered.wait()
        log.write(b"12345\n")
        log.write(b"too much\n")
        log.write(b"too much\n")
        door.set()
        log.close()
    assert [entry["event"] for entry in logs] == ["log_file_behind", "log_file_written_again"]
    assert logs[1]["dropped_bytes"] == 18
    note = b"--- esp-gateway: 18 bytes not written ---\n"
    said = (tmp_path / "desk.log").read_bytes()
    assert said == STAMP + b"first\n" + STAMP + b"12345\n" + STAMP + note
