"""zeroconf, loaded when it is wanted, and where on this host's networks it is to speak.

An extra, `mdns`: a gateway that is not to be found by itself does without.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from gateway.config.document import GatewayConfig, is_loopback, pool_member_name
from gateway.errors import GatewayError
from gateway.mdns.records import label_key

_SYS_CLASS_NET = Path("/sys/class/net")

MISSING = "the Python package zeroconf is not installed: pip install 'esp-serial-gateway[mdns]'"


class MdnsError(GatewayError):
    """For the operator: why multicast DNS can't be spoken."""


def is_installed() -> bool:
    """Whether zeroconf could be loaded; looks for it without loading it."""
    return importlib.util.find_spec("zeroconf") is not None


def warnings(config: GatewayConfig) -> Iterator[str]:
    """What the operator should know of a configuration that asks for announcements."""
    if config.mdns is None:
        return
    if not is_installed():
        yield f"mdns: nothing is announced, {MISSING}"
    yield from _shared_labels(config)
    if any(is_loopback(each) or each == "lo" for each in config.mdns.interfaces):
        return  # it is known what is wanted
    for name, host in [(each.name, each.host) for each in config.ports if each.connect is None] + [
        (pool.name, pool.pattern.host) for pool in config.pools
    ]:
        if is_loopback(host):
            yield f"{name}: not announced, it listens at {host} for this machine only"


def _shared_labels(config: GatewayConfig) -> Iterator[str]:
    """Names of ports that DNS takes for the same."""
    names = [port.name for port in config.ports]
    names += [pool_member_name(pool.name, n) for pool in config.pools for n in pool.tcp_ports]
    first: dict[str, str] = {}
    for name in names:
        if (earlier := first.setdefault(label_key(name), name)) != name:
            yield (
                f"{name}: multicast DNS takes its name for that of {earlier}, and it is announced "
                "with a number behind it: rename one of them"
            )


def load() -> None:
    """Load zeroconf, which takes up to a second. Raises MdnsError if it is not installed."""
    try:
        # By itself first: so it is the one that is named when it is missing.
        import zeroconf  # noqa: PLC0415 - an extra, imported where it is used
        import zeroconf.asyncio  # noqa: F401, PLC0415
    except ImportError as error:
        raise MdnsError(MISSING if error.name == "zeroconf" else f"zeroconf: {error}") from error


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """Addresses of this host, and the networks that they are in.

    `hardware` is the MAC address of the first network interface that has one of the addresses:
    no other machine of that network has it. Empty for loopback.
    """

    addresses: tuple[str, ...]
    networks: tuple[str, ...]
    hardware: str = ""

    @property
    def to_speak_at(self) -> list[str]:
        """Where multicast DNS is spoken: over IPv4 where there is any, one protocol is enough."""
        by_version = {
            version: [a for a in self.addresses if ipaddress.ip_address(a).version == version]
            for version in (4, 6)
        }
        return by_version[4] or by_version[6]


def own_addresses(interfaces: Sequence[str]) -> OwnAddresses:
    """The addresses of these interfaces, given by name or address; of none: all but loopback."""
    import ifaddr  # noqa: PLC0415 - comes with zeroconf

    found = []
    hardware = ""
    for adapter in sorted(ifaddr.get_adapters(), key=lambda each: each.index or 0):
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            address = ipaddress.ip_address(text.partition("%")[0])
            if _is_wanted(address, adapter.name, interfaces):
                found.append(ipaddress.ip_interface(f"{address}/{ip.network_prefix}"))
                hardware = hardware or _hardware(adapter.name)
    addresses = _texts(interface.ip for interface in found)
    return OwnAddresses(addresses, _texts(each.network for each in found), hardware)


def host_id(own: OwnAddresses) -> str:
    """6 hexadecimal digits that set this machine apart on its network.

    Not taken from /etc/machine-id: hosts that were cloned from one memory card share it.
    """
    digits = own.hardware.replace(":", "")[-6:]
    return digits if len(digits) == 6 else f"{crc32(socket.gethostname().encode()) & 0xFFFFFF:06x}"


def _hardware(interface: str) -> str:
    """The MAC address of an interface; empty where it has none (loopback, a tunnel)."""
    try:
        text = (_SYS_CLASS_NET / interface.partition(":")[0] / "address").read_text().strip()
    except (OSError, ValueError):
        return ""
    return text if re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", text) and text.strip("0:") else ""


def _texts(values: Iterable[object]) -> tuple[str, ...]:
    return tuple(sorted({str(value) for value in values}))


def _is_wanted(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, name: str, interfaces: Sequence[str]
) -> bool:
    if not interfaces:
        return not address.is_loopback
    return name in interfaces or str(address) in interfaces
