"""A chip that is its own USB CDC device by software (USB-OTG): what DTR, RTS and baud rate do.

There is neither circuit nor controller between host and chip: the host's control transfers reach
whatever the chip runs, and only that can act on them.

    app     arduino-esp32's USBCDC.cpp: restarts into download mode when the rate is set to 1200
            baud, or when the lines go through (RTS), (both), (DTR), (none), the classic reset
            sequence played one line at a time. Nothing resets it into itself.
    ROM     nothing: a hard reset through RTS does not leave the loader.
    stub    both generations: when RTS goes off, restarts into the app (stub_io.c of esptool 4,
            usb_otg.c of esp-stub-lib).

Restarts are software resets; into download mode by a flag in the RTC domain that a software reset
spares and a system reset clears. No strap is low.

Pure logic: times are arguments, in nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from gateway.simulator.chips import ResetCause
from gateway.simulator.circuit import Boot, EnHigh, Event, LinesSet, Restart

#: The rate that Arduino tools set for a moment to ask a board for its bootloader.
TOUCH_BAUDRATE = 1200

#: DTR and RTS on the app's way into download mode; a pair that is not the next one starts anew.
_WAY_IN = ((False, True), (True, True), (True, False), (False, False))


class Firmware(Enum):
    """What the chip runs, as far as its USB device is concerned."""

    NONE = auto()  # in reset or booting: there is no device
    APP = auto()
    ROM = auto()
    STUB = auto()


class UsbOtg:
    """What one enumeration of the chip's USB device makes of the host's requests.

    `firmware` tells what runs at the moment; `boots_ns` is when the chip starts by itself after
    power-up, None if it runs already.
    """

    def __init__(self, firmware: Callable[[], Firmware], boots_ns: int | None = None) -> None:
        self.dtr = False
        self.rts = False
        self._firmware = firmware
        self._boots_ns = boots_ns
        self._way_done = 0  # how many pairs of _WAY_IN have come
        self._events: list[Event] = []

    def set_lines(self, stamp_ns: int, dtr: bool, rts: bool) -> None:
        """The host set both lines at `stamp_ns`; takes effect in the order of the calls."""
        had_rts = self.rts
        changed = (dtr, rts) != (self.dtr, self.rts)
        self.dtr, self.rts = dtr, rts
        self._events.append(LinesSet(stamp_ns, dtr, rts))
        match self._firmware():
            case Firmware.APP if changed:
                self._go_the_way_in(stamp_ns)
            case Firmware.STUB if had_rts and not rts:
                self._events.append(Restart(stamp_ns, download=False))

    def set_baudrate(self, t_ns: int, baudrate: int) -> None:
        """The host has set another rate on its tty."""
        if baudrate == TOUCH_BAUDRATE and self._firmware() is Firmware.APP:
            self._events.append(Restart(t_ns, download=True))

    def next_deadline(self) -> int | None:
        """When `handle_timer` wants to be called, if at all."""
        return self._events[0].t_ns if self._events else self._boots_ns

    def handle_timer(self, now_ns: int) -> list[Event]:
        """What has happened up to now."""
        events, self._events = self._events, []
        if self._boots_ns is not None and self._boots_ns <= now_ns:
            events += [EnHigh(self._boots_ns), Boot(self._boots_ns, download=False)]
            self._boots_ns = None
        return events

    def enters_download(self, cause: ResetCause) -> bool:
        """Whether a reset that the host's lines have no part in leads to download mode."""
        in_loader = self._firmware() in {Firmware.ROM, Firmware.STUB}
        return in_loader and cause is ResetCause.SOFTWARE

    def _go_the_way_in(self, t_ns: int) -> None:
        if (self.dtr, self.rts) != _WAY_IN[self._way_done]:
            self._way_done = 0
            return
        self._way_done += 1
        if self._way_done == len(_WAY_IN):
            self._way_done = 0
            self._events.append(Restart(t_ns, download=True))
