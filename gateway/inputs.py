"""Read files and JSON that others have written: bounded, without waiting, one line per error."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

#: Why a file with a secret in it is rejected, and what is expected instead. Its group may read it:
#: several services share a key in this way.
OPEN_TO_OTHERS: Final = "all users of this host may read or write it"
PRIVATE: Final = "a file for its owner and group only (chmod o= FILE)"

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)


class NotRegularError(OSError):
    """The path names a directory, a FIFO, a device or a socket."""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file, and its `st_mode`."""

    data: bytes
    mode: int

    @property
    def is_open_to_others(self) -> bool:
        """Whether users other than its owner and its group may read or write it."""
        return bool(self.mode & (stat.S_IROTH | stat.S_IWOTH))


def read_regular_file(path: str | Path, max_bytes: int) -> Content:
    """Read at most `max_bytes` + 1 bytes, so that a longer file is noticed.

    Blocks for the disk only. Raises NotRegularError without opening anything else than a regular
    file, since opening a tty moves its lines and opening a watchdog starts it; OSError when the
    file can't be read, ValueError for a NUL in the path.
    """
    _check_kind(os.stat(path))  # noqa: PTH116 - Path.stat raises other errors for a NUL
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        status = os.fstat(descriptor)
        _check_kind(status)  # it may have been replaced since
        data = bytearray()
        # Some files in /proc return less than asked for before their end.
        while len(data) <= max_bytes and (piece := file.read(max_bytes + 1 - len(data))):
            data += piece
        if piece is None:
            raise BlockingIOError(0, "it has no data yet")
        return Content(bytes(data), status.st_mode)


def _check_kind(status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kind = next((name for test, name in _KINDS if test(status.st_mode)), "something else")
    raise NotRegularError(0, f"it is {kind}")


def parse_json(text: bytes | str) -> Any:
    """Return the value of JSON from the network; ValueError, in one line, for everything else.

    Stricter than `json.loads`: no NaN or Infinity, no UTF-16, no half of a surrogate pair (which no
    file name, log line or argument of a process can have). The caller bounds the length.
    """
    try:
        decoded = text if isinstance(text, str) else text.decode()
        value = json.loads(decoded, parse_constant=_reject_constant)
        # Only an escape can be half of a pair. This raises UnicodeEncodeError for one.
        if "\\u" in decoded:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
