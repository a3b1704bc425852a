"""A SPI NOR flash chip: its array of cells and the few commands that tools send by hand.

Behaves as NOR does: an erase sets whole sectors to FF, a write only clears bits. Knows nothing of
the serial protocol, nor of the SPI controller in front of it (`registers`).
"""

from __future__ import annotations

import struct
from enum import IntEnum

SECTOR_BYTES = 0x1000
BLOCK_BYTES = 0x10000

#: Sizes that a chip's id can tell: 256 KB to 16 MB, all that 3-byte addresses reach.
MIN_FLASH_BYTES = 1 << 18
MAX_FLASH_BYTES = 1 << 24

#: Winbond W25Q..JV, what most modules carry; the third byte of the id is the logarithm of the size.
_JEDEC_VENDOR_AND_TYPE = bytes((0xEF, 0x40))

#: Contents are kept inverted, so that an erased flash is zero pages, which the kernel backs with
#: memory only when they are written: 64 boards with 4 MB each cost next to nothing.
_INVERT = bytes(range(255, -1, -1))

#: Serial Flash Discoverable Parameters (JEDEC JESD216): signature, revision 1.6, one parameter
#: header whose table (9 words) starts at 0x30.
_SFDP_TABLE_OFFSET = 0x30
_SFDP_HEADER = (
    b"SFDP" + bytes((6, 1, 0, 0xFF)) + bytes((0, 6, 1, 9, _SFDP_TABLE_OFFSET, 0, 0, 0xFF))
)
#: First word of that table: 4 KB erase by opcode 0x20, 3-byte addresses, dual and quad reads.
_SFDP_FEATURES = 0xFFF120E5


class SpiCommand(IntEnum):
    """The flash commands that are understood; others read as FF (nobody drives the line)."""

    WRITE_STATUS_1 = 0x01
    WRITE_DISABLE = 0x04
    READ_STATUS_1 = 0x05
    WRITE_ENABLE = 0x06
    WRITE_STATUS_3 = 0x11
    READ_STATUS_3 = 0x15
    WRITE_STATUS_2 = 0x31
    READ_STATUS_2 = 0x35
    VOLATILE_WRITE_ENABLE = 0x50
    READ_SFDP = 0x5A
    READ_JEDEC_ID = 0x9F


_STATUS_READ = {
    SpiCommand.READ_STATUS_1: 0,
    SpiCommand.READ_STATUS_2: 1,
    SpiCommand.READ_STATUS_3: 2,
}
_STATUS_WRITE = {
    SpiCommand.WRITE_STATUS_1: 0,
    SpiCommand.WRITE_STATUS_2: 1,
    SpiCommand.WRITE_STATUS_3: 2,
}
_WRITE_ENABLE_LATCH = 0x02


class FlashRangeError(ValueError):
    """An address range that is not inside the flash."""


class Flash:
    """An erased flash of `size_bytes`, a power of two from 256 KB to 16 MB (else ValueError).

    Offsets and sizes are in bytes. Methods raise FlashRangeError outside the flash.
    """

    def __init__(self, size_bytes: int) -> None:
        if not MIN_FLASH_BYTES <= size_bytes <= MAX_FLASH_BYTES or size_bytes.bit_count() != 1:
            raise ValueError(f"no flash chip has {size_bytes} bytes")
        self.size_bytes = size_bytes
        self.jedec_id = _JEDEC_VENDOR_AND_TYPE + bytes((size_bytes.bit_length() - 1,))
        self._inverted = bytearray(size_bytes)
        self._status = bytearray(3)
        self._write_enabled = False

    def read(self, offset: int, size: int) -> bytes:
        """Return the contents of a range."""
        self._check(offset, size)
        return bytes(self._inverted[offset : offset + size].translate(_INVERT))

    def write(self, offset: int, data: bytes) -> None:
        """Clear the bits that are 0 in `data`; bits that are 0 already stay 0."""
        size = len(data)
        self._check(offset, size)
        old = int.from_bytes(self._inverted[offset : offset + size], "little")
        new = int.from_bytes(data.translate(_INVERT), "little")
        self._inverted[offset : offset + size] = (old | new).to_bytes(size, "little")

    def erase(self, offset: int, size: int) -> tuple[int, int]:
        """Set every sector that the range touches to FF; return offset and size of those."""
        self._check(offset, size)
        start = offset - offset % SECTOR_BYTES
        end = -(-(offset + size) // SECTOR_BYTES) * SECTOR_BYTES if size else start
        self._inverted[start:end] = bytes(end - start)
        return start, end - start

    def erase_all(self) -> None:
        """Set everything to FF."""
        self._inverted = bytearray(self.size_bytes)

    def transfer(self, command: int, address: int, mosi: bytes, miso_bytes: int) -> bytes:
        """Run one command as it comes over the SPI bus; return `miso_bytes` of answer."""
        if command in _STATUS_WRITE:
            self._write_status(_STATUS_WRITE[SpiCommand(command)], mosi)
        elif command == SpiCommand.WRITE_DISABLE:
            self._write_enabled = False
        elif command in {SpiCommand.WRITE_ENABLE, SpiCommand.VOLATILE_WRITE_ENABLE}:
            self._write_enabled = True
        return self._answer(command, address).ljust(miso_bytes, b"\xff")[:miso_bytes]

    def _answer(self, command: int, address: int) -> bytes:
        if command == SpiCommand.READ_JEDEC_ID:
            return self.jedec_id
        if command == SpiCommand.READ_SFDP:
            return self._sfdp()[address:]
        if command in _STATUS_READ:
            register = _STATUS_READ[SpiCommand(command)]
            latch = _WRITE_ENABLE_LATCH if register == 0 and self._write_enabled else 0
            return bytes((self._status[register] | latch,))
        return b""

    def _write_status(self, register: int, values: bytes) -> None:
        # The 2-byte form of WRITE_STATUS_1 writes the first two registers.
        if self._write_enabled:
            values = values[: len(self._status) - register]
            self._status[register : register + len(values)] = values
        self._write_enabled = False

    def _sfdp(self) -> bytes:
        density_bits = self.size_bytes * 8 - 1
        table = struct.pack("<II", _SFDP_FEATURES, density_bits)
        return _SFDP_HEADER.ljust(_SFDP_TABLE_OFFSET, b"\xff") + table

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size_bytes:
            raise FlashRangeError(f"{size} bytes at {offset:#x} of {self.size_bytes:#x}")
