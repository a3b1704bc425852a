"""What all tests against real tools have in common."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
