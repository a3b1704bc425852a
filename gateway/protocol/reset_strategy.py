"""How a board is reset: the sequences it needs and where its lines rest, by USB ids or by name.

What the operator writes as `reset`, `hard_reset` and `rest` is made a strategy here; `reset_intent`
plays it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from gateway.protocol import reset_sequence as sequences
from gateway.protocol.board_kinds import BoardKind, UsbIds, kind_of
from gateway.protocol.reset import BOTH, DEFAULT_HOLD_S, IDLE, Lines
from gateway.protocol.reset_sequence import Baudrate, ResetSequence


class Reset(Enum):
    """What the operator may choose by name for a board's bootloader."""

    AUTO = "auto"  # by the device's USB ids
    CLASSIC = "classic"  # the two-transistor circuit
    USB_JTAG = "usb-jtag"  # USB-Serial/JTAG
    USB_OTG = "usb-otg"  # USB-OTG, whatever firmware runs
    TOUCH_1200 = "touch-1200"  # USB-OTG, firmware that knows nothing but the 1200 baud touch
    NONE = "none"  # the client's lines as they come; boards known not to be ESPs have it by `auto`


class HardReset(Enum):
    """What the operator may choose by name for restarting a board's app."""

    AUTO = "auto"  # what goes with `reset`
    CLASSIC = "classic"
    USB_JTAG = "usb-jtag"  # as for every chip on its own USB port


class Method(Enum):
    """What becomes of the client's lines."""

    CIRCUIT = "circuit"  # they are the board's, but for the edges that a network breaks
    INTENT = "intent"  # they are understood, and the board gets its own sequence
    AS_THEY_COME = "as they come"


@dataclass(frozen=True, slots=True)
class ResetStrategy:
    """How one board is reset.

    `rest` is where the lines are while no client moves them. `follows_usb_jtag` says that a client
    which plays USB-Serial/JTAG's own sequence is followed line by line, `takes_touch` that DTR
    going off at 1200 baud, at a client's command or because it disconnects, is to reach the board.
    `has_circuit` is False for boards on which (off, on) is no reset. A sequence without steps is a
    reset that the board does not have.
    """

    name: str
    method: Method
    bootloader: ResetSequence
    hard: ResetSequence
    rest: Lines = IDLE
    follows_usb_jtag: bool = False
    takes_touch: bool = False
    has_circuit: bool = True


@dataclass(frozen=True, slots=True)
class LinesAtRest:
    """Where the operator wants the lines while no client moves them; None: as the board's kind."""

    lines: Lines | None = None

    def __str__(self) -> str:
        return "auto" if self.lines is None else str(self.lines)

    def suits(self, method: Method) -> bool:
        """Whether boards that are reset so run with these lines.

        With a reset circuit a line that is on alone resets the board or selects its bootloader.
        """
        is_neutral = self.lines is None or self.lines.dtr == self.lines.rts
        return is_neutral or method is Method.AS_THEY_COME


AUTO_REST = LinesAtRest()


@dataclass(frozen=True, slots=True)
class ResetChoice:
    """The operator's keys of these names.

    `hold_s` is how long an edge of DTR or RTS may be held back (`reset.DEFAULT_HOLD_S`). A `rest`
    that does not suit the board is not used.
    """

    reset: Reset | ResetSequence = Reset.AUTO
    hard_reset: HardReset | ResetSequence = HardReset.AUTO
    hold_s: float = DEFAULT_HOLD_S
    rest: LinesAtRest = AUTO_REST

    def strategy(self, usb_ids: UsbIds | None) -> ResetStrategy:
        """The strategy for a device with these USB ids; None: they are not known."""
        strategy = self._by_reset(usb_ids)
        match self.hard_reset:
            case HardReset.AUTO:
                hard = strategy.hard
            case HardReset.CLASSIC:
                hard = sequences.HARD
            case HardReset.USB_JTAG:
                hard = sequences.HARD_USB
            case ResetSequence():
                hard = self.hard_reset
        rest = strategy.rest
        if self.rest.lines is not None and self.rest.suits(strategy.method):
            rest = self.rest.lines
        if (hard, rest) == (strategy.hard, strategy.rest):
            return strategy
        # The client's own lines would do something else to the board, and rest elsewhere.
        method = Method.INTENT if strategy.method is Method.CIRCUIT else strategy.method
        return replace(strategy, method=method, hard=hard, rest=rest)

    def _by_reset(self, usb_ids: UsbIds | None) -> ResetStrategy:
        match self.reset:
            case Reset.AUTO:
                return _OF_KIND[kind_of(usb_ids)]
            case Reset.NONE:
                of_kind = _OF_KIND[kind_of(usb_ids)]
                is_passed = of_kind.method is Method.AS_THEY_COME
                return of_kind if is_passed else replace(_NONE, rest=of_kind.rest)
            case ResetSequence():
                takes_touch = any(isinstance(step, Baudrate) for step in self.reset.steps)
                return replace(_CUSTOM, bootloader=self.reset, takes_touch=takes_touch)
            case Reset():
                return _NAMED[self.reset]


_CLASSIC = ResetStrategy("classic", Method.CIRCUIT, sequences.CLASSIC_TIGHT, sequences.HARD)
_FLOW_CONTROL = ResetStrategy(
    "classic with flow control",
    Method.INTENT,
    sequences.CLASSIC_FLOW_CONTROL,
    sequences.HARD_FLOW_CONTROL,
    rest=BOTH,
)
_USB_JTAG = ResetStrategy(
    "usb-jtag", Method.INTENT, sequences.USB_JTAG, sequences.HARD_USB, follows_usb_jtag=True
)
# Both lines on at rest: the kernel raises them at open, and ESP-IDF's console restarts when RTS
# goes off (usb_console.c). TinyUSB firmware sends nothing while DTR is off.
_USB_OTG = ResetStrategy(
    "usb-otg",
    Method.INTENT,
    sequences.USB_OTG,
    sequences.HARD_USB,
    rest=BOTH,
    takes_touch=True,
)
_TOUCH_1200 = ResetStrategy(
    "touch-1200",
    Method.INTENT,
    sequences.TOUCH_1200,
    sequences.HARD_USB,
    rest=BOTH,
    takes_touch=True,
)
_CUSTOM = ResetStrategy("custom", Method.INTENT, sequences.CLASSIC, sequences.HARD)
_NONE = ResetStrategy(
    "none", Method.AS_THEY_COME, sequences.CLASSIC_TIGHT, sequences.HARD, takes_touch=True
)

# Boards that are not ESPs. Native USB takes DTR for a program that listens, and is silent without;
# both on is what a terminal program leaves, and the kernel at open.
_NATIVE_USB = ResetStrategy(
    "none, 1200 baud touch",
    Method.AS_THEY_COME,
    sequences.TOUCH_1200,
    sequences.NOTHING,
    rest=BOTH,
    takes_touch=True,
    has_circuit=False,
)
_COM_PORT = ResetStrategy(
    "none, no reset",
    Method.AS_THEY_COME,
    sequences.NOTHING,
    sequences.NOTHING,
    rest=BOTH,
    takes_touch=True,
    has_circuit=False,
)
# Off at rest, so that a client that raises DTR at open resets the board, as at a local port.
_DTR_RESET = ResetStrategy(
    "none, reset by DTR",
    Method.AS_THEY_COME,
    sequences.DTR_PULSE,
    sequences.DTR_PULSE,
    takes_touch=True,
    has_circuit=False,
)

_OF_KIND = {
    BoardKind.BRIDGE: _CLASSIC,
    BoardKind.FLOW_CONTROL_BRIDGE: _FLOW_CONTROL,
    BoardKind.USB_JTAG: _USB_JTAG,
    BoardKind.USB_OTG: _USB_OTG,
    BoardKind.RP2040: _NATIVE_USB,
    BoardKind.NRF52: _NATIVE_USB,
    BoardKind.SAMD: _NATIVE_USB,
    BoardKind.AVR: _NATIVE_USB,
    BoardKind.ARDUINO: _NATIVE_USB,
    BoardKind.STM32: _COM_PORT,
    BoardKind.DTR_RESET: _DTR_RESET,
    BoardKind.OTHER: _COM_PORT,
}
_NAMED = {
    Reset.CLASSIC: _CLASSIC,
    Reset.USB_JTAG: _USB_JTAG,
    Reset.USB_OTG: _USB_OTG,
    Reset.TOUCH_1200: _TOUCH_1200,
}
