"""Multicast DNS on loopback, which tests share: each has a gateway's name of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count

from gateway.mdns.dns_sd import FoundPort, discover

#: Far above what anything takes that a test waits for.
LIMIT_S = 60.0
#: How long each look listens. Of an answer to port 5353 itself, the kernel gives one of all who
#: have that port; zeroconf asks for one that all get a second later.
_LOOK_S = 1.3

_numbers = count()


def gateway_name() -> str:
    """A name that no other test announces at the same time."""
    return f"t{os.getpid()}-{next(_numbers)}"


async def find(
    gateway: str, is_there: Callable[[dict[str, FoundPort]], object]
) -> dict[str, FoundPort]:
    """Look for the ports of a gateway, by name, until they satisfy a condition."""
    found = await find_all(gateway, lambda ports: is_there({port.name: port for port in ports}))
    return {port.name: port for port in found}


async def find_all(gateway: str, are_there: Callable[[list[FoundPort]], object]) -> list[FoundPort]:
    """The same where names are not unique."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        found = [port for port in await discover(_LOOK_S, ["lo"]) if port.gateway == gateway]
        if are_there(found):
            return found
        assert time.monotonic() < deadline, f"waited in vain; found: {found}"
