"""Starts a child process whose start may be cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any


async def start_process(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """Start a process, as asyncio.create_subprocess_exec does.

    When this is cancelled, the process has ended: uvloop's own leaves it to end after its loop.
    """
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*command, **options))
    try:
        return await asyncio.shield(starting)
    except OSError as error:
        error.filename = error.filename or command[0]  # uvloop's do not name it
        raise
    except asyncio.CancelledError:
        ending = asyncio.ensure_future(_end(starting))
        while not ending.done():  # however often it is cancelled meanwhile
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(ending)
        raise


async def _end(starting: asyncio.Future[asyncio.subprocess.Process]) -> None:
    """Kill a process as soon as it has started, and wait until its pipes are closed."""
    try:
        process = await starting
    except OSError:
        return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
    await process.communicate()
