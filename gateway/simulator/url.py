"""`sim://` URLs: which board is simulated, and how.

Imported by the configuration's checks as well, so it stays light: no asyncio, no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from gateway.simulator.chips import CHIPS
from gateway.simulator.usb import UsbKind

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
    are put (None: in a private temporary one; `dir` in the URL). `usb` is how it hangs on USB
    (None: as boards with this chip usually do, see `usb_kind`), `reenumerates` whether a reset
    makes its USB device go and come back (None: as hardware does, see `attachment`),
    `reenumerate_s` how long it is gone, `renames` whether it comes back under another name.
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
        """How it hangs on USB."""
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


def _read_en_rise(key: str, text: str) -> float:
    low, high = EN_RISE_RANGE_MS
    if _NUMBER.fullmatch(text) and low <= float(text) <= high:
        return float(text)
    raise _refuse(key, text, f"{low} to {high} (ms)")


def _read_heartbeat(key: str, text: str) -> float:
    low, high = HEARTBEAT_RANGE_S
    if _NUMBER.fullmatch(text) and (float(text) == 0 or low <= float(text) <= high):
        return float(text)
    raise _refuse(key, text, f"0 (none) or {low} to {high} (seconds)")


def _read_flash(key: str, text: str) -> int:
    if text in map(str, FLASH_SIZES_MB):
        return int(text)
    raise _refuse(key, text, ", ".join(map(str, FLASH_SIZES_MB)))


def _read_usb(key: str, text: str) -> UsbKind:
    kinds = [kind.value for kind in UsbKind]
    if text in kinds:
        return UsbKind(text)
    raise _refuse(key, text, ", ".join(kinds))


def _read_reenumerate(key: str, text: str) -> float:
    low, high = REENUMERATE_RANGE_S
    if _NUMBER.fullmatch(text) and low <= float(text) <= high:
        return float(text)
    raise _refuse(key, text, f"{low} to {high} (seconds)")


def _read_switch(key: str, text: str) -> bool:
    if text in {"0", "1"}:
        return text == "1"
    raise _refuse(key, text, "0, 1")


def _read_name(key: str, text: str) -> str:
    if _NAME.fullmatch(text):
        return text
    raise _refuse(key, text, "1 to 64 letters, digits, '.', '_', '-', a letter or digit first")


def _read_folder(key: str, text: str) -> Path:
    if text and "\0" not in text:
        return Path(text)
    raise _refuse(key, text, "the path of a folder")


#: URL key -> field of `BoardUrl` and what reads its value.
_PARAMETERS: dict[str, tuple[str, Callable[[str, str], object]]] = {
    "en_rise_ms": ("en_rise_ms", _read_en_rise),
    "name": ("name", _read_name),
    "dir": ("folder", _read_folder),
    "heartbeat_s": ("heartbeat_s", _read_heartbeat),
    "flash_mb": ("flash_mb", _read_flash),
    "usb": ("usb", _read_usb),
    "reenumerates": ("reenumerates", _read_switch),
    "reenumerate_s": ("reenumerate_s", _read_reenumerate),
    "renames": ("renames", _read_switch),
}

#: What only a board that is its own USB device has.
_OF_NATIVE_USB = {"reenumerates", "reenumerate_s", "renames"}
