"""Watch which USB ttys are plugged in.

udev reports changes over a netlink socket; the state is always read from sysfs, whole, so that a
lost or repeated event does no harm. Without udev, as in containers, sysfs is read each second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from gateway import clock
from gateway.config.usb_match import UsbTty
from gateway.runtime import call_blocking
from gateway.usb.sysfs import NoTty, Sysfs

if TYPE_CHECKING:
    import pyudev

#: udev's own socket, which exists while udev runs.
UDEV_CONTROL: Final = Path("/run/udev/control")

#: Between two scans without udev. A scan takes 2 ms with 64 boards.
POLL_S: Final = 1.0
#: Between two scans with udev: events may be lost, and in a container with the host's /run there
#: are none.
RESCAN_S: Final = 10.0

#: Events handled per loop turn; a hub with 50 boards causes some hundreds at once.
MAX_EVENTS_PER_TURN: Final = 64

#: A device that was just plugged in has no tty yet.
NO_TTY_LOG_S: Final = 5.0

#: Limit of a scan: the kernel locks a device while it is set up or reset, up to 5 s for each try of
#: a broken one.
SCAN_LIMIT_S: Final = 20.0
#: Pause after a scan that exceeded it; its thread is left behind.
_STUCK_PAUSE_S: Final = 60.0

#: How long stopping waits for a scan.
_STOP_LIMIT_S: Final = 0.5


class UdevMonitor:
    """udev's events about ttys. Raises OSError or ImportError where there are none."""

    def __init__(self) -> None:
        # Loads libudev, which a container may not have.
        import pyudev  # noqa: PLC0415

        self._monitor: pyudev.Monitor | None = pyudev.Monitor.from_netlink(pyudev.Context())
        self._monitor.filter_by("tty")
        self._monitor.start()

    def fileno(self) -> int:
        """Return the netlink socket, readable while there are events."""
        assert self._monitor is not None  # noqa: S101 - not after close()
        descriptor: int = self._monitor.fileno()
        return descriptor

    def receive(self) -> tuple[str, str] | None:
        """Return action and name of the next event's tty, None without one.

        Raises OSError when events were lost.
        """
        assert self._monitor is not None  # noqa: S101 - not after close()
        device = self._monitor.poll(timeout=0)
        return None if device is None else (device.action or "", device.sys_name)

    def close(self) -> None:
        """Close the socket, which libudev does with the last reference."""
        self._monitor = None


def open_udev_monitor(control: Path = UDEV_CONTROL) -> UdevMonitor | None:
    """Return udev's events, None where udev does not run. Raises OSError or ImportError."""
    return UdevMonitor() if control.exists() else None


class Watcher:
    """Call `changed` with all plugged-in ttys, from `start` to `stop`; used on the loop.

    It is called after each scan, whether or not anything differs: links in /dev may.
    """

    def __init__(
        self,
        sysfs: Sysfs,
        changed: Callable[[list[UsbTty]], None],
        log: structlog.typing.FilteringBoundLogger,
        open_monitor: Callable[[], UdevMonitor | None] = open_udev_monitor,
    ) -> None:
        self._sysfs = sysfs
        self._changed = changed
        self._log = log
        self._open_monitor = open_monitor
        self._monitor: UdevMonitor | None = None
        self._task: asyncio.Task[None] | None = None
        self._scan: asyncio.Future[tuple[list[UsbTty], list[NoTty]]] | None = None
        self._rescan = asyncio.Event()
        self._gone: set[str] = set()  # names removed during the scan that is under way
        self._present: list[UsbTty] = []
        self._no_tty_since_s: dict[NoTty, float] = {}
        self._logged: set[NoTty] = set()

    @property
    def no_tty(self) -> list[NoTty]:
        """The devices that should have a tty and had none at the last scan."""
        return list(self._no_tty_since_s)

    def start(self) -> None:
        """Scan now and after each change."""
        try:
            self._monitor = self._open_monitor()
        except (OSError, ImportError) as error:
            self._log.warning("udev_unavailable", reason=str(error), scan_every_s=POLL_S)
        if self._monitor is not None:
            asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._receive)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop; wait a moment for a scan that is under way."""
        if self._monitor is not None:
            asyncio.get_running_loop().remove_reader(self._monitor.fileno())
            self._monitor.close()
            self._monitor = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._scan is not None:
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(_STOP_LIMIT_S):
                    await asyncio.wait({self._scan})
            self._scan.cancel()

    def _receive(self) -> None:
        for _ in range(MAX_EVENTS_PER_TURN):
            try:
                event = self._monitor.receive() if self._monitor is not None else None
            except OSError as error:  # too many at once, or the socket has failed
                self._log.warning("udev_events_lost", reason=str(error))
                self._rescan.set()
                return
            if event is None:
                return
            action, name = event
            self._rescan.set()
            if action == "remove":
                self._gone.add(name)
                left = [tty for tty in self._present if Path(tty.path).name != name]
                if len(left) < len(self._present):
                    self._report(left)

    async def _run(self) -> None:
        while True:
            self._rescan.clear()
            self._gone.clear()
            try:
                await self._scan_once()
            except TimeoutError:
                reason = f"sysfs has not answered within {SCAN_LIMIT_S:g} s"
                self._log.error("usb_scan_stuck", reason=reason)
                await clock.sleep(_STUCK_PAUSE_S)
                continue
            except Exception as error:
                self._log.error("usb_scan_failed", exc_info=error)
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(POLL_S if self._monitor is None else RESCAN_S):
                    await self._rescan.wait()

    async def _scan_once(self) -> None:
        self._scan = asyncio.ensure_future(call_blocking(self._look, "hotplug"))
        try:
            async with clock.timeout(SCAN_LIMIT_S):
                ttys, no_tty = await asyncio.shield(self._scan)
        except TimeoutError:
            self._scan.cancel()
            raise
        self._note(no_tty)
        # The scan may have read ttys that were removed meanwhile.
        self._report([tty for tty in ttys if Path(tty.path).name not in self._gone])

    def _look(self) -> tuple[list[UsbTty], list[NoTty]]:
        return self._sysfs.usb_ttys(), self._sysfs.no_tty()

    def _report(self, ttys: list[UsbTty]) -> None:
        self._present = ttys
        self._changed(ttys)

    def _note(self, no_tty: list[NoTty]) -> None:
        """Keep the devices without a tty; log those that have lacked one for a while."""
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
