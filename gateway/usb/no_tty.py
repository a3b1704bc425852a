"""USB devices that should have a tty and have none, with the likely reason.

Known by their ids: the driver of a UART bridge, or of CDC for an ESP's own USB, makes a tty of
each. Reading sysfs and /proc may wait for a device, so this is for a control thread.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.protocol.board_kinds import described, row_of

PROC = Path("/proc")

_DEVICE = re.compile(r"\d+-\d+(\.\d+)*")
_CDC_ACM = "cdc_acm"
#: The kernel's drivers of bridges; all else is CDC.
_DRIVERS = {0x10C4: "cp210x", 0x0403: "ftdi_sio", 0x067B: "pl2303"}
_CH341_PRODUCTS = {0x5523, 0x7522, 0x7523}
#: Class and subclass of an interface that is a modem for the host (USB CDC), as sysfs has them.
_CDC_INTERFACE = ("02", "02")
_VENDOR_CLASS = "ff"


@dataclass(frozen=True, slots=True)
class NoTty:
    """A device without a tty; `reason` is the likely one, with what to do."""

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


def device_names(sysfs: Path) -> list[str]:
    """The locations of all USB devices, hubs included; root hubs are left out."""
    try:
        return [name for name in os.listdir(_devices(sysfs)) if _DEVICE.fullmatch(name)]  # noqa: PTH208 - names only
    except OSError:
        return []


def find_no_tty(sysfs: Path, with_tty: Collection[str], proc: Path = PROC) -> list[NoTty]:
    """The devices without a tty; `with_tty` are the locations of those that have one."""
    found = []
    for name in sorted(set(device_names(sysfs)) - set(with_tty)):
        # A device that goes while it is read is left out.
        with contextlib.suppress(OSError, ValueError):
            device = _look_at(sysfs, _devices(sysfs) / name, proc)
            if device is not None:
                found.append(device)
    return found


def _look_at(sysfs: Path, device: Path, proc: Path) -> NoTty | None:
    usb_ids = int(_text(device / "idVendor"), 16), int(_text(device / "idProduct"), 16)
    row = row_of(usb_ids)
    if row is None:
        return None
    interfaces = sorted(device.glob(f"{device.name}:*"))
    cdc = [each for each in interfaces if _classes(each) == _CDC_INTERFACE]
    # A vendor's other products are many things; of these only CDC promises a tty.
    if row.product_id is None and not cdc:
        return None
    driver = _driver_of(usb_ids)
    wanted = cdc if driver == _CDC_ACM else [each for each in interfaces if _is_vendors(each)]
    reason = _reason(sysfs, device, driver, wanted, proc)
    serial, product = (_text_or_none(device / name) for name in ("serial", "product"))
    return NoTty(device.name, *usb_ids, serial, product, reason)


def _reason(sysfs: Path, device: Path, driver: str, interfaces: Sequence[Path], proc: Path) -> str:
    if _text_or_none(device / "authorized") == "0":
        return "not authorized: USBGuard or the like keeps the kernel's drivers off it"
    if not _text_or_none(device / "bConfigurationValue"):
        return "not configured: the kernel could not set it up, see `sudo dmesg`; try another cable"
    if not interfaces:
        return "its firmware offers no serial port"
    bound = {_bound_to(each) for each in interfaces} - {""}
    if "usbfs" in bound:
        return _claimed(device, driver, proc)
    if not bound and (sysfs / "bus" / "usb" / "drivers" / driver).exists():
        return (
            f"its driver {driver} was detached, as programs do that use libusb (brltty, OpenOCD): "
            "stop that program and plug the device in again"
        )
    if not bound:
        return f"its driver {driver} is not loaded: sudo modprobe {driver}"
    if driver in bound:
        return f"its driver {driver} has made no tty, see `sudo dmesg`"
    return f"bound to the driver {', '.join(sorted(bound))} instead of {driver}"


def _claimed(device: Path, driver: str, proc: Path) -> str:
    node = f"/dev/bus/usb/{int(_text(device / 'busnum')):03}/{int(_text(device / 'devnum')):03}"
    names = sorted(_holders(node, proc))
    if names:
        return f"claimed by {', '.join(names)} over libusb: stop that program"
    usual = "a virtual machine or OpenOCD" if driver == _CDC_ACM else "brltty"
    return f"claimed by another program over libusb, {usual} for instance: stop that program"


def _holders(node: str, proc: Path) -> set[str]:
    """The names of the processes that have a node of /dev open, as far as they may be looked at."""
    found = set()
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(each) == node for each in (process / "fd").iterdir()):  # noqa: PTH115 - of many
                found.add(_printable((process / "comm").read_text(errors="replace").strip()))
    return found


def _driver_of(usb_ids: tuple[int, int]) -> str:
    vendor_id, product_id = usb_ids
    if vendor_id == 0x1A86 and product_id in _CH341_PRODUCTS:
        return "ch341"
    return _DRIVERS.get(vendor_id, _CDC_ACM)


def _devices(sysfs: Path) -> Path:
    return sysfs / "bus" / "usb" / "devices"


def _bound_to(interface: Path) -> str:
    try:
        return (interface / "driver").readlink().name
    except OSError:
        return ""


def _classes(interface: Path) -> tuple[str, str]:
    return _text(interface / "bInterfaceClass"), _text(interface / "bInterfaceSubClass")


def _is_vendors(interface: Path) -> bool:
    return _text(interface / "bInterfaceClass") == _VENDOR_CLASS


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _text_or_none(path: Path) -> str:
    """A text that a device may not have; empty then."""
    try:
        return _printable(_text(path))
    except FileNotFoundError:
        return ""


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
