"""Whether images can be meant for where they are to be written, before anything is written.

esptool refuses an image of another chip at the bootloader's place, and what does not fit into the
flash. Everything else it writes and verifies: a text file at 0x0, an ESP32's bootloader at 0x0, the
app of another chip. What is refused here is written with `force`, esptool's own word.

Only places whose contents are known are looked at: where a chip starts its bootloader, 0x10000 for
the chip of the app there, and the app partitions of a partition table in the plan. Data may lie
everywhere else, and all that is erased (0xFF) everywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.errors import ClientError
from gateway.flash.plan import FlashImage, FlashPlan

#: How an image begins, and one of the second kind that ESP8266 bootloaders load (esptool,
#: loader.py and bin_image.py).
_IMAGE_MAGIC: Final = 0xE9
_IMAGE_V2_MAGIC: Final = 0xEA
_ERASED: Final = 0xFF

#: The smallest part of a flash that can be erased: what else was in it is lost.
_SECTOR_BYTES: Final = 0x1000

#: Of an image: its header, and that of a segment with address and length (esptool, bin_image.py).
_HEADER_BYTES: Final = 24
_HEADER_BYTES_OF_8266: Final = 8
_SEGMENT_HEADER: Final = struct.Struct("<II")
_MOST_SEGMENTS: Final = 16

#: What ESP-IDF's partition tables are made of (gen_esp32part.py).
_ENTRY: Final = struct.Struct("<HBBII")
_ENTRY_BYTES: Final = 32
_ENTRY_MAGIC: Final = 0x50AA
_MOST_ENTRIES: Final = 95
_TYPE_APP: Final = 0
_TABLE_OFFSET: Final = 0x8000

#: Where the app is unless a partition table says otherwise.
_APP_OFFSET: Final = 0x10000

#: Secure Boot V1 of the ESP32 has its digest at 0x0, before the bootloader.
_DIGEST_BYTES: Final = 192

_READ_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Chip:
    """A chip as `--chip` names it: the id in its images, and where it starts its bootloader."""

    name: str
    image_id: int | None
    bootloader_offset: int

    def __str__(self) -> str:
        family, variant = (
            (self.name, "") if self.name == "esp8266" else (self.name[:5], self.name[5:])
        )
        return "-".join(filter(None, (family, variant))).upper()


_ESP8266: Final = Chip("esp8266", None, 0x0)

#: Those that every esptool from 4.8 on knows (esptool, targets/); a test compares.
CHIPS: Final = (
    _ESP8266,
    Chip("esp32", 0, 0x1000),
    Chip("esp32s2", 2, 0x1000),
    Chip("esp32c3", 5, 0x0),
    Chip("esp32s3", 9, 0x0),
    Chip("esp32c2", 12, 0x0),
    Chip("esp32c6", 13, 0x0),
    Chip("esp32h2", 16, 0x0),
    Chip("esp32p4", 18, 0x2000),
    Chip("esp32c61", 20, 0x0),
    Chip("esp32c5", 23, 0x2000),
)
_BOOTLOADER_OFFSETS: Final = tuple(sorted({chip.bootloader_offset for chip in CHIPS}))

#: Bytes of an image of the plan, by its number: from a position on, so many, fewer at its end.
Read = Callable[[int, int, int], bytes]


class RefusedImageError(ClientError):
    """For the client: why an image is not written where its plan has it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}. Use --force to flash anyway.")


def check_images(plan: FlashPlan, read: Read) -> str:
    """Raise RefusedImageError unless all images can be meant for where they are to be written.

    Returns the chip that they are for, as `--chip` names it, so that esptool refuses another;
    "auto" where they do not tell. With the plan's `force` nothing is checked.
    """
    options = plan.options
    if options.force:
        return options.chip
    checks = _Checks(plan, read)
    checks.check_alignment()
    checks.check_flash_size()
    chip = checks.chip()
    checks.check_bootloader(chip)
    checks.check_partitions()
    return options.chip if chip is None else chip.name


@dataclass(frozen=True, slots=True)
class _Place:
    """An image of the plan, and a position in it: what a flash address is to hold."""

    image: FlashImage
    number: int
    at: int

    @property
    def address(self) -> int:
        return self.image.offset + self.at

    def __str__(self) -> str:
        shown = f"{self.image.name} at {self.image.offset:#x}"
        return f"{shown} (+{self.at:#x})" if self.at else shown


@dataclass(frozen=True, slots=True)
class _Partition:
    name: str
    offset: int
    size: int


class _Checks:
    def __init__(self, plan: FlashPlan, read: Read) -> None:
        self._plan = plan
        self._read = read
        self._apps = [each for each in self._partitions() if each.size]

    def check_alignment(self) -> None:
        """Writing erases whole sectors."""
        for image in self._plan.images:
            if image.offset % _SECTOR_BYTES:
                raise RefusedImageError(
                    f"{image.name}: offset {image.offset:#x} is not a multiple of"
                    f" {_SECTOR_BYTES:#x}: what is before it in its sector would be erased"
                )

    def check_flash_size(self) -> None:
        """Where no size is given, esptool asks the flash for its own, and refuses itself."""
        size_bytes = flash_size_bytes(self._plan.options.flash_size)
        for image in self._plan.images:
            if size_bytes is not None and image.end > size_bytes:
                raise RefusedImageError(
                    f"{image.name} ({image.offset:#x} to {image.end - 1:#x}) does not fit into"
                    f" {self._plan.options.flash_size} of flash"
                )

    def chip(self) -> Chip | None:
        """The chip that the option or the images name, None if it is not known here."""
        named = self._plan.options.chip
        chip = next((each for each in CHIPS if each.name == named), None)
        if chip is None and named != "auto":
            return None
        by = f"--chip {named}"
        for place in self._telling_places():
            found = self._chip_of(place)
            if found is None:
                continue
            if chip is not None and found is not chip:
                other = f"{by} is given" if by.startswith("--") else f"{by} is one of {chip}"
                raise RefusedImageError(f"{place} is an image of {found}, but {other}")
            if chip is None:
                chip, by = found, str(place)
        return chip

    def check_bootloader(self, chip: Chip | None) -> None:
        """What is at the place of a bootloader is one, and no bootloader is elsewhere."""
        wanted = _BOOTLOADER_OFFSETS if chip is None else (chip.bootloader_offset,)
        has_one = any(self._is_image(self._place(offset)) for offset in wanted)
        for offset in _BOOTLOADER_OFFSETS:
            place = self._place(offset)
            if place is None or self._is_erased(place.image, place.number):
                continue
            if offset in wanted:
                self._check_wanted(place, chip, has_one=has_one)
            elif not has_one and not place.at:
                self._check_elsewhere(place, chip)

    def _check_wanted(self, place: _Place, chip: Chip | None, *, has_one: bool) -> None:
        if self._is_image(place):
            return
        if chip is None:
            if has_one:
                return  # a merged image for an ESP32 begins with 0xFF up to 0x1000
            offsets = ", ".join(f"{each:#x}" for each in _BOOTLOADER_OFFSETS)
            where = f"chips start their bootloader at one of {offsets}"
        else:
            where = f"{chip} starts its bootloader at {place.address:#x}"
        found = self._read(place.number, place.at, 1)[0]
        raise RefusedImageError(
            f"{place} is not an image: {where}, and where {_IMAGE_MAGIC:#x} is expected,"
            f" {found:#04x} was found"
        )

    def _check_elsewhere(self, place: _Place, chip: Chip | None) -> None:
        """An image begins where another chip has its bootloader, and this one's is not there."""
        if chip is None or chip is _ESP8266:
            return  # whose own bootloaders load from 0x1000 and 0x2000
        if self._is_image(place):
            raise RefusedImageError(
                f"{place} is an image, but {chip} starts its bootloader at"
                f" {chip.bootloader_offset:#x}"
            )
        if place.address == 0 and place.image.size != _DIGEST_BYTES:
            raise RefusedImageError(
                f"{place} is not an image, and {chip} starts its bootloader at"
                f" {chip.bootloader_offset:#x}"
            )

    def check_partitions(self) -> None:
        """App partitions hold apps that fit into them."""
        for partition in self._apps:
            place = self._place(partition.offset)
            if place is None or self._read(place.number, place.at, 4) == b"\xff" * 4:
                continue
            if not self._is_image(place):
                raise RefusedImageError(
                    f"{place} is not an image, but the partition table has the app partition"
                    f" {partition.name} at {partition.offset:#x}"
                )
            size_bytes = self._length_of(place)
            if size_bytes > partition.size:
                raise RefusedImageError(
                    f"{place} has {size_bytes} bytes and runs over the end of its partition"
                    f" {partition.name}, which has {partition.size}"
                )

    def _telling_places(self) -> Iterator[_Place]:
        """Where an image tells which chip it is for; data elsewhere may be another chip's."""
        apps = [partition.offset for partition in self._apps] or [_APP_OFFSET]
        for offset in (*_BOOTLOADER_OFFSETS, *apps):
            if (place := self._place(offset)) is not None:
                yield place

    def _place(self, address: int) -> _Place | None:
        for number, image in enumerate(self._plan.images):
            if image.offset <= address < image.end:
                return _Place(image, number, address - image.offset)
        return None

    def _is_image(self, place: _Place | None) -> bool:
        if place is None:
            return False
        return self._read(place.number, place.at, 1)[0] in {_IMAGE_MAGIC, _IMAGE_V2_MAGIC}

    def _chip_of(self, place: _Place) -> Chip | None:
        header = self._read(place.number, place.at, _HEADER_BYTES)
        return chip_of_image(header)

    def _length_of(self, place: _Place) -> int:
        """Of the image itself: behind it, a merged file goes on. Without checksum and hash."""
        header = self._read(place.number, place.at, _HEADER_BYTES)
        if header[0] != _IMAGE_MAGIC:
            return 0
        is_8266 = chip_of_image(header) is _ESP8266
        at = place.at + (_HEADER_BYTES_OF_8266 if is_8266 else _HEADER_BYTES)
        for _ in range(min(header[1], _MOST_SEGMENTS)):
            segment = self._read(place.number, at, _SEGMENT_HEADER.size)
            if len(segment) < _SEGMENT_HEADER.size:
                break
            at += _SEGMENT_HEADER.size + _SEGMENT_HEADER.unpack(segment)[1]
        return min(at, place.image.size) - place.at

    def _is_erased(self, image: FlashImage, number: int) -> bool:
        """Whether all of it is 0xFF, which erases what was there."""
        for at in range(0, image.size, _READ_BYTES):
            data = self._read(number, at, _READ_BYTES)
            if data.count(_ERASED) < len(data):
                return False
        return True

    def _partitions(self) -> list[_Partition]:
        """The app partitions of the table that is to be written, if there is one."""
        for number, image in enumerate(self._plan.images):
            at = _TABLE_OFFSET - image.offset if image.offset < _TABLE_OFFSET < image.end else 0
            if apps := _app_partitions(self._read(number, at, _MOST_ENTRIES * _ENTRY_BYTES)):
                return apps
        return []


def _app_partitions(table: bytes) -> list[_Partition]:
    apps = []
    for at in range(0, len(table) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
        magic, kind, _, offset, size = _ENTRY.unpack_from(table, at)
        if magic != _ENTRY_MAGIC:
            break
        label = table[at + _ENTRY.size : at + _ENTRY.size + 16].rstrip(b"\0")
        if kind == _TYPE_APP:
            apps.append(_Partition(ascii(label.decode(errors="replace"))[1:-1], offset, size))
    return apps


def chip_of_image(header: bytes) -> Chip | None:
    """The chip that an image is for, by its first 24 bytes; None if that is not clear."""
    if len(header) < _HEADER_BYTES or header[0] != _IMAGE_MAGIC:
        return None
    # An ESP8266's image has its first segment here, whose address is in RAM. What other chips have
    # at the last byte of that, drive strengths of 0 to 3, is neither.
    if header[11] in {0x3F, 0x40}:
        return _ESP8266
    image_id = int.from_bytes(header[12:14], "little")
    has_reserved = any(header[19:23])
    if has_reserved or header[23] > 1:
        return None
    return next((chip for chip in CHIPS if chip.image_id == image_id), None)


def flash_size_bytes(size: str) -> int | None:
    """A size as esptool writes it (`4MB`, `512KB`, `2MB-c1`); None for keep and detect."""
    number, unit = size.removesuffix("-c1")[:-2], size.removesuffix("-c1")[-2:]
    factors = {"KB": 1 << 10, "MB": 1 << 20}
    return int(number) * factors[unit] if unit in factors and number.isdecimal() else None
