"""Read the images that are named on the command line into a plan and their data.

`0x1000 bootloader.bin 0x10000 app.bin`, an ESP-IDF build folder or its flasher_args.json, or one
merged image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway.flash.plan import (
    MAX_BYTES,
    FlashImage,
    FlashOptions,
    FlashPlan,
    WrongInputError,
    checked,
)

#: The file with offsets and options that ESP-IDF's build leaves in its folder.
_ARGS_NAME = "flasher_args.json"
_MAX_ARGS_BYTES = 1 << 20

_EXPECTED = (
    "expected OFFSET FILE [OFFSET FILE ...], a build folder, its flasher_args.json, or an image"
)


@dataclass(frozen=True, slots=True)
class Images:
    """A plan, and the data of its images in the same order."""

    plan: FlashPlan
    data: tuple[bytes, ...]

    def read(self, number: int, at: int, n_bytes: int) -> bytes:
        """Return bytes of an image, fewer at its end."""
        return self.data[number][at : at + n_bytes]


def read_images(named: Sequence[str], given: dict[str, Any], label: str = "") -> Images:
    """Read images that are named on the command line.

    `given` are options of the command line (fields of FlashOptions), which take precedence over
    those of a build folder; `label` is the plan's. Raises WrongInputError.
    """
    if len(named) == 1:
        path = Path(named[0])
        if path.is_dir():
            path = _args_file(path)
        if path.suffix == ".json":
            files, options = _flasher_args(path)
        else:
            files, options = [(0, path)], {}
    else:
        files, options = _pairs(named), {}
    data = {offset: _read(path) for offset, path in files}
    if len(data) < len(files):
        raise WrongInputError("two images are for the same offset")
    images = [
        FlashImage(offset, len(data[offset]), hashlib.sha256(data[offset]).hexdigest(), path.name)
        for offset, path in files
    ]
    plan = checked(FlashPlan(tuple(images), replace(FlashOptions(**options), **given), label))
    return Images(plan, tuple(data[image.offset] for image in plan.images))


def _pairs(named: Sequence[str]) -> list[tuple[int, Path]]:
    if len(named) % 2:
        raise WrongInputError(f"odd number of arguments ({len(named)}): {_EXPECTED}")
    return [
        (_offset(offset), Path(file)) for offset, file in zip(named[::2], named[1::2], strict=True)
    ]


def _offset(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise WrongInputError(f"invalid offset {text!r}: {_EXPECTED}") from None


def _args_file(folder: Path) -> Path:
    for path in (folder / _ARGS_NAME, folder / "build" / _ARGS_NAME):
        if path.exists():
            return path
    raise WrongInputError(f"{folder} has no {_ARGS_NAME}: has it been built?")


def _flasher_args(path: Path) -> tuple[list[tuple[int, Path]], dict[str, Any]]:
    """Read files and options of ESP-IDF's flasher_args.json, whose paths start in its folder."""
    try:
        content = json.loads(_read(path, _MAX_ARGS_BYTES))
        files = [
            (_offset(offset), path.parent / file) for offset, file in content["flash_files"].items()
        ]
        settings = dict(content.get("flash_settings") or {})
        extra = dict(content.get("extra_esptool_args") or {})
        encrypted = "--encrypt" in list(content.get("write_flash_args") or []) or any(
            isinstance(part, dict) and part.get("encrypted") in {"true", True}
            for part in content.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WrongInputError(f"{path} is not a flasher_args.json of ESP-IDF: {error!r}") from None
    if encrypted:
        raise WrongInputError(
            f"{path} wants images encrypted while they are written, which is not supported:"
            " run esptool over rfc2217:// for that"
        )
    return files, _options_of(settings, extra)


def _options_of(settings: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Return options from ESP-IDF's settings, in which words are those of esptool 4."""
    names = ("flash_mode", "flash_freq", "flash_size")
    options = {name: settings[name] for name in names if name in settings}
    for name in ("before", "after", "chip"):
        if isinstance(extra.get(name), str):
            options[name] = extra[name].replace("_", "-")
    if extra.get("stub") is False:
        options["stub"] = False
    return options


def _read(path: Path, limit: int = MAX_BYTES) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise WrongInputError(f"{path}: {error.strerror or error}") from None
    if len(data) > limit:
        raise WrongInputError(f"{path} has more than {limit} bytes")
    return data
