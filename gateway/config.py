"""The operator's YAML file as frozen dataclasses; every check of it and each message.

One table, PORT_KEYS, says which keys a port has: the reader, the messages, the documentation's
test and the example's test all go by it, so a new key is a row there and a field of PortConfig.
How YAML is read with line numbers is yaml_lines.py's matter. Nothing here looks at hardware: a
device that is absent is no mistake in the file.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from gateway.protocol.reset import DEFAULT_HOLD_S
from gateway.protocol.serial_settings import FlowControl, Parity, SerialSettings, StopBits
from gateway.yaml_lines import (
    MAX_REASON_CHARS,
    Entry,
    Kind,
    Problems,
    clipped,
    compose,
    did_you_mean,
    entries,
    is_nothing,
    is_refused,
    join,
    line_of,
    one_of,
    read_text,
    scalar_text,
    seconds,
    shown,
    whole_number,
)


class Protocol(Enum):
    """What is spoken on a port's TCP connection."""

    RFC2217 = "rfc2217"  # Telnet with COM-PORT-OPTION: clients set baud rate and lines


@dataclass(frozen=True, slots=True)
class PortConfig:
    """One entry of `ports`: a device and the TCP address where it is served.

    `tcp_port` 0 means any free port; `device` is an absolute path or a sim:// URL; `hold_s` is
    how long a DTR or RTS edge may be held back (protocol/reset.py), `grace_s` how long a client
    is kept when its board leaves the bus.
    """

    name: str
    host: str
    tcp_port: int
    device: str
    serial: SerialSettings
    hold_s: float
    grace_s: float
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The whole file; at least one port, names, addresses and devices each unique."""

    ports: tuple[PortConfig, ...]


def load_config(path: Path) -> GatewayConfig:
    """Read and check a file. Raises ConfigError with every problem of it, nothing else."""
    return parse_config(read_text(path), str(path))


def parse_config(text: str, file: str) -> GatewayConfig:
    """Check the text of a file, `file` being its name in messages.

    Raises ConfigError with every problem, nothing else whatever the text is.
    """
    problems = Problems(file)
    ports = _read_file(compose(text, problems), problems)
    _check_unique(ports, problems)
    problems.raise_if_any()
    return GatewayConfig(tuple(_built(port) for port in ports))


def _read_name(node: yaml.Node) -> str:
    text = scalar_text(node)
    if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,32}", text):
        raise ValueError
    return text


#: Underscores are no part of host names by the RFCs, but of names in use.
_HOST_LABEL: Final = r"[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?"


def _read_host(node: yaml.Node) -> str:
    text = scalar_text(node)
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


def _read_device(node: yaml.Node) -> str:
    text = scalar_text(node)
    if not text.isprintable():
        raise ValueError
    if text.startswith("sim://"):
        _sim_device(text)
    elif not text.startswith("/") or text.endswith("/"):
        raise ValueError
    return text


def _sim_device(url: str) -> str:
    """The one spelling of a simulated board's URL; ValueError says what is wrong with it."""
    # Only who simulates boards pays for the simulator.
    from gateway.simulator.url import parse_url  # noqa: PLC0415

    try:
        return str(parse_url(url))
    except ValueError as exc:
        raise ValueError(clipped(str(exc), MAX_REASON_CHARS)) from exc


#: The default of a key that every port must have; such a key makes no sense under `defaults`.
REQUIRED: Final = object()


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a port: its name in the file, the kind of its value, the value if left out."""

    name: str
    kind: Kind
    default: object


_SERIAL = SerialSettings()

PORT_KEYS: Final = (
    Key("name", Kind("1 to 32 of a-z A-Z 0-9 _ . -", _read_name), REQUIRED),
    Key("tcp", whole_number(0, 65535), REQUIRED),
    Key("host", Kind("an IP address or a host name", _read_host), "127.0.0.1"),
    Key("device", Kind("an absolute path or sim://...", _read_device), REQUIRED),
    Key("baudrate", whole_number(1, 2**32 - 1), _SERIAL.baudrate),
    Key("bytesize", whole_number(5, 8), _SERIAL.bytesize),
    Key("parity", one_of(Parity), _SERIAL.parity),
    Key("stopbits", one_of(StopBits), _SERIAL.stopbits),
    Key("flow_control", one_of(FlowControl), _SERIAL.flow_control),
    Key("protocol", one_of(Protocol), Protocol.RFC2217),
    # Below 0.05 s the next command of a client on the same host comes too late (pyserial polls
    # every 50 ms); above 5 s a client that really wants both lines on would take it for a hang.
    Key("hold_s", seconds(0.05, 5), DEFAULT_HOLD_S),
    # Boards come back from a reset within 2.5 s, over a slow hub within 5.
    Key("grace_s", seconds(0, 300), 10.0),
)

_DEFAULTS_KEYS: Final = tuple(key for key in PORT_KEYS if key.default is not REQUIRED)
_FILE_KEYS: Final = ("defaults", "ports")
_ACCEPTED_FILE: Final = "a mapping with the key `ports`"
_ACCEPTED_PORTS: Final = "a list of one port or more"


@dataclass(frozen=True, slots=True)
class _Section:
    """A port or the defaults: the values that are right, and the lines of all keys given."""

    path: str
    values: dict[str, Any]
    lines: dict[str, int]


def _read_file(root: yaml.Node | None, problems: Problems) -> list[_Section]:
    if root is None or is_nothing(root):
        problems.add(1, "", "an empty file", _ACCEPTED_FILE)
        return []
    if not isinstance(root, yaml.MappingNode) or is_refused(root):
        _refuse(root, "", _ACCEPTED_FILE, problems)
        return []
    found = _known_entries(root, "", _FILE_KEYS, problems)
    defaults = {key.name: key.default for key in _DEFAULTS_KEYS}
    if "defaults" in found and not is_nothing(found["defaults"].value):
        section = _read_keys(found["defaults"].value, "defaults", _DEFAULTS_KEYS, problems)
        defaults = _overlaid(defaults, section)
    if "ports" not in found:
        problems.add(line_of(root), "ports", "nothing", _ACCEPTED_PORTS)
        return []
    return _read_ports(found["ports"].value, defaults, problems)


def _read_ports(node: yaml.Node, defaults: dict[str, Any], problems: Problems) -> list[_Section]:
    if not isinstance(node, yaml.SequenceNode) or not node.value or is_refused(node):
        _refuse(node, "ports", _ACCEPTED_PORTS, problems)
        return []
    ports = []
    for index, item in enumerate(node.value):
        port = _read_keys(item, f"ports[{index}]", PORT_KEYS, problems)
        ports.append(_Section(port.path, _overlaid(defaults, port), port.lines))
    return ports


def _overlaid(values: dict[str, Any], section: _Section) -> dict[str, Any]:
    """The section's values over others; a key whose value in the section is wrong has none."""
    kept = {name: value for name, value in values.items() if name not in section.lines}
    return kept | section.values


def _read_keys(node: yaml.Node, path: str, keys: tuple[Key, ...], problems: Problems) -> _Section:
    """The values given in one mapping; required ones that are missing are problems."""
    values: dict[str, Any] = {}
    if not isinstance(node, yaml.MappingNode) or is_refused(node):
        _refuse(node, path, "a mapping (key: value)", problems)
        return _Section(path, values, {})
    found = _known_entries(node, path, tuple(key.name for key in keys), problems)
    for key in keys:
        key_path = join(path, key.name)
        entry = found.get(key.name)
        if entry is None:
            if key.default is REQUIRED:
                problems.add(line_of(node), key_path, "nothing", key.kind.accepted)
        else:
            try:
                values[key.name] = key.kind.read(entry.value)
            except ValueError as exc:
                _refuse(entry.value, key_path, key.kind.accepted, problems, reason=str(exc))
    return _Section(path, values, {name: entry.line for name, entry in found.items()})


def _known_entries(
    node: yaml.MappingNode, path: str, names: tuple[str, ...], problems: Problems
) -> dict[str, Entry]:
    found = entries(node, path, problems)
    for name in found:
        if name in names:
            continue
        if path == "defaults" and any(key.name == name for key in PORT_KEYS):
            what = "a key that each port has for itself"
        else:
            hint = did_you_mean(name, names)
            what = f"an unknown key ({hint})" if hint else "an unknown key"
        problems.add(found[name].line, join(path, name), what, "the keys " + ", ".join(names))
    return {name: entry for name, entry in found.items() if name in names}


def _refuse(
    node: yaml.Node, path: str, accepted: str, problems: Problems, *, reason: str = ""
) -> None:
    if not is_refused(node):
        found = f"{shown(node)} ({reason})" if reason else shown(node)
        problems.add(line_of(node), path, found, accepted)


def _check_unique(ports: list[_Section], problems: Problems) -> None:
    names: dict[str, _Section] = {}
    devices: dict[str, _Section] = {}
    addresses: dict[int, dict[str, _Section]] = {}
    for port in ports:
        if (name := port.values.get("name")) is not None:
            first = names.setdefault(name, port)
            _refuse_second(port, first, "name", "a name of its own", problems)
        if (device := port.values.get("device")) is not None:
            first = devices.setdefault(_same_device(device), port)
            _refuse_second(port, first, "device", "a device of its own", problems)
        # Port 0 is another free one each time.
        if port.values.get("tcp") and "host" in port.values:
            at_port = addresses.setdefault(port.values["tcp"], {})
            first = _first_at_address(port, at_port)
            _refuse_second(port, first, "tcp", "a host and port of its own", problems)


def _refuse_second(
    port: _Section, first: _Section, key: str, accepted: str, problems: Problems
) -> None:
    if port is not first:
        found = f"{clipped(str(port.values[key]))} again (first in line {first.lines[key]})"
        problems.add(port.lines[key], join(port.path, key), found, accepted)


def _same_device(device: str) -> str:
    """One text for all spellings of it; links are not followed, they change with hotplug."""
    if device.startswith("/"):
        return str(PurePosixPath("/" + device.lstrip("/")))
    return _sim_device(device)


#: Stands for 0.0.0.0 and ::; no host is written so.
_EVERYWHERE: Final = "*"


def _first_at_address(port: _Section, at_port: dict[str, _Section]) -> _Section:
    """The earlier port that listens where this one does, or the port itself.

    `at_port` has the ports of one TCP port number by address and gets this one's.
    """
    addresses = _addresses(port.values["host"])
    for address in addresses:
        # Who listens everywhere meets whoever listens anywhere.
        first = at_port.get(address) or at_port.get(_EVERYWHERE)
        if first is None and address == _EVERYWHERE:
            first = next(iter(at_port.values()), None)
        if first is not None:
            return first
    at_port.update(dict.fromkeys(addresses, port))
    return port


def _addresses(host: str) -> set[str]:
    """What a host stands for, as far as it is known without asking DNS.

    0.0.0.0 and :: are taken to overlap, although the kernel could keep them apart: which board a
    client reaches must not depend on its address family.
    """
    if host.lower().rstrip(".") == "localhost":
        return {"127.0.0.1", "::1"}
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return {host.lower().rstrip(".")}
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return {_EVERYWHERE if address.is_unspecified else str(address)}


def _built(port: _Section) -> PortConfig:
    """The checked values as a PortConfig, whose fields bear the names of the keys but for two."""
    values = dict(port.values)
    serial = SerialSettings(
        **{field.name: values.pop(field.name) for field in fields(SerialSettings)}
    )
    return PortConfig(tcp_port=values.pop("tcp"), serial=serial, **values)
