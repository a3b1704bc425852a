"""What a client wants flashed: images with their offsets and hashes, and esptool's options.

Both ends use it: the client writes a plan as JSON, the gateway reads and checks it. A plan holds
no data and no paths; how the images get there is `flash_upload`'s matter.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any

from gateway.errors import ClientError
from gateway.inputs import parse_json

#: Raised when a field changes its meaning or goes.
FORMAT = 1

#: All images together; ESP modules have up to 32 MB of flash.
MAX_BYTES = 64 * 1024 * 1024
MAX_IMAGES = 64
#: The plan as JSON; an image takes about 200 bytes.
MAX_PLAN_BYTES = 65536
_MAX_NAME_CHARACTERS = 100

#: A flash address has 32 bits.
_END_OF_FLASH = 1 << 32

#: As ESP-IDF's; esptool's own is 115200, a fifth of what every bridge can.
DEFAULT_BAUDRATE = 460800

_SHA256 = re.compile(r"[0-9a-f]{64}")
#: What may be said for each option that is a word; none can be taken for another of esptool's.
_WORDS = {
    "chip": re.compile(r"[a-z0-9]{1,20}"),
    "flash_mode": re.compile(r"keep|qio|qout|dio|dout"),
    "flash_freq": re.compile(r"keep|[0-9]{1,3}m"),
    "flash_size": re.compile(r"keep|detect|[0-9]{1,4}(KB|MB)(-c1)?"),
    "before": re.compile(r"default-reset|usb-reset|no-reset|no-reset-no-sync"),
    "after": re.compile(r"hard-reset|soft-reset|watchdog-reset|no-reset|no-reset-stub"),
}


class PlanError(ClientError):
    """For the client: what is wrong with the plan."""


@dataclass(frozen=True, slots=True)
class FlashImage:
    """One image: where it goes, its length in bytes, SHA-256 in hex, and its name for people."""

    offset: int
    size: int
    sha256: str
    name: str

    @property
    def end(self) -> int:
        """The address behind its last byte."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class FlashOptions:
    """esptool's options of these names, in the words of esptool 5.

    `compress` None leaves it to esptool. `before` default-reset and `after` hard-reset leave it to
    the gateway which way the board needs.
    """

    chip: str = "auto"
    baudrate: int = DEFAULT_BAUDRATE
    flash_mode: str = "keep"
    flash_freq: str = "keep"
    flash_size: str = "keep"
    before: str = "default-reset"
    after: str = "hard-reset"
    erase_all: bool = False
    compress: bool | None = None
    stub: bool = True
    force: bool = False


@dataclass(frozen=True, slots=True)
class FlashPlan:
    """Images in ascending order of their offsets, and how to write them.

    `label` names the user, for others that find the port in use meanwhile.
    """

    images: tuple[FlashImage, ...]
    options: FlashOptions = FlashOptions()
    label: str = ""

    @property
    def total_bytes(self) -> int:
        """All images together."""
        return sum(image.size for image in self.images)

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"format": FORMAT, **asdict(self)})


def plan_from_json(text: str | bytes) -> FlashPlan:
    """The plan, checked; PlanError with one line when it is not one."""
    try:
        content = parse_json(text)
    except ValueError as error:
        raise PlanError(f"the plan is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PlanError(f'the plan has to be a JSON object with "format": {FORMAT}')
    listed = content.get("images")
    if not isinstance(listed, list):
        raise PlanError("the plan has no list of images")
    options = content.get("options", {})
    if not isinstance(options, dict):
        raise PlanError("options has to be a JSON object")
    if len(listed) > MAX_IMAGES:  # before each is looked at
        raise PlanError(f"{len(listed)} images; at most {MAX_IMAGES} are accepted")
    images = tuple(_image(index, entry) for index, entry in enumerate(listed))
    if any(image.offset > following.offset for image, following in pairwise(images)):
        raise PlanError("the images have to be listed, and sent, in the order of their offsets")
    return checked(FlashPlan(images, _options(options), _printable(content.get("label", ""))))


def checked(plan: FlashPlan) -> FlashPlan:
    """The same with its images in order; PlanError if it can't be carried out as a whole."""
    if not plan.images:
        raise PlanError("there is no image to flash")
    if len(plan.images) > MAX_IMAGES:
        raise PlanError(f"{len(plan.images)} images; at most {MAX_IMAGES} are accepted")
    images = sorted(plan.images, key=lambda image: image.offset)
    for image, following in zip(images, [*images[1:], None], strict=True):
        if not image.size:
            raise PlanError(f"{image.name} is empty")
        if image.end > _END_OF_FLASH or image.offset < 0:
            raise PlanError(f"{image.name} at {image.offset:#x} is outside of any flash")
        if following is not None and following.offset < image.end:
            raise PlanError(
                f"{image.name} ({image.offset:#x} to {image.end - 1:#x}) overlaps"
                f" {following.name} at {following.offset:#x}"
            )
    if plan.total_bytes > MAX_BYTES:
        raise PlanError(f"{plan.total_bytes} bytes of images; at most {MAX_BYTES} are accepted")
    _check_options(plan.options)
    return replace(plan, images=tuple(images))


def _image(index: int, entry: Any) -> FlashImage:
    where = f"images[{index}]"
    if not isinstance(entry, dict):
        raise PlanError(f"{where} has to be a JSON object")
    offset, size, sha256 = entry.get("offset"), entry.get("size"), entry.get("sha256")
    if type(offset) is not int or type(size) is not int or size < 0:
        raise PlanError(f"{where} needs offset and size, whole numbers")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise PlanError(f"{where} needs sha256, 64 hex digits in lower case")
    return FlashImage(offset, size, sha256, _printable(entry.get("name")) or f"{offset:#x}")


def _options(values: dict[str, Any]) -> FlashOptions:
    known = {field.name for field in fields(FlashOptions)}
    if unknown := set(values) - known:
        raise PlanError(f"unknown options: {', '.join(sorted(map(_printable, unknown)))}")
    return FlashOptions(**values)


def _check_options(options: FlashOptions) -> None:
    for name, accepted in _WORDS.items():
        value = getattr(options, name)
        if not isinstance(value, str) or not accepted.fullmatch(value):
            raise PlanError(f"{name}: {_printable(str(value))!r} is none of esptool's")
    rate = options.baudrate
    if type(rate) is not int or not 300 <= rate <= 10_000_000:
        raise PlanError(f"baudrate: {_printable(str(rate))!r} is not from 300 to 10000000")
    for name in ("erase_all", "stub", "force"):
        if type(getattr(options, name)) is not bool:
            raise PlanError(f"{name} has to be true or false")
    if options.compress is not None and type(options.compress) is not bool:
        raise PlanError("compress has to be true, false or null")


def _printable(text: object) -> str:
    """Another's text, for a log line and a terminal."""
    shown = text if isinstance(text, str) else ""
    return "".join(c if c.isprintable() else "?" for c in shown[:_MAX_NAME_CHARACTERS])
