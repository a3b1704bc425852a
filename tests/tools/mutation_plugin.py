"""What tests.tools.mutation needs of pytest: `-p tests.tools.mutation_plugin`.

Under coverage, tells it which test runs and writes down how long each takes; otherwise runs the
chosen tests in their order, and ends the run when a test takes much longer than that.
"""

from __future__ import annotations

import faulthandler
import json
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final

import coverage
import pytest

#: How much longer than without a mutant a test may take: a factor, and seconds besides.
FACTOR: Final = 10.0
GRACE_S: Final = 20.0

_FOLDER: Final = Path(os.environ["MUTATION_FOLDER"])
_TIMES_FILE: Final = _FOLDER / "times.json"
_IS_MEASURING: Final = "MUTATION_COVERAGE" in os.environ
_times: dict[str, float] = {} if _IS_MEASURING else json.loads(_TIMES_FILE.read_text())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave only the chosen tests, in their order."""
    if not _IS_MEASURING:
        by_id = {item.nodeid: item for item in items}
        chosen = json.loads((_FOLDER / "chosen.json").read_text())
        items[:] = [by_id[test] for test in chosen if test in by_id]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run one test."""
    running = coverage.Coverage.current()
    if _IS_MEASURING and running is not None:
        running.switch_context(item.nodeid)
    began_s = time.monotonic()
    try:
        return (yield)
    finally:
        if _IS_MEASURING:
            _times[item.nodeid] = time.monotonic() - began_s


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Put another limit in the place of conftest's."""
    if not _IS_MEASURING:
        limit_s = FACTOR * _times.get(item.nodeid, 0.0) + GRACE_S
        faulthandler.dump_traceback_later(limit_s, exit=True)


def pytest_sessionfinish() -> None:
    """Write the times down."""
    if _IS_MEASURING:
        _TIMES_FILE.write_text(json.dumps(_times))
