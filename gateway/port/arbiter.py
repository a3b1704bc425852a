"""Which clients control one port, observe it or wait for it, and what happens when another client
connects.

Pure: the rules of the YAML's `sharing`; times are arguments, seconds of any clock that does not go
back. `port` does to the board and tells clients what follows from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Final

from gateway.config.document import Sharing

if TYPE_CHECKING:
    from gateway.port.claim import Claim

#: How long a client that was replaced must leave the port alone before it may replace in its turn.
#: esptool opens its port again after 1 s; a program that reconnects in a loop never pauses so long.
TAKE_BACK_AFTER_S: Final = 10.0
#: So many are remembered; each has had the port.
_MOST_REPLACED: Final = 256

#: How long a client waits for the one before to be gone: one that ends a connection and starts the
#: next at once may be seen in the other order.
WAIT_S: Final = 0.5


class OnContender(Enum):
    """What happens when a client connects while another controls the port."""

    WAIT = "wait"  # the new client waits a moment, and is refused
    REPLACE = "replace"  # the controller has to give the port back
    SUSPEND = "suspend"  # the controller observes until the new client has left
    JOIN = "join"  # both control it


_ON_CONTENDER: Final = {
    Sharing.EXCLUSIVE: OnContender.WAIT,
    Sharing.TAKEOVER: OnContender.REPLACE,
    Sharing.PREEMPT: OnContender.SUSPEND,
    Sharing.SHARED: OnContender.JOIN,
}


@dataclass(frozen=True, slots=True)
class Dismissed:
    """Claims that have lost the port: some had it, to others it had not been granted yet."""

    had: list[Claim]
    awaited: list[Claim]


class Arbiter:
    """The claims on one port."""

    def __init__(self, sharing: Sharing) -> None:
        self.on_contender = _ON_CONTENDER[sharing]
        self.controllers: list[Claim] = []  # write to the port and change it
        self.suspended: list[Claim] = []  # observe; the last of them gets control next
        self.is_granted = False  # the controllers know that they have the port
        self.audience: tuple[Claim, ...] = ()  # get what the board sends
        self.refused = 0
        self._waiting: dict[Claim, float] = {}  # when each has waited for long enough
        self._since = local_now()
        self._holding: set[Claim] = set()
        self._probed: set[Claim] = set()
        self._replaced: dict[str, float] = {}  # when clients were replaced, by their origins
        self._replacer: Claim | None = None

    def __iter__(self) -> Iterator[Claim]:
        """All that have the port, controllers first."""
        return iter([*self.controllers, *self.suspended])

    def __len__(self) -> int:
        return len(self.controllers) + len(self.suspended)

    @property
    def in_use(self) -> str:
        """Why the port can't be had, for the person who is refused."""
        if not self.controllers:
            return f"in use by {self.observer_names}"
        return f"in use by {self.controller_names} since {self.since_text}"

    @property
    def since_text(self) -> str:
        """Since when the port is controlled: the lab's time of day, with the date if not today."""
        if not self.controllers:
            return ""
        is_today = self._since.date() == local_now().date()
        return self._since.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S")

    @property
    def controller_names(self) -> str:
        """The controllers' labels; empty if there is none."""
        return ", ".join(claim.label for claim in self.controllers)

    @property
    def observer_names(self) -> str:
        """The suspended clients' labels; empty if there is none."""
        return ", ".join(claim.label for claim in self.suspended)

    @property
    def controlled_since(self) -> datetime | None:
        """Since when the port is controlled, with the time zone; None if it is not."""
        return self._since if self.controllers else None

    # --- the wait queue

    @property
    def has_waiting(self) -> bool:
        """Whether a claim waits for the port."""
        return bool(self._waiting)

    @property
    def deadline(self) -> float | None:
        """When a claim has waited for long enough."""
        return min(self._waiting.values(), default=None)

    def is_waiting(self, claim: Claim) -> bool:
        """Return whether this claim waits for the port."""
        return claim in self._waiting

    def wait(self, claim: Claim, now: float) -> None:
        """Queue a claim; one that is queued keeps its place and gets more time."""
        self._waiting[claim] = now + WAIT_S

    def stop_waiting(self, claim: Claim) -> None:
        """Take a claim from the queue, if it is there."""
        self._waiting.pop(claim, None)

    def overdue(self, now: float) -> list[Claim]:
        """Return the claims that have waited for long enough, in their order."""
        return [claim for claim, until in self._waiting.items() if until <= now]

    def take_waiting(self) -> list[Claim]:
        """Return all that wait, the last first, and empty the queue."""
        waiting = list(reversed(self._waiting))
        self._waiting.clear()
        return waiting

    def next_waiting(self, now: float) -> Claim:
        """Return the claim to be served next; there must be one.

        The one that has waited longest; of several, not one that was replaced just now.
        """
        claims = (claim for claim in self._waiting if not self._was_replaced(claim, now))
        return next(claims, next(iter(self._waiting)))

    # --- control

    @property
    def may_be_followed(self) -> bool:
        """Whether the controllers can be replaced or suspended now.

        One that is leaving can't, for what it had sent is still carried out; nor can one for whom
        the board is being prepared.
        """
        return self.is_granted and not any(claim.is_leaving for claim in self.controllers)

    def admit(self, claim: Claim) -> None:
        """`claim` gets control, perhaps with others; the first is not granted yet."""
        self._waiting.pop(claim, None)
        if claim is not self._replacer:
            # The port was free. It may also be the client that had replaced another of this origin.
            self._replaced.pop(claim.origin, None)
        self._replacer = None
        if not self.controllers:
            self._since = local_now()
            self.is_granted = False
        self.controllers.append(claim)
        self._set_audience()

    def grant(self) -> None:
        """The controllers are about to be told that they have the port."""
        self.is_granted = True
        self._set_audience()

    def leave(self, claim: Claim) -> bool:
        """Drop a claim; returns whether the port has lost its last controller by that."""
        self._waiting.pop(claim, None)
        self._holding.discard(claim)
        self._probed.discard(claim)
        is_controller = claim in self.controllers
        for claims in (self.controllers, self.suspended):
            if claim in claims:
                claims.remove(claim)
        self._set_audience()
        return is_controller and not self.controllers

    def suspend(self) -> list[Claim]:
        """The controllers observe from here on; returns them."""
        claims, self.controllers = self.controllers, []
        self.suspended += claims
        self._set_audience()
        return claims

    def resume(self) -> Claim | None:
        """Give control back to the claim that was suspended last; returns it."""
        if not self.suspended:
            return None
        claim = self.suspended.pop()
        self.admit(claim)
        self.grant()
        return claim

    def dismiss(self) -> Dismissed:
        """All lose the port; returns the claims to be told."""
        awaited = [] if self.is_granted else list(self.controllers)
        had = [claim for claim in self if claim not in awaited]
        self.controllers.clear()
        self.suspended.clear()
        self._set_audience()
        self._holding.clear()
        self._probed.clear()
        return Dismissed(had, awaited)

    # --- takeover

    def replace(self, by: Claim, now: float) -> list[Claim]:
        """`by` is to have the port; returns the claims that have to give it back."""
        self._replacer = by
        for origin, at in tuple(self._replaced.items()):
            if now - at >= TAKE_BACK_AFTER_S:
                del self._replaced[origin]
        for claim in self.controllers:
            if claim.origin:
                self._replaced.pop(claim.origin, None)  # the latest are last
                self._replaced[claim.origin] = now
        while len(self._replaced) > _MOST_REPLACED:
            del self._replaced[next(iter(self._replaced))]
        return list(self.controllers)

    def keeps_out(self, claim: Claim, now: float) -> bool:
        """Return whether the controllers have just replaced this client, and are not leaving."""
        is_leaving = any(each.is_leaving for each in self.controllers)
        return bool(self.controllers) and not is_leaving and self._was_replaced(claim, now)

    def tried_to_take_back(self, claim: Claim, now: float) -> None:
        """A client that was replaced was refused: its time counts from here."""
        self._replaced[claim.origin] = now

    def _was_replaced(self, claim: Claim, now: float) -> bool:
        at = self._replaced.get(claim.origin)
        return at is not None and now - at < TAKE_BACK_AFTER_S

    # --- clients that are slow or may be dead

    @property
    def holds_output(self) -> bool:
        """Whether the board's output shall wait in the kernel: no controller takes any.

        Observers are not waited for; nor is one of several controllers while another takes it.
        """
        return bool(self.controllers) and self._holding.issuperset(self.controllers)

    def hold(self, claim: Claim, held: bool) -> None:
        """The client takes no output for now (True), or takes it again."""
        if held:
            self._holding.add(claim)
        else:
            self._holding.discard(claim)

    @property
    def are_probed(self) -> bool:
        """Whether a client with the port is being asked if its machine is there."""
        return bool(self._probed)

    def probe(self, claim: Claim, probed: bool) -> None:
        """The client's machine is being asked (True), or has answered."""
        if probed:
            self._probed.add(claim)
        else:
            self._probed.discard(claim)

    def _set_audience(self) -> None:
        # Kept, for it is asked for at each read of the board.
        controllers = self.controllers if self.is_granted else ()
        self.audience = (*controllers, *self.suspended)


def local_now() -> datetime:
    """Return the lab's time of day: a person who is refused asks the one next to them."""
    return datetime.now().astimezone()
