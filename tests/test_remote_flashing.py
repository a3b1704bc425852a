from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import remote_flashing
from tests.remote_flashing import BEGIN, ESPTOOL_CFG, WAYS, Way, key_of, measure, report
from tests.support.gateway_client import ROOT
from tests.support.shim import Shim

LOCAL, GATEWAY, *_ = WAYS
CELL = {"flash-id": "1.0", "write": "2.0", "read": "3.0"}


def test_a_run_goes_on_where_the_last_one_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def one_cell(way: Way, baud: int, delay_ms: int, _folder: Path, _shim: Shim) -> dict[str, str]:
        asked.append(key_of(way, baud, delay_ms))
        return CELL

    monkeypatch.setattr(remote_flashing, "one_cell", one_cell)
    monkeypatch.setattr(remote_flashing, "build_shim", lambda _: None)
    monkeypatch.setattr(remote_flashing, "RESULTS", tmp_path / "results.json")
    cells = [(way, 921600, delay_ms) for way in (LOCAL, GATEWAY) for delay_ms in (0, 20)]
    done = key_of(GATEWAY, 921600, 0)
    measure(cells, {done: CELL}, again=False)
    # Nothing local is far away.
    assert asked == [key_of(LOCAL, 921600, 0), key_of(GATEWAY, 921600, 20)]
    kept = json.loads((tmp_path / "results.json").read_text())
    assert {done, *asked} < set(kept)


def test_the_table_has_a_row_for_each_cell_that_is_known() -> None:
    lines = report({key_of(GATEWAY, 921600, 20): CELL}).splitlines()
    assert f"| 20 ms | {GATEWAY.name} | 1.0 | 2.0 | 3.0 |" in lines
    assert len([line for line in lines if line.startswith("| 20 ms")]) == 1


def test_the_document_has_a_place_for_it_and_the_settings_that_were_measured() -> None:
    document = (ROOT / "docs" / "remote-flashing.md").read_text()
    assert BEGIN in document
    assert ESPTOOL_CFG.read_text() in document
