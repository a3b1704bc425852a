"""The tty of one board: the calls on it that may block, each as one function.

For the tty's thread: everything here but `stop_draining` may wait for the kernel. Bytes go
through `transport`, which also decides when these calls are made. Linux only.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import struct
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import serial

from gateway.errors import DeviceAbsentError, DeviceError, DevicePermissionError
from gateway.protocol.board_kinds import UsbIds
from gateway.protocol.reset import BOTH, IDLE, Lines
from gateway.protocol.rfc2217 import Modemstate
from gateway.protocol.serial_settings import FlowControl, Parity, SerialSettings, StopBits
from gateway.serialport.close_watch import CloseWatch, DeviceHeldError
from gateway.serialport.states import (
    NOT_SUPPORTED,
    PortStates,
    modemstate_of,
    read_counts,
    read_linestate,
)


class LineSetter(Protocol):
    """Sets DTR and RTS of a device that has no modem lines of its own (a simulated board)."""

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Set both at once; raises OSError when the device is gone."""

    def close(self) -> None:
        """Release it."""


@dataclass(frozen=True, slots=True)
class TtyLocation:
    """Where a device is: its /dev name, and what a simulated board says for the kernel.

    Both are called on the control thread at each open: `open_lines` for what sets the lines if no
    ioctl does, `usb_ids` for vendor and product id of what is no USB device (None: it is gone).
    """

    path: str
    open_lines: Callable[[], LineSetter] | None = None
    usb_ids: Callable[[], UsbIds | None] | None = None


SYSFS = Path("/sys")

#: A tty of a USB device hangs below its interface (cdc_acm) or below a port of that (usbserial).
_LEVELS = 3

#: How far a speed may be off and still be taken for the one that was asked for. UARTs divide a
#: clock and report what came of it; a receiver tolerates about 3 % in 10 bits.
_SPEED_TOLERANCE = 0.03

_TCGETS2 = 0x802C542A
_TERMIOS2_SPEED_OFFSET = 40  # c_ospeed in struct termios2
_TERMIOS2_BYTES = 44
_CMSPAR = 0o10000000000
_TIOCSBRK, _TIOCCBRK = 0x5427, 0x5428  # asm-generic/ioctls.h; termios does not know them

#: A pty carries bytes of 8 bits. The kernel refuses a parity and fewer data bits on it, and takes
#: stop bits and flow control: the far end can read both, and XON/XOFF stops the sender.
_PTY_SLAVE_MAJORS = range(136, 144)

#: What else TIOCMSET carries: serial8250 stops its interrupts when OUT2 goes.
_KEPT_BITS = 0x2000 | 0x4000 | 0x8000  # TIOCM_OUT1, TIOCM_OUT2, TIOCM_LOOP

_PARITIES = {
    Parity.NONE: serial.PARITY_NONE,
    Parity.ODD: serial.PARITY_ODD,
    Parity.EVEN: serial.PARITY_EVEN,
    Parity.MARK: serial.PARITY_MARK,
    Parity.SPACE: serial.PARITY_SPACE,
}
_STOPBITS = {
    StopBits.ONE: serial.STOPBITS_ONE,
    StopBits.ONE_POINT_FIVE: serial.STOPBITS_ONE_POINT_FIVE,
    StopBits.TWO: serial.STOPBITS_TWO,
}
_BYTESIZES = {termios.CS5: 5, termios.CS6: 6, termios.CS7: 7, termios.CS8: 8}


class Tty(serial.Serial):
    """pyserial's port, opened without disturbing its board.

    pyserial's own open() moves DTR and RTS one after the other, which resets an ESP board, and
    drops what the board has said already.
    """

    def __init__(
        self,
        location: TtyLocation,
        settings: SerialSettings,
        lines_at_rest: Callable[[UsbIds | None], Lines] = lambda _: IDLE,
    ) -> None:
        # An inter-byte time of less than 0.1 s makes pyserial set VMIN 1, VTIME 0: a read
        # without data then fails with EAGAIN and only a hang-up reads as empty.
        super().__init__(port=None, exclusive=True, inter_byte_timeout=0.01)
        self.port = location.path
        self._location = location
        self._lines_at_rest = lines_at_rest
        self.usb_ids: UsbIds | None = None
        self.descriptor = -1
        self._line_setter: LineSetter | None = None
        self._modem_bits = 0
        self.has_lines = True
        self.in_force = settings
        self._is_pty = False
        self._is_exclusive = False
        self._drain_no_more = threading.Event()

    def open(self) -> None:
        """Open the tty: raw, exclusive, lines where they rest, what the board has said kept.

        Raises DeviceError with a reason for a person; DeviceHeldError, with a watch on the tty,
        when another program has locked it.
        """
        flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self.fd = self.descriptor = os.open(self._location.path, flags)
        except OSError as error:
            raise _device_error(error) from error
        try:
            self._take_over()
        except DeviceHeldError as error:
            self._release()
            error.watch = _watch_for_close(self._location.path)
            raise
        except (OSError, termios.error, ValueError, OverflowError) as error:
            self._release()
            raise _device_error(error) from error
        self.is_open = True

    def _take_over(self) -> None:
        # First of all: where another program holds the port, nothing of it is touched.
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DeviceHeldError from error
        fcntl.ioctl(self.descriptor, termios.TIOCEXCL)
        self._is_exclusive = True
        self._is_pty = os.major(os.fstat(self.descriptor).st_rdev) in _PTY_SLAVE_MAJORS
        _make_raw(self.descriptor)
        self.usb_ids = self._read_usb_ids()
        self._rest_lines_after_open(self._lines_at_rest(self.usb_ids))
        self._store(self.in_force)
        self._configure(force_update=True)
        self.in_force = self._read_back(self.in_force)

    def _read_usb_ids(self) -> UsbIds | None:
        if self._location.usb_ids is not None:
            return self._location.usb_ids()
        return read_usb_ids(self._location.path)

    def _rest_lines_after_open(self, rest: Lines) -> None:
        """Set the lines where the board's shall rest; the kernel raised both at open.

        One step from (on, on): one line after the other would pass through the reset state.
        """
        if self._location.open_lines is not None:
            self._line_setter = self._location.open_lines()
            self.set_lines(BOTH)
        else:
            try:
                self._modem_bits = self._modem_get() & _KEPT_BITS
            except OSError as error:
                if error.errno not in NOT_SUPPORTED:
                    raise
                self.has_lines = False
        self.set_lines(rest)

    def close(self) -> None:
        """Close the tty; may wait for the driver. A vanished device is no error."""
        if not self.is_open:
            return
        self.is_open = False
        self._release()

    def _release(self) -> None:
        """Nothing fails here: what can't be undone is gone, and the descriptor always is."""
        if self._line_setter is not None:
            with contextlib.suppress(OSError):
                self._line_setter.close()
        if self._is_exclusive:
            # Both are undone by hand: a child between fork and exec has the descriptor too, which
            # would keep the lock and the mark, and a pty keeps the mark until its far end closes.
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.descriptor, termios.TIOCNXCL)
            with contextlib.suppress(OSError):
                fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        descriptor, self.descriptor, self.fd = self.descriptor, -1, None
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def set_lines(self, lines: Lines) -> None:
        """Set DTR and RTS with one TIOCMSET, so that no state between is seen by the board."""
        if self._line_setter is not None:
            self._line_setter.set_lines(lines.dtr, lines.rts)
        elif self.has_lines:
            bits = self._modem_bits
            bits |= termios.TIOCM_DTR if lines.dtr else 0
            bits |= termios.TIOCM_RTS if lines.rts else 0
            fcntl.ioctl(self.descriptor, termios.TIOCMSET, struct.pack("I", bits))

    def modemstate(self) -> Modemstate:
        """The board's side of the modem lines, without deltas."""
        if not self.has_lines or self._line_setter is not None:
            return Modemstate(0)
        return modemstate_of(self._modem_get())

    def states(self) -> PortStates:
        """The states of lines and buffers, and what has been counted, at this moment."""
        return PortStates(
            self.modemstate(), read_linestate(self.descriptor), read_counts(self.descriptor)
        )

    def apply(self, settings: SerialSettings) -> SerialSettings:
        """Set the tty to `settings`; return what is in force then.

        A value that the driver refuses, or sets to something else, leaves another in force.
        """
        before = self.in_force
        self._store(settings)
        try:
            self._configure()
        except (ValueError, OverflowError, termios.error, serial.SerialException) as error:
            if _errno_of(error) in _GONE:
                raise
            self._store(before)
            self._configure()
            settings = before
        self.in_force = self._read_back(settings)
        return self.in_force

    def set_break(self, on: bool) -> None:
        """Start or end a break condition, where the device can.

        Bytes that a board does not take are dropped for it: the kernel would wait for them
        without a limit.
        """
        if on and self._unsent_in_kernel():
            termios.tcflush(self.descriptor, termios.TCOFLUSH)
        try:
            fcntl.ioctl(self.descriptor, _TIOCSBRK if on else _TIOCCBRK)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise

    def purge(self, *, receive: bool, transmit: bool) -> None:
        """Discard what the kernel holds of the board's output, of what is to be sent, or both."""
        if transmit:
            self._drain_no_more.clear()
            termios.tcflush(self.descriptor, termios.TCOFLUSH)
        if receive:
            termios.tcflush(self.descriptor, termios.TCIFLUSH)

    def drain(self, limit_s: float) -> bool:
        """Wait until the kernel has sent what it was given, at most `limit_s`; True when it has.

        Polls: tcdrain can't be bounded, and a board that holds RTS back would hold it indefinitely.
        """
        deadline = time.monotonic() + limit_s
        pause_s = 0.0005
        while self._unsent_in_kernel():
            if self._drain_no_more.wait(pause_s) or time.monotonic() >= deadline:
                return False
            pause_s = min(pause_s * 2, 0.01)
        if self.in_force.flow_control is FlowControl.NONE:
            # The kernel's queue is empty; the driver still waits for the chip's FIFO.
            termios.tcdrain(self.descriptor)
        return True

    def stop_draining(self) -> None:
        """End a running drain, and those to come until a purge of what is to be sent.

        For any thread: a purge or a close does not wait for the bytes first.
        """
        self._drain_no_more.set()

    def _unsent_in_kernel(self) -> int:
        count = array.array("i", [0])
        fcntl.ioctl(self.descriptor, termios.TIOCOUTQ, count)
        return count[0]

    def _modem_get(self) -> int:
        bits = array.array("I", [0])
        fcntl.ioctl(self.descriptor, termios.TIOCMGET, bits)
        return bits[0]

    def _configure(self, *, force_update: bool = False) -> None:
        self._reconfigure_port(force_update)  # type: ignore[attr-defined] # not in the stubs

    def _store(self, settings: SerialSettings) -> None:
        """Put settings where pyserial's `_reconfigure_port` finds them, all at once.

        Its properties would write each to the tty by itself.
        """
        self._baudrate = settings.baudrate
        # A pty would refuse them together with all else that is set at the same time.
        if not self._is_pty:
            self._bytesize = settings.bytesize
            self._parity = _PARITIES[settings.parity]
        self._stopbits = _STOPBITS[settings.stopbits]
        self._rtscts = settings.flow_control is FlowControl.RTSCTS
        self._xonxoff = settings.flow_control is FlowControl.XONXOFF

    def _read_back(self, wanted: SerialSettings) -> SerialSettings:
        """What the driver has made of `wanted`."""
        speed = _output_speed(self.descriptor)
        if abs(speed - wanted.baudrate) <= wanted.baudrate * _SPEED_TOLERANCE:
            speed = wanted.baudrate
        iflag, _, cflag, _, _, _, _ = termios.tcgetattr(self.descriptor)
        bytesize, parity = _BYTESIZES[cflag & termios.CSIZE], _parity_of(cflag)
        if self._is_pty and self._location.open_lines is not None:
            # A simulated board comes with a simulated UART, which has any framing.
            bytesize, parity = wanted.bytesize, wanted.parity
        return SerialSettings(
            baudrate=speed,
            bytesize=bytesize,
            parity=parity,
            stopbits=_stopbits_of(cflag, bytesize),
            flow_control=_flow_control_of(iflag, cflag),
        )


def _watch_for_close(path: str) -> CloseWatch | None:
    try:
        return CloseWatch(path)
    except OSError:
        return None


#: What the kernel answers when a USB device has been unplugged under an open tty.
_GONE = frozenset({errno.EIO, errno.ENODEV, errno.ENXIO, errno.EBADF})


def _make_raw(fd: int) -> None:
    """Stop the line discipline from echoing and editing; keep the lines at close.

    A fresh tty echoes the board's output back to the board from the open until here, so this comes
    before all other settings. Echo that is still queued is dropped, where the driver can drop it:
    those of USB devices can't (docs/operations.md, "Local tools").
    """
    attributes = termios.tcgetattr(fd)
    has_echoed = attributes[3] & termios.ECHO
    attributes[0] &= ~(termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.ICRNL)
    attributes[0] &= ~(termios.INLCR | termios.IGNCR | termios.IGNBRK | termios.IXON)
    attributes[1] &= ~termios.OPOST
    attributes[2] = attributes[2] & ~termios.HUPCL | termios.CLOCAL | termios.CREAD
    attributes[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON)
    attributes[3] &= ~(termios.ISIG | termios.IEXTEN)
    termios.tcsetattr(fd, termios.TCSANOW, attributes)
    if has_echoed:  # on a tty that was raw, only bytes that were meant for the board are queued
        termios.tcflush(fd, termios.TCOFLUSH)


def _output_speed(fd: int) -> int:
    buffer = bytearray(_TERMIOS2_BYTES)
    fcntl.ioctl(fd, _TCGETS2, buffer)
    speed: int = struct.unpack_from("I", buffer, _TERMIOS2_SPEED_OFFSET)[0]
    return speed


def _parity_of(cflag: int) -> Parity:
    if not cflag & termios.PARENB:
        return Parity.NONE
    if cflag & _CMSPAR:
        return Parity.MARK if cflag & termios.PARODD else Parity.SPACE
    return Parity.ODD if cflag & termios.PARODD else Parity.EVEN


def _stopbits_of(cflag: int, bytesize: int) -> StopBits:
    """CSTOPB means 1.5 stop bits with 5 data bits and 2 with more, as UARTs have it."""
    if not cflag & termios.CSTOPB:
        return StopBits.ONE
    return StopBits.ONE_POINT_FIVE if bytesize == 5 else StopBits.TWO


def _flow_control_of(iflag: int, cflag: int) -> FlowControl:
    if cflag & termios.CRTSCTS:
        return FlowControl.RTSCTS
    return FlowControl.XONXOFF if iflag & termios.IXON else FlowControl.NONE


def _errno_of(error: Exception) -> int | None:
    code = getattr(error, "errno", None) or (error.args[0] if error.args else None)
    return code if isinstance(code, int) else None


def _device_error(error: Exception) -> DeviceError:
    match _errno_of(error):
        case errno.ENOENT | errno.ENXIO | errno.ENODEV:
            return DeviceAbsentError("not plugged in")
        case errno.EACCES | errno.EPERM:
            return DevicePermissionError("no permission (is the user in group dialout?)")
        case errno.EBUSY | errno.EAGAIN:
            return DeviceError("in use by another program")
        case errno.ENOTTY:
            return DeviceError("not a serial port")
        case code if code is not None:
            return DeviceError(os.strerror(code))
    return DeviceError(str(error))


def read_usb_ids(tty_path: str, sysfs: Path = SYSFS) -> UsbIds | None:
    """Vendor and product id of the USB device that a tty belongs to; None if it has none.

    `tty_path` may be a link, as all of /dev/serial/ are.
    """
    name = os.path.basename(os.path.realpath(tty_path))  # noqa: PTH119
    folder = sysfs / "class" / "tty" / name / "device"
    try:
        folder = folder.resolve(strict=True)
        for _ in range(_LEVELS):
            if (folder / "idVendor").exists():
                return _read_id(folder / "idVendor"), _read_id(folder / "idProduct")
            folder = folder.parent
    except (OSError, ValueError):
        pass  # no such tty, not a USB device, or gone meanwhile: nothing is known
    return None


def _read_id(path: Path) -> int:
    return int(path.read_text(), 16)
