"""How a simulated board hangs on its host: what DTR and RTS reach, and the USB device itself.

Chooses between `circuit`, `usb_jtag` and `usb_otg`, and decides when the USB device goes and comes
back. Which resets it does not survive, unless the URL's `reenumerates` says otherwise:

    bridge   none: it is a chip of its own
    jtag     those of the whole chip: power, EN, RTC watchdog. Those of the digital core leave the
             controller alone: RTS and DTR (it is the one that does it), software.
             Sources: ESP32-C3 Technical Reference Manual 30.3.4 ("not affected by SRST"), reset
             cause 0x15 in ESP-IDF's reset_reasons.h ("USB UART resets the digital core"), and
             espflash's pull request 779: the watchdog makes the port re-enumerate, RTS does not.
    otg      all: the device is software, and each that starts resets the USB module first
             (tinyusb_init in arduino-esp32). ROM and app have ids of their own.

Pure logic: times are arguments, in nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway.simulator.chips import ResetCause
from gateway.simulator.circuit import Circuit, Event
from gateway.simulator.url import BoardUrl
from gateway.simulator.usb import (
    BRIDGE_IDS,
    JTAG_IDS,
    OTG_APP_IDS,
    OTG_ROM_IDS,
    UsbIds,
    UsbKind,
)
from gateway.simulator.usb_jtag import UsbJtag
from gateway.simulator.usb_otg import Firmware, UsbOtg

_NS_PER_MS = 1_000_000

#: What starts a USB-Serial/JTAG controller anew along with the chip.
_RESETS_OF_ALL = frozenset({ResetCause.POWER_ON, ResetCause.WATCHDOG})


class _ResetLogic(Protocol):
    """What stands between the host's lines and the chip's reset."""

    @property
    def dtr(self) -> bool: ...

    @property
    def rts(self) -> bool: ...

    def set_lines(self, stamp_ns: int, dtr: bool, rts: bool) -> None: ...

    def next_deadline(self) -> int | None: ...

    def handle_timer(self, now_ns: int) -> list[Event]: ...

    def enters_download(self, cause: ResetCause) -> bool: ...


class Attachment:
    """The host's side of one board, from power-up on.

    `firmware` tells what the chip runs; `enumeration` counts up whenever the USB device has gone.
    """

    def __init__(self, url: BoardUrl, firmware: Callable[[], Firmware], powered_ns: int) -> None:
        self.kind = url.usb_kind
        self.enumeration = 1
        self._reenumerates = url.reenumerates
        self._firmware = firmware
        self._logic = self._powered_up(round(url.en_rise_ms * _NS_PER_MS), powered_ns)

    @property
    def dtr(self) -> bool:
        """The line as it takes effect: up to circuit.DELIVERY_NS behind."""
        return self._logic.dtr

    @property
    def rts(self) -> bool:
        """The line as it takes effect: up to circuit.DELIVERY_NS behind."""
        return self._logic.rts

    def set_lines(self, stamp_ns: int, dtr: bool, rts: bool) -> None:
        """The host set both lines at `stamp_ns`."""
        self._logic.set_lines(stamp_ns, dtr, rts)

    def set_baudrate(self, t_ns: int, baudrate: int) -> None:
        """The host set its tty to another rate: only a device that is software can act on it."""
        if isinstance(self._logic, UsbOtg):
            self._logic.set_baudrate(t_ns, baudrate)

    def next_deadline(self) -> int | None:
        """When `handle_timer` wants to be called, if at all."""
        return self._logic.next_deadline()

    def handle_timer(self, now_ns: int) -> list[Event]:
        """What has happened, oldest first; nothing counts any more once the device has gone."""
        return self._logic.handle_timer(now_ns)

    def enters_download(self, cause: ResetCause) -> bool:
        """Whether a reset that the lines have no part in leads to download mode."""
        return self._logic.enters_download(cause)

    def leave(self, cause: ResetCause) -> bool:
        """Let the USB device go if the reset takes it away; return whether it does.

        The lines are off then: they were states of that device.
        """
        goes = self._goes(cause)
        if goes:
            self.enumeration += 1
            self._logic = UsbJtag() if self.kind is UsbKind.JTAG else UsbOtg(self._firmware)
        return goes

    def usb_ids(self, *, download: bool) -> UsbIds:
        """What the USB device calls itself, in download mode or while the app runs."""
        match self.kind:
            case UsbKind.BRIDGE:
                return BRIDGE_IDS
            case UsbKind.JTAG:
                return JTAG_IDS
            case UsbKind.OTG:
                # A device that survives resets can only be the ROM's, which the app goes on using.
                is_roms = download or self._reenumerates is False
                return OTG_ROM_IDS if is_roms else OTG_APP_IDS

    def _goes(self, cause: ResetCause) -> bool:
        if self.kind is UsbKind.BRIDGE:
            return False
        if self._reenumerates is not None:
            return self._reenumerates
        return self.kind is UsbKind.OTG or cause in _RESETS_OF_ALL

    def _powered_up(self, en_rise_ns: int, powered_ns: int) -> _ResetLogic:
        match self.kind:
            case UsbKind.BRIDGE:
                return Circuit(en_rise_ns, powered_ns)
            case UsbKind.JTAG:
                return UsbJtag(powered_ns + en_rise_ns)
            case UsbKind.OTG:
                return UsbOtg(self._firmware, powered_ns + en_rise_ns)
