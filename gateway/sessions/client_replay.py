"""Holds a new client's output back until it is known whether it gets the board's past first.

How that is decided is `replay`'s matter, what becomes of output that a client does not take
`client_output`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gateway import clock
from gateway.devices.recorder import Recorder
from gateway.protocol.access_server import Event
from gateway.sessions.replay import Replay


class ClientReplay:
    """For one client, from its arrival; `send` is called with the output when it is let go."""

    def __init__(self, recorder: Recorder, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._replay = Replay(recorder.tail(), clock.time())
        self._timer = clock.call_at(self._replay.deadline, self._look)

    @property
    def is_over(self) -> bool:
        """Whether output goes to the client as it comes."""
        return self._replay.is_over

    def add(self, data: bytes) -> None:
        """The board has sent bytes, while this is not over."""
        self._release(self._replay.board_sent(data))

    def heard(self, events: Iterable[Event]) -> None:
        """The client has sent something."""
        if not self.is_over:
            self._release(self._replay.client_sent(events, clock.time()))

    def stop(self) -> bytes:
        """The client gets nothing any more; returns what is held for it."""
        self._timer.cancel()
        return b"" if self.is_over else self._replay.end()

    def _look(self) -> None:
        self._release(self._replay.due(clock.time()))

    def _release(self, data: bytes) -> None:
        self._timer.cancel()
        if not self.is_over:
            self._timer = clock.call_at(self._replay.deadline, self._look)
        elif data:
            self._send(data)
