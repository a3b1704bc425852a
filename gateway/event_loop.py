"""The event loop that the service runs on: uvloop's where it is installed, asyncio's elsewhere.

Both do the same; docs/performance.md has what each costs.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run it to its end in a loop of its own, as asyncio.run does."""
    # What has been imported stays for good: looking through it for garbage is in vain, and stops
    # every port for the 18 ms of CPU that a full collection takes.
    gc.freeze()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - takes time to load, and need not be there
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
