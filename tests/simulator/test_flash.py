import random

import pytest

from gateway.simulator.flash import BLOCK_BYTES, SECTOR_BYTES, Flash, FlashRangeError

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


def test_erase_all_erases_all(flash: Flash) -> None:
    flash.write(0, bytes(SIZE))
    flash.erase_all()
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
