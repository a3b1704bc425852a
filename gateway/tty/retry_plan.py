"""When a device that could not be opened, or has gone, is tried again.

Three things meet here: a device that is missing or broken is tried ever more seldom; one that has
just been plugged in settles within moments; and one that keeps leaving the bus (its app crashes at
the start, its cable is loose) must not cost a thread and two log lines each time. Pure: told the
time by who tries, of a clock that never goes back.
"""

from __future__ import annotations

from gateway.errors import DeviceAbsentError, DeviceError, DevicePermissionError

#: First and longest wait. One try costs a failing open(): 20 us.
FIRST_S = 0.25
LONGEST_S = 4.0

#: udev names a new tty before it gives its group the rights: for so long a refusal is not believed,
#: nor that a device which has just come is not there.
SETTLE_S = 2.0
SETTLE_RETRY_S = 0.02

#: How often a device may go before that costs it. esptool resets a board that is its own USB
#: device three times in a run, and a test suite does that again and again.
LOSSES = 10
REGAIN_S = 5.0


class RetryPlan:
    """See the module; for one device."""

    def __init__(self) -> None:
        self._next_s = FIRST_S
        self._is_denied = False  # the last try was
        self._settled_at_s = 0.0  # until then a failure may pass by itself
        self._losses_left = float(LOSSES)
        self._losses_at_s = 0.0

    def appeared(self, now_s: float) -> None:
        """The device has just been plugged in."""
        self._settled_at_s = now_s + SETTLE_S

    def opened(self) -> None:
        """A try has succeeded."""
        self._next_s = FIRST_S
        self._is_denied = False

    def lost(self, now_s: float) -> None:
        """The open device has gone."""
        # One below zero at most: whoever has waited once may try once.
        self._losses_left = max(self._left_at(now_s) - 1.0, -1.0)
        self._losses_at_s = now_s

    def settles(self, error: DeviceError, now_s: float) -> bool:
        """A try has failed: whether that is likely to pass within moments."""
        was_denied, self._is_denied = self._is_denied, isinstance(error, DevicePermissionError)
        if self._is_denied and not was_denied:
            self.appeared(now_s)
        may_pass = self._is_denied or isinstance(error, DeviceAbsentError)
        return may_pass and now_s < self._settled_at_s

    def wait_s(self, now_s: float) -> float:
        """How long to wait before the next try; longer each time."""
        wait_s = max(self._next_s, self.penalty_s(now_s))
        self._next_s = min(2 * self._next_s, LONGEST_S)
        return wait_s

    def penalty_s(self, now_s: float) -> float:
        """How long a device that keeps leaving is left alone still; 0 for one that behaves."""
        return max(0.0, -self._left_at(now_s) * REGAIN_S)

    def _left_at(self, now_s: float) -> float:
        return min(self._losses_left + (now_s - self._losses_at_s) / REGAIN_S, float(LOSSES))
