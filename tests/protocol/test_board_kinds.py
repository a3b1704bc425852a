"""The table of USB ids."""

import pytest

from gateway.protocol.board_kinds import ROWS, BoardKind, Row, described, kind_of, row_of


@pytest.mark.parametrize(
    ("usb_ids", "kind"),
    [
        ((0x10C4, 0xEA60), BoardKind.BRIDGE),
        ((0x10C4, 0xEA64), BoardKind.FLOW_CONTROL_BRIDGE),
        ((0x1A86, 0x7523), BoardKind.BRIDGE),
        ((0x1A86, 0x55D4), BoardKind.BRIDGE),
        ((0x1A86, 0xFFFF), BoardKind.BRIDGE),
        ((0x0403, 0x6010), BoardKind.BRIDGE),
        ((0x067B, 0x23A3), BoardKind.BRIDGE),
        ((0x303A, 0x1001), BoardKind.USB_JTAG),
        ((0x303A, 0x1002), BoardKind.BRIDGE),
        ((0x303A, 0x0002), BoardKind.USB_OTG),
        ((0x303A, 0x4001), BoardKind.USB_OTG),
        ((0x239A, 0x80EB), BoardKind.USB_OTG),
        ((0x2341, 0x0070), BoardKind.USB_OTG),
        ((0x239A, 0x80DF), BoardKind.USB_OTG),  # Metro ESP32-S2
        ((0x239A, 0x811B), BoardKind.USB_OTG),  # Feather ESP32-S3
        ((0x239A, 0x8029), BoardKind.NRF52),  # Feather nRF52840
        ((0x239A, 0x002A), BoardKind.NRF52),  # its bootloader
        ((0x239A, 0x800B), BoardKind.SAMD),  # Feather M0
        ((0x239A, 0x80F1), BoardKind.RP2040),  # Feather RP2040, Arduino
        ((0x239A, 0x80F2), BoardKind.RP2040),  # the same, CircuitPython
        ((0x2E8A, 0x000A), BoardKind.RP2040),
        ((0x2E8A, 0x0005), BoardKind.RP2040),  # MicroPython on a Pico
        ((0x2E8A, 0x000C), BoardKind.OTHER),  # Debug Probe
        ((0x2341, 0x804D), BoardKind.SAMD),
        ((0x2341, 0x8036), BoardKind.AVR),
        ((0x1B4F, 0x9206), BoardKind.AVR),
        ((0x2341, 0x1002), BoardKind.ARDUINO),  # UNO R4 WiFi
        ((0x2341, 0x0043), BoardKind.DTR_RESET),
        ((0x0483, 0x374B), BoardKind.STM32),
        ((0x0483, 0x5740), BoardKind.STM32),
        ((0xF055, 0x9800), BoardKind.STM32),
        ((0x0658, 0x0200), BoardKind.OTHER),
        ((0x1B4F, 0x0027), BoardKind.BRIDGE),  # unknown: SparkFun has ESPs too
        ((0x1234, 0x5678), BoardKind.BRIDGE),
        (None, BoardKind.BRIDGE),
    ],
)
def test_a_device_is_of_a_kind(usb_ids: tuple[int, int] | None, kind: BoardKind) -> None:
    assert kind_of(usb_ids) is kind


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row.vendor_id:04x}:{row.product_id or 0:04x}"
)
def test_each_row_can_be_reached_and_names_its_source(row: Row) -> None:
    index = ROWS.index(row)
    vendor_id, product_id = ROWS[index].vendor_id, ROWS[index].product_id
    assert row_of((vendor_id, 0xFFFF if product_id is None else product_id)) is row
    assert ROWS[index].source


def test_each_device_has_one_row() -> None:
    assert len({(row.vendor_id, row.product_id) for row in ROWS}) == len(ROWS)


def test_a_device_is_described_for_a_person() -> None:
    assert described((0x10C4, 0xEA64)) == "10c4:ea64 CP2102C"
    assert described((0x0001, 0x0002)) == "0001:0002 unknown"
    assert described(None) == "no USB device"
