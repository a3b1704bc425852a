"""The figures of structure.py: a whole measurement, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.structure import (
    CALLS,
    OBJECTS,
    Measured,
    figures,
    line_counts,
    main,
    measured_services,
    table,
)

THREE_CALLS = [("session.py", "Session.read"), ("session.py", "Session.write"), ("clock.py", "now")]


@pytest.mark.timeout(400)
def test_every_step_and_every_object_is_measured_on_a_service() -> None:
    measured = measured_services(runs=1)
    assert list(measured.calls) == list(CALLS)
    assert list(measured.objects) == list(OBJECTS)
    one_byte, baudrate, dtr, reset, preempt, resume = map(len, measured.calls.values())
    assert 2 <= one_byte < baudrate < preempt
    assert dtr < reset
    assert resume > 0
    assert all(file.endswith(".py") for file, _ in measured.calls["SET-BAUDRATE"])
    assert all(sum(counts.values()) > 1 for counts in measured.objects.values())


def test_figures_count_calls_files_classes_objects_and_lines() -> None:
    measured = Measured({"SET-BAUDRATE": THREE_CALLS}, {"a client": {"Session": 1, "Timer": 2}})
    gateway = {"cli.py": 100, "short.py": 59, "port/__init__.py": 1, "__main__.py": 9}
    found = figures(measured, gateway, {"test_cli.py": 7})
    assert found == {
        "calls: SET-BAUDRATE": "3 in 2 files, 2 classes or functions",
        "objects of a client": "3 of 2 classes",
        "gateway/: files, lines": "4, 169",
        "gateway/: files under 60 lines": "1",
        "tests/: files, lines": "1, 7",
    }


def test_the_table_has_goals_and_the_figures_of_before() -> None:
    assert table({"calls: SET-BAUDRATE": "3"}, None).splitlines()[2] == (
        "| calls: SET-BAUDRATE | 3 | at most 45 |"
    )
    assert table({"other": "3", "new": "1"}, {"other": "4"}).splitlines()[2:] == [
        "| other | 4 | 3 |  |",
        "| new | - | 1 |  |",
    ]


def test_lines_are_those_of_python_files_in_all_folders(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "page.py").write_text("a = 1\nb = 2\n")
    (tmp_path / "web" / "page.js").write_text("\n\n\n")
    assert line_counts(tmp_path) == {"web/page.py": 2}


def test_a_service_that_does_not_run_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESP_GATEWAY_EVENT_LOOP", "none")
    with pytest.raises(SystemExit, match="invalid ESP_GATEWAY_EVENT_LOOP"):
        main([])
