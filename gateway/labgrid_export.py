"""The configuration of a labgrid exporter, written for the ports that this gateway has.

labgrid's places then reserve boards for people and CI jobs, and its clients connect to the gateway
itself. Which ports there are comes from the YAML and the pools' table, or from the running service;
`cli.ports` reads those.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import yaml

from gateway.config.document import GatewayConfig, PortConfig, is_loopback, is_wildcard
from gateway.status import PortSnapshot
from gateway.usb.pools import PoolTable

#: labgrid renders the file as a Jinja template in which `#` begins a statement, `##` a comment.
_COMMENT = "## "

_TLS = "has TLS, which labgrid does not speak"
_RANDOM_PORT = "tcp: 0 is another port at each start (without FILE the running service is asked)"


@dataclass(frozen=True, slots=True)
class ExportedPort:
    """A port as labgrid's clients are told of it."""

    name: str
    host: str
    tcp_port: int
    speed: int
    protocol: str


@dataclass(frozen=True, slots=True)
class Export:
    """What is exported, and why what is not: a line for each port or pool."""

    ports: list[ExportedPort] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, port: ExportedPort, listens_at: str, host: str, *, is_given: bool) -> None:
        """Add a port that listens there if `host` leads to it, else say why it does not.

        A port with an address of its own is exported with that, unless `host` was given.
        """
        if is_loopback(listens_at) and not is_loopback(host):
            self.left_out.append(f"{port.name}: listens at {listens_at}, for this machine only")
            return
        own_address = not is_given and not is_wildcard(listens_at)
        at = listens_at if own_address else host
        self.ports.append(ExportedPort(port.name, at, port.tcp_port, port.speed, port.protocol))


def from_config(config: GatewayConfig, table: PoolTable, host: str, *, is_given: bool) -> Export:
    """The ports of the YAML, and of its pools those that `table` knows of.

    `host` is the name by which other machines reach this one, and whether it was given by a person.
    """
    export = Export()
    for port in config.ports:
        if port.connect is not None:
            export.left_out.append(f"{port.name}: connects to {port.connect}, nobody to it")
        elif port.tls is not None:
            export.left_out.append(f"{port.name}: {_TLS}")
        elif not port.tcp_port:
            export.left_out.append(f"{port.name}: {_RANDOM_PORT}")
        else:
            _add_configured(export, port, host, is_given=is_given)
    for pool in config.pools:
        if pool.pattern.tls is not None:
            export.left_out.append(f"{pool.name}: {_TLS}")
            continue
        tcp_ports = table.tcp_ports(pool.name, pool.tcp_ports)
        if not tcp_ports:
            export.left_out.append(f"{pool.name}: no board of this pool has been seen yet")
        for tcp_port in tcp_ports:
            _add_configured(export, pool.port(tcp_port), host, is_given=is_given)
    return export


def _add_configured(export: Export, port: PortConfig, host: str, *, is_given: bool) -> None:
    assert port.tcp_port is not None  # noqa: S101 - for the type checker
    speed, protocol = port.serial.baudrate, port.protocol.value
    exported = ExportedPort(port.name, port.host, port.tcp_port, speed, protocol)
    export.add(exported, port.host, host, is_given=is_given)


def from_service(ports: Iterable[PortSnapshot], host: str, *, is_given: bool) -> Export:
    """The ports of the running service, pools' members included."""
    export = Export()
    for port in ports:
        listens_at, _, tcp_port = port.address.rpartition(":")
        if port.address.startswith("->"):
            export.left_out.append(f"{port.name}: connects to {port.address[3:]}, nobody to it")
        elif port.tls:
            export.left_out.append(f"{port.name}: {_TLS}")
        elif not tcp_port:
            export.left_out.append(f"{port.name}: its address can't be bound now")
        elif not port.protocol:
            export.left_out.append(f"{port.name}: the service is too old to tell its protocol")
        else:
            number = int(tcp_port)
            exported = ExportedPort(port.name, listens_at, number, port.baudrate, port.protocol)
            export.add(exported, listens_at, host, is_given=is_given)
    return export


def to_yaml(export: Export) -> str:
    """The file for `labgrid-exporter`: a group for each port, a NetworkSerialPort in it."""
    comments = ["Made by `esp-gateway export labgrid`; a group for each port."]
    comments += [f"Left out: {reason}" for reason in export.left_out]
    groups = {port.name: {"NetworkSerialPort": _resource(port)} for port in export.ports}
    lines = [f"{_COMMENT}{comment}" for comment in comments]
    # Quotes what would be read as something else, a port called `on` for instance.
    return "\n".join(lines) + "\n" + yaml.safe_dump(groups, sort_keys=False)


def _resource(port: ExportedPort) -> dict[str, str | int]:
    return {
        "host": port.host,
        "port": port.tcp_port,
        "speed": port.speed,
        "protocol": port.protocol,
    }
