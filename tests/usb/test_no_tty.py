"""Devices that should have a tty and have none, and the reason that is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gateway.usb.sysfs import NoTty, Sysfs
from tests.support.fake_sysfs import CH340, CP2102N, FT2232, USB_JTAG, FakeUsb, Product


def found(usb: FakeUsb) -> list[NoTty]:
    sysfs = Sysfs(usb.sysfs, usb.dev)
    sysfs.usb_ttys()
    return sysfs.no_tty()


def reason(usb: FakeUsb) -> str:
    (device,) = found(usb)
    return device.reason


def test_a_device_with_a_tty_is_none(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        for product, location in ((CP2102N, "1-1.1"), (USB_JTAG, "1-1.2"), (FT2232, "1-2")):
            usb.plug(product, location)
        assert found(usb) == []
        # Nor is one whose node in /dev is missing, as in a container.
        usb.lose_nodes("1-2")
        assert found(usb) == []


def test_a_driver_that_is_missing_is_named(tmp_path: Path) -> None:
    drivers = {
        "10c4:ea60": "cp210x",
        "1a86:7523": "ch341",
        "1a86:55d4": "cdc_acm",
        "0403:6001": "ftdi_sio",
        "067b:2303": "pl2303",
        "303a:1001": "cdc_acm",
    }
    for number, (usb_ids, driver) in enumerate(drivers.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        kind = "ttyACM" if driver == "cdc_acm" else "ttyUSB"
        with FakeUsb(folder) as usb:
            usb.plug(Product(usb_ids, driver=kind), "1-1", bound_to="")
            assert reason(usb) == f"its driver {driver} is not loaded: sudo modprobe {driver}"
            usb.load_driver(driver)
            assert reason(usb).startswith(f"its driver {driver} was detached, as programs do")


def test_what_was_read_of_the_device_is_kept(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        usb.plug(replace(CP2102N, product="CP2102N\x1b[2J"), "1-1.4", bound_to="")
        (device,) = found(usb)
        assert (device.usb, device.location, device.serial, device.product) == (
            "10c4:ea60",
            "1-1.4",
            CP2102N.serial,
            "CP2102N?[2J",
        )
        assert str(device) == "10c4:ea60 CP2102, CP2102N, CP2104 at 1-1.4"


def test_a_program_that_claims_a_device_is_named_where_it_may_be_known(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    for pid, name, node in (
        ("1", "systemd", "/dev/null"),
        ("77", "brltty", "/dev/bus/usb/001/002"),
        ("78", "other", "/dev/bus/usb/001/003"),
    ):
        (proc / pid / "fd").mkdir(parents=True)
        (proc / pid / "comm").write_text(f"{name}\n")
        (proc / pid / "fd" / "3").symlink_to(node)
    (proc / "79").mkdir()  # one that may not be looked at, or has ended
    with FakeUsb(tmp_path) as usb:
        usb.plug(CH340, "1-1", bound_to="usbfs")
        (device,) = Sysfs(usb.sysfs, usb.dev).no_tty(proc)
        assert device.reason == "claimed by brltty over libusb: stop that program"
        usb.change("1-1", devnum="9")
        (device,) = Sysfs(usb.sysfs, usb.dev).no_tty(proc)
        assert device.reason == (
            "claimed by another program over libusb, brltty for instance: stop that program"
        )


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"authorized": "0"}, "not authorized: USBGuard"),
        ({"bConfigurationValue": ""}, "not configured by the kernel"),
    ],
)
def test_a_device_that_the_kernel_does_not_use_is_told(
    tmp_path: Path, files: dict[str, str], expected: str
) -> None:
    with FakeUsb(tmp_path) as usb:
        usb.plug(CP2102N, "1-1", bound_to="")
        usb.change("1-1", **files)
        assert reason(usb).startswith(expected)


def test_another_driver_is_named(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        usb.plug(CP2102N, "1-1", bound_to="usbip-host")
        assert reason(usb) == "bound to the driver usbip-host instead of cp210x"
    (tmp_path / "own").mkdir()
    with FakeUsb(tmp_path / "own") as usb:
        usb.plug(CP2102N, "1-1", bound_to="cp210x")
        assert reason(usb) == "its driver cp210x has made no tty, see `sudo dmesg`"


def test_firmware_without_a_serial_port_is_told(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        usb.plug(Product("303a:0009"), "1-1", bound_to="usb-storage")
        assert reason(usb) == "its firmware offers no serial port"
        # A vendor's other products are many things.
        usb.plug(Product("303a:8111"), "1-2", bound_to="usb-storage")
        usb.plug(Product("1a86:8091"), "1-3", bound_to="hub")
        assert [device.location for device in found(usb)] == ["1-1"]
        usb.plug(Product("303a:4001", driver="ttyACM"), "1-4", bound_to="")
        assert [device.location for device in found(usb)] == ["1-1", "1-4"]


def test_without_a_sysfs_there_is_nothing(tmp_path: Path) -> None:
    assert Sysfs(tmp_path, tmp_path).no_tty() == []
