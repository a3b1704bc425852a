"""Stands in for a serial port whose device has vanished under its user, until it is back.

Boards with native USB leave the bus when they are reset and come back a second later. Their
client is kept meanwhile: what it writes and asks for is answered and remembered here, and
handed to the next open port. How long that is waited for is `device`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway import clock
from gateway.protocol.reset import Lines
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.serial_states import NO_STATES, PortStates

#: What a client may write to a board that is away before it is asked to stop: one read of its
#: socket more may follow. A flasher sends one packet of up to 16 KiB and waits for the answer.
HELD_HIGH_BYTES = 65536

#: A client that has sent nothing for so long has ended what it was sending when its board vanished:
#: the pieces of one write follow each other within a round trip.
CUT_OFF_PAUSE_S = 0.5


class Port(Protocol):
    """What a device needs of the port that it has: an open one, or this."""

    @property
    def settings(self) -> SerialSettings:
        """The settings in force."""

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that have not been sent."""

    def write(self, data: bytes) -> None:
        """Send bytes to the board."""

    def pause_reading(self) -> None:
        """Deliver nothing of what the board sends."""

    def resume_reading(self) -> None:
        """Deliver what the board sends again."""

    def apply(self, settings: SerialSettings, done: Callable[[SerialSettings], None]) -> None:
        """Change the settings."""

    def set_lines(self, lines: Lines, done: Callable[[], None]) -> None:
        """Set DTR and RTS in one step."""

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        """Start or end a break."""

    def when_sent(self, done: Callable[[], None]) -> None:
        """Call `done` when what was written has left, or can't."""

    def purge(self, *, receive: bool, transmit: bool, done: Callable[[], None]) -> None:
        """Discard what was received, what waits to be sent, or both."""

    def read_states(self, done: Callable[[PortStates], None]) -> None:
        """Read the states of the board's lines and of the bytes on their way to it."""


#: Asks a port for something, and has it call the second when that is done.
Ask = Callable[[Port, Callable[[], None]], None]


class Asked:
    """What has been asked of a port and is not done yet, for whatever stands in for the port."""

    def __init__(self) -> None:
        self._open: dict[object, tuple[Ask, Callable[[], None]]] = {}

    def add(self, port: Port, ask: Ask, done: Callable[[], None]) -> None:
        """Ask `port` for something; `done` is called once, whoever does it."""
        key = object()

        def finished() -> None:
            if self._open.pop(key, None) is not None:
                done()

        self._open[key] = (ask, finished)
        ask(port, finished)

    def repeat(self, port: Port) -> None:
        """Ask `port` for all of it, for the one before is gone."""
        for ask, finished in tuple(self._open.values()):
            ask(port, finished)

    def clear(self) -> None:
        """Nobody wants any of it any more."""
        self._open.clear()


class AwayPort:
    """A port without a board; every `done` is called at once.

    `full` is called when more than HELD_HIGH_BYTES are held, `room` when a purge has made room.
    With `is_cut_off` its user is in the middle of something of which the vanished board has got the
    beginning: `dropped(n)` is called for what goes on with that, until the user pauses for
    CUT_OFF_PAUSE_S or asks for something else than to send bytes.
    """

    def __init__(
        self,
        settings: SerialSettings,
        *,
        full: Callable[[], None],
        room: Callable[[], None],
        dropped: Callable[[int], None],
        is_cut_off: bool = False,
    ) -> None:
        self.settings = settings
        self._full = full
        self._room = room
        self._dropped = dropped
        self._cut_off_at_s = clock.time() if is_cut_off else float("-inf")
        self._held = bytearray()
        self._break_on = False
        self._reading = True

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the board."""
        return len(self._held)

    def write(self, data: bytes) -> None:
        """Keep bytes for when the board is back, unless they go on with what was cut off."""
        if clock.time() - self._cut_off_at_s < CUT_OFF_PAUSE_S:
            self._cut_off_at_s = clock.time()
            self._dropped(len(data))
            return
        self._held += data
        if len(self._held) > HELD_HIGH_BYTES:
            self._full()

    def take_held(self) -> bytes:
        """Return the bytes that wait for the board, and keep none of them."""
        held, self._held = bytes(self._held), bytearray()
        return held

    def pause_reading(self) -> None:
        """Remembered."""
        self._reading = False

    def resume_reading(self) -> None:
        """Remembered."""
        self._reading = True

    def apply(self, settings: SerialSettings, done: Callable[[SerialSettings], None]) -> None:
        """Remembered, and taken for what will be in force."""
        self._end_cut_off()
        self.settings = settings
        done(settings)

    def set_lines(self, lines: Lines, done: Callable[[], None]) -> None:  # noqa: ARG002 - see Port
        """Not remembered: what is to be done to the lines of a board that is back, its owner
        knows."""
        self._end_cut_off()
        done()

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        """Remembered."""
        self._end_cut_off()
        self._break_on = on
        done()

    def when_sent(self, done: Callable[[], None]) -> None:
        """Nothing can leave."""
        done()

    def purge(self, *, receive: bool, transmit: bool, done: Callable[[], None]) -> None:  # noqa: ARG002 - nothing is received
        """Discard what is held."""
        if transmit:
            self._end_cut_off()
            self._held.clear()
            self._room()
        done()

    def read_states(self, done: Callable[[PortStates], None]) -> None:
        """Nothing drives the lines."""
        done(NO_STATES)

    def hand_over_settings(self, port: Port) -> None:
        """The board is back: ask `port` for what comes ahead of all that its owner will ask for."""
        if not self._reading:
            port.pause_reading()
        if port.settings != self.settings:
            port.apply(self.settings, lambda _: None)

    def hand_over(self, port: Port) -> None:
        """Ask `port` for the rest of what was asked for here, when the board can have it."""
        if self._break_on:
            port.set_break(True, lambda: None)
        if self._held:
            port.write(self.take_held())

    def _end_cut_off(self) -> None:
        self._cut_off_at_s = float("-inf")
