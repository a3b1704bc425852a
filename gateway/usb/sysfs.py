"""Read the plugged-in USB ttys, and USB devices that should have one, from the kernel's sysfs.

Every read may block: the kernel locks a device while it shows its strings.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway import clock
from gateway.config.usb_match import UsbTty
from gateway.protocol.board_kinds import described, row_of

SYSFS: Final = Path("/sys")
DEV: Final = Path("/dev")
UDEV: Final = Path("/run/udev")
PROC: Final = Path("/proc")

#: udev is done with a new device within 0.2 s. A tty without a record for so long will get none.
_UDEV_LIMIT_S: Final = 5.0

#: More ttys than any host has; further ones are ignored.
_MAX_TTYS: Final = 4096

_BUS = re.compile(r"usb\d+")
_DEVICE = re.compile(r"\d+-(?P<sockets>\d+(\.\d+)*)")
_INTERFACE = re.compile(r"(?P<location>\d+-\d+(\.\d+)*):(?P<configuration>\d+)\.(?P<number>\d+)")

_CDC_ACM: Final = "cdc_acm"
#: The kernel's drivers of UART bridges by vendor id; all other devices are CDC.
_DRIVERS: Final = {0x10C4: "cp210x", 0x0403: "ftdi_sio", 0x067B: "pl2303"}
_CH341_IDS: Final = {(0x1A86, 0x5523), (0x1A86, 0x7522), (0x1A86, 0x7523)}

#: Class and subclass of a CDC modem interface (USB CDC), and the vendor-specific class.
_CDC_INTERFACE: Final = ("02", "02")
_VENDOR_CLASS: Final = "ff"


@dataclass(frozen=True, slots=True)
class NoTty:
    """A USB device without a tty; `reason` is the likely one, with the remedy."""

    location: str
    vendor_id: int
    product_id: int
    serial: str
    product: str
    reason: str

    @property
    def usb(self) -> str:
        """Vendor and product id, `10c4:ea60`."""
        return f"{self.vendor_id:04x}:{self.product_id:04x}"

    def __str__(self) -> str:
        return f"{described((self.vendor_id, self.product_id))} at {self.location}"


@dataclass(frozen=True, slots=True)
class _Seen:
    """A tty that was read before; it does not change until it is plugged in again."""

    folder: str
    inode: int
    tty: UsbTty
    number: str  # major:minor
    since_s: float
    has_node: bool

    def is_of(self, folder: str, inode: int, node: str) -> bool:
        """Return whether it was read from there, with the same node in /dev."""
        same = (self.folder, self.inode, self.number) == (folder, inode, node)
        return same and self.has_node


class Sysfs:
    """List USB ttys, and cache the attributes of each. The folders differ in tests."""

    def __init__(self, sysfs: Path = SYSFS, dev: Path = DEV, udev: Path = UDEV) -> None:
        self._class = sysfs / "class" / "tty"
        self._devices = sysfs / "bus" / "usb" / "devices"
        self._drivers = sysfs / "bus" / "usb" / "drivers"
        self._dev = dev
        self._udev = udev
        self._seen: dict[str, _Seen] = {}
        self._known_to_udev: set[int] = set()  # instances of ttys

    def usb_ttys(self, *, ready_only: bool = True) -> list[UsbTty]:
        """Return the plugged-in ttys in the order of their sockets.

        With `ready_only`, only those that can be opened. A tty that is unplugged meanwhile is left
        out; without sysfs there are none.
        """
        names = _listed(self._class)[:_MAX_TTYS]
        looked_at = {name: self._look_at(name) for name in names}
        self._seen = {name: seen for name, seen in looked_at.items() if seen is not None}
        seen_now = self._seen.values()
        self._known_to_udev &= {each.tty.instance for each in seen_now}
        ttys = [each.tty for each in seen_now if not ready_only or self._is_ready(each)]
        return sorted(ttys, key=in_order)

    def device_names(self) -> list[str]:
        """Return the locations of all USB devices, hubs included, root hubs excluded."""
        return [name for name in _listed(self._devices) if _DEVICE.fullmatch(name)]

    def no_tty(self, proc: Path = PROC) -> list[NoTty]:
        """Return the devices that should have a tty and had none at the last `usb_ttys`.

        They are known by their ids: the driver of a UART bridge, or of CDC for a chip's own USB,
        makes a tty of each.
        """
        found = []
        with_tty = {each.tty.location for each in self._seen.values()}
        for name in sorted(set(self.device_names()) - with_tty):
            # A device that is unplugged meanwhile is left out.
            with contextlib.suppress(OSError, ValueError):
                device = self._without_tty(self._devices / name, proc)
                if device is not None:
                    found.append(device)
        return found

    # --- ttys

    def _look_at(self, name: str) -> _Seen | None:
        try:
            link = os.readlink(f"{self._class}/{name}")  # noqa: PTH115 - hot: each look, each tty
            if "/usb" not in link:
                return None
            folder = os.path.normpath(f"{self._class}/{link}")
            inode = os.stat(folder).st_ino  # noqa: PTH116 - as above
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
        """Return whether /dev has the tty and udev is done with it.

        In a container /dev may lack it, or have a stale node. Before udev is done, the links in
        /dev/serial are missing, and a port that names one of them would seem not to want the tty.
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

    # --- devices without a tty

    def _without_tty(self, device: Path, proc: Path) -> NoTty | None:
        ids = int(_text(device, "idVendor"), 16), int(_text(device, "idProduct"), 16)
        row = row_of(ids)
        if row is None:
            return None
        interfaces = sorted(device.glob(f"{device.name}:*"))
        cdc = [each for each in interfaces if _classes(each) == _CDC_INTERFACE]
        # A vendor makes other products as well; of these only CDC promises a tty.
        if row.product_id is None and not cdc:
            return None
        driver = "ch341" if ids in _CH341_IDS else _DRIVERS.get(ids[0], _CDC_ACM)
        wanted = cdc
        if driver != _CDC_ACM:
            wanted = [each for each in interfaces if _classes(each)[0] == _VENDOR_CLASS]
        reason = self._reason(device, driver, wanted, proc)
        serial, product = _optional(device, "serial"), _optional(device, "product")
        return NoTty(device.name, *ids, serial, product, reason)

    def _reason(self, device: Path, driver: str, interfaces: list[Path], proc: Path) -> str:
        if _optional(device, "authorized") == "0":
            return "not authorized: USBGuard or the like keeps the kernel's drivers off it"
        if not _optional(device, "bConfigurationValue"):
            return "not configured by the kernel, see `sudo dmesg`: try another cable"
        if not interfaces:
            return "its firmware offers no serial port"
        bound = {_bound_to(each) for each in interfaces} - {""}
        if "usbfs" in bound:
            return _claimed(device, driver, proc)
        if not bound and (self._drivers / driver).exists():
            return (
                f"its driver {driver} was detached, as programs do that use libusb (brltty,"
                " OpenOCD): stop that program and plug the device in again"
            )
        if not bound:
            return f"its driver {driver} is not loaded: sudo modprobe {driver}"
        if driver in bound:
            return f"its driver {driver} has made no tty, see `sudo dmesg`"
        return f"bound to the driver {', '.join(sorted(bound))} instead of {driver}"


def existing(paths: Iterable[str]) -> dict[str, str]:
    """Return the target of each path that exists. Only links in /dev are read: never blocks."""
    found = {}
    for path in paths:
        try:
            os.readlink(path)  # noqa: PTH115 - most are no links, which one call shows
        except OSError as error:
            if error.errno == errno.EINVAL:
                found[path] = os.path.normpath(path)
        else:
            real_path = os.path.realpath(path)
            if os.path.exists(real_path):  # noqa: PTH110
                found[path] = real_path
    return found


def in_order(tty: UsbTty) -> tuple[object, ...]:
    """Return the key to sort by socket: socket 2 before socket 10."""
    controller, _, sockets = tty.socket.rpartition("-")
    chain = [int(number) for number in sockets.split(".") if number.isdecimal()]
    return controller, chain, tty.configuration, tty.interface, tty.tty_number, tty.path


def _read_tty(folder: Path, path: str, inode: int) -> UsbTty | None:
    """Read a tty's attributes; None if it is not the tty of a USB device.

    Its interface and its device are parents of its folder; usb-serial has another one between.
    """
    interface = next((each for each in folder.parents if _INTERFACE.fullmatch(each.name)), None)
    if interface is None:
        return None
    device = interface.parent
    unit, chain = _INTERFACE.fullmatch(interface.name), _DEVICE.fullmatch(device.name)
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
    """Return major and minor number of a node in /dev as in sysfs; empty if there is none."""
    try:
        device = os.stat(path).st_rdev  # noqa: PTH116
    except OSError:
        return ""
    return f"{os.major(device)}:{os.minor(device)}"


def _controller(device: Path) -> str:
    """Return the host controller and which of its buses, as in udev's by-path names."""
    bus = next(each for each in device.parents if _BUS.fullmatch(each.name))
    version = _optional(bus, "version").partition(".")[0] or "2"
    return f"{bus.parent.name}-usbv{version}"


def _tty_number(folder: Path, interface: Path) -> int:
    """Return the number of a tty within its interface; only usb-serial has several."""
    for each in (folder, *folder.parents):
        if each == interface:
            break
        if text := _optional(each, "port_number"):
            return int(text)
    return 0


def _claimed(device: Path, driver: str, proc: Path) -> str:
    bus, number = int(_text(device, "busnum")), int(_text(device, "devnum"))
    names = sorted(_openers(f"/dev/bus/usb/{bus:03}/{number:03}", proc))
    if names:
        return f"claimed by {', '.join(names)} over libusb: stop that program"
    usual = "a virtual machine or OpenOCD" if driver == _CDC_ACM else "brltty"
    return f"claimed by another program over libusb, {usual} for instance: stop that program"


def _openers(node: str, proc: Path) -> set[str]:
    """Return the names of the processes that have a node of /dev open, of those we may see."""
    found = set()
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(each) == node for each in (process / "fd").iterdir()):  # noqa: PTH115 - many
                found.add(_optional(process, "comm"))
    return found


def _bound_to(interface: Path) -> str:
    try:
        return (interface / "driver").readlink().name
    except OSError:
        return ""


def _classes(interface: Path) -> tuple[str, str]:
    return _text(interface, "bInterfaceClass"), _text(interface, "bInterfaceSubClass")


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names only
    except OSError:
        return []


def _text(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8", errors="replace").strip()


def _optional(folder: Path, name: str) -> str:
    """Read a text that may be missing; replace characters that would disturb a terminal."""
    try:
        text = _text(folder, name)
    except FileNotFoundError:
        return ""
    return "".join(char if char.isprintable() else "?" for char in text)
