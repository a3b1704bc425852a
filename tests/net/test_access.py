"""Rejected connections: counted, and a log line per network, reason and minute."""

from __future__ import annotations

import structlog
from structlog.testing import capture_logs

from gateway.net.access import MAX_KEYS, PERIOD_S, Rejection, Rejections
from tests.support.pty_board import LoopClock


async def test_a_flood_is_a_line_per_network_and_minute() -> None:
    with capture_logs() as logs, LoopClock() as clock:
        rejections = Rejections(structlog.get_logger())
        for _ in range(100):
            rejections.add(Rejection.NOT_ALLOWED, "192.0.2.1", "address not in allow")
            rejections.add(Rejection.NOT_ALLOWED, "192.0.2.2", "address not in allow")
        rejections.add(Rejection.NOT_ALLOWED, "2001:db8::1", "address not in allow")
        assert len(logs) == 2
        await clock.advance(PERIOD_S - 1)
        assert len(logs) == 2
        await clock.advance(2)
        assert len(logs) == 3
        await clock.advance(PERIOD_S + 1)
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
        for number in range(3 * MAX_KEYS):
            rejections.add(Rejection.TOO_MANY, f"10.0.{number}.1", "too many")
        assert len(logs) == MAX_KEYS + 1
        assert (logs[-1]["network"], logs[-1]["reason"]) == ("others", "several")
        rejections.close()
    assert sum(each["count"] for each in logs) == 3 * MAX_KEYS


async def test_a_flood_that_goes_on_is_a_line_per_minute_and_a_new_one_after_a_quiet_minute() -> (
    None
):
    with capture_logs() as logs, LoopClock() as clock:
        rejections = Rejections(structlog.get_logger())
        for _ in range(150):
            rejections.add(Rejection.NOT_ALLOWED, "192.0.2.1", "address not in allow")
            await clock.advance(1)
        await clock.advance(3 * PERIOD_S)
        rejections.add(Rejection.NOT_ALLOWED, "192.0.2.1", "address not in allow")
        rejections.close()
    counts = [each["count"] for each in logs]
    assert counts == [1, 59, 60, 30, 1]
