"""What no two ports of the YAML may have in common: names, addresses, devices.

Each value was right for itself when it was read; problems are added to the file's others.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from gateway.config_values import sim_device
from gateway.yaml_lines import Problems, clipped, join


@dataclass(frozen=True, slots=True)
class Section:
    """A port or the defaults: the values that are right, and the lines of all keys given."""

    path: str
    values: dict[str, Any]
    lines: dict[str, int]


def check_unique(ports: list[Section], problems: Problems) -> None:
    """Add a problem for each port that has something which an earlier one has."""
    names: dict[str, Section] = {}
    devices: dict[str, Section] = {}
    far_ends: dict[tuple[str | int, ...], Section] = {}
    log_files: dict[str, Section] = {}
    addresses: dict[int, dict[str, Section]] = {}
    for port in ports:
        if (name := port.values.get("name")) is not None:
            first = names.setdefault(name, port)
            _refuse_second(port, first, "name", "a name of its own", problems)
        if (device := port.values.get("device")) is not None:
            first = devices.setdefault(_same_device(device), port)
            _refuse_second(port, first, "device", "a device of its own", problems)
        if (far_end := port.values.get("connect")) is not None:
            key = (*sorted(_addresses(far_end.host)), far_end.tcp_port)
            first = far_ends.setdefault(key, port)
            _refuse_second(port, first, "connect", "a far end of its own", problems)
        # One that each port has from the defaults has {name} in it.
        if "log_file" in port.lines and (log_file := port.values.get("log_file")) is not None:
            path = str(log_file).replace("{name}", str(port.values.get("name")))
            first = log_files.setdefault(path, port)
            _refuse_second(port, first, "log_file", "a file of its own", problems)
        # Port 0 is another free one each time.
        if port.values.get("tcp") and "host" in port.values:
            at_port = addresses.setdefault(port.values["tcp"], {})
            first = _first_at_address(port, at_port)
            _refuse_second(port, first, "tcp", "a host and port of its own", problems)


def _refuse_second(
    port: Section, first: Section, key: str, accepted: str, problems: Problems
) -> None:
    if port is not first:
        found = f"{clipped(str(port.values[key]))} again (first in line {first.lines[key]})"
        problems.add(port.lines[key], join(port.path, key), found, accepted)


def _same_device(device: str) -> str:
    """One text for all spellings of it; links are not followed, they change with hotplug."""
    if device.startswith("/"):
        return str(PurePosixPath("/" + device.lstrip("/")))
    return sim_device(device)


#: Stands for 0.0.0.0 and ::; no host is written so.
_EVERYWHERE: Final = "*"


def _first_at_address(port: Section, at_port: dict[str, Section]) -> Section:
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
