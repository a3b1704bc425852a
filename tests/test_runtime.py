"""The process of the service: its event loop, and its child processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import types

import pytest

from gateway import runtime
from gateway.runtime import LOOP_VARIABLE, EventLoopError, start_process


async def note_loop(into: list[asyncio.AbstractEventLoop]) -> None:
    into.append(asyncio.get_running_loop())


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOOP_VARIABLE, raising=False)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.AbstractEventLoop]:
    """Loops that were made by what stands in for uvloop, since libuv keeps descriptors."""
    made: list[asyncio.AbstractEventLoop] = []

    def new_event_loop() -> asyncio.AbstractEventLoop:
        made.append(asyncio.SelectorEventLoop())
        return made[-1]

    installed = types.ModuleType("uvloop")
    installed.new_event_loop = new_event_loop  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uvloop", installed)
    return made


@pytest.fixture
def without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it were not installed


def test_the_service_runs_on_asyncios_loop_without_uvloop(without_uvloop: None) -> None:
    seen: list[asyncio.AbstractEventLoop] = []
    runtime.run(note_loop(seen))
    assert isinstance(seen[0], asyncio.SelectorEventLoop)
    assert seen[0].is_closed()


@pytest.mark.parametrize("named", ["", "uvloop"])
def test_the_service_runs_on_uvloop_where_it_is_installed(
    named: str, made: list[asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOOP_VARIABLE, named)
    seen: list[asyncio.AbstractEventLoop] = []
    runtime.run(note_loop(seen))
    assert len(seen) == 1
    assert seen == made
    assert seen[0].is_closed()


def test_the_environment_may_choose_asyncios_loop(
    made: list[asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOOP_VARIABLE, "asyncio")
    seen: list[asyncio.AbstractEventLoop] = []
    runtime.run(note_loop(seen))
    assert isinstance(seen[0], asyncio.SelectorEventLoop)
    assert made == []


def test_another_loop_is_an_error_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOOP_VARIABLE, "trio")
    seen: list[asyncio.AbstractEventLoop] = []
    with pytest.raises(EventLoopError) as error:
        runtime.run(note_loop(seen))
    assert str(error.value) == f"invalid {LOOP_VARIABLE} 'trio': expected uvloop or asyncio"
    assert seen == []


def test_uvloop_that_was_chosen_and_is_not_installed_is_an_error(
    without_uvloop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOOP_VARIABLE, "uvloop")
    with pytest.raises(EventLoopError, match="not installed: install the extra `fast`"):
        runtime.run(note_loop([]))


def test_what_is_there_at_the_start_is_not_looked_through_for_garbage(
    without_uvloop: None,
) -> None:
    frozen: list[bool] = []
    kept = [object(), []]

    async def look() -> None:
        frozen.append(not any(each is kept for each in gc.get_objects()))

    runtime.run(look())
    assert frozen == [True]


# Child processes whose start is cancelled; conftest.py asserts that none is left.

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
