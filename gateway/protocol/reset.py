"""How boards are reset, as data: line states, sequences of them, and which board needs which.

The auto-reset circuit of ESP boards (two transistors) holds EN low only while RTS is on and DTR
off, and IO0 low only while DTR is on and RTS off. EN rises over an RC; the chip samples IO0 at that
moment. Other boards act on other sequences; `ResetChoice` makes a strategy of what the operator
writes as `reset`, `hard_reset` and `rest`. `line_controller` plays them.

The notation of sequences is that of esptool's `custom_reset_sequence` (esptool documentation,
"Configuration File"; esp_pylib.serial_reset), steps separated by `|`:

    D0 D1     DTR off, on
    R0 R1     RTS off, on
    U1,0      DTR (first) and RTS (second) in one step
    W0.1      a pause of 0.1 s

and one step of our own, for boards that enter their bootloader at a change of the baud rate:

    B1200     set 1200 baud; the rate that was set before is set again at the end
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum

from gateway.protocol.board_kinds import BoardKind, UsbIds, kind_of

#: How long an edge may be held back for the client's next command. pyserial looks for the answer
#: every 50 ms, so two commands are up to the round trip and 76 ms apart (measured): 1.5 s serves
#: links of 1 s round trip with jitter. Holding a reset longer is harmless.
DEFAULT_HOLD_S = 1.5


@dataclass(frozen=True, slots=True)
class Lines:
    """The two modem lines; True is asserted, as in pyserial."""

    dtr: bool
    rts: bool

    def __str__(self) -> str:
        return f"DTR {'on' if self.dtr else 'off'}, RTS {'on' if self.rts else 'off'}"

    def with_changes(self, dtr: bool | None, rts: bool | None) -> Lines:
        """Return these lines with one or both set; None leaves a line as it is."""
        return Lines(self.dtr if dtr is None else dtr, self.rts if rts is None else rts)


class Starts(Enum):
    """What a board starts at the end of a reset."""

    APP = "app"
    BOOTLOADER = "bootloader"


#: EN and IO0 both high: the board runs what it runs.
IDLE = Lines(dtr=False, rts=False)
#: EN and IO0 both high as well: what pyserial's open() leaves.
BOTH = Lines(dtr=True, rts=True)
#: EN low: the chip is held in reset.
RESET = Lines(dtr=False, rts=True)
#: IO0 low: a chip that comes out of reset now enters its bootloader.
STRAP = Lines(dtr=True, rts=False)

#: Far above any sequence in use; a client waits for its answer from the board meanwhile.
MAX_PAUSES_S = 10.0
MAX_STEPS = 100


@dataclass(frozen=True, slots=True)
class Baudrate:
    """A baud rate to be set; None is the one that was set before the sequence."""

    bps: int | None


@dataclass(frozen=True, slots=True)
class _Change:
    """What a step makes of the lines; None leaves a line as it is."""

    dtr: bool | None = None
    rts: bool | None = None


@dataclass(frozen=True, slots=True)
class _Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class Timed:
    """One thing to do, so many seconds after the sequence's start."""

    after_s: float
    what: Lines | Baudrate


@dataclass(frozen=True, slots=True)
class ResetSequence:
    """A sequence that has been checked; `text` is its notation."""

    text: str
    steps: tuple[_Change | _Pause | Baudrate, ...]

    def __str__(self) -> str:
        return self.text

    @property
    def duration_s(self) -> float:
        """The sum of its pauses."""
        return sum(step.seconds for step in self.steps if isinstance(step, _Pause))

    def timed(self, before: Lines, rest: Lines) -> list[Timed]:
        """Return what to do when, the lines being `before` at the start and `rest` at the end.

        Each entry is one step on the wire; steps that change nothing are left out. A baud rate
        that the sequence has set is undone at its end.
        """
        plan: list[Timed] = []
        lines, after_s, baud_changed = before, 0.0, False
        for step in (*self.steps, _Change(rest.dtr, rest.rts)):
            match step:
                case _Pause(seconds):
                    after_s += seconds
                case Baudrate():
                    plan.append(Timed(after_s, step))
                    baud_changed = True
                case _Change(dtr, rts):
                    after = lines.with_changes(dtr, rts)
                    if after != lines:
                        plan.append(Timed(after_s, after))
                    lines = after
        if baud_changed:
            plan.append(Timed(after_s, Baudrate(None)))
        return plan


def parse_sequence(text: str) -> ResetSequence:
    """Read the notation; raises ValueError with one line.

    As esptool does, accepts letters of either case, blanks around steps and empty steps.
    """
    tokens = [token for part in text.split("|") if (token := "".join(part.split()).upper())]
    if not tokens:
        raise ValueError("empty reset sequence: expected steps such as D0|R1|W0.1")
    if len(tokens) > MAX_STEPS:
        raise ValueError(f"reset sequence of {len(tokens)} steps: expected at most {MAX_STEPS}")
    sequence = ResetSequence("|".join(tokens), tuple(_step(token) for token in tokens))
    if not any(isinstance(step, _Change | Baudrate) for step in sequence.steps):
        raise ValueError("reset sequence that only waits: expected a step other than W")
    if sequence.duration_s > MAX_PAUSES_S:
        raise ValueError(
            f"reset sequence waits {sequence.duration_s:g} s: expected at most {MAX_PAUSES_S:g}"
        )
    return sequence


def _step(token: str) -> _Change | _Pause | Baudrate:
    argument = token[1:]
    match token[0]:
        case "D" if argument in {"0", "1"}:
            return _Change(dtr=argument == "1")
        case "R" if argument in {"0", "1"}:
            return _Change(rts=argument == "1")
        case "U" if re.fullmatch("[01],[01]", argument):
            return _Change(dtr=argument[0] == "1", rts=argument[2] == "1")
        case "W" if re.fullmatch(r"[0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9}", argument):
            return _Pause(float(argument))
        case "B" if re.fullmatch("[1-9][0-9]{1,6}", argument):
            return Baudrate(int(argument))
    shown = token if len(token) <= 20 else f"{token[:20]}..."
    raise ValueError(f"invalid step {shown!r}: expected D0, D1, R0, R1, U1,0, W0.1 or B1200")


# What each source plays, in this notation; the states in the comments are (DTR, RTS).

#: Boards with the two-transistor circuit. esp_pylib.serial_reset.classic_bootloader_reset, which
#: esptool plays on Windows and over the network.
CLASSIC = parse_sequence("D0|R1|W0.1|D1|R0|W0.05|D0")
#: The same, both lines at once, so that IO0 is low when EN rises whatever the board's RC.
#: esp_pylib.serial_reset.unix_tight_bootloader_reset, which esptool plays on a port of its own.
CLASSIC_TIGHT = parse_sequence("U0,1|W0.1|U1,0|W0.05|U0,0")
#: Bridges whose RTS is moved by hardware flow control (CP2102C): DTR stays on while the board
#: runs, or a move of RTS would pull EN low. The same, with flow_control=True.
CLASSIC_FLOW_CONTROL = parse_sequence("U0,1|W0.1|U1,0|W0.05|U1,1")
#: The USB-Serial/JTAG peripheral: (on, off) sets its download flag, (off, on) resets the chip,
#: (on, on) does neither. esp_pylib.serial_reset.usb_jtag_bootloader_reset.
USB_JTAG = parse_sequence("U0,0|W0.1|U1,0|W0.1|U1,1|U0,1|W0.1|U0,0")
#: Firmware that opens the bootloader at 1200 baud: arduino-esp32 (USBCDC.cpp) at the rate itself,
#: TinyUSB cores, MicroPython (mp_usbd_cdc.c) and CircuitPython when both lines go off at that rate.
TOUCH_1200 = parse_sequence("U1,1|B1200|W0.05|U0,0|W0.35")
#: USB-OTG: what the ROM's and ESP-IDF's console (usb_console.c: RTS goes off while DTR is on) and
#: MicroPython (mp_usbd_cdc.c: (off, on) to (on, off) at once) take; when the device is still there
#: half a second later, arduino-esp32's four states (USBCDC.cpp); then the touch.
USB_OTG = parse_sequence(
    "U0,1|W0.1|U1,0|W0.05|U0,0|W0.5|"
    "U0,1|W0.05|U1,1|W0.05|U1,0|W0.05|U0,0|W0.3|"
    "U1,1|B1200|W0.05|U0,0|W0.35"
)

#: Boards with an AVR behind a bridge: DTR going on pulls RESET low for a moment, through a
#: capacitor. The bootloader waits about 1 s for avrdude, then starts the sketch.
DTR_PULSE = parse_sequence("U1,1|W0.1|U0,0")
#: For boards that no line resets.
NOTHING = ResetSequence("", ())

#: EN low for 0.1 s. esp_pylib.serial_reset.hard_reset.
HARD = parse_sequence("U0,1|W0.1|U0,0")
#: The same for bridges with hardware flow control: EN rises by DTR, which stays on.
HARD_FLOW_CONTROL = parse_sequence("U0,1|W0.1|U1,1")
#: Chips on their own USB port need longer. The same, as esptool plays it with uses_usb=True.
HARD_USB = parse_sequence("U0,1|W0.2|U0,0")


class Reset(Enum):
    """The operator's choice by name for entering a board's bootloader."""

    AUTO = "auto"  # by the device's USB ids
    CLASSIC = "classic"  # the two-transistor circuit
    USB_JTAG = "usb-jtag"  # USB-Serial/JTAG
    USB_OTG = "usb-otg"  # USB-OTG, whatever firmware runs
    TOUCH_1200 = "touch-1200"  # USB-OTG, firmware that knows only the 1200 baud touch
    NONE = "none"  # the client's lines as they come; boards known not to be ESPs have it by `auto`


class HardReset(Enum):
    """The operator's choice by name for restarting a board's app."""

    AUTO = "auto"  # what goes with `reset`
    CLASSIC = "classic"
    USB_JTAG = "usb-jtag"  # as for every chip on its own USB port


class Method(Enum):
    """How the client's lines are passed to the board."""

    CIRCUIT = "circuit"  # they are the board's, but for the edges that a network breaks
    INTENT = "intent"  # they are understood, and the board gets its own sequence
    AS_THEY_COME = "as they come"


@dataclass(frozen=True, slots=True)
class ResetStrategy:
    """How one board is reset.

    `rest` is where the lines are while no client moves them. `follows_usb_jtag` says that a client
    which plays USB-Serial/JTAG's own sequence is followed line by line, `takes_touch` that DTR
    going off at 1200 baud, at a client's command or because it disconnects, is to reach the board.
    `has_circuit` is False for boards that (off, on) does not reset. A sequence without steps is a
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

    `hold_s` is how long an edge of DTR or RTS may be held back. A `rest` that does not suit the
    board is ignored.
    """

    reset: Reset | ResetSequence = Reset.AUTO
    hard_reset: HardReset | ResetSequence = HardReset.AUTO
    hold_s: float = DEFAULT_HOLD_S
    rest: LinesAtRest = AUTO_REST

    def strategy(self, usb_ids: UsbIds | None) -> ResetStrategy:
        """Return the strategy for a device with these USB ids, None if they are unknown."""
        strategy = self._by_reset(usb_ids)
        match self.hard_reset:
            case HardReset.AUTO:
                hard = strategy.hard
            case HardReset.CLASSIC:
                hard = HARD
            case HardReset.USB_JTAG:
                hard = HARD_USB
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


_CLASSIC = ResetStrategy("classic", Method.CIRCUIT, CLASSIC_TIGHT, HARD)
_FLOW_CONTROL = ResetStrategy(
    "classic with flow control",
    Method.INTENT,
    CLASSIC_FLOW_CONTROL,
    HARD_FLOW_CONTROL,
    rest=BOTH,
)
_USB_JTAG = ResetStrategy("usb-jtag", Method.INTENT, USB_JTAG, HARD_USB, follows_usb_jtag=True)
# Both lines on at rest: the kernel raises them at open, and ESP-IDF's console restarts when RTS
# goes off (usb_console.c). TinyUSB firmware sends nothing while DTR is off.
_USB_OTG = ResetStrategy("usb-otg", Method.INTENT, USB_OTG, HARD_USB, rest=BOTH, takes_touch=True)
_TOUCH_1200 = replace(_USB_OTG, name="touch-1200", bootloader=TOUCH_1200)
_CUSTOM = ResetStrategy("custom", Method.INTENT, CLASSIC, HARD)
_NONE = ResetStrategy("none", Method.AS_THEY_COME, CLASSIC_TIGHT, HARD, takes_touch=True)

# Boards that are not ESPs. Native USB takes DTR for a program that listens, and is silent without;
# both on is what a terminal program leaves, and the kernel at open.
_NATIVE_USB = ResetStrategy(
    "none, 1200 baud touch",
    Method.AS_THEY_COME,
    TOUCH_1200,
    NOTHING,
    rest=BOTH,
    takes_touch=True,
    has_circuit=False,
)
_COM_PORT = replace(_NATIVE_USB, name="none, no reset", bootloader=NOTHING)
# Off at rest, so that a client that raises DTR at open resets the board, as at a local port.
_DTR_RESET = replace(
    _NATIVE_USB, name="none, reset by DTR", bootloader=DTR_PULSE, hard=DTR_PULSE, rest=IDLE
)

_OF_KIND = {
    **dict.fromkeys(BoardKind, _NATIVE_USB),
    BoardKind.BRIDGE: _CLASSIC,
    BoardKind.FLOW_CONTROL_BRIDGE: _FLOW_CONTROL,
    BoardKind.USB_JTAG: _USB_JTAG,
    BoardKind.USB_OTG: _USB_OTG,
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
