"""What tests/conftest.py holds against a test, on both event loops: errors that nothing raises."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from gateway import runtime
from tests.support.processes import run_tool

ROOT = Path(__file__).parents[2]

#: Each would pass if only exceptions in the test itself counted.
HIDE_AN_ERROR = """
import asyncio, gc, logging, socket

def fail(*_):
    raise ZeroDivisionError

async def test_callback_fails():
    asyncio.get_running_loop().call_soon(fail)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

async def test_timer_fails():
    asyncio.get_running_loop().call_later(0.001, fail)
    await asyncio.sleep(0.05)

class Failing(asyncio.Protocol):
    def data_received(self, data):
        fail()

async def test_protocol_fails():
    here, there = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(Failing, sock=here)
    there.send(b"x")
    while not transport.is_closing():
        await asyncio.sleep(0)
    there.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)

async def fail_later():
    fail()

async def test_task_that_nobody_awaits_fails():
    task = asyncio.create_task(fail_later())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task

async def main():
    asyncio.get_running_loop().call_soon(fail)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

def test_loop_of_its_own_fails():
    asyncio.run(main())

def test_library_logs_a_traceback():
    try:
        fail()
    except ZeroDivisionError:
        logging.getLogger("aiohttp.server").warning("went wrong", exc_info=True)

class FailingAtItsEnd:
    def __del__(self):
        fail()

async def test_finalizer_fails():
    FailingAtItsEnd()
    gc.collect()
"""

HIDE_NOTHING = """
async def test_harmless():
    asyncio.get_running_loop().call_soon(int)
    await asyncio.sleep(0)
    logging.getLogger("asyncio").warning("slow")
"""

NAME_THE_LOOP = """
async def test_loop():
    print("runs on", type(asyncio.get_running_loop()).__module__)
"""


@pytest.mark.parametrize("loop", runtime.LOOPS)
def test_errors_that_are_only_logged_fail_their_tests(tmp_path: Path, loop: str) -> None:
    code = HIDE_AN_ERROR + HIDE_NOTHING + NAME_THE_LOOP
    path = tmp_path / "test_it.py"
    path.write_text(code)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += ["-W", "error::pytest.PytestUnraisableExceptionWarning", f"--rootdir={tmp_path}"]
    env = {"PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    ran = run_tool([*command, "-rA", "--loop", loop, str(path)], 120, env, cwd=tmp_path)
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", ran.stdout, re.MULTILINE))
    assert failed == set(re.findall(r"def (test_\w+)", HIDE_AN_ERROR)), ran.stdout
    assert f"runs on {loop}" in ran.stdout
