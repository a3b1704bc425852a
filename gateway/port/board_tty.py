"""The tty of one board, kept open while it is wanted: found, opened, tried again when it has gone.

A board that is absent is tried again with back-off, and at once when it is known to have been
plugged in. Where the board is comes from outside, each time again. `port` decides when the tty is
wanted and what a loss means to clients.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from gateway import clock
from gateway.errors import DeviceAbsentError, DeviceError, DevicePermissionError
from gateway.port_document import PortCounts
from gateway.protocol.board_kinds import UsbIds, described
from gateway.protocol.reset import Lines
from gateway.protocol.serial_settings import SerialSettings
from gateway.serialport.close_watch import CloseWatch, DeviceHeldError
from gateway.serialport.transport import Opening, SerialTransport
from gateway.serialport.tty import Tty, TtyLocation
from gateway.serialport.worker import on_loop

#: How often a board that has left the bus under its clients is looked for: it comes back within
#: 0.3 to 2.5 s, and esptool looks for its answer at once.
_AWAITED_RETRY_S: Final = 0.05
#: Later, udev reports it at once; only a path that udev does not know has to be looked for.
_AWAITED_EARLY_S: Final = 3.0
_AWAITED_LATE_RETRY_S: Final = 0.25

#: Opening a tty that another program has locked raises DTR and RTS under that program, so it is
#: tried again when a program has closed it, and then not at once: the tools of one command open it
#: one after the other. The others are for a close that fell into the moment before the watch,
#: and for a tty that can't be watched.
_AFTER_CLOSE_S: Final = 1.0
_HELD_RETRY_S: Final = 600.0
_NOT_WATCHED_RETRY_S: Final = 60.0

#: How long stopping waits for a tty that is being opened, and again for it to be closed; a kernel
#: that does not answer is left behind.
_CLOSE_LIMIT_S: Final = 0.5

#: First and longest wait between tries. One try costs a failing open(): 20 us.
FIRST_S: Final = 0.25
LONGEST_S: Final = 4.0

#: udev names a new tty before it gives its group the rights: for so long a refusal is not believed,
#: nor that a device which has just been plugged in is not there.
SETTLE_S: Final = 2.0
SETTLE_RETRY_S: Final = 0.02

#: How often a device may go before that costs it. esptool resets a board that is its own USB
#: device three times in a run, and a test suite does that again and again.
LOSSES: Final = 10
REGAIN_S: Final = 5.0

#: Returns where the device is now. Raises DeviceError when it is nowhere (DeviceAbsentError), or
#: when it is ambiguous.
Locate = Callable[[], TtyLocation]


class BoardTtyOwner(Protocol):
    """The port; every call is made on the loop."""

    def tty_opened(self, transport: SerialTransport) -> None:
        """The tty is open, its lines at rest, with the settings in `transport.tty.in_force`."""

    def tty_not_open(self, error: DeviceError) -> None:
        """A try has failed, or the tty was lost; it is tried again."""


class BoardTty:
    """Opens the tty from `start` to `release` or `stop`, whenever it is there.

    `protocol` is that of the transports. `settings` are the configuration's, `lines_at_rest`
    tells where the lines of a device rest. While `is_awaited`, clients wait for the board's
    return: it is looked for more often, and failures are not reported.
    """

    def __init__(  # noqa: PLR0913 - what one tty needs
        self,
        *,
        locate: Locate,
        settings: SerialSettings,
        lines_at_rest: Callable[[UsbIds | None], Lines],
        owner: BoardTtyOwner,
        protocol: asyncio.Protocol,
        counts: PortCounts,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.transport: SerialTransport | None = None  # while it is open
        self.is_awaited = False
        self._locate = locate
        self._settings = settings
        self._lines_at_rest = lines_at_rest
        self._owner = owner
        self._counts = counts
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._location: TtyLocation | None = None  # where it is open, or was tried last
        self._opening = Opening(protocol, counts.control_calls.observe)
        self._plan = RetryPlan()
        self._retry: clock.Timer | None = None
        self._lost_at_s = 0.0
        self._last_failure = ""  # logged once, however often the tty is tried
        self._holder: CloseWatch | None = None  # on a tty that another program has locked
        self._rescan_again = False  # when the try that is under way has failed
        self._is_stopped = False
        self._released: Callable[[], None] | None = None  # the tty is to be closed, or is
        self._at_rest = asyncio.Event()  # it is neither being opened nor being closed
        self._at_rest.set()

    @property
    def path(self) -> str:
        """Where the tty is now; raises DeviceError when it is nowhere."""
        return self._locate().path

    def start(self) -> None:
        """Open the tty, now and whenever it is there."""
        self._cancel_retry()
        self._released = None
        if not self._at_rest.is_set():
            return
        self._at_rest.clear()
        try:
            self._location = self._locate()
        except DeviceError as error:
            self._loop.call_soon(self._not_opened, error)
            return
        if self._is_held(self._location.path):
            self._loop.call_soon(self._not_opened, DeviceHeldError())
            return
        tty = Tty(self._location, self._settings, self._lines_at_rest)
        self._opening.begin(tty, self._opened, self._not_opened)

    def rescan(self, *, in_use: bool) -> None:
        """What is plugged in has changed: the device may be there now, elsewhere, or gone.

        A device that is `in_use` is only given up when it is gone.
        """
        if self._is_stopped:
            return
        if self.transport is not None:
            problem = self._problem_of_open_tty()
            if problem is not None and (not in_use or isinstance(problem, DeviceAbsentError)):
                self.transport.fail(problem)
        elif not self._at_rest.is_set():
            self._rescan_again = True
        elif self._retry is not None:
            self._plan.appeared(clock.time())
            if self.is_awaited or not self._plan.penalty_s(clock.time()):
                self.start()

    def lost(self, error: DeviceError) -> None:
        """The open tty has failed: open it again. Call with `is_awaited` as it is from here on."""
        self._log.warning("device_lost", reason=str(error))
        self._last_failure = str(error)
        self.transport = None
        self._lost_at_s = clock.time()
        if self.is_awaited:
            self._retry = clock.call_later(_AWAITED_RETRY_S, self.start)
        else:
            self._plan.lost(clock.time())
            self._try_later(error)

    def release(self, released: Callable[[], None] = lambda: None) -> None:
        """Close the tty until `start`; `released` is called when the kernel has closed it."""
        self._cancel_retry()
        self._released = released
        self._opening.end()
        transport, self.transport = self.transport, None
        if transport is not None:
            self._at_rest.clear()
            transport.close(on_loop(self._loop, self._closed))
        elif self._at_rest.is_set():
            released()

    async def stop(self) -> None:
        """Close the tty for good; bounded; nothing is reported to the owner afterwards."""
        self._is_stopped = True
        self._cancel_retry()
        await self._rest()
        self._opening.end()
        self._forget_holder()
        transport, self.transport = self.transport, None
        if transport is not None:
            self._at_rest.clear()
            transport.close(on_loop(self._loop, self._at_rest.set))
            await self._rest()

    async def _rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_CLOSE_LIMIT_S):
                await self._at_rest.wait()

    def _closed(self) -> None:
        """The kernel has closed the tty, or there is none; it may be wanted again already."""
        self._at_rest.set()
        if self._released is not None:
            self._released()
        elif not self._is_stopped:
            self.start()

    def _opened(self, transport: SerialTransport) -> None:
        self._counts.opened += 1
        if self._is_stopped or self._released is not None:
            transport.close(on_loop(self._loop, self._closed))
            return
        self._at_rest.set()
        self._plan.opened()
        self._last_failure = ""
        self._rescan_again = False
        tty = transport.tty
        self._log.info(
            "device_opened",
            tty=self._location.path if self._location is not None else "",
            board=described(tty.usb_ids),
            has_lines=tty.has_lines,
        )
        if tty.in_force != self._settings:
            self._log.warning("settings_refused", wanted=self._settings, in_force=tty.in_force)
        self.transport = transport
        self._owner.tty_opened(transport)

    def _not_opened(self, error: DeviceError) -> None:
        self._at_rest.set()
        if isinstance(error, DeviceHeldError) and error.watch is not None:
            self._watch_holder(error.watch)
        if self._is_stopped or self._released is not None:
            self._closed()
        elif self._rescan_again:
            self._rescan_again = False
            self.start()
        elif self.is_awaited:
            is_early = clock.time() - self._lost_at_s < _AWAITED_EARLY_S
            wait_s = _AWAITED_RETRY_S if is_early else _AWAITED_LATE_RETRY_S
            self._retry = clock.call_later(wait_s, self.start)
        elif self._plan.settles(error, clock.time()):
            self._retry = clock.call_later(SETTLE_RETRY_S, self.start)
        else:
            if str(error) != self._last_failure:
                self._last_failure = str(error)
                self._log.warning("device_open_failed", reason=str(error))
            self._try_later(error)

    def _problem_of_open_tty(self) -> DeviceError | None:
        """Return why the open tty is not the one to have open any longer."""
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
        self._owner.tty_not_open(error)

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    # --- a tty that another program has locked

    def _is_held(self, path: str) -> bool:
        """Return whether the program that had the tty at the last try has not closed it since."""
        if self._holder is None:
            return False
        if self._holder.path == path and not self._holder.has_news():
            return True
        self._forget_holder()
        return False

    def _watch_holder(self, watch: CloseWatch) -> None:
        """Open the tty no more before the program that has locked it closes it."""
        self._forget_holder()
        if self._is_stopped:
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
        if self._retry is not None and not self.is_awaited:
            self._cancel_retry()
            self._retry = clock.call_later(_AFTER_CLOSE_S, self.start)

    def _try_held(self) -> None:
        self._forget_holder()
        self.start()


class RetryPlan:
    """When a device that could not be opened, or has gone, is tried again; pure.

    Three things meet here: a device that is missing or broken is tried ever more seldom; one that
    has just been plugged in settles within moments; and one that keeps leaving the bus (its app
    crashes at the start, its cable is loose) must not cost a thread and two log lines each time.
    """

    def __init__(self) -> None:
        self._next_s = FIRST_S
        self._is_denied = False  # the last try was
        self._settled_at_s = 0.0  # until then a failure may pass by itself
        self._losses_left = float(LOSSES)
        self._losses_at_s = 0.0

    def appeared(self, now_s: float) -> None:
        """The device has just been plugged in."""
        self._settled_at_s = now_s + SETTLE_S

    def opened(self) -> None:
        """A try has succeeded."""
        self._next_s = FIRST_S
        self._is_denied = False

    def lost(self, now_s: float) -> None:
        """The open device has gone."""
        # One below zero at most: after one wait there is one try.
        self._losses_left = max(self._left_at(now_s) - 1.0, -1.0)
        self._losses_at_s = now_s

    def settles(self, error: DeviceError, now_s: float) -> bool:
        """A try has failed: whether that is likely to pass within moments."""
        was_denied, self._is_denied = self._is_denied, isinstance(error, DevicePermissionError)
        if self._is_denied and not was_denied:
            self.appeared(now_s)
        may_pass = self._is_denied or isinstance(error, DeviceAbsentError)
        return may_pass and now_s < self._settled_at_s

    def wait_s(self, now_s: float) -> float:
        """How long to wait before the next try; longer each time."""
        wait_s = max(self._next_s, self.penalty_s(now_s))
        self._next_s = min(2 * self._next_s, LONGEST_S)
        return wait_s

    def penalty_s(self, now_s: float) -> float:
        """How long a device that keeps leaving is left alone still; 0 for one that behaves."""
        return max(0.0, -self._left_at(now_s) * REGAIN_S)

    def _left_at(self, now_s: float) -> float:
        return min(self._losses_left + (now_s - self._losses_at_s) / REGAIN_S, float(LOSSES))
