"""Waiting for an expression in a process of its own."""

from __future__ import annotations

import asyncio

import pytest

from gateway.web import output_api as text_wait
from gateway.web.output_api import PatternError, TextWait
from tests.support.pty_board import until


async def test_what_came_before_the_process_runs_counts() -> None:
    wait = TextWait("b.d")
    wait.add(10, b"abc")
    wait.add(13, b"de")
    try:
        assert await wait.found() == {"match": "bcd", "groups": [], "seq": 11, "next": 14}
    finally:
        await wait.close()


async def test_an_expression_that_is_slower_than_the_board_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_wait, "MAX_UNREAD_BYTES", 1000)
    wait = TextWait("(a+)+b")
    wait.add(0, b"a" * 100)
    finding = asyncio.create_task(wait.found())
    await until(lambda: wait._process)
    for seq in range(100, 1_000_000, 10_000):
        wait.add(seq, b"a" * 10_000)
    with pytest.raises(PatternError, match="more time or memory"):
        await finding
    await wait.close()


async def test_what_comes_after_the_match_is_not_wanted() -> None:
    wait = TextWait("a")
    wait.add(0, b"a")
    try:
        assert (await wait.found())["seq"] == 0
        await until(lambda: wait._process is not None and wait._process.returncode is not None)
        for _ in range(100):
            wait.add(1, b"b")
    finally:
        await wait.close()


async def test_one_that_was_never_started_can_be_closed() -> None:
    await TextWait("a").close()


async def test_one_that_is_given_up_says_why() -> None:
    wait = TextWait("a")
    wait.give_up("the end")
    finding = asyncio.create_task(wait.found())
    await until(lambda: wait._process)
    wait.give_up("the end")
    with pytest.raises(PatternError, match="the end"):
        await finding
    await wait.close()
