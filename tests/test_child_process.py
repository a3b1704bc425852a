"""Child processes whose start is cancelled; conftest.py asserts that none is left."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from gateway.child_process import start_process

PIPE = asyncio.subprocess.PIPE


async def test_a_process_is_started_with_its_pipes() -> None:
    process = await start_process("cat", stdin=PIPE, stdout=PIPE)
    assert (await process.communicate(b"hello"))[0] == b"hello"
    assert process.returncode == 0


@pytest.mark.parametrize("loop_turns", range(8))
async def test_a_start_that_is_cancelled_leaves_no_process(loop_turns: int) -> None:
    starting = asyncio.create_task(start_process("cat", stdin=PIPE, stdout=PIPE))
    for _ in range(loop_turns):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.sleep(0)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        process = await starting
        process.kill()  # it had started already
        await process.communicate()


async def test_a_program_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="/nowhere/to-be-found"):
        await start_process("/nowhere/to-be-found")
