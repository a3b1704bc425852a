import random

import pytest

from gateway.simulator.chips import CHIPS
from gateway.simulator.flash import BLOCK_BYTES, SECTOR_BYTES, Flash, FlashRangeError, Registers

SIZE = 1 << 20


@pytest.fixture
def flash() -> Flash:
    return Flash(SIZE)


def test_a_new_flash_is_erased(flash: Flash) -> None:
    assert flash.read(0, SIZE) == b"\xff" * SIZE


def test_writing_without_erasing_only_clears_bits(flash: Flash) -> None:
    first, second = random.Random(1).randbytes(1000), random.Random(2).randbytes(1000)
    flash.write(0, first)
    flash.write(0, second)
    assert flash.read(0, 1000) == bytes(a & b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("offset", "size", "first_sector", "sectors"),
    [(0, SECTOR_BYTES, 0, 1), (1, 1, 0, 1), (SECTOR_BYTES - 1, 2, 0, 2), (5000, 0, 1, 0)],
)
def test_erase_takes_whole_sectors(
    flash: Flash, offset: int, size: int, first_sector: int, sectors: int
) -> None:
    flash.write(0, bytes(BLOCK_BYTES))
    start, erased = first_sector * SECTOR_BYTES, sectors * SECTOR_BYTES
    assert flash.erase(offset, size) == (start, erased)
    expected = bytes(start) + b"\xff" * erased + bytes(BLOCK_BYTES - start - erased)
    assert flash.read(0, BLOCK_BYTES) == expected


def test_all_can_be_erased(flash: Flash) -> None:
    flash.write(0, bytes(SIZE))
    assert flash.erase(0, SIZE) == (0, SIZE)
    assert flash.read(0, SIZE) == b"\xff" * SIZE


def test_nothing_happens_beyond_the_end(flash: Flash) -> None:
    with pytest.raises(FlashRangeError):
        flash.read(SIZE - 1, 2)
    with pytest.raises(FlashRangeError):
        flash.write(SIZE - 1, b"\0\0")
    with pytest.raises(FlashRangeError):
        flash.erase(SIZE, 1)
    assert flash.read(SIZE - 1, 1) == b"\xff"


@pytest.mark.parametrize("size_bytes", [0, -1, 1 << 17, 3 << 20, 1 << 25])
def test_only_sizes_that_exist_are_made(size_bytes: int) -> None:
    with pytest.raises(ValueError, match="no flash chip"):
        Flash(size_bytes)


def test_status_is_written_only_after_write_enable(flash: Flash) -> None:
    flash.transfer(0x31, 0, b"\x02", 0)
    assert flash.transfer(0x35, 0, b"", 1) == b"\x00"
    flash.transfer(0x06, 0, b"", 0)
    assert flash.transfer(0x05, 0, b"", 1) == b"\x02"  # the write enable latch
    flash.transfer(0x31, 0, b"\x02", 0)
    assert flash.transfer(0x35, 0, b"", 1) == b"\x02"
    assert flash.transfer(0x05, 0, b"", 1) == b"\x00"


def test_an_unknown_command_reads_as_an_idle_line(flash: Flash) -> None:
    assert flash.transfer(0xB9, 0, b"", 2) == b"\xff\xff"


# The registers in front of it.

CHIP = CHIPS["esp32"]
ALL = 0xFFFFFFFF
COMMAND, ADDRESS, USER = 0x3FF42000, 0x3FF42004, 0x3FF4201C
USER1, USER2 = 0x3FF42020, 0x3FF42024
MOSI_LENGTH, MISO_LENGTH, DATA = 0x3FF42028, 0x3FF4202C, 0x3FF42080


@pytest.fixture
def registers() -> Registers:
    registers = Registers(CHIP, Flash(1 << 22), 115200)
    registers.flash_attached = True
    return registers


def read_id(registers: Registers) -> int:
    registers.write(USER, 1 << 31 | 1 << 28, ALL)
    registers.write(USER2, 7 << 28 | 0x9F, ALL)
    registers.write(MISO_LENGTH, 23, ALL)
    registers.write(DATA, 0, ALL)
    registers.write(COMMAND, 1 << 18, ALL)
    return registers.read(DATA)


def test_unknown_addresses_read_0_until_written(registers: Registers) -> None:
    assert registers.read(0x12345678) == 0
    registers.write(0x12345678, ALL, 0x0000FF00)
    registers.write(0x12345678, 0, 0x0000F000)
    assert registers.read(0x12345678) == 0x00000F00


def test_magic_value_is_in_rom(registers: Registers) -> None:
    registers.write(0x40001000, 0, ALL)
    assert registers.read(0x40001000) == CHIP.magic


def test_unattached_flash_reads_as_an_idle_line(registers: Registers) -> None:
    registers.flash_attached = False
    assert read_id(registers) == 0xFFFFFF


def test_only_so_many_registers_are_kept(registers: Registers) -> None:
    for address in range(0x1000_0000, 0x1001_0000, 4):
        registers.write(address, 1, ALL)
    assert registers.read(0x1000_0000) == 1
    assert registers.read(0x1000_FFFC) == 0
