"""A network of a test's own: what is said to all of it reaches nobody else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.peers import program

_SCRIPT = Path(__file__).with_suffix(".sh")

#: The address that this machine has there.
ADDRESS = "10.99.0.1"

_NAMESPACES = ["--net", "--mount", "--pid", "--fork", "--kill-child"]
_AVAHI = {"avahi-daemon": "avahi-daemon", "avahi-browse": "avahi-utils", "dbus-daemon": "dbus"}


def in_a_lan(*command: str, avahi: bool = False) -> list[str]:
    """The command that runs another one there; all that it starts ends with it.

    `avahi`: with Avahi's daemon, which wants to be root of the machine. Skips where that can't be.
    """
    program("ip", "iproute2")
    unshare = [program("unshare", "util-linux"), *_NAMESPACES]
    if avahi:
        for name, package in _AVAHI.items():
            program(name, package)
        if os.geteuid() != 0:
            pytest.skip("avahi-daemon runs as root only")
    elif os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    prefix = [*unshare, "sh", str(_SCRIPT), *(["avahi"] if avahi else [])]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no network of our own: {probe.stderr.strip()}")
    return [*prefix, *command]
