"""A log whose reader stalls or goes: nobody waits for it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from gateway import log, log_writer
from gateway.log_writer import LogWriter
from tests.support.processes import STOP_LIMIT_S, free_tcp_port
from tests.support.tcp_client import GREETING

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
    monkeypatch.setattr(log_writer, "MAX_WAITING_BYTES", 10_000)
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
