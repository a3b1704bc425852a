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
    """Waits at a door, as a kernel does that holds a device's lock."""

    def __init__(self, usb: FakeUsb) -> None:
        super().__init__(usb.sysfs, usb.dev)
        self.door = threading.Event()
        self.door.set()
        self.looks = 0
        self.error: Exception | None = None

    def usb_ttys(self, *, ready_only: bool = True) -> list[UsbTty]:
        ttys = super().usb_ttys(ready_only=ready_only)
        self.looks += 1
        self.door.wait()
        if self.error is not None:
            raise self.error
        return ttys


class Bench:
    """A watcher and what it tells."""

    def __init__(self, folder: Path) -> None:
        self.usb = FakeUsb(folder)
        self.sysfs = SlowSysfs(self.usb)
        self.monitor = FakeMonitor()
        self.told: list[list[str]] = []
        self.watcher: Watcher

    def changed(self, ttys: list[UsbTty]) -> None:
        self.told.append([tty.location for tty in ttys])

    @property
    def now(self) -> list[str]:
        return self.told[-1]


@asynccontextmanager
async def watching(folder: Path, *, udev: bool = True) -> AsyncIterator[Bench]:
    bench = Bench(folder)
    log = structlog.get_logger()
    open_monitor = bench.monitor.open if udev else lambda: None
    with bench.usb:
        bench.watcher = Watcher(bench.sysfs, bench.changed, log, open_monitor)
        bench.watcher.start()
        await until(lambda: bench.told)
        assert bench.told == [[]]
        try:
            yield bench
        finally:
            bench.sysfs.door.set()
            await bench.watcher.stop()
            assert not bench.monitor.is_open


async def test_what_is_plugged_in_is_told_with_its_event(tmp_path: Path) -> None:
    async with watching(tmp_path) as bench:
        with LoopClock():
            bench.usb.plug(CH340, "1-1")
            await turns(20)
            assert bench.told == [[]]
            bench.monitor.push(("add", "ttyUSB0"))
            await until(lambda: bench.now == ["1-1"])


async def test_what_is_gone_is_told_without_a_look(tmp_path: Path) -> None:
    async with watching(tmp_path) as bench:
        bench.usb.plug(CH340, "1-1")
        bench.usb.plug(CP2102N, "1-2")
        bench.monitor.push(("add", "ttyUSB0"), ("add", "ttyUSB1"))
        await until(lambda: bench.now == ["1-1", "1-2"])
        await turns(20)
        bench.sysfs.door.clear()
        bench.usb.unplug("1-1")
        bench.monitor.push(("remove", "ttyUSB0"))
        await until(lambda: bench.now == ["1-2"])


async def test_a_look_that_began_before_does_not_bring_back_what_has_gone(tmp_path: Path) -> None:
    async with watching(tmp_path) as bench:
        bench.usb.plug(CH340, "1-1")
        bench.sysfs.door.clear()
        looks = bench.sysfs.looks
        bench.monitor.push(("add", "ttyUSB0"))
        await until(lambda: bench.sysfs.looks > looks)  # it has seen the device, and waits
        bench.usb.unplug("1-1")
        bench.monitor.push(("remove", "ttyUSB0"))
        await turns(10)
        bench.sysfs.door.set()
        await until(lambda: bench.sysfs.looks > looks + 1)
        await turns(10)
        assert all(told == [] for told in bench.told)


async def test_events_that_come_during_a_look_lead_to_one_more(tmp_path: Path) -> None:
    async with watching(tmp_path) as bench:
        bench.sysfs.door.clear()
        looks = bench.sysfs.looks
        bench.monitor.push(("add", "ttyUSB0"))
        await until(lambda: bench.sysfs.looks == looks + 1)
        bench.usb.plug(CH340, "1-1")
        bench.monitor.push(*[("change", "ttyUSB0")] * 300)
        await turns(30)
        bench.sysfs.door.set()
        await until(lambda: bench.now == ["1-1"])
        await turns(30)
        assert bench.sysfs.looks == looks + 2


async def test_lost_events_are_made_up_for(tmp_path: Path) -> None:
    async with watching(tmp_path) as bench:
        with capture_logs() as logs:
            bench.usb.plug(CH340, "1-1")
            bench.monitor.push(OSError(105, "No buffer space available"))
            await until(lambda: bench.now == ["1-1"])
        assert [log["event"] for log in logs] == ["udev_events_lost"]


@pytest.mark.parametrize(("udev", "period_s"), [(True, RESCAN_S), (False, POLL_S)])
async def test_without_events_it_looks_now_and_then(
    tmp_path: Path, udev: bool, period_s: float
) -> None:
    async with watching(tmp_path, udev=udev) as bench:
        with LoopClock() as clock:
            await turns(10)
            await clock.advance(period_s)
            await until(lambda: len(bench.told) == 2)
            bench.usb.plug(CH340, "1-1")
            await clock.advance(period_s * 0.9)
            assert bench.now == []
            await clock.advance(period_s * 0.2)
            await until(lambda: bench.now == ["1-1"])


async def test_a_udev_that_can_not_be_heard_is_told_and_made_up_for(tmp_path: Path) -> None:
    def fails() -> None:
        raise ImportError("No libudev found")

    with FakeUsb(tmp_path) as usb, capture_logs() as logs:
        told: list[object] = []
        sysfs = Sysfs(usb.sysfs, usb.dev)
        watcher = Watcher(sysfs, told.append, structlog.get_logger(), fails)
        watcher.start()
        await until(lambda: told)
        await watcher.stop()
    (entry,) = logs
    assert (entry["event"], entry["reason"]) == ("udev_unavailable", "No libudev found")


async def test_a_look_that_fails_is_told_and_made_again(tmp_path: Path) -> None:
    async with watching(tmp_path) as bench:
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


async def test_a_device_without_a_tty_is_logged_once_and_not_while_it_is_new(
    tmp_path: Path,
) -> None:
    async with watching(tmp_path) as bench:
        with capture_logs() as logs, LoopClock() as clock:
            bench.usb.plug(CP2102N, "1-1", bound_to="")
            bench.monitor.push(("add", "ttyUSB7"))
            await until(lambda: bench.watcher.no_tty)
            assert logs == []
            for _ in range(3):
                looks = len(bench.told)
                await clock.advance(RESCAN_S)
                await until(lambda: len(bench.told) > looks)  # noqa: B023 - called here only
            assert [log["event"] for log in logs] == ["usb_without_tty"]
            assert logs[0]["location"] == "1-1"
            assert "modprobe cp210x" in logs[0]["reason"]
            bench.usb.unplug("1-1")
            await clock.advance(RESCAN_S)
            await until(lambda: not bench.watcher.no_tty)


async def test_a_kernel_that_does_not_answer_is_left_behind(tmp_path: Path) -> None:
    async with watching(tmp_path) as bench:
        with capture_logs() as logs, LoopClock() as clock:
            bench.sysfs.door.clear()
            looks = bench.sysfs.looks
            bench.monitor.push(("add", "ttyUSB0"))
            await until(lambda: bench.sysfs.looks > looks)
            await clock.advance(SCAN_LIMIT_S)
            await clock.advance(1.0)  # a loop that was held up that long gives it another second
            assert [log["event"] for log in logs] == ["usb_scan_stuck"]
            bench.sysfs.door.set()
            bench.usb.plug(CH340, "1-1")
            await clock.advance(61.0)
            await until(lambda: bench.now == ["1-1"])


async def test_stopping_during_a_look_leaves_nothing(tmp_path: Path) -> None:
    async with watching(tmp_path) as bench:
        bench.monitor.push(("add", "ttyUSB0"))
        await asyncio.sleep(0)


def test_without_udevd_there_are_no_events(tmp_path: Path) -> None:
    assert open_udev_monitor(tmp_path / "control") is None


@pytest.mark.skipif(not udev_wire.can_send(), reason="may not speak for udevd")
async def test_libudev_s_events_reach_the_watcher(tmp_path: Path) -> None:
    told: list[list[str]] = []

    def changed(ttys: list[UsbTty]) -> None:
        told.append([tty.location for tty in ttys])

    with FakeUsb(tmp_path) as usb:
        sysfs = Sysfs(usb.sysfs, usb.dev)
        watcher = Watcher(sysfs, changed, structlog.get_logger(), UdevMonitor)
        watcher.start()
        await until(lambda: told == [[]])
        with LoopClock():
            usb.plug(CP2102N, "1-1.3")
            udev_wire.send(udev_wire.INTERFACE_BOUND)
            udev_wire.send(udev_wire.TTY_ADDED)
            await until(lambda: told[-1] == ["1-1.3"])
            usb.unplug("1-1.3")
            udev_wire.send(udev_wire.TTY_REMOVED)
            await until(lambda: told[-1] == [])
        await watcher.stop()


@pytest.mark.skipif(not udev_wire.can_send(), reason="may not speak for udevd")
def test_a_monitor_hears_of_ttys_only_and_leaves_no_socket() -> None:
    monitor = UdevMonitor()
    udev_wire.send(udev_wire.INTERFACE_BOUND)
    udev_wire.send(udev_wire.TTY_ADDED)
    udev_wire.send(udev_wire.TTY_REMOVED)
    received = [monitor.receive() for _ in range(3)]
    assert received == [("add", "ttyUSB0"), ("remove", "ttyUSB0"), None]
    monitor.close()
