"""A tty that sends back whatever is written to it, played by a thread of the test's process."""

from __future__ import annotations

import os
import pty
import select
import threading
import tty
from types import TracebackType
from typing import Self


class EchoingTty:
    """A context manager; `path` is the tty."""

    def __init__(self) -> None:
        self._master, self._slave = pty.openpty()
        # Until a program opens the tty and sets it to raw, the kernel would echo as well.
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self._end_read, self._end_write = os.pipe()
        self._thread = threading.Thread(target=self._echo, name="echoing tty")

    def _echo(self) -> None:
        while self._master in select.select([self._master, self._end_read], [], [])[0]:
            data = os.read(self._master, 65536)
            while data and select.select([self._end_read], [self._master], [])[1]:
                data = data[os.write(self._master, data) :]

    def __enter__(self) -> Self:
        os.set_blocking(self._master, False)
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._end_write)
        self._thread.join()
        for fd in (self._end_read, self._master, self._slave):
            os.close(fd)
