"""What is shown of boards that are being flashed, to people and to programs."""

from __future__ import annotations

import io
import json
from typing import Any

from gateway.flash.display import JsonLines, Lines
from gateway.flash.plan import Outcome

CHIP = {"event": "chip", "chip": "ESP32"}


def writing(written: int) -> dict[str, Any]:
    return {"event": "progress", "image": 0, "written": written, "total": 1000}


def test_programs_get_each_event_with_its_board_and_one_end() -> None:
    out = io.StringIO()
    display = JsonLines(out)
    display.event("desk", CHIP)
    display.event("desk", {"event": "done", "outcome": "written"})
    display.ended("desk", Outcome.BUSY, "in use")
    display.close()
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"port": "desk", "event": "chip", "chip": "ESP32"},
        {
            "port": "desk",
            "event": "done",
            "outcome": "busy",
            "exit_code": 5,
            "message": "in use",
        },
    ]


def test_without_a_terminal_each_step_is_a_line() -> None:
    out = io.StringIO()
    display = Lines(["desk", "shelf"], out, columns=None)
    display.event("desk", {"event": "upload", "sent": 0, "total": 1000})
    display.event("desk", {"event": "upload", "sent": 10, "total": 1000})
    display.event("desk", {"event": "waiting", "for": "others"})
    display.event("desk", {"event": "started"})
    display.event("desk", CHIP)
    for written in (100, 200, 300, 1000):
        display.event("desk", writing(written))
    display.event("desk", {"event": "line", "text": "not shown"})
    display.ended("desk", Outcome.WRITTEN, "")
    display.ended("shelf", Outcome.BUSY, "in use by bob")
    display.close()
    lines = out.getvalue().splitlines()
    assert [line.partition("[")[0] for line in lines] == [
        "desk   sending ",
        "desk   waiting for others",
        "desk   connecting",
        "desk   connected to ESP32",
        "desk   writing ",
        "desk   writing ",
        "desk   writing ",
        lines[-2],
        "shelf  busy: in use by bob",
    ]
    assert "30%" in lines[5]
    assert "\x1b" not in out.getvalue()
    assert lines[-2].startswith("desk   written and verified in ")


def test_a_terminal_has_a_line_for_each_board_that_is_drawn_over() -> None:
    out = io.StringIO()
    display = Lines(["desk", "shelf"], out, columns=40)
    display.event("desk", CHIP)
    display.ended("desk", Outcome.INCOMPLETE, "x" * 100)
    display.close()
    drawn = out.getvalue().split("\x1b[2F")
    assert all(part.count("\n") == 2 for part in drawn)
    for part in drawn[:-1]:
        assert all(len(line.removesuffix("\x1b[K")) < 40 for line in part.splitlines())
    assert f"incomplete: {'x' * 100}" in drawn[-1]  # at the end all of it


def test_lines_of_esptool_are_above_the_boards() -> None:
    out = io.StringIO()
    display = Lines(["desk"], out, columns=80, verbose=True)
    display.event("desk", {"event": "line", "text": "esptool v5.6.0"})
    display.event("desk", {"event": "line", "text": "Connecting..."})
    text = out.getvalue()
    assert text.index("desk: esptool v5.6.0\n") < text.index("desk: Connecting...\n")
    assert text.endswith("desk  waiting\x1b[K\n")


def test_what_comes_from_outside_can_t_move_the_cursor() -> None:
    out = io.StringIO()
    display = Lines(["desk"], out, columns=None, verbose=True)
    display.event("desk", {"event": "chip", "chip": "\x1b[2J"})
    display.event("desk", {"event": "line", "text": "\x1b]0;title\x07"})
    display.event("desk", {"event": "waiting", "for": "\r\n"})
    display.event("desk", {"event": "progress", "written": "x", "total": 0})
    display.ended("desk", Outcome.FAILED, "\x1b[31m")
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()
