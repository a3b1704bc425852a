from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.recorder import Recorder


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
    assert recorder.entries() == [(1.0, b"boot log"), (2.0, b"heartbeat")]
    assert recorder.entries(since=1.5) == [(2.0, b"heartbeat")]


def test_one_read_larger_than_the_limit_leaves_its_end() -> None:
    recorder = Recorder(4)
    recorder.record(0.0, b"before")
    recorder.record(1.0, b"0123456789")
    assert recorder.tail() == b"6789"


def test_nothing_is_kept_when_nothing_is_wanted() -> None:
    recorder = Recorder(0)
    recorder.record(0.0, b"secret")
    assert recorder.tail() == b""
    assert recorder.entries() == []


def test_a_board_that_sends_byte_by_byte_does_not_fill_the_memory_with_times() -> None:
    recorder = Recorder(1 << 20)
    for number in range(10_000):
        recorder.record(float(number), b"x")
    assert len(recorder.entries()) == 4096
    assert recorder.entries()[-1][0] == 9999.0


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
    assert recorder.tail() == b"".join(data for _, data in recorder.entries())
