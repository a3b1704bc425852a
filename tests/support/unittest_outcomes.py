"""Runs the unittest tests of one module of pyserial's suite on one URL, for test_pyserial_suite.

A process of its own, started with the interpreter of the client under test:
`unittest_outcomes.py MODULE URL [TEST_ID ...]` prints one line of JSON, test id -> outcome.
"""

from __future__ import annotations

import importlib
import json
import sys
import unittest
from typing import Any


class _Outcomes(unittest.TestResult):
    def __init__(self) -> None:
        super().__init__()
        self.by_id: dict[str, str] = {}

    def _note(self, test: unittest.TestCase, outcome: str) -> None:
        # A failure stays one, whatever the same test's clean-up adds.
        if self.by_id.get(test.id(), "passed") == "passed":
            self.by_id[test.id()] = outcome

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest's name
        super().addSuccess(test)
        self._note(test, "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802 - as above
        super().addSkip(test, reason)
        self._note(test, f"skipped: {reason}")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802 - as above
        super().addFailure(test, err)
        self._note(test, f"failed: {err[1]}")

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802 - as above
        super().addError(test, err)
        self._note(test, f"error: {err[1]}")


def _tests(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    found: list[unittest.TestCase] = []
    for each in suite:
        found += _tests(each) if isinstance(each, unittest.TestSuite) else [each]
    return found


def main(name: str, url: str, *ids: str) -> None:
    """Run the tests of the module, those of `ids` only if there are any."""
    module: Any = importlib.import_module(name)
    module.PORT = url
    tests = _tests(unittest.TestLoader().loadTestsFromModule(module))
    outcomes = _Outcomes()
    unittest.TestSuite(test for test in tests if not ids or test.id() in ids).run(outcomes)
    sys.stdout.write("\n" + json.dumps(outcomes.by_id) + "\n")


main(*sys.argv[1:])
