"""What is named on the command line, read into images and a plan."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.flash.files import read_images
from gateway.flash.plan import MAX_BYTES, FlashOptions, WrongInputError

#: As ESP-IDF 5.4 writes it, of an ESP32-S3 project.
FLASHER_ARGS: dict[str, Any] = {
    "write_flash_args": ["--flash_mode", "dio", "--flash_size", "2MB", "--flash_freq", "80m"],
    "flash_settings": {"flash_mode": "dio", "flash_size": "2MB", "flash_freq": "80m"},
    "flash_files": {
        "0x0": "bootloader/bootloader.bin",
        "0x10000": "hello_world.bin",
        "0x8000": "partition_table/partition-table.bin",
    },
    "bootloader": {"offset": "0x0", "file": "bootloader/bootloader.bin", "encrypted": "false"},
    "app": {"offset": "0x10000", "file": "hello_world.bin", "encrypted": "false"},
    "extra_esptool_args": {
        "after": "hard_reset",
        "before": "default_reset",
        "stub": True,
        "chip": "esp32s3",
    },
}


@pytest.fixture
def build(tmp_path: Path) -> Path:
    build = tmp_path / "build"
    for name in FLASHER_ARGS["flash_files"].values():
        (build / name).parent.mkdir(parents=True, exist_ok=True)
        (build / name).write_bytes(name.encode())
    (build / "flasher_args.json").write_text(json.dumps(FLASHER_ARGS))
    return build


def test_pairs_of_offset_and_file(tmp_path: Path) -> None:
    boot, app = tmp_path / "boot.bin", tmp_path / "app.bin"
    boot.write_bytes(b"boot")
    app.write_bytes(b"the app")
    images = read_images(["0x10000", str(app), "4096", str(boot)], {"baudrate": 921600})
    assert images.data == (b"boot", b"the app")
    assert [(image.offset, image.size, image.name) for image in images.plan.images] == [
        (0x1000, 4, "boot.bin"),
        (0x10000, 7, "app.bin"),
    ]
    assert images.plan.images[0].sha256 == hashlib.sha256(b"boot").hexdigest()
    assert images.plan.options == FlashOptions(baudrate=921600)


def test_one_image_goes_to_the_start(tmp_path: Path) -> None:
    merged = tmp_path / "merged.bin"
    merged.write_bytes(b"all of it")
    images = read_images([str(merged)], {})
    assert (images.plan.images[0].offset, images.data) == (0, (b"all of it",))


@pytest.mark.parametrize("what", [".", "build", "build/flasher_args.json"])
def test_a_build_of_esp_idf(build: Path, what: str) -> None:
    images = read_images([str(build.parent / what)], {"flash_size": "4MB"})
    assert [image.offset for image in images.plan.images] == [0, 0x8000, 0x10000]
    assert images.data[1] == b"partition_table/partition-table.bin"
    assert images.plan.options == FlashOptions(
        chip="esp32s3",
        flash_mode="dio",
        flash_freq="80m",
        flash_size="4MB",  # what is said on the command line is preferred
    )


def test_a_build_that_is_to_stay_in_the_bootloader_without_stub(build: Path) -> None:
    extra = {"after": "no_reset", "before": "usb_reset", "stub": False}
    content = {**FLASHER_ARGS, "extra_esptool_args": extra}
    (build / "flasher_args.json").write_text(json.dumps(content))
    options = read_images([str(build)], {}).plan.options
    assert (options.after, options.before, options.stub) == ("no-reset", "usb-reset", False)


ENCRYPTED = {"offset": "0x10000", "file": "hello_world.bin", "encrypted": "true"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *((text, "is not a flasher_args.json") for text in ("", "{}", "[]", "[" * 100000)),
        ('{"flash_files": 7}', "is not a flasher_args.json"),
        ('{"flash_files": {"x": "a.bin"}}', "invalid offset 'x': expected OFFSET FILE"),
        (json.dumps({**FLASHER_ARGS, "app": ENCRYPTED}), "run esptool over rfc2217"),
        (
            json.dumps({**FLASHER_ARGS, "write_flash_args": ["--encrypt"]}),
            "run esptool over rfc2217",
        ),
    ],
)
def test_a_build_that_can_t_be_flashed(build: Path, text: str, reason: str) -> None:
    (build / "flasher_args.json").write_text(text)
    with pytest.raises(WrongInputError, match=re.escape(reason)):
        read_images([str(build)], {})


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (["0x1000", "nothing.bin"], "nothing.bin: No such file"),
        (["0x1000", "empty.bin", "0x2000"], "odd number of arguments (3)"),
        (["empty.bin", "0x1000"], "invalid offset 'empty.bin'"),
        (["."], "has no flasher_args.json: has it been built"),
        (["0x1000", "empty.bin", "4096", "empty.bin"], "two images are for the same offset"),
        (["empty.bin"], "empty.bin is empty"),
        # Not read to its end.
        (["huge.bin"], f"has more than {MAX_BYTES} bytes"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.bin").touch()
    with Path("huge.bin").open("wb") as file:
        file.truncate(MAX_BYTES * 100)
    with pytest.raises(WrongInputError, match=re.escape(reason)):
        read_images(what, {})
