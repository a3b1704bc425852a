"""docs/grafana-dashboard.json asks for metrics and labels that there are."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import run_tool
from tests.web.test_metrics import FAR, PORT, text

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())


def queries() -> list[str]:
    """All that is asked of Prometheus, with what Grafana puts in for its variables."""
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [
        query.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$port", ".*")
        for query in asked
    ]


def variable_queries() -> list[str]:
    variables = DASHBOARD["templating"]["list"]
    return [each["query"]["query"] for each in variables if each["type"] == "query"]


def exposed() -> dict[str, set[str]]:
    """The labels of each sample's name."""
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text(PORT, FAR)):
        for sample in family.samples:
            # Prometheus adds where it has read it.
            labels.setdefault(sample.name, {"instance"}).update(sample.labels)
    return labels


def asked_for(query: str) -> list[tuple[str, set[str]]]:
    """The metrics of a query, each with the labels that it is chosen by."""
    found = re.findall(r"\b((?:esp_gateway|process)_\w+)(?:\{([^}]*)\})?", query)
    return [(name, set(re.findall(r"(\w+)\s*=~?", chosen))) for name, chosen in found]


@pytest.mark.parametrize("query", queries() + variable_queries())
def test_a_query_names_what_is_exposed(query: str) -> None:
    known = exposed()
    names = asked_for(query)
    assert names
    for name, labels in names:
        assert name in known
        assert labels <= known[name]


def test_what_legends_show_are_labels() -> None:
    labels = set().union(*exposed().values())
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels


def test_each_metric_of_the_gateway_is_shown() -> None:
    shown = {name for query in queries() for name, _ in asked_for(query)}
    shown |= {name for query in variable_queries() for name, _ in asked_for(query)}
    wanted = {name for name in exposed() if name.startswith("esp_gateway")}
    parts = {f"{name.removesuffix('_bucket')}_{end}" for name in shown for end in ("count", "sum")}
    assert wanted <= shown | parts


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        taken = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not taken & cells
        cells |= taken
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian's prometheus)")
def test_promtool_can_read_the_queries(tmp_path: Path) -> None:
    rules = [{"record": f"q{n}", "expr": query} for n, query in enumerate(queries())]
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = run_tool(["promtool", "check", "rules", path], 60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
