"""What a log line looks like to a person, a program and the journal; readers that stall."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway import log
from gateway.log import LogWriter
from tests.support.processes import STOP_LIMIT_S, free_tcp_port
from tests.support.tcp_client import GREETING


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


class Log:
    """A log in a file, which the environment may call the journal of systemd."""

    def __init__(self, path: Path) -> None:
        self.stream = path.open("w+", buffering=1)
        status = os.fstat(self.stream.fileno())
        self.as_journal = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}

    def lines(self) -> list[str]:
        self.stream.seek(0)
        return self.stream.read().splitlines()

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Log]:
    logged = Log(tmp_path / "log")
    yield logged
    logged.stream.close()


def test_a_program_reads_json_with_the_time_in_utc(logged: Log) -> None:
    # Redirected away from the journal, whose variable is still there.
    log.configure(logged.stream, environment={"JOURNAL_STREAM": "1:2"})
    logger = structlog.get_logger()
    logger.info("device_opened", device="desk", path=Path("/dev/ttyUSB0"))
    logger.info("client_identified", text='two\nlines and "quotes"')
    try:
        raise OSError("gone")
    except OSError:
        logger.exception("service_failed")
    opened, identified, failed = logged.entries()
    assert opened.pop("timestamp").endswith("Z")
    assert opened == {
        "event": "device_opened",
        "level": "info",
        "device": "desk",
        "path": "/dev/ttyUSB0",
    }
    assert identified["text"] == 'two\nlines and "quotes"'
    assert failed["exception"].endswith("OSError: gone")


def test_a_person_reads_no_json() -> None:
    controller, terminal = pty.openpty()
    with open(terminal, "w", buffering=1) as stream, open(controller, "rb", 0) as seen:  # noqa: PTH123
        log.configure(stream, environment={})
        structlog.get_logger().warning("listen_failed", reason="in use")
        text = seen.read(4096).decode()
    assert "listen_failed" in text
    assert "warning" in text
    assert "{" not in text


def test_the_journal_gets_levels_no_time_and_one_line_for_each_event(logged: Log) -> None:
    log.configure(logged.stream, verbose=True, environment=logged.as_journal)
    logger = structlog.get_logger().bind(device="desk")
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(logger, level)("thing_happened")
    assert logged.lines() == [
        f'<{priority}>{{"event": "thing_happened", "device": "desk"}}'
        for priority in (7, 6, 4, 3, 2)
    ]
    try:
        raise ValueError("first line\nsecond line")
    except ValueError:
        logger.exception("service_failed")
    line = logged.lines()[-1]
    entry = json.loads(line.removeprefix("<3>"))
    assert entry["exception"].splitlines()[-2:] == ["ValueError: first line", "second line"]


@pytest.mark.parametrize(("verbose", "levels"), [(False, ["info"]), (True, ["debug", "info"])])
def test_changes_of_lines_are_logged_only_if_asked_for(
    logged: Log, verbose: bool, levels: list[str]
) -> None:
    log.configure(logged.stream, verbose=verbose, environment={})
    structlog.get_logger().debug("lines_set")
    structlog.get_logger().info("device_opened")
    logging.getLogger("telnetlib3").info("not for operators")
    assert [entry["level"] for entry in logged.entries()] == levels


def test_what_asyncio_complains_about_is_a_log_line(logged: Log) -> None:
    log.configure(logged.stream, environment={})

    async def fail() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(0)

    asyncio.run(fail())
    logging.getLogger("library").warning("%d", "no number")  # its own mistake
    [entry] = logged.entries()
    assert (entry["event"], entry["level"], entry["library"]) == (
        "library_logged",
        "error",
        "asyncio",
    )
    assert "ZeroDivisionError" in entry["exception"]


# Readers that stall or leave.

#: What the kernel keeps of a pipe, at the least.
PIPE_BYTES = 4096


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """The reading and the writing end of a pipe that holds little."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):  # a test has closed it
            os.close(descriptor)


def read_lines(descriptor: int, last: str) -> list[str]:
    """All lines up to one with this in it."""
    data = b""
    while not (data.endswith(b"\n") and last in data.decode().splitlines()[-1]):
        data += os.read(descriptor, 65536)
    return data.decode().splitlines()


def test_a_reader_that_stalls_blocks_nothing_and_gets_the_number_of_missed_lines(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "MAX_WAITING_BYTES", 10_000)
    reading, writing = ends
    writer = LogWriter(writing)
    log.configure(writer, environment={})
    try:
        for number in range(1000):
            structlog.get_logger().info("thing_happened", number=number)
        lines = [json.loads(line) for line in read_lines(reading, "log_lines_dropped")]
        structlog.get_logger().info("all_is_well")
        read_lines(reading, "all_is_well")
    finally:
        writer.close()
        structlog.reset_defaults()
    *kept, told = lines
    assert [line["number"] for line in kept] == list(range(len(kept)))
    assert PIPE_BYTES // 200 < len(kept) < 200
    assert (told["event"], told["level"]) == ("log_lines_dropped", "warning")
    assert told["count"] == 1000 - len(kept)


def test_a_reader_that_is_gone_is_no_reason_to_fail(ends: tuple[int, int]) -> None:
    reading, writing = ends
    os.close(reading)
    writer = LogWriter(writing)
    for _ in range(10):
        writer.write("to nobody\n")
    writer.close()
    assert not writer._thread.is_alive()
    assert writer._dropped_lines == 10


def test_a_line_that_was_cut_off_by_a_full_disk_does_not_spoil_the_next(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = ends
    real_write, rooms = os.write, [5, 0, 0]  # half a line fits, then nothing, then all again

    def write(descriptor: int, data: bytes) -> int:
        if descriptor != writing or not rooms:
            return real_write(descriptor, data)
        if room := rooms.pop(0):
            return real_write(descriptor, data[:room])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    writer = LogWriter(writing)
    for line in ("one line\n", "another\n", "third\n"):
        writer.write(line)
    assert read_lines(reading, "third") == ["one l", "third"]
    writer.close()


@pytest.mark.parametrize("blocking", [True, False])  # by a program at the same terminal
def test_lines_arrive_in_order_and_the_last_before_it_is_closed(
    ends: tuple[int, int], blocking: bool
) -> None:
    reading, writing = ends
    os.set_blocking(writing, blocking)
    writer = LogWriter(writing)
    lines = [f"{number} is a line of some length" for number in range(1000)]
    for line in lines:
        writer.write(f"{line}\n")
    writer.flush()
    assert read_lines(reading, lines[-1]) == lines
    writer.close()
    os.close(writing)
    assert os.read(reading, 1) == b""


def test_closing_does_not_wait_for_a_reader_that_stalls(ends: tuple[int, int]) -> None:
    reading, writing = ends
    writer = LogWriter(writing)
    writer.write("x" * 2 * PIPE_BYTES)
    writer.close()
    assert writer._thread.is_alive()
    os.read(reading, 2 * PIPE_BYTES)
    writer._thread.join()


def test_a_service_whose_log_nobody_reads_serves_on_and_can_be_stopped(
    tmp_path: Path, ends: tuple[int, int]
) -> None:
    _, writing = ends
    tcp_port = free_tcp_port()
    config = tmp_path / "gateway.yaml"
    config.write_text(f"ports: [{{name: desk, tcp: {tcp_port}, device: 'sim://esp32'}}]\n")
    args: list[str | Path] = [sys.executable, "-m", "gateway", "run", "--config", config]
    with subprocess.Popen(args, stderr=writing) as service:
        try:
            # Each has several lines in the log: many more than the pipe holds.
            for _ in range(15):
                greet(tcp_port)
        finally:
            service.send_signal(signal.SIGTERM)
            assert service.wait(STOP_LIMIT_S) == 0


def greet(tcp_port: int) -> None:
    """Connect until that works and the gateway greets, then leave."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as client:
            client.settimeout(60)
            client.connect(("127.0.0.1", tcp_port))
            if client.recv(len(GREETING), socket.MSG_WAITALL) == GREETING:
                return
        time.sleep(0.1)  # it has not started yet, or is busy with the one before
