"""A sysfs and a /dev with USB ttys that a test plugs in and out; the ttys are ptys.

Laid out as Linux 6.x does it on a Raspberry Pi 4 (/sys/devices/platform/scb/fd500000.pcie/...),
for usb-serial (ttyUSB) and cdc_acm (ttyACM).
"""

from __future__ import annotations

import os
import pty
import shutil
import tty
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_CONTROLLER = "devices/platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0"


@dataclass(frozen=True)
class Product:
    """A kind of USB device: its descriptors, and which interfaces have a tty."""

    usb: str
    driver: str = "ttyUSB"
    serial: str = ""
    manufacturer: str = ""
    product: str = ""
    interfaces: tuple[int, ...] = (0,)
    ttys_per_interface: int = 1


CP2102 = Product(
    "10c4:ea60",
    serial="0001",
    manufacturer="Silicon Labs",
    product="CP2102 USB to UART Bridge Controller",
)
CP2102N = Product(
    "10c4:ea60",
    serial="8a2f1c0d9e3bec11a5d4f3d0639e525b",
    manufacturer="Silicon Labs",
    product="CP2102N USB to UART Bridge Controller",
)
CH340 = Product("1a86:7523", product="USB Serial")
FT2232 = Product(
    "0403:6010", serial="FT7ABC12", manufacturer="FTDI", product="Dual RS232-HS", interfaces=(0, 1)
)
#: Interface 0 and 1 are the CDC pair of which 0 has the tty, 2 is JTAG.
USB_JTAG = Product(
    "303a:1001",
    driver="ttyACM",
    serial="7C:DF:A1:B0:42:10",
    manufacturer="Espressif",
    product="USB JTAG/serial debug unit",
)
#: A composite device of two CDC functions.
ESP_PROG_2 = Product(
    "303a:1002",
    driver="ttyACM",
    serial="F4:12:FA:00:00:01",
    manufacturer="Espressif",
    product="ESP USB Bridge",
    interfaces=(0, 2),
)
#: One interface with several ttys, as some multi-port adapters have.
MULTIPORT = Product("1a86:55d9", serial="BCD", product="USB Quad Serial", ttys_per_interface=4)


@dataclass
class _Plugged:
    folder: Path
    names: list[str]
    masters: dict[str, int] = field(default_factory=dict)
    fds: list[int] = field(default_factory=list)


class FakeUsb:
    """See the module; a context manager that unplugs all in the end.

    `sysfs` and `dev` are the roots to read. `plug` gives the paths of the ttys that appear.
    """

    def __init__(self, folder: Path) -> None:
        self.sysfs = folder / "sys"
        self.dev = folder / "dev"
        (self.sysfs / "class" / "tty").mkdir(parents=True)
        (self.sysfs / "bus" / "usb" / "devices").mkdir(parents=True)
        self.dev.mkdir()
        self._plugged: dict[str, _Plugged] = {}
        self._add_bus(1, " 2.00")
        self._add_bus(2, " 3.00")
        # Every machine has these, with no device behind most of them.
        for name in ("tty0", "console", "ptmx"):
            self._link(self._made(f"devices/virtual/tty/{name}", dev="4:0"))
        self._link(self._made("devices/platform/serial8250/tty/ttyS0", dev="4:64"))

    def plug(
        self,
        product: Product,
        location: str,
        *,
        renumber_bus: int = 0,
        is_fixed: bool = False,
        bound_to: str | None = None,
    ) -> list[str]:
        """A device appears in a socket; returns the paths of its ttys.

        `renumber_bus` is the number that its bus has for this once, as after another boot.
        `is_fixed`: the hub calls it a part of itself. `bound_to` is the driver that has its
        interfaces instead of one that makes ttys, empty for none; there are no ttys then.
        """
        bus = renumber_bus or int(location.partition("-")[0])
        chain = location.partition("-")[2].split(".")
        folder = self.sysfs / _CONTROLLER / f"usb{bus}"
        for depth in range(1, len(chain) + 1):
            folder /= f"{bus}-{'.'.join(chain[:depth])}"
        vendor, _, product_id = product.usb.partition(":")
        _write(folder, idVendor=vendor, idProduct=product_id)
        for name in ("serial", "manufacturer", "product"):
            if text := getattr(product, name):
                _write(folder, **{name: text})
        _write(
            folder,
            authorized="1",
            bConfigurationValue="1",
            busnum=str(bus),
            devnum=str(len(self._plugged) + 2),
            removable="fixed" if is_fixed else "unknown",
        )
        self._register(folder)
        plugged = self._plugged[location] = _Plugged(folder, [])
        for interface in product.interfaces:
            self._add_interface(folder, interface, product, bound_to)
        if bound_to is not None:
            return []
        for interface in product.interfaces:
            for number in range(product.ttys_per_interface):
                self._add_tty(product, folder / f"{folder.name}:1.{interface}", number, plugged)
        return [str(self.dev / name) for name in plugged.names]

    def unplug(self, location: str) -> None:
        """What is plugged in there vanishes, its ttys are hung up."""
        plugged = self._plugged.pop(location)
        for name in plugged.names:
            (self.sysfs / "class" / "tty" / name).unlink()
            (self.dev / name).unlink(missing_ok=True)
        shutil.rmtree(plugged.folder)
        (self.sysfs / "bus" / "usb" / "devices" / plugged.folder.name).unlink()
        for fd in plugged.fds:
            os.close(fd)

    def lose_nodes(self, location: str) -> None:
        """The first step of an unplugging: /dev loses the ttys, sysfs still has them."""
        for path in self.tty_paths(location):
            Path(path).unlink()

    def change(self, location: str, **files: str) -> None:
        """What sysfs says of a device that is plugged in changes."""
        _write(self._plugged[location].folder, **files)

    def load_driver(self, name: str) -> None:
        """The kernel has a driver, whether or not anything is bound to it."""
        (self.sysfs / "bus" / "usb" / "drivers" / name).mkdir(parents=True, exist_ok=True)

    def _add_interface(
        self, device: Path, number: int, product: Product, bound_to: str | None
    ) -> None:
        folder = device / f"{device.name}:1.{number}"
        is_cdc = product.driver == "ttyACM"
        classes = ("02", "02") if is_cdc else ("ff", "ff")
        _write(folder, bInterfaceClass=classes[0], bInterfaceSubClass=classes[1])
        driver = bound_to if bound_to is not None else "cdc_acm" if is_cdc else "usb_serial"
        if driver:
            self.load_driver(driver)
            (folder / "driver").symlink_to(self.sysfs / "bus" / "usb" / "drivers" / driver)

    def _register(self, folder: Path) -> None:
        """Each device is listed once more, all in one folder, as is each hub on the way to it."""
        devices = self.sysfs / "bus" / "usb" / "devices"
        for each in (folder, *folder.parents):
            if each.name.startswith("usb"):
                break
            if each != folder:
                _write(each, idVendor="05e3", idProduct="0610")
            link = devices / each.name
            if not link.is_symlink():
                link.symlink_to(each)

    @property
    def locations(self) -> list[str]:
        """Where something is plugged in."""
        return list(self._plugged)

    def tty_paths(self, location: str) -> list[str]:
        """The paths of the ttys of what is plugged in there."""
        return [str(self.dev / name) for name in self._plugged[location].names]

    def master(self, location: str) -> int:
        """The board's end of the first tty there."""
        plugged = self._plugged[location]
        return plugged.masters[plugged.names[0]]

    def _add_bus(self, number: int, version: str) -> None:
        _write(self.sysfs / _CONTROLLER / f"usb{number}", version=version, idVendor="1d6b")

    def _add_tty(self, product: Product, interface: Path, number: int, plugged: _Plugged) -> None:
        name = self._free_name(product.driver)
        between = name if product.driver == "ttyUSB" else ""
        if between:
            _write(interface / between, port_number=str(number))
        master, slave = pty.openpty()
        tty.setraw(slave)
        plugged.masters[name] = master
        device = os.fstat(slave).st_rdev
        folder = interface / between / "tty" / name
        _write(folder, dev=f"{os.major(device)}:{os.minor(device)}")
        (self.dev / name).symlink_to(os.ttyname(slave))
        self._link(folder)
        plugged.names.append(name)
        plugged.fds += [master, slave]

    def _free_name(self, driver: str) -> str:
        number = 0
        while (self.dev / f"{driver}{number}").is_symlink():
            number += 1
        return f"{driver}{number}"

    def _made(self, path: str, **files: str) -> Path:
        _write(self.sysfs / path, **files)
        return self.sysfs / path

    def _link(self, folder: Path) -> None:
        link = self.sysfs / "class" / "tty" / folder.name
        link.symlink_to(os.path.relpath(folder, link.parent))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for location in list(self._plugged):
            self.unplug(location)


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n", encoding="utf-8", errors="surrogateescape")
