"""Exit codes are what scripts of others depend on: once told, they stay."""

import re
from pathlib import Path

from gateway.flash.outcome import Outcome
from gateway.web.page import interface

DOCS = Path(__file__).parents[2] / "docs" / "remote-flashing.md"


def test_exit_codes_are_those_that_were_told() -> None:
    assert {outcome.value: outcome.exit_code for outcome in Outcome} == {
        "written": 0,
        "failed": 1,
        "wrong-input": 2,
        "unreachable": 3,
        "not-allowed": 4,
        "busy": 5,
        "absent": 6,
        "no-contact": 7,
        "refused": 8,
        "incomplete": 9,
        "not-verified": 10,
        "not-reset": 11,
        "not-stored": 12,
        "no-esptool": 13,
    }


def test_the_documentation_has_the_same_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| `([a-z-]+)` \| .", DOCS.read_text(), re.MULTILINE)
    assert {name: int(code) for code, name in rows} == {
        outcome.value: outcome.exit_code for outcome in Outcome
    }


def test_the_interface_is_described_with_the_same_words() -> None:
    described = interface()["components"]["schemas"]["flash_outcome"]["enum"]
    assert described == [outcome.value for outcome in Outcome]
