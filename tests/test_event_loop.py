import asyncio
import gc
import sys
import types

import pytest

from gateway import event_loop


async def note_loop(into: list[asyncio.AbstractEventLoop]) -> None:
    into.append(asyncio.get_running_loop())


def test_the_service_runs_on_asyncios_loop_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it were not installed
    seen: list[asyncio.AbstractEventLoop] = []
    event_loop.run(note_loop(seen))
    assert isinstance(seen[0], asyncio.SelectorEventLoop)
    assert seen[0].is_closed()


def test_the_service_runs_on_uvloop_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[asyncio.AbstractEventLoop] = []

    def new_event_loop() -> asyncio.AbstractEventLoop:
        made.append(asyncio.SelectorEventLoop())
        return made[-1]

    installed = types.ModuleType("uvloop")
    installed.new_event_loop = new_event_loop  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uvloop", installed)
    seen: list[asyncio.AbstractEventLoop] = []
    event_loop.run(note_loop(seen))
    assert seen == made
    assert seen[0].is_closed()


def test_what_is_there_at_the_start_is_not_looked_through_for_garbage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # libuv keeps descriptors for the process
    frozen: list[bool] = []
    kept = [object(), []]

    async def look() -> None:
        frozen.append(not any(each is kept for each in gc.get_objects()))

    event_loop.run(look())
    assert frozen == [True]
