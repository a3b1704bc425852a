"""Machines that are network namespaces of this one, with cables between them that can be pulled.

For what loopback can't show: a peer that is gone without a word. Needs root, or a kernel that lets
ordinary users make namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Self

_TOOLS = ("unshare", "nsenter", "ip")

#: Says that the namespace is there, and keeps it until its standard input ends.
_KEEPER = ("sh", "-c", "echo; exec cat")

_LIMIT_S = 20.0


def why_not() -> str | None:
    """Why there can be no cables here; None if nothing speaks against it."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    try:
        with Machine() as ours, Machine(beside=ours) as theirs:
            Cable(ours, theirs, network=0)
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {(error.stderr or str(error)).strip()}"
    return None


class Machine:
    """A network of its own, loopback included; lasts as long as it is a context.

    Those that shall be connected are made `beside` each other: an ordinary user is root in one
    user namespace only.
    """

    def __init__(self, beside: Machine | None = None) -> None:
        self._beside = beside
        self._keeper: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """A process in it."""
        assert self._keeper is not None
        return self._keeper.pid

    @property
    def enter(self) -> list[str]:
        """What to put in front of a command that shall run there."""
        user = [] if _is_root() else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self.pid}", *user, "--net"]

    def ip(self, *arguments: str) -> None:
        """Run `ip` there; CalledProcessError when it fails."""
        command = [*self.enter, "ip", *arguments]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S)

    def __enter__(self) -> Self:
        if self._beside is None:
            make = ["unshare", *([] if _is_root() else ["--user", "--map-root-user"])]
        else:
            same_user = [part for part in self._beside.enter if part != "--net"]
            make = ["unshare"] if _is_root() else [*same_user, "unshare"]
        command = [*make, "--net", *_KEEPER]
        pipe = subprocess.PIPE
        self._keeper = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self._keeper.stdout is not None
        if not self._keeper.stdout.readline():
            _, said = self._keeper.communicate(timeout=_LIMIT_S)
            raise subprocess.CalledProcessError(self._keeper.returncode, command, stderr=said)
        self.ip("link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._keeper is not None
        self._keeper.communicate(timeout=_LIMIT_S)


class Cable:
    """Between two machines; the first is 10.77.NETWORK.1, the second 10.77.NETWORK.2."""

    def __init__(self, near: Machine, far: Machine, network: int) -> None:
        self.near_address = f"10.77.{network}.1"
        self._name = f"cable{network}"
        self._network = network
        self._near = near
        self._far = far
        ends = ("peer", "name", self._name, "netns", str(far.pid))
        near.ip("link", "add", self._name, "type", "veth", *ends)
        for machine, host in ((near, 1), (far, 2)):
            self._set_up(machine, host)

    def pull(self) -> None:
        """Nothing gets through any more, and no connection is told."""
        self._far.ip("link", "set", self._name, "down")

    def move_to(self, machine: Machine) -> None:
        """The far machine is another one now, with the same address; it knows no connections."""
        self._far.ip("link", "set", self._name, "netns", str(machine.pid))
        self._far = machine
        self._set_up(machine, 2)

    def _set_up(self, machine: Machine, host: int) -> None:
        address = f"10.77.{self._network}.{host}/24"
        machine.ip("address", "add", address, "dev", self._name)
        machine.ip("link", "set", self._name, "up")


def _is_root() -> bool:
    return os.geteuid() == 0
