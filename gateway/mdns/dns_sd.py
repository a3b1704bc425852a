"""Ports in DNS service discovery (RFC 6762, 6763): their records, and discovery of those of others.

zeroconf is an extra, `mdns`: it is imported where it is used.
"""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import json
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from zlib import crc32

from gateway import clock
from gateway.config.document import GatewayConfig, is_loopback, pool_member_name
from gateway.errors import GatewayError
from gateway.port_document import UNKNOWN_USB, PortDocument, UsbDocument

if TYPE_CHECKING:
    from zeroconf import Zeroconf
    from zeroconf.asyncio import AsyncZeroconf

#: The type of service by the port's protocol. ser2net announces byte streams as the second one.
TYPES: Final = {"rfc2217": "_rfc2217._tcp.local.", "raw": "_iostream._tcp.local."}
#: The prefix of gensio's clients to an address of such a service, with and without TLS.
_GENSIO_STACKS: Final = {
    ("rfc2217", False): "telnet(rfc2217),tcp",
    ("rfc2217", True): "telnet(rfc2217),ssl,tcp",
    ("raw", False): "tcp",
    ("raw", True): "ssl,tcp",
}
_SCHEMES: Final = {"rfc2217": "rfc2217", "raw": "socket"}

#: Distinguishes the ports of gateways from other announcements of these types.
PROVIDER: Final = "esp-serial-gateway"

#: A label of DNS (RFC 1035 section 2.3.4).
_MAX_LABEL_BYTES: Final = 63
#: One string of a TXT record, `key=value` (RFC 6763 section 6.1).
_MAX_TXT_BYTES: Final = 255
#: Longest received text that is shown.
_MAX_SHOWN_CHARS: Final = 120

#: Ports asked for details: no lab is of that size, but a hostile network may be.
MAX_FOUND: Final = 4096
#: Limit for the details of one port; they mostly arrive with its name.
_DETAILS_LIMIT_S: Final = 3.0

_SYS_CLASS_NET: Final = Path("/sys/class/net")

MISSING: Final = (
    "the Python package zeroconf is not installed: pip install 'esp-serial-gateway[mdns]'"
)

_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class MdnsError(GatewayError):
    """Multicast DNS can't be used, and why; for the operator."""


# --- the package, and checks of a configuration


def is_installed() -> bool:
    """Return whether zeroconf could be loaded, without loading it."""
    return importlib.util.find_spec("zeroconf") is not None


def load() -> None:
    """Load zeroconf, which takes up to a second. Raises MdnsError if it is not installed."""
    try:
        # On its own first, so that the error names it when it is missing.
        import zeroconf  # noqa: PLC0415
        import zeroconf.asyncio  # noqa: F401, PLC0415
    except ImportError as error:
        raise MdnsError(MISSING if error.name == "zeroconf" else f"zeroconf: {error}") from error


def warnings(config: GatewayConfig) -> Iterator[str]:
    """Yield warnings about a configuration with announcements."""
    if config.mdns is None:
        return
    if not is_installed():
        yield f"mdns: nothing is announced, {MISSING}"
    names = [port.name for port in config.ports]
    names += [pool_member_name(pool.name, n) for pool in config.pools for n in pool.tcp_ports]
    first: dict[str, str] = {}
    for name in names:
        if (earlier := first.setdefault(label_key(name), name)) != name:
            yield (
                f"{name}: multicast DNS takes its name for that of {earlier}, and it is announced "
                "with a number behind it: rename one of them"
            )
    if any(is_loopback(each) or each == "lo" for each in config.mdns.interfaces):
        return  # intended
    hosts = [(port.name, port.host) for port in config.ports if port.connect is None]
    for name, host in [*hosts, *((pool.name, pool.pattern.host) for pool in config.pools)]:
        if is_loopback(host):
            yield f"{name}: not announced, it listens at {host} for this machine only"


# --- this host's networks


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """Addresses of this host, and their networks.

    `hardware` is the MAC address of the first network interface with one of the addresses, unique
    in that network. Empty for loopback.
    """

    addresses: tuple[str, ...]
    networks: tuple[str, ...]
    hardware: str = ""

    @property
    def to_speak_at(self) -> list[str]:
        """The addresses for multicast DNS: IPv4 if there is any, one protocol is enough."""
        v4 = [each for each in self.addresses if ":" not in each]
        return v4 or list(self.addresses)

    @property
    def host_id(self) -> str:
        """6 hexadecimal digits that distinguish this machine in its network.

        Not from /etc/machine-id: hosts cloned from one memory card share it.
        """
        digits = self.hardware.replace(":", "")[-6:]
        return digits or f"{crc32(socket.gethostname().encode()) & 0xFFFFFF:06x}"


def own_addresses(interfaces: Sequence[str]) -> OwnAddresses:
    """Return the addresses of interfaces given by name or address; of none: all but loopback."""
    import ifaddr  # noqa: PLC0415 - comes with zeroconf

    found = []
    hardware = ""
    for adapter in sorted(ifaddr.get_adapters(), key=lambda each: each.index or 0):
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            address = ipaddress.ip_address(text.partition("%")[0])
            wanted = adapter.name in interfaces or str(address) in interfaces
            if wanted or not (interfaces or address.is_loopback):
                found.append(ipaddress.ip_interface(f"{address}/{ip.network_prefix}"))
                hardware = hardware or _hardware(adapter.name)
    return OwnAddresses(
        tuple(sorted({str(each.ip) for each in found})),
        tuple(sorted({str(each.network) for each in found})),
        hardware,
    )


def _hardware(interface: str) -> str:
    """Return the MAC address of an interface; empty without one (loopback, a tunnel)."""
    try:
        text = (_SYS_CLASS_NET / interface.partition(":")[0] / "address").read_text().strip()
    except (OSError, ValueError):
        return ""
    return text if re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", text) and text.strip("0:") else ""


# --- announcements


@dataclass(frozen=True, slots=True)
class PortFacts:
    """The announced part of a port's document, which rarely changes."""

    name: str
    addresses: tuple[str, ...]
    tcp_port: int
    protocol: str
    tls: bool = False
    usb: UsbDocument = UNKNOWN_USB
    is_present: bool = True

    @classmethod
    def of(cls, port: PortDocument) -> Self | None:
        """Return that part; None while the port does not listen."""
        if port.tcp_port is None:
            return None
        return cls(
            port.name,
            port.addresses,
            port.tcp_port,
            port.protocol,
            port.tls,
            port.usb or UNKNOWN_USB,
            port.is_present,
        )


@dataclass(frozen=True, slots=True)
class Host:
    """This gateway in the network: its name for people, and an id that is unique.

    `id` (6 hexadecimal digits) is part of the host name with the address records: gateways on
    machines of one name, as Raspberry Pis have it, must not share these records.
    """

    gateway: str
    id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announcement:
    """A port as it is announced; `server` is the name of the host with the addresses."""

    type: str
    instance: str
    server: str
    tcp_port: int
    addresses: tuple[str, ...]
    txt: tuple[tuple[str, str], ...]


@lru_cache(maxsize=4096)  # asked for each port each second
def announced(host: Host, facts: PortFacts, number: int = 1) -> Announcement | None:
    """Return the announcement of a port; None if it listens at none of the host's addresses.

    `number` counts ports of one host with the same `label_key`, from 1.
    """
    addresses = _reached_at(facts.addresses, host.addresses)
    if not addresses:
        return None
    service = TYPES[facts.protocol]
    name = _in_label(facts.name) + (f" #{number}" if number > 1 else "")
    label = f"{name} on {_in_label(host.gateway)}".encode()[:_MAX_LABEL_BYTES]
    return Announcement(
        type=service,
        instance=f"{label.decode(errors='ignore').rstrip()}.{service}",
        server=f"{_host_label(host, facts.addresses)}.local.",
        tcp_port=facts.tcp_port,
        addresses=addresses,
        txt=tuple(_txt(host, facts)),
    )


def label_key(name: str) -> str:
    """Return a key that is equal for names of ports that are equal in DNS, which ignores case."""
    return _in_label(name).casefold()


def suffixed(announcement: Announcement, suffix: str) -> Announcement:
    """Return the announcement under another name, for a name in use."""
    label = announcement.instance.removesuffix(f".{announcement.type}")
    shorter = label.encode()[: _MAX_LABEL_BYTES - len(suffix) - 1].decode(errors="ignore")
    return replace(announcement, instance=f"{shorter}-{suffix}.{announcement.type}")


def _in_label(text: str) -> str:
    """Replace dots, which join labels of DNS and are not escaped everywhere."""
    return text.replace(".", "-")


@lru_cache(maxsize=256)  # most ports listen at the same addresses
def _reached_at(listens_at: tuple[str, ...], own_addresses: tuple[str, ...]) -> tuple[str, ...]:
    bound = [ipaddress.ip_address(text.partition("%")[0]) for text in listens_at]
    reached = {
        address
        for address in map(ipaddress.ip_address, own_addresses)
        if address in bound
        or any(each.is_unspecified and each.version == address.version for each in bound)
    }
    return tuple(str(address) for address in sorted(reached, key=_by_kind))


def _by_kind(address: _IpAddress) -> tuple[int, bool, int]:
    return address.version, address.is_link_local, int(address)


def _host_label(host: Host, listens_at: tuple[str, ...]) -> str:
    """Return the host's name for address records.

    Other programs such as Avahi announce the machine's own name, with other addresses. For the
    same reason, ports that are bound to other addresses are on a host of another name.
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


def _txt(host: Host, facts: PortFacts) -> Iterator[tuple[str, str]]:
    """Yield the keys of the TXT record that have a value."""
    values = {
        "txtvers": "1",
        "provider": PROVIDER,
        "gateway": host.gateway,
        "id": host.id,
        "name": facts.name,
        "protocol": facts.protocol,
        "gensiostack": _GENSIO_STACKS[facts.protocol, facts.tls],
        "tls": "yes" if facts.tls else "",
        "kind": facts.usb.kind,
        "chip": facts.usb.chip,
        "usb": facts.usb.ids,
        "serial": facts.usb.serial,
        "present": "yes" if facts.is_present else "no",
    }
    for key, value in values.items():
        room = _MAX_TXT_BYTES - len(key) - 1
        if clipped := value.encode()[:room].decode(errors="ignore"):
            yield key, clipped


# --- discovery


@dataclass(frozen=True, slots=True)
class FoundPort:
    """A port of a gateway, as it was announced.

    A port with TLS has a URL of our own, `tls://`: no tool speaks it without help. `gateway_id`
    distinguishes gateways of one name.
    """

    gateway: str
    gateway_id: str
    name: str
    url: str
    protocol: str
    host: str
    addresses: tuple[str, ...]
    tcp_port: int
    tls: bool
    usb: UsbDocument
    is_present: bool


def understood(
    txt: Mapping[bytes, bytes | None],
    server: str,
    addresses: Iterable[str],
    tcp_port: int,
    own_networks: Iterable[str] = (),
) -> FoundPort | None:
    """Return the port of an announcement, None if it is not a gateway's.

    Its texts come from the network: they are bounded and made printable. Its URL has the address
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
    tls = texts.get("tls") == "yes"
    scheme = "tls" if tls else _SCHEMES[protocol]
    host = f"[{ordered[0]}]" if ":" in ordered[0] else ordered[0]
    return FoundPort(
        gateway_id=texts.get("id", ""),
        url=f"{scheme}://{host}:{tcp_port}",
        protocol=protocol,
        host=_harmless(server.rstrip(".")),
        addresses=ordered,
        tcp_port=tcp_port,
        tls=tls,
        usb=UsbDocument(*(texts.get(key, "") for key in ("usb", "kind", "chip", "serial"))),
        is_present=texts.get("present") != "no",
        gateway=texts.get("gateway", ""),
        name=texts.get("name", ""),
    )


def _harmless(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_SHOWN_CHARS])


def _nearest_first(addresses: Iterable[str], own_networks: Iterable[str]) -> tuple[str, ...]:
    networks = [ipaddress.ip_network(network) for network in own_networks]

    def distance(text: str) -> tuple[bool, tuple[int, bool, int]]:
        address = ipaddress.ip_address(text.partition("%")[0])
        return not any(address in network for network in networks), _by_kind(address)

    return tuple(sorted(addresses, key=distance))


async def discover(timeout_s: float, interfaces: Sequence[str] = ()) -> list[FoundPort]:
    """Return the ports that answer within `timeout_s`, by gateway and name.

    `interfaces` as in MdnsConfig; without any and without a network, this host alone is asked.
    Raises MdnsError when nothing can be asked.
    """
    load()
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf  # noqa: PLC0415

    own = own_addresses(interfaces)
    if not own.addresses:
        if interfaces:
            raise MdnsError(f"no network interface {', '.join(interfaces)} with an address")
        own = own_addresses(("lo",))
    names: dict[str, str] = {}  # with their types

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: object) -> None:  # noqa: ARG001 - zeroconf's names
        if len(names) < MAX_FOUND:
            names[name] = service_type

    try:
        zeroconf = AsyncZeroconf(interfaces=own.to_speak_at)
    except OSError as error:
        raise MdnsError(f"multicast DNS: {error.strerror or error}") from error
    try:
        browser = AsyncServiceBrowser(zeroconf.zeroconf, list(TYPES.values()), handlers=[changed])
        await clock.sleep(timeout_s)
        await browser.async_cancel()
        asked = (_details(zeroconf, *each, own.networks) for each in names.items())
        ports = [port for port in await asyncio.gather(*asked) if port is not None]
    finally:
        await zeroconf.async_close()
    return sorted(
        ports,
        key=lambda each: (_natural(each.gateway), each.gateway_id, _natural(each.name), each.url),
    )


async def _details(
    zeroconf: AsyncZeroconf, name: str, service_type: str, own_networks: Iterable[str]
) -> FoundPort | None:
    from zeroconf.asyncio import AsyncServiceInfo  # noqa: PLC0415

    info = AsyncServiceInfo(service_type, name)
    if not await info.async_request(zeroconf.zeroconf, 1000 * _DETAILS_LIMIT_S):
        return None
    addresses = info.parsed_scoped_addresses()
    return understood(info.properties, info.server or "", addresses, info.port or 0, own_networks)


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts shelf-9 before shelf-10."""
    parts = re.split(r"([0-9]{1,18})", text)
    return [(int(part) if part.isdecimal() else -1, part) for part in parts]


_HEAD: Final = ("GATEWAY", "PORT", "URL", "BOARD", "SERIAL")


def to_table(ports: Sequence[FoundPort]) -> str:
    """Return a line per port with aligned columns."""
    if not ports:
        return "no gateway has answered"
    ids: dict[str, set[str]] = {}
    for port in ports:
        ids.setdefault(port.gateway, set()).add(port.gateway_id)
    rows = [_HEAD, *(_row(port, is_shared=len(ids[port.gateway]) > 1) for port in ports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(port: FoundPort, *, is_shared: bool) -> tuple[str, ...]:
    """Return the cells; `is_shared` if several gateways have this one's name."""
    gateway = f"{port.gateway} ({port.gateway_id or 'no id'})" if is_shared else port.gateway
    board = (port.usb.chip or port.usb.kind or "-") + ("" if port.is_present else ", absent")
    return gateway, port.name, port.url, board, port.usb.serial or "-"


def to_json(ports: Sequence[FoundPort]) -> str:
    """Return a list of objects, one line each."""
    return "[" + ",\n ".join(json.dumps(asdict(port)) for port in ports) + "]"
