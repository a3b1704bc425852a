"""One client's place at a device: it drives the device, or is muted and only seems to.

A muted client is answered as if what it asks for was done, for programs give up without answers.
What it has set comes back when it drives again. Who is muted when is `sharing`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gateway.devices.device import Device
from gateway.devices.progress_limit import ProgressLimit
from gateway.devices.sharing import DeviceUser
from gateway.protocol.access_server import PortStatus
from gateway.protocol.reset import BOTH, Lines
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.serial_states import PortStates


class Seat:
    """What a client may do with the device that it has; see `Device` for each.

    Every `done` of a client that is muted is called at once, also of what was asked before. What a
    client asks and sends once it drives again comes behind what is brought back for it.
    """

    def __init__(self, device: Device) -> None:
        self.dropped_bytes = 0  # that the client has sent while it was muted
        self._device = device
        self._is_muted = False
        self._kept: PortStatus | None = None  # what the client has been told, till it is in force
        self._asked: dict[object, Callable[[], None]] = {}
        self._restoring: object | None = None  # the device is ours again, and being set
        self._wanted: SerialSettings | None = None  # asked for and not in force yet

    @property
    def name(self) -> str:
        """The device's name."""
        return self._device.name

    @property
    def joins_lines(self) -> bool:
        """Whether commands for both lines that come together are one step."""
        return self._device.joins_lines

    @property
    def status(self) -> PortStatus:
        """What the client is told to be in force."""
        return self._device.status if self._kept is None else self._kept

    @property
    def is_muted(self) -> bool:
        """Whether another drives the device."""
        return self._is_muted

    def mute(self) -> None:
        """The client does not drive the device any more; what it has asked for counts as done."""
        self._restoring = None
        self._is_muted = True
        if self._kept is None:
            status = self._device.status
            wanted = self._wanted or status.settings
            self._kept = PortStatus(wanted, status.lines, status.break_on)
        for finished in tuple(self._asked.values()):
            finished()

    def resume(self) -> None:
        """The client has the device again: bring back what it has set.

        Lines that were both on are raised again in one step; any others stay at rest, for they
        belong to a reset that is over. A break that was begun and not ended is begun again.
        """
        if (kept := self._kept) is None:
            return
        self._is_muted = False
        self._restoring = attempt = object()
        if kept.settings == self._device.status.settings:
            self._restored(attempt)
        else:
            self._device.apply(kept.settings, lambda: self._restored(attempt))
        if kept.lines == BOTH:
            self._device.set_lines(lambda: None, dtr=True, rts=True)
        if kept.break_on:
            self._device.lines_set_by = self
            self._device.set_break(True, lambda: None)

    def leave(self, user: DeviceUser, after: ProgressLimit | None = None) -> None:
        """The client leaves; where others stay, what it has set last goes back to rest.

        `after` is the limit for the bytes of a client that has disconnected, if it has one.
        """
        self._device.detach(user, after=after)
        if self._device.lines_set_by is self:
            self._device.release_lines()

    def write(self, data: bytes) -> None:
        """Send bytes to the board; a muted client's are dropped and counted."""
        if self._is_muted:
            self.dropped_bytes += len(data)
            self.drop(len(data))
        else:
            self._device.write(data)

    def drop(self, n_bytes: int) -> None:
        """Count bytes that the client has sent and its board does not get."""
        self._device.counts.input_dropped_bytes += n_bytes

    def apply(self, settings: SerialSettings, done: Callable[[], None]) -> None:
        """Change the settings."""
        if self._kept is not None:
            self._kept = replace(self._kept, settings=settings)
        self._wanted = settings
        self._ask(lambda finished: self._device.apply(settings, finished), done)

    def set_lines(
        self, done: Callable[[], None], *, dtr: bool | None = None, rts: bool | None = None
    ) -> None:
        """Set one modem line or both."""
        if self._kept is not None:
            lines = self._kept.lines
            lines = Lines(
                dtr=lines.dtr if dtr is None else dtr, rts=lines.rts if rts is None else rts
            )
            self._kept = replace(self._kept, lines=lines)
        if not self._is_muted:
            self._device.lines_set_by = self
        self._ask(lambda finished: self._device.set_lines(finished, dtr=dtr, rts=rts), done)

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        """Start or end a break."""
        if self._kept is not None:
            self._kept = replace(self._kept, break_on=on)
        if not self._is_muted:
            self._device.lines_set_by = self
        self._ask(lambda finished: self._device.set_break(on, finished), done)

    def purge(self, done: Callable[[], None], *, receive: bool, transmit: bool) -> None:
        """Discard what the board has sent, what waits to be sent to it, or both."""
        self._ask(
            lambda finished: self._device.purge(finished, receive=receive, transmit=transmit), done
        )

    def read_states(self, done: Callable[[PortStates], None]) -> None:
        """Read the modem lines, what is on its way, and what has happened on the wire."""
        self._device.read_states(done)  # disturbs nobody

    def _ask(self, ask: Callable[[Callable[[], None]], None], done: Callable[[], None]) -> None:
        """Ask the device, unless muted; `done` comes once, at the latest when muted."""
        key = object()

        def finished() -> None:
            if self._asked.pop(key, None) is not None:
                if not self._asked:
                    self._wanted = None
                done()

        self._asked[key] = finished
        if self._is_muted:
            finished()
        else:
            ask(finished)

    def _restored(self, attempt: object) -> None:
        """What the client has set is in force again, as far as the device takes it."""
        if self._restoring is attempt:
            self._restoring = self._kept = None
