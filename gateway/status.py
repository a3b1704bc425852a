"""What the running service tells of its ports: one snapshot, as JSON for programs, as a table.

Where the numbers come from is `device`'s and `listener`'s matter, how they get from one process
to another `status_socket`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

#: Raised when a field changes its meaning or goes; new fields don't count.
FORMAT = 1

#: The state of a port with `connect` whose board is there and whose far end has not got it.
#: The other states are `device_state`'s.
NOT_CONNECTED = "not connected"


@dataclass(frozen=True, slots=True)
class PortSnapshot:
    """One port at one moment.

    `address` is where clients connect, empty while it could not be bound. `since` is the local
    time since when `client` has the device, both empty when nobody has it; of several, `client`
    names all that drive it, `watchers` those that are muted. The bytes count since the service
    has started: received from the board, sent to it. Clients that were told why they are not served
    are counted as `refused`, connections that were closed without a word as `not_allowed` (by
    `allow`), `too_many` (by `max_sessions`) and `not_secured` (no TLS, or no certificate that is
    accepted), connections that began with another protocol's greeting as `other_protocol`.
    `output_dropped_bytes` is output that clients were too slow for, `input_dropped_bytes` what
    clients have sent and the board has not got. `protocol`, `baudrate` and `tls` are the
    configuration's, the first empty if the service is too old for it.
    """

    name: str
    address: str
    device: str
    state: str
    reason: str
    client: str
    since: str
    settings: str
    lines: str
    received_bytes: int
    sent_bytes: int
    sessions: int
    refused: int = 0
    not_allowed: int = 0
    too_many: int = 0
    not_secured: int = 0
    other_protocol: int = 0
    output_dropped_bytes: int = 0
    input_dropped_bytes: int = 0
    watchers: str = ""
    protocol: str = ""
    baudrate: int = 0
    tls: bool = False


def to_json(
    version: str, ports: Iterable[PortSnapshot], not_served: Mapping[str, str] | None = None
) -> str:
    """The snapshot of a service as one line of JSON.

    `not_served` has USB devices that no port serves, with the reasons.
    """
    usb = [{"device": device, "reason": reason} for device, reason in (not_served or {}).items()]
    return json.dumps(
        {
            "format": FORMAT,
            "version": version,
            "ports": [asdict(port) for port in ports],
            "not_served": usb,
        }
    )


def from_json(line: str) -> tuple[str, list[PortSnapshot]]:
    """The service's version and its ports; ValueError with one line if it is no snapshot.

    Fields that are not known here are left out: the service may be newer.
    """
    try:
        content = json.loads(line)
        if content["format"] != FORMAT:
            raise ValueError(f"a snapshot of format {content['format']}, known is {FORMAT}")
        known = PortSnapshot.__dataclass_fields__
        ports = [
            PortSnapshot(**{key: value for key, value in port.items() if key in known})
            for port in content["ports"]
        ]
        return str(content["version"]), ports
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"no snapshot of an esp-gateway: {error}") from error


def notes_from_json(line: str) -> list[str]:
    """Lines for a person on USB devices that no port serves; none if it is no snapshot."""
    try:
        return [
            f"{each['device']}: {each['reason']}" for each in json.loads(line).get("not_served", [])
        ]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
        return []


_HEAD = (
    "PORT",
    "ADDRESS",
    "STATE",
    "CLIENT",
    "SINCE",
    "SETTINGS",
    "LINES",
    "FROM BOARD",
    "TO BOARD",
    "DROPPED",
    "REFUSED",
)


def to_table(ports: Iterable[PortSnapshot]) -> str:
    """The ports for a person, a line each, columns aligned; reasons behind the state.

    DROPPED are bytes of both directions: output that clients were too slow for, and what a board
    has not got. REFUSED are all clients that came and were not served.
    """
    rows = [_HEAD, *(_row(port) for port in ports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(port: PortSnapshot) -> tuple[str, ...]:
    return (
        port.name,
        port.address or "not bound",
        f"{port.state}: {port.reason}" if port.reason else port.state,
        " < ".join(part for part in (port.client, port.watchers) if part) or "-",
        port.since or "-",
        port.settings or "-",
        port.lines or "-",
        _amount(port.received_bytes),
        _amount(port.sent_bytes),
        _amount(port.output_dropped_bytes + port.input_dropped_bytes),
        str(
            port.refused + port.not_allowed + port.too_many + port.not_secured + port.other_protocol
        ),
    )


def _amount(n_bytes: int) -> str:
    """A number of bytes in at most six characters and a unit."""
    amount = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
