"""A program at a terminal of its own, as a person runs it: keys in, screen out."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest

#: How long a program may take to show something, or to end.
LIMIT_S = 30.0

#: Between two looks at the terminal's mode, which can't be waited for.
_POLL_S = 0.01


class Terminal:
    """A program whose stdin and stdout are a pty; a context manager that kills what still runs."""

    def __init__(
        self,
        args: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        self.screen = b""
        self._args = args
        self._limit_s = limit_s
        self._env = {**os.environ, "TERM": "dumb", **(env or {})}

    def __enter__(self) -> Self:
        self._fd, slave = pty.openpty()
        self._process = subprocess.Popen(
            self._args, stdin=slave, stdout=slave, stderr=slave, env=self._env, process_group=0
        )
        os.close(slave)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._fd)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._fd, keys)

    def wait_for(self, text: bytes, count: int = 1) -> None:
        """Wait until `text` has been shown `count` times since the start."""
        deadline = time.monotonic() + self._limit_s
        while self.screen.count(text) < count:
            if not self._read_some(deadline):
                pytest.fail(f"{text!r} was not shown {count} times:\n{self.screen.decode()}")

    def wait_until_raw(self) -> None:
        """Wait until the program gets each key as it is pressed."""
        deadline = time.monotonic() + self._limit_s
        while termios.tcgetattr(self._fd)[3] & termios.ICANON:
            if time.monotonic() > deadline:
                pytest.fail(f"the terminal stays in line mode:\n{self.screen.decode()}")
            time.sleep(_POLL_S)

    def wait_until_it_reads_keys(self) -> None:
        """Wait until the program has put the terminal into raw mode: keys before that are lost."""
        deadline = time.monotonic() + self._limit_s
        while termios.tcgetattr(self._fd)[3] & termios.ICANON:
            self._read_some(time.monotonic() + _POLL_S)
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"it never read single keys:\n{self.screen.decode()}")

    def wait_until_ended(self) -> int:
        """Wait for the program to end; return its exit code."""
        deadline = time.monotonic() + self._limit_s
        while self._read_some(deadline):
            pass
        return self._process.wait(self._limit_s)

    def _read_some(self, deadline: float) -> bool:
        readable, _, _ = select.select([self._fd], [], [], max(0, deadline - time.monotonic()))
        if not readable:
            return False
        try:
            shown = os.read(self._fd, 4096)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.screen += shown
        return bool(shown)
