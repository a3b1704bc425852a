"""Watches which USB ttys are plugged in, and tells of each change.

udev says when something happens, over a netlink socket that the event loop watches; what is there
then is read from sysfs, whole, so that an event that was lost or came twice does no harm. Where
there is no udev (containers have none), sysfs is looked at each second instead.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from gateway import clock
from gateway.config.usb_match import UsbTty
from gateway.tty.control_thread import ControlThread
from gateway.usb.no_tty import NoTty
from gateway.usb.sysfs import Sysfs

if TYPE_CHECKING:
    import pyudev

#: Its socket exists while udev runs.
UDEV_CONTROL = Path("/run/udev/control")

#: Without udev: how often sysfs is looked at. One look takes 2 ms with 64 boards.
POLL_S = 1.0
#: With udev: events may be lost, and in a container that has the host's /run none ever comes.
RESCAN_S = 10.0

#: Events that are taken in one turn of the loop; a hub with 50 boards gives some hundreds at once.
MAX_EVENTS_PER_TURN = 64

#: A device that was just plugged in has no tty yet.
NO_TTY_LOG_S = 5.0

#: How long reading sysfs may take. The kernel locks a device while it is set up or reset, which
#: may take 5 s for each try of a broken one.
SCAN_LIMIT_S = 20.0
#: Then that thread is left behind, and so much later another one tries.
_STUCK_PAUSE_S = 60.0


class Monitor(Protocol):
    """Where events about ttys come from."""

    def fileno(self) -> int:
        """Readable while there are events."""

    def receive(self) -> tuple[str, str] | None:
        """The next event, None if there is none: action and name of the tty.

        Raises OSError when events were lost.
        """

    def close(self) -> None:
        """Not needed any more."""


class UdevMonitor:
    """udev's events; raises OSError or ImportError where there are none."""

    def __init__(self) -> None:
        # Loads libudev, which a container may not have.
        import pyudev  # noqa: PLC0415

        self._monitor: pyudev.Monitor | None = pyudev.Monitor.from_netlink(pyudev.Context())
        self._monitor.filter_by("tty")
        self._monitor.start()

    def fileno(self) -> int:
        """The netlink socket."""
        assert self._monitor is not None  # noqa: S101 - not after close()
        descriptor: int = self._monitor.fileno()
        return descriptor

    def receive(self) -> tuple[str, str] | None:
        """See Monitor."""
        assert self._monitor is not None  # noqa: S101 - not after close()
        device = self._monitor.poll(timeout=0)
        return None if device is None else (device.action or "", device.sys_name)

    def close(self) -> None:
        """libudev closes the socket with the last reference."""
        self._monitor = None


def open_udev_monitor(control: Path = UDEV_CONTROL) -> Monitor | None:
    """udev's events, None where udev does not run. Raises OSError or ImportError."""
    return UdevMonitor() if control.exists() else None


class Watcher:
    """Calls `changed` with all that is plugged in, from `start` to `stop`; used on the loop.

    It is called after each look, whether or not anything differs from the one before: links in
    /dev may. Until the first look has ended, nothing is known.
    """

    def __init__(
        self,
        sysfs: Sysfs,
        changed: Callable[[list[UsbTty]], None],
        log: structlog.typing.FilteringBoundLogger,
        open_monitor: Callable[[], Monitor | None] = open_udev_monitor,
    ) -> None:
        self._sysfs = sysfs
        self._changed = changed
        self._log = log
        self._open_monitor = open_monitor
        self._loop = asyncio.get_running_loop()
        self._monitor: Monitor | None = None
        self._thread: ControlThread | None = None
        self._scanning = False
        self._gone: set[str] = set()  # names that went during the look that is under way
        self._scan_again = False
        self._timer: clock.Timer | None = None
        self._present: list[UsbTty] = []
        self._no_tty_since_s: dict[NoTty, float] = {}
        self._logged: set[NoTty] = set()

    def start(self) -> None:
        """Look now, and whenever something changes."""
        try:
            self._monitor = self._open_monitor()
        except (OSError, ImportError) as error:
            self._log.warning("udev_not_heard", reason=str(error), looking_every_s=POLL_S)
        if self._monitor is not None:
            self._loop.add_reader(self._monitor.fileno(), self._receive)
        self._scan()

    async def stop(self) -> None:
        """Look no more; waits for a look that is under way for a moment."""
        self._close_monitor()
        if self._timer is not None:
            self._timer.cancel()
        thread, self._thread = self._thread, None
        if thread is not None:
            ended = asyncio.Event()

            def ended_on_thread() -> None:
                with contextlib.suppress(RuntimeError):  # the loop did not wait for it
                    self._loop.call_soon_threadsafe(ended.set)

            thread.stop(ended_on_thread)
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(0.5):
                    await ended.wait()

    def _receive(self) -> None:
        for _ in range(MAX_EVENTS_PER_TURN):
            try:
                event = self._monitor.receive() if self._monitor is not None else None
            except OSError as error:
                self._events_lost(error)
                return
            if event is None:
                return
            action, name = event
            if action == "remove":
                self._has_gone(name)
            self._scan()

    def _events_lost(self, error: OSError) -> None:
        """Too many came at once, or the socket has failed: what is there now is read anyway."""
        self._log.warning("udev_events_lost", reason=str(error))
        self._scan()

    def _has_gone(self, name: str) -> None:
        """Tell at once what needs no look."""
        self._gone.add(name)
        left = [tty for tty in self._present if Path(tty.path).name != name]
        if len(left) < len(self._present):
            self._tell(left)

    def _scan(self) -> None:
        if self._scanning:
            self._scan_again = True
            return
        self._scanning = True
        self._scan_again = False
        self._gone.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is None:
            self._thread = ControlThread("hotplug", self._stuck)
        self._thread.submit(self._look, self._scanned, self._not_scanned, limit_s=SCAN_LIMIT_S)

    def _look(self) -> tuple[list[UsbTty], list[NoTty]]:
        return self._sysfs.usb_ttys(), self._sysfs.no_tty()

    def _scanned(self, found: tuple[list[UsbTty], list[NoTty]]) -> None:
        ttys, no_tty = found
        self._note(no_tty)
        # What has gone since may have been read before it went, what has come since was not.
        self._tell([tty for tty in ttys if Path(tty.path).name not in self._gone])
        self._scan_next()

    def _note(self, no_tty: list[NoTty]) -> None:
        """Keep what has no tty, and log what has been without one for a while."""
        now_s = clock.time()
        before, self._no_tty_since_s = self._no_tty_since_s, {}
        for device in no_tty:
            since_s = self._no_tty_since_s[device] = before.get(device, now_s)
            if now_s - since_s >= NO_TTY_LOG_S and device not in self._logged:
                self._logged.add(device)
                self._log.warning(
                    "usb_without_tty",
                    usb=device.usb,
                    location=device.location,
                    serial=device.serial,
                    product=device.product,
                    reason=device.reason,
                )
        self._logged &= set(no_tty)

    @property
    def no_tty(self) -> list[NoTty]:
        """The devices that should have a tty and had none at the last look."""
        return list(self._no_tty_since_s)

    def _not_scanned(self, error: Exception) -> None:
        self._log.error("usb_scan_failed", exc_info=error)
        self._scan_next()

    def _scan_next(self) -> None:
        self._scanning = False
        if self._scan_again:
            self._scan()
        elif self._thread is not None:
            wait_s = POLL_S if self._monitor is None else RESCAN_S
            self._timer = clock.call_later(wait_s, self._scan)

    def _stuck(self, limit_s: float) -> None:
        self._log.error("usb_scan_stuck", reason=f"sysfs has not answered within {limit_s:g} s")
        if self._thread is not None:
            self._thread.stop(lambda: None)
            self._thread = None
        self._timer = clock.call_later(_STUCK_PAUSE_S, self._after_stuck)

    def _after_stuck(self) -> None:
        self._scanning = False
        self._scan()

    def _tell(self, ttys: list[UsbTty]) -> None:
        self._present = ttys
        self._changed(ttys)

    def _close_monitor(self) -> None:
        if self._monitor is not None:
            self._loop.remove_reader(self._monitor.fileno())
            self._monitor.close()
            self._monitor = None
