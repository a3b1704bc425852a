"""A line controller between a client's commands and a board, with the network between them.

The boards are models of what DTR and RTS do to a chip, strict where a real one may be lucky.
Nothing here waits: the bench has its own clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from gateway.protocol.reset import IDLE, RESET, STRAP, LineController, Lines
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


@dataclass
class CircuitBoard:
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
class UsbSerialJtag:
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

    def run_until(self, _now: float) -> None:
        pass


def _no_delay() -> float:
    return 0.0


class Bench:
    """A controller between a client's commands and a board; its clock runs on with both.

    Timers are called exactly when they are due. `delay_s` gives the time each message takes
    on the network, one way; commands keep their order.
    """

    def __init__(
        self,
        board: CircuitBoard | UsbSerialJtag,
        delay_s: Callable[[], float] = _no_delay,
        *,
        ignores_answers: bool = False,
    ) -> None:
        self.controller = LineController()
        self.board = board
        self.now = 0.0
        self.shown: list[Lines] = []
        self._delay_s = delay_s
        self._ignores_answers = ignores_answers
        self.client_now = 0.0

    def play(self, sequence: Iterable[Sent]) -> None:
        """Send a client's commands; a busy controller takes the next one when it has time."""
        for sent in sequence:
            self.client_now += sent.sleep_s
            self.run_until(max(self.now, self.client_now + self._delay_s()))
            while self.controller.busy:
                self._run_timer()
            if sent.control is not None:
                request(self.controller, self.now, sent.control)
                self.show()
            self.client_now += self._wait_for_answer()

    def _wait_for_answer(self) -> float:
        if self._ignores_answers:
            return clients.IGNORED_ACKNOWLEDGEMENT_S
        waited = self.now + self._delay_s() - self.client_now
        polls = max(1, math.ceil(waited / clients.ACKNOWLEDGEMENT_POLL_S - TOLERANCE_S))
        return polls * clients.ACKNOWLEDGEMENT_POLL_S

    def leave(self) -> None:
        """The connection is gone; then everything that still waits may happen."""
        self.controller.release(self.now)
        self.show()
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
        for lines in self.controller.lines_to_set():
            self.board.set(lines, self.now)
            self.shown.append(lines)


def request(controller: LineController, now: float, control: Control) -> None:
    if control in {Control.DTR_ON, Control.DTR_OFF}:
        controller.request(now, dtr=control == Control.DTR_ON)
    else:
        controller.request(now, rts=control == Control.RTS_ON)
