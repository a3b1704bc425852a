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

from gateway import sharing
from gateway.config import OnAbsent, OnConnect, OnDisconnect, PortConfig
from gateway.errors import ClientError, DeviceAbsentError, DeviceError
from gateway.lasting_port import LastingPort, Locate
from gateway.line_driver import LineDriver
from gateway.output_log import OutputLog, open_log
from gateway.protocol.access_server import PortStatus
from gateway.protocol.serial_settings import SerialSettings
from gateway.recorder import Recorder
from gateway.serial_states import PortStates
from gateway.sharing import DeviceUser, since_text

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


class Device:
    """See the module; made and used on the loop."""

    def __init__(
        self,
        config: PortConfig,
        locate: Locate,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.name = config.name
        self.state = DeviceState.OPENING
        self.reason = ""
        self.received_bytes = 0  # from the board, since the gateway runs
        self.sent_bytes = 0
        self.sessions = 0  # users that have had it
        self.idle = asyncio.Event()  # it can be had at once
        self.recorder = Recorder(1024 * config.recording.record_kib)
        self._config = config
        self._log = log
        self._output_log: OutputLog | None = None
        self._loop = asyncio.get_running_loop()
        self._port = LastingPort(
            locate, config.serial, self, log, lambda ids: config.resets.strategy(ids).rest
        )
        self._lines = LineDriver(config.resets, self._port, log)
        self._user: DeviceUser | None = None
        self._user_told = False  # False while the board is brought to where the user wants it
        self._user_since = sharing.local_now()
        self._waiting: dict[DeviceUser, asyncio.TimerHandle] = {}
        self._finish: asyncio.TimerHandle | None = None
        self._break_on = False
        self._at_rest = asyncio.Event()  # nothing is under way that stop() has to wait for
        self._at_rest.set()

    def start(self) -> None:
        """Open the device, now and whenever it is there."""
        self._output_log = open_log(self._config.recording, self._log)
        self._port.start()

    def look_again(self) -> None:
        """What is plugged in has changed, and may matter to this device."""
        self._port.look_again(in_use=self.state is not DeviceState.IDLE)

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
        if user is not self._user:
            return
        self._user = None
        self._port.grace_s = 0.0
        if self.state is DeviceState.AWAY:
            self._port.give_up_absence()
            self._end_use()
            self._enter(DeviceState.ABSENT, self.reason)
            return
        self._enter(DeviceState.RELEASING)
        self._finish = self._loop.call_later(_FINISH_LIMIT_S, self._drop_unsent)
        self._port.resume_reading()
        self._port.when_sent(self._reset_and_release)

    # What a user may do with the device between `attached` and `device_lost` or `detach`. Every
    # `done` is called when what follows may go to the board, unless the device is lost first.

    @property
    def status(self) -> PortStatus:
        """What is in force: what a client is told."""
        return PortStatus(self._port.settings, self._lines.wanted, self._break_on)

    @property
    def is_open(self) -> bool:
        """Whether there is a port, or somebody who waits for it: `status` can be asked."""
        return self.state in _HAS_PORT

    @property
    def user(self) -> str:
        """Who has the device, empty if nobody."""
        return "" if self._user is None else self._user.label

    @property
    def user_since(self) -> str:
        """Since when, empty if nobody has it."""
        return "" if self._user is None else since_text(self._user_since)

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        return self._port.unsent_bytes

    def write(self, data: bytes) -> None:
        """Send bytes to the board."""
        self.sent_bytes += len(data)
        self._port.write(data)

    def pause_reading(self) -> None:
        """Leave what the board sends in the kernel."""
        self._port.pause_reading()

    def resume_reading(self) -> None:
        """Take what the board sends again."""
        self._port.resume_reading()

    def apply(self, settings: SerialSettings, done: Callable[[], None]) -> None:
        """Change the settings behind the bytes written so far; `status` tells what came of it."""
        self._port.apply(settings, lambda _: done())

    @property
    def joins_lines(self) -> bool:
        """Whether commands for both lines that come together are one step."""
        return self._lines.joins_lines

    def set_lines(
        self, done: Callable[[], None], *, dtr: bool | None = None, rts: bool | None = None
    ) -> None:
        """Set one modem line or both behind the bytes written so far."""
        self._lines.request(dtr=dtr, rts=rts, settled=done)

    def enter_bootloader(self, done: Callable[[], None]) -> None:
        """Reset the board into its bootloader, behind the bytes written so far.

        Both modem lines are off afterwards. Whatever else was asked of them and is not done yet
        is dropped, its `done` included.
        """
        self._lines.enter_bootloader(done)

    def reset(self, done: Callable[[], None]) -> None:
        """Reset the board into its app; otherwise as `enter_bootloader`."""
        self._lines.reset(done)

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        """Start or end a break behind the bytes written so far."""
        self._break_on = on
        self._port.set_break(on, done)

    def purge(self, done: Callable[[], None], *, receive: bool, transmit: bool) -> None:
        """Discard what the board has sent, what waits to be sent to it, or both."""
        self._port.purge(receive=receive, transmit=transmit, done=done)

    def read_states(self, done: Callable[[PortStates], None]) -> None:
        """Read the modem lines, what is on its way, and what has happened on the wire."""
        self._port.read_states(done)

    # What the port reports (lasting_port.LastingPortOwner).

    def data_received(self, data: bytes) -> None:
        """Pass the board's bytes to the user, and keep what is to be kept of them."""
        self.received_bytes += len(data)
        self.recorder.record(self._loop.time(), data)
        if self._output_log is not None:
            self._output_log.write(data)
        if self._user is not None and self._user_told:
            self._user.data_received(data)

    def pause_writing(self) -> None:
        """Pass it on."""
        if self._user is not None:
            self._user.board_busy()

    def resume_writing(self) -> None:
        """Pass it on."""
        if self._user is not None:
            self._user.board_ready()

    def port_opened(self) -> None:
        """The port is open, lines at rest: the device can be had."""
        self._lines = LineDriver(self._config.resets, self._port, self._log)
        self._become_idle()

    def port_away(self, error: DeviceError) -> None:
        """The board has left the bus under its user, who keeps the device for a while."""
        self._lines.board_away()
        self._enter(DeviceState.AWAY, str(error))

    def port_back(self) -> None:
        """The board is back under its user, perhaps as another USB device."""
        self._lines.board_back()
        self._enter(DeviceState.IN_USE)

    def port_lost(self, error: DeviceError) -> None:
        """The port is closed; it is tried again. Its user is told."""
        user, self._user = self._user, None
        was_told = self._user_told
        self._port.grace_s = 0.0
        self._end_use()
        absent = isinstance(error, DeviceAbsentError)
        self._enter(DeviceState.ABSENT if absent else DeviceState.BROKEN, str(error))
        self._serve_waiting()
        if user is not None and was_told:
            user.device_lost(error)
        elif user is not None:
            user.refused(ClientError(f"{self.name}: {self.state.value}: {self.reason}"))

    def _end_use(self) -> None:
        self._lines.close()
        self._break_on = False
        if self._finish is not None:
            self._finish.cancel()

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
        self._enter(DeviceState.IDLE)
        # What has changed while it was in use may be that it is not the right one any more.
        self.look_again()
        self._serve_waiting()

    def _serve_waiting(self) -> None:
        """Give the device to who has waited longest, if it can be given."""
        match self.state:
            case DeviceState.IDLE if self._waiting:
                self._user = next(iter(self._waiting))
                self._waiting.pop(self._user).cancel()
                self._user_since = sharing.local_now()
                self.sessions += 1
                self._port.grace_s = self._config.grace_s
                self._enter(DeviceState.IN_USE)
                self._prepare_board()
            case DeviceState.ABSENT if self._config.on_absent is OnAbsent.WAIT:
                pass
            case DeviceState.ABSENT | DeviceState.BROKEN | DeviceState.STOPPED:
                self._refuse_waiting(f"{self.name}: {self.state.value}: {self.reason}")

    def _prepare_board(self) -> None:
        """Bring the board to where its new user wants it, then tell the user."""
        self._user_told = False
        match self._config.on_connect:
            case OnConnect.NOTHING:
                self._tell_user()
            case OnConnect.BOOTLOADER:
                self.enter_bootloader(self._tell_user)
            case OnConnect.RESET:
                self.reset(self._tell_user)

    def _tell_user(self) -> None:
        if self._user is not None:  # it may have left meanwhile
            self._user_told = True
            self._user.attached()

    def _refuse_waiting(self, reason: str) -> None:
        while self._waiting:
            user, timer = self._waiting.popitem()
            timer.cancel()
            user.refused(ClientError(reason))

    def _refuse_now(self, user: DeviceUser) -> None:
        nobody_has_it = self.state in {DeviceState.OPENING, DeviceState.ABSENT}
        if nobody_has_it and self._config.on_absent is OnAbsent.WAIT:
            self._waiting[user] = self._loop.call_later(_HANDOVER_S, self._refuse_now, user)
            return
        del self._waiting[user]
        what = self.state.value
        if self._user is not None:  # its board may be away
            what = f"in use by {self._user.label} since {since_text(self._user_since)}"
        user.refused(ClientError(f"{self.name}: {what}"))

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
