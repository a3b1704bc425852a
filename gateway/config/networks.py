"""How networks are written in the YAML."""

from __future__ import annotations

import ipaddress
from typing import Final

import yaml

from gateway.config.document import EVERYBODY, Networks
from gateway.config.wording import clipped
from gateway.config.yaml_lines import Kind, line_of, scalar_text

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: The IPv4 addresses as IPv6 has them, on sockets that listen for both (RFC 4291, 2.5.5.2).
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


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
