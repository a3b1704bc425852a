"""Warnings of values that can be served and are seldom meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from gateway.config.device import same_path
from gateway.config.document import tcp_text
from gateway.config.unique import Section
from gateway.config.wording import quoted
from gateway.errors import ConfigProblem
from gateway.protocol.reset import Reset
from gateway.protocol.serial_settings import FlowControl

#: Numbers that the kernel gives out in the order in which it detects devices.
_NUMBERED: Final = re.compile(r"/dev/tty(USB|ACM)\d+")

#: Below it, a process needs a capability that the service does without.
_FIRST_UNPRIVILEGED: Final = 1024


def warnings_of(sections: Iterable[Section], file: str) -> list[ConfigProblem]:
    """Warnings of the keys that these sections give themselves, those that are valid."""
    return [
        ConfigProblem(file, section.lines[key], section.path, problem, expected, is_warning=True)
        for section in sections
        for key, problem, expected in _doubts(section)
        if key in section.lines
    ]


def _doubts(section: Section) -> Iterator[tuple[str, str, str]]:
    """Yield key, problem and remedy; of values from the defaults too, where `section` is a port."""
    values = section.values
    device = values.get("device")
    tcp: int | range = values.get("tcp") or 0
    for path in device.paths if device is not None and device.simulated is None else ():
        if _NUMBERED.fullmatch(same_path(path)):
            problem = f"device {quoted(path)} may be another board after a restart or a replug"
            remedy = "a match or a name in /dev/serial (esp-gateway devices --yaml)"
            yield "device", problem, remedy
    first = tcp.start if isinstance(tcp, range) else tcp
    if 0 < first < _FIRST_UNPRIVILEGED:
        name = "listen" if section.path == "http" else "tcp"
        problem = f"{name} '{tcp_text(tcp)}' is privileged, the service can't listen there"
        yield "tcp", problem, f"{_FIRST_UNPRIVILEGED} or higher, or CAP_NET_BIND_SERVICE"
    rtscts = values.get("flow_control") is FlowControl.RTSCTS
    if rtscts and values.get("reset", Reset.AUTO) is not Reset.NONE:
        problem = "flow_control 'rtscts' takes RTS, which resets ESP boards"
        yield "flow_control", problem, "none, or reset: none for a board with RTS and CTS"
