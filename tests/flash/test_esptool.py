"""esptool: its command line, its output as recorded of 5.6 and 4.8, and its process."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flash.esptool import (
    COMMAND_VARIABLE,
    Esptool,
    EsptoolOutput,
    NoEsptoolError,
    Phase,
    SilentEsptoolError,
    find_esptool,
    run_esptool,
    write_command,
)
from gateway.flash.plan import FlashImage, FlashOptions, FlashPlan, Outcome
from tests.support.pty_board import until

RECORDED = Path(__file__).parents[1] / "recorded"
VERSIONS = ["5.6", "4.8"]
PLAN = FlashPlan(
    (FlashImage(0x1000, 1, "", "bootloader.bin"), FlashImage(0x10000, 1, "", "app.bin")),
    FlashOptions(chip="esp32", baudrate=921600, flash_size="2MB-c1"),
)
FILES = ["0x1000.bin", "no-reset"]
ESPTOOL_5 = Esptool(("esptool",), (5, 6))


def plan_of(n_images: int, size: int = 1000) -> FlashPlan:
    return FlashPlan(tuple(FlashImage(at * 4096, size, "", "") for at in range(n_images)))


# Its command line; that both versions take it is shown by running them, in tests/end_to_end.


def test_every_word_for_esptool_5() -> None:
    assert write_command(ESPTOOL_5, "/dev/ttyUSB0", PLAN, FILES) == [
        *("esptool", "--port", "/dev/ttyUSB0", "--chip", "esp32", "--baud", "921600"),
        *("--before", "default-reset", "--after", "hard-reset", "write-flash"),
        *("--flash-mode", "keep", "--flash-freq", "keep", "--flash-size", "2MB-c1"),
        *("0x1000", "0x1000.bin", "0x10000", "no-reset"),
    ]


def test_esptool_4_gets_its_own_words_and_paths_stay() -> None:
    options = replace(PLAN.options, before="no-reset", after="no-reset-stub", stub=False)
    plan = replace(PLAN, options=replace(options, erase_all=True, compress=False))
    esptool = Esptool(("python", "no-reset"), (4, 8))
    assert write_command(esptool, "hard-reset", plan, FILES) == [
        *("python", "no-reset", "--port", "hard-reset", "--chip", "esp32", "--baud", "921600"),
        *("--before", "no_reset", "--after", "no_reset_stub", "--no-stub", "write_flash"),
        *("--flash_mode", "keep", "--flash_freq", "keep", "--flash_size", "2MB-c1"),
        *("--erase-all", "--no-compress", "0x1000", "0x1000.bin", "0x10000", "no-reset"),
    ]


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, set()),
        ({"compress": True}, {"--compress"}),
        (
            {"erase_all": True, "compress": False, "stub": False, "force": True},
            {"--erase-all", "--no-compress", "--no-stub", "--force"},
        ),
    ],
)
def test_flags_are_given_where_they_are_wanted(options: dict[str, bool], flags: set[str]) -> None:
    plan = replace(PLAN, options=FlashOptions(**options))  # type: ignore[arg-type]
    command = write_command(ESPTOOL_5, "tty", plan, FILES)
    every = {"--erase-all", "--compress", "--no-compress", "--no-stub", "--force"}
    assert every & set(command) == flags


# Its output.


def read(name: str, n_images: int = 1) -> tuple[EsptoolOutput, list[dict[str, object]]]:
    output = EsptoolOutput(plan_of(n_images))
    lines = (RECORDED / f"esptool-{name}.txt").read_text(encoding="utf-8").splitlines()
    return output, [event for line in lines if (event := output.read(line)) is not None]


@pytest.mark.parametrize("version", VERSIONS)
def test_three_images_that_are_written_and_verified(version: str) -> None:
    output, events = read(f"{version}-written", 3)
    assert events[0] == {"event": "chip", "chip": "ESP32-D0WD-V3 (revision v3.1)"}
    assert [each["image"] for each in events if each["event"] == "verified"] == [0, 1, 2]
    progress = [(each["image"], each["written"]) for each in events if each["event"] == "progress"]
    assert progress == sorted(progress)
    assert {(0, 1000), (1, 2000), (2, 3000)} <= set(progress)
    assert len([image for image, _ in progress if image == 2]) > 10
    assert output.verified == 3
    assert output.outcome(0) == (Outcome.WRITTEN, "")
    output.read("ERROR: A serial exception error occurred: it is gone")
    assert output.outcome(1) == (Outcome.NOT_RESET, "it is gone")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("what", "outcome", "phase", "reason"),
    [
        ("nocontact", Outcome.NO_CONTACT, Phase.CONNECTING, "Failed to connect to Espressif dev"),
        ("wrongchip", Outcome.REFUSED, Phase.CONNECTING, "This chip is ESP32"),
        ("vanish", Outcome.INCOMPLETE, Phase.WRITING, ""),
        ("killed", Outcome.INCOMPLETE, Phase.WRITING, ""),
    ],
)
def test_failures_are_told_apart(
    version: str, what: str, outcome: Outcome, phase: Phase, reason: str
) -> None:
    output, _ = read(f"{version}-{what}")
    found, text = output.outcome(2)
    assert (found, output.phase) == (outcome, phase)
    assert text
    assert text.startswith(reason)
    assert "\n" not in text


MISMATCH = "MD5 of file does not match data in flash!"


@pytest.mark.parametrize(
    ("lines", "exit_code", "outcome", "reason"),
    [
        ([], 3, Outcome.NO_CONTACT, "esptool has failed with exit code 3"),
        ([], -9, Outcome.NO_CONTACT, "esptool was ended by signal 9"),
        (["  a last word ", ""], 3, Outcome.NO_CONTACT, "a last word"),
        (["Chip type: ESP32"], 2, Outcome.REFUSED, "Chip type: ESP32"),
        (["Wrote 16384 bytes at"], 2, Outcome.INCOMPLETE, "Wrote 16384 bytes at"),
        (
            ["Wrote 16384 bytes at", f"ERROR: A fatal error occurred: {MISMATCH}"],
            2,
            Outcome.NOT_VERIFIED,
            MISMATCH,
        ),
    ],
)
def test_outcomes_of_lines(lines: list[str], exit_code: int, outcome: Outcome, reason: str) -> None:
    output = EsptoolOutput(plan_of(1))
    for line in lines:
        output.read(line)
    assert output.outcome(exit_code) == (outcome, reason)


@given(st.lists(st.text()), st.integers(1, 5))
def test_any_lines_are_read(lines: list[str], n_images: int) -> None:
    output = EsptoolOutput(plan_of(n_images))
    for line in [*lines, "Wrote 1 bytes", *lines, "Hash of data verified.", "Wrote 1 bytes"] * 3:
        event = output.read(line) or {}
        assert event.get("image", 0) in range(n_images)
        assert event.get("written", 0) in range(n_images * 1000 + 1)
    assert output.verified <= n_images
    assert len(output.outcome(2)[1]) < 400


# Its process.


def command(script: str) -> list[str]:
    return [sys.executable, "-c", script]


async def test_the_esptool_of_this_python_is_found_and_tells_its_version() -> None:
    esptool = await find_esptool({})
    assert esptool.command == (sys.executable, "-m", "esptool")
    assert esptool.version >= (5, 0)


async def test_esptool_4_tells_its_version_too() -> None:
    path = os.environ.get("ESPTOOL4")
    if not path:
        pytest.skip("ESPTOOL4 does not name an esptool 4 executable; `make test` installs one")
    esptool = await find_esptool({COMMAND_VARIABLE: path})
    assert esptool.command == (path,)
    assert esptool.version[0] == 4


@pytest.mark.parametrize(
    "script", ["", "print('esptool v5.6.0'); raise SystemExit(1)", "print('pip 24')"]
)
async def test_what_is_no_esptool_is_not_taken_for_one(script: str) -> None:
    with pytest.raises(NoEsptoolError, match="does not print its version") as error:
        await find_esptool({COMMAND_VARIABLE: shlex.join(command(script))})
    assert error.value.outcome is Outcome.NO_ESPTOOL


async def test_without_esptool_it_is_said_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(NoEsptoolError, match=r"pip install 'esp-serial-gateway\[flash\]'"):
        await find_esptool({"PATH": str(tmp_path)})
    with pytest.raises(NoEsptoolError, match="No such file"):
        await find_esptool({COMMAND_VARIABLE: str(tmp_path / "esptool")})
    monkeypatch.setattr("gateway.flash.esptool._VERSION_LIMIT_S", 0.01)
    hanging = shlex.join(command("import time; time.sleep(600)"))
    with pytest.raises(NoEsptoolError, match="no answer"):
        await find_esptool({COMMAND_VARIABLE: hanging})


async def test_lines_come_as_they_are_printed_and_long_ones_are_cut(tmp_path: Path) -> None:
    script = """
import os, sys
print("first", os.getcwd(), sys.stdin.read())
sys.stdout.buffer.write(b"over\\rwritten \\xff\\n\\n")
print("x" * 9000)
print("to stderr", file=sys.stderr)
sys.stdout.write("last")
raise SystemExit(7)
"""
    lines: list[str] = []
    assert await run_esptool(command(script), tmp_path, lines.append) == 7
    assert f"first {tmp_path}" in lines
    assert {"over", "written \ufffd", "to stderr", "x" * 2000, "last"} <= set(lines)
    assert "" not in lines


async def test_what_can_t_be_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await run_esptool([str(tmp_path / "nothing")], tmp_path, print)
    with pytest.raises(SilentEsptoolError, match=r"printed nothing for 0\.2 s"):
        await run_esptool(command("import time; time.sleep(600)"), tmp_path, print, 0.2)


#: Starts a child that ignores SIGTERM and holds the pipe, as it does itself.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 1:
    child = subprocess.Popen([sys.executable, "-c", open("script").read(), "child"])
    print(os.getpid(), child.pid, flush=True)
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("times", [1, 2])
async def test_when_it_is_cancelled_its_whole_group_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr("gateway.flash.esptool._END_LIMIT_S", 0.5)
    (tmp_path / "script").write_text(STUBBORN)
    lines: list[str] = []
    running = asyncio.ensure_future(run_esptool(command(STUBBORN), tmp_path, lines.append))
    await until(lambda: lines)
    for _ in range(times):
        running.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await running
    pids = [int(pid) for pid in lines[0].split()]
    await until(lambda: not any(_runs(pid) for pid in pids))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # adopted by an init that has not looked after it yet
