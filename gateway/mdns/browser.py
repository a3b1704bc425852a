"""Looks for the ports of all gateways on the network, and tells them to a person or a program.

What an announcement says is records.py's matter.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from gateway import clock
from gateway.mdns import network
from gateway.mdns.network import MdnsError
from gateway.mdns.records import TYPES, FoundPort, understood

if TYPE_CHECKING:
    from zeroconf import Zeroconf
    from zeroconf.asyncio import AsyncZeroconf

#: More are not asked for: there are no labs of that size, but there may be jokers on a network.
MAX_FOUND = 4096

#: How long the details of one port may take; they mostly come with its name.
_DETAILS_LIMIT_S = 3.0


async def discover(timeout_s: float, interfaces: Sequence[str] = ()) -> list[FoundPort]:
    """The ports that answer within `timeout_s`, by gateway and name.

    `interfaces` as in MdnsConfig. Raises MdnsError when it can't be asked.
    """
    network.load()
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf  # noqa: PLC0415 - an extra

    own = network.own_addresses(interfaces) if interfaces else _wherever()
    if not own.addresses:
        raise MdnsError(f"no network interface {', '.join(interfaces)} with an address")
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
        asked = (_details(zeroconf, each, own.networks) for each in names.items())
        ports = [port for port in await asyncio.gather(*asked) if port is not None]
    finally:
        await zeroconf.async_close()
    return sorted(ports, key=_in_order)


def _in_order(port: FoundPort) -> tuple[object, ...]:
    return _natural(port.gateway), port.gateway_id, _natural(port.name), port.url


def _wherever() -> network.OwnAddresses:
    """All networks, or this host alone if it is on none."""
    own = network.own_addresses(())
    return own if own.addresses else network.own_addresses(("lo",))


async def _details(
    zeroconf: AsyncZeroconf, named: tuple[str, str], own_networks: Iterable[str]
) -> FoundPort | None:
    from zeroconf.asyncio import AsyncServiceInfo  # noqa: PLC0415 - an extra

    name, service_type = named
    info = AsyncServiceInfo(service_type, name)
    if not await info.async_request(zeroconf.zeroconf, 1000 * _DETAILS_LIMIT_S):
        return None
    return understood(
        info.properties,
        info.server or "",
        info.parsed_scoped_addresses(),
        info.port or 0,
        own_networks,
    )


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts shelf-9 before shelf-10."""
    parts = re.split(r"([0-9]{1,18})", text)
    return [(int(part) if part.isdecimal() else -1, part) for part in parts]


_HEAD = ("GATEWAY", "PORT", "URL", "BOARD", "SERIAL")


def to_table(ports: Sequence[FoundPort]) -> str:
    """For a person: a line each, columns aligned."""
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
    """`is_shared`: several gateways have this one's name."""
    board = port.chip or port.kind or "-"
    return (
        f"{port.gateway} ({port.gateway_id or 'no id'})" if is_shared else port.gateway,
        port.name,
        port.url,
        board if port.is_present else f"{board}, absent",
        port.serial or "-",
    )


def to_json(ports: Sequence[FoundPort]) -> str:
    """For a program: a list of objects, a line each."""
    return "[" + ",\n ".join(json.dumps(asdict(port)) for port in ports) + "]"
