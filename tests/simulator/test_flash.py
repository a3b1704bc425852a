import dataclasses
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


def test_erased_flash_takes_what_is_written(flash: Flash) -> None:
    data = random.Random(1).randbytes(5000)
    flash.write(123, data)
    assert flash.read(0, 6000) == b"\xff" * 123 + data + b"\xff" * (6000 - 5123)


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


@pytest.mark.parametrize(("megabytes", "capacity"), [(1, 0x14), (4, 0x16), (16, 0x18)])
def test_id_tells_vendor_and_size(megabytes: int, capacity: int) -> None:
    assert Flash(megabytes << 20).transfer(0x9F, 0, b"", 3) == bytes((0xEF, 0x40, capacity))


def test_sfdp_has_its_signature_and_the_size_in_bits(flash: Flash) -> None:
    header = flash.transfer(0x5A, 0, b"", 16)
    assert header[:4] == b"SFDP"
    density = flash.transfer(0x5A, header[12] + 4, b"", 4)
    assert int.from_bytes(density, "little") + 1 == SIZE * 8
    assert flash.transfer(0x5A, 0x1000, b"", 1) == b"\xff"


def test_status_is_written_only_after_write_enable(flash: Flash) -> None:
    flash.transfer(0x31, 0, b"\x02", 0)
    assert flash.transfer(0x35, 0, b"", 1) == b"\x00"
    flash.transfer(0x06, 0, b"", 0)
    assert flash.transfer(0x05, 0, b"", 1) == b"\x02"  # the write enable latch
    flash.transfer(0x31, 0, b"\x02", 0)
    assert flash.transfer(0x35, 0, b"", 1) == b"\x02"
    assert flash.transfer(0x05, 0, b"", 1) == b"\x00"


def test_two_byte_status_write_sets_both_registers(flash: Flash) -> None:
    flash.transfer(0x50, 0, b"", 0)
    flash.transfer(0x01, 0, b"\x1c\x02", 0)
    assert flash.transfer(0x05, 0, b"", 1) + flash.transfer(0x35, 0, b"", 1) == b"\x1c\x02"


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


def test_mac_is_in_the_efuses() -> None:
    chip = dataclasses.replace(CHIP, mac=bytes.fromhex("0102030405ff"))
    registers = Registers(chip, Flash(1 << 22), 115200)
    assert registers.read(0x3FF5A004) == 0x030405FF
    assert registers.read(0x3FF5A008) & 0xFFFF == 0x0102


def test_spi_command_runs_on_the_flash_and_is_done_at_once(registers: Registers) -> None:
    assert read_id(registers) == 0x1640EF
    assert registers.read(COMMAND) & 1 << 18 == 0


def test_unattached_flash_reads_as_an_idle_line(registers: Registers) -> None:
    registers.flash_attached = False
    assert read_id(registers) == 0xFFFFFF


def test_spi_address_is_the_top_of_its_register(registers: Registers) -> None:
    registers.write(USER, 1 << 31 | 1 << 30 | 1 << 28, ALL)
    registers.write(USER1, 23 << 26, ALL)
    registers.write(USER2, 7 << 28 | 0x5A, ALL)
    registers.write(ADDRESS, 2 << 8, ALL)
    registers.write(MISO_LENGTH, 15, ALL)
    registers.write(COMMAND, 1 << 18, ALL)
    assert registers.read(DATA) == int.from_bytes(b"DP", "little")


@pytest.mark.parametrize(("bits", "second_status"), [(16, 0x02), (8, 0x00)])
def test_data_written_over_spi_reach_the_flash(
    registers: Registers, bits: int, second_status: int
) -> None:
    registers.write(USER, 1 << 31, ALL)
    registers.write(USER2, 7 << 28 | 0x06, ALL)
    registers.write(COMMAND, 1 << 18, ALL)
    registers.write(USER, 1 << 31 | 1 << 27, ALL)
    registers.write(USER2, 7 << 28 | 0x01, ALL)
    registers.write(MOSI_LENGTH, bits - 1, ALL)
    registers.write(DATA, 0x021C, ALL)
    registers.write(COMMAND, 1 << 18, ALL)
    registers.write(USER, 1 << 31 | 1 << 28, ALL)
    registers.write(USER2, 7 << 28 | 0x35, ALL)
    registers.write(MISO_LENGTH, 7, ALL)
    registers.write(COMMAND, 1 << 18, ALL)
    assert registers.read(DATA) == second_status


def test_only_so_many_registers_are_kept(registers: Registers) -> None:
    for address in range(0x1000_0000, 0x1001_0000, 4):
        registers.write(address, 1, ALL)
    assert registers.read(0x1000_0000) == 1
    assert registers.read(0x1000_FFFC) == 0
