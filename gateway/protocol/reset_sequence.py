"""Reset sequences as data: what is done to DTR and RTS of a board, and with which pauses.

The notation is that of esptool's `custom_reset_sequence` (esptool documentation, "Configuration
File"; esp_pylib.serial_reset), steps separated by `|`:

    D0 D1     DTR off, on
    R0 R1     RTS off, on
    U1,0      DTR (first) and RTS (second) in one step
    W0.1      a pause of 0.1 s

and one step of our own, for boards that enter their bootloader at a change of the baud rate:

    B1200     set 1200 baud; the rate that was set before is set again at the end

Which board needs which sequence is `reset_strategy`'s matter, playing them `reset_intent`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.protocol.reset import Lines

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
        """What to do when, the lines being `before` at the start and `rest` at the end.

        Each entry is one step on the wire; what changes nothing is left out. A baud rate that
        the sequence has set is undone at its end.
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
                    after = Lines(
                        lines.dtr if dtr is None else dtr, lines.rts if rts is None else rts
                    )
                    if after != lines:
                        plan.append(Timed(after_s, after))
                    lines = after
        if baud_changed:
            plan.append(Timed(after_s, Baudrate(None)))
        return plan


def parse_sequence(text: str) -> ResetSequence:
    """Read the notation; ValueError says in one line what is wrong with it.

    As esptool does, letters of either case, blanks around steps and empty steps are taken.
    """
    tokens = [token for part in text.split("|") if (token := "".join(part.split()).upper())]
    if not tokens:
        raise ValueError("a reset sequence without steps")
    if len(tokens) > MAX_STEPS:
        raise ValueError(f"a reset sequence of {len(tokens)} steps, at most {MAX_STEPS}")
    sequence = ResetSequence("|".join(tokens), tuple(_step(token) for token in tokens))
    if not any(isinstance(step, _Change | Baudrate) for step in sequence.steps):
        raise ValueError("a reset sequence that only waits")
    if sequence.duration_s > MAX_PAUSES_S:
        raise ValueError(
            f"a reset sequence that waits {sequence.duration_s:g} s, at most {MAX_PAUSES_S:g}"
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
    raise ValueError(f"{shown!r} is no step: D0 D1 R0 R1 U1,0 W0.1 B1200 are")


# Each is what its source plays, written down anew; the states in the remarks are (DTR, RTS).

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
