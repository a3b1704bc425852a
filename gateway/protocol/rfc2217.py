"""RFC 2217 COM-PORT-OPTION commands as dataclasses: codes, encode, decode."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from .telnet_stream import DOUBLED, IAC, SB, SE

COM_PORT_OPTION = 44

#: Added to a client's command code to make the access server's (RFC 2217 section 2).
_SERVER_OFFSET = 100

#: Only a SIGNATURE has a variable length; longer ones are cut, for a log line needs no more.
MAX_SIGNATURE_BYTES = 128


class Control(IntEnum):
    """Values of SET-CONTROL (RFC 2217 section 3)."""

    REQUEST_FLOW = 0
    FLOW_NONE = 1
    FLOW_XONXOFF = 2
    FLOW_HARDWARE = 3
    REQUEST_BREAK = 4
    BREAK_ON = 5
    BREAK_OFF = 6
    REQUEST_DTR = 7
    DTR_ON = 8
    DTR_OFF = 9
    REQUEST_RTS = 10
    RTS_ON = 11
    RTS_OFF = 12
    REQUEST_FLOW_IN = 13
    FLOW_IN_NONE = 14
    FLOW_IN_XONXOFF = 15
    FLOW_IN_HARDWARE = 16
    FLOW_DCD = 17
    FLOW_IN_DTR = 18
    FLOW_DSR = 19


class Linestate(IntFlag):
    """Bits of NOTIFY-LINESTATE (RFC 2217 section 3)."""

    TIMEOUT = 128
    TRANSMIT_SHIFT_EMPTY = 64
    TRANSMIT_HOLDING_EMPTY = 32
    BREAK = 16
    FRAMING_ERROR = 8
    PARITY_ERROR = 4
    OVERRUN = 2
    DATA_READY = 1


class Modemstate(IntFlag):
    """Bits of NOTIFY-MODEMSTATE (RFC 2217 section 3); a delta bit says that its line changed."""

    CD = 128
    RI = 64
    DSR = 32
    CTS = 16
    DELTA_CD = 8
    TRAILING_EDGE_RI = 4
    DELTA_DSR = 2
    DELTA_CTS = 1


class PurgeBuffers(IntEnum):
    """Values of PURGE-DATA (RFC 2217 section 3), seen from the access server."""

    RECEIVE = 1
    TRANSMIT = 2
    BOTH = 3


@dataclass(frozen=True, slots=True)
class Signature:
    """SIGNATURE; an empty text asks the other side for its own."""

    text: bytes


@dataclass(frozen=True, slots=True)
class SetBaudrate:
    """SET-BAUDRATE; bits per second, 0 to 2**32-1, 0 asks for the value in force."""

    baudrate: int


@dataclass(frozen=True, slots=True)
class SetDatasize:
    """SET-DATASIZE; 5 to 8 bits, 0 asks; other values are in the message as they came."""

    bytesize: int


@dataclass(frozen=True, slots=True)
class SetParity:
    """SET-PARITY; 1 none, 2 odd, 3 even, 4 mark, 5 space, 0 asks."""

    parity: int


@dataclass(frozen=True, slots=True)
class SetStopsize:
    """SET-STOPSIZE; 1 one, 2 two, 3 one and a half, 0 asks."""

    stopsize: int


@dataclass(frozen=True, slots=True)
class SetControl:
    """SET-CONTROL; a `Control` value, or another number that the RFC does not define."""

    control: int


@dataclass(frozen=True, slots=True)
class NotifyLinestate:
    """NOTIFY-LINESTATE; from the access server a `Linestate`, from a client a request for it."""

    state: int


@dataclass(frozen=True, slots=True)
class NotifyModemstate:
    """NOTIFY-MODEMSTATE; from the access server a `Modemstate`, from a client a request for it."""

    state: int


@dataclass(frozen=True, slots=True)
class FlowcontrolSuspend:
    """FLOWCONTROL-SUSPEND: send no more data until FLOWCONTROL-RESUME."""


@dataclass(frozen=True, slots=True)
class FlowcontrolResume:
    """FLOWCONTROL-RESUME: data may be sent again."""


@dataclass(frozen=True, slots=True)
class SetLinestateMask:
    """SET-LINESTATE-MASK; the `Linestate` bits of which the client is notified."""

    mask: int


@dataclass(frozen=True, slots=True)
class SetModemstateMask:
    """SET-MODEMSTATE-MASK; the `Modemstate` bits of which the client is notified."""

    mask: int


@dataclass(frozen=True, slots=True)
class PurgeData:
    """PURGE-DATA; a `PurgeBuffers` value, or another number that the RFC does not define."""

    buffers: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """A COM-PORT-OPTION subnegotiation that RFC 2217 does not define."""

    reason: str


Command = (
    Signature
    | SetBaudrate
    | SetDatasize
    | SetParity
    | SetStopsize
    | SetControl
    | NotifyLinestate
    | NotifyModemstate
    | FlowcontrolSuspend
    | FlowcontrolResume
    | SetLinestateMask
    | SetModemstateMask
    | PurgeData
)

#: Commands whose value is one octet, and those without a value.
_ONE_OCTET: dict[int, Callable[[int], Command]] = {
    2: SetDatasize,
    3: SetParity,
    4: SetStopsize,
    5: SetControl,
    6: NotifyLinestate,
    7: NotifyModemstate,
    10: SetLinestateMask,
    11: SetModemstateMask,
    12: PurgeData,
}
_NO_OCTET: dict[int, Callable[[], Command]] = {8: FlowcontrolSuspend, 9: FlowcontrolResume}
_CODES: dict[object, int] = {
    Signature: 0,
    SetBaudrate: 1,
    **{command: code for code, command in (_ONE_OCTET | _NO_OCTET).items()},
}


def decode(payload: bytes, *, from_server: bool = False) -> Command | Malformed:
    """Read what stands between `IAC SB COM-PORT-OPTION` and `IAC SE`, IACs already un-doubled.

    `from_server` chooses the codes that are expected. The other side's are malformed: two access
    servers that accepted them would answer each other's answers indefinitely. A client that
    asks for a state (NOTIFY-LINESTATE, NOTIFY-MODEMSTATE) may leave its octet out: pyserial does.
    Octets behind a fixed-length value are ignored, as RFC 2217 servers in the field do.
    """
    if not payload:
        return Malformed("no command")
    code, value = payload[0] - (_SERVER_OFFSET if from_server else 0), payload[1:]
    if code == 0:
        return Signature(value[:MAX_SIGNATURE_BYTES])
    if code == 1:
        if len(value) < 4:
            return Malformed(f"SET-BAUDRATE with {len(value)} of 4 octets")
        return SetBaudrate(struct.unpack_from("!I", value)[0])
    if (no_octet := _NO_OCTET.get(code)) is not None:
        return no_octet()
    if (one_octet := _ONE_OCTET.get(code)) is not None:
        if value:
            return one_octet(value[0])
        if one_octet in {NotifyLinestate, NotifyModemstate}:
            return one_octet(0)
        return Malformed(f"command {code} without a value")
    return Malformed(f"unknown command {payload[0]}")


def encode(command: Command, *, from_server: bool = True) -> bytes:
    """The whole subnegotiation, `IAC SB` to `IAC SE`, IACs in the value doubled.

    `from_server` chooses the access server's codes (100 and up) or the client's.
    """
    code = _CODES[type(command)] + (_SERVER_OFFSET if from_server else 0)
    match command:
        case Signature(text):
            value = text[:MAX_SIGNATURE_BYTES]
        case SetBaudrate(baudrate):
            value = struct.pack("!I", baudrate)
        case FlowcontrolSuspend() | FlowcontrolResume():
            value = b""
        case (
            SetDatasize(octet)
            | SetParity(octet)
            | SetStopsize(octet)
            | SetControl(octet)
            | NotifyLinestate(octet)
            | NotifyModemstate(octet)
            | SetLinestateMask(octet)
            | SetModemstateMask(octet)
            | PurgeData(octet)
        ):
            value = bytes([octet])
    body = bytes([COM_PORT_OPTION, code]) + value.replace(IAC, DOUBLED)
    return b"%b%c%b%b%c" % (IAC, SB, body, IAC, SE)
