"""Exit codes are what scripts of others depend on: once told, they stay."""

from gateway.flash_outcome import Outcome


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
