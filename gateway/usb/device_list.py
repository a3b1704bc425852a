"""`esp-gateway devices`: what is plugged in and who serves it, for a person, a program, the YAML.

What is plugged in is read by `sysfs`, who gets what is worked out as `inventory` does it; here it
is put into words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.config.document import GatewayConfig, pool_member_name
from gateway.config.usb_match import UsbTty
from gateway.protocol.board_kinds import CHANGES_IDENTITY, BoardKind, kind_of, row_of
from gateway.usb.assignment import Assignment, assign, jtag_note
from gateway.usb.board_pairs import Pair, find_pairs
from gateway.usb.no_tty import NoTty
from gateway.usb.pool_store import today
from gateway.usb.pool_table import PoolTable
from gateway.usb.sysfs import Sysfs, existing

_FIRST_TCP_PORT = 4001
_LAST_TCP_PORT = 65535

_HEAD = ("PATH", "USB", "CHIP", "LOCATION", "SERIAL", "PRODUCT", "PORT")


@dataclass(frozen=True, slots=True)
class Plugged:
    """What is plugged in: ttys, devices that should have one, and where there is any device."""

    ttys: Sequence[UsbTty]
    no_tty: Sequence[NoTty] = ()
    locations: Sequence[str] = ()


def look(sysfs: Sysfs) -> Plugged:
    """What is plugged in now, ttys that can't be opened included."""
    ttys = sysfs.usb_ttys(ready_only=False)
    return Plugged(ttys, sysfs.no_tty(), sysfs.device_names())


@dataclass(frozen=True, slots=True)
class Listing:
    """What is plugged in, and what a configuration makes of it.

    `ports` has the name of the port that serves a device by the device's path, `boards` the ttys
    that are known to be of one board; `notes` are lines for a person.
    """

    ttys: Sequence[UsbTty]
    no_tty: Sequence[NoTty]
    ports: dict[str, str]
    boards: list[Pair]
    notes: list[str]


def listing(plugged: Plugged, config: GatewayConfig, table: PoolTable) -> Listing:
    """Who serves what; `table` is what the pools remember, and is brought up to date."""
    ttys = plugged.ttys
    choices = {port.name: port.device for port in config.ports if port.device.simulated is None}
    paths = [tty.path for tty in ttys]
    paths += [path for choice in choices.values() for path in choice.paths]
    real_paths = existing(paths)
    assignment = assign(choices, ttys, real_paths)
    owners = {real_paths[path]: name for name, path in assignment.paths.items()}
    real = {tty.path: real_paths.get(tty.path, "") for tty in ttys}
    ports = {path: owners[real[path]] for path in real if real[path] in owners}
    notes = [f"{name}: {problem}" for name, problem in assignment.problems.items()]
    notes += [
        f"{name}: not plugged in ({choice})"
        for name, choice in choices.items()
        if name not in assignment.paths and name not in assignment.problems
    ]
    in_pools, pool_notes = _served_by_pools(ttys, assignment, config, table)
    ports |= in_pools
    jtag = [f"{tty}: {jtag_note(tty)}" for tty in ttys if tty.is_jtag and tty.path not in ports]
    no_tty = [f"{device}: no tty: {device.reason}" for device in plugged.no_tty]
    pairs = find_pairs(ttys, plugged.locations)
    boards = [pair for pair in pairs if pair.is_certain]
    notes += [*pool_notes, *jtag, *no_tty, *(str(pair) for pair in pairs)]
    return Listing(ttys, plugged.no_tty, ports, boards, notes)


def _served_by_pools(
    ttys: Sequence[UsbTty], assignment: Assignment, config: GatewayConfig, table: PoolTable
) -> tuple[dict[str, str], list[str]]:
    """Who has which port of a pool, and who has none though a pool fits."""
    fitting = {
        tty: [pool.name for pool in config.pools if pool.pattern.device.fits(tty)]
        for tty in assignment.free
    }
    wanted = {
        pool.name: [tty for tty, names in fitting.items() if names == [pool.name]]
        for pool in config.pools
    }
    ranges = {pool.name: pool.tcp_ports for pool in config.pools}
    served = table.update(ranges, wanted, ttys, today(), assignment.held)
    ports = {tty.path: pool_member_name(*place) for place, tty in served.ttys.items()}
    notes = [
        f"{tty}: fits the pools {', '.join(names)}"
        for tty, names in fitting.items()
        if len(names) > 1
    ]
    notes += [f"{tty}: the pool {pool} is full" for pool, tty in served.left_out]
    return ports, notes


def to_table(listed: Listing) -> str:
    """For a person: a line each, columns aligned, then the notes."""
    if not listed.ttys and not listed.no_tty:
        return "\n".join(["no USB serial device is plugged in", *listed.notes])
    rows = [_HEAD, *(_row(tty, listed) for tty in listed.ttys)]
    rows += [_row_without_tty(device) for device in listed.no_tty]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *listed.notes])


def to_json(listed: Listing) -> str:
    """For a program: a list of objects, one line each."""
    found = [_object(tty, listed) for tty in listed.ttys]
    found += [_object_without_tty(device) for device in listed.no_tty]
    objects = [json.dumps(each, ensure_ascii=False) for each in found]
    return "[" + ",\n ".join(objects) + "]"


def to_yaml(listed: Listing, config: GatewayConfig) -> str:
    """For the configuration: an entry for each device that has none, on TCP ports that are free."""
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
    if tty.tty_number or _has_more_ttys(tty, listed):
        # No match tells the ttys of one interface apart.
        yield f"    device: {tty.path}"
        return
    yield "    device:"
    # What a chip on native USB calls itself is up to the program that it runs.
    if tty.serial_key and not is_shared and kind_of(_ids(tty)) not in CHANGES_IDENTITY:
        yield f"      serial: {json.dumps(tty.serial, ensure_ascii=False)}"
        if _has_siblings(tty, listed):
            yield f"      interface: {tty.interface}"
    else:
        yield f'      location: "{_location(tty, listed)}"'


def _name(tty: UsbTty, listed: Listing) -> str:
    row = row_of(_ids(tty))
    called = "usb" if row is None else row.name.partition(",")[0].partition(" (")[0]
    if kind_of(_ids(tty)) is BoardKind.USB_OTG:
        called = BoardKind.USB_OTG.value
    chip = re.sub(r"[^a-z0-9]+", "-", called.lower())
    place = re.sub(r"[^0-9]+", "-", _location(tty, listed))
    number = f"-{tty.tty_number}" if tty.tty_number else ""
    return f"{chip[:14].strip('-')}-{place}{number}"[:32]


def _row(tty: UsbTty, listed: Listing) -> tuple[str, ...]:
    return (
        tty.path,
        tty.usb,
        _chip(tty),
        _location(tty, listed),
        tty.serial or "-",
        tty.product or "-",
        listed.ports.get(tty.path, "-"),
    )


def _row_without_tty(device: NoTty) -> tuple[str, ...]:
    row = row_of((device.vendor_id, device.product_id))
    chip = row.name if row is not None else "-"
    return (
        "no tty",
        device.usb,
        chip,
        device.location,
        device.serial or "-",
        device.product or "-",
        "-",
    )


def _chip(tty: UsbTty) -> str:
    row = row_of(_ids(tty))
    name = row.name if row is not None else "-"
    return f"{name}, JTAG channel" if tty.is_jtag else name


def _same_board(tty: UsbTty, listed: Listing) -> list[str]:
    """The paths of the other ttys that are known to be of a tty's board."""
    return [
        each.path for pair in listed.boards if tty in pair.ttys for each in pair.ttys if each != tty
    ]


def _object_without_tty(device: NoTty) -> dict[str, object]:
    row = row_of((device.vendor_id, device.product_id))
    return {
        "path": None,
        "usb": device.usb,
        "location": device.location,
        "serial": device.serial,
        "product": device.product,
        "chip": row.name if row is not None else None,
        "kind": row.kind.value if row is not None else None,
        "port": None,
        "no_tty": device.reason,
    }


def _object(tty: UsbTty, listed: Listing) -> dict[str, object]:
    row = row_of(_ids(tty))
    return {
        "path": tty.path,
        "usb": tty.usb,
        "location": tty.location,
        "interface": tty.interface,
        "serial": tty.serial,
        "manufacturer": tty.manufacturer,
        "product": tty.product,
        "chip": row.name if row is not None else None,
        "kind": row.kind.value if row is not None else None,
        "channel": "JTAG" if tty.is_jtag else None,
        "same_board": _same_board(tty, listed),
        "port": listed.ports.get(tty.path),
    }


def _location(tty: UsbTty, listed: Listing) -> str:
    """Where it is plugged in; with its interface if the device has several."""
    unit = f":{tty.configuration}.{tty.interface}" if _has_siblings(tty, listed) else ""
    return f"{tty.location}{unit}"


def _has_siblings(tty: UsbTty, listed: Listing) -> bool:
    return any(
        each.socket == tty.socket and each.interface != tty.interface for each in listed.ttys
    )


def _has_more_ttys(tty: UsbTty, listed: Listing) -> bool:
    """Whether its interface has several ttys."""
    return any(
        (each.socket, each.interface) == (tty.socket, tty.interface) and each != tty
        for each in listed.ttys
    )


def _ids(tty: UsbTty) -> tuple[int, int]:
    return tty.vendor_id, tty.product_id
