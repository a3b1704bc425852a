"""How the bytes of a serial line are framed and paced, in pyserial's words.

Pure data: the YAML writes these words, RFC 2217 codes are translated from and to them, and only
tty/serial_tty.py turns them into termios flags.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Parity(Enum):
    """The parity bit of each character."""

    NONE = "none"
    ODD = "odd"
    EVEN = "even"
    MARK = "mark"
    SPACE = "space"


class StopBits(Enum):
    """How long the line rests after each character, in bits.

    Strings as in the YAML: a float as an enum value would invite comparisons by arithmetic.
    """

    ONE = "1"
    ONE_POINT_FIVE = "1.5"
    TWO = "2"


class FlowControl(Enum):
    """Who may stop the sender; one word, since using both at once makes no sense."""

    NONE = "none"
    RTSCTS = "rtscts"
    XONXOFF = "xonxoff"


@dataclass(frozen=True, slots=True)
class SerialSettings:
    """The settings of one serial line; the defaults are what an ESP's boot log is read with.

    Values are not checked here: the configuration and the RFC 2217 decoder each know who to tell.
    """

    baudrate: int = 115200
    bytesize: int = 8
    parity: Parity = Parity.NONE
    stopbits: StopBits = StopBits.ONE
    flow_control: FlowControl = FlowControl.NONE

    def __str__(self) -> str:
        """As people write it: `115200 8N1`, and the flow control if there is one."""
        text = f"{self.baudrate} {self.bytesize}{self.parity.name[0]}{self.stopbits.value}"
        has_flow = self.flow_control is not FlowControl.NONE
        return f"{text} {self.flow_control.value}" if has_flow else text
