"""One build for all that ask meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from gateway.web.http_answers import SharedBuild
from tests.support.pty_board import LoopClock


class Builder:
    """Builds numbers, each when it is let."""

    def __init__(self) -> None:
        self.begun = 0
        self.has_begun = asyncio.Event()
        self.error: Exception | None = None
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def build(self) -> int:
        self.begun += 1
        self.has_begun.set()
        number = self.begun
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return number


async def test_the_first_waits_for_nothing_and_those_behind_it_share_the_next() -> None:
    builder = Builder()
    shared = SharedBuild(builder.build, 1.0)
    with LoopClock() as clock:
        assert await shared.get() == 1
        asking = [asyncio.ensure_future(shared.get()) for _ in range(5)]
        await clock.advance(0.5)
        assert builder.begun == 1
        await clock.advance(0.6)
        assert await asyncio.gather(*asking) == [2] * 5
        await clock.advance(5.0)
        assert await shared.get() == 3


async def test_no_build_is_older_than_the_question() -> None:
    builder = Builder()
    shared = SharedBuild(builder.build, 0.0)
    builder.may_end.clear()
    first = asyncio.ensure_future(shared.get())
    await builder.has_begun.wait()
    second = asyncio.ensure_future(shared.get())
    builder.may_end.set()
    assert [await first, await second] == [1, 2]


async def test_all_that_ask_get_the_error() -> None:
    builder = Builder()
    builder.error = ValueError("planted")
    shared = SharedBuild(builder.build, 0.0)
    asking = [asyncio.ensure_future(shared.get()) for _ in range(2)]
    for each in asking:
        with pytest.raises(ValueError, match="planted"):
            await each
    builder.error = None
    assert await shared.get() == 2


async def test_nothing_is_built_for_those_that_have_left() -> None:
    builder = Builder()
    shared = SharedBuild(builder.build, 1.0)
    with LoopClock() as clock:
        await shared.get()
        leaving = asyncio.ensure_future(shared.get())
        await asyncio.sleep(0)
        leaving.cancel()
        await clock.advance(2.0)
        assert builder.begun == 1


async def test_stopping_ends_what_is_being_built_and_those_that_wait() -> None:
    builder = Builder()
    shared = SharedBuild(builder.build, 1.0)
    await shared.stop()
    builder.may_end.clear()
    first = asyncio.ensure_future(shared.get())
    await builder.has_begun.wait()
    second = asyncio.ensure_future(shared.get())
    await asyncio.sleep(0)
    await shared.stop()
    for each in (first, second):
        with pytest.raises(asyncio.CancelledError):
            await each
