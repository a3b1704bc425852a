"""How the values of a port are written in the YAML: names, hosts, addresses, resets.

Which keys take them, and what must be unique, is document.py's matter.
"""

from __future__ import annotations

import ipaddress
import re
from enum import Enum
from typing import Final

import yaml

from gateway.config.document import Address
from gateway.config.wording import MAX_REASON_CHARS, clipped
from gateway.config.yaml_lines import (
    Kind,
    Problems,
    WrongPartsError,
    known_entries,
    one_of,
    refuse,
    scalar_text,
)
from gateway.protocol.reset import AUTO_REST, HardReset, Lines, LinesAtRest, Reset, parse_sequence


def _read_name(node: yaml.Node) -> str:
    text = scalar_text(node)
    # It becomes part of paths, URLs and command lines, where `..`, `.x` and `-x` mean something.
    if not re.fullmatch(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,31}", text):
        raise ValueError
    return text


#: Underscores are no part of host names by the RFCs, but of names in use.
_HOST_LABEL: Final = r"[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?"


def _read_host(node: yaml.Node) -> str:
    return _checked_host(scalar_text(node))


def _checked_host(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        # A name that ends in a number is a mistyped IPv4 address (RFC 1123, 2.1).
        is_name = len(text) <= 253 and re.fullmatch(
            rf"({_HOST_LABEL}\.)*(?![0-9]+\.?$){_HOST_LABEL}\.?", text
        )
        if not is_name:
            raise ValueError from None
    return text


def _read_address(node: yaml.Node) -> Address:
    return read_address(scalar_text(node))


def read_address(text: str, *, first_port: int = 1) -> Address:
    """HOST:PORT with a port number from `first_port` on; ValueError for everything else."""
    host, colon, number = text.rpartition(":")
    is_number = re.fullmatch(r"0|[1-9][0-9]{0,4}", number)
    if not colon or not is_number or not first_port <= int(number) <= 65535:
        raise ValueError
    in_brackets = host.startswith("[") and host.endswith("]")
    host = _checked_host(host[1:-1] if in_brackets else host)
    # Without brackets there is no telling where an IPv6 address ends; around others they are odd.
    if in_brackets != (":" in host):
        raise ValueError
    return Address(host, int(number))


def _read_path(node: yaml.Node) -> str:
    text = scalar_text(node)
    if not text.isprintable() or not text.startswith("/") or text.endswith("/"):
        raise ValueError
    return text


def _read_log_file(node: yaml.Node) -> str | None:
    return None if scalar_text(node) == "none" else _read_path(node)


NAME: Final = Kind("1 to 32 of a-z A-Z 0-9 _ . -, no . or - first", _read_name)
HOST: Final = Kind("an IP address or a host name", _read_host)
ADDRESS: Final = Kind("HOST:PORT, an IPv6 address in brackets", _read_address)
ABSOLUTE_PATH: Final = Kind("an absolute path", _read_path)
LOG_FILE: Final = Kind("an absolute path or none", _read_log_file)


def _name_or_sequence(names: type[Enum]) -> Kind:
    """The kind of value that is one of some names or a reset sequence."""
    named = one_of(names)

    def read(node: yaml.Node) -> object:
        text = scalar_text(node)
        if "|" not in text and not re.fullmatch("[DRUWB][0-9.,]+", text, re.IGNORECASE):
            return named.read(node)
        try:
            return parse_sequence(text)
        except ValueError as exc:
            raise ValueError(clipped(str(exc), MAX_REASON_CHARS)) from exc

    return Kind(f"{named.accepted} or a reset sequence", read)


_LINE_WORDS: Final = {"on": True, "true": True, "off": False, "false": False}
_ONE_LINE: Final = "on, off"


def _read_rest(node: yaml.Node) -> LinesAtRest:
    """A line that is not given is as the other: for most boards that is the harmless way."""
    if isinstance(node, yaml.ScalarNode):
        if scalar_text(node) != "auto":
            raise ValueError
        return AUTO_REST
    if not isinstance(node, yaml.MappingNode):
        raise ValueError
    parts = Problems("")
    lines: dict[str, bool] = {}
    for name, entry in known_entries(node, "", ("dtr", "rts"), parts).items():
        # YAML reads `on` as true, in quotes as text: both mean the same here.
        word = entry.value.value if isinstance(entry.value, yaml.ScalarNode) else None
        if word in _LINE_WORDS:
            lines[name] = _LINE_WORDS[word]
        else:
            refuse(entry.value, name, _ONE_LINE, parts)
    if parts.found:
        raise WrongPartsError(parts.found)
    if not lines:
        raise ValueError
    dtr, rts = lines.get("dtr"), lines.get("rts")
    dtr, rts = rts if dtr is None else dtr, dtr if rts is None else rts
    return LinesAtRest(Lines(dtr=bool(dtr), rts=bool(rts)))


REST: Final = Kind("auto or a mapping of dtr, rts (on, off)", _read_rest)
RESET: Final = _name_or_sequence(Reset)
HARD_RESET: Final = _name_or_sequence(HardReset)
