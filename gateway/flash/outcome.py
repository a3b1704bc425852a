"""What can come of flashing a board, and the exit code that says so.

docs/remote-flashing.md has the same table for people; a test compares the two.
"""

from __future__ import annotations

from enum import Enum


class Outcome(Enum):
    """What has come of one board; the value is its name on the wire."""

    WRITTEN = "written"  # written, verified, reset, and its port is back
    FAILED = "failed"  # something that has no name here
    WRONG_INPUT = "wrong-input"  # arguments, files or the plan; nothing was sent to a board
    UNREACHABLE = "unreachable"  # no answer from the gateway, or none to the end
    NOT_ALLOWED = "not-allowed"  # the gateway wants a token, or another one
    BUSY = "busy"  # another has the port, and its sharing rule lets them keep it
    ABSENT = "absent"  # the board is not plugged in, or its port does not work
    NO_CONTACT = "no-contact"  # no chip answers in its bootloader; nothing was written
    REFUSED = "refused"  # the gateway or esptool does not want to write this; nothing was written
    INCOMPLETE = "incomplete"  # it broke off while writing: neither the old nor the new is there
    NOT_VERIFIED = "not-verified"  # what was read back is not what was written
    NOT_RESET = "not-reset"  # written and verified, but the board has not come back
    NOT_STORED = "not-stored"  # the images did not get to the gateway whole, or it has no room
    NO_ESPTOOL = "no-esptool"  # the gateway has none that it could run

    @property
    def exit_code(self) -> int:
        """The exit code of `esp-gateway flash`."""
        return _EXIT_CODES[self]


#: 1 and 2 mean what they do elsewhere in esp-gateway.
_EXIT_CODES = {outcome: code for code, outcome in enumerate(Outcome)}
