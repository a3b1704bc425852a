"""One simulated board: the chip's firmware behind its UART or USB device, and a log of events.

`Board` decides what the chip runs (nothing while it is in reset, then the ROM's loader or the app)
and therefore what speaks and listens at the UART. `App` prints a heartbeat and echoes at a prompt:
just enough to see that bytes go both ways in order and whether the board was reset. Pure logic:
times are arguments, in nanoseconds of CLOCK_MONOTONIC; `link` paces the bytes.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import deque
from dataclasses import replace
from enum import Enum

from gateway.simulator.attachment import (
    USB_BAUDRATE,
    Attachment,
    Boot,
    Event,
    Firmware,
    Happened,
    Restart,
    UsbIds,
)
from gateway.simulator.chips import CHIPS, Chip, ResetCause, UsbKind
from gateway.simulator.flash import Flash
from gateway.simulator.loader import AppStarted, BaudrateChanged, DownloadMode, ResetRequested
from gateway.simulator.loader import Event as LoaderEvent
from gateway.simulator.url import BoardUrl

LogEntry = dict[str, object]

_NS_PER_S = 1_000_000_000

# --- The app ------------------------------------------------------------------------------------

VERSION = "1.0"
PROMPT = b"esp> "

#: What one command may send: 90 s at 115200 baud.
MAX_PATTERN_BYTES = 1 << 20

#: The line buffer; what is typed beyond it is neither kept nor echoed.
MAX_LINE_BYTES = 256

#: With more than this unsent the app is busy printing, as a real one that blocks in its UART
#: driver: it prints no heartbeats and leaves its input in the receive buffer, which overflows.
BUSY_BYTES = 4096
RECEIVE_BUFFER_BYTES = 4096

_HELP = (
    b"help       this list\r\nversion    what runs here\r\nbytes N    N bytes of a fixed pattern"
)

#: Runs of plain characters, and each key that means something.
_KEYS = re.compile(rb"[^\r\n\b\x7f]+|[\r\n\b\x7f]")


def pattern(n_bytes: int) -> bytes:
    """The pseudo-random bytes that `bytes N` sends: always the same, all values occur."""
    return hashlib.shake_256(b"esp-serial-gateway").digest(n_bytes)


class App:
    """One run of the app, from its start at `started_ns` until reset.

    `heartbeat_ns` is the time between two heartbeats, 0 for none.
    """

    def __init__(self, name: str, heartbeat_ns: int, started_ns: int) -> None:
        self._name = name
        self._heartbeat_ns = heartbeat_ns
        self._started_ns = started_ns
        self._heartbeats = 0
        self._line = bytearray()
        self._received = bytearray()  # waits until the app is no longer busy
        self._received_cr = False
        self._unsent = bytearray()
        self._print_log(started_ns, "ready")

    @property
    def unsent_bytes(self) -> int:
        """How much `take` has to give."""
        return len(self._unsent)

    def take(self, limit: int) -> bytes:
        """Take up to `limit` bytes of what the app prints, for the UART to send."""
        chunk = bytes(self._unsent[:limit])
        del self._unsent[:limit]
        self._read_received()
        return chunk

    def receive_data(self, data: bytes) -> None:
        """Characters that came over the UART."""
        self._received += data[: RECEIVE_BUFFER_BYTES - len(self._received)]
        self._read_received()

    def next_deadline(self) -> int | None:
        """When `handle_timer` wants to be called, if at all."""
        if not self._heartbeat_ns:
            return None
        return self._started_ns + (self._heartbeats + 1) * self._heartbeat_ns

    def handle_timer(self, now_ns: int) -> None:
        """Print the heartbeat if it is due; those that were missed are left out."""
        due_ns = self.next_deadline()
        if due_ns is None or now_ns < due_ns:
            return
        self._heartbeats = (now_ns - self._started_ns) // self._heartbeat_ns
        if not self._is_busy:
            self._unsent += b"\r\n"
            self._print_log(now_ns, f"heartbeat {self._heartbeats}")
            self._unsent += self._line

    @property
    def _is_busy(self) -> bool:
        return len(self._unsent) > BUSY_BYTES

    def _print_log(self, now_ns: int, text: str) -> None:
        uptime_ms = (now_ns - self._started_ns) // 1_000_000
        self._unsent += f"I ({uptime_ms}) app: {text}\r\n".encode() + PROMPT

    def _read_received(self) -> None:
        while self._received and not self._is_busy:
            keys = _KEYS.match(self._received)
            assert keys is not None  # noqa: S101 - every byte is one or the other
            text = keys.group()
            del self._received[: len(text)]
            is_crlf = self._received_cr and text == b"\n"
            self._received_cr = text == b"\r"
            if not is_crlf:
                self._press(text)

    def _press(self, text: bytes) -> None:
        if text in {b"\r", b"\n"}:
            line = bytes(self._line)
            self._line.clear()
            answer = self._answer(line)
            self._unsent += b"\r\n" + answer + (b"\r\n" if answer else b"") + PROMPT
        elif text in {b"\b", b"\x7f"}:
            if self._line:
                del self._line[-1:]
                self._unsent += b"\b \b"
        else:
            text = text[: MAX_LINE_BYTES - len(self._line)]
            self._line += text
            self._unsent += text

    def _answer(self, line: bytes) -> bytes:
        match line.split():
            case []:
                return b""
            case [b"help"]:
                return _HELP
            case [b"version"]:
                return f"{self._name} simulated app {VERSION}".encode()
            case [b"bytes", digits] if digits.isdigit() and len(digits) < 10:
                n_bytes = int(digits)
                if n_bytes <= MAX_PATTERN_BYTES:
                    return pattern(n_bytes)
                return f"? at most {MAX_PATTERN_BYTES} bytes".encode()
        return b"? " + line


# --- The board ----------------------------------------------------------------------------------

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


#: What takes effect once everything before it has been sent.
_Turn = BaudrateChanged | AppStarted | ResetRequested


def _chip_of(url: BoardUrl) -> Chip:
    """The chip, with an address that only a board of this name has, the same at each start."""
    chip = CHIPS[url.chip]
    own = zlib.crc32(url.name.encode()).to_bytes(4, "big")[1:]
    registers = dict(chip.registers)
    if url.usb_kind is not UsbKind.BRIDGE:
        registers |= chip.usb_registers
    return replace(chip, mac=chip.mac[:3] + own, registers=registers)


class Board:
    """The board that `url` describes, from power-up on.

    To power it up again, make a new one with the same `flash`. `enumeration` changes whenever the
    USB device has gone; it comes back as `usb_ids`.
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
        return self._attachment.logic.dtr

    @property
    def rts(self) -> bool:
        """The line as the circuit sees it: up to circuit.DELIVERY_NS behind."""
        return self._attachment.logic.rts

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
        self._attachment.logic.set_lines(min(stamp_ns, now_ns), dtr, rts)

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
        deadlines = [self._attachment.logic.next_deadline()]
        if self._app is not None:
            deadlines.append(self._app.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def handle_timer(self, now_ns: int) -> None:
        """A deadline has passed, or may have."""
        enumeration = self.enumeration
        for event in self._attachment.logic.handle_timer(now_ns):
            self._handle_reset_event(event)
            if self.enumeration != enumeration:
                break  # the rest was for a USB device that is gone
        if self._app is not None:
            self._app.handle_timer(now_ns)
        self._drop_unheard()

    def _handle_reset_event(self, event: Event) -> None:
        match event:
            case Happened(t_ns, name, details):
                self._note(t_ns, name, **details)
                if name in {"en_low", "chip_reset"}:
                    self._stop()
                if name == "chip_reset" and self._attachment.leave(ResetCause.USB):
                    # Without its device the controller has let go of the lines.
                    self._boot(t_ns, ResetCause.USB, download=bool(details["download"]))
            case Boot(t_ns, download, cause):
                self._boot(t_ns, cause, download=download)
            case Restart(t_ns, download):
                self._attachment.leave(ResetCause.SOFTWARE)
                self._boot(t_ns, ResetCause.SOFTWARE, download=download)

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

    @property
    def unsent_bytes(self) -> int:
        """How much there is to send, up to the next change of firmware or rate."""
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

    def _handle_loader_event(self, now_ns: int, event: LoaderEvent) -> None:
        match event:
            case dict():
                self._log.append({"t_ns": now_ns, **event})
            case AppStarted():
                # It sets up its UART as after a boot.
                self._outgoing += [BaudrateChanged(self._chip.rom_baudrate), event]
            case BaudrateChanged() | ResetRequested():
                self._outgoing.append(event)

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
                case BaudrateChanged(baudrate):
                    self._set_baudrate(now_ns, baudrate)
                case AppStarted():
                    self._start_app(now_ns)
                case ResetRequested(into_bootloader):
                    # Only the watchdog resets the chip so far that it samples its straps again.
                    cause = ResetCause.SOFTWARE if into_bootloader else ResetCause.WATCHDOG
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
        download = self._attachment.logic.enters_download(cause)
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
        self._outgoing.append(BaudrateChanged(self._chip.rom_baudrate))
        if download:
            self.runs = Runs.DOWNLOAD
            limit = [_MAX_OTG_FRAME_BYTES] if self._usb is UsbKind.OTG else []
            self._loader = DownloadMode(self._chip, self._flash, *limit)
        else:
            self.runs = Runs.BOOTING
            self._outgoing.append(AppStarted())
        self._take_turns(now_ns)

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
