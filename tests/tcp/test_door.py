from __future__ import annotations

from ipaddress import ip_network

import structlog
from structlog.testing import capture_logs

from gateway.config.choices import Access
from gateway.config.networks import Networks
from gateway.tcp.door import Door, Refusal
from tests.support.pty_board import LoopClock


async def test_a_flood_is_a_line_per_network_and_minute() -> None:
    access = Access(allow=Networks((ip_network("10.0.0.0/8"),)))
    with capture_logs() as logs, LoopClock() as clock:
        door = Door(access, structlog.get_logger())
        for _ in range(100):
            assert not door.allows("192.0.2.1")
            assert not door.allows("192.0.2.2")
        assert not door.allows("2001:db8::1")
        assert door.allows("10.1.2.3")
        assert len(logs) == 2
        await clock.advance(61)
        assert len(logs) == 3
        await clock.advance(61)
        door.close()
    assert [(each["event"], each["network"], each["count"]) for each in logs] == [
        ("client_not_allowed", "192.0.2.0/24", 1),
        ("client_not_allowed", "2001:db8::/64", 1),
        ("client_not_allowed", "192.0.2.0/24", 199),
    ]
    assert door.turned_away == {Refusal.NOT_ALLOWED: 201}


async def test_what_was_only_counted_is_told_in_the_end() -> None:
    with capture_logs() as logs:
        door = Door(Access(max_sessions=2), structlog.get_logger())
        assert door.has_room("192.0.2.1", 1)
        for _ in range(5):
            assert not door.has_room("192.0.2.1", 2)
        door.close()
    assert [(each["event"], each["count"]) for each in logs] == [
        ("client_dropped", 1),
        ("client_dropped", 4),
    ]
    assert door.turned_away == {Refusal.TOO_MANY: 5}
