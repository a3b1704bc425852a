"""What all tests against real tools have in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab import Lab, LabBoard

#: Starts a gateway with one simulated board `desk`; takes the parameters of its URL and, by name,
#: what Lab takes. The board's app runs when it is returned.
BoardOf = Callable[..., LabBoard]

#: esptool gives the ROM 0.2 s to answer when its stub is to start, and takes any later answer for
#: none. On a machine with ten tests at once a process may wait longer for its turn; over a local
#: tty it fails there just as well. Whatever else esptool does is as its users have it.
ESPTOOL_CFG = "[esptool]\nmem_end_rom_timeout = 5\n"


@pytest.fixture(autouse=True, scope="session")
def patient_esptool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path: Path = tmp_path_factory.mktemp("esptool") / "esptool.cfg"
    path.write_text(ESPTOOL_CFG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESPTOOL_CFGFILE", str(path))
        yield


@pytest.fixture
def board_of(tmp_path: Path) -> Iterator[BoardOf]:
    """See BoardOf; the gateway is stopped at the end of the test."""
    labs: list[Lab] = []
    with ExitStack() as stack:

        def start(parameters: str = "", **options: Any) -> LabBoard:
            labs.append(stack.enter_context(Lab(tmp_path, {"desk": parameters}, **options)))
            board = labs[-1].boards["desk"]
            board.wait_for_app()
            return board

        yield start
    for lab in labs:  # shown with a failure
        sys.stderr.write("\n".join(lab.service.log))
