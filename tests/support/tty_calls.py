"""What this process does to the ttys of boards: each call that changes one, recorded with its time.

A pty has no modem lines, and its calls neither hang nor fail as those of a USB device do that has
just vanished. Inside its `with`, TtyCalls stands between this process and the kernel for the ttys
that it watches: it keeps DTR and RTS, says what the board does with its own lines, and makes calls
hang or fail. All other descriptors, and what a test opens with OtherProgram, are the kernel's.
"""

from __future__ import annotations

import array
import fcntl
import os
import struct
import termios
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import pytest

from gateway import clock
from gateway.protocol.reset import BOTH, Lines

_TCGETS2, _TCSETS2 = 0x802C542A, 0x402C542B
_TERMIOS2_BYTES, _SPEED_OFFSET = 44, 40
_TIOCSBRK, _TIOCCBRK = 0x5427, 0x5428
_TIOCGICOUNT = 0x545D
_BITS = {termios.CS5: 5, termios.CS6: 6, termios.CS7: 7, termios.CS8: 8}
_QUEUES = {termios.TCIFLUSH: "input", termios.TCOFLUSH: "output", termios.TCIOFLUSH: "both"}

_really_open = os.open


@dataclass(frozen=True, slots=True)
class TtyCall:
    """One call: `value` is the lines, the settings, the bytes written, or the queue flushed."""

    at_s: float
    name: str
    value: Any = None

    def __str__(self) -> str:
        match self.value:
            case None:
                return self.name
            case Lines(dtr=dtr, rts=rts):
                return f"{self.name} DTR {'on' if dtr else 'off'}, RTS {'on' if rts else 'off'}"
            case bool():
                return f"{self.name} {'on' if self.value else 'off'}"
            case bytes():
                return f"{self.name} {self.value!r}"
        return f"{self.name} {self.value}"


class TtyCalls:
    """The calls on watched ttys; a context manager, within which they are recorded.

    `log` has, oldest first: "open", "exclusive", "settings" (value: "9600 8N1"), "lines" (Lines),
    "break" (bool), "flush" ("input", "output"), "drain", "write" (bytes) and "close". Opening
    raises both lines, as the kernel does. What changes nothing is not recorded: for `hang`, `fail`
    and `on_call`, "read" is a read, "states" is TIOCMGET, "unsent" is TIOCOUTQ where
    `unsent_bytes` is given; `reads` has the sizes of what was read.
    """

    def __init__(self) -> None:
        self.log: list[TtyCall] = []
        self.lines: list[Lines] = []  # every state of DTR and RTS, opening included
        self.reads: list[int] = []
        self.tries = 0  # to open a watched tty, whether it is there or not
        self.modem_bits = 0  # the board's lines, TIOCM_CTS for instance
        self.counters: tuple[int, ...] | None = None  # TIOCGICOUNT; None: the driver has none
        self.unsent_bytes: int | None = None  # TIOCOUTQ; None: what the pty says
        self.room: int | None = None  # how many bytes more the driver takes; None: as the pty
        self.has_lines = True
        self.break_is_supported = True
        self.on_call: Callable[[str], None] = lambda _: None  # in the calling thread, before it
        self._lines_now = BOTH
        self._paths: set[str] = set()
        self.descriptors: set[int] = set()  # of watched ttys that are open
        self._errors: dict[str, Exception] = {}
        self._gates: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self._patch = pytest.MonkeyPatch()

    # --- what tests say

    def watch(self, tty_path: str) -> None:
        """Record what is done to this tty, wherever it is opened from now on."""
        self._paths |= {tty_path, os.path.realpath(tty_path)}

    def fail(self, name: str, error: Exception) -> None:
        """Let calls of that name fail from now on."""
        self._errors[name] = error

    def mend(self) -> None:
        """Let no call fail any longer."""
        self._errors.clear()

    def hang(self, *names: str) -> None:
        """Let calls of these names hang in the kernel until `answer`."""
        for name in names:
            self._gates.setdefault(name, threading.Event())

    def answer(self) -> None:
        """Let calls that hang return, and others hang no longer."""
        gates, self._gates = self._gates, {}
        for gate in gates.values():
            gate.set()

    def named(self, *names: str) -> list[TtyCall]:
        """The recorded calls of these names."""
        return [call for call in self.log if call.name in names]

    def since(self, n_calls: int, *names: str) -> list[tuple[str, Any]]:
        """Names and values of the calls behind the first `n_calls`, of these names if any given."""
        return [
            (call.name, call.value)
            for call in self.log[n_calls:]
            if not names or call.name in names
        ]

    def forget(self) -> None:
        """Begin with empty records."""
        self.log.clear()
        self.lines.clear()

    # --- what stands in for the kernel

    def wait_at(self, gate: threading.Event) -> None:
        """Hang: `gate` opens with `answer`."""
        gate.wait()

    def _enter(self, name: str) -> None:
        """What comes before each call: it may hang, and it may fail."""
        self.on_call(name)
        gate = self._gates.get(name)
        if gate is not None:
            self.wait_at(gate)
        if (error := self._errors.get(name)) is not None:
            raise error

    def _record(self, name: str, value: object = None) -> None:
        with self._lock:
            self.log.append(TtyCall(clock.time(), name, value))
            if isinstance(value, Lines):
                self._lines_now = value
                self.lines.append(value)

    def _open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if not isinstance(path, str) or os.path.realpath(path) not in self._paths:
            return _really_open(path, flags, *args, **kwargs)
        self.tries += 1
        self._enter("open")
        descriptor = _really_open(path, flags, *args, **kwargs)
        with self._lock:
            self.descriptors.add(descriptor)
            self.log.append(TtyCall(clock.time(), "open"))
            if self.has_lines:
                self._lines_now = BOTH
                self.lines.append(BOTH)
        return descriptor

    def _close(self, really: Callable[[int], None], descriptor: int) -> None:
        if descriptor not in self.descriptors:
            really(descriptor)
            return
        self._enter("close")
        with self._lock:
            self.descriptors.discard(descriptor)
        self._record("close")
        really(descriptor)

    def _write(self, really: Callable[..., int], descriptor: int, data: Any) -> int:
        if descriptor not in self.descriptors:
            return really(descriptor, data)
        self._enter("write")
        if self.room is not None:
            data = data[: self.room]
            if not data:
                raise BlockingIOError
        copied = bytes(data)
        sent = really(descriptor, data)
        if self.room is not None:
            self.room -= sent
        self._record("write", copied[:sent])
        return sent

    def _read(self, really: Callable[[int, int], bytes], descriptor: int, size: int) -> bytes:
        if descriptor not in self.descriptors:
            return really(descriptor, size)
        self._enter("read")
        data = really(descriptor, size)
        self.reads.append(len(data))
        return data

    def _ioctl(
        self, really: Callable[..., Any], descriptor: int, request: int, arg: Any = 0, *rest: Any
    ) -> Any:
        if descriptor not in self.descriptors:
            return really(descriptor, request, arg, *rest)
        match request:
            case termios.TIOCMGET if self.has_lines:
                self._enter("states")
                return _answered(arg, "I", self._all_modem_bits())
            case termios.TIOCMSET if self.has_lines:
                self._enter("lines")
                (bits,) = struct.unpack("I", bytes(arg))
                lines = Lines(
                    dtr=bool(bits & termios.TIOCM_DTR), rts=bool(bits & termios.TIOCM_RTS)
                )
                self._record("lines", lines)
                return arg
            case termios.TIOCEXCL:
                self._enter("exclusive")
                self._record("exclusive")
            case _ if request in {_TIOCSBRK, _TIOCCBRK} and self.break_is_supported:
                self._enter("break")
                self._record("break", request == _TIOCSBRK)
                return 0
            case _ if request == _TIOCGICOUNT and self.counters is not None:
                return _answered(arg, "20i", *self.counters, *[0] * (20 - len(self.counters)))
            case termios.TIOCOUTQ if self.unsent_bytes is not None:
                self._enter("unsent")
                return _answered(arg, "i", self.unsent_bytes)
            case _ if request == _TCSETS2:
                return self._set(lambda: really(descriptor, request, arg, *rest), descriptor)
        return really(descriptor, request, arg, *rest)

    def _all_modem_bits(self) -> int:
        lines = self._lines_now
        bits = self.modem_bits
        bits |= termios.TIOCM_DTR if lines.dtr else 0
        return bits | (termios.TIOCM_RTS if lines.rts else 0)

    def _set(self, change: Callable[[], Any], descriptor: int) -> Any:
        self._enter("settings")
        result = change()
        self._record("settings", _settings_of(descriptor))
        return result

    def __enter__(self) -> Self:
        os_close, os_read, os_write, ioctl = os.close, os.read, os.write, fcntl.ioctl
        tcsetattr, tcflush, tcdrain = termios.tcsetattr, termios.tcflush, termios.tcdrain

        def set_attributes(descriptor: int, when: int, attributes: Any) -> None:
            if descriptor in self.descriptors:
                self._set(lambda: tcsetattr(descriptor, when, attributes), descriptor)
            else:
                tcsetattr(descriptor, when, attributes)

        def flush(descriptor: int, queue: int) -> None:
            if descriptor in self.descriptors:
                self._enter("flush")
                self._record("flush", _QUEUES[queue])
                if queue != termios.TCIFLUSH:
                    self.unsent_bytes = None
            tcflush(descriptor, queue)

        def drain(descriptor: int) -> None:
            if descriptor in self.descriptors:
                self._enter("drain")
                self._record("drain")
            tcdrain(descriptor)

        self._patch.setattr(os, "open", self._open)
        self._patch.setattr(os, "close", lambda fd: self._close(os_close, fd))
        self._patch.setattr(os, "read", lambda fd, size: self._read(os_read, fd, size))
        self._patch.setattr(os, "write", lambda fd, data: self._write(os_write, fd, data))
        self._patch.setattr(fcntl, "ioctl", lambda *args: self._ioctl(ioctl, *args))
        self._patch.setattr(termios, "tcsetattr", set_attributes)
        self._patch.setattr(termios, "tcflush", flush)
        self._patch.setattr(termios, "tcdrain", drain)
        return self

    def __exit__(self, *_: object) -> None:
        self.answer()
        self._patch.undo()


class OtherProgram:
    """Another program that has a tty open, and has locked it as pyserial's `exclusive=True` does.

    A context manager that closes it in the end. BlockingIOError where a program has locked it.
    """

    def __init__(self, tty_path: str | os.PathLike[str], *, locks: bool = True) -> None:
        flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        self.descriptor = _really_open(tty_path, flags)
        try:
            if locks:
                self.lock()
        except BlockingIOError:
            self.close()
            raise

    def lock(self) -> None:
        """Keep others out."""
        fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unlock(self) -> None:
        """Let others in, and go on."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the tty; twice is fine."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_free(tty_path: str | os.PathLike[str]) -> bool:
    """Whether another program could open and lock the tty."""
    try:
        with OtherProgram(tty_path):
            return True
    except BlockingIOError:
        return False


def _answered(arg: Any, layout: str, *numbers: int) -> Any:
    """Give numbers to the caller of an ioctl, in its buffer or as bytes."""
    if isinstance(arg, array.array):
        arg[0] = numbers[0]
        return 0
    if isinstance(arg, bytearray):
        struct.pack_into(layout, arg, 0, *numbers)
        return 0
    return struct.pack(layout, *numbers)


def _settings_of(descriptor: int) -> str:
    """What a tty is set to, as in `115200 8N1`."""
    buffer = bytearray(_TERMIOS2_BYTES)
    fcntl.ioctl(descriptor, _TCGETS2, buffer)
    (speed,) = struct.unpack_from("I", buffer, _SPEED_OFFSET)
    iflag, _, cflag, *_ = termios.tcgetattr(descriptor)
    parity = "N" if not cflag & termios.PARENB else "O" if cflag & termios.PARODD else "E"
    stopbits = 2 if cflag & termios.CSTOPB else 1
    flow = " RTS/CTS" if cflag & termios.CRTSCTS else " XON/XOFF" if iflag & termios.IXON else ""
    return f"{speed} {_BITS[cflag & termios.CSIZE]}{parity}{stopbits}{flow}"
