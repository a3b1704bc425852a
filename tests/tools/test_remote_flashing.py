from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.gateway_client import ROOT
from tests.support.shim import Shim
from tests.tools import remote_flashing
from tests.tools.flashing_ways import ESPTOOL_CFG, LOCAL, ON_GATEWAY, WAYS, Reached
from tests.tools.remote_flashing import (
    AT_ONCE,
    BEGIN,
    NOT_TRIED,
    UPLOADED,
    Cell,
    Results,
    Round,
    measure,
    missing_rounds,
    report,
    run,
    run_all,
)

GATEWAY, PLAIN, SLOW_LINKS = WAYS[2:5]
[NEAR_PEER] = [way for way in WAYS if way.is_only_near]
ROUND = {"flash-id": "1.0", "write": "2.0", "read": "3.0", AT_ONCE: "1"}


def written(seconds: str, uploaded: str = "0.5", at_once: str = "1") -> Round:
    return {"write": seconds, UPLOADED: uploaded, AT_ONCE: at_once}


def row(cell: Cell, *rounds: Round) -> str:
    """The cell's row of the table."""
    lines = report(Results("", {cell.key: list(rounds)})).splitlines()
    [found] = [line for line in lines if f"| {cell.way.name} |" in line]
    return found


def test_a_run_goes_on_where_the_last_one_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path]] = []

    def one_round(cell: Cell, folder: Path, shim: Shim) -> Round:
        asked.append((cell.key, folder))
        assert shim.control.parent == folder  # nobody else's board
        return {name: ROUND[name] for name in cell.way.commands}

    monkeypatch.setattr(remote_flashing, "one_round", one_round)
    monkeypatch.setattr(remote_flashing, "build_shim", lambda name: Shim(name / "x.so", name))
    monkeypatch.setattr(remote_flashing, "RESULTS", tmp_path / "results.json")
    cells = [Cell(way, 921600, delay_ms) for way in (LOCAL, GATEWAY) for delay_ms in (0, 20)]
    near, far = Cell(GATEWAY, 921600, 0), Cell(GATEWAY, 921600, 20)
    local = Cell(LOCAL, 921600, 0)
    results = Results("", {near.key: [ROUND], local.key: [ROUND]})
    measure(cells, results, at_once=3)
    assert [key for key, _ in asked] == [local.key, local.key, far.key]
    assert len({folder for _, folder in asked}) == 3
    kept = Results(**json.loads((tmp_path / "results.json").read_text()))
    assert kept == results
    assert [len(kept.rounds(cell)) for cell in (local, near, far)] == [3, 1, 1]
    assert kept.rounds(far)[0][AT_ONCE] == "3"
    # What does not wait for the network has the machine to itself.
    assert {each[AT_ONCE] for each in kept.rounds(local)} == {"1"}


def test_ways_that_are_compared_come_in_turn() -> None:
    cells = [Cell(way, 921600, 0) for way in (LOCAL, ON_GATEWAY, GATEWAY, SLOW_LINKS)]
    local, on_gateway, gateway, _ = cells
    asked = list(missing_rounds(cells, Results()))
    assert asked == [local, on_gateway, gateway, local, on_gateway, local, on_gateway]


@pytest.mark.parametrize(
    ("cell", "exists", "is_alone"),
    [
        (Cell(LOCAL, 921600, 0), True, True),
        (Cell(LOCAL, 921600, 20), False, False),
        (Cell(ON_GATEWAY, 921600, 100), True, True),
        (Cell(GATEWAY, 921600, 0), True, True),
        (Cell(GATEWAY, 921600, 20), True, False),
        (Cell(SLOW_LINKS, 921600, 0), False, True),
        (Cell(SLOW_LINKS, 921600, 20), True, False),
        (Cell(NEAR_PEER, 921600, 0), True, True),
        (Cell(NEAR_PEER, 921600, 20), False, False),
    ],
)
def test_which_cells_there_are_and_which_of_them_wait_for_the_network(
    cell: Cell, exists: bool, is_alone: bool
) -> None:
    assert cell.exists is exists
    if exists:
        assert cell.is_alone is is_alone


def test_the_table_has_a_row_for_each_cell_that_is_known() -> None:
    assert row(Cell(GATEWAY, 921600, 20), ROUND) == f"| 20 ms | {GATEWAY.name} | 1.0 | 2.0 | 3.0 |"
    assert row(Cell(LOCAL, 921600, 0), ROUND) == "| any | local | 1.0 | 2.0 | 3.0 |"
    lines = report(Results("", {Cell(PLAIN, 921600, 20).key: [ROUND]})).splitlines()
    assert len([line for line in lines if line.startswith("| 20 ms")]) == 1
    assert "### 2000000 baud" not in lines


def test_a_row_shows_medians_and_what_went_wrong_in_any_round() -> None:
    cell = Cell(ON_GATEWAY, 921600, 20)
    rounds = [written("9.0"), written("30.0"), written("10.0")]
    assert row(cell, *rounds) == "| 20 ms | on this gateway | - | 10.0 | - |"
    rounds[1] = {"write": "> 600", AT_ONCE: "1"}
    assert row(cell, *rounds) == "| 20 ms | on this gateway | - | > 600 | - |"


def test_what_the_gateway_adds_is_told_against_local_without_the_upload() -> None:
    local, far = Cell(LOCAL, 921600, 0), Cell(ON_GATEWAY, 921600, 50)
    local_rounds = [{**ROUND, "write": seconds} for seconds in ("9.0", "10.0", "50.0")]
    results = Results("", {local.key: local_rounds, far.key: [written("12.3", "2.0")] * 3})
    assert "| 921600 | 50 ms | 10.0 | 12.3 | 2.0 | +3.0 % |" in report(results).splitlines()
    results.cells[local.key][0]["write"] = "fails"
    assert "against" not in report(results)


def test_how_it_was_measured_is_told() -> None:
    local, far = Cell(LOCAL, 921600, 0), Cell(GATEWAY, 921600, 50)
    results = Results("On a machine.", {local.key: [ROUND, ROUND], far.key: [ROUND]})
    first = report(results).splitlines()[0]
    assert first.startswith("On a machine. `local` and `on this gateway` are medians of 2 runs,")
    assert first.endswith("One row was measured after the other.")
    results.cells[far.key] = [{**ROUND, AT_ONCE: "4"}]
    assert "Rows with a delay were measured up to 4 at once" in report(results).splitlines()[0]


def test_behind_a_command_that_fails_nothing_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def failing(command: list[str], _env: object) -> tuple[str, None]:
        tried.append(command[-1])
        return "> 600", None

    monkeypatch.setattr(remote_flashing, "run", failing)
    board = Reached(PLAIN, "rfc2217://127.0.0.1:1", {})
    measured = run_all(board, 921600, tmp_path)
    assert measured == {"flash-id": "> 600", "write": NOT_TRIED, "read": NOT_TRIED}
    assert tried == ["flash-id"]


def test_a_read_of_other_data_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "back.bin").write_bytes(b"\xff")
    monkeypatch.setattr(remote_flashing, "run", lambda _command, _env: ("1.0", None))
    measured = run_all(Reached(LOCAL, "/dev/null", {}), 921600, tmp_path)
    assert measured == {"flash-id": "1.0", "write": "1.0", "read": "wrong data"}


def test_on_the_gateway_there_is_only_a_write_and_its_upload_is_known(tmp_path: Path) -> None:
    board = Reached(ON_GATEWAY, "http://127.0.0.1:8080", {})
    commands = board.commands(921600, tmp_path / "image", tmp_path / "back")
    assert list(commands) == list(ON_GATEWAY.commands) == ["write"]
    said = 'print(\'{"event": "started"}\')'
    _, uploaded_s = run([sys.executable, "-c", said], {})
    assert uploaded_s is not None
    failed, uploaded_s = run([sys.executable, "-c", "raise SystemExit(1)"], {})
    assert (failed, uploaded_s) == ("fails", None)


def test_a_command_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_flashing, "LIMIT_S", 0.25)
    waits = "import threading; threading.Event().wait()"
    assert run([sys.executable, "-c", waits], {}) == ("> 0.25", None)


def test_the_document_has_a_place_for_it_and_the_settings_that_were_measured() -> None:
    document = (ROOT / "docs" / "remote-flashing.md").read_text()
    assert BEGIN in document
    assert ESPTOOL_CFG.read_text() in document
