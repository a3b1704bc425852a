"""Watches CTS, DSR, RI and CD of one board while a client wants to be told of them.

No driver reports these on all kinds of ports, so they are polled. What the bits mean on the
wire is `protocol.rfc2217`'s matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.protocol.rfc2217 import Modemstate

#: Time between two polls. RFC 2217 leaves it open; a poll is one USB transfer of about 1 ms on
#: the port's own thread.
_INTERVAL_S = 0.25

_DELTAS = (
    (Modemstate.CTS, Modemstate.DELTA_CTS),
    (Modemstate.DSR, Modemstate.DELTA_DSR),
    (Modemstate.CD, Modemstate.DELTA_CD),
)


def with_deltas(before: Modemstate, now: Modemstate) -> Modemstate:
    """`now` with the bits that say what has changed (RFC 2217 section 3, NOTIFY-MODEMSTATE).

    RI has only a trailing edge: it is reported when the ringing ends.
    """
    state = now
    for line, delta in _DELTAS:
        if (before ^ now) & line:
            state |= delta
    if before & Modemstate.RI and not now & Modemstate.RI:
        state |= Modemstate.TRAILING_EDGE_RI
    return state


class ModemstatePoll:
    """Calls `report` with the state at the start, and with state and deltas at each change.

    `read(done)` reads the lines without blocking the loop; its `done` may never come.
    """

    def __init__(
        self,
        read: Callable[[Callable[[Modemstate], None]], None],
        report: Callable[[Modemstate], None],
    ) -> None:
        self._read = read
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._last: Modemstate | None = None
        self._running = False

    def start(self) -> None:
        """Begin, or go on; the state is read at once."""
        if not self._running:
            self._running = True
            self._read(self._was_read)

    def stop(self) -> None:
        """Report no more."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _poll(self) -> None:
        self._timer = None
        self._read(self._was_read)

    def _was_read(self, state: Modemstate) -> None:
        if not self._running or self._timer is not None:
            return
        self._timer = self._loop.call_later(_INTERVAL_S, self._poll)
        before, self._last = self._last, state
        if before is None:
            self._report(state)
        elif before != state:
            self._report(with_deltas(before, state))
