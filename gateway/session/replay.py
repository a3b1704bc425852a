"""Whether, and when, a client that has just come is sent what the board had said before.

For a person at a monitor, to see why the board has crashed. A program must not take old
output for an answer: pyserial discards what it has received at the end of its open(), a flasher
does before it begins. So the output is held until the client has been quiet for a moment, and a
client that begins to do something gets none of it, only what the board says from its arrival on.

Pure: times are arguments, seconds of any clock that does not go back. Where the past comes from
and how it is sent is decided in `output`.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.protocol.access_server import (
    BreakRequest,
    Event,
    LinesRequest,
    OutputSuspended,
    PurgeRequest,
    SerialData,
)
from gateway.protocol.line_controller import LineController
from gateway.protocol.reset import RESET

#: A client that has not said anything for so long, and for the longest of its pauses before, is
#: done with what it does at the start. esptool pauses for 0.25 s before its first reset.
QUIET_S = 0.5
#: The same, at least, for a client that sets up its port over RFC 2217: it waits for each answer,
#: and its network may be slow. pyserial's last command is a purge.
SETTING_UP_S = 1.5
#: Longer pauses are not the network's.
LONGEST_PAUSE_S = 1.5

#: After so long, a client that is not quiet gets the output all the same. One that waits for the
#: answers to its commands is left the time for so many more, for its network may be slow: esptool
#: sends 22 before the first that tells that it resets the board.
LONGEST_S = 3.0
COMMANDS = 24

#: At most so much of the past is sent, whatever is recorded: a backtrace, and what was before it.
MOST_PAST_BYTES = 262144
#: A board that says so much meanwhile is not held back any longer.
MOST_HELD_BYTES = 65536


class Replay:
    """One client's; over when `is_over`. Until then `held` and `past` are not sent.

    `past` is what the board had said when the client came, `held` what it has said since.
    """

    def __init__(self, past: bytes, now: float) -> None:
        self.is_over = False
        self._past = past[-MOST_PAST_BYTES:]
        self._held = bytearray()
        self._began_at = now
        self._heard_at = now
        self._longest_pause_s = 0.0  # of the client: about its round trip
        self._sets_up = False
        self._has_set_up = False
        self._lines = LineController()  # as this client moves them

    @property
    def deadline(self) -> float:
        """When `due` is to be called, unless something happens before."""
        quiet_s = QUIET_S + self._longest_pause_s
        if self._sets_up and not self._has_set_up:
            quiet_s = max(quiet_s, SETTING_UP_S)
        longest_s = LONGEST_S + COMMANDS * self._longest_pause_s
        return min(self._heard_at + quiet_s, self._began_at + longest_s)

    def board_sent(self, data: bytes) -> bytes:
        """The board has said more; returns what is to be sent to the client now."""
        self._held += data
        return self._end(with_past=True) if len(self._held) > MOST_HELD_BYTES else b""

    def client_sent(self, events: Iterable[Event], now: float) -> bytes:
        """The client has sent something; returns what is to be sent to it now."""
        pause_s = min(now - self._heard_at, LONGEST_PAUSE_S)
        self._longest_pause_s = max(self._longest_pause_s, pause_s)
        self._heard_at = now
        for event in events:
            match event:
                case SerialData() | BreakRequest(on=True) | OutputSuspended(suspended=True):
                    return self._end(with_past=False)
                case LinesRequest(dtr=dtr, rts=rts):
                    self._lines.request(now, dtr=dtr, rts=rts)
                case PurgeRequest(receive=True):
                    self._has_set_up = True
                    # It does not want this as an answer; a person may want to see it.
                    self._past = (self._past + self._held)[-MOST_PAST_BYTES:]
                    self._held.clear()
            self._sets_up = True
        # What monitors do when they attach only passes through the reset state.
        if self._lines.applied == RESET or self._lines.resets():
            return self._end(with_past=False)
        return b""

    def due(self, now: float) -> bytes:
        """The deadline may have come; returns what is to be sent to the client now."""
        if now < self.deadline:
            return b""
        return self._end(with_past=self._lines.wanted != RESET)

    def end(self) -> bytes:
        """The client is about to be closed; returns what it has not been sent."""
        return self._end(with_past=True)

    def _end(self, *, with_past: bool) -> bytes:
        self.is_over = True
        return self._past + bytes(self._held) if with_past else bytes(self._held)
