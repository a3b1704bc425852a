"""Who uses one device: who drives it, who only watches, and what becomes of them all.

The rules of the YAML's `sharing`, without I/O. What is done to the device when it changes hands
is `device`'s matter, what a client sees of it `session`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Protocol

from gateway import clock
from gateway.config.document import Sharing
from gateway.errors import ClientError, DeviceError

#: How long a client that was replaced must leave the port alone before it may replace in its turn.
#: esptool opens its port again after 1 s; a program that reconnects in a loop never pauses so long.
TAKE_BACK_AFTER_S = 10.0
#: So many are remembered; each has had the port.
_MOST_REPLACED = 256


class DeviceUser(Protocol):
    """Who uses a device; every call is made on the loop."""

    @property
    def label(self) -> str:
        """Who it is, for the person who is refused meanwhile."""

    @property
    def origin(self) -> str:
        """Where its client connects from, the same for each of its connections; empty if unknown.

        The address without the port, and the name in its certificate if it has one.
        """

    @property
    def is_leaving(self) -> bool:
        """Whether its client is gone, and only what it had sent is still carried out."""

    def attached(self) -> None:
        """The device is yours."""

    def refused(self, error: ClientError) -> None:
        """The device is not to be had."""

    def muted(self, by: str) -> None:
        """Another drives the device from here on; you still get what the board sends."""

    def resumed(self) -> None:
        """The device is yours again, as the YAML says and not as you have left it."""

    def replaced(self, by: str) -> None:
        """Another gets the device: give it back."""

    def data_received(self, data: bytes) -> None:
        """The board has sent bytes."""

    def board_busy(self) -> None:
        """Too many bytes wait to be sent to the board: write no more."""

    def board_ready(self) -> None:
        """Bytes can be written again."""

    def device_lost(self, error: DeviceError) -> None:
        """The device is gone, and not yours any more."""


class Arrival(Enum):
    """What happens when somebody comes while another drives the device."""

    WAITS = "waits"  # a moment, and is refused
    REPLACES = "replaces"  # who drives gives the device back
    MUTES = "mutes"  # who drives only watches until the newcomer has left
    JOINS = "joins"  # both drive


@dataclass(frozen=True, slots=True)
class Dismissed:
    """Who has lost a device: some had it, others were about to be told that they have."""

    had: list[DeviceUser]
    awaited: list[DeviceUser]

    def tell(self, error: DeviceError, refusal: str) -> None:
        """Tell all of them."""
        for user in self.awaited:
            user.refused(ClientError(refusal))
        for user in self.had:
            user.device_lost(error)


ARRIVALS = {
    Sharing.EXCLUSIVE: Arrival.WAITS,
    Sharing.TAKEOVER: Arrival.REPLACES,
    Sharing.PREEMPT: Arrival.MUTES,
    Sharing.SHARED: Arrival.JOINS,
}


class Users:
    """Those who have a device. Those who drive it write and change it; the others watch."""

    def __init__(self, sharing: Sharing) -> None:
        self.arrival = ARRIVALS[sharing]
        self.drivers: list[DeviceUser] = []
        self.output_dropped_bytes = 0  # that clients were too slow for
        self.refused = 0  # clients that were told why they can't have the device
        self.told = False  # the drivers know that the device is theirs
        self.audience: tuple[DeviceUser, ...] = ()  # who gets what the board sends
        self._muted: list[DeviceUser] = []  # who was muted last drives next
        self._since = local_now()
        self.connected_at: dict[DeviceUser, datetime] = {}  # UTC
        self._holding: set[DeviceUser] = set()
        self._doubted: set[DeviceUser] = set()
        self._replaced: dict[str, float] = {}  # when clients were replaced, by their origins
        self._replacer: DeviceUser | None = None

    def __iter__(self) -> Iterator[DeviceUser]:
        """All, those who drive first; who is told of the device meanwhile counts as before."""
        return iter([*self.drivers, *self._muted])

    def __len__(self) -> int:
        return len(self.drivers) + len(self._muted)

    @property
    def in_use(self) -> str:
        """What is told to who would like to have the device."""
        if self.drivers:
            return f"in use by {self.names} since {self.since}"
        return f"in use by {self.watchers}"

    @property
    def may_be_followed(self) -> bool:
        """Whether those who drive can be replaced or muted now.

        One that is leaving can't, for what it had sent is still carried out; nor can one for whom
        the board is being prepared.
        """
        return self.told and not any(driver.is_leaving for driver in self.drivers)

    @property
    def names(self) -> str:
        """Who drives, empty if nobody does."""
        return ", ".join(driver.label for driver in self.drivers)

    @property
    def watchers(self) -> str:
        """Who only watches, empty if nobody does."""
        return ", ".join(user.label for user in self._muted)

    @property
    def since(self) -> str:
        """Since when somebody drives: the time of day, with the date if that was not today."""
        if not self.drivers:
            return ""
        is_today = self._since.date() == local_now().date()
        return self._since.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S")

    @property
    def hold_output(self) -> bool:
        """Whether the board's output shall wait: nobody who drives takes any.

        Who only watches is not waited for; nor is one of several that drive while another takes it.
        """
        return bool(self.drivers) and self._holding.issuperset(self.drivers)

    @property
    def are_doubted(self) -> bool:
        """Whether it is being found out if a client is still there."""
        return bool(self._doubted)

    def doubt(self, user: DeviceUser, doubted: bool) -> None:
        """It is being found out (True) whether the client of `user` is still there, or it is."""
        if doubted:
            self._doubted.add(user)
        else:
            self._doubted.discard(user)

    def replace(self, by: DeviceUser) -> list[DeviceUser]:
        """`by` is to have the device; returns those who have to give it back."""
        self._replacer = by
        now = clock.time()
        for origin, at in tuple(self._replaced.items()):
            if now - at >= TAKE_BACK_AFTER_S:
                del self._replaced[origin]
        for user in self.drivers:
            if user.origin:
                self._replaced.pop(user.origin, None)  # the latest are last
                self._replaced[user.origin] = now
        while len(self._replaced) > _MOST_REPLACED:
            del self._replaced[next(iter(self._replaced))]
        return list(self.drivers)

    def was_replaced(self, user: DeviceUser) -> bool:
        """Whether `user` is taken for a client that was replaced just now: it may not replace."""
        at = self._replaced.get(user.origin)
        return at is not None and clock.time() - at < TAKE_BACK_AFTER_S

    def keep_out(self, user: DeviceUser) -> bool:
        """Whether those who drive have replaced `user`, and are not about to leave."""
        is_leaving = any(driver.is_leaving for driver in self.drivers)
        return bool(self.drivers) and not is_leaving and self.was_replaced(user)

    def tried_to_take_back(self, user: DeviceUser) -> None:
        """A client that `was_replaced` was refused: its time counts from here."""
        self._replaced[user.origin] = clock.time()

    def enter(self, user: DeviceUser) -> None:
        """`user` drives the device, perhaps with others; the first has not been told yet."""
        if user is not self._replacer:
            # The port was free. It may also be who had replaced another client of this origin.
            self._replaced.pop(user.origin, None)
        self._replacer = None
        if not self.drivers:
            self._since = local_now()
            self.told = False
        self.connected_at.setdefault(user, datetime.now(UTC))
        self.drivers.append(user)
        self._set_audience()

    def tell(self) -> None:
        """The drivers are about to be told that the device is theirs."""
        self.told = True
        self._set_audience()

    def leave(self, user: DeviceUser) -> bool:
        """`user` has left; returns whether nobody drives any more because of it."""
        self._holding.discard(user)
        self._doubted.discard(user)
        self.connected_at.pop(user, None)
        is_driver = user in self.drivers
        for users in (self.drivers, self._muted):
            if user in users:
                users.remove(user)
        self._set_audience()
        return is_driver and not self.drivers

    def mute(self) -> list[DeviceUser]:
        """Those who drive only watch from here on; returns them."""
        muted, self.drivers = self.drivers, []
        self._muted += muted
        self._set_audience()
        return muted

    def resume(self) -> DeviceUser | None:
        """Who was muted last drives again; returns it, None if there is nobody."""
        if not self._muted:
            return None
        user = self._muted.pop()
        self.enter(user)
        self.tell()
        return user

    def dismiss(self) -> Dismissed:
        """Nobody has the device any more; who is concerned is to be told by what is returned."""
        awaited = [] if self.told else list(self.drivers)
        had = [user for user in self if user not in awaited]
        self.drivers.clear()
        self._muted.clear()
        self.connected_at.clear()
        self._set_audience()
        self._holding.clear()
        self._doubted.clear()
        return Dismissed(had, awaited)

    def hold(self, user: DeviceUser, held: bool) -> None:
        """`user` takes no output for now (True), or takes it again."""
        if held:
            self._holding.add(user)
        else:
            self._holding.discard(user)

    def _set_audience(self) -> None:
        # Kept, for it is asked for at each read of the board.
        drivers = self.drivers if self.told else ()
        self.audience = (*drivers, *self._muted)


def local_now() -> datetime:
    """The lab's time of day: who is refused asks the person next to them, not a server."""
    return datetime.now()
