"""What a client has not taken yet."""

from __future__ import annotations

import random

import pytest

import gateway.backlog
from gateway.backlog import Backlog


def test_chunks_are_taken_in_order() -> None:
    backlog = Backlog()
    backlog.add(b"one")
    backlog.add(b"two")
    backlog.add(b"three")
    assert len(backlog) == 11
    assert backlog.take() == b"one"
    assert backlog.take_all() == b"twothree"
    assert (len(backlog), backlog.dropped_bytes) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_beyond_the_bound_the_oldest_bytes_go_and_are_counted(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.backlog, "BACKLOG_BYTES", 100)
    chance = random.Random(seed)
    backlog = Backlog()
    added = b""
    for _ in range(50):
        data = chance.randbytes(chance.choice([1, 30, 99, 100, 101, 250]))
        backlog.add(data)
        added += data
        assert len(backlog) <= 100
    assert backlog.dropped_bytes == len(added) - 100
    assert backlog.take_all() == added[-100:]
