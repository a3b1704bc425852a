"""One device of the YAML over time: who uses it, its lines, and what is left for the next user.

Hands its port to one user at a time; after each the lines and settings are what the YAML says.
How the port is opened, and opened again, is `lasting_port`'s matter, what a user's client speaks
`session`'s, who may connect `listener`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import structlog

from gateway import clock
from gateway.config.document import OnAbsent, OnConnect, OnDisconnect, Opening, PortConfig
from gateway.devices.device_controls import DeviceControls
from gateway.devices.device_state import HAS_PORT, MAY_CLOSE, DeviceState, HasState
from gateway.devices.end_of_use import HANDOVER_S, EndOfUse
from gateway.devices.local_use import LocalUse
from gateway.devices.output_log import OutputLog, open_log
from gateway.devices.progress_limit import ProgressLimit
from gateway.devices.recorder import Recorder
from gateway.devices.sharing import TAKE_BACK_AFTER_S, Arrival, DeviceUser, Users
from gateway.devices.waiting_line import WaitingLine
from gateway.errors import ClientError, DeviceAbsentError, DeviceError
from gateway.runtime import call_blocking
from gateway.tty.lasting_port import Locate
from gateway.tty.lendable_port import LendablePort
from gateway.tty.line_driver import LineDriver

__all__ = ["Device", "DeviceState"]

#: Why a device with `open: on_connect` is released.
_UNTIL_NEEDED = "until a client connects"

#: How long a board that has left the bus under its last user is waited for: boards come back
#: within 2.5 s, over a slow hub within 5.
_RETURN_S = 5.0

#: How long stopping waits for the last bytes to be sent, and again for the lines to be released
#: without them.
_STOP_LIMIT_S = 0.5


class Device(DeviceControls, HasState):
    """See the module; made and used on the loop."""

    def __init__(
        self,
        config: PortConfig,
        locate: Locate,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        port = LendablePort(
            locate, config.serial, self, log, lambda ids: config.resets.strategy(ids).rest
        )
        DeviceControls.__init__(self, config.name, port, LineDriver(config.resets, port, log))
        HasState.__init__(self)
        self.received_bytes = 0  # from the board, since the gateway runs
        self.sessions = 0  # users that have had it
        self.recorder = Recorder(1024 * config.recording.record_kib)
        self._config = config
        self._log = log
        self._output_log: OutputLog | None = None
        self.users = Users(config.sharing)
        self._waiting = WaitingLine(HANDOVER_S, self._has_waited)
        self._end = EndOfUse(self, config.serial)
        self._resets_at_end = config.on_disconnect is OnDisconnect.RESET
        self._local = LocalUse()
        self._is_away = False  # the board has vanished, and is waited for
        self._is_busy = False  # too many bytes wait to be sent
        self._stop_reason = ""  # why it is being stopped

    def start(self) -> None:
        """Open the device, now and whenever it is there."""
        self._output_log = open_log(self._config.recording, self._log)
        if self._shall_be_open:
            self._port.start()
        else:
            self._close_port()

    async def release(self, reason: str = "for a local tool", *, force: bool = False) -> None:
        """Leave the tty to a local tool until `resume`; returns when the kernel has closed it.

        What was written is sent before, lines and settings go back. Raises ClientError when
        somebody has the device, whom only `force` sends away, when it is resumed meanwhile, and
        when it is stopped. Clients that come are told `reason`, or wait if `on_absent` says so.
        """
        if self.state is DeviceState.STOPPED:
            raise ClientError(f"{self.name}: stopped")
        if self.users and not force:
            raise ClientError(f"{self.name}: {self.users.in_use}")
        closed = self._local.claim(reason)
        gone = self.users.dismiss()
        match self.state:
            case DeviceState.IN_USE:
                self._begin_release(is_hurried=True, resets=self._resets_at_end, has_left=False)
            case DeviceState.AWAY | DeviceState.RELEASED:
                self._close_port()
            case _:
                self._end.hurry()
                self._close_if_unwanted()
        gone.tell(DeviceError(f"released {reason}"), f"{self.name}: released: {reason}")
        await closed

    def resume(self) -> None:
        """Take the tty back after `release`; nothing happens without one."""
        if not self._local.reason:
            return
        self._log.info("device_resumed")
        self._local.end(ClientError(f"{self.name}: resumed before it was closed"))
        if self.state is DeviceState.RELEASED:
            self._enter(DeviceState.RELEASED, _UNTIL_NEEDED)
            self._serve_waiting()

    def reopen_log(self) -> None:
        """Open the log file again by its name: it may have been moved."""
        if self._output_log is not None:
            self._output_log.reopen()

    def look_again(self) -> None:
        """What is plugged in has changed, and may matter to this device."""
        in_use = self.state is not DeviceState.IDLE or bool(self.users)
        self._port.look_again(in_use=in_use)

    async def stop(self, reason: str = "the gateway is shutting down") -> None:
        """Release the lines and close the port for good; all users and clients get `reason`.

        Bounded: bytes that the board does not take are dropped, a kernel that does not answer
        is left behind.
        """
        self._stop_reason = reason
        self._waiting.refuse_all(f"{self.name}: {reason}")
        if self.users:
            gone = self.users.dismiss()
            if self.state is DeviceState.IN_USE:
                self._begin_release(is_hurried=False, resets=self._resets_at_end, has_left=False)
            gone.tell(DeviceError(reason), f"{self.name}: {reason}")
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_STOP_LIMIT_S):
                await self._at_rest.wait()
        if self.state is DeviceState.RELEASING:
            # A board that is held in reset takes no bytes, and must not stay so for them.
            self._end.drop_unsent()
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(_STOP_LIMIT_S):
                    await self._at_rest.wait()
        self._enter(DeviceState.STOPPED, "stopped")
        self._local.end(ClientError(f"{self.name}: stopped"))
        self._end_use()
        await self._port.stop()
        if self._output_log is not None:
            # All ports at once: each takes its limit where the disk does not answer.
            await call_blocking(self._output_log.close, "log file end")

    @property
    def attach_has_effect(self) -> bool:
        """Whether a client that attaches costs another the port, or acts on the board.

        Opening the tty is such an act: the kernel raises DTR and RTS.
        """
        if self.users.drivers:
            return self.users.arrival in {Arrival.REPLACES, Arrival.MUTES}
        config = self._config
        return config.on_connect is not OnConnect.NOTHING or config.open is not Opening.ALWAYS

    def attach(self, user: DeviceUser) -> None:
        """Ask for the device: `attached` or `refused` is called, perhaps at once."""
        self._waiting.add(user)
        self._serve_waiting()
        if user in self._waiting and self.state is DeviceState.ABSENT:
            self._log.info("client_waits", client=user.label, reason=self.reason)

    def detach(
        self, user: DeviceUser, *, resets: bool = True, after: ProgressLimit | None = None
    ) -> None:
        """Give the device back, or stop asking for it; what was written is still sent.

        `resets` False leaves out what `on_disconnect` asks for. `after` is the limit under which
        the user's bytes were sent after its client had disconnected; it goes on.
        """
        self._waiting.drop(user)
        if not self.users.leave(user):  # others drive it
            self._read_or_not()
            self._close_if_unwanted()
        elif self.state is DeviceState.AWAY:
            self._nobody_drives_away()
        else:
            resets = resets and self._resets_at_end
            self._begin_release(is_hurried=False, resets=resets, after=after)

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
        self.recorder.record(clock.time(), data)
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
        self._lines = LineDriver(self._config.resets, self._port, self._log, self._port.counts)
        self._become_idle()

    def port_away(self, error: DeviceError) -> None:
        """The board has left the bus under its users, who keep the device for a while."""
        self._is_away = True
        self._lines.board_away()
        # Of one that is being released, the end comes at once: there is nothing to release.
        if self.state is not DeviceState.RELEASING:
            self._enter(DeviceState.AWAY, str(error))

    def port_back(self, ready: Callable[[], None]) -> None:
        """The board is back under its users, perhaps as another USB device."""
        self._is_away = False
        self._lines.board_back(ready)
        if self.state is DeviceState.AWAY and self.users.drivers:
            self._enter(DeviceState.IN_USE)
            self._serve_waiting()
        elif self.state is DeviceState.AWAY:
            self._begin_release(is_hurried=True, resets=self._resets_at_end)

    def port_lost(self, error: DeviceError) -> None:
        """The port is closed; it is tried again. Its users are told."""
        gone = self.users.dismiss()
        self._port.grace_s = 0.0
        self._end_use()
        absent = isinstance(error, DeviceAbsentError)
        self._enter(DeviceState.ABSENT if absent else DeviceState.BROKEN, str(error))
        refusal = f"{self.name}: {self.state.value}: {self.reason}"
        self._serve_waiting()
        gone.tell(error, refusal)

    @property
    def _shall_be_open(self) -> bool:
        always = self._config.open is Opening.ALWAYS
        return not self._local.reason and (always or bool(self.users or self._waiting))

    def _close_if_unwanted(self) -> bool:
        """Whether the tty has been closed, for nobody needs it open."""
        if self.state not in MAY_CLOSE or self._shall_be_open:
            return False
        self._close_port()
        return True

    def _close_port(self) -> None:
        self._end_use()
        if self.state is not DeviceState.RELEASED:
            self._log.info("device_released", reason=self._local.reason or _UNTIL_NEEDED)
        self._enter(DeviceState.RELEASED, self._local.reason or _UNTIL_NEEDED)
        self._port.grace_s = 0.0
        self._port.release(self._local.tty_closed)
        self._serve_waiting()

    def _end_use(self) -> None:
        self._lines.close()
        self._is_away = self._is_busy = self._break_on = False
        self.lines_set_by = None  # or they would be released on a port that is closed
        self._end.cancel()

    def _nobody_drives_away(self) -> None:
        """The last who drove a board that is away has left: what they asked for is dropped.

        The board is seen to when it is back.
        """
        self._break_on = False
        self._lines.release(lambda: None)
        self._port.forget_user()
        if not self._resume():
            self.lines_set_by = None
            self._port.expect_return(_RETURN_S)

    def _read_or_not(self) -> None:
        if self.users.drivers and self.is_open:
            if self.users.hold_output:
                self._port.pause_reading()
            else:
                self._port.resume_reading()

    def _begin_release(
        self,
        *,
        is_hurried: bool,
        resets: bool,
        has_left: bool = True,
        after: ProgressLimit | None = None,
    ) -> None:
        """Bring the device back to where the next user expects it."""
        self._port.grace_s = self._config.grace_s if self.users else 0.0
        self.lines_set_by = None
        self._enter(DeviceState.RELEASING)
        self._port.resume_reading()
        self._end.begin(
            self._become_idle,
            is_hurried=is_hurried,
            resets=resets,
            has_left=has_left,
            after=after,
        )

    def _become_idle(self) -> None:
        if not self._is_away and not self._shall_be_open:
            self._close_port()
            return
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
        if self._stop_reason:
            self._waiting.refuse_all(f"{self.name}: {self._stop_reason}")
            return
        if self._close_if_unwanted():
            return
        match self.state:
            case DeviceState.IDLE if self._waiting:
                self._admit(self._next_waiting)
                self._port.grace_s = self._config.grace_s
                self._enter(DeviceState.IN_USE)
                self.prepare(self._config.on_connect, self._tell_users)
            case DeviceState.IDLE:
                self._resume()
            case DeviceState.IN_USE | DeviceState.AWAY if self._waiting and self.users.drivers:
                self._make_room()
            case DeviceState.RELEASED if self._shall_be_open:
                self._enter(DeviceState.OPENING)
                self._port.start()
            case DeviceState.ABSENT | DeviceState.RELEASED if self._is_waited_for:
                pass
            case (
                DeviceState.ABSENT | DeviceState.BROKEN | DeviceState.RELEASED | DeviceState.STOPPED
            ):
                self._waiting.refuse_all(f"{self.name}: {self.state.value}: {self.reason}")
                self._close_if_unwanted()

    @property
    def _next_waiting(self) -> DeviceUser:
        """Who has waited longest; of several, not one that was replaced just now."""
        waiting = (user for user in self._waiting if not self.users.was_replaced(user))
        return next(waiting, self._waiting.first)

    def _make_room(self) -> None:
        """Do to those who drive what the first of those who wait may have done to them."""
        by = self._next_waiting
        if not self.users.told:
            return  # they wait until the board is prepared
        if self.users.arrival is Arrival.JOINS:
            while self._waiting:
                user = self._waiting.first
                self._admit(user)
                self._introduce(user)
        elif self.users.may_be_followed and not self._is_away:
            if self.users.arrival is Arrival.MUTES:
                for user in self.users.mute():
                    user.muted(by.label)
                self._begin_release(is_hurried=True, resets=False, has_left=False)
            elif self.users.arrival is Arrival.REPLACES and not self.users.keep_out(by):
                for user in self.users.replace(by):
                    user.replaced(by.label)
                self._end.hurry()

    def _admit(self, user: DeviceUser) -> None:
        self._waiting.drop(user)
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
        self._read_or_not()
        return True

    def _tell_users(self) -> None:
        if self.users.told:
            return
        self.users.tell()
        for user in tuple(self.users.drivers):  # they may have left meanwhile
            self._introduce(user)
        self._serve_waiting()

    def _introduce(self, user: DeviceUser) -> None:
        """Tell a user that it drives the device."""
        user.attached()
        if self._is_busy:
            user.board_busy()

    def _has_waited(self, user: DeviceUser) -> None:
        if self._will_be_served(user):
            self._waiting.add(user)
            self._serve_waiting()
            return
        self._waiting.drop(user)
        what = (
            self.users.in_use if self.users.drivers else self.state.value
        )  # its board may be away
        if self.users.keep_out(user):
            self.users.tried_to_take_back(user)
            what += (
                ", taken over from your address:"
                f" wait {TAKE_BACK_AFTER_S:g} s before you take it back"
            )
        user.refused(ClientError(f"{self.name}: {what}"))
        self._close_if_unwanted()

    @property
    def _is_waited_for(self) -> bool:
        return self._config.on_absent is OnAbsent.WAIT

    def _will_be_served(self, user: DeviceUser) -> bool:
        """Whether `user`, which waits, may still get the device; what it waits for is bounded."""
        match self.state:
            case DeviceState.OPENING if self._config.open is Opening.ON_CONNECT:
                return True
            case DeviceState.OPENING | DeviceState.ABSENT | DeviceState.RELEASED:
                return self._is_waited_for
            case DeviceState.AWAY if not self.users:
                return True
            case DeviceState.RELEASING if not self.unsent_bytes:
                return True  # on a busy machine, calls that take moments take longer
        may_follow = self.users.arrival is not Arrival.WAITS and not self.users.keep_out(user)
        return self.state in HAS_PORT and (may_follow or self.users.are_doubted)
