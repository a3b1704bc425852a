"""What a user may do with a device while it has it: bytes, settings, lines, break, purge.

Who has the device, and what is left for the next, is `device`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.config.document import OnConnect
from gateway.errors import ClientError
from gateway.protocol.access_server import PortStatus
from gateway.protocol.board_kinds import UsbIds
from gateway.protocol.reset import Starts
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.lendable_port import LendablePort
from gateway.tty.line_driver import LineDriver
from gateway.tty.port_counts import PortCounts
from gateway.tty.serial_states import PortStates


class DeviceControls:
    """The part of `Device` that its users act on, between `attached` and `device_lost` or `detach`.

    Every `done` is called when what follows may go to the board, unless the device is lost first.
    """

    def __init__(self, name: str, port: LendablePort, lines: LineDriver) -> None:
        self.name = name
        self.sent_bytes = 0  # to the board, since the gateway runs
        self.lines_set_by: object | None = None  # who of several users has done it last
        self._port = port
        self._lines = lines
        self._break_on = False
        self._last_set_by: object | None = None  # the client whose commands the lines follow

    @property
    def status(self) -> PortStatus:
        """What is in force: what a client is told."""
        return PortStatus(self._port.settings, self._lines.wanted, self._break_on)

    @property
    def usb_ids(self) -> UsbIds | None:
        """Vendor and product id of the USB device that was last open."""
        return self._port.usb_ids

    @property
    def tty_path(self) -> str:
        """Where the device's tty is now; raises DeviceError when it is nowhere."""
        return self._port.tty_path

    @property
    def counts(self) -> PortCounts:
        """What has happened since the device is served."""
        return self._port.counts

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        return self._port.unsent_bytes

    @property
    def taken_bytes(self) -> int:
        """A number that changes whenever the kernel takes bytes for the board."""
        return self.sent_bytes - self.unsent_bytes

    def write(self, data: bytes) -> None:
        """Send bytes to the board."""
        self.sent_bytes += len(data)
        self._port.write(data)

    def apply(self, settings: SerialSettings, done: Callable[[], None]) -> None:
        """Change the settings behind the bytes written so far; `status` tells what came of it."""

        def applied(in_force: SerialSettings) -> None:
            self._lines.baudrate_set(in_force.baudrate)
            done()

        self._port.apply(settings, applied)

    @property
    def joins_lines(self) -> bool:
        """Whether commands for both lines that come together are one step."""
        return self._lines.joins_lines

    def set_lines(
        self, done: Callable[[], None], *, dtr: bool | None = None, rts: bool | None = None
    ) -> None:
        """Set one modem line or both behind the bytes written so far."""
        if self.lines_set_by is not self._last_set_by:
            self._last_set_by = self.lines_set_by
            self._lines.other_client()
        self._lines.request(dtr=dtr, rts=rts, settled=done)

    def release_lines(self) -> None:
        """Both lines and a break go back to rest; others go on using the device."""
        self.lines_set_by = None
        if self._break_on:
            self.set_break(False, lambda: None)
        self._lines.release(lambda: None, has_left=False)

    @property
    def is_touched_by_leaving(self) -> bool:
        """Whether a client that disconnects now starts the board's bootloader by that."""
        return self._lines.has_touched_if_released

    def bring_back(
        self, settings: SerialSettings, done: Callable[[], None], *, has_left: bool
    ) -> None:
        """Both lines and a break go back to rest, then the settings to `settings`.

        `has_left` is False for a client that stays connected and only has to stop.
        """
        if self._break_on:
            self.set_break(False, lambda: self.bring_back(settings, done, has_left=has_left))
        elif self._port.settings == settings:
            self._lines.release(done, has_left=has_left)
        else:
            self._lines.release(
                lambda: self._port.apply(settings, lambda _: done()), has_left=has_left
            )

    def prepare(self, how: OnConnect, done: Callable[[], None]) -> None:
        """Bring the board to where its new user wants it."""
        match how:
            case OnConnect.NOTHING:
                done()
            case OnConnect.BOOTLOADER:
                self.enter_bootloader(done)
            case OnConnect.RESET:
                self.reset(done)

    def enter_bootloader(self, done: Callable[[], None]) -> None:
        """Reset the board into its bootloader, behind the bytes written so far.

        Both modem lines are off afterwards. Whatever else was asked of them and is not done yet
        is dropped, its `done` comes with this one.
        """
        self._lines.enter_bootloader(done)

    def check_reset(self, starts: Starts) -> None:
        """Raise ClientError where no line can make the board start this."""
        if problem := self._lines.problem_of(starts):
            raise ClientError(f"{self.name}: {problem}")

    def reset(self, done: Callable[[], None]) -> None:
        """Reset the board into its app; otherwise as `enter_bootloader`."""
        self._lines.reset(done)

    def when_lines_settled(self, done: Callable[[], None]) -> None:
        """Call `done` when nothing that was asked of the lines so far is under way."""
        self._lines.when_settled(done)

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        """Start or end a break behind the bytes written so far."""
        self._break_on = on
        self._port.set_break(on, done)

    def when_sent(self, done: Callable[[], None]) -> None:
        """Call `done` when everything written so far has left, or can't."""
        self._port.when_sent(done)

    def purge(self, done: Callable[[], None], *, receive: bool, transmit: bool) -> None:
        """Discard what the board has sent, what waits to be sent to it, or both."""
        self._port.purge(receive=receive, transmit=transmit, done=done)

    def drop_unsent(self, reason: str) -> None:
        """Drop what was written and the kernel has not taken; count and log how much."""
        self._port.drop_unsent(reason)

    def lend(self, what_for: str, closed: Callable[[], None]) -> None:
        """Leave the tty to a tool of the user's until `take_back`; `closed` when it is free.

        Meanwhile the board is away for all users: nobody is sent off, and what they ask for waits.
        """
        self._port.lend(what_for, closed)

    def take_back(self) -> None:
        """Open the tty again after `lend`; it must be called before the user leaves."""
        self._port.take_back()

    def read_states(self, done: Callable[[PortStates], None]) -> None:
        """Read the modem lines, what is on its way, and what has happened on the wire."""
        self._port.read_states(done)
