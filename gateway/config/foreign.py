"""Configurations of other programs that are given to the gateway: whose they are."""

from __future__ import annotations

import re
from typing import Final

#: docs/migrating.md has what each becomes here.
_DOCS: Final = "docs/migrating.md"

#: What a file of each program has in it and ours never has.
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
    """The problem with such a file, and what is expected."""
    return f"configuration of {program}", f"one of esp-gateway ({_DOCS} has what each key becomes)"
