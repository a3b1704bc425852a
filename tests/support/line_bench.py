"""A line controller between a client's commands and a board, with the network between them.

The boards are models of what DTR and RTS do to a chip, strict where a real one may be lucky.
Nothing here waits: the bench has its own clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from gateway.protocol.line_controller import Controller, LineController
from gateway.protocol.reset import BOTH, IDLE, RESET, STRAP, Baudrate, Lines
from gateway.protocol.rfc2217 import Control
from tests.support import client_sequences as clients
from tests.support.client_sequences import Sent

#: EN counts as high at 0.75 VDD: this many RC after its release.
RC_TO_THRESHOLD = math.log(4)
#: ESP32 datasheet: strapping pins are to be held for 1 ms behind the rise of CHIP_PU; with margin.
STRAP_HOLD_S = 0.003
#: A shorter low of EN need not reset the chip (MINIMAL_EN_LOW_DELAY of Espressif's esp_pylib).
MIN_EN_LOW_S = 0.005
TOLERANCE_S = 1e-9


class Boot(Enum):
    """What a chip starts after its EN has risen."""

    APP = "app"
    DOWNLOAD = "download"
    UNCERTAIN = "EN was low too shortly, or IO0 moved while the chip sampled it"


class Board(Protocol):
    """What DTR, RTS and the baud rate do to a board."""

    resets: int
    boots: list[Boot]

    def set(self, lines: Lines, now: float) -> None: ...

    def set_baudrate(self, bps: int | None) -> None: ...

    def run_until(self, now: float) -> None: ...


class _NoClock:
    """A board on which neither time nor the baud rate has an effect."""

    def set_baudrate(self, bps: int | None) -> None:
        pass

    def run_until(self, now: float) -> None:
        pass


@dataclass
class CircuitBoard(_NoClock):
    """A board with the two-transistor circuit and an RC at EN, started by its power switch."""

    en_rc_s: float
    resets: int = 0
    boots: list[Boot] = field(default_factory=list)
    _lines: Lines = IDLE
    _fell_at: float = -math.inf
    _rises_at: float | None = None
    _low_long_enough: bool = False
    _sampled_at: float = -math.inf

    def set(self, lines: Lines, now: float) -> None:
        self.run_until(now)
        if (lines == STRAP) != (self._lines == STRAP) and now < self._sampled_at + STRAP_HOLD_S:
            self.boots[-1] = Boot.UNCERTAIN
        if lines == RESET and self._lines != RESET:
            self.resets += 1
            self._fell_at, self._rises_at = now, None
        elif lines != RESET and self._lines == RESET:
            self._low_long_enough = now - self._fell_at >= MIN_EN_LOW_S
            self._rises_at = now + self.en_rc_s * RC_TO_THRESHOLD
        self._lines = lines

    def run_until(self, now: float) -> None:
        if self._rises_at is not None and now >= self._rises_at:
            strapped = Boot.DOWNLOAD if self._lines == STRAP else Boot.APP
            self.boots.append(strapped if self._low_long_enough else Boot.UNCERTAIN)
            self._sampled_at, self._rises_at = self._rises_at, None


@dataclass
class UsbSerialJtag(_NoClock):
    """The flag logic of the USB-Serial/JTAG peripheral: lines go to a state machine."""

    resets: int = 0
    boots: list[Boot] = field(default_factory=list)
    _download: bool = False
    _lines: Lines = IDLE

    def set(self, lines: Lines, _now: float) -> None:
        if lines == RESET and self._lines != RESET:
            self.resets += 1
            self.boots.append(Boot.DOWNLOAD if self._download else Boot.APP)
        if lines in {IDLE, STRAP}:
            self._download = lines == STRAP
        self._lines = lines


@dataclass
class OtgFirmware(_NoClock):
    """A chip on its USB-OTG port, with one of the firmwares that each have rules of their own.

    It has gone from the bus when it has reset itself: only the first reset counts.
    """

    resets: int = 0
    boots: list[Boot] = field(default_factory=list)
    lines: Lines = BOTH
    bps: int | None = None

    def set(self, lines: Lines, _now: float) -> None:
        before, self.lines = self.lines, lines
        if not self.boots and (boot := self.boot_at(before, lines)) is not None:
            self.resets += 1
            self.boots.append(boot)

    def set_baudrate(self, bps: int | None) -> None:
        self.bps = bps

    def boot_at(self, before: Lines, after: Lines) -> Boot | None:
        raise NotImplementedError


class IdfConsole(OtgFirmware):
    """ESP-IDF's usb_console.c, and the ROM's bootloader: RTS goes off; DTR says into what."""

    def boot_at(self, before: Lines, after: Lines) -> Boot | None:
        if before.rts and not after.rts:
            return Boot.DOWNLOAD if after.dtr else Boot.APP
        return None


class MicroPython(OtgFirmware):
    """mp_usbd_cdc.c with MICROPY_HW_USB_CDC_DTR_RTS_BOOTLOADER."""

    def boot_at(self, before: Lines, after: Lines) -> Boot | None:
        return Boot.DOWNLOAD if (before, after) == (RESET, STRAP) else None


@dataclass
class ArduinoCdc(OtgFirmware):
    """arduino-esp32's USBCDC.cpp: four states one after the other, or 1200 baud."""

    _passed: list[Lines] = field(default_factory=list)

    def boot_at(self, before: Lines, after: Lines) -> Boot | None:
        path = [RESET, BOTH, STRAP, IDLE]
        self._passed.append(after)
        if self._passed != path[: len(self._passed)]:
            self._passed = []
        return Boot.DOWNLOAD if self._passed == path else None

    def set_baudrate(self, bps: int | None) -> None:
        if bps == 1200 and not self.boots:
            self.resets += 1
            self.boots.append(Boot.DOWNLOAD)


class TouchOnly(OtgFirmware):
    """TinyUSB cores, CircuitPython: both lines go off at 1200 baud."""

    def boot_at(self, before: Lines, after: Lines) -> Boot | None:
        return Boot.DOWNLOAD if after == IDLE and self.bps == 1200 else None


@dataclass
class NativeUsb(_NoClock):
    """A board with native USB that is not an ESP: it listens to DTR and to the baud rate.

    Its bootloader is another device: only the first reset counts.
    """

    resets: int = 0
    boots: list[Boot] = field(default_factory=list)
    lines: Lines = BOTH
    bps: int | None = None
    now: float = 0.0

    def set(self, lines: Lines, now: float) -> None:
        self.run_until(now)
        before, self.lines = self.lines, lines
        self.changed(before, now)

    def set_baudrate(self, bps: int | None) -> None:
        self.bps = bps
        self.changed(self.lines, self.now)

    def run_until(self, now: float) -> None:
        self.now = now

    def changed(self, before: Lines, now: float) -> None:
        raise NotImplementedError

    def boot(self) -> None:
        if not self.boots:
            self.resets += 1
            self.boots.append(Boot.DOWNLOAD)


@dataclass
class Samd(NativeUsb):
    """Arduino's and Adafruit's SAMD cores, CDC.cpp, and the AVR core: 250 ms without a change."""

    restarts_at: float | None = None

    def changed(self, before: Lines, now: float) -> None:
        is_touched = self.bps == 1200 and not self.lines.dtr
        self.restarts_at = now + 0.25 if is_touched else None

    def run_until(self, now: float) -> None:
        if self.restarts_at is not None and now >= self.restarts_at:
            self.boot()
        self.now = now


class Nrf52(NativeUsb):
    """Adafruit's nRF52 core, Adafruit_TinyUSB_Core_Arduino: DTR goes off at 1200 baud."""

    def changed(self, before: Lines, now: float) -> None:
        if self.bps == 1200 and before.dtr and not self.lines.dtr:
            self.boot()


class ArduinoPico(NativeUsb):
    """arduino-pico, SerialUSB.cpp: DTR is off at 1200 baud."""

    def changed(self, before: Lines, now: float) -> None:
        if self.bps == 1200 and not self.lines.dtr:
            self.boot()


class PicoSdk(NativeUsb):
    """pico-sdk, reset_interface.c: 1200 baud."""

    def changed(self, before: Lines, now: float) -> None:
        if self.bps == 1200:
            self.boot()


def _no_delay() -> float:
    return 0.0


class Bench:
    """A controller between a client's commands and a board; its clock runs on with both.

    Timers are called exactly when they are due. `delay_s` gives the time each message takes
    on the network, one way; commands keep their order.
    """

    def __init__(
        self,
        board: Board,
        delay_s: Callable[[], float] = _no_delay,
        *,
        ignores_answers: bool = False,
        controller: Controller | None = None,
    ) -> None:
        self.controller = controller or LineController()
        self.board = board
        self.now = 0.0
        self.shown: list[Lines] = []
        self.shown_at: list[float] = []
        self._delay_s = delay_s
        self._ignores_answers = ignores_answers
        self.client_now = 0.0
        self.bps: int | None = None  # as the client has set it

    def play(self, sequence: Iterable[Sent]) -> None:
        """Send a client's commands; a busy controller takes the next one when it has time."""
        for sent in sequence:
            self.client_now += sent.sleep_s
            self.run_until(max(self.now, self.client_now + self._delay_s()))
            while self.controller.busy:
                self._run_timer()
            if sent.control is not None:
                request(self.controller, self.now, sent.control, at_1200=self.bps == 1200)
                self.show()
            self.client_now += self._wait_for_answer()

    def set_baudrate(self, bps: int) -> None:
        """The client sets a baud rate, when the controller has time for it."""
        while self.controller.busy:
            self._run_timer()
        self.bps = bps
        self.board.run_until(self.now)
        self.board.set_baudrate(bps)

    def _wait_for_answer(self) -> float:
        if self._ignores_answers:
            return clients.IGNORED_ACKNOWLEDGEMENT_S
        waited = self.now + self._delay_s() - self.client_now
        polls = max(1, math.ceil(waited / clients.ACKNOWLEDGEMENT_POLL_S - TOLERANCE_S))
        return polls * clients.ACKNOWLEDGEMENT_POLL_S

    def leave(self) -> None:
        """The connection is gone; then everything that still waits may happen.

        The baud rate goes back when the lines have settled.
        """
        self.controller.release(self.now, at_1200=self.bps == 1200)
        self.show()
        while self.controller.busy:
            self._run_timer()
        if self.bps is not None:
            self.board.run_until(self.now)
            self.board.set_baudrate(None)
            self.bps = None
        self.settle()

    def settle(self) -> None:
        self.run_until(self.now + 10.0)

    def run_until(self, then: float) -> None:
        while (deadline := self.controller.next_deadline()) is not None and deadline <= then:
            self._run_timer()
        self.now = then
        self.board.run_until(then)

    def _run_timer(self) -> None:
        deadline = self.controller.next_deadline()
        assert deadline is not None
        assert deadline >= self.now
        self.now = deadline
        self.controller.handle_timer(self.now)
        self.show()

    def show(self) -> None:
        """Put what the controller hands out on the board's lines."""
        for step in self.controller.lines_to_set():
            if isinstance(step, Baudrate):
                self.board.set_baudrate(step.bps)
            else:
                self.board.set(step, self.now)
                self.shown.append(step)
                self.shown_at.append(self.now)


def request(controller: Controller, now: float, control: Control, *, at_1200: bool = False) -> None:
    if control in {Control.DTR_ON, Control.DTR_OFF}:
        controller.request(now, dtr=control == Control.DTR_ON, at_1200=at_1200)
    else:
        controller.request(now, rts=control == Control.RTS_ON, at_1200=at_1200)
