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

SCHEME = "sim"

#: Boards between a bare chip and one with a large capacitor at EN.
EN_RISE_RANGE_MS = (0.1, 100.0)

#: Longer than a day is as good as none, shorter than 10 ms fills a 115200 baud line.
HEARTBEAT_RANGE_S = (0.01, 86400.0)

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
    are put (None: in a private temporary one; `dir` in the URL).
    """

    chip: str
    en_rise_ms: float = 1.0
    name: str = "board"
    folder: Path | None = None
    heartbeat_s: float = 1.0
    flash_mb: int = 4

    def __str__(self) -> str:
        url = (
            f"{SCHEME}://{self.chip}?en_rise_ms={self.en_rise_ms}&name={self.name}"
            f"&heartbeat_s={self.heartbeat_s}&flash_mb={self.flash_mb}"
        )
        return url if self.folder is None else f"{url}&dir={quote(str(self.folder))}"


def parse_url(url: str) -> BoardUrl:
    """Read a `sim://CHIP?KEY=VALUE&...` URL.

    ValueError with one line for a person: what was found and what is accepted.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(f"{url!r} is no simulated board, accepted: sim://CHIP?KEY=VALUE&...")
    chip, query = match["chip"], match["query"] or ""
    if chip not in CHIPS:
        raise ValueError(f"chip {chip!r} is not known, accepted: {', '.join(CHIPS)}")
    values: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True, separator="&"):
        if key not in _PARAMETERS:
            raise ValueError(f"parameter {key!r} is not known, accepted: {', '.join(_PARAMETERS)}")
        field, read = _PARAMETERS[key]
        if field in values:
            raise ValueError(f"parameter {key!r} is given twice, accepted: once")
        values[field] = read(key, text)
    return BoardUrl(chip, **values)


def _refuse(key: str, text: str, accepted: str) -> ValueError:
    return ValueError(f"{key}={text!r} is not possible, accepted: {accepted}")


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
}
