"""The board's output on its way to one client: sent at once, kept back, or left in the kernel.

`slow_client` says what happens to output that the client does not take, `sharing` that no
controller of a board is slowed down by an observer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from gateway import clock
from gateway.config.document import ClientLimits, SlowClient
from gateway.port.claim import Claim
from gateway.protocol.access_server import Event
from gateway.session.replay import Replay


class Backlog:
    """The last `limit_bytes` of output that a client has not taken yet."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.dropped_bytes = 0
        self._chunks: deque[bytes] = deque()
        self._n_bytes = 0

    def __len__(self) -> int:
        return self._n_bytes

    def fits(self, data: bytes) -> bool:
        """Return whether all of `data` can be kept without anything being dropped."""
        return self._n_bytes + len(data) <= self._limit_bytes

    def add(self, data: bytes) -> int:
        """Keep `data`; returns how many bytes were dropped for it, the oldest first."""
        dropped_before = self.dropped_bytes
        self._chunks.append(data)
        self._n_bytes += len(data)
        while self._n_bytes > self._limit_bytes:
            oldest = self._chunks.popleft()
            dropped_bytes = min(self._n_bytes - self._limit_bytes, len(oldest))
            if dropped_bytes < len(oldest):
                self._chunks.appendleft(oldest[dropped_bytes:])
            self._n_bytes -= dropped_bytes
            self.dropped_bytes += dropped_bytes
        return self.dropped_bytes - dropped_before

    def take(self) -> bytes:
        """Return the oldest chunk, and keep it no longer."""
        data = self._chunks.popleft()
        self._n_bytes -= len(data)
        return data

    def take_all(self) -> bytes:
        """Return all of it, and keep nothing."""
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._n_bytes = 0
        return data


class OutputOwner(Protocol):
    """The session of the client."""

    def send(self, data: bytes) -> None:
        """Send bytes of the board to the client."""

    def output_dropped(self) -> None:
        """Output is dropped for the first time."""

    def close(self, reason: str, *, is_fault: bool = False) -> None:
        """End the session."""


class Output:
    """The output for one client, from `start` to `stop`; nothing is sent before and after.

    With `limits.replay`, the board's past is sent first to a client that turns out to be a person
    (see `replay`): output is held until that is decided.
    """

    def __init__(self, claim: Claim, owner: OutputOwner, limits: ClientLimits) -> None:
        self.is_suspended = False  # the client has asked for no more data
        self.awaits_client = False  # what it sends decides whether it is sent the past
        self._claim = claim
        self._owner = owner
        self._slow_client = limits.slow_client
        self._backlog = Backlog(1024 * limits.client_buffer_kib)
        self._is_active = False
        self._is_client_slow = False  # more waits in its connection than should
        self._keeps_back = False  # some output is kept here
        self._wants_past = limits.replay
        self._replay: Replay | None = None  # until it is over
        self._replay_timer: clock.Timer | None = None
        self._set_direct()

    @property
    def dropped_bytes(self) -> int:
        """How much the client was too slow for."""
        return self._backlog.dropped_bytes

    def start(self) -> None:
        """The client has the port."""
        self._is_active = True
        if self._wants_past:
            self._replay = Replay(self._claim.port.recorder.tail(), clock.time())
            self._set_replay_timer()
        self._set_direct()

    def stop(self) -> bytes:
        """The client has left, or is about to be closed; returns what is left for it.

        The board's output waits for it no more: a board whose output is not read may stop taking
        bytes itself.
        """
        self._is_active = False
        self._claim.port.hold_output(self._claim, False)
        held = b""
        if self._replay is not None:
            held, self._replay = self._replay.end(), None
            self._set_replay_timer()
        self._set_direct()
        return self._backlog.take_all() + held

    def add(self, data: bytes) -> None:
        """Send what the board has sent, now or later."""
        if not self._is_active:
            return
        if self._replay is not None:
            self._release(self._replay.board_sent(data))
        elif self._is_held and (self._keeps_back or not self._claim.port.waits_for(self._claim)):
            self._keep_back(data)
        else:
            self._owner.send(data)

    def client_sent(self, events: Iterable[Event]) -> None:
        """The client has sent something, which shows whether it is to be sent the past."""
        if self._replay is not None:
            self._release(self._replay.client_sent(events, clock.time()))

    def purge(self) -> None:
        """Drop what is kept for the client, at its wish."""
        self._backlog.take_all()
        self._keeps_back = False
        self._set_direct()

    def suspend(self, suspended: bool) -> None:
        """The client wants no output for now, or wants it again."""
        self.is_suspended = suspended
        self._catch_up()

    def client_slow(self, is_slow: bool) -> None:
        """The client's connection takes nothing more for now (True), or takes it again."""
        self._is_client_slow = is_slow
        self._catch_up()

    @property
    def _is_held(self) -> bool:
        """Whether output is not to be sent as it comes."""
        return self._keeps_back or self.is_suspended or self._is_client_slow

    def _set_direct(self) -> None:
        """Take the port's output here, or have it sent without a call in between."""
        is_direct = self._is_active and self._replay is None and not self._is_held
        self._claim.deliver = self._owner.send if is_direct else self.add
        self.awaits_client = self._replay is not None

    def _keep_back(self, data: bytes) -> None:
        """Keep the board's bytes for a client that does not take them and is not waited for."""
        if self._slow_client is SlowClient.DISCONNECT and not self._backlog.fits(data):
            self._owner.close("does not take the board's output", is_fault=True)
            return
        self._keeps_back = True
        self._set_direct()
        dropped_bytes = self._backlog.add(data)
        self._claim.port.counts.output_dropped_bytes += dropped_bytes
        if 0 < dropped_bytes == self._backlog.dropped_bytes:  # the first
            self._owner.output_dropped()

    def _catch_up(self) -> None:
        """Send what was kept back, as far as the client takes it."""
        while self._backlog and not self.is_suspended and not self._is_client_slow:
            self._owner.send(self._backlog.take())
        self._keeps_back = bool(self._backlog)
        self._set_direct()
        if self._is_active:
            is_behind = self._is_client_slow or bool(self._backlog)
            is_waited_for = self._slow_client is SlowClient.PAUSE
            held = self.is_suspended or (is_behind and is_waited_for)
            self._claim.port.hold_output(self._claim, held)

    # --- the board's past

    def _release(self, data: bytes) -> None:
        """Send what the replay has let go, if anything, and end it when it is over."""
        if self._replay is not None and self._replay.is_over:
            self._replay = None
        self._set_replay_timer()
        self._set_direct()
        if data:
            self.add(data)

    def _set_replay_timer(self) -> None:
        if self._replay_timer is not None:
            self._replay_timer.cancel()
            self._replay_timer = None
        if self._replay is not None:
            self._replay_timer = clock.call_at(self._replay.deadline, self._replay_due)

    def _replay_due(self) -> None:
        if self._replay is not None:
            self._release(self._replay.due(clock.time()))
