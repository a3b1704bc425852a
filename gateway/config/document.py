"""The configuration as frozen dataclasses: the typed result of reading a YAML file.

`schema` describes the fields that have the names of keys. Nothing here looks at hardware.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from gateway.config.usb_match import DeviceChoice
from gateway.errors import ConfigProblem
from gateway.net.tls_context import Tls
from gateway.protocol.reset import ResetChoice
from gateway.protocol.serial_settings import SerialSettings

#: With the longest name of a port and " on " it fills a label of DNS, which has 63 bytes.
MAX_INSTANCE_CHARS: Final = 27

_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Networks that a single client can be expected to have many addresses of.
_CLIENT_PREFIX_V4: Final = 24
_CLIENT_PREFIX_V6: Final = 64


class Protocol(Enum):
    """The protocol of a port's TCP connections."""

    RFC2217 = "rfc2217"  # Telnet with COM-PORT-OPTION: clients set baud rate and lines
    RAW = "raw"  # a plain byte pipe: settings from the YAML, lines from the gateway


class OnConnect(Enum):
    """The reset of the board when a client gets control of the port, before its first byte."""

    NOTHING = "nothing"
    BOOTLOADER = "bootloader"
    RESET = "reset"


class OnDisconnect(Enum):
    """The reset of the board after its last client has disconnected."""

    NOTHING = "nothing"
    RESET = "reset"


class OnAbsent(Enum):
    """The answer to a client that connects while the device is not plugged in."""

    REFUSE = "refuse"  # one line with the reason
    WAIT = "wait"  # the client is queued until the device is plugged in


class Opening(Enum):
    """When the gateway has a port's tty open."""

    ALWAYS = "always"  # while the device is plugged in
    ON_CONNECT = "on_connect"  # while a client is connected; local tools can use it otherwise


class Sharing(Enum):
    """What happens when a second client connects."""

    EXCLUSIVE = "exclusive"  # the second client is rejected
    TAKEOVER = "takeover"  # the first client is disconnected
    PREEMPT = "preempt"  # the first client is suspended until the second disconnects
    SHARED = "shared"  # both use the port


class SlowClient(Enum):
    """What happens to output that a client does not read."""

    PAUSE = "pause"  # it stays in the kernel, then at the board, until the client reads
    DROP_OLDEST = "drop_oldest"  # it is buffered, then the oldest is dropped
    DISCONNECT = "disconnect"  # it is buffered, then the client is disconnected


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address; `host` is an IP address or a host name."""

    host: str
    tcp_port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.tcp_port}"


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can connect to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether `host` stands for all addresses of this machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Networks:
    """An access list; without members it contains every address."""

    members: tuple[_IpNetwork, ...] = ()

    def __str__(self) -> str:
        return ", ".join(str(member) for member in self.members) or "all"

    def have(self, host: str) -> bool:
        """Whether the address of a peer is in the list; text that is no address is not."""
        if not self.members:
            return True
        try:
            address = _ip_address(host)
        except ValueError:
            return False
        return any(address in member for member in self.members)


EVERYBODY: Final = Networks()


def peer_network(host: str) -> str:
    """The network under which a peer is logged: a /24, for IPv6 a /64."""
    return _network_of(host, _CLIENT_PREFIX_V4, _CLIENT_PREFIX_V6)


def peer_holder(host: str) -> str:
    """The address or network under which a peer's connections are counted: for IPv6 a /64.

    A host has any number of addresses in a /64, which the hosts of a LAN share. A link-local
    address counts alone, since its network is the same in every LAN.
    """
    is_link_local = host.lower().startswith("fe80:")
    return _network_of(host, 32, 128 if is_link_local else _CLIENT_PREFIX_V6)


def _network_of(host: str, prefix_v4: int, prefix_v6: int) -> str:
    try:
        address = _ip_address(host)
    except ValueError:
        return "unknown"
    prefix = prefix_v4 if address.version == 4 else prefix_v6
    return str(ipaddress.ip_network((address, prefix), strict=False))


def _ip_address(host: str) -> _IpAddress:
    # The interface behind a link-local address says nothing about the peer.
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


@dataclass(frozen=True, slots=True)
class Access:
    """Which connections become sessions."""

    allow: Networks = EVERYBODY
    max_sessions: int = 32
    accept_any_protocol: bool = False


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """How long a client stays connected, and how much of the board's output it gets."""

    idle_timeout_s: float = 0.0
    slow_client: SlowClient = SlowClient.PAUSE
    client_buffer_kib: int = 256
    replay: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """How much of the board's output is kept: `record_kib` in memory, and in a `log_file`."""

    record_kib: int = 64
    log_file: str | None = None
    log_max_kib: int = 1024
    log_keep: int = 3

    def of_port(self, name: str) -> Recording:
        """The same with the port's name in place of `{name}`."""
        if self.log_file is None:
            return self
        return replace(self, log_file=self.log_file.replace("{name}", name))


@dataclass(frozen=True, slots=True)
class PortConfig:
    """One entry of `ports`.

    Clients connect to `tcp_port` (0: any free port) at `host`, or `tcp_port` is None and the
    gateway connects to `connect`.
    """

    name: str
    device: DeviceChoice
    tcp_port: int | None = None
    connect: Address | None = None
    host: str = "127.0.0.1"
    serial: SerialSettings = field(default_factory=SerialSettings)
    resets: ResetChoice = field(default_factory=ResetChoice)
    grace_s: float = 10.0
    on_absent: OnAbsent = OnAbsent.REFUSE
    protocol: Protocol = Protocol.RFC2217
    on_connect: OnConnect = OnConnect.NOTHING
    on_disconnect: OnDisconnect = OnDisconnect.NOTHING
    access: Access = Access()
    open: Opening = Opening.ALWAYS
    tls: Tls | None = None
    sharing: Sharing = Sharing.EXCLUSIVE
    limits: ClientLimits = ClientLimits()
    recording: Recording = Recording()

    def named(self, name: str) -> PortConfig:
        """The same under a name, which also replaces `{name}` in its values."""
        return replace(self, name=name, recording=self.recording.of_port(name))


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """An entry of `ports` whose `tcp` is a range: each device that it fits gets one TCP port.

    `pattern` is what its ports have in common; its name is the pool's.
    """

    tcp_ports: range
    pattern: PortConfig

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.pattern.name

    def port(self, tcp_port: int) -> PortConfig:
        """One port of the pool."""
        name = pool_member_name(self.name, tcp_port)
        return replace(self.pattern.named(name), tcp_port=tcp_port)


def pool_member_name(pool: str, tcp_port: int) -> str:
    """The name of one port of a pool."""
    return f"{pool}-{tcp_port}"


def tcp_text(tcp: int | range) -> str:
    """A TCP port or the range of a pool, as written in the YAML."""
    return f"{tcp.start}-{tcp.stop - 1}" if isinstance(tcp, range) else str(tcp)


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The section `http`: `host` and `tcp_port` (0: any free port) are those of its `listen`."""

    host: str
    tcp_port: int
    allow: Networks = EVERYBODY
    tls: Tls | None = None
    token_file: str | None = None
    host_names: frozenset[str] = frozenset()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return str(Address(self.host, self.tcp_port))


@dataclass(frozen=True, slots=True)
class MdnsConfig:
    """The section `mdns`: None is this host's name, no interfaces are all but loopback."""

    instance_name: str | None = None
    interfaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The section `connections`; an IPv6 address stands for its /64 (`peer_holder`)."""

    #: Twice what 64 ports with 32 sessions each need.
    max: int = 4096
    #: A CI host or a proxy with 16 sessions on each of 64 ports stays below.
    max_per_address: int = 1024


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The whole file; `warnings` are values that can be served and are seldom meant."""

    ports: tuple[PortConfig, ...]
    pools: tuple[PoolConfig, ...] = ()
    http: HttpConfig | None = None
    mdns: MdnsConfig | None = None
    connections: ConnectionLimits = ConnectionLimits()
    warnings: tuple[ConfigProblem, ...] = field(default=(), compare=False)
