"""The process of the service: its event loop, and work that a cancellation does not cut short."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import types

import pytest

from gateway import runtime
from gateway.runtime import LOOP_VARIABLE, EventLoopError, start_process, uncancelled

PIPE = asyncio.subprocess.PIPE


@pytest.fixture
def uvloops(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.AbstractEventLoop]:
    """Loops that were made by what stands in for uvloop, since libuv keeps descriptors."""
    made: list[asyncio.AbstractEventLoop] = []

    def new_event_loop() -> asyncio.AbstractEventLoop:
        made.append(asyncio.SelectorEventLoop())
        return made[-1]

    installed = types.ModuleType("uvloop")
    installed.new_event_loop = new_event_loop  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uvloop", installed)
    return made


@pytest.mark.parametrize(
    ("named", "installed", "uses_uvloop"),
    [
        (None, True, True),
        ("", True, True),
        ("uvloop", True, True),
        ("asyncio", True, False),
        (None, False, False),
    ],
)
def test_the_service_runs_on_uvloop_where_it_is_installed_and_not_unwanted(
    named: str | None,
    installed: bool,
    uses_uvloop: bool,
    uvloops: list[asyncio.AbstractEventLoop],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(LOOP_VARIABLE, raising=False)
    if named is not None:
        monkeypatch.setenv(LOOP_VARIABLE, named)
    if not installed:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    seen: list[asyncio.AbstractEventLoop] = []
    frozen: list[bool] = []
    kept = [object(), []]

    async def look() -> None:
        seen.append(asyncio.get_running_loop())
        # What is there at the start is not searched for garbage.
        frozen.append(not any(each is kept for each in gc.get_objects()))

    runtime.run(look())
    assert len(seen) == 1
    assert isinstance(seen[0], asyncio.SelectorEventLoop)
    assert seen[0].is_closed()
    assert uvloops == (seen if uses_uvloop else [])
    assert frozen == [True]


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("trio", f"invalid {LOOP_VARIABLE} 'trio': expected uvloop or asyncio"),
        ("uvloop", f"{LOOP_VARIABLE} is 'uvloop', which is not installed: install the extra"),
    ],
)
def test_a_loop_that_can_t_be_used_is_an_error_before_anything_runs(
    named: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    monkeypatch.setenv(LOOP_VARIABLE, named)

    async def main() -> None:
        pytest.fail("it runs")

    with pytest.raises(EventLoopError, match=reason):
        runtime.run(main())


async def test_work_is_not_cut_short_however_often_it_is_cancelled() -> None:
    may_end = asyncio.Event()

    async def work(error: Exception | None = None) -> str:
        await may_end.wait()
        if error is not None:
            raise error
        return "done"

    for error in (None, ValueError()):
        running = asyncio.create_task(uncancelled(work(error)))
        for _ in range(3):
            await asyncio.sleep(0)
            running.cancel()
        await asyncio.sleep(0)
        assert not running.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        may_end.clear()
    may_end.set()
    assert await uncancelled(work()) == "done"
    with pytest.raises(ValueError, match="wrong"):
        await uncancelled(work(ValueError("wrong")))


# Child processes; conftest.py asserts that none is left.


async def test_a_process_is_started_with_its_pipes() -> None:
    process = await start_process("cat", stdin=PIPE, stdout=PIPE)
    assert (await process.communicate(b"hello"))[0] == b"hello"
    assert process.returncode == 0
    with pytest.raises(FileNotFoundError, match="/nowhere/to-be-found"):
        await start_process("/nowhere/to-be-found")


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
