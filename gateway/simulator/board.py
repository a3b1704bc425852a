"""One simulated board: circuit, chip and app joined, and a log of what happens to it.

Decides what the chip runs (nothing while EN is low, then the ROM's loader or the app) and who
therefore speaks and listens at the UART. Pure logic: times are arguments, in nanoseconds of
CLOCK_MONOTONIC. The pace of the bytes is `link`'s matter, the loader itself is `rom`'s.
"""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import asdict, dataclass, replace
from enum import Enum

from gateway.simulator import commands
from gateway.simulator.app import App
from gateway.simulator.chips import CHIPS, Chip, ResetCause
from gateway.simulator.circuit import Boot, Circuit, EnHigh, EnLow, LinesSet
from gateway.simulator.flash import Flash
from gateway.simulator.rom import DownloadMode
from gateway.simulator.url import BoardUrl

LogEntry = dict[str, object]

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000


class Runs(Enum):
    """What the chip runs."""

    RESET = "reset"  # EN is low: the UART neither sends nor hears
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

    keeps_straps: bool


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


class Board:
    """The board that `url` describes, from power-up on.

    To power it up again, make a new one with the same `flash`.
    """

    def __init__(self, url: BoardUrl, flash: Flash, powered_ns: int) -> None:
        self.runs = Runs.RESET
        self.boot_mode: str | None = None  # "app" or "download": what the last boot led to
        self._chip = _with_own_mac(CHIPS[url.chip], url.name)
        self.baudrate = self._chip.boot_log.baudrate
        self._flash = flash
        self._name = url.name
        self._heartbeat_ns = round(url.heartbeat_s * _NS_PER_S)
        self._circuit = Circuit(round(url.en_rise_ms * _NS_PER_MS), powered_ns)
        self._loader: DownloadMode | None = None
        self._app: App | None = None
        # What the UART has to send besides the app's output; never begins with a turn.
        self._outgoing: deque[bytearray | _Turn] = deque()
        self._log: list[LogEntry] = []

    @property
    def dtr(self) -> bool:
        """The line as the circuit sees it: up to circuit.DELIVERY_NS behind."""
        return self._circuit.dtr

    @property
    def rts(self) -> bool:
        """The line as the circuit sees it: up to circuit.DELIVERY_NS behind."""
        return self._circuit.rts

    def log_entries(self) -> list[LogEntry]:
        """What has happened since the last call: `t_ns`, `event` and what belongs to it."""
        entries, self._log = self._log, []
        return entries

    def set_lines(self, now_ns: int, stamp_ns: int, dtr: bool, rts: bool) -> None:
        """The host set both lines at `stamp_ns`, no later than now."""
        self._circuit.set_lines(min(stamp_ns, now_ns), dtr, rts)

    def next_deadline(self) -> int | None:
        """When `handle_timer` wants to be called, if at all."""
        deadlines = [self._circuit.next_deadline()]
        if self._app is not None:
            deadlines.append(self._app.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def handle_timer(self, now_ns: int) -> None:
        """A deadline has passed, or may have."""
        for event in self._circuit.handle_timer(now_ns):
            match event:
                case LinesSet(t_ns, dtr, rts):
                    self._note(t_ns, "lines", dtr=dtr, rts=rts)
                case EnLow(t_ns):
                    self._note(t_ns, "en_low")
                    self._stop()
                case EnHigh(t_ns):
                    self._note(t_ns, "en_high")
                case Boot(t_ns, download):
                    self._boot(t_ns, ResetCause.POWER_ON, download=download)
        if self._app is not None:
            self._app.handle_timer(now_ns)

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
                self._outgoing.append(_Restart(keeps_straps=into_bootloader))
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
                case _Restart(keeps_straps):
                    download = keeps_straps or self._circuit.io0_is_low
                    # Only the watchdog resets the chip so far that it samples its straps again.
                    cause = ResetCause.SOFTWARE if keeps_straps else ResetCause.WATCHDOG
                    self._boot(now_ns, cause, download=download)

    def _set_baudrate(self, now_ns: int, baudrate: int) -> None:
        if baudrate != self.baudrate:
            self.baudrate = baudrate
            self._note(now_ns, "baudrate", baudrate=baudrate)

    def _stop(self) -> None:
        """The chip is in reset: whatever it was about to send is gone."""
        self.runs = Runs.RESET
        self._outgoing.clear()
        self._loader = None
        self._app = None

    def _boot(self, now_ns: int, cause: ResetCause, *, download: bool) -> None:
        self._stop()
        self.boot_mode = "download" if download else "app"
        self._note(now_ns, "boot", mode=self.boot_mode, cause=cause.name.lower())
        self.baudrate = self._chip.boot_log.baudrate
        self._send(self._chip.boot_messages(cause, download=download))
        self._outgoing.append(_SetBaudrate(self._chip.rom_baudrate))
        if download:
            self.runs = Runs.DOWNLOAD
            self._loader = DownloadMode(self._chip, self._flash)
        else:
            self.runs = Runs.BOOTING
            self._outgoing.append(_StartApp())

    def _start_app(self, now_ns: int) -> None:
        self._note(now_ns, "app_started")
        self.runs = Runs.APP
        self._loader = None
        self._app = App(self._name, self._heartbeat_ns, now_ns)

    def _note(self, t_ns: int, event: str, **details: object) -> None:
        self._log.append({"t_ns": t_ns, "event": event, **details})
