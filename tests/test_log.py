"""What a log line looks like to a person, to a program and to the journal."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import pty
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest
import structlog

from gateway import log


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
