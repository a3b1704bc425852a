"""How the bytes of a serial line are framed and paced, in pyserial's words and RFC 2217's codes."""

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
    """How long the line rests after each character, in bits; strings as in the YAML."""

    ONE = "1"
    ONE_POINT_FIVE = "1.5"
    TWO = "2"


class FlowControl(Enum):
    """How the receiver stops the sender: one way at a time."""

    NONE = "none"
    RTSCTS = "rtscts"
    XONXOFF = "xonxoff"


# Codes of SET-PARITY, SET-STOPSIZE and SET-CONTROL (RFC 2217 section 3).
PARITIES = {1: Parity.NONE, 2: Parity.ODD, 3: Parity.EVEN, 4: Parity.MARK, 5: Parity.SPACE}
STOPSIZES = {1: StopBits.ONE, 2: StopBits.TWO, 3: StopBits.ONE_POINT_FIVE}
FLOWS = {1: FlowControl.NONE, 2: FlowControl.XONXOFF, 3: FlowControl.RTSCTS}
PARITY_CODES = {parity: code for code, parity in PARITIES.items()}
STOPSIZE_CODES = {stopbits: code for code, stopbits in STOPSIZES.items()}
FLOW_CODES = {flow: code for code, flow in FLOWS.items()}


@dataclass(frozen=True, slots=True)
class SerialSettings:
    """The settings of one serial line; the defaults suit an ESP's boot log. Not checked."""

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
