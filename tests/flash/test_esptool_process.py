"""esptool as a process: found, run to its end, and ended with all that it has started."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path

import pytest

from gateway.flash.esptool_process import (
    COMMAND_VARIABLE,
    NoEsptoolError,
    SilentEsptoolError,
    find_esptool,
    run_esptool,
)
from tests.support.pty_board import until


def command(script: str) -> list[str]:
    return [sys.executable, "-c", script]


def named(script: str) -> dict[str, str]:
    return {COMMAND_VARIABLE: shlex.join(command(script))}


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
    with pytest.raises(NoEsptoolError, match="does not tell its version"):
        await find_esptool(named(script))


async def test_without_esptool_it_is_said_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(NoEsptoolError, match=r"pip install 'esp-serial-gateway\[flash\]'"):
        await find_esptool({"PATH": str(tmp_path)})
    with pytest.raises(NoEsptoolError, match="No such file"):
        await find_esptool({COMMAND_VARIABLE: str(tmp_path / "esptool")})


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


async def test_what_can_t_be_started_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await run_esptool([str(tmp_path / "nothing")], tmp_path, print)


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


async def test_when_it_is_cancelled_its_whole_group_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.flash.esptool_process._END_LIMIT_S", 1.0)
    (tmp_path / "script").write_text(STUBBORN)
    lines: list[str] = []
    running = asyncio.ensure_future(run_esptool(command(STUBBORN), tmp_path, lines.append))
    await until(lambda: lines)
    running.cancel()
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


async def test_one_that_says_nothing_is_ended(tmp_path: Path) -> None:
    with pytest.raises(SilentEsptoolError, match="nothing for"):
        await run_esptool(command("import time; time.sleep(600)"), tmp_path, print, 0.2)
