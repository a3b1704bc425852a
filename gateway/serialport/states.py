"""Modem lines of a tty, bytes on their way and errors on the wire, read without a change.

For the tty's thread: each call is an ioctl, some of them a USB transfer.
"""

from __future__ import annotations

import array
import errno
import fcntl
import struct
import termios
from dataclasses import dataclass

from gateway.protocol.rfc2217 import Linestate, Modemstate

#: What the kernel answers where a driver or a device does not have what is asked of it.
NOT_SUPPORTED = frozenset({errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP})

_TIOCSERGETLSR = 0x5459
_TIOCSER_TEMT = 1  # linux/serial.h: the transmitter is physically empty
_TIOCGICOUNT = 0x545D
#: struct serial_icounter_struct: 11 counters and 9 reserved numbers.
_ICOUNTER = struct.Struct("20i")

_MODEM_FLAGS = (
    (termios.TIOCM_CTS, Modemstate.CTS),
    (termios.TIOCM_DSR, Modemstate.DSR),
    (termios.TIOCM_RI, Modemstate.RI),
    (termios.TIOCM_CD, Modemstate.CD),
)


@dataclass(frozen=True, slots=True)
class EventCounts:
    """How often each has happened since the device was plugged in; differences say something.

    32 bits each, so that they wrap. `ri` counts the ends of ringing, `overrun` both what the UART
    and what the kernel has lost.
    """

    cts: int
    dsr: int
    ri: int
    cd: int
    frame: int
    overrun: int
    parity: int
    brk: int


@dataclass(frozen=True, slots=True)
class PortStates:
    """The states of a port at one moment.

    `modemstate` has no delta bits and `linestate` no errors: these follow from two `counts`,
    which are None where the driver does not count.
    """

    modemstate: Modemstate
    linestate: Linestate
    counts: EventCounts | None = None


#: The states of a board that is not there: no line is on, nothing written has left.
NO_STATES = PortStates(Modemstate(0), Linestate(0))


def modemstate_of(modem_bits: int) -> Modemstate:
    """The board's side of what TIOCMGET has said."""
    state = Modemstate(0)
    for bit, flag in _MODEM_FLAGS:
        if modem_bits & bit:
            state |= flag
    return state


def read_linestate(descriptor: int) -> Linestate:
    """Return whether received bytes are unread, and whether all written bytes have left.

    Where a driver does not report that the last bit has left the UART, its empty queue is taken
    for that, so that a wait for it ends.
    """
    state = Linestate(0)
    if _number(descriptor, termios.FIONREAD):
        state |= Linestate.DATA_READY
    if not _number(descriptor, termios.TIOCOUTQ):
        state |= Linestate.TRANSMIT_HOLDING_EMPTY
        if _is_transmitter_empty(descriptor):
            state |= Linestate.TRANSMIT_SHIFT_EMPTY
    return state


def read_counts(descriptor: int) -> EventCounts | None:
    """The driver's counters, None where it has none."""
    counters = bytearray(_ICOUNTER.size)
    try:
        fcntl.ioctl(descriptor, _TIOCGICOUNT, counters)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        return None
    cts, dsr, rng, dcd, _, _, frame, overrun, parity, brk, buf_overrun = _ICOUNTER.unpack(counters)[
        :11
    ]
    return EventCounts(cts, dsr, rng, dcd, frame, overrun + buf_overrun, parity, brk)


def _is_transmitter_empty(descriptor: int) -> bool:
    try:
        return bool(_number(descriptor, _TIOCSERGETLSR) & _TIOCSER_TEMT)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        return True


def _number(descriptor: int, request: int) -> int:
    number = array.array("i", [0])
    fcntl.ioctl(descriptor, request, number)
    return number[0]
