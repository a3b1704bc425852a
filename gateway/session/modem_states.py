"""Watches the modem lines of one board and errors on its wire while a client wants to know.

No driver reports these on all kinds of ports, so they are polled, both with one read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import fields

from gateway import clock
from gateway.port.claim import Claim
from gateway.protocol.rfc2217 import Linestate, Modemstate
from gateway.serialport.states import EventCounts, PortStates

#: Time between two polls. RFC 2217 leaves it open; a poll is one USB transfer of about 1 ms on
#: the port's own thread.
_INTERVAL_S = 0.25


#: Line, its delta bit, and its counter, in which a pulse between two polls is seen.
_DELTAS = (
    (Modemstate.CTS, Modemstate.DELTA_CTS, "cts"),
    (Modemstate.DSR, Modemstate.DELTA_DSR, "dsr"),
    (Modemstate.CD, Modemstate.DELTA_CD, "cd"),
)
_ERRORS = (
    (Linestate.OVERRUN, "overrun"),
    (Linestate.PARITY_ERROR, "parity"),
    (Linestate.FRAMING_ERROR, "frame"),
    (Linestate.BREAK, "brk"),
)


def modemstate_with_deltas(before: PortStates, now: PortStates) -> Modemstate:
    """The modem state with the bits that say what has changed (RFC 2217 section 4).

    RI has only a trailing edge: it is reported when the ringing ends.
    """
    state = now.modemstate
    changed = before.modemstate ^ now.modemstate
    counted = _counted(before, now)
    for line, delta, counter in _DELTAS:
        if changed & line or counter in counted:
            state |= delta
    if changed & before.modemstate & Modemstate.RI or "ri" in counted:
        state |= Modemstate.TRAILING_EDGE_RI
    return state


def linestate_with_errors(before: PortStates, now: PortStates) -> Linestate:
    """The line state with the bits of what has happened in between."""
    state = now.linestate
    counted = _counted(before, now)
    for error, counter in _ERRORS:
        if counter in counted:
            state |= error
    return state


def _counted(before: PortStates, now: PortStates) -> set[str]:
    """The counters that have grown.

    They wrap; and those of a board that has been plugged in again have started from zero.
    """
    if before.counts is None or now.counts is None:
        return set()
    growth = {
        field.name: (getattr(now.counts, field.name) - getattr(before.counts, field.name)) % 2**32
        for field in fields(EventCounts)
    }
    return {name for name, grown in growth.items() if 0 < grown < 2**31}


class ModemStates:
    """Calls `report_...` with a state when it is watched first, and at each change from then on.

    Nothing is read while nothing is watched, nor while `hold` is on.
    """

    def __init__(
        self,
        claim: Claim,
        report_modemstate: Callable[[Modemstate], None],
        report_linestate: Callable[[Linestate], None],
    ) -> None:
        self._claim = claim
        self._report_modemstate = report_modemstate
        self._report_linestate = report_linestate
        self._timer: clock.Timer | None = None
        self._is_reading = False
        self._is_held = False
        self._watches_modemstate = False
        self._watches_linestate = False
        self._sent_modemstate: PortStates | None = None
        self._sent_linestate: PortStates | None = None

    def watch(self, *, modemstate: bool, linestate: bool) -> None:
        """Report these from now on; what is new is read at once.

        The modem state goes on from what was sent last. The line state starts again: errors of
        before were not asked for.
        """
        is_more = modemstate > self._watches_modemstate or linestate > self._watches_linestate
        if linestate and not self._watches_linestate:
            self._sent_linestate = None
        self._watches_modemstate = modemstate
        self._watches_linestate = linestate
        self._poll_or_not(at_once=is_more)

    def hold(self, held: bool) -> None:
        """Report nothing for now (True); what changes meanwhile is reported afterwards."""
        self._is_held = held
        self._poll_or_not(at_once=True)

    def take_modemstate(self, states: PortStates) -> Modemstate:
        """The modem state with what has changed since the last was sent; this is sent now."""
        before, self._sent_modemstate = self._sent_modemstate, states
        return states.modemstate if before is None else modemstate_with_deltas(before, states)

    def take_linestate(self, states: PortStates) -> Linestate:
        """The line state with what has happened since the last was sent; this is sent now."""
        before, self._sent_linestate = self._sent_linestate, states
        return states.linestate if before is None else linestate_with_errors(before, states)

    @property
    def _is_running(self) -> bool:
        return (self._watches_modemstate or self._watches_linestate) and not self._is_held

    def _poll_or_not(self, *, at_once: bool) -> None:
        if (at_once or not self._is_running) and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_running and self._timer is None:
            self._poll()

    def _poll(self) -> None:
        self._timer = None
        if not self._is_reading:
            self._is_reading = True
            self._claim.read_states().add_done_callback(self._was_read)

    def _was_read(self, operation: asyncio.Future[PortStates]) -> None:
        self._is_reading = False
        if not self._is_running or operation.exception() is not None:
            return  # nothing is watched any longer, or the port is lost
        states = operation.result()
        self._timer = clock.call_later(_INTERVAL_S, self._poll)
        if self._watches_modemstate:
            before = self._sent_modemstate
            modemstate = self.take_modemstate(states)
            if before is None or modemstate != before.modemstate:
                self._report_modemstate(modemstate)
        if self._watches_linestate:
            before = self._sent_linestate
            linestate = self.take_linestate(states)
            if before is None or linestate != before.linestate:
                self._report_linestate(linestate)
