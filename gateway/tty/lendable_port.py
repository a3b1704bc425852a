"""A lasting port whose tty can be lent out under its users, to esptool for instance.

While it is lent it is to them as if the board were away: nobody is sent off, what they ask for
waits. Who may lend it is `device`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway import clock
from gateway.errors import DeviceError
from gateway.tty.away_port import AwayPort
from gateway.tty.control_thread import on_loop
from gateway.tty.lasting_port import LastingPort
from gateway.tty.serial_port import SerialPort

#: Boards come back from a reset within 2.5 s, over a slow hub within 5; a port may have no
#: `grace_s` at all, but what has been done to its board makes it leave the bus.
_RETURN_LIMIT_S = 10.0


class LendablePort(LastingPort):
    """See the module."""

    def lend(self, what_for: str, closed: Callable[[], None]) -> None:
        """Close the tty until `take_back`, however long that takes; the port must be there.

        `closed` is called when the kernel has closed it.
        """
        port = self._present
        self._cancel_retry()
        if self._grace is not None:
            self._grace.cancel()
        self._released = closed
        self._port = away = self._stand_in(port.settings)
        self._owner.port_away(DeviceError(what_for))
        self._asked.repeat(away)
        if isinstance(port, SerialPort):
            self._tried.clear()
            port.close(on_loop(self._loop, self._closed))
        elif self._tried.is_set():
            self._closed()

    def take_back(self) -> None:
        """Open the tty again; a board that stays away is lost. Nothing happens if it is not lent.

        Must follow `lend` before those leave who have the port.
        """
        if isinstance(self._port, AwayPort) and self._released is not None:
            limit_s = max(self.grace_s, _RETURN_LIMIT_S)
            self._grace = clock.call_later(limit_s, self._not_returned, limit_s)
            self.start()

    def _not_returned(self, limit_s: float) -> None:
        self.give_up_absence()
        self._owner.port_lost(DeviceError(f"not back within {limit_s:g} s of being lent out"))
