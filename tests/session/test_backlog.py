"""What a client has not taken yet."""

from __future__ import annotations

import random

import pytest

from gateway.session.output import Backlog


def test_chunks_are_taken_in_order() -> None:
    backlog = Backlog(100)
    backlog.add(b"one")
    backlog.add(b"two")
    backlog.add(b"three")
    assert len(backlog) == 11
    assert backlog.take() == b"one"
    assert backlog.take_all() == b"twothree"
    assert (len(backlog), backlog.dropped_bytes) == (0, 0)


@pytest.mark.parametrize("seed", range(5))
def test_beyond_the_bound_the_oldest_bytes_go_and_are_counted(
    seed: int,
) -> None:
    chance = random.Random(seed)
    backlog = Backlog(100)
    added = b""
    dropped_bytes = 0
    for _ in range(50):
        data = chance.randbytes(chance.choice([1, 30, 99, 100, 101, 250]))
        fits = backlog.fits(data)
        dropped_now = backlog.add(data)
        assert fits is (dropped_now == 0)
        dropped_bytes += dropped_now
        added += data
        assert len(backlog) <= 100
    assert dropped_bytes == backlog.dropped_bytes == len(added) - 100
    assert backlog.take_all() == added[-100:]
