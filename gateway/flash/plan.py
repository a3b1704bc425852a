"""Plans and outcomes of flashing, as client and gateway exchange them.

A plan has images with offsets and hashes, and esptool's options; it has no data and no paths. The
client sends it as JSON, the gateway reads and checks it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from itertools import pairwise
from typing import Any, Final

from gateway.errors import ClientError
from gateway.inputs import parse_json

#: Raised when a field changes its meaning or is dropped.
FORMAT: Final = 1

#: All images together; ESP modules have up to 32 MB of flash.
MAX_BYTES: Final = 64 * 1024 * 1024
MAX_IMAGES: Final = 64
#: The plan as JSON; an image takes about 200 bytes.
MAX_PLAN_BYTES: Final = 65536
_MAX_NAME_CHARACTERS: Final = 100

#: A flash address has 32 bits.
_END_OF_FLASH: Final = 1 << 32

#: As ESP-IDF's; esptool's own is 115200, a fifth of what every bridge can do.
DEFAULT_BAUDRATE: Final = 460800

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
#: Values of the options that are words; none can be taken for another argument of esptool.
_WORDS: Final = {
    "chip": re.compile(r"[a-z0-9]{1,20}"),
    "flash_mode": re.compile(r"keep|qio|qout|dio|dout"),
    "flash_freq": re.compile(r"keep|[0-9]{1,3}m"),
    "flash_size": re.compile(r"keep|detect|[0-9]{1,4}(KB|MB)(-c1)?"),
    "before": re.compile(r"default-reset|usb-reset|no-reset|no-reset-no-sync"),
    "after": re.compile(r"hard-reset|soft-reset|watchdog-reset|no-reset|no-reset-stub"),
}


class Outcome(Enum):
    """What came of flashing one board; the value is its name on the wire.

    docs/remote-flashing.md has the same table; a test compares the two.
    """

    WRITTEN = "written"  # written, verified, reset, and its port is back
    FAILED = "failed"  # none of the others
    WRONG_INPUT = "wrong-input"  # arguments, files or the plan; nothing was sent to a board
    UNREACHABLE = "unreachable"  # the gateway did not answer, or not to the end
    NOT_ALLOWED = "not-allowed"  # the gateway needs a token, or another one
    BUSY = "busy"  # another client has the port, and its sharing rule lets it keep it
    ABSENT = "absent"  # the board is not plugged in, or its port does not work
    NO_CONTACT = "no-contact"  # no chip answers in its bootloader; nothing was written
    REFUSED = "refused"  # the gateway or esptool refuses to write the images; nothing was written
    INCOMPLETE = "incomplete"  # ended while writing: neither the old nor the new is there
    NOT_VERIFIED = "not-verified"  # the flash differs from the image
    NOT_RESET = "not-reset"  # written and verified, but the board has not come back
    NOT_STORED = "not-stored"  # the images did not get to the gateway whole, or it has no room
    NO_ESPTOOL = "no-esptool"  # the gateway has no esptool that works

    @property
    def exit_code(self) -> int:
        """The exit code of `esp-gateway flash`; 1 and 2 mean the same for other commands."""
        return list(Outcome).index(self)


class FlashError(ClientError):
    """Why a board is not flashed, in one line, and the outcome."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class WrongInputError(FlashError):
    """What is wrong with the arguments, files or plan."""

    def __init__(self, message: str) -> None:
        super().__init__(Outcome.WRONG_INPUT, message)


@dataclass(frozen=True, slots=True)
class FlashImage:
    """One image: its offset in flash, its length in bytes, SHA-256 in hex, and a name to show."""

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

    `compress` None leaves the choice to esptool. With `before` default-reset and `after` hard-reset
    the gateway resets boards for which a reset is configured.
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

    `label` names the user, for clients that find the port in use meanwhile.
    """

    images: tuple[FlashImage, ...]
    options: FlashOptions = FlashOptions()
    label: str = ""

    @property
    def total_bytes(self) -> int:
        """The size of all images together."""
        return sum(image.size for image in self.images)

    def to_json(self) -> str:
        """Return the plan as one line of JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)})


def plan_from_json(text: str | bytes) -> FlashPlan:
    """Read and check a plan. Raises WrongInputError."""
    try:
        content = parse_json(text)
    except ValueError as error:
        raise WrongInputError(f"the plan is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WrongInputError(f'invalid plan: expected a JSON object with "format": {FORMAT}')
    listed = content.get("images")
    if not isinstance(listed, list):
        raise WrongInputError("invalid plan: expected a list of images")
    images = tuple(_image(index, entry) for index, entry in enumerate(listed))
    if any(image.offset > following.offset for image, following in pairwise(images)):
        raise WrongInputError("images in wrong order: list and send them by ascending offsets")
    options = _options(content.get("options", {}))
    return checked(FlashPlan(images, options, _printable(content.get("label", ""))))


def checked(plan: FlashPlan) -> FlashPlan:
    """Return the plan with its images sorted. Raises WrongInputError if it can't be carried out."""
    if not plan.images:
        raise WrongInputError("no images: expected at least one")
    if len(plan.images) > MAX_IMAGES:
        raise WrongInputError(f"too many images ({len(plan.images)}): expected {MAX_IMAGES}")
    images = sorted(plan.images, key=lambda image: image.offset)
    for image in images:
        if not image.size:
            raise WrongInputError(f"{image.name} is empty")
        if image.end > _END_OF_FLASH or image.offset < 0:
            raise WrongInputError(f"{image.name} at {image.offset:#x} is outside of any flash")
    for image, following in pairwise(images):
        if following.offset < image.end:
            raise WrongInputError(
                f"{image.name} ({image.offset:#x} to {image.end - 1:#x}) overlaps"
                f" {following.name} at {following.offset:#x}"
            )
    if plan.total_bytes > MAX_BYTES:
        raise WrongInputError(
            f"images too large ({plan.total_bytes} bytes): expected at most {MAX_BYTES}"
        )
    _check_options(plan.options)
    return replace(plan, images=tuple(images))


def _image(index: int, entry: Any) -> FlashImage:
    if not isinstance(entry, dict):
        raise WrongInputError(f"invalid images[{index}]: expected a JSON object")
    offset, size, sha256 = entry.get("offset"), entry.get("size"), entry.get("sha256")
    if type(offset) is not int or type(size) is not int or size < 0:
        raise WrongInputError(f"invalid images[{index}]: expected whole numbers offset and size")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise WrongInputError(
            f"invalid images[{index}]: expected sha256, 64 hex digits in lower case"
        )
    return FlashImage(offset, size, sha256, _printable(entry.get("name")) or f"{offset:#x}")


def _options(values: Any) -> FlashOptions:
    if not isinstance(values, dict):
        raise WrongInputError("invalid options: expected a JSON object")
    if unknown := set(values) - {field.name for field in fields(FlashOptions)}:
        raise WrongInputError(f"unknown options: {', '.join(sorted(map(_printable, unknown)))}")
    return FlashOptions(**values)


def _check_options(options: FlashOptions) -> None:
    for name, pattern in _WORDS.items():
        value = getattr(options, name)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _invalid(name, value, "a value that esptool knows")
    if type(options.baudrate) is not int or not 300 <= options.baudrate <= 10_000_000:
        raise _invalid("baudrate", options.baudrate, "300 to 10000000")
    for name in ("erase_all", "stub", "force"):
        if type(getattr(options, name)) is not bool:
            raise _invalid(name, getattr(options, name), "true or false")
    if options.compress is not None and type(options.compress) is not bool:
        raise _invalid("compress", options.compress, "true, false or null")


def _invalid(name: str, value: object, expected: str) -> WrongInputError:
    return WrongInputError(f"invalid {name} {_printable(str(value))!r}: expected {expected}")


def _printable(text: object) -> str:
    """Make text from the network fit for a log line and a terminal."""
    shown = text if isinstance(text, str) else ""
    return "".join(c if c.isprintable() else "?" for c in shown[:_MAX_NAME_CHARACTERS])
