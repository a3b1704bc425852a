"""What real clients send over rfc2217:// to move DTR and RTS, as data, and how fast.

Recorded on loopback from the programs themselves, with a server that notes each SET-CONTROL and
PURGE-DATA with its time: pyserial 3.5, esptool 5.6.0 and 4.8.1, esp-idf-monitor 1.10.0,
pyserial's miniterm 3.5, mpremote 1.29.0. Both esptool versions send the same. The recorded gaps
are 50 ms (the poll of pyserial's wait for an acknowledgement) or 100 ms (`?ign_set_control`, which
doesn't wait) plus the sleeps given here; a server that answers 200 ms later made it 201 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.protocol.rfc2217 import Control

#: pyserial looks for an acknowledgement this often, for the first time after one period.
ACKNOWLEDGEMENT_POLL_S = 0.05
#: What pyserial sleeps instead with `?ign_set_control`.
IGNORED_ACKNOWLEDGEMENT_S = 0.1


@dataclass(frozen=True)
class Sent:
    """One command of a client: its SET-CONTROL, or None for a PURGE-DATA.

    `sleep_s` is the client's own pause before it, beside its wait for the last acknowledgement.
    """

    control: Control | None
    sleep_s: float = 0.0


def _sequence(*codes: int | float | None) -> tuple[Sent, ...]:
    """Build from SET-CONTROL values (int), sleeps in seconds (float) and PURGE-DATA (None)."""
    steps = []
    sleep_s = 0.0
    for code in codes:
        if isinstance(code, float):
            sleep_s += code
        else:
            steps.append(Sent(None if code is None else Control(code), sleep_s))
            sleep_s = 0.0
    return tuple(steps)


#: pyserial's open(), miniterm and mpremote as well. close() sends nothing.
OPEN = _sequence(8, 11, None, None)
#: open() after `dtr = rts = False`; `miniterm --dtr 0 --rts 0`.
OPEN_LINES_OFF = _sequence(9, 12, None, None)

#: esptool's `--before default-reset`, first attempt; the second leaves IO0 low for 0.55 s.
ESPTOOL_CLASSIC = _sequence(9, 11, 9, 0.1, 8, 12, 8, 0.05, 9)
ESPTOOL_CLASSIC_SECOND = _sequence(9, 11, 9, 0.1, 8, 12, 8, 0.55, 9)
#: `esptool ... chip-id` on a chip that never answers: the purges of five syncs lie between.
ESPTOOL_TWO_ATTEMPTS = (
    *OPEN,
    *_sequence(0.25, None),
    *ESPTOOL_CLASSIC,
    *_sequence(0.05, None, None, 0.4, None, None, 0.4, None, None, 0.4, None, None),
    *ESPTOOL_CLASSIC_SECOND,
)
#: esptool's `--after hard-reset`, behind a classic reset (DTR is off) or straight behind open()
#: (DTR is on). pyserial re-sends the DTR in force after each RTS.
ESPTOOL_HARD_DTR_OFF = _sequence(11, 9, 0.1, 12, 9)
ESPTOOL_HARD_DTR_ON = _sequence(11, 8, 0.1, 12, 8)
ESPTOOL_HARD_USB_DTR_OFF = _sequence(11, 9, 0.2, 12, 9)
#: esptool's `--before usb-reset`; esp-idf-monitor plays the same.
ESPTOOL_USB_JTAG = _sequence(12, 8, 9, 0.1, 8, 12, 8, 0.1, 11, 8, 9, 11, 9, 0.1, 9, 12, 9)
#: esptool's custom sequence "D0|R1|W0.1|D1|R0|W0.05|D0" in version 4.8, which doesn't re-send DTR.
CUSTOM_CLASSIC = _sequence(9, 11, 0.1, 8, 12, 0.05, 9)

#: esp-idf-monitor: attach with --no-reset, then its hard reset of 5 ms, then Ctrl-T Ctrl-P;
#: the times of the first are for most chips, of the second for ESP32 revision 0.
MONITOR_ATTACH = (*OPEN, *_sequence(12, 8, 9))
MONITOR_HARD = _sequence(11, 9, 0.005, 12, 9)
MONITOR_BOOTLOADER = _sequence(9, 11, 9, 0.1, 8, 12, 8, 0.05, 9)
MONITOR_BOOTLOADER_ESP32 = _sequence(9, 11, 9, 1.3, 8, 12, 8, 0.45, 9)

#: miniterm's Ctrl-T Ctrl-R, then Ctrl-T Ctrl-D.
MINITERM_TOGGLE = (*OPEN, *_sequence(0.3, 12, 0.3, 9))
#: mpremote's end of a session.
MPREMOTE_CLOSE = _sequence(12, 9)
#: What many scripts do after open(): `port.dtr = False; port.rts = False`.
SCRIPT_LINES_OFF = _sequence(9, 12)
#: Scripts that reset a board at a local port: RTS is on already, and said to be on again.
SCRIPT_RTS_PULSE = (*OPEN, *_sequence(11, 9, 0.1, 12))
#: Scripts that have both lines off before they open, and then on, so that nothing is reset.
SCRIPT_LINES_RAISED = (*OPEN_LINES_OFF, *_sequence(8, 11))
#: Both lines off, and on again only after a while.
SCRIPT_LINES_OFF_AND_ON = (*OPEN, *_sequence(9, 12, 3.0, 8, 11))
#: PlatformIO 6.2.0, `pio test`: `monitor_rts` and `monitor_dtr` are not set by default, which
#: pyserial takes for off; then with both set to 1.
PIO_TEST = (*OPEN_LINES_OFF, *_sequence(None, 9, 12, 0.1, 8, 11, 0.1))
PIO_TEST_LINES_ON = (*OPEN, *_sequence(None, 9, 12, 0.1, 8, 11, 0.1))

#: Which line each of those commands sets, and to what.
_LINE_COMMANDS = {8: ("dtr", True), 9: ("dtr", False), 11: ("rts", True), 12: ("rts", False)}


def forwarded(*sequences: tuple[Sent, ...]) -> list[tuple[bool, bool]]:
    """DTR and RTS after each command that an access server forwards as it comes, from both off."""
    lines = {"dtr": False, "rts": False}
    states = []
    for sent in (each for sequence in sequences for each in sequence):
        if sent.control is not None:
            name, on = _LINE_COMMANDS[sent.control]
            lines[name] = on
            states.append((lines["dtr"], lines["rts"]))
    return states


# What clients do to a board, by name.

DOWNLOAD_RESETS = {
    "esptool": (*OPEN, *ESPTOOL_CLASSIC),
    "esptool, lines off before": (*OPEN_LINES_OFF, *ESPTOOL_CLASSIC),
    "esptool, second attempt's delay": (*OPEN, *ESPTOOL_CLASSIC_SECOND),
    "custom sequence": (*OPEN, *CUSTOM_CLASSIC),
    "monitor": (*MONITOR_ATTACH, *MONITOR_BOOTLOADER),
    "monitor, ESP32": (*MONITOR_ATTACH, *MONITOR_BOOTLOADER_ESP32),
    "after other use": (*OPEN, *SCRIPT_LINES_OFF, *ESPTOOL_CLASSIC),
}
APP_RESETS = {
    "esptool": (*OPEN, *SCRIPT_LINES_OFF, *ESPTOOL_HARD_DTR_OFF),
    "esptool, USB": (*OPEN_LINES_OFF, *ESPTOOL_HARD_USB_DTR_OFF),
    "monitor": (*MONITOR_ATTACH, *MONITOR_HARD),
    "script that says RTS on again": SCRIPT_RTS_PULSE,
    "pio test": PIO_TEST,
    "pio test, lines on": PIO_TEST_LINES_ON,
    # At a local port it does nothing, for with DTR on RTS doesn't pull EN low; it is meant.
    "esptool, straight after open": (*OPEN, *ESPTOOL_HARD_DTR_ON),
}
NO_RESETS = {
    "pyserial": OPEN,
    "pyserial, lines off": OPEN_LINES_OFF,
    "monitor --no-reset": MONITOR_ATTACH,
    "miniterm": MINITERM_TOGGLE,
    "mpremote": (*OPEN, *MPREMOTE_CLOSE),
    "script": (*OPEN, *SCRIPT_LINES_OFF),
    "script that raises both lines": SCRIPT_LINES_RAISED,
    "script that has both lines off for a while": SCRIPT_LINES_OFF_AND_ON,
}
