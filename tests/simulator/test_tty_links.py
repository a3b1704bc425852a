from pathlib import Path

import pytest

from gateway.simulator.tty_links import TtyLinks, UsbDevice, read_usb_device
from gateway.simulator.usb import JTAG_IDS, OTG_APP_IDS, OTG_ROM_IDS


def test_no_device_at_first(tmp_path: Path) -> None:
    assert TtyLinks(tmp_path, renames=False).device is None
    assert read_usb_device(tmp_path) is None


def test_device_has_its_name_its_path_and_its_ids(tmp_path: Path) -> None:
    links = TtyLinks(tmp_path, renames=False)
    device = links.show("/dev/pts/7", JTAG_IDS)
    assert device == links.device == read_usb_device(tmp_path) == UsbDevice(1, JTAG_IDS, "tty")
    assert (tmp_path / "tty").readlink() == Path("/dev/pts/7")
    assert (tmp_path / "by-path").readlink() == Path("tty")
    assert {path.name for path in tmp_path.iterdir()} == {"tty", "by-path", "usb.json"}


def test_nothing_is_left_of_a_device_that_has_gone(tmp_path: Path) -> None:
    links = TtyLinks(tmp_path, renames=True)
    for _ in range(2):
        links.show("/dev/pts/7", JTAG_IDS)
        links.hide()
        links.hide()
        assert list(tmp_path.iterdir()) == []
        assert read_usb_device(tmp_path) is None


@pytest.mark.parametrize(
    ("renames", "names"), [(False, ["tty"] * 3), (True, ["tty", "tty-1", "tty-2"])]
)
def test_path_stays_whatever_the_name(tmp_path: Path, renames: bool, names: list[str]) -> None:
    links = TtyLinks(tmp_path, renames=renames)
    shown = []
    for number, ids in enumerate([OTG_APP_IDS, OTG_ROM_IDS, OTG_APP_IDS], 1):
        device = links.show(f"/dev/pts/{number}", ids)
        assert device == UsbDevice(number, ids, device.tty_name)
        assert (tmp_path / "by-path").resolve() == Path(f"/dev/pts/{number}")
        shown.append(device.tty_name)
        links.hide()
    assert shown == names


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    TtyLinks(tmp_path, renames=False).show("/dev/pts/1", OTG_APP_IDS)
    (tmp_path / ".tty.new").symlink_to("/dev/pts/1")
    TtyLinks(tmp_path, renames=False).show("/dev/pts/2", OTG_ROM_IDS)
    assert (tmp_path / "by-path").resolve() == Path("/dev/pts/2")
    assert read_usb_device(tmp_path) == UsbDevice(1, OTG_ROM_IDS, "tty")
