"""How the YAML names a device and a pool's TCP ports, and which two entries can't both be right.

The values are checked one by one here; that they suit the other keys of a port is `document`'s
matter. Nothing here looks at hardware.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import PurePosixPath
from typing import Any, Final

import yaml

from gateway.config.usb_match import SIMULATED, DeviceChoice, UsbMatch
from gateway.config.wording import MAX_REASON_CHARS, clipped
from gateway.config.yaml_lines import (
    Kind,
    Problems,
    WrongPartsError,
    is_quoted,
    is_refused,
    known_entries,
    line_of,
    refuse,
    scalar_text,
    whole_number,
)

#: More alternatives for one board nobody has; each costs a look at every device.
MAX_ALTERNATIVES = 16

#: Every port of a pool that was ever used is listened on and remembered.
MAX_POOL_PORTS = 1000

_MAX_TCP_PORT: Final = 65535

_ID = r"[0-9a-fA-F]{4}"


def _read_usb(node: yaml.Node) -> dict[str, int | bool]:
    text = scalar_text(node)
    if text == "*:*":
        return {"any_usb": True}
    if not re.fullmatch(rf"{_ID}:({_ID}|\*)", text):
        raise ValueError
    vendor, _, product = text.partition(":")
    ids = {"vendor_id": int(vendor, 16)}
    return ids if product == "*" else ids | {"product_id": int(product, 16)}


def _read_serial(node: yaml.Node) -> dict[str, str]:
    text = scalar_text(node)
    # A USB string has 126 characters at most.
    if not text.isprintable() or not 1 <= len(text) <= 126 or text != text.strip():
        raise ValueError
    return {"serial": text}


def _read_location(node: yaml.Node) -> dict[str, int | str]:
    text = scalar_text(node)
    found = re.fullmatch(
        r"(\d{1,3}-\d{1,3}(?:\.\d{1,3}){0,6})(?::(\d{1,3})\.(\d{1,3}))?", text, re.ASCII
    )
    if found is None:
        raise ValueError
    location, configuration, interface = found.groups()
    if configuration is None:
        return {"location": location}
    unit = {"configuration": int(configuration), "interface": int(interface)}
    return {"location": location} | unit


_INTERFACE = whole_number(0, 255)

#: The keys of a match; what each is read to are fields of UsbMatch.
MATCH_KEYS: Final = {
    "usb": Kind("vendor:product in hex (10c4:ea60, 10c4:*, or *:* for any)", _read_usb),
    "serial": Kind("the serial number, 1 to 126 characters", _read_serial),
    "location": Kind("a USB location as in 1-1.3 or 1-1.3:1.0", _read_location),
    "interface": Kind(_INTERFACE.accepted, lambda node: {"interface": _INTERFACE.read(node)}),
}
_ACCEPTED_MATCH: Final = "one or more of usb, serial, location; interface with one of them"


def _read_device(node: yaml.Node) -> DeviceChoice:
    if isinstance(node, yaml.ScalarNode):
        return DeviceChoice((_read_path(node, may_be_simulated=True),))
    parts = Problems("")
    alternatives: list[str | UsbMatch] = []
    if isinstance(node, yaml.SequenceNode):
        if not 1 <= len(node.value) <= MAX_ALTERNATIVES:
            raise ValueError(f"1 to {MAX_ALTERNATIVES} alternatives")
        for index, item in enumerate(node.value):
            alternatives += _read_alternative(item, f"[{index}]", parts)
    else:
        alternatives += _read_alternative(node, "", parts)
    if parts.found:
        raise WrongPartsError(parts.found)
    return DeviceChoice(tuple(alternatives))


def _read_alternative(node: yaml.Node, path: str, parts: Problems) -> list[str | UsbMatch]:
    """A path or a match; none if it is wrong, which is added to `parts`."""
    if isinstance(node, yaml.MappingNode) and not is_refused(node):
        return list(_read_match(node, path, parts))
    try:
        return [_read_path(node, may_be_simulated=False)]
    except ValueError as exc:
        refuse(node, path, "an absolute path or a match", parts, reason=str(exc))
        return []


def _read_match(node: yaml.MappingNode, path: str, parts: Problems) -> Iterator[UsbMatch]:
    before = len(parts.found)
    found = known_entries(node, path, tuple(MATCH_KEYS), parts)
    fields: dict[str, Any] = {}
    for name, entry in found.items():
        key_path = f"{path}.{name}" if path else name
        try:
            read: Any = MATCH_KEYS[name].read(entry.value)
        except ValueError as exc:
            refuse(entry.value, key_path, MATCH_KEYS[name].accepted, parts, reason=str(exc))
            continue
        if twice := fields.keys() & read.keys():
            problem = f"{name} with a location that has the {twice.pop()} in it"
            parts.add(entry.line, path, problem, "the interface once")
        fields |= read
    if len(parts.found) > before:
        return
    if not found.keys() - {"interface"}:
        what = "interface alone" if found else "empty match"
        parts.add(line_of(node), path, what, _ACCEPTED_MATCH)
        return
    yield UsbMatch(**fields)


def _read_path(node: yaml.Node, *, may_be_simulated: bool) -> str:
    text = scalar_text(node)
    if not text.isprintable():
        raise ValueError
    if text.startswith(SIMULATED):
        if not may_be_simulated:
            raise ValueError("a simulated board has no alternatives")
        _sim_device(text)
    elif not text.startswith("/") or text.endswith("/"):
        raise ValueError
    return text


def _sim_device(url: str) -> str:
    """The one spelling of a simulated board's URL; ValueError says what is wrong with it."""
    # Only who simulates boards pays for the simulator.
    from gateway.simulator.url import parse_url  # noqa: PLC0415

    try:
        return str(parse_url(url))
    except ValueError as exc:
        raise ValueError(clipped(str(exc), MAX_REASON_CHARS)) from exc


DEVICE: Final = Kind(
    "an absolute path, sim://..., a match or a list of paths and matches", _read_device
)


def _read_tcp(node: yaml.Node) -> int | range:
    """One port number, or the numbers of a pool."""
    text = scalar_text(node)
    first, dash, last = text.partition("-")
    if not dash:
        number = whole_number(0, _MAX_TCP_PORT).read(node)
        assert isinstance(number, int)  # noqa: S101 - what whole_number reads
        return number
    if is_quoted(node):
        raise ValueError("text, because of the quotes")
    if not all(re.fullmatch(r"[1-9][0-9]{0,4}", each) for each in (first, last)):
        raise ValueError
    numbers = range(int(first), int(last) + 1)
    if not 1 <= len(numbers) <= MAX_POOL_PORTS or int(last) > _MAX_TCP_PORT:
        raise ValueError(f"1 to {MAX_POOL_PORTS} ports, the lower number first")
    return numbers


TCP: Final = Kind("a whole number from 0 to 65535, or a pool's range as in 4100-4199", _read_tcp)


def same_path(path: str) -> str:
    """One text for all spellings of it; links are not followed, they change with hotplug."""
    if path.startswith("/"):
        return str(PurePosixPath("/" + path.lstrip("/")))
    return _sim_device(path)


def overlapping(choices: Iterable[DeviceChoice]) -> Iterator[tuple[int, int, UsbMatch]]:
    """Pairs of choices of which one takes in a match of the other.

    Yields the place of the later one, of the earlier one, and the narrower match. Matches that
    fit the same device only by chance are not known before it is plugged in.
    """
    matches = [
        (len(match.criteria), place, match)
        for place, choice in enumerate(choices)
        for match in choice.matches
    ]
    wider: dict[tuple[tuple[str, object], ...], int] = {}
    told = set()
    for _, place, match in sorted(matches, key=lambda each: each[:2]):
        for subset in _subsets(match.criteria):
            other = wider.get(subset, place)
            pair = max(place, other), min(place, other)
            if other != place and pair not in told:
                told.add(pair)
                yield *pair, match
        wider.setdefault(match.criteria, place)


def _subsets(criteria: tuple[tuple[str, object], ...]) -> Iterator[tuple[tuple[str, object], ...]]:
    for size in range(len(criteria) + 1):
        yield from combinations(criteria, size)
