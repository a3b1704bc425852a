"""The auto-reset circuit behind a USB-UART bridge: from DTR and RTS to EN, IO0, the chip's start.

Two transistors: EN is pulled low only while RTS is on and DTR off, IO0 only while DTR is on and
RTS off; with both on or both off, both pins are high. EN falls at once, for the transistor
discharges its capacitor, and rises over an RC; the chip samples IO0 when EN crosses its threshold
on the way up, and starts. What the chip then runs is `board`'s matter. The events are also those of
`usb_jtag` and `usb_otg`, which take the circuit's place on boards without a bridge.

Pure logic: times are arguments, in nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from gateway.simulator.chips import ResetCause

#: How far the circuit lags behind the clock. A line change is stamped by whoever sets it and
#: reaches the simulator over a socket; within this time after its stamp it still counts as if it
#: had come at once. Clients leave 50 ms and more for the chip to start.
DELIVERY_NS = 5_000_000

#: EN must be low for this long to reset the chip: the capacitor at EN swallows what is shorter,
#: such as the gap between two lines that a driver sets one after the other.
SHORTEST_RESET_NS = 10_000


@dataclass(frozen=True, slots=True)
class LinesSet:
    """The host has set both lines; True is asserted. Reported when they stay the same, too."""

    t_ns: int
    dtr: bool
    rts: bool


@dataclass(frozen=True, slots=True)
class EnLow:
    """EN went low: the chip is held in reset."""

    t_ns: int


@dataclass(frozen=True, slots=True)
class EnHigh:
    """EN has crossed the chip's threshold on the way up."""

    t_ns: int


@dataclass(frozen=True, slots=True)
class Boot:
    """The chip starts, in download mode if it found its strap low or was told so otherwise."""

    t_ns: int
    download: bool
    cause: ResetCause = ResetCause.POWER_ON


@dataclass(frozen=True, slots=True)
class DownloadFlag:
    """The USB-Serial/JTAG controller's download flag was set or cleared."""

    t_ns: int
    on: bool


@dataclass(frozen=True, slots=True)
class ChipReset:
    """The USB-Serial/JTAG controller resets the chip, which will boot as `download` says."""

    t_ns: int
    download: bool


@dataclass(frozen=True, slots=True)
class Restart:
    """What the chip runs restarts it by software at the host's request."""

    t_ns: int
    download: bool


Event = LinesSet | EnLow | EnHigh | Boot | DownloadFlag | ChipReset | Restart


class Circuit:
    """The circuit of one board, from the moment that it is powered.

    `en_rise_ns` is the time from EN's release until the chip's threshold is crossed. At power-up
    both lines are off and EN rises from 0 V, so the first event is a boot.
    """

    def __init__(self, en_rise_ns: int, powered_ns: int) -> None:
        self.dtr = False
        self.rts = False
        self._en_rise_ns = en_rise_ns
        self._replayed_ns = powered_ns  # up to here what happened can't be changed any more
        self._changes: list[tuple[int, bool, bool]] = []  # by stamp, not replayed yet
        self._in_reset = True
        self._dip_since_ns: int | None = None  # EN pulled low, perhaps too shortly to count
        self._rise_ns: int | None = powered_ns + en_rise_ns
        self._strap_was_low = False  # when EN rose last

    def set_lines(self, stamp_ns: int, dtr: bool, rts: bool) -> None:
        """The host set both lines at `stamp_ns`, which may lie a little back.

        Changes may come out of order; what is later than DELIVERY_NS counts as of then.
        """
        stamp_ns = max(stamp_ns, self._replayed_ns)
        # By stamp only: of two with the same stamp the one that came first is first.
        insort(self._changes, (stamp_ns, dtr, rts), key=lambda change: change[0])

    def next_deadline(self) -> int | None:
        """When `handle_timer` wants to be called, if at all."""
        step_ns = self._next_step()
        return None if step_ns is None else step_ns + DELIVERY_NS

    def handle_timer(self, now_ns: int) -> list[Event]:
        """Replay what has happened up to DELIVERY_NS ago; events in the order of their times."""
        events: list[Event] = []
        until_ns = now_ns - DELIVERY_NS
        while (step_ns := self._next_step()) is not None and step_ns <= until_ns:
            self._replayed_ns = step_ns
            events += self._take_step(step_ns)
        self._replayed_ns = max(self._replayed_ns, until_ns)
        return events

    @property
    def io0_is_low(self) -> bool:
        """Whether IO0 is pulled low, as far as is replayed."""
        return self.dtr and not self.rts

    def enters_download(self, cause: ResetCause) -> bool:
        """Whether a reset that the host's lines have no part in leads to download mode.

        A software reset finds the straps as they were when EN rose; others sample them again.
        """
        return self._strap_was_low if cause is ResetCause.SOFTWARE else self.io0_is_low

    @property
    def _en_is_pulled(self) -> bool:
        return self.rts and not self.dtr

    def _next_step(self) -> int | None:
        """When the next thing happens in the circuit, as far as it is known."""
        steps = [change[0] for change in self._changes[:1]]
        if self._dip_since_ns is not None:
            steps.append(self._dip_since_ns + SHORTEST_RESET_NS)
        if self._rise_ns is not None:
            steps.append(self._rise_ns)
        return min(steps, default=None)

    def _take_step(self, t_ns: int) -> list[Event]:
        """What happens at `t_ns`, the time of `_next_step`; one thing of several at that time."""
        if self._dip_since_ns is not None and t_ns - self._dip_since_ns >= SHORTEST_RESET_NS:
            low_ns, self._dip_since_ns = self._dip_since_ns, None
            self._in_reset = True
            return [EnLow(low_ns)]
        if self._changes and self._changes[0][0] <= t_ns:
            _, dtr, rts = self._changes.pop(0)
            self._apply(t_ns, dtr, rts)
            return [LinesSet(t_ns, dtr, rts)]
        self._rise_ns = None
        self._in_reset = False
        self._strap_was_low = self.io0_is_low
        return [EnHigh(t_ns), Boot(t_ns, download=self.io0_is_low)]

    def _apply(self, t_ns: int, dtr: bool, rts: bool) -> None:
        was_pulled = self._en_is_pulled
        self.dtr, self.rts = dtr, rts
        if self._en_is_pulled == was_pulled:
            return
        if not was_pulled:
            self._rise_ns = None
            if not self._in_reset:
                self._dip_since_ns = t_ns
        elif self._in_reset:
            self._rise_ns = t_ns + self._en_rise_ns
        else:
            self._dip_since_ns = None
