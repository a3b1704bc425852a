"""Networks of the YAML: whom a port serves, and which addresses count as one peer's.

tcp/acceptor.py closes the connections of others, tcp/rejections.py counts and logs them.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

import yaml

from gateway.config.wording import clipped
from gateway.config.yaml_lines import Kind, line_of, scalar_text

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: The IPv4 addresses as IPv6 has them, on sockets that listen for both (RFC 4291, 2.5.5.2).
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")

#: What one peer may be expected to have many addresses of.
_PEER_PREFIX_V4: Final = 24
_PEER_PREFIX_V6: Final = 64


@dataclass(frozen=True, slots=True)
class Networks:
    """Some networks, or every address if there are none."""

    members: tuple[_Network, ...] = ()

    def __str__(self) -> str:
        return ", ".join(str(member) for member in self.members) or "all"

    def have(self, host: str) -> bool:
        """Whether the address of a peer is in one of them; what is no address is in none."""
        if not self.members:
            return True
        try:
            address = _address(host)
        except ValueError:
            return False
        return any(address in member for member in self.members)


EVERYBODY: Final = Networks()


def peer_network(host: str) -> str:
    """The network that stands for a peer in the log: a /24, of IPv6 a /64."""
    return _network_of(host, _PEER_PREFIX_V4, _PEER_PREFIX_V6)


def peer_holder(host: str) -> str:
    """What stands for a peer where its connections are limited: its address, of IPv6 a /64.

    Within a /64 a host has as many addresses as it likes; the hosts of a LAN share one. Not the
    link-local one, which would be the same for every LAN.
    """
    is_link_local = host.lower().startswith("fe80:")
    return _network_of(host, 32, 128 if is_link_local else _PEER_PREFIX_V6)


def _network_of(host: str, prefix_v4: int, prefix_v6: int) -> str:
    try:
        address = _address(host)
    except ValueError:
        return "unknown"
    prefix = prefix_v4 if address.version == 4 else prefix_v6
    return str(ipaddress.ip_network((address, prefix), strict=False))


def _address(host: str) -> _Address:
    # A link-local address may have its interface behind it, which says nothing of who it is.
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _network(text: str) -> _Network:
    """The network that a text means; ValueError says what is wrong with it, if that helps."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError from None
    if network.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise ValueError(f"did you mean {network}?")
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        mapped = network.network_address.ipv4_mapped
        assert mapped is not None  # noqa: S101 - it is in ::ffff:0:0/96
        return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED.prefixlen))
    return network


def _read_networks(node: yaml.Node) -> Networks:
    if not isinstance(node, yaml.SequenceNode):
        if scalar_text(node) != "all":
            raise ValueError("not a list")
        return EVERYBODY
    if not node.value:  # it would let nobody in
        raise ValueError
    members = []
    for item in node.value:
        text = scalar_text(item)
        try:
            members.append(_network(text))
        except ValueError as wrong:
            place = f"{clipped(text)} in line {line_of(item)}"
            raise ValueError(f"{place}: {wrong}" if str(wrong) else place) from None
    return Networks(tuple(members))


NETWORKS: Final = Kind("all or a list of IP addresses and networks (10.0.0.0/8)", _read_networks)
