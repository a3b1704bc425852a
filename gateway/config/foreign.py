"""Recognise configurations of other programs that are given to the gateway."""

from __future__ import annotations

import re
from typing import Final

#: Maps their keys to the gateway's.
_DOCS: Final = "docs/migrating.md"

#: Lines of each program's files that no file of the gateway has.
_PROGRAMS: Final = (
    ("ser2net", re.compile(r"(?m)^(connection|define|default|rotator): +&|^ +accepter: ")),
    ("ser2net 3", re.compile(r"(?m)^([\w.:]+,)?\d+:(raw|rawlp|telnet|off):\d+:/dev/\S+")),
    ("labgrid", re.compile(r"(?m)^targets:|^ +(- +)?\w*(SerialPort|SerialDriver|RemotePlace):")),
    ("conserver", re.compile(r"(?m)^ *(console|default|config|access|break) +[\w*.:/-]+ *\{")),
)


def program_of(text: str) -> str:
    """The program whose configuration a text is, empty if none is recognised."""
    if re.search(r"(?m)^ports:", text):
        return ""
    return next((name for name, has in _PROGRAMS if has.search(text)), "")


def explained(program: str) -> tuple[str, str]:
    """Return problem and remedy of such a file."""
    return f"configuration of {program}", f"one of esp-gateway ({_DOCS} maps the keys)"
