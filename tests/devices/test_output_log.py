"""The log file of one board: times, rotation, and a disk that does not take it."""

from __future__ import annotations

import os
import threading
from datetime import datetime
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

import gateway.devices.output_log
from gateway.devices.output_log import OutputLog, TimedLines

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
    assert log.dropped_bytes == 0


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


def test_a_full_disk_is_logged_once_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.devices.output_log, "_RETRY_S", 0.0)
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("no /dev/full here")
    with capture_logs() as logs:
        log = OutputLog(path, 1 << 20, 0, structlog.get_logger(), lambda: AT)
        for _ in range(3):
            log.write(b"x\n")
            while log._waiting:
                threading.Event().wait(0.001)
        log.close()
    assert [entry["event"] for entry in logs] == ["log_file_not_written"]
    assert logs[0]["reason"] == "no space left on device"
    assert log.dropped_bytes


def test_a_file_that_can_be_written_again_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.devices.output_log, "_RETRY_S", 0.0)
    path = tmp_path / "later" / "desk.log"
    with capture_logs() as logs:
        log = log_of(path)
        log.write(b"lost\n")
        while not logs:
            threading.Event().wait(0.001)
        path.parent.mkdir()
        while not path.exists():
            log.write(b"kept\n")
            threading.Event().wait(0.001)
        log.close()
    assert [entry["event"] for entry in logs] == ["log_file_not_written", "log_file_written_again"]
    assert path.read_bytes().endswith(STAMP + b"kept\n")
    assert b"lost" not in path.read_bytes()


def test_a_disk_that_hangs_bounds_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, entered = threading.Event(), threading.Event()
    write = os.write

    def slow_write(descriptor: int, data: bytes) -> int:
        entered.set()
        door.wait()
        return write(descriptor, data)

    monkeypatch.setattr(gateway.devices.output_log, "MAX_WAITING_BYTES", 10)
    monkeypatch.setattr(os, "write", slow_write)
    with capture_logs() as logs:
        log = log_of(tmp_path / "desk.log")
        log.write(b"first\n")
        entered.wait()
        log.write(b"12345678\n")
        log.write(b"too much\n")
        log.write(b"too much\n")
        assert log.dropped_bytes == 18
        door.set()
        log.close()
    assert [entry["event"] for entry in logs] == ["log_file_behind"]
    said = (tmp_path / "desk.log").read_bytes()
    assert said == STAMP + b"first\n" + STAMP + b"12345678\n"
