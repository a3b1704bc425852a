"""Real processes for tests: a tool that runs to its end, a service that runs meanwhile.

Each runs in a session of its own, so that killing its process group takes what it has started
along. Nothing here knows what the processes do.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

#: How long a service may take to start or to stop; on a Raspberry Pi, importing takes 2 s.
START_LIMIT_S = 20.0
STOP_LIMIT_S = 10.0

#: Between two looks at the kernel's socket table, which can't be waited for.
_POLL_S = 0.02

#: How long the pipes of a killed process may stay open: only what left its group holds them.
_PIPE_LIMIT_S = 5.0

_TCP_LISTEN = "0A"  # state in /proc/net/tcp, include/net/tcp_states.h


def run_tool(
    args: Sequence[str | Path],
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a tool to its end; its output is captured, its exit code is the caller's to judge.

    `env` is added to this process's environment. After `timeout_s` the tool's process group is
    killed and the test fails with the output so far.
    """
    with subprocess.Popen(
        args,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **(env or {})},
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            kill_group(process)
            stdout, stderr = process.communicate(timeout=_PIPE_LIMIT_S)
            pytest.fail(
                f"{args[0]} did not end within {timeout_s:g} s\n"
                f"--- stdout\n{stdout}\n--- stderr\n{stderr}",
                pytrace=False,
            )
        except BaseException:
            kill_group(process)
            raise
    return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kills a process that leads its group, and the group with it."""
    # The group's number is free for others once its leader has been waited for.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def free_tcp_port() -> int:
    """A TCP port that nobody listens on at 127.0.0.1, and that the kernel gives out rarely."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Figures:
    """What a process that runs has of the machine, from /proc."""

    pid: int

    def resident_kib(self) -> int:
        """Resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def open_files(self) -> list[str]:
        """What each of its descriptors stands for."""
        targets = []
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                targets.append(str(link.readlink()))
        return sorted(targets)

    def threads(self) -> int:
        """How many there are."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def cpu_s(self) -> float:
        """CPU time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class BackgroundProcess:
    """A process that runs while the test does; a context manager that starts and stops it.

    Its stdout and stderr are collected as lines in `log`. Leaving the context stops it with
    SIGTERM and asserts that it exits with 0 within 10 s; whatever goes wrong, it ends killed and
    its log is printed, where pytest shows it with the failure.
    """

    def __init__(self, args: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        self.args = args
        self.log: list[str] = []
        self._env = {**os.environ, **(env or {})}
        self._news = threading.Condition()
        self._log_ended = False
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """The process's id; only while it has been started and not yet stopped."""
        assert self._process is not None
        return self._process.pid

    @property
    def figures(self) -> Figures:
        """Its memory, descriptors and CPU."""
        return Figures(self.pid)

    def start(self) -> None:
        """Starts the process; returns at once."""
        self._process = subprocess.Popen(
            self.args,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._env,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"log of {self.args[0]}")
        self._reader.start()

    def wait_for_line(
        self, pattern: str, limit_s: float = START_LIMIT_S, count: int = 1
    ) -> re.Match[str]:
        """The `count`th log line, past or to come, in which the regular expression matches."""
        regex = re.compile(pattern)
        deadline = time.monotonic() + limit_s
        seen = 0
        with self._news:
            while True:
                for line in self.log[seen:]:
                    if match := regex.search(line):
                        count -= 1
                        if not count:
                            return match
                seen = len(self.log)
                if self._log_ended:
                    pytest.fail(f"ended without the log line {pattern!r}; {self._said()}")
                if not self._news.wait(deadline - time.monotonic()):
                    pytest.fail(f"no log line {pattern!r} in {limit_s:g} s; {self._said()}")

    def wait_until_listening(self, *tcp_ports: int, limit_s: float = START_LIMIT_S) -> None:
        """Waits until somebody listens on each of the ports, without connecting to them."""
        deadline = time.monotonic() + limit_s
        while missing := set(tcp_ports) - _listening_tcp_ports():
            if self._process is None or self._process.poll() is not None:
                pytest.fail(f"ended before it listened on {sorted(missing)}; {self._said()}")
            if time.monotonic() > deadline:
                pytest.fail(f"not listening on {sorted(missing)} in {limit_s:g} s; {self._said()}")
            time.sleep(_POLL_S)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends the process a signal, SIGHUP for instance."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait_for_end(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Waits until the process has ended, and returns its exit code."""
        assert self._process is not None
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still runs after {limit_s:g} s; {self._said()}")

    def stop(self) -> None:
        """SIGTERM; asserts that the process exits with 0 within 10 s. Stopping twice is fine."""
        if self._process is None:
            return
        try:
            self._process.terminate()
            exit_code = self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"still runs {STOP_LIMIT_S:g} s after SIGTERM; {self._said()}")
        self._clean_up()
        if exit_code != 0:
            pytest.fail(f"exit code {exit_code}; {self._said()}")

    def kill(self) -> None:
        """SIGKILL to the whole group, as a power cut; the exit code does not matter."""
        if self._process is not None:
            kill_group(self._process)
            self._process.wait()
            self._clean_up()

    def _clean_up(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        assert self._reader is not None
        self._reader.join(_PIPE_LIMIT_S)
        survivors = self._reader.is_alive()
        if survivors:
            # The group's number is still taken: by them.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._reader.join(_PIPE_LIMIT_S)
        self._process.stdout.close()
        self._process = None
        if survivors:
            pytest.fail(f"what it had started still ran; {self._said()}")

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self.log.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._log_ended = True
            self._news.notify_all()

    def _said(self) -> str:
        return "its log:\n" + "\n".join(self.log)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.stop()
            return
        # The test has failed already: what it found comes first, the log helps to explain it.
        self.kill()
        sys.stderr.write(f"{self.args[0]}: {self._said()}\n")


class Service(BackgroundProcess):
    """`gateway run --config FILE`, the daemon as an operator starts it.

    Asserts in the end that it has not logged a traceback either: what is raised in a callback of
    its event loop ends nothing.
    """

    def __init__(self, config: Path, env: Mapping[str, str] | None = None) -> None:
        super().__init__([sys.executable, "-m", "gateway", "run", "--config", config], env)

    def stop(self) -> None:
        """See BackgroundProcess; asserts that no traceback was logged."""
        super().stop()
        if any("Traceback" in line for line in self.log):
            pytest.fail(f"logged a traceback; {self._said()}")


def _listening_tcp_ports() -> set[int]:
    tables = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
    rows = [row for table in tables if table.exists() for row in table.read_text().splitlines()]
    fields = [row.split() for row in rows]
    return {int(row[1].rpartition(":")[2], 16) for row in fields if row[3] == _TCP_LISTEN}
