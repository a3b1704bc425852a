"""An event loop whose clock jumps: when nothing is left to do now, the next timer is due at once.

What is awaited for hours takes no time, and comes in the same order each run. Only for what is
done in this process: I/O of others is not waited for. It is asyncio's loop, whatever `--loop` says:
uvloop can't be asked whether anything is left to do, and the TCP connection is played anyway.
"""

from __future__ import annotations

import asyncio
import selectors


class NothingToWaitForError(RuntimeError):
    """Neither a timer nor I/O is left that could go on with what is awaited."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout != 0:
            if timeout is None:
                raise NothingToWaitForError
            self.loop.now += max(timeout, 0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module; give it to `asyncio.Runner` as the loop's factory."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        """Seconds, as far as timers have advanced them."""
        return self.now
