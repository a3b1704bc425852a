"""The board's output on its way to one client: sent at once, kept back, or left in the kernel.

What becomes of output that the client does not take is the operator's choice (`slow_client`), and
that of `sharing`: nobody who drives a board is slowed down by who only watches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from gateway.config.document import ClientLimits, SlowClient
from gateway.devices.device import Device
from gateway.devices.sharing import DeviceUser
from gateway.net.backlog import Backlog
from gateway.protocol.access_server import Event
from gateway.sessions.client_replay import ClientReplay


class OutputOwner(DeviceUser, Protocol):
    """The session of the client."""

    def send(self, data: bytes) -> None:
        """Send bytes of the board to the client."""

    def output_dropped(self) -> None:
        """Output is dropped for the first time."""

    def close(self, reason: str, *, is_fault: bool = False) -> None:
        """End the session."""


class ClientOutput:
    """See the module; does nothing before `start` and after `stop`."""

    def __init__(self, device: Device, owner: OutputOwner, limits: ClientLimits) -> None:
        self.is_suspended = False  # the client has asked for no more data
        self._device = device
        self._owner = owner
        self._slow_client = limits.slow_client
        self._backlog = Backlog(1024 * limits.client_buffer_kib)
        self._is_active = False
        self._is_client_slow = False  # more waits in its connection than should
        self._keeps_back = False  # some output is kept here
        self._wants_past = limits.replay
        self._replay: ClientReplay | None = None  # output is held for what was before

    @property
    def dropped_bytes(self) -> int:
        """How much the client was too slow for."""
        return self._backlog.dropped_bytes

    @property
    def kept_bytes(self) -> int:
        """How much waits here for the client."""
        return len(self._backlog)

    def start(self) -> None:
        """The client has the device."""
        self._is_active = True
        if self._wants_past:
            self._replay = ClientReplay(self._device.recorder, self._deliver)

    def client_sent(self, events: Iterable[Event]) -> None:
        """What the client has sent tells whether it wants to know what was before it came."""
        if self._replay is not None:
            self._replay.heard(events)

    def stop(self) -> bytes:
        """The client has left, or is about to be closed; returns what is left for it.

        The board's output waits for it no more: a board whose output nobody takes may stop taking
        bytes itself.
        """
        self._is_active = False
        self._device.hold_output(self._owner, False)
        held = b"" if self._replay is None else self._replay.stop()
        return self._backlog.take_all() + held

    def add(self, data: bytes) -> None:
        """The board has sent bytes."""
        if not self._is_active:
            return
        if self._replay is not None and not self._replay.is_over:
            self._replay.add(data)
        elif self._keeps_back or self.is_suspended or self._is_client_slow:
            self._deliver_late(data)
        else:
            self._owner.send(data)

    def _deliver(self, data: bytes) -> None:
        """What was held for what was before, and is not any more."""
        self._replay = None
        self.add(data)

    def _deliver_late(self, data: bytes) -> None:
        if self._keeps_back or not self._device.waits_for(self._owner):
            self._keep_back(data)
        else:
            self._owner.send(data)

    def purge(self) -> None:
        """The client does not want any more what is kept for it."""
        self._backlog.take_all()
        self._keeps_back = False

    def suspend(self, suspended: bool) -> None:
        """The client wants no output for now, or wants it again."""
        self.is_suspended = suspended
        self._catch_up()

    def client_slow(self, is_slow: bool) -> None:
        """The client's connection takes nothing more for now (True), or takes it again."""
        self._is_client_slow = is_slow
        self._catch_up()

    def _keep_back(self, data: bytes) -> None:
        """Keep the board's bytes for a client that does not take them and is not waited for."""
        if self._slow_client is SlowClient.DISCONNECT and not self._backlog.fits(data):
            self._owner.close("does not take the board's output", is_fault=True)
            return
        self._keeps_back = True
        dropped_bytes = self._backlog.add(data)
        self._device.users.output_dropped_bytes += dropped_bytes
        if 0 < dropped_bytes == self._backlog.dropped_bytes:  # the first
            self._owner.output_dropped()

    def _catch_up(self) -> None:
        """Send what was kept back, as far as the client takes it."""
        while self._backlog and not self.is_suspended and not self._is_client_slow:
            self._owner.send(self._backlog.take())
        self._keeps_back = bool(self._backlog)
        self._read_board_or_not()

    def _read_board_or_not(self) -> None:
        if self._is_active:
            is_behind = self._is_client_slow or bool(self._backlog)
            is_waited_for = self._slow_client is SlowClient.PAUSE
            held = self.is_suspended or (is_behind and is_waited_for)
            self._device.hold_output(self._owner, held)
