"""What DTR, RTS and the baud rate do to a simulated board: circuit, USB controller, USB device.

Three kinds of logic stand between the host's lines and the chip's reset (`UsbKind`): `_Circuit`
behind a bridge, `_UsbJtag`, `_UsbOtg`. `Attachment` chooses one and decides when the USB device
goes away and comes back. Resets that remove it, unless the URL's `reenumerates` says otherwise:

    bridge   none: it is a chip of its own
    jtag     those of the whole chip: power, EN, RTC watchdog. Those of the digital core leave the
             controller alone: RTS and DTR (it is the one that does it), software.
             Sources: ESP32-C3 Technical Reference Manual 30.3.4 ("not affected by SRST"), reset
             cause 0x15 in ESP-IDF's reset_reasons.h ("USB UART resets the digital core"), and
             espflash's pull request 779: the watchdog makes the port re-enumerate, RTS does not.
    otg      all: the device is software, and each firmware that starts resets the USB module first
             (tinyusb_init in arduino-esp32). ROM and app have ids of their own.

Pure logic: times are arguments, in nanoseconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from gateway.simulator.chips import ResetCause, UsbKind
from gateway.simulator.url import BoardUrl

#: How far the circuit lags behind the clock. A line change is stamped by its sender and reaches the
#: simulator over a socket; within this time after its stamp it still counts as if it had come at
#: once. Clients leave 50 ms and more for the chip to start.
DELIVERY_NS = 5_000_000

#: EN must be low for this long to reset the chip: the capacitor at EN swallows what is shorter,
#: such as the gap between two lines that a driver sets one after the other.
SHORTEST_RESET_NS = 10_000

#: The rate that Arduino tools set for a moment to ask a board for its bootloader.
TOUCH_BAUDRATE = 1200

#: What goes over a full-speed CDC device, as the rate of a UART with ten bits to a byte: 800 KB/s,
#: of the 1.2 MB/s that a bus without other traffic carries. The rate that the host sets is ignored.
USB_BAUDRATE = 8_000_000

_NS_PER_MS = 1_000_000


class UsbIds(NamedTuple):
    """Vendor and product id of a USB device; str() writes them as lsusb does."""

    vendor: int
    product: int

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.product:04x}"

    @classmethod
    def parse(cls, text: str) -> UsbIds:
        """Read what str() writes; ValueError when it is something else."""
        vendor, product = text.split(":")
        return cls(int(vendor, 16), int(product, 16))


#: A CP2102N, on most of Espressif's own boards.
BRIDGE_IDS = UsbIds(0x10C4, 0xEA60)
#: The USB-Serial/JTAG controller: the same on every chip that has one, whatever the chip runs.
JTAG_IDS = UsbIds(0x303A, 0x1001)
#: The boot ROM's own CDC device; the product id is the chip's number in image headers (ESP32-S2).
OTG_ROM_IDS = UsbIds(0x303A, 0x0002)
#: An app made with arduino-esp32 for a LOLIN S2 mini (its variant's pins_arduino.h); each board
#: has an id of its own.
OTG_APP_IDS = UsbIds(0x303A, 0x80C2)


@dataclass(frozen=True, slots=True)
class Happened:
    """An entry for the board's log; "en_low" and "chip_reset" hold the chip in reset.

    "lines": the host has set both lines, perhaps to what they were. "en_high": EN has crossed the
    chip's threshold. "download_flag": that of the USB-Serial/JTAG controller was set or cleared.
    "chip_reset": that controller resets the chip, which will boot as `download` says.
    """

    t_ns: int
    event: str
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Boot:
    """The chip starts, in download mode if its strap was low or a flag says so."""

    t_ns: int
    download: bool
    cause: ResetCause = ResetCause.POWER_ON


@dataclass(frozen=True, slots=True)
class Restart:
    """The firmware restarts the chip by software at the host's request."""

    t_ns: int
    download: bool


Event = Happened | Boot | Restart


def _lines_set(t_ns: int, dtr: bool, rts: bool) -> Event:
    return Happened(t_ns, "lines", {"dtr": dtr, "rts": rts})


class _Circuit:
    """The auto-reset circuit behind a USB-UART bridge, from the moment that the board is powered.

    Two transistors: EN is pulled low only while RTS is on and DTR off, IO0 only while DTR is on and
    RTS off; with both on or both off, both pins are high. EN falls at once, for the transistor
    discharges its capacitor, and takes `en_rise_ns` to rise; the chip samples IO0 when EN crosses
    its threshold on the way up, and starts. At power-up both lines are off and EN rises from 0 V,
    so the first event is a boot.
    """

    def __init__(self, en_rise_ns: int, powered_ns: int) -> None:
        self.dtr = False
        self.rts = False
        self._en_rise_ns = en_rise_ns
        self._replayed_ns = powered_ns  # what happened up to here can no longer be changed
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
    def _io0_is_low(self) -> bool:
        return self.dtr and not self.rts

    def enters_download(self, cause: ResetCause) -> bool:
        # A software reset finds the straps as they were when EN rose; others sample them again.
        return self._strap_was_low if cause is ResetCause.SOFTWARE else self._io0_is_low

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
            return [Happened(low_ns, "en_low")]
        if self._changes and self._changes[0][0] <= t_ns:
            _, dtr, rts = self._changes.pop(0)
            self._apply(t_ns, dtr, rts)
            return [_lines_set(t_ns, dtr, rts)]
        self._rise_ns = None
        self._in_reset = False
        self._strap_was_low = self._io0_is_low
        return [Happened(t_ns, "en_high"), Boot(t_ns, download=self._io0_is_low)]

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


class _NativeUsb:
    """One enumeration of a chip that is its own USB device.

    `boots_ns` is when the chip starts by itself after power-up, None if it runs already.
    """

    def __init__(self, boots_ns: int | None = None) -> None:
        self.dtr = False
        self.rts = False
        self._boots_ns = boots_ns
        self._events: list[Event] = []

    def next_deadline(self) -> int | None:
        return self._events[0].t_ns if self._events else self._boots_ns

    def handle_timer(self, now_ns: int) -> list[Event]:
        events, self._events = self._events, []
        if self._boots_ns is not None and self._boots_ns <= now_ns:
            events += [Happened(self._boots_ns, "en_high"), Boot(self._boots_ns, download=False)]
            self._boots_ns = None
        return events


class _UsbJtag(_NativeUsb):
    """A chip's own USB-Serial/JTAG controller.

    Source: ESP32-C3 Technical Reference Manual, tables 30.3-2 and 30.4-1 (those of the ESP32-S3,
    C6 and H2 say the same). The controller acts on the pair of lines of one control transfer:

        RTS off, DTR off   clear the download flag
        RTS off, DTR on    set the download flag
        RTS on, DTR off    reset the chip; with the flag set it comes back in download mode
        both on            nothing

    The manual's sequence leaves the reset through "both off", which clears the flag, and is in
    download mode all the same: the flag counts at the moment that the reset begins. The chip is in
    reset for as long as the pair stays (the manual's "Exit reset").
    """

    _flag = False
    _latched_flag = False  # the flag when the reset in force began

    def set_lines(self, stamp_ns: int, dtr: bool, rts: bool) -> None:
        was_reset = self._is_reset
        self.dtr, self.rts = dtr, rts
        self._events.append(_lines_set(stamp_ns, dtr, rts))
        if not rts and dtr != self._flag:
            self._flag = dtr
            self._events.append(Happened(stamp_ns, "download_flag", {"on": dtr}))
        if self._is_reset and not was_reset:
            self._latched_flag = self._flag
            self._boots_ns = None
            self._events.append(Happened(stamp_ns, "chip_reset", {"download": self._flag}))
        elif was_reset and not self._is_reset:
            self._events.append(Boot(stamp_ns, self._latched_flag, ResetCause.USB))

    def enters_download(self, cause: ResetCause) -> bool:
        # The strap is never low; only a reset that spares the controller leaves it the flag.
        return self._flag and cause is ResetCause.SOFTWARE

    @property
    def _is_reset(self) -> bool:
        return self.rts and not self.dtr


class Firmware(Enum):
    """What the chip runs, as far as its USB device is concerned."""

    NONE = auto()  # in reset or booting: there is no device
    APP = auto()
    ROM = auto()
    STUB = auto()


#: DTR and RTS on the app's way into download mode; a pair that is not the next one starts again.
_WAY_IN = ((False, True), (True, True), (True, False), (False, False))


class _UsbOtg(_NativeUsb):
    """A chip that is its own USB CDC device by software (USB-OTG): `firmware` acts on requests.

        app     arduino-esp32's USBCDC.cpp: restarts into download mode when the rate is set to 1200
                baud, or when the lines go through (RTS), (both), (DTR), (none), the classic reset
                sequence played one line at a time. Nothing resets it into itself.
        ROM     nothing: a hard reset through RTS does not leave the loader.
        stub    both generations: when RTS goes off, restarts into the app (stub_io.c of esptool 4,
                usb_otg.c of esp-stub-lib).

    Restarts are software resets; into download mode by a flag in the RTC domain that a software
    reset spares and a system reset clears. No strap is low.
    """

    def __init__(self, firmware: Callable[[], Firmware], boots_ns: int | None = None) -> None:
        super().__init__(boots_ns)
        self._firmware = firmware
        self._way_done = 0  # how many pairs of _WAY_IN have come

    def set_lines(self, stamp_ns: int, dtr: bool, rts: bool) -> None:
        had_rts = self.rts
        changed = (dtr, rts) != (self.dtr, self.rts)
        self.dtr, self.rts = dtr, rts
        self._events.append(_lines_set(stamp_ns, dtr, rts))
        match self._firmware():
            case Firmware.APP if changed:
                self._go_the_way_in(stamp_ns)
            case Firmware.STUB if had_rts and not rts:
                self._events.append(Restart(stamp_ns, download=False))

    def set_baudrate(self, t_ns: int, baudrate: int) -> None:
        if baudrate == TOUCH_BAUDRATE and self._firmware() is Firmware.APP:
            self._events.append(Restart(t_ns, download=True))

    def enters_download(self, cause: ResetCause) -> bool:
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


#: What stands between the host's lines and the chip. `set_lines` says that the host set both at a
#: time, `next_deadline` when `handle_timer` wants to be called, and that what has happened up to
#: now, oldest first. `enters_download` says whether a reset that the lines have no part in leads to
#: download mode.
_Logic = _Circuit | _UsbJtag | _UsbOtg

#: Resets that restart a USB-Serial/JTAG controller along with the chip.
_RESETS_OF_ALL = frozenset({ResetCause.POWER_ON, ResetCause.WATCHDOG})


class Attachment:
    """The host's side of one board, from power-up on.

    `logic` is what stands between the lines and the chip; `enumeration` counts up whenever the USB
    device has gone.
    """

    def __init__(self, url: BoardUrl, firmware: Callable[[], Firmware], powered_ns: int) -> None:
        self.kind = url.usb_kind
        self.enumeration = 1
        self._reenumerates = url.reenumerates
        self._firmware = firmware
        en_rise_ns = round(url.en_rise_ms * _NS_PER_MS)
        self.logic: _Logic = self._native_usb(powered_ns + en_rise_ns) or _Circuit(
            en_rise_ns, powered_ns
        )

    def set_baudrate(self, t_ns: int, baudrate: int) -> None:
        """The host set its tty to another rate: only a device that is software can act on it."""
        if isinstance(self.logic, _UsbOtg):
            self.logic.set_baudrate(t_ns, baudrate)

    def leave(self, cause: ResetCause) -> bool:
        """Let the USB device go if the reset takes it away; return whether it does.

        The lines are off then: they were states of that device.
        """
        goes = self._goes(cause)
        if goes and (native := self._native_usb(None)) is not None:
            self.enumeration += 1
            self.logic = native
        return goes

    def usb_ids(self, *, download: bool) -> UsbIds:
        """The USB device's ids, in download mode or while the app runs."""
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

    def _native_usb(self, boots_ns: int | None) -> _UsbJtag | _UsbOtg | None:
        match self.kind:
            case UsbKind.BRIDGE:
                return None
            case UsbKind.JTAG:
                return _UsbJtag(boots_ns)
            case UsbKind.OTG:
                return _UsbOtg(self._firmware, boots_ns)
