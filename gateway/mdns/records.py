"""What is said of a port by multicast DNS (RFC 6762, 6763), and what of it is understood.

One vocabulary for who announces and who discovers; how it gets onto the network and from there is
`announcer`'s and `browser`'s matter.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from zlib import crc32

#: The type of service by the port's protocol. ser2net announces byte streams as the second one.
TYPES = {"rfc2217": "_rfc2217._tcp.local.", "raw": "_iostream._tcp.local."}
#: What gensio's clients put in front of an address of such a service.
_GENSIO_STACKS = {
    ("rfc2217", False): "telnet(rfc2217),tcp",
    ("rfc2217", True): "telnet(rfc2217),ssl,tcp",
    ("raw", False): "tcp",
    ("raw", True): "ssl,tcp",
}
_SCHEMES = {"rfc2217": "rfc2217", "raw": "socket"}

#: Tells the ports of gateways from what others announce under the same types.
PROVIDER = "esp-serial-gateway"

#: A label of DNS (RFC 1035, 2.3.4).
_MAX_LABEL_BYTES = 63

#: One string of a TXT record, `key=value` (RFC 6763, 6.1).
_MAX_TXT_BYTES = 255

#: Longest text of others that is shown.
_MAX_SHOWN_CHARS = 120


@dataclass(frozen=True, slots=True)
class PortFacts:
    """A port that is served. `listens_at` are the addresses that its socket is bound to.

    `kind` and `chip` say what it is (board_kinds), `usb` its vendor and product id; texts are empty
    where that is not known.
    """

    name: str
    listens_at: tuple[str, ...]
    tcp_port: int
    protocol: str
    kind: str = ""
    chip: str = ""
    usb: str = ""
    serial: str = ""
    has_tls: bool = False
    is_present: bool = True


@dataclass(frozen=True, slots=True)
class Host:
    """This gateway on the network: its name for people, and what sets it apart from others.

    `id` (6 hexadecimal digits) is part of the host name that has the address records: gateways on
    machines of one name, as Raspberry Pis have it, must not share these records.
    """

    gateway: str
    id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announcement:
    """A port as it is announced; `server` is the name of the host that has the addresses."""

    type: str
    instance: str
    server: str
    tcp_port: int
    addresses: tuple[str, ...]
    txt: tuple[tuple[str, str], ...]


def announced(host: Host, facts: PortFacts, number: int = 1) -> Announcement | None:
    """What to announce of a port; None when the port listens at none of the host's addresses.

    `number` counts ports of one host that have the same `label_key`, from 1.
    """
    addresses = _reached_at(facts.listens_at, host.addresses)
    if not addresses:
        return None
    service = TYPES[facts.protocol]
    return Announcement(
        type=service,
        instance=f"{_label(facts.name, host.gateway, number)}.{service}",
        server=f"{_host_label(host, facts.listens_at)}.local.",
        tcp_port=facts.tcp_port,
        addresses=addresses,
        txt=tuple(_txt(host, facts)),
    )


def label_key(name: str) -> str:
    """Equal for names of ports that DNS would take for the same: it ignores case."""
    return _in_label(name).casefold()


def suffixed(announcement: Announcement, suffix: str) -> Announcement:
    """The same under another name, for one that was found to be in use."""
    label = announcement.instance.removesuffix(f".{announcement.type}")
    shorter = label.encode()[: _MAX_LABEL_BYTES - len(suffix) - 1].decode(errors="ignore")
    return replace(announcement, instance=f"{shorter}-{suffix}.{announcement.type}")


def _label(name: str, gateway: str, number: int) -> str:
    port = _in_label(name) if number == 1 else f"{_in_label(name)} #{number}"
    label = f"{port} on {_in_label(gateway)}"
    return label.encode()[:_MAX_LABEL_BYTES].decode(errors="ignore").rstrip()


def _in_label(text: str) -> str:
    """Labels of DNS are joined by dots, and dots inside a label are not escaped everywhere."""
    return text.replace(".", "-")


@lru_cache(maxsize=256)  # most ports listen at the same addresses
def _reached_at(listens_at: tuple[str, ...], own_addresses: tuple[str, ...]) -> tuple[str, ...]:
    own = {ipaddress.ip_address(text) for text in own_addresses}
    reached: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()
    for text in listens_at:
        bound = ipaddress.ip_address(text.partition("%")[0])
        fits = {
            a for a in own if a == bound or (bound.is_unspecified and a.version == bound.version)
        }
        reached |= fits
    return tuple(sorted((str(address) for address in reached), key=_by_kind))


def _by_kind(text: str) -> tuple[int, bool, int]:
    address = ipaddress.ip_address(text)
    return address.version, address.is_link_local, int(address)


def _host_label(host: Host, listens_at: tuple[str, ...]) -> str:
    """The host's name for address records.

    Other programs, Avahi for instance, announce the machine's own name, with other addresses. For
    the same reason, ports that are bound to other addresses are on a host of another name.
    """
    label = f"{_as_host_name(host.gateway)[:24].strip('-') or 'gateway'}-esp-{host.id}"
    bound = "-".join(listens_at)
    if bound != "0.0.0.0":
        text = _as_host_name(bound.replace("::", "v6-"))
        fits = len(label) + 1 + len(text) <= _MAX_LABEL_BYTES
        label += f"-{text}" if fits else f"-{crc32(bound.encode()):08x}"
    return label


def _as_host_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _txt(host: Host, facts: PortFacts) -> Iterable[tuple[str, str]]:
    """The keys of the TXT record, those without a value left out."""
    values = {
        "txtvers": "1",
        "provider": PROVIDER,
        "gateway": host.gateway,
        "id": host.id,
        "name": facts.name,
        "protocol": facts.protocol,
        "gensiostack": _GENSIO_STACKS[facts.protocol, facts.has_tls],
        "tls": "yes" if facts.has_tls else "",
        "kind": facts.kind,
        "chip": facts.chip,
        "usb": facts.usb,
        "serial": facts.serial,
        "present": "yes" if facts.is_present else "no",
    }
    for key, value in values.items():
        room = _MAX_TXT_BYTES - len(key) - 1
        if clipped := value.encode()[:room].decode(errors="ignore"):
            yield key, clipped


@dataclass(frozen=True, slots=True)
class FoundPort:
    """A port of some gateway, as it was announced.

    A port with TLS has a URL of our own, `tls://`: no tool speaks it without help. `gateway_id`
    tells gateways of one name apart; it is empty where an older version has announced the port.
    """

    gateway: str
    gateway_id: str
    name: str
    url: str
    protocol: str
    host: str
    addresses: tuple[str, ...]
    tcp_port: int
    kind: str
    chip: str
    usb: str
    serial: str
    has_tls: bool
    is_present: bool


def understood(
    txt: Mapping[bytes, bytes | None],
    server: str,
    addresses: Iterable[str],
    tcp_port: int,
    own_networks: Iterable[str] = (),
) -> FoundPort | None:
    """What an announcement says, None if it is none of a gateway's port.

    Its texts come from whoever is on the network: they are made harmless. Its URL has the address
    that is in one of `own_networks`, else the first.
    """
    texts = {
        key.decode(errors="replace").lower(): _harmless((value or b"").decode(errors="replace"))
        for key, value in txt.items()
    }
    protocol = texts.get("protocol", "")
    ordered = _nearest_first(addresses, own_networks)
    if texts.get("provider") != PROVIDER or protocol not in _SCHEMES or not ordered:
        return None
    has_tls = texts.get("tls") == "yes"
    scheme = "tls" if has_tls else _SCHEMES[protocol]
    host = f"[{ordered[0]}]" if ":" in ordered[0] else ordered[0]
    return FoundPort(
        gateway=texts.get("gateway", ""),
        gateway_id=texts.get("id", ""),
        name=texts.get("name", ""),
        url=f"{scheme}://{host}:{tcp_port}",
        protocol=protocol,
        host=_harmless(server.rstrip(".")),
        addresses=ordered,
        tcp_port=tcp_port,
        kind=texts.get("kind", ""),
        chip=texts.get("chip", ""),
        usb=texts.get("usb", ""),
        serial=texts.get("serial", ""),
        has_tls=has_tls,
        is_present=texts.get("present") != "no",
    )


def _harmless(text: str) -> str:
    """Text of others: bounded, and without what would control a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_SHOWN_CHARS])


def _nearest_first(addresses: Iterable[str], own_networks: Iterable[str]) -> tuple[str, ...]:
    networks = [ipaddress.ip_network(network) for network in own_networks]

    def distance(text: str) -> tuple[bool, tuple[int, bool, int]]:
        address = ipaddress.ip_address(text.partition("%")[0])
        return not any(address in network for network in networks), _by_kind(str(address))

    return tuple(sorted(addresses, key=distance))
