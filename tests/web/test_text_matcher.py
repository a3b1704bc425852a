"""Waiting for an expression in a process of its own: the program, and the service's end of it."""

from __future__ import annotations

import asyncio
import io
import json
import re
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.web import output_api, text_matcher
from gateway.web.output_api import PatternError, TextWait
from tests.support.pty_board import until

INVALID = "not a regular expression"


def look(pattern: str, *pieces: bytes, start: int = 0) -> dict[str, object] | None:
    stream = io.BytesIO()
    for piece in pieces:
        stream.write(b"%d %d\n%b" % (start, len(piece), piece))
        start += len(piece)
    stream.seek(0)
    return text_matcher.look(re.compile(pattern.encode()), stream)


@pytest.mark.parametrize(
    ("pattern", "pieces", "found"),
    [
        (
            "b.d",
            [b"ab", b"c", b"de"],
            {"match": "bcd", "groups": [], "seq": 6, "next": 9},
        ),
        ("(a)|(b)", [b"b"], {"match": "b", "groups": [None, "b"], "seq": 5, "next": 6}),
        (
            "é.",
            ["é".encode() + b"\xff"],
            {"match": "é\ufffd", "groups": [], "seq": 5, "next": 8},
        ),
        ("x", [b"a", b"b"], None),
        (
            "((x+))",
            [b"x" * 5],
            {"error": "the match and its groups have 15 bytes: at most 12 are answered"},
        ),
        ("a...e", [b"abc", b"de"], {"match": "abcde", "groups": [], "seq": 5, "next": 10}),
        ("a...e", [b"abcd", b"e"], None),  # more than is kept
    ],
)
def test_a_match_is_found_over_pieces_with_its_position(
    pattern: str, pieces: list[bytes], found: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_matcher, "_MOST_FOUND_BYTES", 12)
    monkeypatch.setattr(text_matcher, "_WINDOW_BYTES", 3)
    assert look(pattern, *pieces, start=5) == found


def test_a_frame_that_is_cut_off_is_the_end() -> None:
    assert text_matcher.look(re.compile(b"x"), io.BytesIO(b"0 9\nx")) is None


@pytest.mark.parametrize(
    ("pattern", "frames", "answer", "code"),
    [
        ("a+", b"0 3\nbaa", {"match": "aa", "groups": [], "seq": 1, "next": 3}, 0),
        ("\0", b"0 3\nb\0a", {"match": "\0", "groups": [], "seq": 1, "next": 2}, 0),
        ("(", b"", {"error": f"{INVALID}: missing ), unterminated subpattern at position 0"}, 0),
        ("a", b"", None, 1),
    ],
)
def test_the_program_runs_without_the_package(
    pattern: str, frames: bytes, answer: object, code: int, tmp_path: Path
) -> None:
    ran = subprocess.run(
        [sys.executable, "-I", "-S", text_matcher.__file__],
        input=b"0 %d\n%b" % (len(pattern), pattern.encode()) + frames,
        capture_output=True,
        cwd=tmp_path,
        check=False,
    )
    assert ran.returncode == code
    assert (json.loads(ran.stdout) if ran.stdout else None) == answer


def test_the_program_runs_where_no_limits_may_be_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    stdin = io.TextIOWrapper(io.BytesIO(b"0 2\na+0 3\nbaa"))
    monkeypatch.setattr(resource, "setrlimit", forbidden)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert text_matcher.main() == 0
    assert json.loads(capsys.readouterr().out)["match"] == "aa"


@asynccontextmanager
async def waiting(pattern: str) -> AsyncIterator[TextWait]:
    wait = TextWait(pattern)
    yield wait
    await wait.close()


async def test_output_before_the_process_runs_counts() -> None:
    async with waiting("b.d") as wait:
        wait.add(10, b"abc")
        wait.add(13, b"de")
        assert await wait.found() == {"match": "bcd", "groups": [], "seq": 11, "next": 14}


async def test_an_expression_that_is_slower_than_the_board_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(output_api, "MAX_UNREAD_BYTES", 1000)
    async with waiting("(a+)+b") as wait:
        wait.add(0, b"a" * 100)
        finding = asyncio.create_task(wait.found())
        await until(lambda: wait._process)
        for seq in range(100, 1_000_000, 10_000):
            wait.add(seq, b"a" * 10_000)
        with pytest.raises(PatternError, match="more time or memory"):
            await finding


async def test_output_behind_the_match_is_dropped() -> None:
    async with waiting("a") as wait:
        wait.add(0, b"a")
        assert (await wait.found())["seq"] == 0
        await until(lambda: wait._process is not None and wait._process.returncode is not None)
        for _ in range(100):
            wait.add(1, b"b")


async def test_a_wait_that_is_given_up_reports_the_reason() -> None:
    async with waiting("a") as wait:
        wait.give_up("the end")
        finding = asyncio.create_task(wait.found())
        await until(lambda: wait._process)
        wait.give_up("the end")
        with pytest.raises(PatternError, match="the end"):
            await finding
    async with waiting("a"):
        pass  # one that was never started can be closed
