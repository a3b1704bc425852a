from __future__ import annotations

from gateway.tcp.tally import MOST_KEYS, OTHERS, PERIOD_S, Tally


def test_the_first_is_told_at_once_and_the_rest_as_a_number_a_minute_later() -> None:
    tally = Tally()
    assert tally.add(100.0, "here") == "here"
    assert [tally.add(100.0 + second, "here") for second in range(59)] == [None] * 59
    assert tally.due_at == 100.0 + PERIOD_S
    assert tally.take_due(100.0 + PERIOD_S - 0.1) == []
    assert tally.take_due(100.0 + PERIOD_S) == [("here", 59)]


def test_as_long_as_it_goes_on_it_is_told_once_a_minute() -> None:
    tally = Tally()
    told = []
    for second in range(600):
        told += [(second, count) for _, count in tally.take_due(second)]
        if tally.add(second, "here"):
            told.append((second, 1))
    assert told == [(0, 1), (60, 59), *((minute * 60, 60) for minute in range(2, 10))]


def test_after_a_quiet_minute_it_is_new_again() -> None:
    tally = Tally()
    tally.add(0.0, "here")
    assert tally.take_due(PERIOD_S) == []
    assert tally.due_at is None
    assert tally.add(PERIOD_S + 1, "here") == "here"


def test_keys_are_told_apart() -> None:
    tally = Tally()
    assert [tally.add(0.0, key) for key in ("here", "there", "here")] == ["here", "there", None]
    assert tally.take_all() == [("here", 1)]
    assert tally.due_at is None


def test_a_flood_of_keys_counts_as_one() -> None:
    tally = Tally()
    told = [tally.add(0.0, f"from {number}") for number in range(100_000)]
    assert [key for key in told if key] == [*(f"from {each}" for each in range(MOST_KEYS)), OTHERS]
    assert tally.take_due(PERIOD_S) == [(OTHERS, 100_000 - MOST_KEYS - 1)]
