"""`sim://` URLs: which board is simulated, and how. Light, for the configuration imports it too."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from gateway.simulator.chips import CHIPS, UsbKind

SCHEME = "sim"

#: Boards between a bare chip and one with a large capacitor at EN.
EN_RISE_RANGE_MS = (0.1, 100.0)

#: Longer than a day is as good as none, shorter than 10 ms fills a 115200 baud line.
HEARTBEAT_RANGE_S = (0.01, 86400.0)

#: Hosts enumerate a device within some tenths of a second, behind hubs within a few seconds.
REENUMERATE_RANGE_S = (0.01, 60.0)

#: Sizes that flash chips have and esptool can tell from their id.
FLASH_SIZES_MB = (1, 2, 4, 8, 16)

_URL = re.compile(rf"{SCHEME}://(?P<chip>[^/?#]*)/?(\?(?P<query>[^#]*))?")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class BoardUrl:
    """A simulated board as its URL describes it; str() gives the URL back.

    `en_rise_ms` is how long EN takes from its release to the chip's threshold, `heartbeat_s` the
    time between two lines of the app's log (0: none), `folder` where tty, control socket and log
    are put (None: in a private temporary one; `dir` in the URL). `usb` is its connection to USB
    (None: that of most boards with this chip), `reenumerates` whether a reset makes its USB device
    go and come back (None: as hardware does, see `attachment`), `reenumerate_s` how long it is
    gone, `renames` whether it comes back under another name.
    """

    chip: str
    en_rise_ms: float = 1.0
    name: str = "board"
    folder: Path | None = None
    heartbeat_s: float = 1.0
    flash_mb: int = 4
    usb: UsbKind | None = None
    reenumerates: bool | None = None
    reenumerate_s: float = 0.4
    renames: bool = False

    @property
    def usb_kind(self) -> UsbKind:
        """How it is connected to USB."""
        return self.usb or CHIPS[self.chip].usb_kinds[0]

    def __str__(self) -> str:
        url = (
            f"{SCHEME}://{self.chip}?en_rise_ms={self.en_rise_ms}&name={self.name}"
            f"&heartbeat_s={self.heartbeat_s}&flash_mb={self.flash_mb}"
        )
        if self.usb is not None:
            url += f"&usb={self.usb.value}"
        if self.reenumerates is not None:
            url += f"&reenumerates={self.reenumerates:d}"
        if self.usb_kind is not UsbKind.BRIDGE:
            url += f"&reenumerate_s={self.reenumerate_s}&renames={self.renames:d}"
        return url if self.folder is None else f"{url}&dir={quote(str(self.folder))}"


def parse_url(url: str) -> BoardUrl:
    """Read a `sim://CHIP?KEY=VALUE&...` URL.

    ValueError with one line for a person: the cause, and what is expected.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"invalid URL {url!r}: expected sim://CHIP?KEY=VALUE&...")
    chip, query = match["chip"], match["query"] or ""
    if chip not in CHIPS:
        raise ValueError(f"unknown chip {chip!r}: expected {', '.join(CHIPS)}")
    values: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True, separator="&"):
        if key not in _PARAMETERS:
            raise ValueError(f"unknown parameter {key!r}: expected {', '.join(_PARAMETERS)}")
        field, read = _PARAMETERS[key]
        if field in values:
            raise ValueError(f"duplicate parameter {key!r}: expected it once")
        values[field] = read(key, text)
    board = BoardUrl(chip, **values)
    kinds = CHIPS[chip].usb_kinds
    if board.usb_kind not in kinds:
        expected = ", ".join(kind.value for kind in kinds)
        raise ValueError(f"invalid usb {board.usb_kind.value!r} of {chip}: expected {expected}")
    for key in _OF_NATIVE_USB & values.keys():
        if board.usb_kind is UsbKind.BRIDGE:
            raise ValueError(f"{key!r} with a bridge: expected it with usb=jtag, usb=otg")
    return board


def _refuse(key: str, text: str, expected: str) -> ValueError:
    return ValueError(f"invalid {key} {text!r}: expected {expected}")


_Reader = Callable[[str, str], object]


def _number(low: float, high: float, unit: str, *, zero: bool = False) -> _Reader:
    def read(key: str, text: str) -> float:
        if _NUMBER.fullmatch(text):
            number = float(text)
            if low <= number <= high or (zero and number == 0):
                return number
        raise _refuse(key, text, f"{'0 (none) or ' * zero}{low} to {high} ({unit})")

    return read


def _choice(values: dict[str, object]) -> _Reader:
    def read(key: str, text: str) -> object:
        if text in values:
            return values[text]
        raise _refuse(key, text, ", ".join(values))

    return read


def _read_name(key: str, text: str) -> str:
    if _NAME.fullmatch(text):
        return text
    raise _refuse(key, text, "1 to 64 letters, digits, '.', '_', '-', a letter or digit first")


def _read_folder(key: str, text: str) -> Path:
    if text and "\0" not in text:
        return Path(text)
    raise _refuse(key, text, "the path of a folder")


_read_switch = _choice({"0": False, "1": True})

#: URL key -> field of `BoardUrl` and what reads its value.
_PARAMETERS: dict[str, tuple[str, _Reader]] = {
    "en_rise_ms": ("en_rise_ms", _number(*EN_RISE_RANGE_MS, "ms")),
    "name": ("name", _read_name),
    "dir": ("folder", _read_folder),
    "heartbeat_s": ("heartbeat_s", _number(*HEARTBEAT_RANGE_S, "seconds", zero=True)),
    "flash_mb": ("flash_mb", _choice({str(size): size for size in FLASH_SIZES_MB})),
    "usb": ("usb", _choice({kind.value: kind for kind in UsbKind})),
    "reenumerates": ("reenumerates", _read_switch),
    "reenumerate_s": ("reenumerate_s", _number(*REENUMERATE_RANGE_S, "seconds")),
    "renames": ("renames", _read_switch),
}

#: Parameters of boards that are their own USB device.
_OF_NATIVE_USB = {"reenumerates", "reenumerate_s", "renames"}
