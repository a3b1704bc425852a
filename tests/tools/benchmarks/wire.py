"""What the measuring client sends and expects, as bytes made before anything is timed; a UART.

Nothing of the gateway is imported: the load process starts often, and has to start fast.
"""

from __future__ import annotations

import random
import re
from enum import Enum

_WILL, _DO = 251, 253
_BINARY, _SGA, _COM_PORT = 0, 3, 44
_SET_BAUDRATE, _SET_CONTROL = 1, 5
_SET_LINESTATE_MASK, _SET_MODEMSTATE_MASK = 10, 11
_DTR_ON, _DTR_OFF = 8, 9
#: Added to a command's code in the answer (RFC 2217).
_ANSWER = 100

_COMMAND = re.compile(
    rb"\xff(?:(\xff)|[\xfb-\xfe].|\xfa(?:[^\xff]|\xff\xff)*\xff\xf0|[^\xfa-\xff])", re.DOTALL
)


class Payload(Enum):
    """What the bytes of a transfer look like."""

    RANDOM = "random"  # firmware images: compressed or not, 1 byte in 256 is IAC
    ALL_FF = "all 0xFF"  # erased flash: every byte is doubled on the wire
    ASCII = "ASCII"  # logs


def payload(kind: Payload, size: int) -> bytes:
    """The same bytes each time."""
    generator = random.Random(size)
    match kind:
        case Payload.RANDOM:
            return generator.randbytes(size)
        case Payload.ALL_FF:
            return b"\xff" * size
        case Payload.ASCII:
            line = bytes(generator.choices(range(0x20, 0x7F), k=78)) + b"\r\n"
            return (line * (size // len(line) + 1))[:size]


def escaped(data: bytes, *, is_telnet: bool) -> bytes:
    """The data as a client in BINARY mode sends it; as it is to a server without telnet."""
    return data.replace(b"\xff", b"\xff\xff") if is_telnet else data


def unescaped(wire: bytes, *, is_telnet: bool) -> bytes:
    """The data in what a server has sent."""
    return _COMMAND.sub(lambda match: match[1] or b"", wire) if is_telnet else wire


def set_baudrate(baudrate: int) -> tuple[bytes, bytes]:
    """The command and the answer that grants it."""
    value = baudrate.to_bytes(4, "big")
    return _com_port(_SET_BAUDRATE, value), _com_port(_SET_BAUDRATE + _ANSWER, value)


def set_dtr(on: bool) -> tuple[bytes, bytes]:
    """The command and its answer."""
    value = bytes([_DTR_ON if on else _DTR_OFF])
    return _com_port(_SET_CONTROL, value), _com_port(_SET_CONTROL + _ANSWER, value)


def hello(baudrate: int) -> tuple[bytes, bytes]:
    """What makes a connection ready for data, and the end of the answers to it.

    No reports of line or modem states: they would come among the data.
    """
    request, answer = set_baudrate(baudrate)
    options = b"".join(
        bytes([255, verb, option])
        for verb, option in (
            (_WILL, _COM_PORT),
            (_WILL, _BINARY),
            (_DO, _BINARY),
            (_WILL, _SGA),
            (_DO, _SGA),
        )
    )
    masks = _com_port(_SET_LINESTATE_MASK, b"\0") + _com_port(_SET_MODEMSTATE_MASK, b"\0")
    return options + masks + request, answer


def _com_port(code: int, value: bytes) -> bytes:
    """A COM-PORT-OPTION subnegotiation; no value here holds an IAC."""
    return bytes([255, 250, _COM_PORT, code]) + value + b"\xff\xf0"


_BITS_PER_BYTE = 10  # start, 8 data, stop

#: What the driver and the bridge chip hold of bytes that have not left: a page, as most drivers.
BUFFER_BYTES = 4096


class Uart:
    """The wire behind a tty as arithmetic: one direction at a fixed rate.

    Times are seconds of any clock.
    """

    def __init__(self, baudrate: int) -> None:
        self._byte_s = _BITS_PER_BYTE / baudrate
        self.free_at = 0.0  # when the last byte taken has left

    def room(self, now: float) -> int:
        """How many bytes it takes now."""
        waiting = max(0.0, self.free_at - now) / self._byte_s
        return max(0, BUFFER_BYTES - round(waiting))

    def take(self, now: float, count: int) -> None:
        """Bytes have come: they leave behind those that wait, or from now on."""
        self.free_at = max(self.free_at, now) + self.duration(count)

    def duration(self, count: int) -> float:
        """How long so many bytes take."""
        return count * self._byte_s
