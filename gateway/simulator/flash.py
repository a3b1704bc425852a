"""A SPI NOR flash chip, and the registers through which a host reaches it and the rest of the chip.

The flash behaves as NOR does: an erase sets whole sectors to FF, a write only clears bits. READ_REG
and WRITE_REG reach plain registers, which keep what is written, and behind a few of them the SPI
controller, the UART divider and the watchdog that resets the chip. RAM reads as 0.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from gateway.simulator.chips import MAGIC_REGISTER, Chip

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
    """The flash commands that are understood; others read as FF, an idle line."""

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


#: The status registers, in their order.
_STATUS_READS = [SpiCommand.READ_STATUS_1, SpiCommand.READ_STATUS_2, SpiCommand.READ_STATUS_3]
_STATUS_WRITES = [SpiCommand.WRITE_STATUS_1, SpiCommand.WRITE_STATUS_2, SpiCommand.WRITE_STATUS_3]
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
        if end - start == self.size_bytes:
            self._inverted = bytearray(self.size_bytes)  # pages that the kernel need not back
        else:
            self._inverted[start:end] = bytes(end - start)
        return start, end - start

    def transfer(self, command: int, address: int, mosi: bytes, miso_bytes: int) -> bytes:
        """Run one command as it comes over the SPI bus; return `miso_bytes` of answer."""
        if command in _STATUS_WRITES:
            self._write_status(_STATUS_WRITES.index(SpiCommand(command)), mosi)
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
        if command in _STATUS_READS:
            register = _STATUS_READS.index(SpiCommand(command))
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


_WORD_MASK = 0xFFFFFFFF

#: A host can write any address; no tool writes more than some dozens.
_MAX_WRITTEN_REGISTERS = 4096

# SPI controller: bits of its user register, fields of its length registers (TRM, SPI_USER_REG).
_SPI_START = 1 << 18
_USER_COMMAND = 1 << 31
_USER_ADDRESS = 1 << 30
_USER_MISO = 1 << 28
_USER_MOSI = 1 << 27
_USER1_ADDRESS_LENGTH_SHIFT = 26
_USER1_MOSI_LENGTH_SHIFT = 17
_USER1_MISO_LENGTH_SHIFT = 8
_LENGTH_MASK = 0x1FF
_COMMAND_MASK = 0xFF
_DATA_WORDS = 16

#: RTC watchdog (TRM, RTC_CNTL_WDTCONFIG0_REG): its enable bit and the key that unlocks it.
_WATCHDOG_ENABLE = 1 << 31
_WATCHDOG_KEY = 0x50D83AA1


class Registers:
    """What a chip's registers read, with `flash` behind its SPI controller.

    `baudrate` is what the UART divider tells; `flash_attached` whether the flash's pins are
    connected (an unattached flash reads as FF).
    """

    def __init__(self, chip: Chip, flash: Flash, baudrate: int) -> None:
        self.baudrate = baudrate
        self.flash_attached = False
        self._chip = chip
        self._flash = flash
        self._values = {**chip.registers, **chip.mac_registers(), MAGIC_REGISTER: chip.magic}
        self._room = _MAX_WRITTEN_REGISTERS

    def read(self, address: int) -> int:
        """Return the 32 bits at an address; 0 where nothing is known."""
        if address == self._chip.uart_divider:
            return self._chip.crystal_hz * self._chip.uart_clock_factor // self.baudrate
        return self._values.get(address, 0)

    def write(self, address: int, value: int, mask: int) -> bool:
        """Write the bits of `mask`; return whether that makes the chip reset itself."""
        value = (value & mask | self.read(address) & ~mask) & _WORD_MASK
        if address == self._chip.spi.command and value & _SPI_START:
            self._run_spi_command()
            return False  # the start bit reads as 0 again: the command is done
        if address == MAGIC_REGISTER or self._is_locked(address):
            return False
        self._store(address, value)
        return self._is_watchdog_left_armed(address)

    def _store(self, address: int, value: int) -> None:
        if address not in self._values:
            if not self._room:
                return
            self._room -= 1
        self._values[address] = value

    def _is_locked(self, address: int) -> bool:
        watchdog = self._chip.watchdog
        return (
            watchdog is not None
            and address == watchdog.config
            and self.read(watchdog.write_protect) != _WATCHDOG_KEY
        )

    def _is_watchdog_left_armed(self, address: int) -> bool:
        """Whether a write that was done locks the watchdog while it is enabled.

        An enabled watchdog bites after some 15 ms. Hosts lock it again in that time and want to
        be answered, so that is taken for the moment at which it has bitten.
        """
        watchdog = self._chip.watchdog
        return (
            watchdog is not None
            and address == watchdog.write_protect
            and self.read(watchdog.write_protect) != _WATCHDOG_KEY
            and bool(self.read(watchdog.config) & _WATCHDOG_ENABLE)
        )

    def _run_spi_command(self) -> None:
        spi = self._chip.spi
        user, user1, user2 = (self.read(spi.user + 4 * i) for i in range(3))
        mosi_bytes = self._length(
            user, _USER_MOSI, spi.user + 12, user1 >> _USER1_MOSI_LENGTH_SHIFT
        )
        miso_bytes = self._length(
            user, _USER_MISO, spi.user + 16, user1 >> _USER1_MISO_LENGTH_SHIFT
        )
        data = struct.pack(
            f"<{_DATA_WORDS}I", *(self.read(spi.data + 4 * i) for i in range(_DATA_WORDS))
        )
        answer = b"\xff" * miso_bytes
        if self.flash_attached and user & _USER_COMMAND:
            address = self._spi_address(user1) if user & _USER_ADDRESS else 0
            answer = self._flash.transfer(
                user2 & _COMMAND_MASK, address, data[:mosi_bytes], miso_bytes
            )
        answer = answer.ljust((miso_bytes + 3) // 4 * 4, b"\0")
        for i, (word,) in enumerate(struct.iter_unpack("<I", answer)):
            self._store(spi.data + 4 * i, word)

    def _length(self, user: int, phase: int, register: int, field: int) -> int:
        """How many whole bytes a data phase has; 0 if `user` leaves it out."""
        length = self.read(register) if self._chip.spi.has_lengths else field
        return ((length & _LENGTH_MASK) + 1) // 8 if user & phase else 0

    def _spi_address(self, user1: int) -> int:
        spi = self._chip.spi
        bits = (user1 >> _USER1_ADDRESS_LENGTH_SHIFT) + 1
        address = self.read(spi.command + 4)
        # Some chips send the top bits of the register, others its bottom ones.
        return address >> (32 - bits) if spi.address_msb_first else address & ((1 << bits) - 1)
