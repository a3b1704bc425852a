"""Log files of ports that would overwrite each other, or another file that the gateway needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gateway.config.document import pool_member_name
from gateway.config.unique import Section
from gateway.config.wording import quoted
from gateway.config.yaml_lines import Problems


@dataclass(frozen=True, slots=True)
class _LogFile:
    """One log file: of which port, and how many rotated files it may have (PATH.1, PATH.2, ...)."""

    path: str
    port: Section
    keep: int

    @property
    def line(self) -> int:
        """The line of the key; the line of the port's name if the value is the default."""
        return self.port.lines.get("log_file") or self.port.lines["name"]


def check_log_files(
    ports: list[Section], problems: Problems, others: Mapping[str, str], *, with_files: bool
) -> None:
    """Refuse log files that are the same, or named like a rotated file of another, or in `others`.

    `others` maps paths to descriptions (`the token`). With `with_files` paths are compared after
    following links, which blocks; else as they are written.
    """
    resolve = os.path.realpath if with_files else os.path.normpath
    taken = {str(resolve(path)): description for path, description in others.items()}
    found: dict[str, _LogFile] = {}
    for log_file in _log_files(ports, resolve):
        first = found.setdefault(log_file.path, log_file)
        if log_file.path in taken:
            _refuse(log_file, f"is {taken[log_file.path]}", problems)
        elif first is not log_file:
            _refuse(log_file, f"is that of line {first.line}", problems)
    refused: set[int] = set()
    for log_file in found.values():
        base, _, number = log_file.path.rpartition(".")
        rotated = found.get(base)
        if rotated is None or not number.isascii() or not number.isdecimal():
            continue
        if str(int(number)) == number and 1 <= int(number) <= rotated.keep:
            if id(log_file.port) not in refused:  # one of the ports of a pool is enough
                _refuse(log_file, f"is a rotated file of that of line {rotated.line}", problems)
            refused.add(id(log_file.port))


def _log_files(ports: list[Section], resolve: Callable[[str], str]) -> Iterator[_LogFile]:
    for port in ports:
        path, name = port.values.get("log_file"), port.values.get("name")
        if path is None or name is None:
            continue
        tcp = port.values.get("tcp")
        names = [name]
        if isinstance(tcp, range) and "{name}" in path:
            names = [pool_member_name(name, number) for number in tcp]
        keep = port.values.get("log_keep", 0)
        for each in names:
            yield _LogFile(resolve(path.replace("{name}", each)), port, keep)


def _refuse(log_file: _LogFile, reason: str, problems: Problems) -> None:
    problem = f"log_file {quoted(log_file.path)} {reason}"
    problems.add(log_file.line, log_file.port.path, problem, "another log_file for each port")
