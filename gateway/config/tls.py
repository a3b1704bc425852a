"""How TLS is written in the YAML, which of its keys suit a port, and whether its files do.

What is in the files is net/tls_context.py's matter.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import yaml

from gateway.config.unique import Section
from gateway.config.values import ABSOLUTE_PATH, HOST
from gateway.config.wording import quoted
from gateway.config.yaml_lines import (
    Kind,
    Problems,
    WrongPartsError,
    is_refused,
    join,
    known_entries,
    refuse,
    scalar_text,
)
from gateway.errors import ConfigProblem
from gateway.net.tls_context import Tls, TlsFileError, doubtful_files, wrong_files

#: The keys of `tls`; what each is read to is the field of Tls of that name.
TLS_KEYS: Final = {
    "cert": ABSOLUTE_PATH,
    "key": ABSOLUTE_PATH,
    "client_ca": ABSOLUTE_PATH,
    "ca": ABSOLUTE_PATH,
    "server_name": HOST,
}

#: Those that are for one direction only.
_LISTENING_ONLY: Final = ("client_ca",)
_CONNECTING_ONLY: Final = ("ca", "server_name")


def _read_tls(node: yaml.Node) -> Tls | None:
    if not isinstance(node, yaml.MappingNode) or is_refused(node):
        if scalar_text(node) != "none":
            raise ValueError
        return None
    parts = Problems("")
    found = known_entries(node, "", tuple(TLS_KEYS), parts)
    values: dict[str, Any] = {}
    for name, entry in found.items():
        try:
            values[name] = TLS_KEYS[name].read(entry.value)
        except ValueError as exc:
            refuse(entry.value, name, TLS_KEYS[name].accepted, parts, reason=str(exc))
    for name, other in (("cert", "key"), ("key", "cert")):
        if name in found and other not in found:
            parts.add(found[name].line, "", f"{name} without {other}", "both or neither")
    if parts.found:
        raise WrongPartsError(parts.found)
    return Tls(**values, lines=tuple((name, entry.line) for name, entry in found.items()))


TLS: Final = Kind(f"none or a mapping of {', '.join(TLS_KEYS)}", _read_tls)


def check_tls_fits(port: Section, line: int, problems: Problems) -> None:
    """Refuse keys that mean nothing in the port's direction, and none where some are needed.

    `line` is the port's. Of the defaults, keys that do not fit are not used.
    """
    tls = port.values.get("tls")
    if not isinstance(tls, Tls):
        return
    path = join(port.path, "tls")
    is_own = "tls" in port.lines
    connects = "connect" in port.lines
    unfit = _LISTENING_ONLY if connects else _CONNECTING_ONLY
    beside = "connect" if connects else "tcp"
    for key, key_line in tls.lines if is_own else ():
        if key in unfit:
            expected = f"it in ports that {'listen' if connects else 'connect'} only"
            problems.add(key_line, path, f"{key} with {beside}", expected)
    if not connects and tls.cert is None:
        problem = f"tls {'' if is_own else 'of the defaults '}without cert and key"
        expected = "both for a port that listens"
        problems.add(port.lines.get("tls", line), port.path, problem, expected)


def check_tls_files(sections: list[Section], problems: Problems) -> list[ConfigProblem]:
    """Refuse files that can't be used; return warnings of others. Blocks."""
    warnings: list[ConfigProblem] = []
    now = datetime.now(UTC)
    for section in sections:
        tls = section.values.get("tls")
        if "tls" not in section.lines or not isinstance(tls, Tls):
            continue
        lines = dict(tls.lines)
        path = join(section.path, "tls")
        for error in wrong_files(tls):
            problems.add(lines[error.key], path, _problem_of(error), error.expected)
        for error in doubtful_files(tls, now):
            what = _problem_of(error), error.expected
            where = problems.file, lines[error.key], path
            warnings.append(ConfigProblem(*where, *what, is_warning=True))
    return warnings


def _problem_of(error: TlsFileError) -> str:
    return f"invalid {error.key} {quoted(error.path)} ({error.reason})"
