"""A short `make hostile`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools import hostile


@pytest.mark.timeout(1200)
def test_attackers_disturb_neither_a_flasher_nor_a_console(tmp_path: Path) -> None:
    # Few, for the sake of the tests beside it: a hundred for ten minutes are `make hostile`.
    assert hostile.run(tmp_path, seconds=10, seed=1, count=12) == 0
