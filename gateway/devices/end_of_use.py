"""What is seen to when those who drove a device have left, before the next may have it.

Their last bytes are let out, then the board is reset if the YAML wants it, then lines, break and
settings go back to where the next expects them. Who has the device when is `device`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway import clock
from gateway.devices.device_controls import DeviceControls
from gateway.devices.progress_limit import Limits, ProgressLimit
from gateway.protocol.serial_settings import SerialSettings

#: How long a board may take none of the bytes of a client that has disconnected. They keep the port
#: from the next client, and are sent as long as the board takes some of them.
FINISH_LIMIT_S = 10.0
#: The kernel tells of progress in steps, of 1280 bytes with cdc_acm. Below 2560 baud a board may
#: take bytes all the time and show none for longer than FINISH_LIMIT_S.
_STEP_BYTES = 1280

#: How long they may take in all: a board that takes a byte now and then keeps nobody out for hours.
FINISH_LONGEST_S = 600.0
#: What may wait for a board when its client has left (docs/rfc2217.md, bounds). Below 15300 baud,
#: twice its time on the wire is longer than FINISH_LONGEST_S, and is allowed.
_MOST_WAITING_BYTES = 458752
_BITS_PER_BYTE = 10

#: How long they are let out where another is to have the device at once. Also how long a new user
#: waits for the one before to be gone: a client that ends one connection and starts the next at
#: once may be seen in the other order.
HANDOVER_S = 0.5


class EndOfUse:
    """See the module; `settings` are those that the next expects."""

    def __init__(self, device: DeviceControls, settings: SerialSettings) -> None:
        self._device = device
        self._settings = settings
        self._limit = finish_limit(device, self.drop_unsent)
        self._hurry: clock.Timer | None = None
        self._has_left = True

    def begin(
        self,
        done: Callable[[], None],
        *,
        is_hurried: bool,
        resets: bool,
        has_left: bool = True,
        after: ProgressLimit | None = None,
    ) -> None:
        """Send what was written while the board takes it; call `done` when the next may come.

        It is not called when the device is lost before. `is_hurried` is as if `hurry` was called.
        `has_left` is False for a client that has to stop and has not disconnected. `after` is the
        limit of the session that has left: its time counts.
        """
        self._has_left = has_left
        self._limit.start(after)
        if is_hurried:
            self.hurry()
        self._device.when_sent(lambda: self._sent(done, resets=resets))

    def hurry(self) -> None:
        """Another is to have the device at once: bytes are let out for HANDOVER_S at most."""
        if self._limit.is_running:
            self._limit.stop()
            self._hurry = clock.call_later(HANDOVER_S, self.drop_unsent)

    def drop_unsent(self) -> None:
        """Drop what has not been sent yet."""
        self._device.drop_unsent("the board does not accept data")

    def cancel(self) -> None:
        """There is nothing to end any more."""
        self._limit.stop()
        if self._hurry is not None:
            self._hurry.cancel()

    def _sent(self, done: Callable[[], None], *, resets: bool) -> None:
        # A touch is what the client has asked for last: a reset would undo it.
        if resets and not (self._has_left and self._device.is_touched_by_leaving):
            self._device.reset(lambda: self._bring_back(done))
        else:
            self._bring_back(done)

    def _bring_back(self, done: Callable[[], None]) -> None:
        self.cancel()
        self._device.bring_back(self._settings, done, has_left=self._has_left)


def finish_limit(device: DeviceControls, given_up: Callable[[], None]) -> ProgressLimit:
    """The limit for the bytes of a client that has disconnected."""

    def limits() -> Limits:
        s_per_byte = _BITS_PER_BYTE / max(device.status.settings.baudrate, 1)
        return Limits(
            stall_s=max(FINISH_LIMIT_S, 2 * _STEP_BYTES * s_per_byte),
            longest_s=max(FINISH_LONGEST_S, 2 * _MOST_WAITING_BYTES * s_per_byte),
        )

    return ProgressLimit(lambda: device.taken_bytes, limits, given_up)
