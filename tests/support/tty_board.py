"""A board that is only a pty, the clock that a test holds, and waiting for what follows.

The test plays the board: it says when the board is plugged in, reads and writes as the board
would, and sees what is done to its lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import termios
import threading
import time
import tty
from array import array
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Self

from gateway import clock
from gateway.protocol.board_kinds import UsbIds
from gateway.protocol.reset import Lines
from gateway.serialport.tty import LineSetter, TtyLocation
from tests.support.clock import ControlledClock
from tests.support.resolver import Resolver
from tests.support.threads_at_work import ThreadsAtWork
from tests.support.tty_calls import TtyCalls

#: Far above what anything takes that a test waits for.
LIMIT_S = 150.0
#: So many turns of the loop take what is due, a timeout for instance, to its end.
_TURNS = 12
#: A pause between two looks, in which control threads get their turn.
_POLL_S = 0.0002


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until a condition holds; works with a stopped LoopClock too."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for has not happened"
        await turns(1)


async def turns(count: int) -> None:
    """Let the loop and the control threads do what they have to do now."""
    for _ in range(count):
        await asyncio.sleep(0)
        threading.Event().wait(_POLL_S)


class LoopClock:
    """Holds the test's clock: inside the `with` it moves by `advance` only.

    Whatever the gateway's threads have to do is done before it moves and after: on a busy machine,
    the limits of calls that are made there would be over before the thread has had its turn. A
    board or a resolver whose `answers` is not set is not waited for.
    """

    def __init__(self) -> None:
        installed = clock.installed()
        assert isinstance(installed, ControlledClock)
        self._clock = installed

    @property
    def now_s(self) -> float:
        """The time that it shows."""
        return self._clock.time()

    async def advance(self, seconds: float) -> None:
        """Let what is due now happen, then let time pass, and what is due then happen."""
        await _threads_rest()
        self._clock.advance(seconds)
        await _threads_rest()

    def jump(self, seconds: float) -> None:
        """Let time pass; what is due then has not happened yet."""
        self._clock.advance(seconds)

    def __enter__(self) -> Self:
        self._clock.hold()
        return self

    def __exit__(self, *_: object) -> None:
        self._clock.release()


async def _threads_rest() -> None:
    """Let the loop turn, and again after what the gateway's threads have done meanwhile."""
    await turns(_TURNS)
    at_work = ThreadsAtWork(_hangs)
    while at_work:
        await turns(_TURNS)


def _hangs(frame: FrameType) -> bool:
    """Whether this is a call on a board, or on a resolver, that is not to answer."""
    is_set = True
    if frame.f_code in {PtyBoard.answer.__code__, Resolver.getaddrinfo.__code__}:
        is_set = frame.f_locals["self"].answers.is_set()
    elif frame.f_code is TtyCalls.wait_at.__code__:
        is_set = frame.f_locals["gate"].is_set()
    return not is_set


class RecordedLines:
    """Sets the lines of a PtyBoard."""

    def __init__(self, board: PtyBoard) -> None:
        self._board = board

    def set_lines(self, dtr: bool, rts: bool) -> None:
        self._board.answer()
        if self._board.lines_error is not None:
            raise self._board.lines_error
        self._board.lines.append(Lines(dtr=dtr, rts=rts))
        self._board.rates.append(self._board.baudrate)

    def close(self) -> None:
        pass


class PtyBoard:
    """A board on a pty; a context manager that unplugs it in the end.

    `lines` is every state that was put on its lines, opening included (both on, both off), and
    `rates` the baud rate at each of these moments.
    `received` is what it has read: nothing before `start_reading`. While `answers` is not set,
    calls on its lines hang, as an ioctl on a device that has just vanished does; `open_error` and
    `lines_error` are what they fail with.
    """

    def __init__(
        self, folder: Path, *, plugged_in: bool = True, usb_ids: UsbIds | None = None
    ) -> None:
        self.path = folder / "tty"
        self.location = TtyLocation(str(self.path), self._open_lines, lambda: usb_ids)
        self.lines: list[Lines] = []
        self.rates: list[int] = []
        self.received = bytearray()
        self.answers = threading.Event()
        self.answers.set()
        self.tries = 0  # to open it
        self.open_error: OSError | None = None
        self.lines_error: OSError | None = None
        self._fds: tuple[int, int] | None = None
        if plugged_in:
            self.plug()

    def answer(self) -> None:
        """Hang while `answers` is not set."""
        self.answers.wait()

    def plug(self) -> None:
        """The tty appears."""
        # The slave is kept open too: without anybody there, reading the master fails.
        self._fds = pty.openpty()
        tty.setraw(self._fds[1])
        os.set_blocking(self._fds[0], False)
        self.path.symlink_to(os.ttyname(self._fds[1]))

    def unplug(self) -> None:
        """The tty is hung up and goes."""
        if self._fds is not None:
            self.stop_reading()
            self.path.unlink()
            for fd in self._fds:
                os.close(fd)
            self._fds = None

    def start_reading(self, got: Callable[[bytes], None] = lambda _: None) -> None:
        """Read whatever comes; `got` is told of it too."""
        master = self._master

        def read() -> None:
            data = os.read(master, 65536)
            self.received += data
            got(data)

        asyncio.get_running_loop().add_reader(master, read)

    def read_some(self, most_bytes: int) -> None:
        """Read once, if anything has come."""
        with contextlib.suppress(BlockingIOError):
            self.received += os.read(self._master, most_bytes)

    def stop_reading(self) -> None:
        """Read no more."""
        asyncio.get_running_loop().remove_reader(self._master)

    def start_echoing(self) -> None:
        """Send back whatever comes; a board that can't send reads no more."""
        waiting = bytearray()
        loop = asyncio.get_running_loop()

        def echo(data: bytes) -> None:
            waiting.extend(data)
            self.stop_reading()
            send()

        def send() -> None:
            del waiting[: self.write_some(bytes(waiting))]
            if waiting:
                loop.add_writer(self._master, send)
            else:
                loop.remove_writer(self._master)
                self.start_reading(echo)

        self.start_reading(echo)

    def write_some(self, data: bytes) -> int:
        """Send as much as the gateway's side of the tty takes now; return how much that was."""
        try:
            return os.write(self._master, data)
        except BlockingIOError:
            return 0

    async def write(self, data: bytes) -> None:
        """Send bytes, and wait until the gateway's side of the tty has taken them."""
        position = 0
        while position < len(data):
            taken = self.write_some(data[position : position + 65536])
            position += taken
            await (asyncio.sleep(0) if taken else turns(1))

    @property
    def baudrate(self) -> int:
        """What the tty is set to; 0 while it is not plugged in."""
        return _speed_of(self._fds[1]) if self._fds is not None else 0

    @property
    def unread_bytes(self) -> int:
        """What the board has sent and the gateway has not read."""
        assert self._fds is not None
        count = array("i", [0])
        fcntl.ioctl(self._fds[1], termios.FIONREAD, count)
        return count[0]

    def descriptors(self) -> int:
        """How many of this process's descriptors are the tty."""
        assert self._fds is not None
        tty_stat = os.fstat(self._fds[1])
        return sum(
            1
            for link in Path("/proc/self/fd").iterdir()
            if (seen := _stat_or_none(link)) is not None and os.path.samestat(seen, tty_stat)
        )

    @property
    def _master(self) -> int:
        assert self._fds is not None
        return self._fds[0]

    def _open_lines(self) -> LineSetter:
        self.tries += 1
        self.answer()
        if self.open_error is not None:
            raise self.open_error
        return RecordedLines(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.set()
        self.unplug()


def _speed_of(fd: int) -> int:
    """c_ospeed of struct termios2, by TCGETS2."""
    termios2 = bytearray(44)
    fcntl.ioctl(fd, 0x802C542A, termios2)
    return int.from_bytes(termios2[40:44], "little")


def _stat_or_none(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # closed meanwhile
        return None
