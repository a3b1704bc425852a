"""Check, before anything is written, that images can be meant for their offsets.

esptool refuses an image of another chip at the bootloader's offset, and what does not fit into the
flash. Everything else it writes and verifies: a text file at 0x0, an ESP32's bootloader at 0x0, the
app of another chip. What is refused here is written with `force`, esptool's own word.

Only offsets whose contents are known are checked: where a chip starts its bootloader, 0x10000 for
the chip of the app there, and the app partitions of a partition table in the plan. Data may be
everywhere else, and erased flash (0xFF) everywhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from gateway.flash.plan import FlashError, FlashImage, FlashPlan, Outcome

#: First byte of an image; the second kind is loaded by ESP8266 bootloaders (esptool, loader.py and
#: bin_image.py).
_IMAGE_MAGIC: Final = 0xE9
_IMAGE_V2_MAGIC: Final = 0xEA
_ERASED: Final = 0xFF

#: The smallest part of a flash that can be erased, with all that is in it.
_SECTOR_BYTES: Final = 0x1000

#: Headers of an image, and of a segment: address and length (esptool, bin_image.py).
_HEADER_BYTES: Final = 24
_HEADER_BYTES_OF_8266: Final = 8
_SEGMENT_HEADER: Final = struct.Struct("<II")
_MOST_SEGMENTS: Final = 16

#: Entries of ESP-IDF's partition tables (gen_esp32part.py).
_ENTRY: Final = struct.Struct("<HBBII16s4x")
_ENTRY_MAGIC: Final = 0x50AA
_MOST_ENTRIES: Final = 95
_TYPE_APP: Final = 0
_TABLE_OFFSET: Final = 0x8000

#: Offset of the app unless a partition table says otherwise.
_APP_OFFSET: Final = 0x10000

#: Size of the digest at 0x0, before the bootloader, for Secure Boot V1 of the ESP32.
_DIGEST_BYTES: Final = 192

_READ_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Chip:
    """A chip as `--chip` names it, the id in its images, and its bootloader's offset."""

    name: str
    image_id: int | None
    bootloader_offset: int

    def __str__(self) -> str:
        variant = self.name.removeprefix("esp32")
        return self.name.upper() if variant in {"", self.name} else f"ESP32-{variant.upper()}"


_ESP8266: Final = Chip("esp8266", None, 0x0)

#: The chips that every esptool from 4.8 on knows (esptool, targets/); a test compares.
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

#: Returns bytes of an image of the plan, by its number: from a position on, so many, fewer at its
#: end.
Read = Callable[[int, int, int], bytes]


class RefusedImageError(FlashError):
    """Why an image is not written where its plan has it."""

    def __init__(self, reason: str) -> None:
        super().__init__(Outcome.REFUSED, f"{reason}. Use --force to flash anyway.")


def check_images(plan: FlashPlan, read: Read) -> str:
    """Raise RefusedImageError unless all images can be meant for their offsets.

    Returns the chip that they are for, as `--chip` names it, so that esptool refuses another;
    "auto" if they don't tell. With the plan's `force` nothing is checked.
    """
    options = plan.options
    if options.force:
        return options.chip
    _check_extents(plan)
    checks = _Checks(plan, read)
    chip = checks.chip()
    checks.check_bootloader(chip)
    checks.check_partitions()
    return options.chip if chip is None else chip.name


def _check_extents(plan: FlashPlan) -> None:
    """Writing erases whole sectors; without a size, esptool asks the flash and refuses itself."""
    size_bytes = flash_size_bytes(plan.options.flash_size)
    for image in plan.images:
        if image.offset % _SECTOR_BYTES:
            raise RefusedImageError(
                f"{image.name}: offset {image.offset:#x} is not a multiple of"
                f" {_SECTOR_BYTES:#x}: what is before it in its sector would be erased"
            )
        if size_bytes is not None and image.end > size_bytes:
            raise RefusedImageError(
                f"{image.name} ({image.offset:#x} to {image.end - 1:#x}) does not fit into"
                f" {plan.options.flash_size} of flash"
            )


@dataclass(frozen=True, slots=True)
class _Place:
    """A position `at` in an image of the plan: the intended content of a flash address."""

    image: FlashImage
    number: int
    at: int
    read: Read

    @property
    def address(self) -> int:
        return self.image.offset + self.at

    @property
    def is_image(self) -> bool:
        return self.bytes(1)[0] in {_IMAGE_MAGIC, _IMAGE_V2_MAGIC}

    @property
    def is_in_erased_image(self) -> bool:
        """Whether the whole file is 0xFF, which erases what was there."""
        pieces = (
            self.read(self.number, at, _READ_BYTES) for at in range(0, self.image.size, _READ_BYTES)
        )
        return all(piece.count(_ERASED) == len(piece) for piece in pieces)

    @property
    def length_bytes(self) -> int:
        """Length of the image at this place, without checksum and hash: a merged file goes on."""
        header = self.bytes(_HEADER_BYTES)
        if header[0] != _IMAGE_MAGIC:
            return 0
        is_8266 = chip_of_image(header) is _ESP8266
        at = self.at + (_HEADER_BYTES_OF_8266 if is_8266 else _HEADER_BYTES)
        for _ in range(min(header[1], _MOST_SEGMENTS)):
            segment = self.read(self.number, at, _SEGMENT_HEADER.size)
            if len(segment) < _SEGMENT_HEADER.size:
                break
            at += _SEGMENT_HEADER.size + _SEGMENT_HEADER.unpack(segment)[1]
        return min(at, self.image.size) - self.at

    def bytes(self, n_bytes: int) -> bytes:
        return self.read(self.number, self.at, n_bytes)

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

    def chip(self) -> Chip | None:
        """Return the chip that the option or the images name, None if it is not known here."""
        named = self._plan.options.chip
        chip = next((each for each in CHIPS if each.name == named), None)
        if chip is None and named != "auto":
            return None
        other = f"--chip {named} is given"
        # Data elsewhere may be another chip's.
        apps = [partition.offset for partition in self._apps] or [_APP_OFFSET]
        for place in self._places([*_BOOTLOADER_OFFSETS, *apps]):
            found = chip_of_image(place.bytes(_HEADER_BYTES))
            if found is None:
                continue
            if chip is None:
                chip, other = found, f"{place} is one of {found}"
            elif found is not chip:
                raise RefusedImageError(f"{place} is an image of {found}, but {other}")
        return chip

    def check_bootloader(self, chip: Chip | None) -> None:
        """Check that there is one at a bootloader's offset, and that none is elsewhere."""
        wanted = _BOOTLOADER_OFFSETS if chip is None else (chip.bootloader_offset,)
        where = f"{chip} starts its bootloader at {wanted[0]:#x}"
        if chip is None:
            offsets = ", ".join(f"{offset:#x}" for offset in wanted)
            where = f"chips start their bootloader at one of {offsets}"
        has_one = any(place.is_image for place in self._places(wanted))
        for place in self._places(_BOOTLOADER_OFFSETS):
            if place.is_in_erased_image:
                continue
            if place.address in wanted:
                # Without a chip, a merged image for an ESP32 begins with 0xFF up to 0x1000.
                if not place.is_image and not (chip is None and has_one):
                    raise RefusedImageError(
                        f"{place} is not an image: {where}, and where {_IMAGE_MAGIC:#x} is"
                        f" expected, {place.bytes(1)[0]:#04x} was found"
                    )
            # An ESP8266's own bootloaders load from the others' offsets.
            elif chip is not _ESP8266 and not has_one and not place.at:
                if place.is_image:
                    raise RefusedImageError(f"{place} is an image, but {where}")
                if place.address == 0 and place.image.size != _DIGEST_BYTES:
                    raise RefusedImageError(f"{place} is not an image, and {where}")

    def check_partitions(self) -> None:
        """Check that app partitions hold apps that fit into them."""
        for partition in self._apps:
            for place in self._places([partition.offset]):
                if place.bytes(4) == b"\xff" * 4:
                    continue
                if not place.is_image:
                    raise RefusedImageError(
                        f"{place} is not an image, but the partition table has the app partition"
                        f" {partition.name} at {partition.offset:#x}"
                    )
                if (size_bytes := place.length_bytes) > partition.size:
                    raise RefusedImageError(
                        f"{place} has {size_bytes} bytes and runs over the end of its partition"
                        f" {partition.name}, which has {partition.size}"
                    )

    def _places(self, addresses: Iterable[int]) -> Iterator[_Place]:
        """Find the images that cover these addresses."""
        for address in addresses:
            for number, image in enumerate(self._plan.images):
                if image.offset <= address < image.end:
                    yield _Place(image, number, address - image.offset, self._read)

    def _partitions(self) -> list[_Partition]:
        """Read the app partitions of the table that is to be written, if there is one."""
        for number, image in enumerate(self._plan.images):
            at = _TABLE_OFFSET - image.offset if image.offset < _TABLE_OFFSET < image.end else 0
            if apps := _app_partitions(self._read(number, at, _MOST_ENTRIES * _ENTRY.size)):
                return apps
        return []


def _app_partitions(table: bytes) -> list[_Partition]:
    apps = []
    whole = table[: len(table) // _ENTRY.size * _ENTRY.size]
    for magic, kind, _, offset, size, label in _ENTRY.iter_unpack(whole):
        if magic != _ENTRY_MAGIC:
            break
        if kind == _TYPE_APP:
            name = label.rstrip(b"\0").decode(errors="replace")
            apps.append(_Partition(ascii(name)[1:-1], offset, size))
    return apps


def chip_of_image(header: bytes) -> Chip | None:
    """Return the chip that an image is for, by its first 24 bytes; None if that is not clear."""
    if len(header) < _HEADER_BYTES or header[0] != _IMAGE_MAGIC:
        return None
    # An ESP8266's image has its first segment here, whose address is in RAM. Other chips have drive
    # strengths of 0 to 3 in its last byte.
    if header[11] in {0x3F, 0x40}:
        return _ESP8266
    image_id = int.from_bytes(header[12:14], "little")
    if any(header[19:23]) or header[23] > 1:  # reserved bytes, and a flag
        return None
    return next((chip for chip in CHIPS if chip.image_id == image_id), None)


def flash_size_bytes(size: str) -> int | None:
    """Return a size as esptool writes it (`4MB`, `512KB`, `2MB-c1`); None for keep and detect."""
    number, unit = size.removesuffix("-c1")[:-2], size.removesuffix("-c1")[-2:]
    factors = {"KB": 1 << 10, "MB": 1 << 20}
    return int(number) * factors[unit] if unit in factors and number.isdecimal() else None
