"""A file that keeps what the service must know after a restart, whole at every moment.

Blocks, so it is for a control thread. What is in the file is its user's matter.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.inputs import read_regular_file

#: A pool table of 4096 records takes 0.6 MB.
MAX_BYTES = 4_000_000


def default_folder(environment: Mapping[str, str]) -> Path:
    """Where systemd says (StateDirectory=), else where a user's programs keep such things."""
    if given := environment.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    home = environment.get("XDG_STATE_HOME", "")
    if home.startswith("/"):
        return Path(home) / "esp-gateway"
    try:
        return Path("~/.local/state/esp-gateway").expanduser()
    except RuntimeError:  # neither $HOME nor an entry of the user in /etc/passwd
        return Path("/var/lib/esp-gateway")


def read_state(path: Path) -> Any:
    """What was written last, None if nothing was.

    Raises OSError, or ValueError for a file that was not written by `write_state`.
    """
    try:
        data = read_regular_file(path, MAX_BYTES).data
    except FileNotFoundError:
        return None
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def set_aside(path: Path) -> None:
    """Keep a file that could not be read, for a person to look at. Raises OSError."""
    path.replace(path.with_name(f"{path.name}.unreadable"))


def write_state(path: Path, state: Any) -> None:
    """Put `state` in the place of what was there.

    Whatever happens meanwhile, a later `read_state` gives either all of it or what was there
    before. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    try:
        with new.open("w", encoding="utf-8") as file:
            json.dump(state, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # the new name
    finally:
        os.close(folder)
