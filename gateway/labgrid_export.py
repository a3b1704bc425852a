"""The configuration of a labgrid exporter for the gateway's ports.

labgrid's places then reserve boards for people and CI jobs, and its clients connect to the gateway
itself. The ports are those of the YAML and of the pools' table, or of the running service.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import yaml

from gateway.config.document import GatewayConfig, PortConfig, is_loopback, is_wildcard
from gateway.port_document import PortDocument
from gateway.usb.pools import PoolTable

#: labgrid renders the file as a Jinja template in which `#` begins a statement, `##` a comment.
_COMMENT = "## "

_TLS = "has TLS, which labgrid does not support"
_RANDOM_PORT = "tcp: 0 is another port at each start (omit FILE to export the running service)"


@dataclass(slots=True)
class Export:
    """Resources of exported ports by name, and a line for each port or pool that is left out.

    `host` is the name by which other machines reach this one. Unless it `is_given` by the user,
    a port with an address of its own is exported with that.
    """

    host: str
    is_given: bool = False
    resources: dict[str, dict[str, str | int]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str, at: str, tcp_port: int, baudrate: int, protocol: str) -> None:
        """Add a port that listens at `at` if `host` leads to it."""
        if is_loopback(at) and not is_loopback(self.host):
            self.left_out.append(f"{name}: listens at {at}, for this machine only")
            return
        own_address = not self.is_given and not is_wildcard(at)
        self.resources[name] = {
            "host": at if own_address else self.host,
            "port": tcp_port,
            "speed": baudrate,
            "protocol": protocol,
        }

    def omit(self, name: str, connect: object, *, tls: bool) -> bool:
        """Return whether a port is left out because it dials out or has TLS."""
        if connect is not None:
            self.left_out.append(f"{name}: connects to {connect}, does not listen")
        elif tls:
            self.left_out.append(f"{name}: {_TLS}")
        return connect is not None or tls


def from_config(config: GatewayConfig, table: PoolTable, host: str, *, is_given: bool) -> Export:
    """Export the ports of the YAML, and of its pools those that are in `table`."""
    export = Export(host, is_given)
    for port in config.ports:
        if export.omit(port.name, port.connect, tls=port.tls is not None):
            continue
        if port.tcp_port:
            _add_configured(export, port)
        else:
            export.left_out.append(f"{port.name}: {_RANDOM_PORT}")
    for pool in config.pools:
        if export.omit(pool.name, None, tls=pool.pattern.tls is not None):
            continue
        tcp_ports = table.tcp_ports(pool.name, pool.tcp_ports)
        if not tcp_ports:
            export.left_out.append(f"{pool.name}: no board of this pool has been seen yet")
        for tcp_port in tcp_ports:
            _add_configured(export, pool.port(tcp_port))
    return export


def _add_configured(export: Export, port: PortConfig) -> None:
    assert port.tcp_port is not None  # noqa: S101 - for the type checker
    export.add(port.name, port.host, port.tcp_port, port.serial.baudrate, port.protocol.value)


def from_service(ports: Iterable[PortDocument], host: str, *, is_given: bool) -> Export:
    """Export the ports of the running service, members of pools included."""
    export = Export(host, is_given)
    for port in ports:
        if export.omit(port.name, port.connect, tls=port.tls):
            continue
        if port.host is None or port.tcp_port is None:
            export.left_out.append(f"{port.name}: its address can't be bound now")
        else:
            export.add(port.name, port.host, port.tcp_port, port.configured_baudrate, port.protocol)
    return export


def to_yaml(export: Export) -> str:
    """The file for `labgrid-exporter`: a group for each port, a NetworkSerialPort in it."""
    comments = ["Made by `esp-gateway export labgrid`; a group for each port."]
    comments += [f"Left out: {reason}" for reason in export.left_out]
    groups = {name: {"NetworkSerialPort": each} for name, each in export.resources.items()}
    lines = [f"{_COMMENT}{comment}" for comment in comments]
    # Quotes names that would be read as something else, a port called `on` for instance.
    return "\n".join(lines) + "\n" + yaml.safe_dump(groups, sort_keys=False)
