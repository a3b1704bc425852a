"""The event loop that the service runs on: uvloop's where it is installed, asyncio's elsewhere.

Both do the same; docs/performance.md has what each costs. ESP_GATEWAY_EVENT_LOOP chooses one.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from gateway.errors import GatewayError

#: The environment variable that names the loop; empty or absent: uvloop if it is installed.
VARIABLE = "ESP_GATEWAY_EVENT_LOOP"

LOOPS = ("uvloop", "asyncio")


class EventLoopError(GatewayError):
    """For the operator: the event loop that the environment names can't be used."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run it to its end in a loop of its own, as asyncio.run does. Raises EventLoopError."""
    try:
        factory = loop_factory()
        # What has been imported stays for good: looking through it for garbage is in vain, and
        # stops every port for the 18 ms of CPU that a full collection takes.
        gc.freeze()
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main)
    finally:
        main.close()


def loop_factory(
    environment: Mapping[str, str] = os.environ,
) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the loop that the environment names. Raises EventLoopError."""
    named = environment.get(VARIABLE, "")
    if named not in {"", *LOOPS}:
        raise EventLoopError(f"invalid {VARIABLE} {named!r}: expected {' or '.join(LOOPS)}")
    if named == "asyncio":
        return asyncio.SelectorEventLoop
    try:
        import uvloop  # noqa: PLC0415 - takes time to load, and need not be there
    except ImportError:
        if named:
            raise EventLoopError(
                f"{VARIABLE} is 'uvloop', which is not installed: install the extra `fast`"
            ) from None
        return asyncio.SelectorEventLoop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
