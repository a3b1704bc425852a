"""A short `make soak`, and proof that it sees a wrong byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools import soak


@pytest.mark.timeout(1200)
def test_random_clients_and_boards_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    # With pauses, for the sake of the tests beside it: ten minutes without any are `make soak`.
    assert soak.soak(tmp_path, seconds=60, seed=1, pause_s=4.0) == 0


@pytest.mark.timeout(400)
def test_a_wrong_byte_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "KINDS", {soak.monitor: 1})
    monkeypatch.setattr(soak, "pattern", lambda n_bytes: b"x" * n_bytes)
    assert soak.soak(tmp_path, seconds=1, seed=1, n_boards=1) == 1
    assert "WRONG board0, monitor" in capsys.readouterr().out
