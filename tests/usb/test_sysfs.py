"""Plugged-in ttys, and devices without one, read from a sysfs tree that the test makes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.config.usb_match import UsbTty
from gateway.usb.sysfs import Sysfs, existing
from tests.support.fake_sysfs import (
    CH340,
    CP2102N,
    ESP_PROG_2,
    FT2232,
    MULTIPORT,
    USB_JTAG,
    FakeUsb,
    Product,
)


def ttys_of(usb: FakeUsb) -> list[UsbTty]:
    return Sysfs(usb.sysfs, usb.dev).usb_ttys()


def test_a_tty_has_all_attributes_of_its_device(usb: FakeUsb) -> None:
    (path,) = usb.plug(CP2102N, "1-1.3")
    (acm,) = usb.plug(USB_JTAG, "1-2")
    first, second = ttys_of(usb)
    assert first == UsbTty(
        path=path,
        vendor_id=0x10C4,
        product_id=0xEA60,
        location="1-1.3",
        socket="0000:01:00.0-usbv2-1.3",
        serial="8a2f1c0d9e3bec11a5d4f3d0639e525b",
        manufacturer="Silicon Labs",
        product="CP2102N USB to UART Bridge Controller",
        instance=first.instance,
    )
    assert path.endswith("/dev/ttyUSB0")
    assert (second.path, second.usb, second.location) == (acm, "303a:1001", "1-2")
    assert (second.serial, second.product) == ("7C:DF:A1:B0:42:10", "USB JTAG/serial debug unit")


def test_twins_without_serial_number_differ_in_their_socket(usb: FakeUsb) -> None:
    usb.plug(CH340, "1-1.10")
    usb.plug(CH340, "1-1.2")
    usb.plug(CH340, "2-1.2")  # on the other bus of the same controller
    ttys = ttys_of(usb)
    assert [tty.location for tty in ttys] == ["1-1.2", "1-1.10", "2-1.2"]
    assert {(tty.serial, tty.serial_key) for tty in ttys} == {("", "")}
    assert len({tty.socket_key for tty in ttys}) == 3


@pytest.mark.parametrize("product", [FT2232, ESP_PROG_2])
def test_ttys_of_a_composite_device_differ_in_their_interface(
    usb: FakeUsb, product: Product
) -> None:
    usb.plug(product, "1-1.3")
    ttys = ttys_of(usb)
    assert tuple(tty.interface for tty in ttys) == product.interfaces
    assert len({tty.serial_key for tty in ttys}) == 2


def test_ttys_of_one_interface_are_numbered(usb: FakeUsb) -> None:
    usb.plug(MULTIPORT, "1-1.3")
    assert [tty.tty_number for tty in ttys_of(usb)] == [0, 1, 2, 3]


def test_a_socket_keeps_its_name_when_its_bus_gets_another_number(usb: FakeUsb) -> None:
    usb.plug(CH340, "1-1.3")
    (before,) = ttys_of(usb)
    usb.unplug("1-1.3")
    usb._add_bus(5, " 2.00")
    usb.plug(CH340, "1-1.3", renumber_bus=5)
    (after,) = ttys_of(usb)
    assert (before.location, after.location) == ("1-1.3", "5-1.3")
    assert before.socket == after.socket


def test_a_tty_without_its_node_in_dev_is_not_ready(usb: FakeUsb) -> None:
    (path,) = usb.plug(CH340, "1-1")
    sysfs = Sysfs(usb.sysfs, usb.dev)
    target = Path(path).readlink()
    for _ in range(2):
        Path(path).unlink()
        assert sysfs.usb_ttys() == []
        assert len(sysfs.usb_ttys(ready_only=False)) == 1
        Path(path).symlink_to("/dev/null")  # a stale node, as in a container
        assert sysfs.usb_ttys() == []
        Path(path).unlink()
        Path(path).symlink_to(target)
        assert len(sysfs.usb_ttys()) == 1


def test_a_tty_is_ready_when_udev_is_done_with_it(
    usb: FakeUsb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("gateway.clock.time", lambda: now_s)
    udev = tmp_path / "udev"
    (udev / "data").mkdir(parents=True)
    sysfs = Sysfs(usb.sysfs, usb.dev, udev)
    usb.plug(CH340, "1-1")
    assert len(sysfs.usb_ttys()) == 1  # udev does not run
    (udev / "control").touch()
    (path,) = usb.plug(CP2102N, "1-2")
    assert [tty.location for tty in sysfs.usb_ttys()] == ["1-1"]
    device = Path(path).stat().st_rdev
    (udev / "data" / f"c{os.major(device)}:{os.minor(device)}").touch()
    assert [tty.location for tty in sysfs.usb_ttys()] == ["1-1", "1-2"]
    usb.plug(CH340, "1-3")
    assert len(sysfs.usb_ttys()) == 2
    now_s += 5.0  # this udev keeps no record of it
    assert len(sysfs.usb_ttys()) == 3


def test_a_device_is_read_once_until_it_is_plugged_in_again(usb: FakeUsb) -> None:
    sysfs = Sysfs(usb.sysfs, usb.dev)
    usb.plug(CP2102N, "1-1")
    (first,) = sysfs.usb_ttys()
    (again,) = sysfs.usb_ttys()
    assert again is first
    usb.unplug("1-1")
    assert sysfs.usb_ttys() == []
    usb.plug(CH340, "1-1")
    (other,) = sysfs.usb_ttys()
    assert other.usb == "1a86:7523"


def test_a_device_that_is_unplugged_while_it_is_read_is_left_out(usb: FakeUsb) -> None:
    usb.plug(CP2102N, "1-1")
    usb.plug(CH340, "1-2")
    (next(usb.sysfs.rglob("1-1")) / "idVendor").unlink()
    assert [tty.location for tty in ttys_of(usb)] == ["1-2"]


def test_texts_of_a_device_do_not_control_a_terminal(usb: FakeUsb) -> None:
    usb.plug(Product("1234:5678", product="a\x1b[2Jb", serial="\udcff"), "1-1")
    (tty,) = ttys_of(usb)
    assert tty.product == "a?[2Jb"
    assert tty.serial.isprintable()


def test_without_sysfs_there_are_no_devices(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path / "none", tmp_path)
    assert (sysfs.usb_ttys(), sysfs.no_tty()) == ([], [])


def test_existing_paths_are_known_by_their_targets(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    names = ("target", "link", "nowhere", "none", "target/below", ".//target")
    assert existing([f"{tmp_path}/{name}" for name in names]) == {
        f"{tmp_path}/{name}": str(target) for name in ("target", "link", ".//target")
    }


# --- devices without a tty


def reason(usb: FakeUsb, proc: Path = Path("/proc")) -> str:
    sysfs = Sysfs(usb.sysfs, usb.dev)
    sysfs.usb_ttys()
    (device,) = sysfs.no_tty(proc)
    return device.reason


def locations(usb: FakeUsb) -> list[str]:
    sysfs = Sysfs(usb.sysfs, usb.dev)
    sysfs.usb_ttys()
    return [device.location for device in sysfs.no_tty()]


def test_a_device_with_a_tty_is_none_of_them(usb: FakeUsb) -> None:
    for product, location in ((CP2102N, "1-1.1"), (USB_JTAG, "1-1.2"), (FT2232, "1-2")):
        usb.plug(product, location)
    assert locations(usb) == []
    usb.lose_nodes("1-2")  # as in a container
    assert locations(usb) == []


@pytest.mark.parametrize(
    ("ids", "driver"),
    [
        ("10c4:ea60", "cp210x"),
        ("1a86:7523", "ch341"),
        ("1a86:55d4", "cdc_acm"),
        ("0403:6001", "ftdi_sio"),
        ("067b:2303", "pl2303"),
        ("303a:1001", "cdc_acm"),
    ],
)
def test_a_driver_that_is_missing_or_detached_is_named(usb: FakeUsb, ids: str, driver: str) -> None:
    kind = "ttyACM" if driver == "cdc_acm" else "ttyUSB"
    usb.plug(Product(ids, driver=kind), "1-1", bound_to="")
    assert reason(usb) == f"its driver {driver} is not loaded: sudo modprobe {driver}"
    usb.load_driver(driver)
    assert reason(usb).startswith(f"its driver {driver} was detached, as programs do")


@pytest.mark.parametrize(
    ("bound_to", "expected"),
    [
        ("usbip-host", "bound to the driver usbip-host instead of cp210x"),
        ("cp210x", "its driver cp210x has made no tty, see `sudo dmesg`"),
    ],
)
def test_another_driver_is_named(usb: FakeUsb, bound_to: str, expected: str) -> None:
    usb.plug(CP2102N, "1-1", bound_to=bound_to)
    assert reason(usb) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"authorized": "0"}, "not authorized: USBGuard"),
        ({"bConfigurationValue": ""}, "not configured by the kernel"),
    ],
)
def test_a_device_that_the_kernel_does_not_use_is_found(
    usb: FakeUsb, files: dict[str, str], expected: str
) -> None:
    usb.plug(CP2102N, "1-1", bound_to="")
    usb.change("1-1", **files)
    assert reason(usb).startswith(expected)


def test_a_program_that_claims_a_device_is_named_if_it_can_be_known(
    usb: FakeUsb, tmp_path: Path
) -> None:
    proc = tmp_path / "proc"
    for pid, name, node in (
        ("1", "systemd", "/dev/null"),
        ("77", "brltty", "/dev/bus/usb/001/002"),
        ("78", "other", "/dev/bus/usb/001/003"),
    ):
        (proc / pid / "fd").mkdir(parents=True)
        (proc / pid / "comm").write_text(f"{name}\n")
        (proc / pid / "fd" / "3").symlink_to(node)
    (proc / "79").mkdir()  # a process that may not be looked at, or has ended
    usb.plug(CH340, "1-1", bound_to="usbfs")
    assert reason(usb, proc) == "claimed by brltty over libusb: stop that program"
    usb.change("1-1", devnum="9")
    assert reason(usb, proc) == (
        "claimed by another program over libusb, brltty for instance: stop that program"
    )


def test_firmware_without_a_serial_port_and_other_products_are_told_apart(usb: FakeUsb) -> None:
    usb.plug(Product("303a:0009"), "1-1", bound_to="usb-storage")
    assert reason(usb) == "its firmware offers no serial port"
    # A vendor makes other products as well.
    usb.plug(Product("303a:8111"), "1-2", bound_to="usb-storage")
    usb.plug(Product("1a86:8091"), "1-3", bound_to="hub")
    assert locations(usb) == ["1-1"]
    usb.plug(Product("303a:4001", driver="ttyACM"), "1-4", bound_to="")
    assert locations(usb) == ["1-1", "1-4"]


def test_a_device_without_a_tty_has_its_attributes(usb: FakeUsb) -> None:
    usb.plug(replace(CP2102N, product="CP2102N\x1b[2J"), "1-1.4", bound_to="")
    (device,) = Sysfs(usb.sysfs, usb.dev).no_tty()
    assert (device.usb, device.location) == ("10c4:ea60", "1-1.4")
    assert (device.serial, device.product) == (CP2102N.serial, "CP2102N?[2J")
    assert str(device) == "10c4:ea60 CP2102, CP2102N, CP2104 at 1-1.4"
