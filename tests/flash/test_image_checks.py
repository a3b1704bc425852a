"""What is refused before it is written, and what must never be."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys

import pytest

from gateway.flash.files import Images
from gateway.flash.image_checks import CHIPS, RefusedImageError, check_images, flash_size_bytes
from gateway.flash.plan import FlashImage, FlashOptions, FlashPlan, checked
from tests.support.images import (
    ESP32,
    ESP32C3,
    ESP32P4,
    ESP32S2,
    ESP32S3,
    image_of,
    image_of_8266,
    partition_table,
)

TEXT = b"This is no image of anything.\n" * 20
NOISE = random.Random(1).randbytes(20000)
NOISE_IS_NO_IMAGE = NOISE[0] not in {0xE9, 0xEA}
APP, DATA = 0, 1
TABLE = partition_table(
    ("nvs", DATA, 0x9000, 0x6000), ("factory", APP, 0x10000, 0x3000), ("fs", DATA, 0x13000, 0x4000)
)

Files = dict[int, bytes]


def check(files: Files, **options: object) -> str:
    """The chip that the images are for; a file is named by its offset."""
    images = [
        FlashImage(offset, len(data), hashlib.sha256(data).hexdigest(), f"{offset:x}.bin")
        for offset, data in files.items()
    ]
    plan = checked(FlashPlan(tuple(images), FlashOptions(**options)))  # type: ignore[arg-type]
    data = tuple(files[image.offset] for image in plan.images)
    return check_images(plan, Images(plan, data).read)


def merged(parts: Files, start: int = 0) -> bytes:
    """As esptool's merge-bin does it."""
    end = max(offset + len(data) for offset, data in parts.items())
    whole = bytearray(b"\xff" * (end - start))
    for offset, data in parts.items():
        whole[offset - start : offset - start + len(data)] = data
    return bytes(whole)


BUILD: Files = {0x1000: image_of(ESP32, 20000), 0x8000: TABLE, 0x10000: image_of(ESP32, 0x2000)}
BUILD_C3: Files = {0x0: image_of(ESP32C3, 20000), 0x8000: TABLE, 0x10000: image_of(ESP32C3)}


@pytest.mark.parametrize(
    ("files", "options", "chip"),
    [
        (BUILD, {}, "esp32"),
        (BUILD, {"chip": "esp32"}, "esp32"),
        (BUILD, {"flash_size": "4MB"}, "esp32"),
        (BUILD_C3, {}, "esp32c3"),
        ({0x2000: image_of(ESP32P4), 0x10000: image_of(ESP32P4)}, {}, "esp32p4"),
        # An app alone, and data wherever there may be some.
        ({0x10000: image_of(ESP32S3)}, {}, "esp32s3"),
        ({0x10000: TEXT}, {}, "auto"),
        ({0x10000: TEXT}, {"chip": "esp32"}, "esp32"),
        ({0x8000: TEXT, 0x9000: NOISE, 0xE000: b"\xff" * 8192, 0x110000: TEXT}, {}, "auto"),
        ({0x8000: TABLE}, {}, "auto"),
        ({0x8000: TABLE, 0x9000: NOISE, 0x13000: NOISE[:0x4000]}, {}, "auto"),
        # Merged, with what merge-bin pads to the front, and from the app on.
        ({0x0: merged(BUILD)}, {}, "esp32"),
        ({0x0: merged(BUILD)}, {"chip": "esp32"}, "esp32"),
        ({0x0: merged(BUILD_C3)}, {}, "esp32c3"),
        ({0x1000: merged(BUILD, 0x1000)}, {}, "esp32"),
        (
            {0x8000: TABLE, 0x10000: merged({0x10000: image_of(ESP32), 0x13000: TEXT}, 0x10000)},
            {},
            "",
        ),
        # Erasing by writing 0xFF.
        ({0x0: b"\xff" * 0x3000}, {}, "auto"),
        ({0x1000: b"\xff" * 0x1000, 0x10000: b"\xff" * 0x1000}, {"chip": "esp32"}, "esp32"),
        ({0x8000: TABLE, 0x10000: b"\xff" * 0x1000}, {}, "auto"),
        # Secure Boot V1 has a digest before the bootloader.
        ({0x0: NOISE[:192], 0x1000: image_of(ESP32)}, {}, "esp32"),
        ({0x0: NOISE[:192]}, {"chip": "esp32"}, "esp32"),
        # A slave's firmware lies in a data partition of its host's.
        ({0x2000: image_of(ESP32P4), 0x400000: image_of(ESP32C3)}, {}, "esp32p4"),
        # ESP8266: no extended header, code without any header, two bootloaders that load the app.
        ({0x0: image_of_8266(30000), 0x10000: NOISE}, {}, "esp8266"),
        ({0x0: image_of_8266(4096), 0x1000: b"\xea" + NOISE}, {}, "esp8266"),
        ({0x0: image_of_8266(4096), 0x2000: image_of_8266(8192)}, {"chip": "esp8266"}, "esp8266"),
        ({0x1000: b"\xea" + NOISE}, {"chip": "esp8266"}, "esp8266"),
        ({0x3FC000: NOISE[:128], 0x3FE000: b"\xff" * 4096}, {}, "auto"),
        # A segment of 64 KiB has an ESP32's id where only others have an id.
        ({0x0: image_of_8266(16 + 0x10000 + 16), 0x20000: NOISE}, {}, "esp8266"),
        # A chip that is not known here: its bootloader may be at any of these places.
        ({0x2000: image_of(999), 0x10000: image_of(999)}, {}, "auto"),
        ({0x0: image_of(999, 20000), 0x10000: image_of(999)}, {"chip": "esp99"}, "esp99"),
        # With esptool's own word nothing is looked at.
        ({0x0: TEXT, 0x10001: TEXT}, {"force": True}, "auto"),
        ({0x0: image_of(ESP32), 0x10000: image_of(ESP32S3)}, {"force": True}, "auto"),
    ],
)
def test_honest_use_is_not_refused(files: Files, options: dict[str, object], chip: str) -> None:
    assert NOISE_IS_NO_IMAGE
    assert check(files, **options) == (chip or "esp32")


@pytest.mark.parametrize(
    ("files", "options", "reason"),
    [
        # Text at 0x0, which was written and verified.
        ({0x0: TEXT}, {}, "0.bin at 0x0 is not an image: chips start their bootloader at one of"),
        ({0x0: TEXT}, {"chip": "esp32c3"}, "ESP32-C3 starts its bootloader at 0x0"),
        ({0x0: TEXT}, {"chip": "esp32"}, "0.bin at 0x0 is not an image, and ESP32 starts its"),
        ({0x0: NOISE}, {"chip": "esp32"}, "0.bin at 0x0 is not an image, and ESP32 starts its"),
        ({0x1000: TEXT}, {}, "and where 0xe9 is expected, 0x54 was found"),
        ({0x1000: TEXT, 0x10000: image_of(ESP32)}, {}, "ESP32 starts its bootloader at 0x1000"),
        (
            {0x2000: TEXT, 0x10000: image_of(ESP32P4)},
            {},
            "ESP32-P4 starts its bootloader at 0x2000",
        ),
        (
            {0x0: merged({0x8000: TABLE, 0x10000: image_of(ESP32)})},
            {},
            "0.bin at 0x0 is not an image",
        ),
        ({0x0: b"\0" * 0x2000}, {"chip": "esp8266"}, "ESP8266 starts its bootloader at 0x0"),
        # An image where this chip does not look for it.
        ({0x0: image_of(ESP32)}, {}, "is an image, but ESP32 starts its bootloader at 0x1000"),
        ({0x0: image_of(ESP32, 20000)}, {}, "ESP32 starts its bootloader at 0x1000"),
        ({0x0: image_of(ESP32S2)}, {}, "is an image, but ESP32-S2 starts its bootloader at 0x1000"),
        ({0x1000: image_of(ESP32S3)}, {}, "is an image, but ESP32-S3 starts its bootloader at 0x0"),
        ({0x1000: image_of(ESP32P4)}, {}, "ESP32-P4 starts its bootloader at 0x2000"),
        # Another chip's.
        (
            {0x1000: image_of(ESP32), 0x10000: image_of(ESP32S3)},
            {},
            "10000.bin at 0x10000 is an image of ESP32-S3, but 1000.bin at 0x1000 is one of ESP32",
        ),
        (
            {0x10000: image_of(ESP32S3)},
            {"chip": "esp32"},
            "10000.bin at 0x10000 is an image of ESP32-S3, but --chip esp32 is given",
        ),
        ({0x0: image_of_8266()}, {"chip": "esp32c3"}, "is an image of ESP8266, but --chip esp32c3"),
        ({0x0: merged(BUILD)}, {"chip": "esp32s2"}, "0.bin at 0x0 (+0x1000) is an image of ESP32"),
        # What would be erased with it.
        ({0x10001: TEXT}, {}, "10001.bin: offset 0x10001 is not a multiple of 0x1000"),
        ({0x10100: TEXT}, {}, "what is before it in its sector would be erased"),
        # Beyond the end of the flash, as far as that is known; else esptool looks.
        (
            {0x1000: image_of(ESP32), 0x3FF000: NOISE},
            {"flash_size": "4MB"},
            "3ff000.bin (0x3ff000 to 0x403e1f) does not fit into 4MB of flash",
        ),
        # The partition table tells what else is where.
        (
            {0x8000: TABLE, 0x10000: TEXT},
            {},
            "10000.bin at 0x10000 is not an image, but the partition table has the app partition"
            " factory at 0x10000",
        ),
        (
            {0x8000: TABLE, 0x10000: image_of(ESP32, 0x3400)},
            {},
            "has 13296 bytes and runs over the end of its partition factory, which has 12288",
        ),
        (
            {0x8000: TABLE, 0x9000: NOISE + NOISE},
            {},
            "9000.bin at 0x9000 (+0x7000) is not an image, but the partition table",
        ),
        ({0x0: merged({**BUILD, 0x10000: TEXT})}, {}, "(+0x10000) is not an image"),
        ({0x1000: image_of(ESP32S2), 0x8000: TABLE, 0x10000: image_of(ESP32C3)}, {}, "ESP32-C3"),
    ],
)
def test_what_can_t_be_meant_is_refused_with_the_reason(
    files: Files, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(RefusedImageError) as refused:
        check(files, **options)
    assert reason in str(refused.value)
    assert str(refused.value).endswith(". Use --force to flash anyway.")
    assert "\n" not in str(refused.value)
    assert check(files, **options, force=True)


def test_random_bytes_never_break_a_check() -> None:
    rng = random.Random(7)
    heads = [b"", b"\xe9", b"\xea", b"\xff", b"\xaa\x50\x00\x00", image_of(ESP32, 64), TABLE[:64]]
    refused = 0
    for _ in range(3000):
        files = {
            rng.choice([0, 0x1000, 0x2000, 0x8000, 0x10000, 0x20000]): rng.choice(heads)
            + rng.randbytes(rng.choice([1, 7, 23, 24, 25, 300, 4000]))
            for _ in range(rng.randrange(1, 4))
        }
        try:
            check(files)
        except RefusedImageError:
            refused += 1
    assert 0 < refused < 3000


def test_the_chips_are_as_esptool_has_them() -> None:
    program = (
        "import json; from esptool.targets import CHIP_DEFS;"
        "print(json.dumps({name: [chip.IMAGE_CHIP_ID, chip.BOOTLOADER_FLASH_OFFSET, chip.CHIP_NAME]"
        " for name, chip in CHIP_DEFS.items()}))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    theirs = json.loads(ran.stdout)
    ours = {chip.name: [chip.image_id, chip.bootloader_offset, str(chip)] for chip in CHIPS}
    assert ours.items() <= theirs.items()


@pytest.mark.parametrize(
    ("size", "n_bytes"),
    [("4MB", 4 << 20), ("512KB", 512 << 10), ("2MB-c1", 2 << 20), ("keep", None), ("detect", None)],
)
def test_sizes_are_written_as_esptool_s(size: str, n_bytes: int | None) -> None:
    assert flash_size_bytes(size) == n_bytes
