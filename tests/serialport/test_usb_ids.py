"""USB ids of ttys, in trees laid out as sysfs lays them out."""

from pathlib import Path

import pytest

from gateway.serialport.tty import read_usb_ids


def sysfs_with(root: Path, below: str, ids: tuple[str, str] | None = ("10c4", "ea60")) -> Path:
    """A tree with one USB device, and a tty that hangs `below` it."""
    usb = root / "devices" / "pci0000:00" / "usb1" / "1-1"
    (usb / below).mkdir(parents=True)
    (usb.parent / "idVendor").write_text("1d6b\n")
    (usb.parent / "idProduct").write_text("0002\n")
    if ids is not None:
        (usb / "idVendor").write_text(ids[0] + "\n")
        (usb / "idProduct").write_text(ids[1] + "\n")
    return usb / below


def tty(root: Path, name: str, device: Path) -> str:
    """The tty's entry in sysfs, and its node with a link to it."""
    entry = root / "class" / "tty" / name
    entry.mkdir(parents=True)
    (entry / "device").symlink_to(device)
    (root / "dev").mkdir()
    (root / "dev" / name).touch()
    (root / "dev" / "by-path").symlink_to(root / "dev" / name)
    return str(root / "dev" / "by-path")


def test_a_bridge_s_tty_hangs_below_a_port_of_an_interface(tmp_path: Path) -> None:
    path = tty(tmp_path, "ttyUSB0", sysfs_with(tmp_path, "1-1:1.0/ttyUSB0"))
    assert read_usb_ids(path, tmp_path) == (0x10C4, 0xEA60)


def test_a_cdc_acm_tty_hangs_below_an_interface(tmp_path: Path) -> None:
    path = tty(tmp_path, "ttyACM0", sysfs_with(tmp_path, "1-1:1.0", ("303a", "1001")))
    assert read_usb_ids(path, tmp_path) == (0x303A, 0x1001)


def test_a_uart_of_the_board_itself_is_no_usb_device(tmp_path: Path) -> None:
    uart = tmp_path / "devices" / "platform" / "soc" / "fe201000.serial"
    uart.mkdir(parents=True)
    assert read_usb_ids(tty(tmp_path, "ttyAMA0", uart), tmp_path) is None


@pytest.mark.parametrize("content", ["", "not hexadecimal"])
def test_ids_that_make_no_sense_are_none(tmp_path: Path, content: str) -> None:
    path = tty(tmp_path, "ttyACM0", sysfs_with(tmp_path, "1-1:1.0", (content, "1001")))
    assert read_usb_ids(path, tmp_path) is None


def test_what_is_not_there_is_no_usb_device(tmp_path: Path) -> None:
    assert read_usb_ids("/dev/ttyUSB7", tmp_path) is None


def test_a_pty_is_no_usb_device() -> None:
    assert read_usb_ids("/dev/pts/0") is None
