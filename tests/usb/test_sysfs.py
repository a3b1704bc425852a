"""Who is plugged in, read from a sysfs tree that the test makes."""

from __future__ import annotations

import os
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


def listed(usb: FakeUsb) -> list[UsbTty]:
    return Sysfs(usb.sysfs, usb.dev).usb_ttys()


def test_a_usb_serial_tty_tells_all_of_its_device(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        (path,) = usb.plug(CP2102N, "1-1.3")
        (tty,) = listed(usb)
        assert tty == UsbTty(
            path=path,
            vendor_id=0x10C4,
            product_id=0xEA60,
            location="1-1.3",
            socket="0000:01:00.0-usbv2-1.3",
            serial="8a2f1c0d9e3bec11a5d4f3d0639e525b",
            manufacturer="Silicon Labs",
            product="CP2102N USB to UART Bridge Controller",
            instance=tty.instance,
        )
        assert path.endswith("/dev/ttyUSB0")


def test_an_acm_tty_tells_the_same(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        (path,) = usb.plug(USB_JTAG, "1-1")
        (tty,) = listed(usb)
        assert (tty.path, tty.usb, tty.location) == (path, "303a:1001", "1-1")
        assert (tty.serial, tty.product) == ("7C:DF:A1:B0:42:10", "USB JTAG/serial debug unit")


def test_twins_without_serial_number_differ_in_their_socket(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        usb.plug(CH340, "1-1.10")
        usb.plug(CH340, "1-1.2")
        first, second = listed(usb)
        assert (first.location, second.location) == ("1-1.2", "1-1.10")
        assert first.serial == second.serial == first.serial_key == ""
        assert first.socket_key != second.socket_key


@pytest.mark.parametrize("product", [FT2232, ESP_PROG_2])
def test_the_ttys_of_a_composite_device_differ_in_their_interface(
    tmp_path: Path, product: Product
) -> None:
    with FakeUsb(tmp_path) as usb:
        usb.plug(product, "1-1.3")
        ttys = listed(usb)
        assert tuple(tty.interface for tty in ttys) == product.interfaces
        assert len({tty.serial_key for tty in ttys}) == 2


def test_the_ttys_of_one_interface_are_counted(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        usb.plug(MULTIPORT, "1-1.3")
        assert [tty.tty_number for tty in listed(usb)] == [0, 1, 2, 3]


def test_a_socket_keeps_its_name_when_its_bus_gets_another_number(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        usb.plug(CH340, "1-1.3")
        (before,) = listed(usb)
        usb.unplug("1-1.3")
        usb._add_bus(5, " 2.00")
        usb.plug(CH340, "1-1.3", renumber_bus=5)
        (after,) = listed(usb)
        assert (before.location, after.location) == ("1-1.3", "5-1.3")
        assert before.socket == after.socket


def test_the_two_buses_of_one_controller_have_sockets_of_their_own(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        usb.plug(CH340, "1-1")
        usb.plug(CH340, "2-1")
        first, second = listed(usb)
        assert first.socket != second.socket


def test_a_tty_without_its_node_in_dev_is_not_there(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        (path,) = usb.plug(CH340, "1-1")
        sysfs = Sysfs(usb.sysfs, usb.dev)
        target = Path(path).readlink()
        for _ in range(2):
            Path(path).unlink()
            assert sysfs.usb_ttys() == []
            assert len(sysfs.usb_ttys(ready_only=False)) == 1
            Path(path).symlink_to("/dev/null")  # what a container kept of another device
            assert sysfs.usb_ttys() == []
            Path(path).unlink()
            Path(path).symlink_to(target)
            assert len(sysfs.usb_ttys()) == 1


def test_a_tty_is_there_when_udev_is_done_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("gateway.clock.time", lambda: now_s)
    udev = tmp_path / "udev"
    (udev / "data").mkdir(parents=True)
    with FakeUsb(tmp_path) as usb:
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


def test_paths_that_exist_are_known_by_where_they_lead(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    names = ("target", "link", "nowhere", "none", "target/below", ".//target")
    assert existing([f"{tmp_path}/{name}" for name in names]) == {
        f"{tmp_path}/{name}": str(target) for name in ("target", "link", ".//target")
    }


def test_a_device_is_read_once_and_again_when_it_was_plugged_in_again(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
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


def test_a_device_that_goes_while_it_is_read_is_left_out(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        usb.plug(CP2102N, "1-1")
        usb.plug(CH340, "1-2")
        (next(usb.sysfs.rglob("1-1")) / "idVendor").unlink()
        assert [tty.location for tty in listed(usb)] == ["1-2"]


def test_what_a_device_says_of_itself_does_not_disturb_a_terminal(tmp_path: Path) -> None:
    with FakeUsb(tmp_path) as usb:
        usb.plug(Product("1234:5678", product="a\x1b[2Jb", serial="\udcff"), "1-1")
        (tty,) = listed(usb)
        assert tty.product == "a?[2Jb"
        assert tty.serial.isprintable()


def test_a_kernel_without_sysfs_has_no_devices(tmp_path: Path) -> None:
    assert Sysfs(tmp_path / "none", tmp_path).usb_ttys() == []
