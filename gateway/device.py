"""One device of the YAML over time: who uses it, its lines, and what is left for the next user.

Hands its port to one user at a time; after each the lines and settings are what the YAML says.
How the port is opened, and opened again, is `lasting_port`'s matter, what a user's client speaks
`session`'s, who may connect `listener`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from enum import Enum

import structlog

from gateway.config import OnAbsent, OnConnect, OnDisconnect, PortConfig
from gateway.device_controls import DeviceControls
from gateway.errors import ClientError, DeviceAbsentError, DeviceError
from gateway.lasting_port import LastingPort, Locate
from gateway.line_driver import LineDriver
from gateway.output_log import OutputLog, open_log
from gateway.recorder import Recorder
from gateway.sharing import Arrival, DeviceUser, Users

#: How long a new user waits for the one before to be gone. A client that ends one connection and
#: starts the next at once may be seen in the other order.
_HANDOVER_S = 0.5

#: How long the bytes of a client that has left may keep the port from the next.
_FINISH_LIMIT_S = 10.0

#: How long stopping waits for the last bytes to be sent, and again for the lines to be released
#: without them.
_STOP_LIMIT_S = 0.5


class DeviceState(Enum):
    """What is true of a device."""

    OPENING = "opening"  # its tty is being opened for the first time
    ABSENT = "absent"  # its tty does not exist; it is tried again
    IDLE = "idle"  # open, nobody uses it
    IN_USE = "in use"  # open, a user has it
    AWAY = "away"  # its tty has vanished under its user, who is kept for a while
    RELEASING = "releasing"  # open; lines and settings go back to where the next user expects them
    BROKEN = "broken"  # its tty exists and does not work, `reason` says why; it is tried again
    STOPPED = "stopped"  # closed for good


#: A port is there, or is waited for: it has settings and lines.
_HAS_PORT = frozenset(
    {DeviceState.IDLE, DeviceState.IN_USE, DeviceState.AWAY, DeviceState.RELEASING}
)


class Device(DeviceControls):
    """See the module; made and used on the loop."""

    def __init__(
        self,
        config: PortConfig,
        locate: Locate,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        port = LastingPort(
            locate, config.serial, self, log, lambda ids: config.resets.strategy(ids).rest
        )
        super().__init__(config.name, port, LineDriver(config.resets, port, log))
        self.state = DeviceState.OPENING
        self.reason = ""
        self.received_bytes = 0  # from the board, since the gateway runs
        self.sessions = 0  # users that have had it
        self.idle = asyncio.Event()  # it can be had at once
        self.recorder = Recorder(1024 * config.recording.record_kib)
        self._config = config
        self._log = log
        self._output_log: OutputLog | None = None
        self._loop = asyncio.get_running_loop()
        self.users = Users(config.sharing)
        self._waiting: dict[DeviceUser, asyncio.TimerHandle] = {}
        self._finish: asyncio.TimerHandle | None = None
        self._is_away = False  # the board has vanished, and is waited for
        self._is_busy = False  # too many bytes wait to be sent
        self._at_rest = asyncio.Event()  # nothing is under way that stop() has to wait for
        self._at_rest.set()

    def start(self) -> None:
        """Open the device, now and whenever it is there."""
        self._output_log = open_log(self._config.recording, self._log)
        self._port.start()

    def look_again(self) -> None:
        """What is plugged in has changed, and may matter to this device."""
        in_use = self.state is not DeviceState.IDLE or bool(self.users)
        self._port.look_again(in_use=in_use)

    async def stop(self) -> None:
        """Wait until the last user's lines are released, then close the port for good.

        Bounded: bytes that the board does not take are dropped, a kernel that does not answer
        is left behind.
        """
        self._refuse_waiting("the gateway is shutting down")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._at_rest.wait(), _STOP_LIMIT_S)
        if self.state is DeviceState.RELEASING:
            # A board that is held in reset takes no bytes, and must not stay so for them.
            self._drop_unsent()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._at_rest.wait(), _STOP_LIMIT_S)
        self._enter(DeviceState.STOPPED, "stopped")
        self._end_use()
        await self._port.stop()
        if self._output_log is not None:
            await asyncio.to_thread(self._output_log.close)

    def attach(self, user: DeviceUser) -> None:
        """Ask for the device: `attached` or `refused` is called, perhaps at once."""
        self._waiting[user] = self._loop.call_later(_HANDOVER_S, self._refuse_now, user)
        self._serve_waiting()
        if user in self._waiting and self.state is DeviceState.ABSENT:
            self._log.info("client_waits", client=user.label, reason=self.reason)

    def detach(self, user: DeviceUser) -> None:
        """Give the device back, or stop asking for it; what was written is still sent."""
        if (timer := self._waiting.pop(user, None)) is not None:
            timer.cancel()
        if not self.users.leave(user):  # others drive it
            self._read_or_not()
        elif self.state is DeviceState.AWAY:
            self._nobody_drives_away()
        else:
            self._begin_release(self._reset_and_release, _FINISH_LIMIT_S)

    @property
    def is_open(self) -> bool:
        """Whether there is a port, or somebody who waits for it: `status` can be asked."""
        return self.state in _HAS_PORT

    def hold_output(self, user: DeviceUser, held: bool) -> None:
        """`user` takes no output for now (True), or takes it again.

        What the board sends stays in the kernel while nobody who drives takes it.
        """
        self.users.hold(user, held)
        self._read_or_not()

    def waits_for(self, user: DeviceUser) -> bool:
        """Whether output that `user` does not take is left in the kernel."""
        return self.users.hold_output and user in self.users.drivers

    # What the port reports (lasting_port.LastingPortOwner).

    def data_received(self, data: bytes) -> None:
        """Pass the board's bytes to the user, and keep what is to be kept of them."""
        self.received_bytes += len(data)
        self.recorder.record(self._loop.time(), data)
        if self._output_log is not None:
            self._output_log.write(data)
        for user in self.users.audience:
            user.data_received(data)

    def pause_writing(self) -> None:
        """Pass it on."""
        self._is_busy = True
        for user in tuple(self.users.drivers):
            user.board_busy()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._is_busy = False
        for user in tuple(self.users.drivers):
            user.board_ready()

    def port_opened(self) -> None:
        """The port is open, lines at rest: the device can be had."""
        self._lines = LineDriver(self._config.resets, self._port, self._log)
        self._become_idle()

    def port_away(self, error: DeviceError) -> None:
        """The board has left the bus under its users, who keep the device for a while."""
        self._is_away = True
        self._lines.board_away()
        # Of one that is being released, the end comes at once: there is nothing to release.
        if self.state is not DeviceState.RELEASING:
            self._enter(DeviceState.AWAY, str(error))

    def port_back(self) -> None:
        """The board is back under its users, perhaps as another USB device."""
        self._is_away = False
        self._lines.board_back()
        if self.state is DeviceState.AWAY:
            self._enter(DeviceState.IN_USE)
            self._serve_waiting()

    def port_lost(self, error: DeviceError) -> None:
        """The port is closed; it is tried again. Its users are told."""
        users, drivers, told = list(self.users), list(self.users.drivers), self.users.told
        self.users.clear()
        self._port.grace_s = 0.0
        self._end_use()
        absent = isinstance(error, DeviceAbsentError)
        self._enter(DeviceState.ABSENT if absent else DeviceState.BROKEN, str(error))
        self._serve_waiting()
        for user in users:
            if user in drivers and not told:
                user.refused(ClientError(f"{self.name}: {self.state.value}: {self.reason}"))
            else:
                user.device_lost(error)

    def _end_use(self) -> None:
        self._lines.close()
        self._is_away = self._is_busy = self._break_on = False
        if self._finish is not None:
            self._finish.cancel()

    def _nobody_drives_away(self) -> None:
        """The last who drove a board that is away has left."""
        if self._resume():
            return
        self._port.grace_s = 0.0
        self._port.give_up_absence()
        self._end_use()
        self._enter(DeviceState.ABSENT, self.reason)
        self._serve_waiting()

    def _read_or_not(self) -> None:
        if self.users.drivers and self.is_open:
            if self.users.hold_output:
                self._port.pause_reading()
            else:
                self._port.resume_reading()

    def _begin_release(self, then: Callable[[], None], limit_s: float) -> None:
        """Let out what was written, for `limit_s` at most, then bring lines and settings back."""
        self._port.grace_s = self._config.grace_s if self.users else 0.0
        self.lines_set_by = None
        self._enter(DeviceState.RELEASING)
        self._finish = self._loop.call_later(limit_s, self._drop_unsent)
        self._port.resume_reading()
        self._port.when_sent(then)

    def _reset_and_release(self) -> None:
        if self._config.on_disconnect is OnDisconnect.RESET:
            self.reset(self._release_lines)
        else:
            self._release_lines()

    def _release_lines(self) -> None:
        if self._finish is not None:
            self._finish.cancel()
        if self._break_on:
            self.set_break(False, self._release_lines)
            return
        if self._port.settings == self._config.serial:
            self._lines.release(self._become_idle)
        else:
            self._lines.release(lambda: self.apply(self._config.serial, self._become_idle))

    def _drop_unsent(self) -> None:
        if self._port.unsent_bytes:
            self._log.warning("unsent_dropped", unsent_bytes=self._port.unsent_bytes)
        self._port.purge(receive=False, transmit=True, done=lambda: None)

    def _become_idle(self) -> None:
        if not self._is_away:
            self._enter(DeviceState.IDLE)
            # What has changed while it was in use may be that it is not the right one any more.
            self.look_again()
        if self._is_away:
            self._enter(DeviceState.AWAY, "not plugged in")
            self._nobody_drives_away()
        else:
            self._serve_waiting()

    def _serve_waiting(self) -> None:
        """Give the device to who has waited longest, or has had it before, if it can be given."""
        match self.state:
            case DeviceState.IDLE if self._waiting:
                self._admit(next(iter(self._waiting)))
                self._port.grace_s = self._config.grace_s
                self._enter(DeviceState.IN_USE)
                self._prepare_board()
            case DeviceState.IDLE:
                self._resume()
            case DeviceState.IN_USE | DeviceState.AWAY if self._waiting and self.users.drivers:
                self._make_room()
            case DeviceState.ABSENT if self._config.on_absent is OnAbsent.WAIT:
                pass
            case DeviceState.ABSENT | DeviceState.BROKEN | DeviceState.STOPPED:
                self._refuse_waiting(f"{self.name}: {self.state.value}: {self.reason}")

    def _make_room(self) -> None:
        """Do to those who drive what the first of those who wait may have done to them."""
        by = next(iter(self._waiting))
        if not self.users.told:
            return  # they wait until the board is prepared
        if self.users.arrival is Arrival.JOINS:
            while self._waiting:
                user = next(iter(self._waiting))
                self._admit(user)
                self._introduce(user)
        elif self.users.may_be_followed and not self._is_away:
            if self.users.arrival is Arrival.MUTES:
                for user in self.users.mute():
                    user.muted(by.label)
                self._begin_release(self._release_lines, _HANDOVER_S)
            elif self.users.arrival is Arrival.REPLACES:
                for user in tuple(self.users.drivers):
                    user.replaced(by.label)
                self._hurry()

    def _hurry(self) -> None:
        """Who has been replaced has no claim to the time of one that has left by itself."""
        if self.state is DeviceState.RELEASING and self._finish is not None:
            self._finish.cancel()
            self._finish = self._loop.call_later(_HANDOVER_S, self._drop_unsent)

    def _admit(self, user: DeviceUser) -> None:
        self._waiting.pop(user).cancel()
        self.sessions += 1
        self.users.enter(user)

    def _resume(self) -> bool:
        """Give the device back to who was muted last, if anybody."""
        user = self.users.resume()
        if user is None:
            return False
        if self.state is DeviceState.IDLE:
            self._enter(DeviceState.IN_USE)
        user.resumed()
        if self._is_busy:
            user.board_busy()
        self._read_or_not()
        return True

    def _prepare_board(self) -> None:
        """Bring the board to where its new user wants it, then tell the user."""
        match self._config.on_connect:
            case OnConnect.NOTHING:
                self._tell_users()
            case OnConnect.BOOTLOADER:
                self.enter_bootloader(self._tell_users)
            case OnConnect.RESET:
                self.reset(self._tell_users)

    def _tell_users(self) -> None:
        if self.users.told:
            return
        self.users.told = True
        for user in tuple(self.users.drivers):  # they may have left meanwhile
            self._introduce(user)
        self._serve_waiting()

    def _introduce(self, user: DeviceUser) -> None:
        """Tell a user that it drives the device."""
        user.attached()
        if self._is_busy:
            user.board_busy()

    def _refuse_waiting(self, reason: str) -> None:
        while self._waiting:
            user, timer = self._waiting.popitem()
            timer.cancel()
            user.refused(ClientError(reason))

    def _refuse_now(self, user: DeviceUser) -> None:
        if self._will_be_served:
            self._waiting[user] = self._loop.call_later(_HANDOVER_S, self._refuse_now, user)
            self._serve_waiting()
            return
        del self._waiting[user]
        what = self.state.value
        if self.users.drivers:  # its board may be away
            what = f"in use by {self.users.names} since {self.users.since}"
        user.refused(ClientError(f"{self.name}: {what}"))

    @property
    def _will_be_served(self) -> bool:
        """Whether who waits gets the device however long that takes; all of it is bounded."""
        nobody_has_it = self.state in {DeviceState.OPENING, DeviceState.ABSENT}
        if nobody_has_it and self._config.on_absent is OnAbsent.WAIT:
            return True
        has_port = self.state in _HAS_PORT
        return has_port and self.users.arrival is not Arrival.WAITS

    def _enter(self, state: DeviceState, reason: str = "") -> None:
        if self.state is DeviceState.STOPPED:
            return
        self.state = state
        self.reason = reason
        if state is DeviceState.IDLE:
            self.idle.set()
        else:
            self.idle.clear()
        if state in {DeviceState.IN_USE, DeviceState.RELEASING}:
            self._at_rest.clear()
        else:
            self._at_rest.set()
