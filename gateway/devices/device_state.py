"""What may be true of a device: the words of `status`, and which of them have something in common.

What leads from one to another is `device`'s matter.
"""

from __future__ import annotations

import asyncio
from enum import Enum


class DeviceState(Enum):
    """What is true of a device."""

    OPENING = "opening"  # its tty is being opened, for the first time or after RELEASED
    ABSENT = "absent"  # its tty does not exist; it is tried again
    IDLE = "idle"  # open, nobody uses it
    IN_USE = "in use"  # open, a user has it
    AWAY = "away"  # its tty has vanished under its user, and is waited for
    RELEASING = "releasing"  # open; lines and settings go back to where the next user expects them
    RELEASED = "released"  # closed on purpose, `reason` says for what: the tty is for local tools
    BROKEN = "broken"  # its tty exists and does not work, `reason` says why; it is tried again
    STOPPED = "stopped"  # closed for good


#: A port is there, or is waited for: it has settings and lines.
HAS_PORT = frozenset(
    {DeviceState.IDLE, DeviceState.IN_USE, DeviceState.AWAY, DeviceState.RELEASING}
)

#: Nobody has the device and nothing is under way that has to end first: it can be closed at once.
MAY_CLOSE = frozenset(
    {DeviceState.OPENING, DeviceState.ABSENT, DeviceState.IDLE, DeviceState.BROKEN}
)

#: Something is under way that may not be cut short when the device is stopped.
_NOT_AT_REST = frozenset({DeviceState.IN_USE, DeviceState.RELEASING})


class HasState:
    """The part of `Device` that is its state, with the reason for it where there is one.

    `idle` is set while the device can be had at once.
    """

    def __init__(self) -> None:
        self.state = DeviceState.OPENING
        self.reason = ""
        self.idle = asyncio.Event()
        self._at_rest = asyncio.Event()  # nothing is under way that stopping has to wait for
        self._at_rest.set()

    @property
    def is_open(self) -> bool:
        """Whether there is a port, or somebody who waits for it: `status` can be asked."""
        return self.state in HAS_PORT

    def _enter(self, state: DeviceState, reason: str = "") -> None:
        if self.state is DeviceState.STOPPED:
            return
        self.state = state
        self.reason = reason
        if state is DeviceState.IDLE:
            self.idle.set()
        else:
            self.idle.clear()
        if state in _NOT_AT_REST:
            self._at_rest.clear()
        else:
            self._at_rest.set()
