"""A chip's download mode: what runs after a reset with IO0 low, until the next reset.

`DownloadMode` takes the bytes of the serial line. The boot ROM's loader answers until the host has
uploaded a flasher stub and starts it. The stub is played from its protocol; uploaded code does not
run. Source: Espressif's serial protocol documentation, checked against what esptool 4.8 and 5.6
send and accept. Pure: bytes in, events and bytes out. Baud rates are not modelled: bytes sent at a
wrong rate arrive as garbage.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from gateway.simulator.chips import Chip, Opcode
from gateway.simulator.flash import BLOCK_BYTES, SECTOR_BYTES, Flash, FlashRangeError, Registers

# --- SLIP: every frame begins and ends with END -------------------------------------------------

_END = b"\xc0"
_ESC = b"\xdb"
_ESC_END = b"\xdb\xdc"
_ESC_ESC = b"\xdb\xdd"


def _slip_encode(payload: bytes) -> bytes:
    return _END + payload.replace(_ESC, _ESC_ESC).replace(_END, _ESC_END) + _END


def _slip_decode(content: bytes) -> bytes | None:
    """Undo the escapes of one frame's content (without its ENDs); None if one is invalid."""
    escapes = content.count(_ESC)
    if escapes != content.count(_ESC_END) + content.count(_ESC_ESC):
        return None
    # In valid content the byte after ESC ESC_ESC cannot complete an ESC_END, so this order is
    # safe; the other one would turn the escaped form of DB DC into C0.
    return content.replace(_ESC_END, _END).replace(_ESC_ESC, _ESC) if escapes else content


class _SlipReader:
    """Cuts a byte stream into the payloads of its frames.

    What lies between two frames is ignored, as the chip does: the garbage of a wrong baud rate.
    Frames longer than `max_frame_bytes` after decoding are dropped, as are frames with an invalid
    escape and empty ones. At most twice `max_frame_bytes` are kept between two calls.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._in_frame = False
        self._content = bytearray()

    def receive_data(self, data: bytes) -> list[bytes]:
        payloads: list[bytes] = []
        *closed, tail = data.split(_END)
        for piece in closed:
            if self._in_frame:
                self._append(piece)
                self._close(payloads)
            else:
                self._in_frame = True
        if self._in_frame:
            self._append(tail)
        return payloads

    def _append(self, piece: bytes) -> None:
        # An escape makes two bytes of one. One byte more than could be valid is kept, so that
        # _close sees that the frame was too long.
        room = 2 * self.max_frame_bytes + 1 - len(self._content)
        self._content += piece[:room]

    def _close(self, payloads: list[bytes]) -> None:
        if not self._content:
            # The second of two ENDs in a row starts a frame: this is how a reader that started
            # half way through a frame recovers.
            return
        payload = _slip_decode(bytes(self._content))
        if payload is not None and len(payload) <= self.max_frame_bytes:
            payloads.append(payload)
        self._content.clear()
        self._in_frame = False


# --- Requests and events ------------------------------------------------------------------------

_HEADER = struct.Struct("<BBHI")  # direction, opcode, size of the body, checksum or value
_BLOCK_HEADER_BYTES = 16  # size of the data, sequence number, two unused words
_WRITE_REG_BYTES = 16

_DIRECTION_REQUEST = 0
_DIRECTION_RESPONSE = 1

_CHECKSUM_SEED = 0xEF


@dataclass(frozen=True, slots=True)
class BaudrateChanged:
    """`baudrate` is in force as soon as the answers queued so far have been sent."""

    baudrate: int


@dataclass(frozen=True, slots=True)
class ResetRequested:
    """The chip resets itself once the answers queued so far have been sent.

    `into_bootloader` says that the straps are not sampled again: a core reset keeps what they
    were at power-on or EN, so the chip comes back in download mode. Otherwise IO0 decides.
    """

    into_bootloader: bool


@dataclass(frozen=True, slots=True)
class AppStarted:
    """The loader was left for user code, in flash or in RAM, without a reset."""


#: A dict is an entry for the board's log: `event` and its details.
Event = dict[str, object] | BaudrateChanged | ResetRequested | AppStarted


class _RefusedError(Exception):
    """A command cannot be done; `code` is the loader's own error number for the answer."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _Request(NamedTuple):
    """A command of the host; `size` is the header's, `checksum` counts for DATA commands only."""

    opcode: int
    size: int
    checksum: int
    body: bytes


def _checksum(data: bytes) -> int:
    """The checksum of a DATA command: EF XORed with every byte.

    Folds the data in halves as one big number, for a loop over bytes would dominate the cost of
    a download.
    """
    folded = int.from_bytes(data, "little")
    size = len(data)
    while size > 1:
        half_bytes = (size + 1) // 2
        half_bits = 8 * half_bytes
        folded = (folded >> half_bits) ^ (folded & ((1 << half_bits) - 1))
        size = half_bytes
    return folded ^ _CHECKSUM_SEED


def _words_in(body: bytes) -> tuple[int, ...]:
    """The 32-bit little-endian words of a body; an incomplete last one is left out."""
    return struct.unpack_from(f"<{len(body) // 4}I", body)


# --- Downloads in progress ----------------------------------------------------------------------

#: All RAM of the largest chip.
_MAX_RAM_BYTES = 512 * 1024

#: A stub has two, an image to be run from RAM a handful.
_MAX_RAM_SEGMENTS = 64

#: The stub's first words to the host, which lie in its image somewhere.
_STUB_GREETING = b"OHAI"


class _StubGeneration(Enum):
    """Which of the two flasher stubs a host has uploaded."""

    LEGACY = "esptool up to 4.x: leaves by a reset or into user code at the host's request"
    CURRENT = "esptool 5: does neither"


class _RamDownload:
    """What MEM_BEGIN and MEM_DATA have put into RAM since reset."""

    def __init__(self) -> None:
        self._segments: dict[int, bytearray] = {}
        self._start: int | None = None
        self._remaining = 0

    @property
    def remaining(self) -> int | None:
        """Bytes that the segment begun last still takes; None if there is none."""
        return None if self._start is None else self._remaining

    def begin(self, start: int, size: int) -> bool:
        """Start a segment, or start it again; False if RAM has no room for it and the others."""
        self._segments.pop(start, None)
        used_bytes = sum(map(len, self._segments.values()))
        if used_bytes + size > _MAX_RAM_BYTES or len(self._segments) == _MAX_RAM_SEGMENTS:
            self._start = None
            return False
        self._segments[start] = bytearray()
        self._start, self._remaining = start, size
        return True

    def add(self, data: bytes) -> None:
        if self._start is not None:
            self._segments[self._start] += data
            self._remaining -= len(data)

    def stub_at(self, entry: int, chip: Chip) -> _StubGeneration | None:
        """The flasher stub that a jump to `entry` starts; None if no stub was uploaded there."""
        for start, data in self._segments.items():
            if not start <= entry < start + len(data):
                continue
            greets = any(_STUB_GREETING in segment for segment in self._segments.values())
            if not greets and start not in chip.stub_text_starts:
                return None
            is_legacy = len(data) <= chip.legacy_stub_max_text_bytes
            return _StubGeneration.LEGACY if is_legacy else _StubGeneration.CURRENT
        return None


class _FlashDownload:
    """The blocks between a FLASH_BEGIN or FLASH_DEFL_BEGIN and the end of what it announced.

    `size` is what was announced, in bytes of flash. Invalid compressed data raise zlib.error.
    """

    def __init__(self, flash: Flash, offset: int, size: int, *, compressed: bool) -> None:
        self.offset = offset
        self.remaining = size
        self._flash = flash
        self._inflator = zlib.decompressobj() if compressed else None

    def unpack(self, data: bytes) -> bytes:
        """The bytes of flash that a block holds, at most one more than `remaining`."""
        if self._inflator is None:
            return data
        # The limit keeps a few bytes from becoming gigabytes; 0 would mean none.
        return self._inflator.decompress(data, self.remaining + 1)

    def write(self, data: bytes) -> Event:
        self._flash.write(self.offset, data)
        event: Event = {"event": "flash_written", "offset": self.offset, "size": len(data)}
        self.offset += len(data)
        self.remaining = max(0, self.remaining - len(data))
        return event


class _FlashRead:
    """A READ_FLASH in progress: packets that the host acknowledges one by one, then a digest."""

    def __init__(self, flash: Flash, offset: int, size: int, packet_bytes: int) -> None:
        self._flash = flash
        self._offset = offset
        self._remaining = self._unacknowledged = self._size = size
        self._packet_bytes = packet_bytes
        self._md5 = hashlib.md5(usedforsecurity=False)

    @property
    def is_done(self) -> bool:
        return not self._remaining and not self._unacknowledged

    def next_packet(self) -> bytes:
        packet = self._flash.read(self._offset, min(self._remaining, self._packet_bytes))
        self._offset += len(packet)
        self._remaining -= len(packet)
        self._md5.update(packet)
        return packet

    def acknowledge(self, received_bytes: int) -> None:
        self._unacknowledged = max(0, self._size - received_bytes)

    def digest(self) -> bytes:
        return self._md5.digest()


# --- The loaders --------------------------------------------------------------------------------

#: The ROM takes 6 KB blocks into RAM; headers come on top.
_MAX_ROM_FRAME_BYTES = 0x1800 + 64
_MAX_STUB_BLOCK_BYTES = 0x4000
_MAX_STUB_FRAME_BYTES = _MAX_STUB_BLOCK_BYTES + 64

#: How often a SYNC is answered, and by the ROM also an unknown command.
_COPIES = 8

#: What the ROM reads in one READ_FLASH_SLOW, and always sends.
_SLOW_READ_BYTES = 64
_MAX_PACKET_BYTES = 4096
_SYNC_BYTES = 36


class DownloadMode:
    """A chip in download mode, from the reset that led there to the one that ends it.

    After ResetRequested or AppStarted nothing more is answered: make another one at the next
    reset. A `max_frame_bytes` below the usual stands for a ROM that has less room on some port.
    """

    def __init__(
        self, chip: Chip, flash: Flash, max_frame_bytes: int = _MAX_ROM_FRAME_BYTES
    ) -> None:
        self._slip = _SlipReader(max_frame_bytes)
        self._rom = _Rom(chip, flash, Registers(chip, flash, chip.rom_baudrate), self._send)
        self._loader: _Loader | None = self._rom
        self._out = bytearray()

    @property
    def runs_stub(self) -> bool:
        """Whether the host has uploaded the flasher stub and started it."""
        return isinstance(self._loader, _Stub)

    def receive_data(self, data: bytes) -> list[Event]:
        """Take bytes from the host; return what happened, in order. Never raises on bytes."""
        events: list[Event] = []
        for frame in self._slip.receive_data(data):
            if self._loader is None:
                break
            new_events = self._loader.handle_frame(frame)
            events += new_events
            if any(isinstance(event, AppStarted | ResetRequested) for event in new_events):
                self._loader = None
            elif self._rom.stub is not None and self._loader is self._rom:
                self._slip.max_frame_bytes = _MAX_STUB_FRAME_BYTES
                self._loader = _Stub(self._rom, self._rom.stub)
                self._send(_STUB_GREETING)
        return events

    def data_to_send(self) -> bytes:
        """Answers that wait to be sent, framed; they are handed out once."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def _send(self, payload: bytes) -> None:
        self._out += _slip_encode(payload)


class _Errors(NamedTuple):
    """A loader's error numbers where both refuse the same things."""

    size: int  # of a command's parameters
    too_short: int
    too_long: int
    checksum: int
    unknown: int
    ram: int
    no_begin: int


class _Loader:
    """What boot ROM and stub have in common; `_do_<opcode>` runs a command.

    `stub` says which stub was uploaded, once it has been started. `send` takes payloads to be
    framed.
    """

    errors: _Errors
    checks_ram = True  # the checksum of MEM_DATA

    def __init__(
        self, chip: Chip, flash: Flash, registers: Registers, send: Callable[[bytes], None]
    ) -> None:
        self.chip = chip
        self.flash = flash
        self.registers = registers
        self.send = send
        self.stub: _StubGeneration | None = None
        self._ram = _RamDownload()
        self._download: _FlashDownload | None = None
        # Of the answer to the present command: its value field, and what precedes its status.
        self._value = 0
        self._data = b""
        self._events: list[Event] = []
        self._commands: dict[int, Callable[[_Request], None]] = {
            opcode: getattr(self, name)
            for opcode in Opcode
            if hasattr(self, name := f"_do_{opcode.name.lower()}")
        }

    def handle_frame(self, frame: bytes) -> list[Event]:
        """Answer a frame, return what happened."""
        if len(frame) >= _HEADER.size and frame[0] == _DIRECTION_REQUEST:
            _, opcode, size, checksum = _HEADER.unpack_from(frame)
            self._handle(_Request(opcode, size, checksum, frame[_HEADER.size :]))
        events, self._events = self._events, []
        return events

    def _handle(self, request: _Request) -> None:
        raise NotImplementedError

    def _run(self, request: _Request) -> None:
        if request.size != len(request.body):
            raise _RefusedError(self.errors.size, "size field does not match")
        run = self._commands.get(request.opcode)
        if run is None:
            raise _RefusedError(self.errors.unknown, "not a command of the stub")
        self._data = b""
        run(request)

    def _respond(self, opcode: int, value: int, body: bytes, copies: int = 1) -> None:
        for _ in range(copies):
            self.send(_HEADER.pack(_DIRECTION_RESPONSE, opcode, len(body), value) + body)

    def _note_refused(self, opcode: int, reason: object) -> None:
        self._events.append({"event": "command_refused", "opcode": opcode, "reason": str(reason)})

    def _note_erased(self, start: int, size: int) -> None:
        self._events.append({"event": "flash_erased", "offset": start, "size": size})

    def _words(self, request: _Request, *counts: int) -> tuple[int, ...]:
        """The body as words, one of `counts` of them."""
        if len(request.body) not in {4 * count for count in counts}:
            raise _RefusedError(self.errors.size, f"{len(request.body)} bytes of parameters")
        return _words_in(request.body)

    def _block_data(self, request: _Request, *, check: bool = True) -> bytes:
        """The data of a DATA command, their size and (with `check`) their checksum verified."""
        if len(request.body) < _BLOCK_HEADER_BYTES:
            raise _RefusedError(self.errors.too_short, "block without its header")
        data = request.body[_BLOCK_HEADER_BYTES:]
        if _words_in(request.body)[0] != len(data):
            raise _RefusedError(self.errors.too_long, "size of the data does not match")
        if check and _checksum(data) != request.checksum:
            raise _RefusedError(self.errors.checksum, "wrong checksum")
        return data

    def _do_sync(self, _request: _Request) -> None:
        self._events.append({"event": "sync"})

    def _do_read_reg(self, request: _Request) -> None:
        (address,) = self._words(request, 1)
        self._value = self.registers.read(address)

    def _do_write_reg(self, request: _Request) -> None:
        if not request.body or len(request.body) % _WRITE_REG_BYTES:
            reason = "size is not a multiple of a register write"
            raise _RefusedError(self.errors.too_short, reason)
        values = _words_in(request.body)
        for i in range(0, len(values), 4):
            address, value, mask, _delay_us = values[i : i + 4]
            if self.registers.write(address, value, mask):
                self._events.append(ResetRequested(into_bootloader=False))
                return

    def _do_mem_begin(self, request: _Request) -> None:
        size, _blocks, _block_bytes, start = self._words(request, 4)
        if not self._ram.begin(start, size):
            raise _RefusedError(self.errors.ram, "more than fits into RAM")

    def _do_mem_data(self, request: _Request) -> None:
        data = self._block_data(request, check=self.checks_ram)
        if self._ram.remaining is None:
            raise _RefusedError(self.errors.no_begin, "no MEM_BEGIN before")
        if len(data) > self._ram.remaining:
            raise _RefusedError(self.errors.ram, "more data than announced")
        self._ram.add(data)

    def _do_spi_set_params(self, request: _Request) -> None:
        self._words(request, 6)

    def _do_change_baudrate(self, request: _Request) -> None:
        baudrate, _old_baudrate = self._words(request, 2)
        if not baudrate:
            raise _RefusedError(self.errors.size, "baud rate 0")
        self.registers.baudrate = baudrate
        self._events.append(BaudrateChanged(baudrate))

    def _do_get_security_info(self, _request: _Request) -> None:
        self._data = self.chip.security_info()


class _Rom(_Loader):
    """The boot ROM's loader.

    Erases at BEGIN, reads back what it wrote. Only READ_REG means its value field; other answers
    repeat what was in it last.
    """

    FAILED_TO_ACT = 0x06
    WRITE_ERROR = 0x08
    READ_ERROR = 0x09
    READ_LENGTH_ERROR = 0x0A
    DEFLATE_ERROR = 0x0B
    errors = _Errors(
        size=0x05,
        too_short=0x05,
        too_long=0x05,
        checksum=0x07,
        unknown=0x05,
        ram=0x06,
        no_begin=0x06,
    )
    _blocks_left = 0

    def _handle(self, request: _Request) -> None:
        opcode = request.opcode
        if opcode not in self.chip.rom_commands:
            # Under another command's number, which is how esptool knows that this one is
            # unsupported and did not merely fail.
            self._answer(Opcode.SYNC, error=self.errors.unknown, copies=_COPIES)
            self._note_refused(opcode, "not a command of this ROM")
            return
        try:
            self._run(request)
        except _RefusedError as refused:
            self._answer(opcode, error=refused.code)
            self._note_refused(opcode, refused)
        else:
            self._answer(opcode, copies=_COPIES if opcode == Opcode.SYNC else 1)

    def _answer(self, opcode: int, error: int = 0, copies: int = 1) -> None:
        data, status = (b"", bytes((1, error))) if error else (self._data, b"")
        body = data + status.ljust(self.chip.status_bytes, b"\0")
        self._respond(opcode, self._value, body, copies)

    def _do_sync(self, request: _Request) -> None:
        self._value = self.chip.sync_value
        super()._do_sync(request)

    def _do_mem_end(self, request: _Request) -> None:
        stays, entry = self._words(request, 2)
        if not stays:
            self.stub = self._ram.stub_at(entry, self.chip)
            self._events.append({"event": "stub_started"} if self.stub else AppStarted())

    def _do_spi_attach(self, request: _Request) -> None:
        self._words(request, 2)
        self.registers.flash_attached = True

    def _do_flash_begin(self, request: _Request) -> None:
        count = self.chip.flash_begin_bytes // 4
        size, blocks, _block_bytes, offset, *_ = self._words(request, count)
        if Opcode.SPI_ATTACH not in self.chip.rom_commands:
            self.registers.flash_attached = True
        self._check_attached()
        erase_bytes = size
        if self.chip.has_erase_size_bug:
            room = max(size, self.flash.size_bytes - offset)
            erase_bytes = min(_buggy_erase_bytes(offset, size), room)
        try:
            erased = self.flash.erase(offset, erase_bytes)
        except FlashRangeError as error:
            raise _RefusedError(self.FAILED_TO_ACT, str(error)) from error
        compressed = request.opcode == Opcode.FLASH_DEFL_BEGIN
        self._download = _FlashDownload(self.flash, offset, size, compressed=compressed)
        self._blocks_left = blocks
        if size:
            self._note_erased(*erased)

    def _do_flash_data(self, request: _Request) -> None:
        data = self._block_data(request)
        download = self._download
        if download is None or not self._blocks_left:
            raise _RefusedError(self.FAILED_TO_ACT, "no block is expected")
        try:
            data = download.unpack(data)
        except zlib.error as error:
            raise _RefusedError(self.DEFLATE_ERROR, str(error)) from error
        if request.opcode == Opcode.FLASH_DEFL_DATA and len(data) > download.remaining:
            raise _RefusedError(self.DEFLATE_ERROR, "more data than announced")
        if data:
            self._write_and_compare(download, data)
        self._blocks_left -= 1

    def _write_and_compare(self, download: _FlashDownload, data: bytes) -> None:
        """The ROM reads back what it wrote, so it notices what was not erased."""
        offset = download.offset
        try:
            event = download.write(data)
        except FlashRangeError as error:
            raise _RefusedError(self.WRITE_ERROR, str(error)) from error
        if self.flash.read(offset, len(data)) != data:
            raise _RefusedError(self.WRITE_ERROR, "flash was not erased")
        self._events.append(event)

    def _do_flash_end(self, request: _Request) -> None:
        """Leaves the loader, by a reset (which finds the straps as they were) or into the app."""
        (stays_out_of_reset,) = self._words(request, 1)
        self._events.append(
            AppStarted() if stays_out_of_reset else ResetRequested(into_bootloader=True)
        )

    def _do_read_flash_slow(self, request: _Request) -> None:
        offset, size = self._words(request, 2)
        if size > _SLOW_READ_BYTES:
            raise _RefusedError(self.READ_LENGTH_ERROR, f"{size} bytes in one read")
        self._data = self._read_flash(offset, size).ljust(_SLOW_READ_BYTES, b"\0")

    def _do_spi_flash_md5(self, request: _Request) -> None:
        offset, size, _, _ = self._words(request, 4)
        digest = hashlib.md5(self._read_flash(offset, size), usedforsecurity=False)
        self._data = digest.hexdigest().encode("ascii")

    _do_flash_defl_begin = _do_flash_begin
    _do_flash_defl_data = _do_flash_data
    _do_flash_defl_end = _do_flash_end

    def _read_flash(self, offset: int, size: int) -> bytes:
        self._check_attached()
        try:
            return self.flash.read(offset, size)
        except FlashRangeError as error:
            raise _RefusedError(self.READ_ERROR, str(error)) from error

    def _check_attached(self) -> None:
        if not self.registers.flash_attached:
            raise _RefusedError(self.FAILED_TO_ACT, "flash is not attached")


def _buggy_erase_bytes(offset: int, size: int) -> int:
    """What the ESP8266's ROM erases at a request to erase `size` bytes.

    It counts the sectors up to the next 64 KB boundary twice; hosts announce less to make up.
    """
    sectors_per_block = BLOCK_BYTES // SECTOR_BYTES
    sectors = -(-size // SECTOR_BYTES)
    head = min(sectors, sectors_per_block - offset // SECTOR_BYTES % sectors_per_block)
    return (sectors + head) * SECTOR_BYTES


class _Stub(_Loader):
    """The flasher stub, started by `rom`.

    Its error codes are the first of two status bytes, the second is 0. It erases as it writes, and
    writes after it has answered, so that an error shows in the answer to the next command.
    """

    BAD_BLOCK_SIZE = 0xC2
    FAILED_FLASH_OPERATION = 0xC4
    INFLATE_ERROR = 0xC7
    NOT_IMPLEMENTED = 0xFF
    errors = _Errors(
        size=0xC0,
        too_short=0xC8,
        too_long=0xC9,
        checksum=0xC1,
        unknown=0xC3,
        ram=0xC9,
        no_begin=0xC6,
    )
    checks_ram = False

    def __init__(self, rom: _Rom, generation: _StubGeneration) -> None:
        super().__init__(rom.chip, rom.flash, rom.registers, rom.send)
        self.registers.flash_attached = True  # the stub does it when it starts
        self._generation = generation
        self._erase_from = 0
        self._erase_to = 0
        self._read: _FlashRead | None = None
        # Runs once the answer is out; the answer to the next command reports its refusal.
        self._afterwards: Callable[[], None] | None = None
        self._carried_over: _RefusedError | None = None

    def handle_frame(self, frame: bytes) -> list[Event]:
        """Answer a frame, or take it as an acknowledgement while flash is being read."""
        if self._read is None:
            return super().handle_frame(frame)
        if len(frame) == 4:
            self._read.acknowledge(*_words_in(frame))
            self._send_packet_or_digest(self._read)
        else:
            self._end_read(self._read)  # the host is out of step
        return []

    def _handle(self, request: _Request) -> None:
        opcode = request.opcode
        if opcode == Opcode.RUN_USER_CODE:  # the one command without an answer
            if self._generation is _StubGeneration.LEGACY:
                self._events.append(AppStarted())
            return
        self._value, self._afterwards = 0, None
        try:
            if self._carried_over is not None:
                refused, self._carried_over = self._carried_over, None
                raise refused
            self._run(request)
        except _RefusedError as refused:
            self._respond(opcode, 0, bytes((refused.code, 0)))
            self._note_refused(opcode, refused)
            return
        copies = _COPIES if opcode == Opcode.SYNC else 1
        self._respond(opcode, self._value, self._data + b"\0\0", copies)
        try:
            if self._afterwards is not None:
                self._afterwards()
        except _RefusedError as refused:
            self._carried_over = refused
            self._note_refused(opcode, refused)

    def _do_sync(self, request: _Request) -> None:
        if len(request.body) != _SYNC_BYTES:
            raise _RefusedError(self.errors.size, f"SYNC of {len(request.body)} bytes")
        super()._do_sync(request)

    def _do_mem_end(self, request: _Request) -> None:
        stays, _entry = self._words(request, 2)
        if not stays:
            self._events.append(AppStarted())

    def _do_spi_attach(self, request: _Request) -> None:
        self._words(request, 1)

    def _do_get_security_info(self, request: _Request) -> None:
        if not self.chip.security_info_bytes:
            raise _RefusedError(self.NOT_IMPLEMENTED, "this chip has no security info")
        super()._do_get_security_info(request)

    def _do_flash_begin(self, request: _Request) -> None:
        """Announces a download; nothing is erased yet. The fifth word asks for encryption."""
        size, _blocks, block_bytes, offset, *encrypts = self._words(request, 4, 5)
        if block_bytes > _MAX_STUB_BLOCK_BYTES:
            raise _RefusedError(self.BAD_BLOCK_SIZE, f"blocks of {block_bytes} bytes")
        if any(encrypts):
            raise _RefusedError(self.FAILED_FLASH_OPERATION, "encryption is not simulated")
        self._check_range(offset, size)
        compressed = request.opcode == Opcode.FLASH_DEFL_BEGIN
        self._download = _FlashDownload(self.flash, offset, size, compressed=compressed)
        self._erase_from = offset - offset % SECTOR_BYTES
        self._erase_to = -(-(offset + size) // SECTOR_BYTES) * SECTOR_BYTES

    def _do_flash_data(self, request: _Request) -> None:
        download = self._begun_download()
        data = self._block_data(request)
        self._afterwards = lambda: self._write(download, data)

    def _begun_download(self) -> _FlashDownload:
        if self._download is None:
            raise _RefusedError(self.errors.no_begin, "no FLASH_BEGIN before")
        return self._download

    def _write(self, download: _FlashDownload, data: bytes) -> None:
        try:
            data = download.unpack(data)
        except zlib.error as error:
            raise _RefusedError(self.INFLATE_ERROR, str(error)) from error
        data = data[: download.remaining]  # the last block of a plain download is padded
        if data:
            self._erase_up_to(download.offset + len(data))
            self._events.append(download.write(data))

    def _erase_up_to(self, end: int) -> None:
        """Erase what is not erased yet below `end`, by blocks of 64 KB where they fit."""
        while self._erase_from < min(end, self._erase_to):
            fits = self._erase_to - self._erase_from >= BLOCK_BYTES
            aligned = self._erase_from % BLOCK_BYTES == 0
            size = BLOCK_BYTES if fits and aligned else SECTOR_BYTES
            self._note_erased(*self.flash.erase(self._erase_from, size))
            self._erase_from += size

    def _do_flash_end(self, request: _Request) -> None:
        (stays,) = self._words(request, 1)
        if remaining := self._begun_download().remaining:
            raise _RefusedError(self.errors.size, f"{remaining} bytes are missing")
        self._download = None
        if not stays and self._generation is _StubGeneration.LEGACY:
            self._events.append(ResetRequested(into_bootloader=True))

    def _do_spi_flash_md5(self, request: _Request) -> None:
        offset, size, _, _ = self._words(request, 4)
        self._check_range(offset, size)
        contents = self.flash.read(offset, size)
        self._data = hashlib.md5(contents, usedforsecurity=False).digest()

    def _do_erase_flash(self, _request: _Request) -> None:
        self._note_erased(*self.flash.erase(0, self.flash.size_bytes))

    def _do_erase_region(self, request: _Request) -> None:
        offset, size = self._words(request, 2)
        if offset % SECTOR_BYTES or size % SECTOR_BYTES:
            raise _RefusedError(self.errors.size, "not whole sectors")
        self._check_range(offset, size)
        self._note_erased(*self.flash.erase(offset, size))

    def _do_read_flash(self, request: _Request) -> None:
        # The last word is how many packets may be on their way; both generations take it for 1.
        offset, size, packet_bytes, _max_in_flight = self._words(request, 4)
        self._afterwards = lambda: self._start_read(offset, size, packet_bytes)

    _do_flash_defl_begin = _do_flash_begin
    _do_flash_defl_data = _do_flash_data
    _do_flash_defl_end = _do_flash_end

    def _start_read(self, offset: int, size: int, packet_bytes: int) -> None:
        if not 0 < packet_bytes <= _MAX_PACKET_BYTES:
            raise _RefusedError(self.errors.size, f"packets of {packet_bytes} bytes")
        self._check_range(offset, size)
        self._read = _FlashRead(self.flash, offset, size, packet_bytes)
        self._send_packet_or_digest(self._read)

    def _send_packet_or_digest(self, read: _FlashRead) -> None:
        if packet := read.next_packet():
            self.send(packet)
        elif read.is_done:
            self._end_read(read)

    def _end_read(self, read: _FlashRead) -> None:
        self.send(read.digest())
        self._read = None

    def _check_range(self, offset: int, size: int) -> None:
        if offset + size > self.flash.size_bytes:
            raise _RefusedError(self.FAILED_FLASH_OPERATION, f"{size} bytes at {offset:#x}")
