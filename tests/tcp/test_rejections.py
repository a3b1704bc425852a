"""Rejected connections: counted, and a log line per network, reason and minute."""

from __future__ import annotations

import structlog
from structlog.testing import capture_logs

from gateway.tcp.rejections import MOST_KEYS, OTHERS, PERIOD_S, Rejection, Rejections, Tally
from tests.support.pty_board import LoopClock


async def test_a_flood_is_a_line_per_network_and_minute() -> None:
    with capture_logs() as logs, LoopClock() as clock:
        rejections = Rejections(structlog.get_logger())
        for _ in range(100):
            rejections.add(Rejection.NOT_ALLOWED, "192.0.2.1", "address not in allow")
            rejections.add(Rejection.NOT_ALLOWED, "192.0.2.2", "address not in allow")
        rejections.add(Rejection.NOT_ALLOWED, "2001:db8::1", "address not in allow")
        assert len(logs) == 2
        await clock.advance(61)
        assert len(logs) == 3
        await clock.advance(61)
        rejections.close()
    assert [(each["event"], each["network"], each["count"], each["reason"]) for each in logs] == [
        ("client_rejected", "192.0.2.0/24", 1, "address not in allow"),
        ("client_rejected", "2001:db8::/64", 1, "address not in allow"),
        ("client_rejected", "192.0.2.0/24", 199, "address not in allow"),
    ]
    assert rejections.counts == {Rejection.NOT_ALLOWED: 201}


async def test_reasons_are_logged_apart_and_what_was_only_counted_at_the_end() -> None:
    with capture_logs() as logs:
        rejections = Rejections(structlog.get_logger())
        for _ in range(5):
            rejections.add(Rejection.TOO_MANY, "192.0.2.1", "too many")
            rejections.add(Rejection.NOT_SECURED, "192.0.2.1", "TLS: no certificate")
        rejections.close()
    assert [(each["reason"], each["count"]) for each in logs] == [
        ("too many", 1),
        ("TLS: no certificate", 1),
        ("too many", 4),
        ("TLS: no certificate", 4),
    ]
    assert rejections.counts == {Rejection.TOO_MANY: 5, Rejection.NOT_SECURED: 5}


async def test_a_flood_from_everywhere_is_one_line_more() -> None:
    with capture_logs() as logs:
        rejections = Rejections(structlog.get_logger())
        for number in range(3 * MOST_KEYS):
            rejections.add(Rejection.TOO_MANY, f"10.0.{number}.1", "too many")
        assert len(logs) == MOST_KEYS + 1
        assert (logs[-1]["network"], logs[-1]["reason"]) == (OTHERS, "several")
        rejections.close()
    assert sum(each["count"] for each in logs) == 3 * MOST_KEYS


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
