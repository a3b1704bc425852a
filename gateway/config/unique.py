"""What no two ports of the YAML may have in common: names, addresses, devices.

Each value was right for itself when it was read; problems are added to the file's others.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from gateway.config.device import overlapping, pool_member_name, same_path, tcp_text
from gateway.config.yaml_lines import Problems, clipped, join


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
    log_files: dict[str, Section] = {}
    addresses: dict[int, dict[str, Section]] = {}
    for other in listening:
        _check_address(other, addresses, problems)
    for port in ports:
        if (name := port.values.get("name")) is not None:
            first = names.setdefault(name, port)
            _refuse_second(port, first, "name", "a name of its own", problems)
        if (far_end := port.values.get("connect")) is not None:
            key = (*sorted(_addresses(far_end.host)), far_end.tcp_port)
            first = far_ends.setdefault(key, port)
            _refuse_second(port, first, "connect", "a far end of its own", problems)
        # One that each port has from the defaults has {name} in it.
        if "log_file" in port.lines and (log_file := port.values.get("log_file")) is not None:
            path = str(log_file).replace("{name}", str(port.values.get("name")))
            first = log_files.setdefault(path, port)
            _refuse_second(port, first, "log_file", "a file of its own", problems)
        if "tcp" in port.values and "host" in port.values:
            _check_address(port, addresses, problems)
    for port in ports:
        _check_pool(port, names, problems)
    _check_devices([port for port in ports if "device" in port.values], problems)


def _refuse_second(
    port: Section, first: Section, key: str, accepted: str, problems: Problems
) -> None:
    if port is not first:
        found = f"{clipped(str(port.values[key]))} again (first in line {first.lines[key]})"
        problems.add(port.lines[key], join(port.path, key), found, accepted)


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
        again = f"{number} again (first in line {first.lines['tcp']})"
        found = f"{tcp_text(tcp)}, which has {again}" if isinstance(tcp, range) else again
        accepted = "a host and port of its own"
        problems.add(port.lines["tcp"], join(port.path, "tcp"), found, accepted)
        return


def _check_pool(port: Section, names: dict[str, Section], problems: Problems) -> None:
    tcp = port.values.get("tcp")
    if not isinstance(tcp, range):
        return
    device = port.values.get("device")
    if device is not None and not device.is_match:
        found = f"{clipped(str(device))} for a pool"
        problems.add(port.lines["device"], join(port.path, "device"), found, "matches only")
    if "log_file" in port.lines and "{name}" not in str(port.values.get("log_file") or "{name}"):
        found = f"{clipped(str(port.values['log_file']))} for a pool"
        accepted = "a path with {name} in it, which stands for the name of each port"
        problems.add(port.lines["log_file"], join(port.path, "log_file"), found, accepted)
    for number in tcp if "name" in port.values else ():
        member = names.get(pool_member_name(port.values["name"], number))
        if member is not None:
            found = f"{member.values['name']}, as a port of the pool in line {port.lines['name']}"
            line = member.lines["name"]
            problems.add(line, join(member.path, "name"), found, "a name of its own")


def _check_devices(ports: list[Section], problems: Problems) -> None:
    paths: dict[str, Section] = {}
    for port in ports:
        for path in port.values["device"].paths:
            owner = paths.setdefault(same_path(path), port)
            _refuse_second(port, owner, "device", "a device of its own", problems)
    # A pool takes what the other ports leave, so these two are not compared.
    for is_pool in (False, True):
        alike = [port for port in ports if isinstance(port.values.get("tcp"), range) is is_pool]
        for later, first, match in overlapping(port.values["device"] for port in alike):
            line = alike[first].lines["device"]
            found = f"{clipped(str(match))}, for which the match in line {line} is right as well"
            key_path = join(alike[later].path, "device")
            accepted = "matches that no device fits both of"
            problems.add(alike[later].lines["device"], key_path, found, accepted)


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
