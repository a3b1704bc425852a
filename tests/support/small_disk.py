"""A disk of a few KiB for one process of a test, and what lies on it, seen from outside.

It is a tmpfs in a mount namespace of that process's own, so that nobody has to be root and nothing
stays mounted.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.peers import program

_MOUNT_AND_RUN = 'mount -t tmpfs -o "$1" small-disk "$2" && shift 2 && exec "$@"'


def with_small_disk(folder: Path, options: str) -> list[str]:
    """The words before a command that has a tmpfs with these mount options on `folder`.

    The command keeps its process id. Skips where that can't be.
    """
    program("mount", "mount")
    unshare = [program("unshare", "util-linux"), "--user", "--map-root-user", "--mount"]
    prefix = [*unshare, "sh", "-c", _MOUNT_AND_RUN, "sh", options, str(folder)]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no file system of our own: {probe.stderr.strip()}")
    return prefix


def names_on(folder: Path, pid: int) -> list[str]:
    """What the process sees in the folder."""
    return sorted(path.name for path in Path(f"/proc/{pid}/root{folder}").iterdir())
