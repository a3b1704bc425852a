from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.port.recorder import Piece, Recorder


def test_the_last_bytes_are_kept_in_order() -> None:
    recorder = Recorder(10)
    for number, data in enumerate((b"one ", b"two ", b"three ", b"four")):
        recorder.record(float(number), data)
    assert recorder.tail() == b"three four"


def test_each_moment_has_its_time() -> None:
    recorder = Recorder(100)
    recorder.record(1.0, b"boot ")
    recorder.record(1.005, b"log")
    recorder.record(2.0, b"heartbeat")
    assert recorder.pieces(0) == [Piece(0, 1.0, b"boot log"), Piece(8, 2.0, b"heartbeat")]


def test_one_read_larger_than_the_limit_leaves_its_end() -> None:
    recorder = Recorder(4)
    recorder.record(0.0, b"before")
    recorder.record(1.0, b"0123456789")
    assert recorder.tail() == b"6789"


def test_nothing_is_kept_when_nothing_is_wanted() -> None:
    recorder = Recorder(0)
    recorder.record(0.0, b"secret")
    assert recorder.tail() == b""
    assert recorder.pieces(0) == []


@pytest.mark.parametrize("piece_bytes", [1, 7, 1023, 1025, 5000])
def test_every_byte_is_kept_whatever_the_size_of_the_pieces(piece_bytes: int) -> None:
    limit_bytes = 65536
    recorder = Recorder(limit_bytes)
    sent = random.Random(piece_bytes).randbytes(2 * limit_bytes)
    starts = range(0, len(sent), piece_bytes)
    for number, start in enumerate(starts):
        recorder.record(float(number), sent[start : start + piece_bytes])
    assert recorder.tail() == sent[-limit_bytes:]
    pieces = recorder.pieces(0)
    assert b"".join(piece.data for piece in pieces) == sent[-limit_bytes:]
    # Each piece has the time of a byte that is at most 4 KiB before its first one.
    for piece in pieces:
        is_at = int(piece.at) * piece_bytes
        assert is_at <= piece.seq < is_at + max(4096, piece_bytes)


def test_the_latest_of_many_small_pieces_keep_their_times() -> None:
    recorder = Recorder(1 << 20)
    for number in range(10_000):
        recorder.record(float(number), b"x")
    latest = recorder.pieces(recorder.end - 4096)
    assert [piece.at for piece in latest] == [float(number) for number in range(5904, 10_000)]


@pytest.mark.parametrize("piece_bytes", [1, 600])
def test_the_memory_for_times_is_bounded(piece_bytes: int) -> None:
    limit_bytes = 1 << 18
    data = b"x" * piece_bytes
    tracemalloc.start()
    try:
        recorder = Recorder(limit_bytes)
        for number in range(2 * limit_bytes // piece_bytes):
            recorder.record(float(number), data)
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(recorder.tail()) == limit_bytes
    assert used_bytes <= 600_000 + 1.3 * limit_bytes, used_bytes


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 0.02), st.binary(max_size=80)), max_size=40),
)
def test_the_tail_is_the_end_of_all_that_was_said(
    limit_bytes: int, said: list[tuple[float, bytes]]
) -> None:
    recorder = Recorder(limit_bytes)
    now = 0.0
    for pause, data in said:
        now += pause
        recorder.record(now, data)
    assert recorder.tail() == b"".join(data for _, data in said)[-limit_bytes:]
    assert recorder.tail() == b"".join(piece.data for piece in recorder.pieces(0))


def test_positions_count_every_byte_and_name_what_is_kept() -> None:
    recorder = Recorder(6)
    assert (recorder.begin, recorder.end) == (0, 0)
    recorder.record(1.0, b"abcd")
    recorder.record(2.0, b"efgh")
    assert (recorder.begin, recorder.end) == (2, 8)
    assert recorder.pieces(0) == [Piece(2, 1.0, b"cd"), Piece(4, 2.0, b"efgh")]
    assert recorder.pieces(3) == [Piece(3, 1.0, b"d"), Piece(4, 2.0, b"efgh")]
    assert recorder.pieces(5) == [Piece(5, 2.0, b"fgh")]
    assert recorder.pieces(8) == recorder.pieces(99) == []


def test_positions_count_what_is_not_kept() -> None:
    recorder = Recorder(0)
    recorder.record(1.0, b"abcd")
    assert (recorder.begin, recorder.end) == (4, 4)
    assert recorder.pieces(0) == []


def test_followers_are_told_of_all_that_comes() -> None:
    recorder = Recorder(0)
    told: list[tuple[int, bytes]] = []

    def follow(seq: int, data: bytes) -> None:
        told.append((seq, data))

    recorder.record(1.0, b"ab")
    recorder.follow(follow)
    recorder.record(2.0, b"cd")
    recorder.unfollow(follow)
    recorder.record(3.0, b"ef")
    assert told == [(2, b"cd")]


def test_a_follower_may_leave_while_it_is_told() -> None:
    recorder = Recorder(10)
    told: list[bytes] = []

    def once(_: int, data: bytes) -> None:
        recorder.unfollow(once)
        told.append(data)

    recorder.follow(once)
    recorder.follow(lambda _, data: told.append(data))
    recorder.record(1.0, b"ab")
    assert told == [b"ab", b"ab"]


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=30),
    st.integers(0, 600),
    st.integers(0, 200),
)
def test_the_first_bytes_from_a_position_on(sent: list[bytes], since: int, n_bytes: int) -> None:
    recorder = Recorder(300)
    for number, data in enumerate(sent):
        recorder.record(float(number), data)
    whole = b"".join(sent)
    begin = max(since, recorder.begin)
    found = recorder.first(since, n_bytes)
    assert b"".join(piece.data for piece in found) == whole[begin : begin + n_bytes]
    assert [piece.seq for piece in found[:1]] == [begin][: len(found)]
    at_positions = {piece.seq + len(piece.data): piece.at for piece in recorder.pieces(0)}
    for piece in found[:-1]:
        assert at_positions[piece.seq + len(piece.data)] == piece.at
