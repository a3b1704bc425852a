"""The flasher stub that esptool uploads, played from its protocol; uploaded code is not run.

Differs from the boot ROM in its error codes (two status bytes), in erasing as it writes, in
writing after it has answered (so that an error shows in the answer to the next command), and in
the commands that only it has. Two generations of it are played, see `StubGeneration`.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable

from gateway.simulator import commands
from gateway.simulator.chips import Chip
from gateway.simulator.commands import (
    AppStarted,
    BaudrateChanged,
    CommandRefused,
    Event,
    FlashErased,
    Opcode,
    RefusedError,
    Request,
    ResetRequested,
    Synced,
)
from gateway.simulator.downloads import FlashDownload, FlashRead, RamDownload, StubGeneration
from gateway.simulator.flash import BLOCK_BYTES, SECTOR_BYTES, Flash
from gateway.simulator.registers import Registers

_MAX_BLOCK_BYTES = 0x4000

#: A full block with the headers before it, and some room.
MAX_STUB_FRAME_BYTES = _MAX_BLOCK_BYTES + 64

_SYNC_BYTES = 36
_SYNC_COPIES = 8
_WRITE_REG_BYTES = 16
_MAX_PACKET_BYTES = 4096
_ACKNOWLEDGEMENT = struct.Struct("<I")

# Error codes of the stub, first of its two status bytes; the second is 0.
_BAD_DATA_LENGTH = 0xC0
_BAD_CHECKSUM = 0xC1
_BAD_BLOCK_SIZE = 0xC2
_INVALID_COMMAND = 0xC3
_FAILED_FLASH_OPERATION = 0xC4
_NOT_IN_FLASH_MODE = 0xC6
_INFLATE_ERROR = 0xC7
_NOT_ENOUGH_DATA = 0xC8
_TOO_MUCH_DATA = 0xC9
_NOT_IMPLEMENTED = 0xFF


class Stub:
    """The running stub; `send` takes payloads to be framed. The greeting is sent by others."""

    def __init__(
        self,
        chip: Chip,
        flash: Flash,
        registers: Registers,
        send: Callable[[bytes], None],
        generation: StubGeneration,
    ) -> None:
        registers.flash_attached = True  # the stub does it when it starts
        self._chip = chip
        self._flash = flash
        self._registers = registers
        self._send = send
        self._generation = generation
        self._ram = RamDownload()
        self._download: FlashDownload | None = None
        self._erase_from = 0
        self._erase_to = 0
        self._read: FlashRead | None = None
        self._value = 0
        self._data = b""
        # Done once the answer is out; a refusal by it is told in the answer to the next command.
        self._afterwards: Callable[[], Iterable[Event]] | None = None
        self._carried_over: RefusedError | None = None

    def handle_frame(self, frame: bytes) -> list[Event]:
        """Answer one frame, or take it as an acknowledgement while flash is being read."""
        if self._read is not None:
            self._continue_read(self._read, frame)
            return []
        request = commands.decode_request(frame)
        if request is None:
            return []
        if request.opcode == Opcode.RUN_USER_CODE:  # the one command without an answer
            return [AppStarted()] if self._generation is StubGeneration.LEGACY else []
        self._value, self._data, self._afterwards = 0, b"", None
        try:
            events = self._run(request)
        except RefusedError as refused:
            self._respond(request.opcode, error=refused.code)
            return [CommandRefused(request.opcode, str(refused))]
        copies = _SYNC_COPIES if request.opcode == Opcode.SYNC else 1
        self._respond(request.opcode, copies=copies)
        return [*events, *self._do_afterwards(request.opcode)]

    def _run(self, request: Request) -> list[Event]:
        if self._carried_over is not None:
            refused, self._carried_over = self._carried_over, None
            raise refused
        if request.size != len(request.body):
            raise RefusedError(_BAD_DATA_LENGTH, "size field does not match")
        handler = _HANDLERS.get(request.opcode)
        if handler is None:
            raise RefusedError(_INVALID_COMMAND, "not a command of the stub")
        return handler(self, request)

    def _do_afterwards(self, opcode: int) -> list[Event]:
        if self._afterwards is None:
            return []
        events: list[Event] = []
        try:
            events.extend(self._afterwards())
        except RefusedError as refused:
            self._carried_over = refused
            events.append(CommandRefused(opcode, str(refused)))
        return events

    def _respond(self, opcode: int, error: int = 0, copies: int = 1) -> None:
        value, data = (0, b"") if error else (self._value, self._data)
        payload = commands.encode_response(opcode, value, data + bytes((error, 0)))
        for _ in range(copies):
            self._send(payload)

    def _sync(self, request: Request) -> list[Event]:
        if len(request.body) != _SYNC_BYTES:
            raise RefusedError(_BAD_DATA_LENGTH, f"SYNC of {len(request.body)} bytes")
        return [Synced()]

    def _read_reg(self, request: Request) -> list[Event]:
        (address,) = _words(request, 1)
        self._value = self._registers.read(address)
        return []

    def _write_reg(self, request: Request) -> list[Event]:
        if not request.body or len(request.body) % _WRITE_REG_BYTES:
            raise RefusedError(_NOT_ENOUGH_DATA, "size is no multiple of a register write")
        values = commands.words(request.body)
        for i in range(0, len(values), 4):
            address, value, mask, _delay_us = values[i : i + 4]
            if self._registers.write(address, value, mask):
                return [ResetRequested(into_bootloader=False)]
        return []

    def _mem_begin(self, request: Request) -> list[Event]:
        size, _blocks, _block_bytes, start = _words(request, 4)
        if not self._ram.begin(start, size):
            raise RefusedError(_TOO_MUCH_DATA, "more than fits into RAM")
        return []

    def _mem_data(self, request: Request) -> list[Event]:
        data = _block_data(request, check=False)  # the stub does not look at this checksum
        if self._ram.remaining is None:
            raise RefusedError(_NOT_IN_FLASH_MODE, "no MEM_BEGIN before")
        if len(data) > self._ram.remaining:
            raise RefusedError(_TOO_MUCH_DATA, "more data than announced")
        self._ram.add(data)
        return []

    def _mem_end(self, request: Request) -> list[Event]:
        stays, _entry = _words(request, 2)
        return [] if stays else [AppStarted()]

    def _spi_attach(self, request: Request) -> list[Event]:
        _words(request, 1)
        return []

    def _spi_set_params(self, request: Request) -> list[Event]:
        _words(request, 6)
        return []

    def _change_baudrate(self, request: Request) -> list[Event]:
        baudrate, _old_baudrate = _words(request, 2)
        if not baudrate:
            raise RefusedError(_BAD_DATA_LENGTH, "baud rate 0")
        self._registers.baudrate = baudrate
        return [BaudrateChanged(baudrate)]

    def _security_info(self, _request: Request) -> list[Event]:
        if not self._chip.security_info_bytes:
            raise RefusedError(_NOT_IMPLEMENTED, "this chip has no security info")
        self._data = self._chip.security_info()
        return []

    def _flash_begin(self, request: Request) -> list[Event]:
        """Announces a download; nothing is erased yet. The fifth word asks for encryption."""
        size, _blocks, block_bytes, offset, *encrypts = _words(request, 4, 5)
        if block_bytes > _MAX_BLOCK_BYTES:
            raise RefusedError(_BAD_BLOCK_SIZE, f"blocks of {block_bytes} bytes")
        if any(encrypts):
            raise RefusedError(_FAILED_FLASH_OPERATION, "encryption is not simulated")
        self._check_range(offset, size)
        compressed = request.opcode == Opcode.FLASH_DEFL_BEGIN
        self._download = FlashDownload(self._flash, offset, size, compressed=compressed)
        self._erase_from = offset - offset % SECTOR_BYTES
        self._erase_to = -(-(offset + size) // SECTOR_BYTES) * SECTOR_BYTES
        return []

    def _flash_data(self, request: Request) -> list[Event]:
        download = self._download
        if download is None:
            raise RefusedError(_NOT_IN_FLASH_MODE, "no FLASH_BEGIN before")
        data = _block_data(request)
        self._afterwards = lambda: self._write(download, data)
        return []

    def _write(self, download: FlashDownload, data: bytes) -> list[Event]:
        try:
            data = download.unpack(data)
        except zlib.error as error:
            raise RefusedError(_INFLATE_ERROR, str(error)) from error
        data = data[: download.remaining]  # the last block of a plain download is padded
        if not data:
            return []
        events = self._erase_up_to(download.offset + len(data))
        return [*events, download.write(data)]

    def _erase_up_to(self, end: int) -> list[Event]:
        """Erase what is not erased yet below `end`, by blocks of 64 KB where they fit."""
        events: list[Event] = []
        while self._erase_from < min(end, self._erase_to):
            fits = self._erase_to - self._erase_from >= BLOCK_BYTES
            aligned = self._erase_from % BLOCK_BYTES == 0
            size = BLOCK_BYTES if fits and aligned else SECTOR_BYTES
            events.append(FlashErased(*self._flash.erase(self._erase_from, size)))
            self._erase_from += size
        return events

    def _flash_end(self, request: Request) -> list[Event]:
        (stays,) = _words(request, 1)
        if self._download is None:
            raise RefusedError(_NOT_IN_FLASH_MODE, "no FLASH_BEGIN before")
        if self._download.remaining:
            raise RefusedError(_BAD_DATA_LENGTH, f"{self._download.remaining} bytes are missing")
        self._download = None
        if stays or self._generation is StubGeneration.CURRENT:
            return []
        return [ResetRequested(into_bootloader=True)]

    def _flash_md5(self, request: Request) -> list[Event]:
        offset, size, _, _ = _words(request, 4)
        self._check_range(offset, size)
        contents = self._flash.read(offset, size)
        self._data = hashlib.md5(contents, usedforsecurity=False).digest()
        return []

    def _erase_flash(self, _request: Request) -> list[Event]:
        self._flash.erase_all()
        return [FlashErased(0, self._flash.size_bytes)]

    def _erase_region(self, request: Request) -> list[Event]:
        offset, size = _words(request, 2)
        if offset % SECTOR_BYTES or size % SECTOR_BYTES:
            raise RefusedError(_BAD_DATA_LENGTH, "not whole sectors")
        self._check_range(offset, size)
        return [FlashErased(*self._flash.erase(offset, size))]

    def _read_flash(self, request: Request) -> list[Event]:
        # The last word is how many packets may be on their way; both generations take it for 1.
        offset, size, packet_bytes, _max_in_flight = _words(request, 4)
        self._afterwards = lambda: self._start_read(offset, size, packet_bytes)
        return []

    def _start_read(self, offset: int, size: int, packet_bytes: int) -> list[Event]:
        if not 0 < packet_bytes <= _MAX_PACKET_BYTES:
            raise RefusedError(_BAD_DATA_LENGTH, f"packets of {packet_bytes} bytes")
        self._check_range(offset, size)
        self._read = FlashRead(self._flash, offset, size, packet_bytes)
        self._send_packet_or_digest(self._read)
        return []

    def _continue_read(self, read: FlashRead, frame: bytes) -> None:
        if len(frame) != _ACKNOWLEDGEMENT.size:
            self._end_read(read)  # the host has lost the thread
            return
        (received_bytes,) = _ACKNOWLEDGEMENT.unpack(frame)
        read.acknowledge(received_bytes)
        self._send_packet_or_digest(read)

    def _send_packet_or_digest(self, read: FlashRead) -> None:
        if packet := read.next_packet():
            self._send(packet)
        elif read.is_done:
            self._end_read(read)

    def _end_read(self, read: FlashRead) -> None:
        self._send(read.digest())
        self._read = None

    def _check_range(self, offset: int, size: int) -> None:
        if offset + size > self._flash.size_bytes:
            raise RefusedError(_FAILED_FLASH_OPERATION, f"{size} bytes at {offset:#x}")


_HANDLERS: dict[int, Callable[[Stub, Request], list[Event]]] = {
    Opcode.FLASH_BEGIN: Stub._flash_begin,
    Opcode.FLASH_DATA: Stub._flash_data,
    Opcode.FLASH_END: Stub._flash_end,
    Opcode.MEM_BEGIN: Stub._mem_begin,
    Opcode.MEM_END: Stub._mem_end,
    Opcode.MEM_DATA: Stub._mem_data,
    Opcode.SYNC: Stub._sync,
    Opcode.WRITE_REG: Stub._write_reg,
    Opcode.READ_REG: Stub._read_reg,
    Opcode.SPI_SET_PARAMS: Stub._spi_set_params,
    Opcode.SPI_ATTACH: Stub._spi_attach,
    Opcode.CHANGE_BAUDRATE: Stub._change_baudrate,
    Opcode.FLASH_DEFL_BEGIN: Stub._flash_begin,
    Opcode.FLASH_DEFL_DATA: Stub._flash_data,
    Opcode.FLASH_DEFL_END: Stub._flash_end,
    Opcode.SPI_FLASH_MD5: Stub._flash_md5,
    Opcode.GET_SECURITY_INFO: Stub._security_info,
    Opcode.ERASE_FLASH: Stub._erase_flash,
    Opcode.ERASE_REGION: Stub._erase_region,
    Opcode.READ_FLASH: Stub._read_flash,
}


def _words(request: Request, *counts: int) -> tuple[int, ...]:
    """The body as words, one of `counts` of them."""
    if len(request.body) not in {4 * count for count in counts}:
        raise RefusedError(_BAD_DATA_LENGTH, f"{len(request.body)} bytes of parameters")
    return commands.words(request.body)


def _block_data(request: Request, *, check: bool = True) -> bytes:
    """The data of a DATA command, their size and (with `check`) their checksum verified."""
    block = commands.decode_block(request.body)
    if block is None:
        raise RefusedError(_NOT_ENOUGH_DATA, "block without its header")
    if block.size != len(block.data):
        raise RefusedError(_TOO_MUCH_DATA, "size of the data does not match")
    if check and commands.checksum(block.data) != request.checksum:
        raise RefusedError(_BAD_CHECKSUM, "wrong checksum")
    return block.data
