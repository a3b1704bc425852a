"""Stands in for a serial port whose device has vanished under its user, until it is back.

Boards with native USB leave the bus when they are reset and come back a second later. Their
client is kept meanwhile: what it writes and asks for is answered and remembered here, and
handed to the next open port. How long that is waited for is `device`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway.protocol.reset import BOTH, IDLE, Lines
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.serial_states import NO_STATES, PortStates

#: What a client may write to a board that is away before it is asked to stop: one read of its
#: socket more may follow. A flasher sends one packet of up to 16 KiB and waits for the answer.
HELD_HIGH_BYTES = 65536


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

    `full` is called when more than HELD_HIGH_BYTES are held.
    """

    def __init__(self, settings: SerialSettings, full: Callable[[], None]) -> None:
        self.settings = settings
        self._full = full
        self._held = bytearray()
        self._lines = IDLE
        self._break_on = False
        self._reading = True

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the board."""
        return len(self._held)

    def write(self, data: bytes) -> None:
        """Keep bytes for when the board is back."""
        self._held += data
        if len(self._held) > HELD_HIGH_BYTES:
            self._full()

    def pause_reading(self) -> None:
        """Remembered."""
        self._reading = False

    def resume_reading(self) -> None:
        """Remembered."""
        self._reading = True

    def apply(self, settings: SerialSettings, done: Callable[[SerialSettings], None]) -> None:
        """Remembered, and taken for what will be in force."""
        self.settings = settings
        done(settings)

    def set_lines(self, lines: Lines, done: Callable[[], None]) -> None:
        """Remembered."""
        self._lines = lines
        done()

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        """Remembered."""
        self._break_on = on
        done()

    def when_sent(self, done: Callable[[], None]) -> None:
        """Nothing can leave."""
        done()

    def purge(self, *, receive: bool, transmit: bool, done: Callable[[], None]) -> None:  # noqa: ARG002 - nothing is received
        """Discard what is held."""
        if transmit:
            self._held.clear()
        done()

    def read_states(self, done: Callable[[PortStates], None]) -> None:
        """Nothing drives the lines."""
        done(NO_STATES)

    def hand_over(self, port: Port) -> None:
        """The board is back: ask `port` for what was asked for here."""
        if not self._reading:
            port.pause_reading()
        if port.settings != self.settings:
            port.apply(self.settings, lambda _: None)
        # Lines in the middle of a reset are not played again: the board has just been through it.
        if self._lines == BOTH:
            port.set_lines(BOTH, lambda: None)
        if self._break_on:
            port.set_break(True, lambda: None)
        if self._held:
            port.write(bytes(self._held))
