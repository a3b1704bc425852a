"""A pty behind which a MicroPython prompt is played, as far as mpremote needs it.

It knows the raw REPL and runs nothing: each piece of code is answered with what it was.
"""

from __future__ import annotations

import os
import pty
import re
import select
import threading
import tty
from types import TracebackType
from typing import Self

_RAW_PROMPT = b"raw REPL; CTRL-B to exit\r\n>"

#: Ctrl-E A Ctrl-A asks for raw-paste mode, Ctrl-A enters the raw REPL, Ctrl-B leaves it, Ctrl-D
#: runs what was sent (MicroPython's documentation, "Raw mode and raw-paste mode").
_KEYS = re.compile(rb"\x05A\x01|[\x01\x02\x04]")


class MicroPythonBoard:
    """A context manager; `tty_path` is what a gateway opens."""

    def __enter__(self) -> Self:
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self.tty_path = os.ttyname(self._slave)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._play, name="MicroPython")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._stop_write)
        self._thread.join()
        for fd in (self._stop_read, self._master, self._slave):
            os.close(fd)

    def _play(self) -> None:
        received = b""
        while True:
            readable, _, _ = select.select([self._master, self._stop_read], [], [])
            if self._stop_read in readable:
                return
            received += os.read(self._master, 4096)
            while key := _KEYS.search(received):
                os.write(self._master, _answer(key.group(), received[: key.start()]))
                received = received[key.end() :]


def _answer(key: bytes, text: bytes) -> bytes:
    match key:
        case b"\x01":
            return _RAW_PROMPT
        case b"\x05A\x01":
            return b"R\0"  # raw-paste mode is not supported
        case b"\x04":
            return b"OK" + text + b"\r\n\x04\x04>"
    return b"\r\n>>> "
