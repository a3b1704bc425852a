"""Tells when a program closes a tty, without opening it: inotify on its node.

Opening would raise DTR and RTS, in the middle of what the program does to the board.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

from gateway.errors import DeviceError

#: linux/inotify.h. A node that is removed, as at a replug, ends the watch too.
_IN_CLOSE_WRITE, _IN_CLOSE_NOWRITE, _IN_DELETE_SELF = 0x8, 0x10, 0x400
_EVENTS = _IN_CLOSE_WRITE | _IN_CLOSE_NOWRITE | _IN_DELETE_SELF

#: More than what the kernel says of one node: events that are alike are joined.
_READ_BYTES = 4096


class DeviceHeldError(DeviceError):
    """Another program has locked the device.

    `watch` tells when it may be free; None where it can't be watched.
    """

    def __init__(self, watch: CloseWatch | None = None) -> None:
        super().__init__("in use by another program")
        self.watch = watch


class CloseWatch:
    """Watches one node from its making to `close`.

    `path` may be a link; what it leads to is watched. Raises OSError, also where the user has no
    watch left (fs.inotify.max_user_instances). May be made on another thread than it is used on:
    looking up a path may block.
    """

    def __init__(self, path: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        if libc.inotify_add_watch(self._fd, os.fsencode(path), _EVENTS) < 0:
            error = ctypes.get_errno()
            self.close()
            raise OSError(error, "inotify_add_watch", path)
        self.path = path

    def fileno(self) -> int:
        """What is readable when `has_news`."""
        return self._fd

    def has_news(self) -> bool:
        """Whether the tty was closed by a program, or is gone, since this was asked last."""
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._fd, _READ_BYTES))
        return False

    def close(self) -> None:
        """Watch no more; may be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        # One that was made on a thread and whose result was never taken.
        self.close()
