"""The serial port of one board over time: opened, lost, opened again, and always there to ask.

A board that is absent is tried again with back-off, and at once when it is known to have come.
One that vanishes under a user may be kept for a grace period, in which `AwayPort` answers for it.
Where the board is comes from outside, each time anew. Who uses the port is `device`'s matter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

import structlog

from gateway import clock
from gateway.errors import DeviceAbsentError, DeviceError
from gateway.protocol.board_kinds import UsbIds, described
from gateway.protocol.reset import IDLE, Lines
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.away_port import HELD_HIGH_BYTES, Ask, Asked, AwayPort, Port
from gateway.tty.close_watch import CloseWatch, DeviceHeldError
from gateway.tty.control_thread import on_loop
from gateway.tty.port_counts import PortCounts
from gateway.tty.retry_plan import SETTLE_RETRY_S, RetryPlan
from gateway.tty.serial_port import UNSENT_HIGH_BYTES, PortOpener, SerialPort
from gateway.tty.serial_states import NO_STATES, PortStates
from gateway.tty.serial_tty import Tty, TtyLocation

#: How often a board that has left the bus under its user is looked for: it comes back within
#: 0.3 to 2.5 s, and esptool looks for its answer at once.
_AWAY_RETRY_S = 0.05
#: Later, udev tells of it at once; only for a path that udev does not know is it looked for.
_AWAY_EARLY_S = 3.0
_AWAY_LATE_RETRY_S = 0.25

#: Opening a tty that another program has locked raises DTR and RTS under that program, so it is
#: tried again when a program has closed it, and then not at once: the tools of one command open it
#: one after the other. The others are for a close that fell into the moment before the watch,
#: and for a tty that can't be watched.
_AFTER_CLOSE_S = 1.0
_HELD_RETRY_S = 600.0
_NOT_WATCHED_RETRY_S = 60.0

#: How long stopping waits for a port that is being opened, and again for it to be closed; a kernel
#: that does not answer is left behind.
_CLOSE_LIMIT_S = 0.5


#: Why bytes are dropped that a board has got the beginning of.
_VANISHED = "the board has vanished"


class LastingPortOwner(Protocol):
    """Whom a lasting port reports to; every call is made on the loop."""

    def port_opened(self) -> None:
        """It is open, its lines at rest, with the settings that it was made with."""

    def port_away(self, error: DeviceError) -> None:
        """The board has vanished, and is waited for: what is asked now is done when it is back."""

    def port_back(self, ready: Callable[[], None]) -> None:
        """The board is back, with the settings asked for meanwhile, its lines at rest.

        `ready` must be called, perhaps at once, when it can have what it was sent meanwhile.
        """

    def port_lost(self, error: DeviceError) -> None:
        """It is closed, for an open one or one that was tried to be opened has failed."""

    def data_received(self, data: bytes) -> None:
        """The board has sent bytes."""

    def pause_writing(self) -> None:
        """Too many bytes wait to be sent."""

    def resume_writing(self) -> None:
        """Bytes can be written again."""


#: Tells where the device is now. Raises DeviceError when it is nowhere (DeviceAbsentError), or when
#: it can't be told which one it is.
Locate = Callable[[], TtyLocation]


class LastingPort:
    """See the module. Implements `Port`; may be asked from `port_opened` to `port_lost`.

    `grace_s` is how long a board that vanishes is waited for; the owner sets it while there is
    somebody to wait for it.
    """

    def __init__(
        self,
        locate: Locate,
        settings: SerialSettings,
        owner: LastingPortOwner,
        log: structlog.typing.FilteringBoundLogger,
        lines_at_rest: Callable[[UsbIds | None], Lines] = lambda _: IDLE,
    ) -> None:
        self.grace_s = 0.0
        self.counts = PortCounts()
        self.usb_ids: UsbIds | None = None  # of the device that was last open
        self._lines_at_rest = lines_at_rest
        self._locate = locate
        self._location: TtyLocation | None = None  # where it is open, or was tried last
        self._initial_settings = settings
        self._owner = owner
        self.data_received = owner.data_received  # passed on
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._port: SerialPort | AwayPort | None = None
        self._asked = Asked()
        self._retry: clock.Timer | None = None
        self._grace: clock.Timer | None = None
        self._grace_ends_s = 0.0
        self._away_since_s = 0.0
        self._is_busy = False  # the owner has been told to write no more
        self._returning: AwayPort | None = None  # has what a board that is back has not got yet
        self._cut_off_bytes = 0  # dropped while the board is away, and not logged yet
        self._last_failure = ""  # said once, however often the port is tried
        self._plan = RetryPlan()
        self._opener = PortOpener(self, self.counts)
        self._holder: CloseWatch | None = None  # on a tty that another program has locked
        self._look_again = False  # when the try that is under way has failed
        self._stopped = False
        self._released: Callable[[], None] | None = None  # the port is to be closed, or is
        self._tried = asyncio.Event()  # it is neither being opened nor being released
        self._tried.set()

    def start(self) -> None:
        """Open the port, now and whenever it is there."""
        self._cancel_retry()
        self._released = None
        if not self._tried.is_set():
            return
        self._tried.clear()
        try:
            self._location = self._locate()
        except DeviceError as error:
            self._loop.call_soon(self._not_opened, error)
            return
        if self._is_held(self._location.path):
            self._loop.call_soon(self._not_opened, DeviceHeldError())
            return
        tty = Tty(self._location, self._initial_settings, self._lines_at_rest)
        self._opener.open(tty, self._opened, self._not_opened)

    def look_again(self, *, in_use: bool) -> None:
        """What is plugged in has changed: the device may be there now, elsewhere, or gone.

        A device that is `in_use` is only given up when it is gone.
        """
        if self._stopped:
            return
        if isinstance(self._port, SerialPort):
            problem = self._problem_of_open_port()
            if problem is not None and (not in_use or isinstance(problem, DeviceAbsentError)):
                self._port.lose(problem)
        elif not self._tried.is_set():
            self._look_again = True
        elif self._retry is not None:
            self._plan.appeared(clock.time())
            if isinstance(self._port, AwayPort) or not self._plan.penalty_s(clock.time()):
                self.start()

    @property
    def tty_path(self) -> str:
        """Where the device is now; raises DeviceError when it is nowhere."""
        return self._locate().path

    def release(self, released: Callable[[], None]) -> None:
        """Close the port until `start`; `released` is called when the kernel has closed it.

        A board that is waited for is given up. The owner is told nothing.
        """
        self._cancel_retry()
        self._released = released
        self._opener.end()
        self.give_up_absence()
        port = self._port
        self._forget()
        if isinstance(port, SerialPort):
            self._tried.clear()
            port.close(on_loop(self._loop, self._closed))
        elif self._tried.is_set():
            self._closed()

    async def stop(self) -> None:
        """Close the port for good; bounded, the owner is told nothing more."""
        self._stopped = True
        self._cancel_retry()
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_CLOSE_LIMIT_S):
                await self._tried.wait()
        self._opener.end()
        self._forget_holder()
        self.give_up_absence()
        port = self._port
        self._forget()
        if isinstance(port, SerialPort):
            await self._close(port)

    def give_up_absence(self) -> None:
        """The board is no longer waited for: drop what it was asked for meanwhile."""
        if isinstance(self._port, AwayPort):
            self._drop_held(self._port)
            self._forget()

    def forget_user(self) -> None:
        """The user of a board that is away has left: drop what it has asked for meanwhile.

        The board will be back with the settings that the port was made with.
        """
        if isinstance(self._port, AwayPort):
            self._drop_held(self._port)
            self._port = self._stand_in(self._initial_settings)
            self.resume_writing()

    def expect_return(self, limit_s: float) -> None:
        """A board that is away has no user: it is lost after `limit_s`."""
        if isinstance(self._port, AwayPort) and self._grace is not None:
            self._grace.cancel()
            self._grace_ends_s = min(self._grace_ends_s, clock.time() + limit_s)
            absent = DeviceAbsentError("not plugged in")
            self._grace = clock.call_at(self._grace_ends_s, self._lose_away, absent)

    def drop_unsent(self, reason: str) -> None:
        """Drop what was written and the kernel has not taken; count and log how much."""
        self.count_dropped(self.unsent_bytes, reason)
        self.purge(receive=False, transmit=True, done=lambda: None)

    def count_dropped(self, n_bytes: int, reason: str) -> None:
        """Bytes for the board were dropped, with the `reason`: count and log them."""
        self.counts.input_dropped_bytes += n_bytes
        self._log_dropped(n_bytes, reason)

    def _log_dropped(self, n_bytes: int, reason: str) -> None:
        if n_bytes:
            self._log.warning("unsent_dropped", unsent_bytes=n_bytes, reason=reason)

    # What may be asked (away_port.Port)

    @property
    def settings(self) -> SerialSettings:
        """The settings in force, or that will be when the board is back."""
        return self._present.settings

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        waiting = self._returning.unsent_bytes if self._returning is not None else 0
        return self._present.unsent_bytes + waiting

    def write(self, data: bytes) -> None:
        """Send bytes to the board."""
        (self._port or self._present).write(data)

    def pause_reading(self) -> None:
        """Leave what the board sends in the kernel."""
        self._present.pause_reading()

    def resume_reading(self) -> None:
        """Take what the board sends again."""
        self._present.resume_reading()

    def apply(self, settings: SerialSettings, done: Callable[[SerialSettings], None]) -> None:
        """Change the settings behind the bytes written so far."""
        self._ask(
            lambda port, finished: port.apply(settings, lambda _: finished()),
            lambda: done(self.settings),
        )

    def set_lines(self, lines: Lines, done: Callable[[], None]) -> None:
        """Set DTR and RTS in one step behind the bytes written so far."""
        self._ask(lambda port, finished: port.set_lines(lines, finished), done)

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        """Start or end a break behind the bytes written so far."""
        self._ask(lambda port, finished: port.set_break(on, finished), done)

    def when_sent(self, done: Callable[[], None]) -> None:
        """Call `done` when everything written so far has left, or can't."""
        self._ask(lambda port, finished: port.when_sent(finished), done)

    def purge(self, *, receive: bool, transmit: bool, done: Callable[[], None]) -> None:
        """Discard what was received, what waits to be sent, or both."""
        if transmit and self._returning is not None:
            self._returning.take_held()
        self._ask(
            lambda port, finished: port.purge(receive=receive, transmit=transmit, done=finished),
            done,
        )

    def read_states(self, done: Callable[[PortStates], None]) -> None:
        """Read the modem lines, what is on its way, and what has happened on the wire."""
        read = NO_STATES

        def ask(port: Port, finished: Callable[[], None]) -> None:
            def was_read(states: PortStates) -> None:
                nonlocal read
                read = states
                finished()

            port.read_states(was_read)

        self._ask(ask, lambda: done(read))

    # What the open port reports (serial_port.PortOwner)

    def pause_writing(self) -> None:
        """Passed on, once."""
        if not self._is_busy:
            self._is_busy = True
            self._owner.pause_writing()

    def resume_writing(self) -> None:
        """Passed on, once."""
        if self._is_busy:
            self._is_busy = False
            self._owner.resume_writing()

    def port_lost(self, error: DeviceError) -> None:
        """The open port has failed: wait for the board, or give it up and try to open it again."""
        self._log.warning("device_lost", reason=str(error))
        self._last_failure = str(error)
        lost = self._port
        assert isinstance(lost, SerialPort)  # noqa: S101 - no other reports it
        unsent = lost.take_unsent()
        held = b"" if self._returning is None else self._returning.take_held()
        self._returning = None
        if self.grace_s:
            self.count_dropped(unsent.cut_off_bytes, _VANISHED)
            self._begin_absence(lost.settings, error, held + unsent.whole, unsent.is_cut_off)
        else:
            self.count_dropped(unsent.cut_off_bytes + len(held + unsent.whole), _VANISHED)
            self._plan.lost(clock.time())
            self._forget()
            self._try_later(error)

    @property
    def _present(self) -> SerialPort | AwayPort:
        if self._port is None:
            raise RuntimeError("a port was used while it is not open")
        return self._port

    def _ask(self, ask: Ask, done: Callable[[], None]) -> None:
        """Ask the port for something, and what stands in for it if it is lost before."""
        self._asked.add(self._present, ask, done)

    def _begin_absence(
        self, settings: SerialSettings, error: DeviceError, waiting: bytes, is_cut_off: bool
    ) -> None:
        self._port = away = self._stand_in(settings, is_cut_off=is_cut_off)
        stayed = DeviceError(f"{error}; not back within {self.grace_s:g} s")
        self._away_since_s = clock.time()
        self._grace_ends_s = self._away_since_s + self.grace_s
        self._grace = clock.call_at(self._grace_ends_s, self._lose_away, stayed)
        self._retry = clock.call_later(_AWAY_RETRY_S, self.start)
        self._owner.port_away(error)
        self._asked.repeat(away)
        if waiting:
            away.write(waiting)
        if away.unsent_bytes <= HELD_HIGH_BYTES:
            self.resume_writing()

    def _stand_in(self, settings: SerialSettings, *, is_cut_off: bool = False) -> AwayPort:
        return AwayPort(
            settings,
            full=self.pause_writing,
            room=self.resume_writing,
            dropped=self._drop_cut_off,
            is_cut_off=is_cut_off,
        )

    def _lose_away(self, error: DeviceError) -> None:
        self.give_up_absence()
        self._owner.port_lost(error)

    def _drop_held(self, away: AwayPort) -> None:
        self._log_cut_off()
        self.count_dropped(len(away.take_held()), "the board is away")

    def _drop_cut_off(self, n_bytes: int) -> None:
        self.counts.input_dropped_bytes += n_bytes
        self._cut_off_bytes += n_bytes  # pieces of one write: logged together

    def _log_cut_off(self) -> None:
        n_bytes, self._cut_off_bytes = self._cut_off_bytes, 0
        self._log_dropped(n_bytes, _VANISHED)

    def _closed(self) -> None:
        """The kernel has closed the port, or there is none; it may be wanted again already."""
        self._tried.set()
        if self._released is not None:
            self._released()
        elif not self._stopped:
            self.start()

    def _opened(self, port: SerialPort) -> None:
        if self._stopped or self._released is not None:
            port.close(on_loop(self._loop, self._closed))
            return
        self._tried.set()
        self._plan.opened()
        self._last_failure = ""
        self._look_again = False
        self.usb_ids = port.usb_ids
        self._log.info(
            "device_opened",
            tty=self._location.path if self._location is not None else "",
            board=described(port.usb_ids),
            has_lines=port.has_lines,
        )
        if port.settings != self._initial_settings:
            self._log.warning(
                "settings_refused", wanted=self._initial_settings, in_force=port.settings
            )
        away, self._port = self._port, port
        if isinstance(away, AwayPort):
            self._came_back(away, port)
        else:
            self._owner.port_opened()

    def _came_back(self, away: AwayPort, port: SerialPort) -> None:
        if self._grace is not None:
            self._grace.cancel()
        self._log_cut_off()
        # Ahead of what the owner asks for, which may be the next user's settings.
        away.hand_over_settings(port)
        self._returning = away
        self._owner.port_back(lambda: self._hand_over(away))
        if self._returning is away:
            self.pause_writing()

    def _hand_over(self, away: AwayPort) -> None:
        if self._returning is not away or not isinstance(self._port, SerialPort):
            return
        self._returning = None
        away.hand_over(self._port)
        if self._port.unsent_bytes <= UNSENT_HIGH_BYTES:
            self.resume_writing()

    def _not_opened(self, error: DeviceError) -> None:
        self._tried.set()
        if isinstance(error, DeviceHeldError) and error.watch is not None:
            self._watch_holder(error.watch)
        if self._stopped or self._released is not None:
            self._closed()
            return
        if self._look_again:
            self._look_again = False
            self.start()
            return
        if isinstance(self._port, AwayPort):
            self._retry = clock.call_later(self._away_retry_s(), self.start)
            return
        if self._plan.settles(error, clock.time()):
            self._retry = clock.call_later(SETTLE_RETRY_S, self.start)
            return
        if str(error) != self._last_failure:
            self._last_failure = str(error)
            self._log.warning("device_not_open", reason=str(error))
        self._try_later(error)

    def _problem_of_open_port(self) -> DeviceError | None:
        """Why the open port is not the one to have open any more."""
        try:
            location = self._locate()
        except DeviceError as error:
            return error
        if self._location is not None and location.path == self._location.path:
            return None
        return DeviceError(f"another device is meant now, {location.path}")

    def _try_later(self, error: DeviceError) -> None:
        wait_s = self._plan.wait_s(clock.time())
        if isinstance(error, DeviceHeldError):
            wait_s = _HELD_RETRY_S if self._holder is not None else _NOT_WATCHED_RETRY_S
            self._retry = clock.call_later(wait_s, self._try_held)
        else:
            if self._plan.penalty_s(clock.time()):
                error = type(error)(f"{error}; it keeps leaving, next try in {wait_s:.1f} s")
            self._retry = clock.call_later(wait_s, self.start)
        self._owner.port_lost(error)

    def _away_retry_s(self) -> float:
        is_early = clock.time() - self._away_since_s < _AWAY_EARLY_S
        return _AWAY_RETRY_S if is_early else _AWAY_LATE_RETRY_S

    def _is_held(self, path: str) -> bool:
        """Whether the program that had the tty at the last try has not closed it since."""
        if self._holder is None:
            return False
        if self._holder.path == path and not self._holder.has_news():
            return True
        self._forget_holder()
        return False

    def _watch_holder(self, watch: CloseWatch) -> None:
        """Open the tty no more before the program that has locked it closes it."""
        self._forget_holder()
        if self._stopped:
            watch.close()
            return
        self._holder = watch
        self._loop.add_reader(watch.fileno(), self._holder_closed, watch)

    def _forget_holder(self) -> None:
        if self._holder is not None:
            self._loop.remove_reader(self._holder.fileno())
            self._holder.close()
            self._holder = None

    def _holder_closed(self, watch: CloseWatch) -> None:
        self._loop.remove_reader(watch.fileno())  # the next try reads what has come
        if self._retry is not None and not isinstance(self._port, AwayPort):
            self._cancel_retry()
            self._retry = clock.call_later(_AFTER_CLOSE_S, self.start)

    def _try_held(self) -> None:
        self._forget_holder()
        self.start()

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _forget(self) -> None:
        self._port = None
        self._is_busy = False
        self._returning = None
        self._asked.clear()
        if self._grace is not None:
            self._grace.cancel()

    async def _close(self, port: SerialPort) -> None:
        closed = asyncio.Event()
        port.close(on_loop(self._loop, closed.set))
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_CLOSE_LIMIT_S):
                await closed.wait()
