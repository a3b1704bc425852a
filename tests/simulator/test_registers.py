import dataclasses

import pytest

from gateway.simulator.chips import CHIPS
from gateway.simulator.flash import Flash
from gateway.simulator.registers import Registers

CHIP = CHIPS["esp32"]
ALL = 0xFFFFFFFF
COMMAND, ADDRESS, USER, USER1, USER2 = (
    0x3FF42000,
    0x3FF42004,
    0x3FF4201C,
    0x3FF42020,
    0x3FF42024,
)
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
