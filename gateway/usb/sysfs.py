"""Which USB ttys are plugged in, as the kernel's sysfs tells.

Reading it may wait for a device (the kernel locks one to show its strings), so this is for a
control thread. Who asks when is `hotplug`'s matter.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gateway import clock
from gateway.config.usb_match import UsbTty
from gateway.usb.no_tty import NoTty, device_names, find_no_tty

SYSFS = Path("/sys")
DEV = Path("/dev")
UDEV = Path("/run/udev")

#: udev is done with a new device within 0.2 s. One that it has no record of for so long gets none.
_UDEV_LIMIT_S = 5.0

#: More ttys than any host has; what comes on top is not looked at.
_MAX_TTYS = 4096

_BUS = re.compile(r"usb\d+")
_DEVICE = re.compile(r"\d+-(?P<sockets>\d+(\.\d+)*)")
_INTERFACE = re.compile(r"(?P<location>\d+-\d+(\.\d+)*):(?P<configuration>\d+)\.(?P<number>\d+)")


@dataclass(frozen=True, slots=True)
class _Seen:
    """A tty that was read before: nothing of it changes until it is plugged in again."""

    folder: str
    inode: int
    tty: UsbTty
    number: str  # major:minor
    since_s: float
    has_node: bool

    def is_of(self, folder: str, inode: int, node: str) -> bool:
        """Whether it was read from there, and /dev had the same tty then."""
        same = (self.folder, self.inode, self.number) == (folder, inode, node)
        return same and self.has_node


class Sysfs:
    """Lists the USB ttys that can be opened; keeps what it has read of each.

    The folders can be others for tests.
    """

    def __init__(self, sysfs: Path = SYSFS, dev: Path = DEV, udev: Path = UDEV) -> None:
        self._sysfs = sysfs
        self._class = sysfs / "class" / "tty"
        self._dev = dev
        self._udev = udev
        self._seen: dict[str, _Seen] = {}
        self._known_to_udev: set[int] = set()  # instances of ttys

    def usb_ttys(self, *, ready_only: bool = True) -> list[UsbTty]:
        """All that are plugged in now, in the order of their sockets.

        Those that can't be opened yet only if not `ready_only`. A tty that goes while it is read
        is left out; a kernel without sysfs has none.
        """
        try:
            names = os.listdir(self._class)[:_MAX_TTYS]  # noqa: PTH208 - names only
        except OSError:
            names = []
        seen = {name: found for name in names if (found := self._look_at(name)) is not None}
        self._seen = seen
        self._known_to_udev &= {each.tty.instance for each in seen.values()}
        ttys = [each.tty for each in seen.values() if not ready_only or self._is_ready(each)]
        return sorted(ttys, key=in_order)

    def no_tty(self) -> list[NoTty]:
        """The devices that should have a tty and had none when `usb_ttys` was last called."""
        return find_no_tty(self._sysfs, {seen.tty.location for seen in self._seen.values()})

    def device_names(self) -> list[str]:
        """The locations of all USB devices, hubs included."""
        return device_names(self._sysfs)

    def _look_at(self, name: str) -> _Seen | None:
        try:
            link = os.readlink(f"{self._class}/{name}")  # noqa: PTH115 - at each look, of each tty
            if "/usb" not in link:
                return None
            folder = os.path.normpath(f"{self._class}/{link}")
            inode = os.stat(folder).st_ino  # noqa: PTH116 - as are the paths around it
            node = _device_number(f"{self._dev}/{name}")
            known = self._seen.get(name)
            if known is not None and known.is_of(folder, inode, node):
                return known
            tty = _read_tty(Path(folder), f"{self._dev}/{name}", inode)
            number = _text(Path(folder), "dev")
        except (OSError, ValueError):
            return None
        if tty is None:
            return None
        return _Seen(folder, inode, tty, number, clock.time(), has_node=number == node)

    def _is_ready(self, seen: _Seen) -> bool:
        """Whether /dev has the tty, and udev is done with it.

        In a container /dev may not have it, or have one of before. Before udev is done the links
        in /dev/serial are missing, so that a port which names one would not be known to want it.
        """
        if not seen.has_node:
            return False
        if seen.tty.instance in self._known_to_udev:
            return True
        has_record = (self._udev / "data" / f"c{seen.number}").exists()
        if has_record or not (self._udev / "control").exists():
            self._known_to_udev.add(seen.tty.instance)
            return True
        return clock.time() - seen.since_s >= _UDEV_LIMIT_S


def existing(paths: Iterable[str]) -> dict[str, str]:
    """Where each path leads that leads anywhere; links of /dev are read, nothing there can wait."""
    found = {}
    for path in paths:
        try:
            os.readlink(path)  # noqa: PTH115 - most are no links, which this tells with one call
        except OSError as error:
            if error.errno == errno.EINVAL:
                found[path] = os.path.normpath(path)
        else:
            real_path = os.path.realpath(path)
            if os.path.exists(real_path):  # noqa: PTH110
                found[path] = real_path
    return found


def in_order(tty: UsbTty) -> tuple[object, ...]:
    """The key to sort by where things are plugged in: socket 2 before socket 10."""
    controller, _, sockets = tty.socket.rpartition("-")
    chain = [int(number) for number in sockets.split(".") if number.isdecimal()]
    return controller, chain, tty.configuration, tty.interface, tty.tty_number, tty.path


def _read_tty(folder: Path, path: str, inode: int) -> UsbTty | None:
    """Who a tty is; None if it is not the tty of a USB device.

    Above the tty are the interface and the device; usb-serial has a folder of its own between.
    """
    interface = next((each for each in folder.parents if _INTERFACE.fullmatch(each.name)), None)
    if interface is None:
        return None
    device = interface.parent
    unit = _INTERFACE.fullmatch(interface.name)
    chain = _DEVICE.fullmatch(device.name)
    if unit is None or chain is None:
        return None
    return UsbTty(
        path=path,
        vendor_id=int(_text(device, "idVendor"), 16),
        product_id=int(_text(device, "idProduct"), 16),
        location=device.name,
        socket=f"{_controller(device)}-{chain['sockets']}",
        configuration=int(unit["configuration"]),
        interface=int(unit["number"]),
        tty_number=_tty_number(folder, interface),
        serial=_optional(device, "serial"),
        manufacturer=_optional(device, "manufacturer"),
        product=_optional(device, "product"),
        is_fixed=_optional(device, "removable") == "fixed",
        instance=inode,
    )


def _device_number(path: str) -> str:
    """Major and minor number of a node in /dev as sysfs writes them; empty if there is none."""
    try:
        device = os.stat(path).st_rdev  # noqa: PTH116
    except OSError:
        return ""
    return f"{os.major(device)}:{os.minor(device)}"


def _controller(device: Path) -> str:
    """The host controller and which of its buses, as udev has them in its by-path names."""
    bus = next(each for each in device.parents if _BUS.fullmatch(each.name))
    version = _optional(bus, "version").partition(".")[0] or "2"
    return f"{bus.parent.name}-usbv{version}"


def _tty_number(folder: Path, interface: Path) -> int:
    """Which tty of its interface; only usb-serial has several."""
    for each in (folder, *folder.parents):
        if each == interface:
            break
        if text := _optional(each, "port_number"):
            return int(text)
    return 0


def _text(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8", errors="replace").strip()


def _optional(folder: Path, name: str) -> str:
    """A text that a device may not have; what would disturb a terminal is replaced."""
    try:
        text = _text(folder, name)
    except FileNotFoundError:
        return ""
    return "".join(char if char.isprintable() else "?" for char in text)
