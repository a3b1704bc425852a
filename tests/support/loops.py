"""The event loop that tests run on (`--loop`), whichever it is: started, and what it watches."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from gateway import runtime

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run it to its end in a loop of its own, for tests that are not asynchronous themselves."""
    runner = asyncio.Runner(loop_factory=runtime.loop_factory())
    try:
        result = runner.run(main)
    except BaseException:
        _close(runner)
        raise
    left = _close(runner)
    assert not left, f"left open: {left}"
    return result


def _close(runner: asyncio.Runner) -> list[str]:
    """Close a loop; what was still open on it.

    uvloop tells by warnings, which as errors would make it wait for these handles indefinitely.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        runner.close()
    return [str(each.message) for each in caught if issubclass(each.category, ResourceWarning)]


def watched_descriptors() -> set[int]:
    """The descriptors that this process waits for in any epoll set, as the kernel tells."""
    watched: set[int] = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor that lists the folder
            if str(entry.readlink()) == "anon_inode:[eventpoll]":
                lines = (Path("/proc/self/fdinfo") / entry.name).read_text().splitlines()
                watched.update(int(line.split()[1]) for line in lines if line.startswith("tfd:"))
    return watched
