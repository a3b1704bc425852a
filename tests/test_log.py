"""How log lines look, for people and for programs."""

from __future__ import annotations

import io
import json
import os
import pty
from collections.abc import Iterator

import pytest
import structlog

from gateway import log
from gateway.protocol.serial_settings import SerialSettings


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def lines_of(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_elsewhere_than_on_a_terminal_each_line_is_one_json_object() -> None:
    stream = io.StringIO()
    log.configure(stream)
    logger = structlog.get_logger().bind(device="desk")
    logger.info("client_connected", client="10.0.0.5:51234", text='two\nlines and "quotes"')
    logger.warning("settings_refused", wanted=SerialSettings())
    first, second = lines_of(stream)
    assert first.pop("timestamp", "").endswith("Z")  # type: ignore[attr-defined]
    assert first == {
        "event": "client_connected",
        "level": "info",
        "device": "desk",
        "client": "10.0.0.5:51234",
        "text": 'two\nlines and "quotes"',
    }
    assert "baudrate=115200" in str(second["wanted"])


@pytest.mark.parametrize(("verbose", "levels"), [(False, ["info"]), (True, ["debug", "info"])])
def test_details_are_only_told_when_asked_for(verbose: bool, levels: list[str]) -> None:
    stream = io.StringIO()
    log.configure(stream, verbose=verbose)
    structlog.get_logger().debug("lines_set")
    structlog.get_logger().info("device_opened")
    assert [line["level"] for line in lines_of(stream)] == levels


def test_an_error_brings_its_traceback_in_the_same_line() -> None:
    stream = io.StringIO()
    log.configure(stream)
    try:
        raise OSError("gone")
    except OSError:
        structlog.get_logger().exception("port_failed")
    (line,) = lines_of(stream)
    assert "OSError: gone" in str(line["exception"])


def test_on_a_terminal_lines_are_for_people() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        log.configure(terminal)
        structlog.get_logger().info("device_opened", tty="/dev/ttyUSB0")
        shown = os.read(master, 4096).decode()
    os.close(master)
    assert "device_opened" in shown
    assert "/dev/ttyUSB0" in shown
    assert "{" not in shown
