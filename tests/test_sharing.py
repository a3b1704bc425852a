"""Who uses a device."""

from __future__ import annotations

from datetime import datetime

import pytest

import gateway.sharing
from gateway.sharing import since_text


def test_since_when_has_a_date_unless_it_is_today_s(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 3, 2, 0, 0, 1)
    monkeypatch.setattr(gateway.sharing, "local_now", lambda: now)
    assert since_text(datetime(2026, 3, 2, 0, 0, 0)) == "00:00:00"
    assert since_text(datetime(2026, 3, 1, 23, 59, 59)) == "2026-03-01 23:59:59"
