"""What esptool prints, understood: how far it has got, and what has come of it.

Made for what esptool 4 and 5 print into a pipe; other versions still give their lines. Pure logic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from gateway.flash.outcome import Outcome


class Phase(IntEnum):
    """How far it has got; only forward."""

    CONNECTING = 0  # the chip has not answered
    CONNECTED = 1  # the chip has answered, its flash is as it was
    WRITING = 2  # flash is being erased or written, or it is about to
    VERIFYING = 3  # the first image that is not verified is written


@dataclass(frozen=True, slots=True)
class ChipFound:
    """The chip has answered, and told which one it is."""

    chip: str


@dataclass(frozen=True, slots=True)
class Writing:
    """Of the image of that number, in the order of the command line, so much is written."""

    image: int
    percent: float


@dataclass(frozen=True, slots=True)
class Verified:
    """The image of that number was read back and is right."""

    image: int


Event = ChipFound | Writing | Verified

_CHIP = re.compile(r"(?:Chip is|Chip type:)\s+(\S.*)")
_WRITING = re.compile(r"Writing at 0x[0-9a-fA-F]+\b.*?(\d+(?:\.\d+)?) ?%")
#: esptool 4 prints the second before it compresses the first image; from there on nothing is sure.
_STARTS_WRITING = ("Erasing flash", "Flash will be erased", "Writing ", "Compressed ")
_WROTE = re.compile(r"Wrote \d+ bytes")
_VERIFIED = "Hash of data verified."
_MISMATCH = "MD5 of file does not match"
_ERROR = re.compile(r"(?:ERROR: )?A (?:fatal|serial exception) error occurred: (.+)")
_ERROR_5 = re.compile(r"ERROR: (.+)")
_WRONG_CHIP = "This chip is "

_MAX_REASON_CHARACTERS = 300


class EsptoolOutput:
    """Reads the lines of one run of write-flash for `n_images` images."""

    def __init__(self, n_images: int) -> None:
        self.phase = Phase.CONNECTING
        self.verified = 0  # images
        self._n_images = n_images
        self._wrote = 0  # images
        self._reason = ""
        self._last_line = ""
        self._mismatch = False

    def read(self, line: str) -> list[Event]:
        """What a line tells, without its end; most tell nothing."""
        line = line.strip()
        if not line:
            return []
        self._last_line = line
        if found := _CHIP.match(line):
            self._reach(Phase.CONNECTED)
            return [ChipFound(found[1])]
        if line.startswith(_STARTS_WRITING):
            self._reach(Phase.WRITING)
        if found := _WRITING.match(line):
            percent = min(100.0, float(found[1]))
            return [Writing(self._image(self._wrote), percent)]
        if _WROTE.match(line):
            self._wrote += 1
            self._reach(Phase.VERIFYING)
            return [Writing(self._image(self._wrote - 1), 100.0)]
        if line == _VERIFIED:
            self.verified = min(self.verified + 1, self._n_images)
            return [Verified(self.verified - 1)]
        self._note_error(line)
        return []

    def outcome(self, exit_code: int) -> tuple[Outcome, str]:
        """What has come of it once esptool has ended, and esptool's reason if it failed.

        A negative code is the signal that has ended it.
        """
        if exit_code == 0:
            return Outcome.WRITTEN, ""
        reason = self._reason or self._last_line[:_MAX_REASON_CHARACTERS]
        if exit_code < 0:
            reason = f"esptool was ended by signal {-exit_code}"
        reason = reason or f"esptool has failed with exit code {exit_code}"
        if self._mismatch:
            return Outcome.NOT_VERIFIED, reason
        if self.verified == self._n_images:
            return Outcome.NOT_RESET, reason
        if reason.startswith(_WRONG_CHIP):
            return Outcome.REFUSED, reason
        return _OUTCOMES[self.phase], reason

    def _image(self, number: int) -> int:
        return max(0, min(number, self._n_images - 1))

    def _reach(self, phase: Phase) -> None:
        self.phase = max(self.phase, phase)

    def _note_error(self, line: str) -> None:
        self._mismatch = self._mismatch or _MISMATCH in line
        if found := _ERROR.match(line) or _ERROR_5.match(line):
            self._reason = found[1][:_MAX_REASON_CHARACTERS]


_OUTCOMES = {
    Phase.CONNECTING: Outcome.NO_CONTACT,
    Phase.CONNECTED: Outcome.REFUSED,
    Phase.WRITING: Outcome.INCOMPLETE,
    Phase.VERIFYING: Outcome.INCOMPLETE,
}
