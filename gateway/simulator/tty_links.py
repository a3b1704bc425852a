"""What a board's folder shows of its tty: the links to it, and which USB device it belongs to.

The links are what udev makes of a USB serial port:

    tty          the kernel's name (ttyACM0); a board that `renames` comes back as tty-1, tty-2, ...
    by-path      a link to the present one, under a name that stays (/dev/serial/by-path)
    usb.json     the device (idVendor and idProduct in sysfs); what `read_usb_device` reads

All are there while the device is, and none while it is not. Each is renamed into place, the
kernel's name last, so whoever sees a name finds the rest. Paths are relative to a folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gateway.simulator.usb import UsbIds

TTY_NAME = "tty"
BY_PATH_NAME = "by-path"
USB_NAME = "usb.json"


@dataclass(frozen=True, slots=True)
class UsbDevice:
    """The USB device that a board is at the moment.

    `number` is 1 for the first device since the board's process started; `tty_name` is the
    kernel's name, in the board's folder.
    """

    number: int
    ids: UsbIds
    tty_name: str


def read_usb_device(folder: Path) -> UsbDevice | None:
    """The device of the board in `folder`; None while there is none."""
    try:
        entry = json.loads((folder / USB_NAME).read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    return UsbDevice(entry["number"], UsbIds.parse(entry["ids"]), entry["tty"])


class TtyLinks:
    """Keeps a folder's links; `renames` gives each new device another kernel's name."""

    def __init__(self, folder: Path, *, renames: bool) -> None:
        self._folder = folder
        self._renames = renames
        self._count = 0
        self.device: UsbDevice | None = None

    def show(self, pty: str, ids: UsbIds) -> UsbDevice:
        """The device appears, with its tty at `pty`."""
        name = f"{TTY_NAME}-{self._count}" if self._renames and self._count else TTY_NAME
        self._count += 1
        self.device = device = UsbDevice(self._count, ids, name)
        entry = {"number": device.number, "ids": str(ids), "tty": name}
        new = self._new(USB_NAME)
        new.write_text(json.dumps(entry) + "\n", encoding="ascii")
        new.rename(self._folder / USB_NAME)
        self._link(BY_PATH_NAME, name)
        self._link(name, pty)
        return device

    def hide(self) -> None:
        """The device goes; nothing happens if there is none."""
        if self.device is not None:
            for name in (BY_PATH_NAME, self.device.tty_name, USB_NAME):
                (self._folder / name).unlink(missing_ok=True)
            self.device = None

    def _link(self, name: str, target: str) -> None:
        new = self._new(name)
        new.symlink_to(target)
        new.rename(self._folder / name)

    def _new(self, name: str) -> Path:
        """A free name to make a file under that will be renamed to `name`."""
        new = self._folder / f".{name}.new"
        new.unlink(missing_ok=True)
        return new
