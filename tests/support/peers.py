"""Programs that nobody here wrote: where they are, and why a test without one is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

#: An ordinary user's PATH leaves out where Debian puts ser2net.
_SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

#: Debian's own interpreter, which alone sees Debian's Python packages.
_SYSTEM_PYTHON = "/usr/bin/python3"


def program(name: str, package: str) -> str:
    """The program's path; skips the test where the Debian package is missing."""
    path = shutil.which(name, path=_SEARCH_PATH)
    if path is None:
        pytest.skip(f"no {name} here (Debian package {package})")
    return path


def system_python_with(module: str, package: str) -> str:
    """An interpreter that can import a module that only Debian packages; skips without it."""
    try:
        probe = subprocess.run(
            [_SYSTEM_PYTHON, "-c", f"import {module}"], stderr=subprocess.DEVNULL, check=False
        )
    except FileNotFoundError:
        probe = None
    if probe is None or probe.returncode != 0:
        pytest.skip(f"{_SYSTEM_PYTHON} has no {module} (Debian package {package})")
    return _SYSTEM_PYTHON
