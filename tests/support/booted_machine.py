"""A machine with systemd as its process 1, in namespaces of this one: see booted_machine.sh.

For what only systemd itself can show: that the unit starts, and works inside its sandbox.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import pytest

from tests.support.processes import run_tool

SCRIPT = Path(__file__).with_suffix(".sh")
SYSTEMD = Path("/lib/systemd/systemd")

BOOT_LIMIT_S = 60.0
COMMAND_LIMIT_S = 120.0
_POLL_S = 0.1

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def why_not() -> str | None:
    """Why no machine can be booted here; None if nothing speaks against it."""
    if os.geteuid() != 0:
        return "only root can make namespaces with a systemd in them"
    tools = ("unshare", "nsenter", "setpriv", "pivot_root", "ip", "systemctl")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if not SYSTEMD.exists():
        missing.append(str(SYSTEMD))
    if missing:
        return f"not installed: {', '.join(missing)}"
    if "cgroup2" not in Path("/proc/filesystems").read_text():
        return "the kernel has no version 2 of control groups"
    return None


def debian_python() -> str | None:
    """Debian's own interpreter, which the sandbox can see; None if it can't be used."""
    test = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    try:
        done = subprocess.run(["/usr/bin/python3", "-c", test], check=False, capture_output=True)
    except FileNotFoundError:
        return None
    return "/usr/bin/python3" if done.returncode == 0 else None


class BootedMachine:
    """Runs while it is a context; `source` is at /srv there, read-only.

    The test is skipped when this machine does not let it boot.
    """

    def __init__(self, folder: Path, source: Path) -> None:
        self._source = source
        self._folder = folder / f"machine-{os.getpid()}"
        self._console = folder / "console"
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def run(
        self,
        *command: str | Path,
        outside_network: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine as root, with this machine's network if asked for."""
        namespaces = ["--mount", "--pid", "--ipc", "--uts", "--cgroup"]
        if not outside_network:
            namespaces.append("--net")
        variables = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **(environment or {})}
        clean = ["env", "--ignore-environment", *(f"{k}={v}" for k, v in variables.items())]
        enter = ["nsenter", f"--target={self._init}", *namespaces]
        return run_tool([*enter, *clean, *command], COMMAND_LIMIT_S)

    def run_client(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine in the other's network."""
        return run_tool(["nsenter", f"--target={self._init}", "--net", *command], COMMAND_LIMIT_S)

    def output_of(self, *command: str | Path) -> str:
        """What a command prints that must succeed."""
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def property_of(self, unit: str, name: str) -> str:
        """A property of a unit, as systemd has it now."""
        return self.output_of("systemctl", "show", unit, f"--property={name}", "--value").strip()

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that can't be waited for."""
        deadline = time.monotonic() + COMMAND_LIMIT_S
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not come; {self._said()}")
            time.sleep(_POLL_S)

    def real_pid(self, pid: str) -> int:
        """A process of the machine, as this machine's kernel counts."""
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                lines = status.read_text().splitlines()
            except OSError:  # it has ended
                continue
            fields = next(line.split() for line in lines if line.startswith("NSpid:"))
            is_inside = len(fields) == 3 and _namespace(status.parent) == _namespace(
                Path(f"/proc/{self._init}")
            )
            if is_inside and fields[2] == pid:
                return int(fields[1])
        pytest.fail(f"no process {pid} in the machine")

    def __enter__(self) -> Self:
        self._folder.mkdir()
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "bash", SCRIPT, self._folder, self._source],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_for_boot()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _wait_for_boot(self) -> None:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        deadline = time.monotonic() + BOOT_LIMIT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            self._init = int((children.read_text().split() or ["0"])[0])
            name = Path(f"/proc/{self._init}/comm")
            if self._init and name.exists() and name.read_text().strip() == "systemd":
                state = self.run("systemctl", "is-system-running", "--wait").stdout.strip()
                if state in {"running", "degraded"}:
                    return
            time.sleep(_POLL_S)
        pytest.skip(f"this machine does not let systemd boot in namespaces; {self._said()}")

    def _said(self) -> str:
        return "its console:\n" + self._console.read_text(errors="replace")

    def _end(self) -> None:
        assert self._process is not None
        self._process.kill()  # and process 1 with it: unshare --kill-child
        self._process.wait()
        # Its control groups are empty as soon as the kernel is done with it.
        tidy = (
            'mount -t cgroup2 none "$0/cgroup" && cd "$0/cgroup/${0##*/}" && '
            "for i in $(seq 50); do find . -depth -type d -exec rmdir {} + 2>/dev/null; "
            '[ -z "$(ls -d */ 2>/dev/null)" ] && cd .. && rmdir "${0##*/}" && exit; '
            "sleep 0.1; done"
        )
        run_tool(["unshare", "--mount", "bash", "-c", tidy, self._folder], COMMAND_LIMIT_S)


def _namespace(process: Path) -> str:
    try:
        return str((process / "ns" / "pid").readlink())
    except OSError:
        return ""
