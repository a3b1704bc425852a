"""Who asks for a device and has not got it yet, in the order in which they came.

When one is served, and who is refused instead, is `device`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gateway import clock
from gateway.devices.sharing import DeviceUser
from gateway.errors import ClientError


class WaitingLine:
    """See the module; made and used on the loop.

    `overdue` is called when one has waited for `limit_s`, and has to `add` it again or to `drop`
    it.
    """

    def __init__(self, limit_s: float, overdue: Callable[[DeviceUser], None]) -> None:
        self._limit_s = limit_s
        self._overdue = overdue
        self._timers: dict[DeviceUser, clock.Timer] = {}

    def __contains__(self, user: DeviceUser) -> bool:
        return user in self._timers

    def __iter__(self) -> Iterator[DeviceUser]:
        return iter(self._timers)

    def __len__(self) -> int:
        return len(self._timers)

    @property
    def first(self) -> DeviceUser:
        """Who has waited longest; there must be somebody."""
        return next(iter(self._timers))

    def add(self, user: DeviceUser) -> None:
        """Let `user` wait from now on; who waits already keeps its place."""
        if (before := self._timers.get(user)) is not None:
            before.cancel()
        self._timers[user] = clock.call_later(self._limit_s, self._overdue, user)

    def drop(self, user: DeviceUser) -> None:
        """`user` does not wait any more, if it has."""
        if (timer := self._timers.pop(user, None)) is not None:
            timer.cancel()

    def refuse_all(self, reason: str) -> None:
        """Nobody who waits gets the device."""
        while self._timers:
            user, timer = self._timers.popitem()
            timer.cancel()
            user.refused(ClientError(reason))
