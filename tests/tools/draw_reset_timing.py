"""Draws the timing diagrams of docs/reset.md from real runs.

    python -m tests.tools.draw_reset_timing [NAME ...]

Each picture is one run of the real esptool against the real gateway with a simulated board: what
the client asked for is taken from the gateway's own log, what reached the board and what it did
from the board's. They are made anew by running this; names are those of PICTURES.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path

from tests.support.delay_proxy import DelayProxy
from tests.support.lab import Lab
from tests.support.processes import run_tool

DOCS = Path(__file__).parents[2] / "docs"

#: esptool waits too little for its answers over slow links: docs/reset-matrix.md.
_ESPTOOL_CFG = "[esptool]\nsync_timeout = 3\n"
_RUN_LIMIT_S = 300

_WIDTH, _LEFT, _TOP, _ROW = 960, 150, 56, 46
_HIGH, _SHOWN_BEFORE_S, _SHOWN_AFTER_S, _PAUSE_S = 22, 0.15, 0.25, 1.0


@dataclass(frozen=True)
class Picture:
    """One run: the board, the network's delay each way, and esptool's options."""

    title: str
    board: str
    delay_s: float = 0.0
    options: tuple[str, ...] = ()


PICTURES = {
    "reset-classic": Picture("ESP32 behind a UART bridge, 100 ms each way", "esp32", 0.1),
    "reset-usb-jtag": Picture("ESP32-C3 on USB-Serial/JTAG, 100 ms each way", "esp32c3", 0.1),
    "reset-usb-jtag-own": Picture(
        "ESP32-C3, the client plays --before usb-reset", "esp32c3", 0.1, ("--before", "usb-reset")
    ),
    "reset-usb-otg": Picture("ESP32-S2 on USB-OTG, an Arduino app", "esp32s2"),
}

#: What is written at the bottom for an event of a board's log.
_MARKS = {
    "en_low": "EN low",
    "en_high": "EN high",
    "chip_reset": "reset",
    "boot": "boots",
    "usb_gone": "leaves USB",
    "usb_shown": "on USB again",
}


_MODES = {"download": " into the bootloader", "app": " into the app"}


@dataclass(frozen=True)
class Lane:
    """One line over time: its state at the start, then each change, times in seconds."""

    name: str
    start: bool
    changes: list[tuple[float, bool]]


def record(picture: Picture) -> tuple[list[Lane], list[tuple[float, str]]]:
    """Run esptool once; the four lanes and the marks, in seconds of CLOCK_MONOTONIC."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "esptool.cfg").write_text(_ESPTOOL_CFG)
        lab = Lab(folder, {"board": ""}, chip=picture.board)
        lab.service.args = [*lab.service.args, "--verbose"]
        with lab:
            board = lab.boards["board"]
            board.wait_for_app()
            begun = time.monotonic()
            epoch = time.time() - begun
            with DelayProxy(board.tcp_port, picture.delay_s) as proxy:
                url = f"rfc2217://127.0.0.1:{proxy.port}"
                command = ["esptool", "--port", url, *picture.options, "--no-stub", "read-mac"]
                done = run_tool(command, _RUN_LIMIT_S, {"ESPTOOL_CFGFILE": f"{folder}/esptool.cfg"})
            if done.returncode != 0:
                sys.exit(done.stdout + done.stderr)
            events = [
                (float(str(entry["t_ns"])) / 1e9, entry)
                for entry in board.log()
                if float(str(entry["t_ns"])) / 1e9 > begun
            ]
        asked = [
            (datetime.fromisoformat(entry["timestamp"]).timestamp() - epoch, entry)
            for entry in map(json.loads, (line for line in lab.service.log if line[:1] == "{"))
            if entry["event"] == "lines_asked_for"
        ]
    wire = [(at, entry) for at, entry in events if entry["event"] == "lines"]
    rests_on = picture.board == "esp32s2"
    lanes = [
        Lane(f"{who} {line.upper()}", start, [(at, bool(entry[line])) for at, entry in changes])
        for who, changes, start in (("client's", asked, False), ("board's", wire, rests_on))
        for line in ("dtr", "rts")
    ]
    marks = [
        (at, _MARKS[str(entry["event"])] + _MODES.get(str(entry.get("mode")), ""))
        for at, entry in events
        if entry["event"] in _MARKS
    ]
    return lanes, marks


def drawn(picture: Picture, lanes: list[Lane], marks: list[tuple[float, str]]) -> str:
    """The picture as SVG, from the client's first line to the bootloader."""
    # What comes behind the entry is a hard reset, seconds later.
    entered = next(at for at, text in marks if text == _MARKS["boot"] + _MODES["download"])
    end = entered + _SHOWN_AFTER_S + (0.5 if picture.board == "esp32s2" else 0.0)
    start = entered
    for at in sorted(
        (at for lane in lanes for at, _ in lane.changes if at < entered), reverse=True
    ):
        if start - at > _PAUSE_S:  # what is before belongs to open()
            break
        start = at
    start -= _SHOWN_BEFORE_S
    scale = (_WIDTH - _LEFT - 20) / (end - start)

    def x(at: float) -> float:
        return round(_LEFT + (at - start) * scale, 1)

    marks = [(at, text) for at, text in marks if start <= at <= end]
    bottom = _TOP + _ROW * len(lanes)
    height = bottom + 30 + 16 * len(marks)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-size="15" font-weight="bold">{escape(picture.title)}</text>',
    ]
    step_s = next(step for step in (0.1, 0.2, 0.5, 1.0) if (end - start) / step <= 16)
    for tick in range(int((end - start) / step_s) + 1):
        at = start + tick * step_s
        parts.append(f'<path d="M{x(at)} {_TOP - 8}V{bottom}" stroke="#ddd"/>')
        text = f"{tick * step_s * 1000:.0f}" + (" ms" if not tick else "")
        parts.append(f'<text x="{x(at)}" y="{_TOP - 14}" text-anchor="middle">{text}</text>')
    for row, lane in enumerate(lanes):
        low = _TOP + _ROW * row + _HIGH + 12
        parts.append(f'<text x="10" y="{low - 6}">{lane.name}</text>')
        is_on = [lane.start, *(on for at, on in lane.changes if at < start)][-1]
        path = f"M{_LEFT} {low - _HIGH * is_on}"
        for at, on in lane.changes:
            if start <= at <= end:
                path += f"H{x(at)}V{low - _HIGH * on}"
        colour = "#888" if row < len(lanes) // 2 else "#06c"
        parts.append(f'<path d="{path}H{_WIDTH - 20}" fill="none" stroke="{colour}"')
        parts[-1] += ' stroke-width="2"/>'
    for row, (at, text) in enumerate(marks):
        y = bottom + 16 * (row + 1)
        parts.append(f'<path d="M{x(at)} {_TOP}V{y}" stroke="#c30" stroke-dasharray="2 3"/>')
        side, shift = ("end", -4) if x(at) > _WIDTH / 2 else ("start", 4)
        parts.append(
            f'<text x="{x(at) + shift}" y="{y}" fill="#c30" text-anchor="{side}">'
            f"{escape(text)}</text>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Make the pictures that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(PICTURES))
    for name in parser.parse_args().names or PICTURES:
        picture = PICTURES[name]
        (DOCS / f"{name}.svg").write_text(drawn(picture, *record(picture)))


if __name__ == "__main__":
    main()
