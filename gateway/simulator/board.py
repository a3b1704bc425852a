"""One simulated board: circuit, chip and app joined, and a log of what happens to it.

Decides what the chip runs (nothing while it is in reset, then the ROM's loader or the app) and who
therefore speaks and listens at the UART or the USB device. Pure logic: times are arguments, in
nanoseconds of CLOCK_MONOTONIC. The pace of the bytes is `link`'s matter, the loader itself is
`rom`'s, what the host's lines do is `attachment`'s.
"""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import asdict, dataclass, replace
from enum import Enum

from gateway.simulator import commands
from gateway.simulator.app import App
from gateway.simulator.attachment import Attachment
from gateway.simulator.chips import CHIPS, Chip, ResetCause
from gateway.simulator.circuit import (
    Boot,
    ChipReset,
    DownloadFlag,
    EnHigh,
    EnLow,
    Event,
    LinesSet,
    Restart,
)
from gateway.simulator.flash import Flash
from gateway.simulator.rom import DownloadMode
from gateway.simulator.url import BoardUrl
from gateway.simulator.usb import USB_BAUDRATE, UsbIds, UsbKind
from gateway.simulator.usb_otg import Firmware

LogEntry = dict[str, object]

_NS_PER_S = 1_000_000_000

#: The ESP32-S2's ROM takes blocks of 2 KB over USB-OTG (esptool's USB_OTG_BLOCK_SIZE); 24 bytes of
#: headers come on top.
_MAX_OTG_FRAME_BYTES = 0x800 + 24

#: All that there is.
_ALL_BYTES = 1 << 30


class Runs(Enum):
    """What the chip runs."""

    RESET = "reset"  # held in reset: the UART neither sends nor hears
    BOOTING = "booting"  # the ROM sends its boot log, then starts the app; nothing listens
    APP = "app"  # the app has its prompt at the UART
    DOWNLOAD = "download"  # the ROM's loader or the flasher stub answers at the UART


@dataclass(frozen=True, slots=True)
class _SetBaudrate:
    """The rate changes once everything before it has been sent."""

    baudrate: int


@dataclass(frozen=True, slots=True)
class _StartApp:
    """The app starts once everything before it has been sent."""


@dataclass(frozen=True, slots=True)
class _Restart:
    """The chip resets itself once everything before it has been sent."""

    cause: ResetCause


_Turn = _SetBaudrate | _StartApp | _Restart

#: What the loader's events are called in the log, where nothing else is to be done about them.
_LOADER_EVENTS: dict[type[commands.Event], str] = {
    commands.Synced: "sync",
    commands.StubStarted: "stub_started",
    commands.FlashWritten: "flash_written",
    commands.FlashErased: "flash_erased",
    commands.CommandRefused: "command_refused",
}


def _with_own_mac(chip: Chip, name: str) -> Chip:
    """The chip with an address that only a board of this name has, the same at each start."""
    return replace(chip, mac=chip.mac[:3] + zlib.crc32(name.encode()).to_bytes(4, "big")[1:])


def _chip_of(url: BoardUrl) -> Chip:
    chip = _with_own_mac(CHIPS[url.chip], url.name)
    if url.usb_kind is UsbKind.BRIDGE:
        return chip
    return replace(chip, registers={**chip.registers, **chip.usb_registers})


class Board:
    """The board that `url` describes, from power-up on.

    To power it up again, make a new one with the same `flash`. `enumeration` is another number
    whenever the USB device has gone since it was looked at last; it comes back as `usb_ids`.
    """

    def __init__(self, url: BoardUrl, flash: Flash, powered_ns: int) -> None:
        self.runs = Runs.RESET
        self.boot_mode: str | None = None  # "app" or "download": what the last boot led to
        self._url = url
        self._usb = url.usb_kind
        self._chip = _chip_of(url)
        self.baudrate = USB_BAUDRATE
        if self._usb is UsbKind.BRIDGE:
            self.baudrate = self._chip.boot_log.baudrate
        self._flash = flash
        self._heartbeat_ns = round(url.heartbeat_s * _NS_PER_S)
        self._attachment = Attachment(url, self._firmware, powered_ns)
        self._loader: DownloadMode | None = None
        self._app: App | None = None
        # What the UART has to send besides the app's output; never begins with a turn.
        self._outgoing: deque[bytearray | _Turn] = deque()
        self._log: list[LogEntry] = []

    @property
    def dtr(self) -> bool:
        """The line as the circuit sees it: up to circuit.DELIVERY_NS behind."""
        return self._attachment.dtr

    @property
    def rts(self) -> bool:
        """The line as the circuit sees it: up to circuit.DELIVERY_NS behind."""
        return self._attachment.rts

    @property
    def usb_ids(self) -> UsbIds:
        """What the USB device calls itself."""
        return self._attachment.usb_ids(download=self.runs is Runs.DOWNLOAD)

    @property
    def enumeration(self) -> int:
        """How many USB devices the host has seen since power-up, the present one included."""
        return self._attachment.enumeration

    def log_entries(self) -> list[LogEntry]:
        """What has happened since the last call: `t_ns`, `event` and what belongs to it."""
        entries, self._log = self._log, []
        return entries

    def set_lines(self, now_ns: int, stamp_ns: int, dtr: bool, rts: bool) -> None:
        """The host set both lines at `stamp_ns`, no later than now."""
        self._attachment.set_lines(min(stamp_ns, now_ns), dtr, rts)

    def set_host_baudrate(self, now_ns: int, baudrate: int) -> None:
        """The host set its tty to another rate; a bridge keeps that to itself."""
        self._attachment.set_baudrate(now_ns, baudrate)

    def press_reset(self, now_ns: int) -> None:
        """Someone presses the board's reset button, and lets it go at once."""
        if self.runs is not Runs.RESET:
            self._note(now_ns, "en_low")
            self._note(now_ns, "en_high")
            self._restart(now_ns, ResetCause.POWER_ON)

    def next_deadline(self) -> int | None:
        """When `handle_timer` wants to be called, if at all."""
        deadlines = [self._attachment.next_deadline()]
        if self._app is not None:
            deadlines.append(self._app.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def handle_timer(self, now_ns: int) -> None:
        """A deadline has passed, or may have."""
        enumeration = self.enumeration
        for event in self._attachment.handle_timer(now_ns):
            self._handle_reset_event(event)
            if self.enumeration != enumeration:
                break  # the rest was for a USB device that is gone
        if self._app is not None:
            self._app.handle_timer(now_ns)
        self._drop_unheard()

    def _handle_reset_event(self, event: Event) -> None:
        match event:
            case LinesSet(t_ns, dtr, rts):
                self._note(t_ns, "lines", dtr=dtr, rts=rts)
            case DownloadFlag(t_ns, on):
                self._note(t_ns, "download_flag", on=on)
            case EnLow(t_ns):
                self._note(t_ns, "en_low")
                self._stop()
            case EnHigh(t_ns):
                self._note(t_ns, "en_high")
            case ChipReset(t_ns, download):
                self._note(t_ns, "chip_reset", download=download)
                self._stop()
                if self._attachment.leave(ResetCause.USB):  # which lets go of the lines
                    self._boot(t_ns, ResetCause.USB, download=download)
            case Boot(t_ns, download, cause):
                self._boot(t_ns, cause, download=download)
            case Restart(t_ns, download):
                self._attachment.leave(ResetCause.SOFTWARE)
                self._boot(t_ns, ResetCause.SOFTWARE, download=download)

    # USB

    def _firmware(self) -> Firmware:
        if self.runs is Runs.APP:
            return Firmware.APP
        if self._loader is None:
            return Firmware.NONE
        return Firmware.STUB if self._loader.runs_stub else Firmware.ROM

    def _drop_unheard(self) -> None:
        """An app that is its own USB device sends nothing while the host has DTR off.

        TinyUSB takes DTR for the host's program being there (tud_cdc_connected).
        """
        if self._usb is UsbKind.OTG and not self.dtr and self._app is not None:
            while self._app.unsent_bytes:
                self._app.take(_ALL_BYTES)

    def discard_output(self, now_ns: int) -> None:
        """Let go by what there is to send, as a USB device does that no host listens to."""
        while self.unsent_bytes:
            self.take(now_ns, _ALL_BYTES)

    # The UART, as link.Uart asks for it

    @property
    def unsent_bytes(self) -> int:
        """How much there is to send, up to the next change of what runs or at which rate."""
        if self._outgoing and isinstance(self._outgoing[0], bytearray):
            return len(self._outgoing[0])
        return 0 if self._app is None else self._app.unsent_bytes

    def take(self, now_ns: int, limit: int) -> bytes:
        """The next bytes that have left the UART; fewer than `limit` when something changes."""
        if not self._outgoing:
            return b"" if self._app is None else self._app.take(limit)
        data = self._outgoing[0]
        if not isinstance(data, bytearray):  # can't be, see _outgoing
            return b""
        chunk = bytes(data[:limit])
        del data[:limit]
        if not data:
            self._outgoing.popleft()
            self._take_turns(now_ns)
        return chunk

    def receive_data(self, now_ns: int, data: bytes) -> None:
        """Bytes that have arrived at the UART."""
        if self._app is not None:
            self._app.receive_data(data)
            self._drop_unheard()
        elif self._loader is not None:
            events = self._loader.receive_data(data)
            self._send(self._loader.data_to_send())
            for event in events:
                self._handle_loader_event(now_ns, event)
            self._take_turns(now_ns)

    def _handle_loader_event(self, now_ns: int, event: commands.Event) -> None:
        match event:
            case commands.BaudrateChanged(baudrate):
                self._outgoing.append(_SetBaudrate(baudrate))
            case commands.ResetRequested(into_bootloader):
                # Only the watchdog resets the chip so far that it samples its straps again.
                cause = ResetCause.SOFTWARE if into_bootloader else ResetCause.WATCHDOG
                self._outgoing.append(_Restart(cause))
            case commands.AppStarted():
                # It sets up its UART as after a boot.
                self._outgoing += [_SetBaudrate(self._chip.rom_baudrate), _StartApp()]
            case _:
                self._note(now_ns, _LOADER_EVENTS[type(event)], **asdict(event))

    def _send(self, data: bytes) -> None:
        if not data:
            return
        last = self._outgoing[-1] if self._outgoing else None
        if isinstance(last, bytearray):
            last += data
        else:
            self._outgoing.append(bytearray(data))

    def _take_turns(self, now_ns: int) -> None:
        """Do what was to be done when all bytes before it have been sent."""
        while self._outgoing and not isinstance(turn := self._outgoing[0], bytearray):
            self._outgoing.popleft()
            match turn:
                case _SetBaudrate(baudrate):
                    self._set_baudrate(now_ns, baudrate)
                case _StartApp():
                    self._start_app(now_ns)
                case _Restart(cause):
                    self._restart(now_ns, cause)

    def _set_baudrate(self, now_ns: int, baudrate: int) -> None:
        if self._usb is UsbKind.BRIDGE and baudrate != self.baudrate:
            self.baudrate = baudrate
            self._note(now_ns, "baudrate", baudrate=baudrate)

    def _stop(self) -> None:
        """The chip is in reset: whatever it was about to send is gone."""
        self.runs = Runs.RESET
        self._outgoing.clear()
        self._loader = None
        self._app = None

    def _restart(self, now_ns: int, cause: ResetCause) -> None:
        """A reset that the host's lines have no part in."""
        download = self._attachment.enters_download(cause)
        self._attachment.leave(cause)
        self._boot(now_ns, cause, download=download)

    def _boot(self, now_ns: int, cause: ResetCause, *, download: bool) -> None:
        self._stop()
        self.boot_mode = "download" if download else "app"
        self._note(now_ns, "boot", mode=self.boot_mode, cause=cause.name.lower())
        if self._usb is UsbKind.BRIDGE:
            self.baudrate = self._chip.boot_log.baudrate
        if self._usb is not UsbKind.OTG:  # whose device is not there yet when the ROM prints
            self._send(self._chip.boot_messages(cause, download=download))
        self._outgoing.append(_SetBaudrate(self._chip.rom_baudrate))
        if download:
            self.runs = Runs.DOWNLOAD
            self._loader = self._new_loader()
        else:
            self.runs = Runs.BOOTING
            self._outgoing.append(_StartApp())
        self._take_turns(now_ns)

    def _new_loader(self) -> DownloadMode:
        if self._usb is UsbKind.OTG:
            return DownloadMode(self._chip, self._flash, _MAX_OTG_FRAME_BYTES)
        return DownloadMode(self._chip, self._flash)

    def _start_app(self, now_ns: int) -> None:
        if self._loader is not None and self._usb is UsbKind.OTG:
            self._attachment.leave(ResetCause.SOFTWARE)  # the app brings a device of its own
        self._note(now_ns, "app_started")
        self.runs = Runs.APP
        self._loader = None
        self._app = App(self._url.name, self._heartbeat_ns, now_ns)
        self._drop_unheard()

    def _note(self, t_ns: int, event: str, **details: object) -> None:
        self._log.append({"t_ns": t_ns, "event": event, **details})
