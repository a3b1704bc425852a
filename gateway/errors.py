"""Errors whose text is for a person who can act on it: an operator or a client's user.

Programming errors are not here: they stay what Python raises. Nothing of the package is imported,
so that every module can raise them.
"""

from __future__ import annotations

from dataclasses import dataclass


class GatewayError(Exception):
    """Base of the errors of the package; the text is one line for a person."""


@dataclass(frozen=True)
class ConfigProblem:
    """One mistake in a configuration file, or one thing to warn of.

    `line` counts from 1, 0 is the file as a whole (it can't be read). `key` is the path of keys to
    the section that is concerned (`ports[2].tls`, list items count from 0), empty for the file.
    `problem` is the cause (`invalid tcp '70000'`), `expected` the remedy, empty where `problem` has
    it. As text it is one line in the form of a compiler's.
    """

    file: str
    line: int
    key: str
    problem: str
    expected: str = ""
    is_warning: bool = False

    def __str__(self) -> str:
        parts = [f"{self.file}:{self.line}" if self.line else self.file]
        parts += ["warning"] if self.is_warning else []
        parts += [self.key] if self.key else []
        parts += [self.problem, f"expected {self.expected}"] if self.expected else [self.problem]
        return ": ".join(parts)


class ConfigError(GatewayError):
    """All mistakes of a configuration file at once, a line each; for the operator."""

    def __init__(self, problems: list[ConfigProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class DeviceError(GatewayError):
    """Why a device can't be opened or has stopped working; for the operator."""


class DeviceAbsentError(DeviceError):
    """The device is not plugged in, which is a normal state: the port waits for it."""


class DevicePermissionError(DeviceError):
    """The device may not be opened; right after it was plugged in, the mode is not set yet."""


class ClientError(GatewayError):
    """Why a client is not served, in one line; for the client."""


class PortLostError(ClientError):
    """An operation on a port will not be done: the port was lost, closed or taken."""
