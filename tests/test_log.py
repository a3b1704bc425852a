"""What a log line looks like to a person, a program and the journal; readers that stall."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import io
import json
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

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


@contextmanager
def journal(folder: Path) -> Iterator[tuple[TextIO, dict[str, str]]]:
    """A stream, and the environment in which it is the journal's."""
    with (folder / "journal").open("w") as stream:
        status = os.fstat(stream.fileno())
        yield stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}


def logged_to_journal(folder: Path) -> list[tuple[int, dict[str, object]]]:
    lines = [
        re.fullmatch(r"<(\d)>(\{.*\})", line)
        for line in (folder / "journal").read_text().splitlines()
    ]
    return [(int(line[1]), json.loads(line[2])) for line in lines if line is not None]


def test_a_program_reads_json_with_the_time_in_utc() -> None:
    stream = io.StringIO()
    log.configure(stream, environment={})
    structlog.get_logger().info("device_opened", device="desk", path=Path("/dev/ttyUSB0"))
    [line] = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "event": "device_opened",
        "level": "info",
        "device": "desk",
        "path": "/dev/ttyUSB0",
    }


def test_what_is_logged_stays_one_line() -> None:
    stream = io.StringIO()
    log.configure(stream, environment={})
    structlog.get_logger().info("client_identified", text='two\nlines and "quotes"')
    try:
        raise OSError("gone")
    except OSError:
        structlog.get_logger().exception("service_failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["text"] == 'two\nlines and "quotes"'
    assert second["exception"].endswith("OSError: gone")


def test_a_person_reads_no_json() -> None:
    controller, terminal = pty.openpty()
    with open(terminal, "w", buffering=1) as stream, open(controller, "rb", 0) as seen:  # noqa: PTH123
        log.configure(stream, environment={})
        structlog.get_logger().warning("listen_failed", reason="in use")
        text = seen.read(4096).decode()
    assert "listen_failed" in text
    assert "warning" in text
    assert "{" not in text


def test_the_journal_is_told_levels_and_no_time(tmp_path: Path) -> None:
    with journal(tmp_path) as (stream, environment):
        log.configure(stream, verbose=True, environment=environment)
        logger = structlog.get_logger().bind(device="desk")
        logger.debug("lines_set")
        logger.info("device_opened")
        logger.warning("device_lost")
        logger.error("device_failed")
        logger.critical("service_failed")
    assert logged_to_journal(tmp_path) == [
        (7, {"event": "lines_set", "device": "desk"}),
        (6, {"event": "device_opened", "device": "desk"}),
        (4, {"event": "device_lost", "device": "desk"}),
        (3, {"event": "device_failed", "device": "desk"}),
        (2, {"event": "service_failed", "device": "desk"}),
    ]


def test_a_journal_line_says_first_what_has_happened(tmp_path: Path) -> None:
    with journal(tmp_path) as (stream, environment):
        log.configure(stream, environment=environment)
        structlog.get_logger().bind(device="desk").info("device_opened")
    assert (tmp_path / "journal").read_text() == '<6>{"event": "device_opened", "device": "desk"}\n'


def test_a_traceback_is_one_line_of_the_journal(tmp_path: Path) -> None:
    with journal(tmp_path) as (stream, environment):
        log.configure(stream, environment=environment)
        try:
            raise ValueError("first line\nsecond line")
        except ValueError:
            structlog.get_logger().exception("service_failed")
    [(priority, entry)] = logged_to_journal(tmp_path)
    assert priority == 3
    assert str(entry["exception"]).splitlines()[-2:] == [
        "ValueError: first line",
        "second line",
    ]


def test_a_stream_that_was_redirected_away_from_the_journal_gets_plain_json(
    tmp_path: Path,
) -> None:
    with journal(tmp_path) as (_, environment), (tmp_path / "file").open("w") as stream:
        log.configure(stream, environment=environment)
        structlog.get_logger().info("device_opened")
    assert json.loads((tmp_path / "file").read_text())["event"] == "device_opened"


@pytest.mark.parametrize(("verbose", "levels"), [(False, ["info"]), (True, ["debug", "info"])])
def test_changes_of_lines_are_logged_only_if_asked_for(verbose: bool, levels: list[str]) -> None:
    stream = io.StringIO()
    log.configure(stream, verbose=verbose, environment={})
    structlog.get_logger().debug("lines_set")
    structlog.get_logger().info("device_opened")
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == levels


def test_what_asyncio_complains_about_is_a_log_line() -> None:
    stream = io.StringIO()
    log.configure(stream, environment={})

    async def fail() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(0)

    asyncio.run(fail())
    [line] = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["event"], entry["level"], entry["library"]) == (
        "library_logged",
        "error",
        "asyncio",
    )
    assert "ZeroDivisionError" in entry["exception"]


def test_libraries_are_heard_from_warnings_on() -> None:
    stream = io.StringIO()
    log.configure(stream, verbose=True, environment={})
    logging.getLogger("telnetlib3").info("not for operators")
    assert stream.getvalue() == ""


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


def test_lines_arrive_in_order_and_the_last_before_it_is_closed(ends: tuple[int, int]) -> None:
    reading, writing = ends
    writer = LogWriter(writing)
    for number in range(50):
        writer.write(f"{number}\n")
    writer.flush()
    writer.close()
    os.close(writing)
    assert read_lines(reading, "49") == [str(number) for number in range(50)]
    assert os.read(reading, 1) == b""


def test_a_reader_that_stalls_stops_nobody_and_is_told_what_it_has_missed(
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


def test_a_terminal_that_another_program_has_made_non_blocking_loses_no_line(
    ends: tuple[int, int],
) -> None:
    reading, writing = ends
    os.set_blocking(writing, False)
    writer = LogWriter(writing)
    for number in range(1000):
        writer.write(f"{number} is a line of some length\n")
    lines = read_lines(reading, "999")
    writer.close()
    assert len(lines) == 1000
    assert not writer._dropped_lines


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
