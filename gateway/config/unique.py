"""What no two ports of the YAML may have in common: names, addresses, devices.

Each value was right for itself when it was read; problems are added to the file's others.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from gateway.config.device import overlapping, same_path
from gateway.config.document import pool_member_name, tcp_text
from gateway.config.wording import quoted
from gateway.config.yaml_lines import Problems


@dataclass(frozen=True, slots=True)
class Section:
    """A port or the defaults: the values that are right, and the lines of all keys given."""

    path: str
    values: dict[str, Any]
    lines: dict[str, int]


def check_unique(
    ports: list[Section], problems: Problems, listening: Iterable[Section] = ()
) -> None:
    """Add a problem for each port that has something which an earlier one has.

    `listening` are others that listen: nobody may have their address.
    """
    names: dict[str, Section] = {}
    far_ends: dict[tuple[str | int, ...], Section] = {}
    addresses: dict[int, dict[str, Section]] = {}
    for other in listening:
        _check_address(other, addresses, problems)
    for port in ports:
        if (name := port.values.get("name")) is not None:
            first = names.setdefault(name, port)
            _refuse_second(port, first, "name", problems)
        if (far_end := port.values.get("connect")) is not None:
            key = (*sorted(_addresses(far_end.host)), far_end.tcp_port)
            first = far_ends.setdefault(key, port)
            _refuse_second(port, first, "connect", problems)
        if "tcp" in port.values and "host" in port.values:
            _check_address(port, addresses, problems)
    for port in ports:
        _check_pool(port, names, problems)
    _check_devices([port for port in ports if "device" in port.values], problems)


def _refuse_second(port: Section, first: Section, key: str, problems: Problems) -> None:
    if port is not first:
        value = quoted(str(port.values[key]))
        problem = f"duplicate {key} {value} (first in line {first.lines[key]})"
        problems.add(port.lines[key], port.path, problem, f"another {key} for each port")


def _check_address(
    port: Section, addresses: dict[int, dict[str, Section]], problems: Problems
) -> None:
    """Refuse a port that listens where another does; `addresses` gets its own."""
    tcp = port.values["tcp"]
    # Port 0 is another free one each time.
    numbers = tcp if isinstance(tcp, range) else [tcp] if tcp else []
    for number in numbers:
        first = _first_at_address(port, addresses.setdefault(number, {}))
        if first is port:
            continue
        problem = f"duplicate tcp '{number}' (first in line {first.lines['tcp']})"
        if isinstance(tcp, range):
            problem += f" in the range '{tcp_text(tcp)}'"
        problems.add(port.lines["tcp"], port.path, problem, "another tcp or host for each port")
        return


def _check_pool(port: Section, names: dict[str, Section], problems: Problems) -> None:
    tcp = port.values.get("tcp")
    if not isinstance(tcp, range):
        return
    device = port.values.get("device")
    if device is not None and not device.is_match:
        problem = f"invalid device {quoted(str(device))} of a pool"
        problems.add(port.lines["device"], port.path, problem, "matches only")
    if "log_file" in port.lines and "{name}" not in str(port.values.get("log_file") or "{name}"):
        problem = f"invalid log_file {quoted(str(port.values['log_file']))} of a pool"
        expected = "a path with {name} in it, which stands for the name of each port"
        problems.add(port.lines["log_file"], port.path, problem, expected)
    for number in tcp if "name" in port.values else ():
        member = names.get(pool_member_name(port.values["name"], number))
        if member is not None:
            of_pool = f"(first of a port of the pool in line {port.lines['name']})"
            problem = f"duplicate name {quoted(member.values['name'])} {of_pool}"
            problems.add(member.lines["name"], member.path, problem, "another name")


def _check_devices(ports: list[Section], problems: Problems) -> None:
    paths: dict[str, Section] = {}
    for port in ports:
        for path in port.values["device"].paths:
            owner = paths.setdefault(same_path(path), port)
            _refuse_second(port, owner, "device", problems)
    # A pool takes what the other ports leave, so these two are not compared.
    for is_pool in (False, True):
        alike = [port for port in ports if isinstance(port.values.get("tcp"), range) is is_pool]
        for later, first, match in overlapping(port.values["device"] for port in alike):
            line = alike[first].lines["device"]
            problem = f"device {quoted(str(match))} fits the match in line {line} too"
            expected = "matches of which no device fits two"
            problems.add(alike[later].lines["device"], alike[later].path, problem, expected)


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
