"""`esp-gateway devices`: the plugged-in devices and their ports, as a table, JSON or YAML."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.config.document import GatewayConfig, pool_member_name
from gateway.config.usb_match import UsbTty
from gateway.protocol.board_kinds import CHANGES_IDENTITY, BoardKind, kind_of, row_of
from gateway.usb.inventory import assign, assign_pools, jtag_note, real_paths_of
from gateway.usb.pools import PoolTable
from gateway.usb.sysfs import NoTty, Sysfs

_FIRST_TCP_PORT: Final = 4001
_LAST_TCP_PORT: Final = 65535

_ESPRESSIF: Final = 0x303A
_OWN_USB: Final = {BoardKind.USB_JTAG, BoardKind.USB_OTG}
_BRIDGES: Final = {BoardKind.BRIDGE, BoardKind.FLOW_CONTROL_BRIDGE}

_HEAD: Final = ("PATH", "USB", "CHIP", "LOCATION", "SERIAL", "PRODUCT", "PORT")


@dataclass(frozen=True, slots=True)
class Pair:
    """A chip's own USB and a UART bridge on the hub at `hub`.

    They are one board for certain if the hub calls both parts of it (`removable` in sysfs is
    `fixed`). Else they are the only devices on a hub that does not say so: the operator has to
    look.
    """

    ttys: tuple[UsbTty, UsbTty]
    hub: str
    is_certain: bool

    def __str__(self) -> str:
        paths = " and ".join(tty.path for tty in self.ttys)
        if self.is_certain:
            return f"{paths}: one board, with a hub of its own at {self.hub}"
        return f"{paths}: alone on the hub at {self.hub}, either two boards or one that has both"


@dataclass(frozen=True, slots=True)
class Listing:
    """The plugged-in devices, and what a configuration makes of them.

    `ports` has the name of the port that serves a device by the device's path, `boards` the pairs
    that are one board; `notes` are lines for a person.
    """

    ttys: Sequence[UsbTty]
    no_tty: Sequence[NoTty]
    ports: dict[str, str]
    boards: list[Pair]
    notes: list[str]

    @property
    def devices(self) -> list[UsbTty | NoTty]:
        """All devices."""
        return [*self.ttys, *self.no_tty]


def listing(sysfs: Sysfs, config: GatewayConfig, table: PoolTable) -> Listing:
    """List the devices, those that can't be opened included; blocks.

    `table` has the ports of pools, and is brought up to date.
    """
    ttys = sysfs.usb_ttys(ready_only=False)
    no_tty = sysfs.no_tty()
    choices = {port.name: port.device for port in config.ports if port.device.simulated is None}
    real_paths = real_paths_of(config, ttys)
    assignment = assign(choices, ttys, real_paths)
    owners = {real_paths[path]: name for name, path in assignment.paths.items()}
    real = {tty.path: real_paths.get(tty.path, "") for tty in ttys}
    ports = {path: owners[real[path]] for path in real if real[path] in owners}
    served, not_served = assign_pools(config, assignment, ttys, table)
    ports |= {tty.path: pool_member_name(*place) for place, tty in served.ttys.items()}
    jtag = [tty for tty in ttys if tty.is_jtag and tty.path not in ports]
    not_served |= {str(tty): jtag_note(tty) for tty in jtag}
    pairs = find_pairs(ttys, sysfs.device_names())
    notes = [
        *(f"{name}: {problem}" for name, problem in assignment.problems.items()),
        *(
            f"{name}: not plugged in ({choice})"
            for name, choice in choices.items()
            if name not in assignment.paths and name not in assignment.problems
        ),
        *(f"{tty}: {reason}" for tty, reason in not_served.items()),
        *(f"{device}: no tty: {device.reason}" for device in no_tty),
        *(str(pair) for pair in pairs),
    ]
    return Listing(ttys, no_tty, ports, [pair for pair in pairs if pair.is_certain], notes)


def find_pairs(ttys: Sequence[UsbTty], locations: Sequence[str]) -> list[Pair]:
    """Return the pairs among the ttys; `locations` are those of all USB devices."""
    hubs: dict[str, list[UsbTty]] = {}
    for tty in ttys:
        hub, dot, _ = tty.location.rpartition(".")
        # Without a dot it is on the host's own root hub.
        if dot and not tty.is_jtag:
            hubs.setdefault(hub, []).append(tty)
    pairs = []
    for hub, members in hubs.items():
        fixed = _pair_of([tty for tty in members if tty.is_fixed])
        if fixed is not None:
            pairs.append(Pair(fixed, hub, is_certain=True))
            continue
        children = [each for each in locations if each.rpartition(".")[0] == hub]
        alone = _pair_of(members) if len(children) == 2 else None
        if alone is not None:
            pairs.append(Pair(alone, hub, is_certain=False))
    return pairs


def _pair_of(ttys: Sequence[UsbTty]) -> tuple[UsbTty, UsbTty] | None:
    """Return the ttys if they are one chip and one bridge, of two devices."""
    own = [tty for tty in ttys if tty.vendor_id == _ESPRESSIF and _kind(tty) in _OWN_USB]
    bridges = [tty for tty in ttys if _kind(tty) in _BRIDGES]
    if (len(ttys), len(own), len(bridges)) != (2, 1, 1) or ttys[0].location == ttys[1].location:
        return None
    return ttys[0], ttys[1]


def to_table(listed: Listing) -> str:
    """Return a line per device with aligned columns, then the notes."""
    if not listed.devices:
        return "\n".join(["no USB serial device is plugged in", *listed.notes])
    rows = [_HEAD, *(_row(each, listed) for each in listed.devices)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *listed.notes])


def _row(device: UsbTty | NoTty, listed: Listing) -> tuple[str, ...]:
    chip = _chip_and_kind(device)[0] or "-"
    texts = device.serial or "-", device.product or "-"
    if isinstance(device, NoTty):
        return ("no tty", device.usb, chip, device.location, *texts, "-")
    if device.is_jtag:
        chip += ", JTAG channel"
    port = listed.ports.get(device.path, "-")
    return (device.path, device.usb, chip, _location(device, listed), *texts, port)


def to_json(listed: Listing) -> str:
    """Return a list of objects, one line each."""
    objects = [_object(each, listed) for each in listed.devices]
    return "[" + ",\n ".join(json.dumps(each, ensure_ascii=False) for each in objects) + "]"


def _object(device: UsbTty | NoTty, listed: Listing) -> dict[str, object]:
    chip, kind = _chip_and_kind(device)
    common = {"usb": device.usb, "location": device.location}
    texts = {"serial": device.serial, "product": device.product, "chip": chip, "kind": kind}
    if isinstance(device, NoTty):
        return {"path": None, **common, **texts, "port": None, "no_tty": device.reason}
    return {
        "path": device.path,
        **common,
        "interface": device.interface,
        "manufacturer": device.manufacturer,
        **texts,
        "channel": "JTAG" if device.is_jtag else None,
        "same_board": _same_board(device, listed),
        "port": listed.ports.get(device.path),
    }


def to_yaml(listed: Listing, config: GatewayConfig) -> str:
    """Return entries for the devices that have no port, on free TCP ports."""
    used = {port.tcp_port for port in config.ports}
    used |= {tcp_port for pool in config.pools for tcp_port in pool.tcp_ports}
    free = (number for number in range(_FIRST_TCP_PORT, _LAST_TCP_PORT + 1) if number not in used)
    serials = Counter(tty.serial_key for tty in listed.ttys)
    unserved = [tty for tty in listed.ttys if tty.path not in listed.ports]
    entries: list[str] = []
    for tty, tcp_port in zip((tty for tty in unserved if not tty.is_jtag), free, strict=False):
        entries += _entry(tty, tcp_port, listed, is_shared=serials[tty.serial_key] > 1)
    head = "ports:" if entries else "ports: []  # nothing is plugged in that has no port"
    left_out = [f"  # {tty}: {jtag_note(tty)}" for tty in unserved if tty.is_jtag]
    left_out += [f"  # {device}: no tty: {device.reason}" for device in listed.no_tty]
    return "\n".join([head, *entries, *left_out])


def _entry(tty: UsbTty, tcp_port: int, listed: Listing, *, is_shared: bool) -> Iterator[str]:
    about = " ".join(text for text in (tty.manufacturer, tty.product) if text)
    yield f"  # {tty.path} now: {about or tty.usb}"
    if others := _same_board(tty, listed):
        yield f"  # the same board as {', '.join(others)}"
    yield f"  - name: {_name(tty, listed)}"
    yield f"    tcp: {tcp_port}"
    siblings = _siblings(tty, listed)
    if tty.tty_number or any(each.interface == tty.interface for each in siblings):
        # No match distinguishes the ttys of one interface.
        yield f"    device: {tty.path}"
        return
    yield "    device:"
    # The program of a chip on native USB chooses its name and serial number.
    if tty.serial_key and not is_shared and _kind(tty) not in CHANGES_IDENTITY:
        yield f"      serial: {json.dumps(tty.serial, ensure_ascii=False)}"
        if siblings:
            yield f"      interface: {tty.interface}"
    else:
        yield f'      location: "{_location(tty, listed)}"'


def _name(tty: UsbTty, listed: Listing) -> str:
    name, kind = _chip_and_kind(tty)
    called = "usb" if name is None else name.partition(",")[0].partition(" (")[0]
    if kind == BoardKind.USB_OTG.value:
        called = kind
    chip = re.sub(r"[^a-z0-9]+", "-", called.lower())
    place = re.sub(r"[^0-9]+", "-", _location(tty, listed))
    number = f"-{tty.tty_number}" if tty.tty_number else ""
    return f"{chip[:14].strip('-')}-{place}{number}"[:32]


def _chip_and_kind(device: UsbTty | NoTty) -> tuple[str | None, str | None]:
    row = row_of((device.vendor_id, device.product_id))
    return (None, None) if row is None else (row.name, row.kind.value)


def _kind(tty: UsbTty) -> BoardKind:
    return kind_of((tty.vendor_id, tty.product_id))


def _same_board(tty: UsbTty, listed: Listing) -> list[str]:
    """Return the paths of the other ttys of a tty's board."""
    return [
        each.path for pair in listed.boards if tty in pair.ttys for each in pair.ttys if each != tty
    ]


def _siblings(tty: UsbTty, listed: Listing) -> list[UsbTty]:
    """Return the other ttys of a tty's device."""
    return [each for each in listed.ttys if each.socket == tty.socket and each != tty]


def _location(tty: UsbTty, listed: Listing) -> str:
    """Return the location, with the interface if its device has ttys on several."""
    others = any(each.interface != tty.interface for each in _siblings(tty, listed))
    unit = f":{tty.configuration}.{tty.interface}" if others else ""
    return f"{tty.location}{unit}"
