"""How a board is reset: the sequences it needs and where its lines rest, by USB ids or by name.

What the operator writes as `reset` and `hard_reset` is made a strategy here; `reset_intent`
plays it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gateway.protocol import reset_sequence as sequences
from gateway.protocol.board_kinds import BoardKind, UsbIds, kind_of
from gateway.protocol.reset import BOTH, DEFAULT_HOLD_S, IDLE, Lines
from gateway.protocol.reset_sequence import ResetSequence


class Reset(Enum):
    """What the operator may choose by name for a board's bootloader."""

    AUTO = "auto"  # by the device's USB ids
    CLASSIC = "classic"  # the two-transistor circuit
    USB_JTAG = "usb-jtag"  # USB-Serial/JTAG
    USB_OTG = "usb-otg"  # USB-OTG, whatever firmware runs
    TOUCH_1200 = "touch-1200"  # USB-OTG, firmware that knows nothing but the 1200 baud touch
    NONE = "none"  # the client's lines as they come


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

    `rest` is where the lines are when nobody moves them. `follows_usb_jtag` says that a client
    which plays USB-Serial/JTAG's own sequence is followed line by line.
    """

    name: str
    method: Method
    bootloader: ResetSequence
    hard: ResetSequence
    rest: Lines = IDLE
    follows_usb_jtag: bool = False


@dataclass(frozen=True, slots=True)
class ResetChoice:
    """The operator's keys of these names.

    `hold_s` is how long an edge of DTR or RTS may be held back (`reset.DEFAULT_HOLD_S`).
    """

    reset: Reset | ResetSequence = Reset.AUTO
    hard_reset: HardReset | ResetSequence = HardReset.AUTO
    hold_s: float = DEFAULT_HOLD_S

    def strategy(self, usb_ids: UsbIds | None) -> ResetStrategy:
        """The strategy for a device with these USB ids; None: they are not known."""
        strategy = self._by_reset(usb_ids)
        match self.hard_reset:
            case HardReset.AUTO:
                return strategy
            case HardReset.CLASSIC:
                hard = sequences.HARD
            case HardReset.USB_JTAG:
                hard = sequences.HARD_USB
            case ResetSequence():
                hard = self.hard_reset
        if strategy.method is Method.CIRCUIT and hard == strategy.hard:
            return strategy
        # What the client's own lines would do to the board is not what was asked for.
        method = Method.INTENT if strategy.method is Method.CIRCUIT else strategy.method
        return ResetStrategy(
            strategy.name,
            method,
            strategy.bootloader,
            hard,
            strategy.rest,
            strategy.follows_usb_jtag,
        )

    def _by_reset(self, usb_ids: UsbIds | None) -> ResetStrategy:
        match self.reset:
            case Reset.AUTO:
                return _OF_KIND[kind_of(usb_ids)]
            case ResetSequence():
                return ResetStrategy("custom", Method.INTENT, self.reset, sequences.HARD)
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
_USB_OTG = ResetStrategy("usb-otg", Method.INTENT, sequences.USB_OTG, sequences.HARD_USB, rest=BOTH)
_TOUCH_1200 = ResetStrategy(
    "touch-1200", Method.INTENT, sequences.TOUCH_1200, sequences.HARD_USB, rest=BOTH
)
_NONE = ResetStrategy("none", Method.AS_THEY_COME, sequences.CLASSIC_TIGHT, sequences.HARD)

_OF_KIND = {
    BoardKind.BRIDGE: _CLASSIC,
    BoardKind.FLOW_CONTROL_BRIDGE: _FLOW_CONTROL,
    BoardKind.USB_JTAG: _USB_JTAG,
    BoardKind.USB_OTG: _USB_OTG,
}
_NAMED = {
    Reset.CLASSIC: _CLASSIC,
    Reset.USB_JTAG: _USB_JTAG,
    Reset.USB_OTG: _USB_OTG,
    Reset.TOUCH_1200: _TOUCH_1200,
    Reset.NONE: _NONE,
}
