"""The two ends of a pty in one process, for tests of what opens and drives a tty.

Reading at the far end waits for what is to come; nothing else here waits or runs by itself.
"""

from __future__ import annotations

import os
import select
import termios
from typing import Any, Self

LIMIT_S = 20.0


class BarePty:
    """A pty whose far end is the test, fresh as a tty that nobody has set to raw.

    A context manager. The near end is kept open too: without it the far end could not be read.
    """

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.path = os.ttyname(self.slave)
        os.set_blocking(self.master, False)

    def send(self, data: bytes) -> None:
        """Send, and wait until the other end could read it."""
        os.write(self.master, data)
        assert select.select([self.slave], [], [], LIMIT_S)[0]

    def received(self, size: int) -> bytes:
        """The next bytes that were sent to the board, waited for."""
        data = b""
        while len(data) < size:
            assert select.select([self.master], [], [], LIMIT_S)[0]
            data += os.read(self.master, size - len(data))
        return data

    def received_so_far(self) -> bytes:
        """What can be read without waiting."""
        data = b""
        while self.has_received_more():
            data += os.read(self.master, 65536)
        return data

    def has_received_more(self) -> bool:
        return bool(select.select([self.master], [], [], 0)[0])

    def flags(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def hang_up(self) -> None:
        os.close(self.master)
        self.master = -1

    def close(self) -> None:
        if self.master >= 0:
            os.close(self.master)
        os.close(self.slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
