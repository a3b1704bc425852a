"""One port at one moment, as status, HTTP, metrics, mDNS and exports describe it.

`running_port.document` builds it from a running port. Its JSON is the schema `port` of
web/openapi.yaml; `metrics`, `mdns.dns_sd` and `labgrid_export` write their formats from it.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import Any, Final, Self

from gateway.protocol.reset import Lines
from gateway.protocol.serial_settings import FlowControl, Parity, SerialSettings, StopBits

#: Every path of the HTTP interface begins with it, but `/`, `/metrics` and `/openapi.json`.
API: Final = "/api/v1"


class PortState(StrEnum):
    """The state of a port."""

    OPENING = "opening"  # the tty is being opened, for the first time or after RELEASED
    ABSENT = "absent"  # the tty does not exist; opening is retried
    IDLE = "idle"  # open, no client has the port
    NOT_CONNECTED = "not connected"  # idle, and the peer that the port dials is not connected
    IN_USE = "in use"  # open, a client controls the port
    OFFLINE = "offline"  # the tty has vanished under clients, or is lent; it is waited for
    CLEANUP = "cleanup"  # open; lines and settings are being restored for the next client
    RELEASED = "released"  # closed on request, for a local tool or until a client connects
    BROKEN = "broken"  # the tty exists and does not work; opening is retried
    STOPPED = "stopped"  # the port is being removed


#: In which no board can be used now.
_WITHOUT_BOARD: Final = frozenset(
    {PortState.ABSENT, PortState.OFFLINE, PortState.BROKEN, PortState.STOPPED}
)


class ClientState(StrEnum):
    """What a connected client may do."""

    CONTROLLER = "controller"  # its bytes and settings reach the board
    SUSPENDED = "suspended"  # another client controls the port for now; it receives output


#: From what an ioctl takes on a good host to what makes a client give up, in seconds. Draining what
#: was written before takes its time on the wire: 64 KiB at 115200 baud are 5.7 s.
CONTROL_CALL_BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)


class Histogram:
    """How many values were at most each of some ascending bounds, and their sum.

    `counts` has one more for what was above all bounds; they are not cumulative.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> Histogram:
        """The same now, for another thread to read."""
        copied = Histogram(self.bounds)
        copied.counts = list(self.counts)
        copied.sum = self.sum
        return copied


class PortCounts:
    """What has happened since the port is served.

    `resets` counts by what the board was to start (bootloader, app) and by the strategy;
    `control_calls` how long calls took that may block in the kernel.
    """

    def __init__(self) -> None:
        self.opened = 0  # how often the tty was opened
        self.input_dropped_bytes = 0  # sent by clients for the board, which has not got them
        self.output_dropped_bytes = 0  # that clients were too slow for
        self.resets: Counter[tuple[str, str]] = Counter()
        self.control_calls = Histogram(CONTROL_CALL_BOUNDS_S)


@dataclass(frozen=True, slots=True)
class ClientDocument:
    """A connected client.

    `address` is `address:port` and, in parentheses, the name in its certificate; for a task of the
    gateway, such as flashing, its description. `connected_at` is ISO 8601, UTC.
    """

    address: str
    state: ClientState
    connected_at: str


@dataclass(frozen=True, slots=True)
class UsbDocument:
    """A USB device: `10c4:ea60`, what the table of boards says of it, its serial number.

    Texts are empty where unknown.
    """

    ids: str
    kind: str = ""
    chip: str = ""
    serial: str = ""


UNKNOWN_USB: Final = UsbDocument("")


@dataclass(frozen=True, slots=True, kw_only=True)
class PortDocument:
    """See the module. Counts are since the port is served; positions count the board's bytes.

    `host` and `connect` are the configuration's: the first is None for a port that dials out, the
    second for one that listens. `tcp_port` is None and `addresses` empty while it does not listen.
    `settings` and `lines` are None while the port is not open. `rejected` counts by reason clients
    that were not served: `unavailable` got a message, the others were closed without one.
    """

    name: str
    state: PortState
    reason: str = ""  # for the state
    device: str
    protocol: str
    sharing: str
    tls: bool = False
    host: str | None = None
    addresses: tuple[str, ...] = ()
    tcp_port: int | None = None
    connect: str | None = None
    usb: UsbDocument | None = None  # the device that was open last
    configured_baudrate: int
    settings: SerialSettings | None = None
    lines: Lines | None = None
    clients: tuple[ClientDocument, ...] = ()
    received_bytes: int = 0  # from the board
    sent_bytes: int = 0  # to the board
    output_dropped_bytes: int = 0  # output that clients were too slow for
    input_dropped_bytes: int = 0  # from clients, and never accepted by the board
    sessions: int = 0  # clients that have had the port
    rejected: Mapping[str, int] = field(default_factory=dict)
    reconnects: int = 0  # the tty was opened again
    peer_connected: bool | None = None  # of a port that dials out
    dial_failures: int = 0
    recorded_from: int = 0  # the first byte that is kept
    recorded_to: int = 0  # behind the last byte received
    # For metrics only:
    resets: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by target, strategy
    control_calls: Histogram | None = None

    @property
    def is_present(self) -> bool:
        """Whether the board is plugged in and works, as far as known."""
        return self.state not in _WITHOUT_BOARD

    @property
    def address(self) -> str:
        """Where clients connect, or the peer that is dialled; empty while not bound."""
        if self.connect is not None:
            return f"-> {self.connect}"
        return "" if self.tcp_port is None else f"{self.host}:{self.tcp_port}"

    def addresses_of(self, state: ClientState) -> list[str]:
        """The addresses of the clients in a state."""
        return [client.address for client in self.clients if client.state is state]

    def to_json(self) -> dict[str, Any]:
        """The document as JSON's types."""
        return {name: plain(getattr(self, name)) for name in _JSON_KEYS}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; unknown keys are ignored.

        Raises KeyError, TypeError, ValueError or AttributeError for anything else.
        """
        usb, settings, lines = content["usb"], content["settings"], content["lines"]
        values = _known(content, _JSON_KEYS)
        values["state"] = PortState(content["state"])
        values["addresses"] = tuple(content["addresses"])
        values["usb"] = usb and UsbDocument(**_known(usb, _KEYS_OF[UsbDocument]))
        values["settings"] = settings and _settings_from_json(settings)
        values["lines"] = lines and Lines(lines["dtr"], lines["rts"])
        values["clients"] = tuple(
            ClientDocument(each["address"], ClientState(each["state"]), each["connected_at"])
            for each in content["clients"]
        )
        return cls(**values)


_NOT_IN_JSON: Final = frozenset({"resets", "control_calls"})
_JSON_KEYS: Final = tuple(
    each.name for each in fields(PortDocument) if each.name not in _NOT_IN_JSON
)
_KEYS_OF: Final[dict[type, tuple[str, ...]]] = {
    kind: tuple(each.name for each in fields(kind))
    for kind in (ClientDocument, UsbDocument, SerialSettings, Lines)
}


def plain(value: object) -> Any:
    """A value of a document as JSON's types."""
    if keys := _KEYS_OF.get(type(value)):
        return {key: plain(getattr(value, key)) for key in keys}
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return value.value if isinstance(value, Enum) else value


def _known(content: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: content[key] for key in keys if key in content}


def _settings_from_json(content: Mapping[str, Any]) -> SerialSettings:
    return SerialSettings(
        content["baudrate"],
        content["bytesize"],
        Parity(content["parity"]),
        StopBits(content["stopbits"]),
        FlowControl(content["flow_control"]),
    )


def utc_text(at: datetime) -> str:
    """A time in ISO 8601 with milliseconds and zone, in UTC."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


def not_served_json(not_served: Mapping[str, str]) -> list[dict[str, str]]:
    """USB devices that no port serves, by device with the reason, as JSON's types."""
    return [{"device": device, "reason": reason} for device, reason in not_served.items()]


def service_json(version: str, ports: Iterable[PortDocument], not_served: Mapping[str, str]) -> str:
    """All ports of a service as one line of JSON: the answer of `/api/v1/ports` and of `status`."""
    return json.dumps(
        {
            "version": version,
            "ports": [port.to_json() for port in ports],
            "not_served": not_served_json(not_served),
        }
    )
