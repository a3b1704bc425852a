"""Download mode of a simulated chip: what runs after a reset with IO0 low.

`DownloadMode` is the whole of it, to be fed with the bytes of the serial line; `Rom` plays the
boot ROM's loader until the host has uploaded a stub, which `stub` plays from then on. Pure: bytes
in, events and bytes out. Baud rates are not modelled: what came at a wrong one is garbage already.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import NamedTuple

from gateway.simulator import commands
from gateway.simulator.chips import Chip
from gateway.simulator.commands import (
    AppStarted,
    BaudrateChanged,
    CommandRefused,
    Event,
    FlashErased,
    FlashWritten,
    Opcode,
    RefusedError,
    Request,
    ResetRequested,
    StubStarted,
    Synced,
)
from gateway.simulator.downloads import (
    STUB_GREETING,
    FlashDownload,
    RamDownload,
    StubGeneration,
)
from gateway.simulator.flash import BLOCK_BYTES, SECTOR_BYTES, Flash, FlashRangeError
from gateway.simulator.registers import Registers
from gateway.simulator.slip import SlipReader, encode
from gateway.simulator.stub import MAX_STUB_FRAME_BYTES, Stub

__all__ = [
    "AppStarted",
    "BaudrateChanged",
    "CommandRefused",
    "DownloadMode",
    "Event",
    "FlashErased",
    "FlashWritten",
    "ResetRequested",
    "Rom",
    "StubStarted",
    "Synced",
]

#: The ROM takes 6 KB blocks into RAM; 24 bytes of headers come on top.
_MAX_ROM_FRAME_BYTES = 0x1800 + 64

#: Eight answers, to a SYNC and to a command that the ROM does not know.
_COPIES = 8

#: What the ROM reads in one READ_FLASH_SLOW, and always sends.
_SLOW_READ_BYTES = 64

_WRITE_REG_BYTES = 16

# Error codes of the ROM (Espressif's serial protocol documentation).
_INVALID_MESSAGE = 0x05
_FAILED_TO_ACT = 0x06
_INVALID_CHECKSUM = 0x07
_FLASH_WRITE_ERROR = 0x08
_FLASH_READ_ERROR = 0x09
_FLASH_READ_LENGTH_ERROR = 0x0A
_DEFLATE_ERROR = 0x0B


class DownloadMode:
    """A chip in download mode, from the reset that led there to the one that ends it.

    After ResetRequested or AppStarted nothing more is answered: make another one at the next
    reset. A `max_frame_bytes` below the usual stands for a ROM that has less room on some port.
    """

    def __init__(
        self, chip: Chip, flash: Flash, max_frame_bytes: int = _MAX_ROM_FRAME_BYTES
    ) -> None:
        self._chip = chip
        self._flash = flash
        self._registers = Registers(chip, flash, chip.rom_baudrate)
        self._slip = SlipReader(max_frame_bytes)
        self._rom = Rom(chip, flash, self._registers, self._send)
        self._loader: Rom | Stub | None = self._rom
        self._out = bytearray()

    @property
    def runs_stub(self) -> bool:
        """Whether the host has uploaded the flasher stub and started it."""
        return isinstance(self._loader, Stub)

    def adopt_baudrate(self, baudrate: int) -> None:
        """The ROM has measured the host's rate (`chip.rom_baudrate` before that).

        Only the UART divider tells it, from which esptool computes the crystal's frequency.
        """
        self._registers.baudrate = baudrate

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes from the host; return what happened, in order. Never raises on bytes."""
        events: list[Event] = []
        for frame in self._slip.receive_data(data):
            if self._loader is None:
                break
            new_events = self._loader.handle_frame(frame)
            events += new_events
            for event in new_events:
                self._hand_over(event)
        return events

    def data_to_send(self) -> bytes:
        """Answers that wait to be sent, framed; they are handed out once."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def _send(self, payload: bytes) -> None:
        self._out += encode(payload)

    def _hand_over(self, event: Event) -> None:
        match event:
            case StubStarted():
                generation = self._rom.stub or StubGeneration.CURRENT
                self._slip.max_frame_bytes = MAX_STUB_FRAME_BYTES
                self._loader = Stub(
                    self._chip, self._flash, self._registers, self._send, generation
                )
                self._send(STUB_GREETING)
            case AppStarted() | ResetRequested():
                self._loader = None


class _Outcome(NamedTuple):
    """What a command led to: `data` goes before the status bytes of its answers."""

    events: tuple[Event, ...] = ()
    data: bytes = b""
    copies: int = 1


class Rom:
    """The boot ROM's loader; `send` takes payloads to be framed.

    `stub` says which stub was uploaded, once StubStarted was returned.
    """

    def __init__(
        self, chip: Chip, flash: Flash, registers: Registers, send: Callable[[bytes], None]
    ) -> None:
        self.stub: StubGeneration | None = None
        self._chip = chip
        self._flash = flash
        self._registers = registers
        self._send = send
        # Only READ_REG means its value field; other answers repeat what was in it last.
        self._value = chip.sync_value
        self._ram = RamDownload()
        self._download: FlashDownload | None = None
        self._blocks_left = 0

    def handle_frame(self, frame: bytes) -> list[Event]:
        """Answer one frame."""
        request = commands.decode_request(frame)
        if request is None:
            return []
        opcode = request.opcode
        if opcode not in self._chip.rom_commands:
            # Under another command's number, which is how esptool knows that this one is
            # unsupported and did not merely fail.
            self._respond(Opcode.SYNC, status=(1, _INVALID_MESSAGE), copies=_COPIES)
            return [CommandRefused(opcode, "not a command of this ROM")]
        try:
            if request.size != len(request.body):
                raise RefusedError(_INVALID_MESSAGE, "size field does not match")
            outcome = _HANDLERS[Opcode(opcode)](self, request)
        except RefusedError as refused:
            self._respond(opcode, status=(1, refused.code))
            return [CommandRefused(opcode, str(refused))]
        self._respond(opcode, outcome.data, copies=outcome.copies)
        return list(outcome.events)

    def _respond(
        self, opcode: int, data: bytes = b"", status: tuple[int, int] = (0, 0), copies: int = 1
    ) -> None:
        body = data + bytes(status).ljust(self._chip.status_bytes, b"\0")
        payload = commands.encode_response(opcode, self._value, body)
        for _ in range(copies):
            self._send(payload)

    def _sync(self, _request: Request) -> _Outcome:
        self._value = self._chip.sync_value
        return _Outcome((Synced(),), copies=_COPIES)

    def _read_reg(self, request: Request) -> _Outcome:
        (address,) = _words(request, 1)
        self._value = self._registers.read(address)
        return _Outcome()

    def _write_reg(self, request: Request) -> _Outcome:
        """Writes in sequence; their delays pass in no time."""
        if not request.body or len(request.body) % _WRITE_REG_BYTES:
            raise RefusedError(_INVALID_MESSAGE, "size is no multiple of a register write")
        values = commands.words(request.body)
        for i in range(0, len(values), 4):
            address, value, mask, _delay_us = values[i : i + 4]
            if self._registers.write(address, value, mask):
                return _Outcome((ResetRequested(into_bootloader=False),))
        return _Outcome()

    def _mem_begin(self, request: Request) -> _Outcome:
        size, _blocks, _block_bytes, start = _words(request, 4)
        if not self._ram.begin(start, size):
            raise RefusedError(_FAILED_TO_ACT, "more than fits into RAM")
        return _Outcome()

    def _mem_data(self, request: Request) -> _Outcome:
        data = _block_data(request)
        if (self._ram.remaining or 0) < len(data):
            raise RefusedError(_FAILED_TO_ACT, "more data than announced")
        self._ram.add(data)
        return _Outcome()

    def _mem_end(self, request: Request) -> _Outcome:
        stays, entry = _words(request, 2)
        if stays:
            return _Outcome()
        self.stub = self._ram.stub_at(entry, self._chip)
        return _Outcome((AppStarted() if self.stub is None else StubStarted(),))

    def _spi_attach(self, request: Request) -> _Outcome:
        _words(request, 2)
        self._registers.flash_attached = True
        return _Outcome()

    def _spi_set_params(self, request: Request) -> _Outcome:
        _words(request, 6)
        return _Outcome()

    def _change_baudrate(self, request: Request) -> _Outcome:
        baudrate, _old_baudrate = _words(request, 2)
        if not baudrate:
            raise RefusedError(_INVALID_MESSAGE, "baud rate 0")
        self._registers.baudrate = baudrate
        return _Outcome((BaudrateChanged(baudrate),))

    def _flash_begin(self, request: Request) -> _Outcome:
        """Erases all that was announced before it answers."""
        size, blocks, _block_bytes, offset, *_ = _words(request, self._chip.flash_begin_bytes // 4)
        if Opcode.SPI_ATTACH not in self._chip.rom_commands:
            self._registers.flash_attached = True
        self._check_attached()
        erase_bytes = size
        if self._chip.has_erase_size_bug:
            room = max(size, self._flash.size_bytes - offset)
            erase_bytes = min(_buggy_erase_bytes(offset, size), room)
        try:
            erased = self._flash.erase(offset, erase_bytes)
        except FlashRangeError as error:
            raise RefusedError(_FAILED_TO_ACT, str(error)) from error
        compressed = request.opcode == Opcode.FLASH_DEFL_BEGIN
        self._download = FlashDownload(self._flash, offset, size, compressed=compressed)
        self._blocks_left = blocks
        return _Outcome((FlashErased(*erased),) if size else ())

    def _flash_data(self, request: Request) -> _Outcome:
        data = _block_data(request)
        download = self._download
        if download is None or not self._blocks_left:
            raise RefusedError(_FAILED_TO_ACT, "no block is expected")
        try:
            data = download.unpack(data)
        except zlib.error as error:
            raise RefusedError(_DEFLATE_ERROR, str(error)) from error
        if request.opcode == Opcode.FLASH_DEFL_DATA and len(data) > download.remaining:
            raise RefusedError(_DEFLATE_ERROR, "more data than announced")
        if data:
            return _Outcome((self._write_and_compare(download, data),))
        self._blocks_left -= 1
        return _Outcome()

    def _write_and_compare(self, download: FlashDownload, data: bytes) -> FlashWritten:
        """The ROM reads back what it wrote, so it notices what was not erased."""
        try:
            event = download.write(data)
        except FlashRangeError as error:
            raise RefusedError(_FLASH_WRITE_ERROR, str(error)) from error
        if self._flash.read(event.offset, event.size) != data:
            raise RefusedError(_FLASH_WRITE_ERROR, "flash was not erased")
        self._blocks_left -= 1
        return event

    def _flash_end(self, request: Request) -> _Outcome:
        """Leaves the loader, by a reset (which finds the straps as they were) or into the app."""
        (stays_out_of_reset,) = _words(request, 1)
        if stays_out_of_reset:
            return _Outcome((AppStarted(),))
        return _Outcome((ResetRequested(into_bootloader=True),))

    def _read_flash_slow(self, request: Request) -> _Outcome:
        offset, size = _words(request, 2)
        if size > _SLOW_READ_BYTES:
            raise RefusedError(_FLASH_READ_LENGTH_ERROR, f"{size} bytes in one read")
        return _Outcome(data=self._read_flash(offset, size).ljust(_SLOW_READ_BYTES, b"\0"))

    def _flash_md5(self, request: Request) -> _Outcome:
        offset, size, _, _ = _words(request, 4)
        contents = self._read_flash(offset, size)
        digest = hashlib.md5(contents, usedforsecurity=False).hexdigest()
        return _Outcome(data=digest.encode("ascii"))

    def _security_info(self, _request: Request) -> _Outcome:
        return _Outcome(data=self._chip.security_info())

    def _read_flash(self, offset: int, size: int) -> bytes:
        self._check_attached()
        try:
            return self._flash.read(offset, size)
        except FlashRangeError as error:
            raise RefusedError(_FLASH_READ_ERROR, str(error)) from error

    def _check_attached(self) -> None:
        if not self._registers.flash_attached:
            raise RefusedError(_FAILED_TO_ACT, "flash is not attached")


_HANDLERS: dict[Opcode, Callable[[Rom, Request], _Outcome]] = {
    Opcode.FLASH_BEGIN: Rom._flash_begin,
    Opcode.FLASH_DATA: Rom._flash_data,
    Opcode.FLASH_END: Rom._flash_end,
    Opcode.MEM_BEGIN: Rom._mem_begin,
    Opcode.MEM_END: Rom._mem_end,
    Opcode.MEM_DATA: Rom._mem_data,
    Opcode.SYNC: Rom._sync,
    Opcode.WRITE_REG: Rom._write_reg,
    Opcode.READ_REG: Rom._read_reg,
    Opcode.SPI_SET_PARAMS: Rom._spi_set_params,
    Opcode.SPI_ATTACH: Rom._spi_attach,
    Opcode.READ_FLASH_SLOW: Rom._read_flash_slow,
    Opcode.CHANGE_BAUDRATE: Rom._change_baudrate,
    Opcode.FLASH_DEFL_BEGIN: Rom._flash_begin,
    Opcode.FLASH_DEFL_DATA: Rom._flash_data,
    Opcode.FLASH_DEFL_END: Rom._flash_end,
    Opcode.SPI_FLASH_MD5: Rom._flash_md5,
    Opcode.GET_SECURITY_INFO: Rom._security_info,
}


def _words(request: Request, count: int) -> tuple[int, ...]:
    """The body as exactly `count` words."""
    if len(request.body) != 4 * count:
        raise RefusedError(_INVALID_MESSAGE, f"{len(request.body)} bytes, expected {4 * count}")
    return commands.words(request.body)


def _block_data(request: Request) -> bytes:
    """The data of a DATA command, their size and checksum verified."""
    block = commands.decode_block(request.body)
    if block is None or block.size != len(block.data):
        raise RefusedError(_INVALID_MESSAGE, "size of the data does not match")
    if commands.checksum(block.data) != request.checksum:
        raise RefusedError(_INVALID_CHECKSUM, "wrong checksum")
    return block.data


def _buggy_erase_bytes(offset: int, size: int) -> int:
    """What the ESP8266's ROM erases when told to erase `size` bytes.

    It counts the sectors up to the next 64 KB boundary twice; hosts announce less to make up.
    """
    sectors_per_block = BLOCK_BYTES // SECTOR_BYTES
    sectors = -(-size // SECTOR_BYTES)
    head = min(sectors, sectors_per_block - offset // SECTOR_BYTES % sectors_per_block)
    return (sectors + head) * SECTOR_BYTES
