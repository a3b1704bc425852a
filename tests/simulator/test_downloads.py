import hashlib
import zlib

import pytest

from gateway.simulator.chips import CHIPS
from gateway.simulator.commands import FlashWritten
from gateway.simulator.downloads import FlashDownload, FlashRead, RamDownload, StubGeneration
from gateway.simulator.flash import Flash, FlashRangeError

CHIP = CHIPS["esp32"]


def upload(start: int, data: bytes) -> RamDownload:
    ram = RamDownload()
    assert ram.begin(start, len(data))
    ram.add(data)
    return ram


def test_ram_counts_what_a_segment_still_takes() -> None:
    ram = RamDownload()
    assert ram.remaining is None
    ram.begin(0x40080000, 10)
    ram.add(bytes(4))
    assert ram.remaining == 6


def test_ram_is_bounded_in_bytes_and_segments() -> None:
    ram = RamDownload()
    assert not ram.begin(0, 1 << 20)
    assert sum(ram.begin(start, 0) for start in range(1000)) == 64
    assert ram.begin(0, 1)  # again


@pytest.mark.parametrize(
    ("size", "generation"), [(3500, StubGeneration.LEGACY), (6400, StubGeneration.CURRENT)]
)
def test_a_stub_is_known_by_its_place_and_its_generation_by_its_size(
    size: int, generation: StubGeneration
) -> None:
    assert upload(0x400BE000, bytes(size)).stub_at(0x400BE010, CHIP) is generation


def test_a_stub_elsewhere_is_known_by_its_greeting() -> None:
    assert upload(0x40090000, b"..OHAI..").stub_at(0x40090000, CHIP) is not None
    assert upload(0x40090000, b"........").stub_at(0x40090000, CHIP) is None


def test_no_stub_starts_outside_what_was_uploaded() -> None:
    assert upload(0x400BE000, b"OHAI").stub_at(0x400BE004, CHIP) is None


def test_flash_download_writes_where_the_last_block_ended() -> None:
    flash = Flash(1 << 20)
    download = FlashDownload(flash, 100, 8, compressed=False)
    assert download.write(b"abcd") == FlashWritten(100, 4)
    assert download.write(b"efgh") == FlashWritten(104, 4)
    assert download.remaining == 0
    assert flash.read(100, 8) == b"abcdefgh"


def test_flash_download_ends_with_the_flash() -> None:
    download = FlashDownload(Flash(1 << 20), (1 << 20) - 2, 8, compressed=False)
    with pytest.raises(FlashRangeError):
        download.write(b"abcd")


def test_inflated_data_are_bounded() -> None:
    download = FlashDownload(Flash(1 << 20), 0, 100, compressed=True)
    assert len(download.unpack(zlib.compress(bytes(1 << 20)))) == 101


def test_flash_read_is_done_when_all_is_acknowledged() -> None:
    flash = Flash(1 << 20)
    flash.write(10, b"abcdef")
    read = FlashRead(flash, 10, 6, 4)
    assert [read.next_packet(), read.next_packet(), read.next_packet()] == [b"abcd", b"ef", b""]
    read.acknowledge(4)
    assert not read.is_done
    read.acknowledge(6)
    assert read.is_done
    assert read.digest() == hashlib.md5(b"abcdef", usedforsecurity=False).digest()
