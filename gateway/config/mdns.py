"""Whether and how the ports are announced by multicast DNS, as the YAML says it.

What is announced is mdns/records.py's matter.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final

import yaml

from gateway.config.document import MAX_INSTANCE_CHARS, MdnsConfig
from gateway.config.yaml_lines import (
    Kind,
    Problems,
    is_quoted,
    is_refused,
    known_entries,
    refuse,
    scalar_text,
)

_MAX_INTERFACES: Final = 32


def _read_instance_name(node: yaml.Node) -> str:
    text = scalar_text(node)
    if not re.fullmatch(rf"[!-~]([ -~]{{0,{MAX_INSTANCE_CHARS - 2}}}[!-~])?", text):
        raise ValueError
    return text


def _read_interfaces(node: yaml.Node) -> tuple[str, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise ValueError("not a list")
    if not 1 <= len(node.value) <= _MAX_INTERFACES:
        raise ValueError
    return tuple(_interface(scalar_text(item)) for item in node.value)


def _interface(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        # What the kernel allows for a name, but colons, of which mistyped addresses have some.
        if not re.fullmatch(r"[!-.0-9;-~]{1,15}", text):
            raise ValueError from None
        return text


_KEYS: Final = {
    "instance_name": Kind(
        f"1 to {MAX_INSTANCE_CHARS} printable ASCII characters", _read_instance_name
    ),
    "interfaces": Kind(
        "a list of network interfaces, by name or IP address (eth0)", _read_interfaces
    ),
}


def read_mdns(_line: int, node: yaml.Node, problems: Problems) -> MdnsConfig | None:
    """The value of `mdns`; None for `false`, and for what is wrong, which is added."""
    if isinstance(node, yaml.ScalarNode):
        if node.value not in {"true", "false"} or is_quoted(node):
            refuse(node, "mdns", _ACCEPTED, problems)
        return MdnsConfig() if node.value == "true" else None
    if not isinstance(node, yaml.MappingNode) or is_refused(node):
        refuse(node, "mdns", _ACCEPTED, problems)
        return None
    values: dict[str, Any] = {}
    for name, entry in known_entries(node, "mdns", tuple(_KEYS), problems).items():
        try:
            values[name] = _KEYS[name].read(entry.value)
        except ValueError as exc:
            accepted = _KEYS[name].accepted
            refuse(entry.value, f"mdns.{name}", accepted, problems, reason=str(exc))
    return MdnsConfig(**values)


_ACCEPTED: Final = "true, false or a mapping with instance_name, interfaces"
