"""The watcher, on a sysfs tree that changes, with the test's events and with libudev's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.config.usb_match import UsbTty
from gateway.usb.hotplug import (
    POLL_S,
    RESCAN_S,
    SCAN_LIMIT_S,
    UdevMonitor,
    Watcher,
    open_udev_monitor,
)
from gateway.usb.sysfs import Sysfs
from tests.support import udev_wire
from tests.support.fake_monitor import FakeMonitor
from tests.support.fake_sysfs import CH340, CP2102N, FakeUsb
from tests.support.pty_board import LoopClock, turns, until


class SlowSysfs(Sysfs):
    """Waits at a door, like a kernel that holds a device's lock."""

    def __init__(self, usb: FakeUsb) -> None:
        super().__init__(usb.sysfs, usb.dev)
        self.door = threading.Event()
        self.door.set()
        self.scans = 0
        self.error: Exception | None = None

    def usb_ttys(self, *, ready_only: bool = True) -> list[UsbTty]:
        ttys = super().usb_ttys(ready_only=ready_only)
        self.scans += 1
        self.door.wait()
        if self.error is not None:
            raise self.error
        return ttys


class Bench:
    """A watcher and its reports."""

    def __init__(self, folder: Path) -> None:
        self.usb = FakeUsb(folder)
        self.sysfs = SlowSysfs(self.usb)
        self.monitor = FakeMonitor()
        self.reports: list[list[str]] = []
        self.watcher: Watcher

    def changed(self, ttys: list[UsbTty]) -> None:
        self.reports.append([tty.location for tty in ttys])

    @property
    def now(self) -> list[str]:
        return self.reports[-1]

    async def begin_scan(self) -> int:
        """Have a scan wait at the door; the number of scans before it."""
        self.sysfs.door.clear()
        scans = self.sysfs.scans
        self.monitor.push(("add", "ttyUSB0"))
        await until(lambda: self.sysfs.scans > scans)
        return scans


@asynccontextmanager
async def watching(folder: Path, *, udev: bool = True) -> AsyncIterator[Bench]:
    bench = Bench(folder)
    log = structlog.get_logger()
    open_monitor = bench.monitor.open if udev else lambda: None
    with bench.usb:
        bench.watcher = Watcher(bench.sysfs, bench.changed, log, open_monitor)
        bench.watcher.start()
        await until(lambda: bench.reports)
        assert bench.reports == [[]]
        try:
            yield bench
        finally:
            bench.sysfs.door.set()
            await bench.watcher.stop()
            assert not bench.monitor.is_open


@pytest.fixture
@asynccontextmanager
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with watching(tmp_path) as made:
        yield made


async def test_a_plugged_in_tty_is_reported_with_its_event(bench: Bench) -> None:
    with LoopClock():
        bench.usb.plug(CH340, "1-1")
        await turns(20)
        assert bench.reports == [[]]
        bench.monitor.push(("add", "ttyUSB0"))
        await until(lambda: bench.now == ["1-1"])


async def test_an_unplugged_tty_is_reported_without_a_scan(bench: Bench) -> None:
    bench.usb.plug(CH340, "1-1")
    bench.usb.plug(CP2102N, "1-2")
    bench.monitor.push(("add", "ttyUSB0"), ("add", "ttyUSB1"))
    await until(lambda: bench.now == ["1-1", "1-2"])
    await turns(20)
    bench.sysfs.door.clear()
    bench.usb.unplug("1-1")
    bench.monitor.push(("remove", "ttyUSB0"))
    await until(lambda: bench.now == ["1-2"])


async def test_a_scan_from_before_does_not_restore_an_unplugged_tty(bench: Bench) -> None:
    bench.usb.plug(CH340, "1-1")
    scans = await bench.begin_scan()  # it has seen the device
    bench.usb.unplug("1-1")
    bench.monitor.push(("remove", "ttyUSB0"))
    await turns(10)
    bench.sysfs.door.set()
    await until(lambda: bench.sysfs.scans > scans + 1)
    await turns(10)
    assert all(report == [] for report in bench.reports)


async def test_events_during_a_scan_cause_one_more(bench: Bench) -> None:
    scans = await bench.begin_scan()
    bench.usb.plug(CH340, "1-1")
    bench.monitor.push(*[("change", "ttyUSB0")] * 300)
    await turns(30)
    bench.sysfs.door.set()
    await until(lambda: bench.now == ["1-1"])
    await turns(30)
    assert bench.sysfs.scans == scans + 2


async def test_lost_events_cause_a_scan(bench: Bench) -> None:
    with capture_logs() as logs:
        bench.usb.plug(CH340, "1-1")
        bench.monitor.push(OSError(105, "No buffer space available"))
        await until(lambda: bench.now == ["1-1"])
    assert [log["event"] for log in logs] == ["udev_events_lost"]


@pytest.mark.parametrize(("udev", "period_s"), [(True, RESCAN_S), (False, POLL_S)])
async def test_sysfs_is_scanned_without_events_too(
    tmp_path: Path, udev: bool, period_s: float
) -> None:
    async with watching(tmp_path, udev=udev) as bench:
        with LoopClock() as clock:
            await turns(10)
            await clock.advance(period_s)
            await until(lambda: len(bench.reports) == 2)
            bench.usb.plug(CH340, "1-1")
            await clock.advance(period_s * 0.9)
            assert bench.now == []
            await clock.advance(period_s * 0.2)
            await until(lambda: bench.now == ["1-1"])


async def test_an_unavailable_udev_is_logged_and_replaced_by_polling(tmp_path: Path) -> None:
    def fails() -> None:
        raise ImportError("No libudev found")

    with FakeUsb(tmp_path) as usb, capture_logs() as logs:
        reports: list[object] = []
        sysfs = Sysfs(usb.sysfs, usb.dev)
        watcher = Watcher(sysfs, reports.append, structlog.get_logger(), fails)
        watcher.start()
        await until(lambda: reports)
        await watcher.stop()
    (entry,) = logs
    assert (entry["event"], entry["reason"]) == ("udev_unavailable", "No libudev found")


async def test_a_scan_that_fails_is_logged_and_repeated(bench: Bench) -> None:
    with capture_logs() as logs, LoopClock() as clock:
        bench.sysfs.error = RuntimeError("a mistake of ours")
        bench.monitor.push(("add", "ttyUSB0"))
        await until(lambda: logs)
        assert [log["event"] for log in logs] == ["usb_scan_failed"]
        bench.sysfs.error = None
        bench.usb.plug(CH340, "1-1")
        await turns(10)
        await clock.advance(RESCAN_S)
        await until(lambda: bench.now == ["1-1"])


async def test_a_kernel_that_does_not_answer_is_left_behind(bench: Bench) -> None:
    with capture_logs() as logs, LoopClock() as clock:
        await bench.begin_scan()
        await clock.advance(SCAN_LIMIT_S + 1.0)
        assert [log["event"] for log in logs] == ["usb_scan_stuck"]
        bench.sysfs.error = OSError("too late to matter")
        bench.sysfs.door.set()
        await turns(20)
        bench.sysfs.error = None
        bench.usb.plug(CH340, "1-1")
        await clock.advance(61.0)
        await until(lambda: bench.now == ["1-1"])


async def test_stopping_during_a_scan_leaves_nothing(bench: Bench) -> None:
    bench.monitor.push(("add", "ttyUSB0"))
    await asyncio.sleep(0)


async def test_a_device_without_a_tty_is_logged_once_and_not_while_it_is_new(bench: Bench) -> None:
    with capture_logs() as logs, LoopClock() as clock:
        bench.usb.plug(CP2102N, "1-1", bound_to="")
        bench.monitor.push(("add", "ttyUSB7"))
        await until(lambda: bench.watcher.no_tty)
        assert logs == []
        for _ in range(3):
            reports = len(bench.reports)
            await clock.advance(RESCAN_S)
            await until(lambda: len(bench.reports) > reports)  # noqa: B023 - called here only
        assert [log["event"] for log in logs] == ["usb_without_tty"]
        assert logs[0]["location"] == "1-1"
        assert "modprobe cp210x" in logs[0]["reason"]
        bench.usb.unplug("1-1")
        await clock.advance(RESCAN_S)
        await until(lambda: not bench.watcher.no_tty)
        bench.usb.plug(CP2102N, "1-1", bound_to="")  # which is another event
        while len(logs) < 2:
            await clock.advance(RESCAN_S)


# --- libudev


def test_without_udevd_there_are_no_events(tmp_path: Path) -> None:
    assert open_udev_monitor(tmp_path / "control") is None


@pytest.mark.skipif(not udev_wire.can_send(), reason="may not speak for udevd")
async def test_events_of_libudev_reach_the_watcher(tmp_path: Path) -> None:
    reports: list[list[str]] = []

    def changed(ttys: list[UsbTty]) -> None:
        reports.append([tty.location for tty in ttys])

    with FakeUsb(tmp_path) as usb:
        sysfs = Sysfs(usb.sysfs, usb.dev)
        watcher = Watcher(sysfs, changed, structlog.get_logger(), UdevMonitor)
        watcher.start()
        await until(lambda: reports == [[]])
        with LoopClock():
            usb.plug(CP2102N, "1-1.3")
            udev_wire.send(udev_wire.INTERFACE_BOUND)
            udev_wire.send(udev_wire.TTY_ADDED)
            await until(lambda: reports[-1] == ["1-1.3"])
            usb.unplug("1-1.3")
            udev_wire.send(udev_wire.TTY_REMOVED)
            await until(lambda: reports[-1] == [])
        await watcher.stop()


@pytest.mark.skipif(not udev_wire.can_send(), reason="may not speak for udevd")
def test_a_monitor_receives_events_of_ttys_only_and_leaves_no_socket() -> None:
    monitor = UdevMonitor()
    udev_wire.send(udev_wire.INTERFACE_BOUND)
    udev_wire.send(udev_wire.TTY_ADDED)
    udev_wire.send(udev_wire.TTY_REMOVED)
    received = [monitor.receive() for _ in range(3)]
    assert received == [("add", "ttyUSB0"), ("remove", "ttyUSB0"), None]
    monitor.close()
