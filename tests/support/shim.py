"""Builds and drives tests/shim/modem_shim.c, which gives ptys DTR and RTS.

With it, a program that sets modem lines with ioctls, the gateway or one that it is compared
with, runs unchanged on a pty; the test reads what it did from a log, and a simulated board's
control socket can be told. What the shim does and where it ends is said at the top of its source.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "shim" / "modem_shim.c"

_BUILD_LIMIT_S = 60.0

#: Between two looks at the log, a file that others write.
_POLL_S = 0.01

_LOG_LINE = re.compile(r"(\d+) (\S+) (\S+) (\S+) -> ([01]) ([01])(?: errno=(\d+))?")


@dataclass(frozen=True, slots=True)
class TtyCall:
    """One call that a program made on its tty, and the lines after it.

    `name` is an ioctl's or a function's (`TIOCMSET`, `tcflush`, `open`), or `blocked` when the
    call named by `args` begins to wait for MODEM_SHIM_IOCTL_DELAY_MS, or `control-failed`.
    """

    time_ns: int  # CLOCK_MONOTONIC
    path: str  # as opened
    name: str
    args: str
    dtr: bool
    rts: bool
    errno: int | None = None


class Shim:
    """The built library with its files in one folder: the log, and what tests tell it."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.library = library
        self.log = folder / "modem_shim.log"
        self.control = folder / "modem_shim.control"
        self.delay = folder / "modem_shim.delay"
        self.counters = folder / "modem_shim.icount"
        self.modem = folder / "modem_shim.modem"
        self.unsent = folder / "modem_shim.outq"
        self.line = folder / "modem_shim.lsr"

    def env(self) -> dict[str, str]:
        """What to add to the environment of a program that shall see modem lines."""
        return {
            "LD_PRELOAD": str(self.library),
            "MODEM_SHIM_LOG": str(self.log),
            "MODEM_SHIM_CONTROL": str(self.control),
            "MODEM_SHIM_DELAY_FILE": str(self.delay),
            "MODEM_SHIM_ICOUNT_FILE": str(self.counters),
            "MODEM_SHIM_MODEM_FILE": str(self.modem),
            "MODEM_SHIM_OUTQ_FILE": str(self.unsent),
            "MODEM_SHIM_LSR_FILE": str(self.line),
        }

    def set_controls(self, sockets: Mapping[str | Path, Path]) -> None:
        """Where the lines of each tty (or link to one) go; heeded from its next open on."""
        lines = [f"{tty} {socket}\n" for tty, socket in sockets.items()]
        _replace(self.control, "".join(lines))

    def set_delay_ms(self, delay_ms: int, tty: str | Path | None = None) -> None:
        """How long control transfers to one tty or to all block from now on, those that block
        already included."""
        _replace(self.delay, f"{tty} {delay_ms}\n" if tty is not None else f"{delay_ms}\n")

    def set_counters(self, *counters: int) -> None:
        """What TIOCGICOUNT says: cts dsr rng dcd rx tx frame overrun parity brk buf_overrun."""
        _replace(self.counters, " ".join(map(str, counters)))

    def set_modem_bits(self, bits: int) -> None:
        """The board's lines in TIOCMGET: TIOCM_CTS and others."""
        _replace(self.modem, str(bits))

    def plug_loopback(self) -> None:
        """Connect RTS to CTS, and DTR to DSR and CD, as pyserial's test suite expects."""
        _replace(self.modem, "loop")

    def set_unsent_bytes(self, count: int) -> None:
        """What TIOCOUTQ says that the driver has not sent."""
        _replace(self.unsent, str(count))

    def set_line_status(self, status: int) -> None:
        """What TIOCSERGETLSR says: TIOCSER_TEMT or 0."""
        _replace(self.line, str(status))

    def calls(self, *names: str) -> list[TtyCall]:
        """What has been logged so far; with names, only calls of these names."""
        text = self.log.read_text() if self.log.exists() else ""
        calls = [_parse(line) for line in text.splitlines()]
        return [call for call in calls if not names or call.name in names]

    def wait_for_call(self, name: str, args: str | None = None, limit_s: float = 20.0) -> TtyCall:
        """The first call of that name (and these arguments), logged already or to come."""
        deadline = time.monotonic() + limit_s
        while True:
            for call in self.calls(name):
                if args is None or call.args == args:
                    return call
            assert time.monotonic() < deadline, f"no {name} in {limit_s:g} s: {self.calls()}"
            time.sleep(_POLL_S)


def build_shim(folder: Path) -> Shim:
    """Compiles the shim into `folder`; skips the test where there is no C compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed (sudo apt install gcc libc6-dev)")
    library = folder / "modem_shim.so"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = [compiler, "-shared", "-fPIC", "-std=gnu11", "-O2", "-pthread", *warnings]
    result = subprocess.run(
        [*command, "-o", library, SOURCE, "-ldl"],
        capture_output=True,
        text=True,
        timeout=_BUILD_LIMIT_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return Shim(library, folder)


def _parse(line: str) -> TtyCall:
    match = _LOG_LINE.fullmatch(line)
    assert match is not None, f"not a line of the shim's log: {line!r}"
    time_ns, path, name, args, dtr, rts, errno = match.groups()
    number = None if errno is None else int(errno)
    return TtyCall(int(time_ns), path, name, args, dtr == "1", rts == "1", number)


def _replace(path: Path, text: str) -> None:
    """At once: the shim may be reading."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
