"""Matches and the devices that they fit; identities of devices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.config.usb_match import DeviceChoice, UsbMatch, UsbTty

BOARD = UsbTty(
    path="/dev/ttyUSB0",
    vendor_id=0x10C4,
    product_id=0xEA60,
    location="1-1.3",
    socket="0000:01:00.0-usbv2-1.3",
    serial="8a2f1c",
    product="CP2102N",
)


@pytest.mark.parametrize(
    "match",
    [
        UsbMatch(any_usb=True),
        UsbMatch(vendor_id=0x10C4),
        UsbMatch(vendor_id=0x10C4, product_id=0xEA60),
        UsbMatch(serial="8a2f1c"),
        UsbMatch(location="1-1.3"),
        UsbMatch(location="1-1.3", configuration=1, interface=0),
        UsbMatch(serial="8a2f1c", interface=0),
        UsbMatch(vendor_id=0x10C4, product_id=0xEA60, serial="8a2f1c", location="1-1.3"),
    ],
    ids=str,
)
def test_a_match_fits_when_all_that_it_gives_is_true(match: UsbMatch) -> None:
    assert match.fits(BOARD)


@pytest.mark.parametrize(
    "match",
    [
        UsbMatch(vendor_id=0x1A86),
        UsbMatch(vendor_id=0x10C4, product_id=0xEA70),
        UsbMatch(serial="8a2f"),
        UsbMatch(serial="8A2F1C"),
        UsbMatch(location="1-1"),
        UsbMatch(location="1-1.3", configuration=1, interface=1),
        UsbMatch(serial="8a2f1c", interface=1),
        UsbMatch(vendor_id=0x10C4, location="1-1.4"),
    ],
    ids=str,
)
def test_a_match_does_not_fit_when_anything_differs(match: UsbMatch) -> None:
    assert not match.fits(BOARD)


@pytest.mark.parametrize("serial", ["", "0", "0000", "0001", " 0001 ", "123456"])
def test_what_makers_put_for_a_serial_number_is_none(serial: str) -> None:
    assert replace(BOARD, serial=serial).serial_key == ""


def test_a_board_is_known_by_its_serial_number_wherever_it_is() -> None:
    moved = replace(BOARD, location="2-4", socket="other-usbv3-4", path="/dev/ttyUSB7", instance=9)
    assert moved.serial_key == BOARD.serial_key
    assert moved.socket_key != BOARD.socket_key


def test_each_tty_of_a_device_is_known_by_itself() -> None:
    others = [replace(BOARD, interface=1), replace(BOARD, tty_number=1)]
    assert len({each.serial_key for each in (BOARD, *others)}) == 3
    assert len({each.socket_key for each in (BOARD, *others)}) == 3


@pytest.mark.parametrize(
    ("match", "text"),
    [
        (UsbMatch(any_usb=True), "usb *:*"),
        (UsbMatch(vendor_id=0x403), "usb 0403:*"),
        (UsbMatch(vendor_id=0x403, product_id=0x6010, interface=1), "usb 0403:6010, interface 1"),
        (UsbMatch(location="1-1", configuration=1, interface=0), "location 1-1:1.0"),
        (UsbMatch(serial="a b"), "serial a b"),
    ],
)
def test_a_match_is_told_as_it_is_written(match: UsbMatch, text: str) -> None:
    assert str(match) == text


def test_a_choice_tells_paths_matches_and_simulated_boards_apart() -> None:
    match = UsbMatch(serial="1")
    mixed = DeviceChoice((match, "/dev/ttyUSB0"))
    assert (mixed.matches, mixed.paths, mixed.is_match) == ([match], ["/dev/ttyUSB0"], False)
    assert mixed.simulated is None
    assert str(mixed) == "serial 1 or /dev/ttyUSB0"
    assert DeviceChoice((match,)).is_match
    assert DeviceChoice(("sim://esp32",)).simulated == "sim://esp32"
