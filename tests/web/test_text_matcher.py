"""The program that looks for an expression."""

from __future__ import annotations

import io
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.web import text_matcher

NOT_ONE = "not a regular expression"


def look(pattern: str, *pieces: bytes, start: int = 0) -> dict[str, object] | None:
    stream = io.BytesIO()
    for piece in pieces:
        stream.write(b"%d %d\n%b" % (start, len(piece), piece))
        start += len(piece)
    stream.seek(0)
    return text_matcher.look(re.compile(pattern.encode()), stream)


def test_a_match_is_found_over_pieces_with_its_position() -> None:
    assert look("b.d", b"ab", b"c", b"de", start=5) == {
        "match": "bcd",
        "groups": [],
        "seq": 6,
        "next": 9,
    }


def test_groups_are_told_and_those_that_are_not_there() -> None:
    found = look("(a)|(b)", b"b")
    assert found is not None
    assert found["groups"] == [None, "b"]


def test_a_match_that_is_too_long_to_be_answered_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_matcher, "_MOST_FOUND_BYTES", 12)
    found = look("((x+))", b"x" * 5)
    assert found == {"error": "the match and its groups have 15 bytes: at most 12 are answered"}


def test_bytes_that_are_no_text_are_replaced() -> None:
    found = look("é.", "é".encode() + b"\xff")
    assert found is not None
    assert found["match"] == "é\ufffd"


def test_the_end_without_a_match_is_none() -> None:
    assert look("x", b"a", b"b") is None
    assert text_matcher.look(re.compile(b"x"), io.BytesIO(b"0 9\nx")) is None


def test_only_so_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_matcher, "_WINDOW_BYTES", 3)
    assert look("a...e", b"abc", b"de") is not None
    assert look("a...e", b"abcd", b"e") is None


@pytest.mark.parametrize(
    ("pattern", "frames", "told", "code"),
    [
        ("a+", b"0 3\nbaa", {"match": "aa", "groups": [], "seq": 1, "next": 3}, 0),
        ("\0", b"0 3\nb\0a", {"match": "\0", "groups": [], "seq": 1, "next": 2}, 0),
        ("(", b"", {"error": f"{NOT_ONE}: missing ), unterminated subpattern at position 0"}, 0),
        ("a", b"", None, 1),
    ],
)
def test_it_runs_without_the_package(
    pattern: str, frames: bytes, told: object, code: int, tmp_path: Path
) -> None:
    ran = subprocess.run(
        [sys.executable, "-I", "-S", text_matcher.__file__],
        input=b"0 %d\n%b" % (len(pattern), pattern.encode()) + frames,
        capture_output=True,
        cwd=tmp_path,
        check=False,
    )
    assert ran.returncode == code
    assert (json.loads(ran.stdout) if ran.stdout else None) == told


def test_where_no_limits_may_be_set_it_looks_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    stdin = io.TextIOWrapper(io.BytesIO(b"0 2\na+0 3\nbaa"))
    monkeypatch.setattr(resource, "setrlimit", forbidden)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert text_matcher.main() == 0
    assert json.loads(capsys.readouterr().out)["match"] == "aa"
