"""Which kind of board is behind a USB device: one table of vendor and product ids.

To add a board, add a row with its source; the first row that fits is taken. What is done with a
kind is `reset_strategy`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

#: Vendor and product id of a USB device.
UsbIds = tuple[int, int]


class BoardKind(Enum):
    """What moves DTR and RTS to a board's reset."""

    BRIDGE = "UART bridge"  # the two-transistor circuit, from a bridge's pins
    FLOW_CONTROL_BRIDGE = "UART bridge with hardware flow control"  # RTS moves by itself too
    USB_JTAG = "USB-Serial/JTAG"  # logic in the chip, whatever the firmware does
    USB_OTG = "USB-OTG"  # the firmware or the ROM, each by rules of its own


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a product (None: every other one of the vendor), its kind, and who says so."""

    vendor_id: int
    product_id: int | None
    kind: BoardKind
    name: str
    source: str


_CP210X = "Linux, drivers/usb/serial/cp210x.c"
_CH341 = "Linux, drivers/usb/serial/ch341.c"
_CH343 = "WCH's Linux driver, ch343.c; Linux, drivers/usb/class/cdc-acm.c"
_FTDI = "Linux, drivers/usb/serial/ftdi_sio_ids.h"
_PL2303 = "Linux, drivers/usb/serial/pl2303.h"
_ESP_PYLIB = "Espressif's esp-pylib, constants.py"
_USB_PIDS = "github.com/espressif/usb-pids, allocated-pids.txt"

ROWS = (
    Row(0x10C4, 0xEA64, BoardKind.FLOW_CONTROL_BRIDGE, "CP2102C", _ESP_PYLIB),
    Row(0x10C4, 0xEA60, BoardKind.BRIDGE, "CP2102, CP2102N, CP2104", _CP210X),
    Row(0x10C4, 0xEA70, BoardKind.BRIDGE, "CP2105", _CP210X),
    Row(0x10C4, 0xEA71, BoardKind.BRIDGE, "CP2108", _CP210X),
    Row(0x10C4, None, BoardKind.BRIDGE, "Silicon Labs bridge", _CP210X),
    Row(0x1A86, 0x7523, BoardKind.BRIDGE, "CH340", _CH341),
    Row(0x1A86, 0x7522, BoardKind.BRIDGE, "CH340K", _CH341),
    Row(0x1A86, 0x5523, BoardKind.BRIDGE, "CH341", _CH341),
    Row(0x1A86, 0x55D2, BoardKind.BRIDGE, "CH342", _CH343),
    Row(0x1A86, 0x55D3, BoardKind.BRIDGE, "CH343", _CH343),
    Row(0x1A86, 0x55D4, BoardKind.BRIDGE, "CH9102", "esptool, cmds.py (CH9102 on macOS)"),
    Row(0x1A86, None, BoardKind.BRIDGE, "WCH bridge", _CH343),
    Row(0x0403, 0x6001, BoardKind.BRIDGE, "FT232R", _FTDI),
    Row(0x0403, 0x6010, BoardKind.BRIDGE, "FT2232 (ESP-Prog, ESP-WROVER-KIT)", _FTDI),
    Row(0x0403, 0x6011, BoardKind.BRIDGE, "FT4232", _FTDI),
    Row(0x0403, 0x6014, BoardKind.BRIDGE, "FT232H", _FTDI),
    Row(0x0403, 0x6015, BoardKind.BRIDGE, "FT230X, FT231X", _FTDI),
    Row(0x0403, None, BoardKind.BRIDGE, "FTDI bridge", _FTDI),
    Row(0x067B, 0x2303, BoardKind.BRIDGE, "PL2303", _PL2303),
    Row(0x067B, None, BoardKind.BRIDGE, "Prolific bridge", _PL2303),
    Row(0x303A, 0x1001, BoardKind.USB_JTAG, "USB-Serial/JTAG", _ESP_PYLIB),
    Row(
        0x303A,
        0x1002,
        BoardKind.BRIDGE,
        "ESP USB Bridge",
        "github.com/espressif/esp-usb-bridge, main/Kconfig.projbuild",
    ),
    Row(0x303A, 0x8105, BoardKind.BRIDGE, "MuseLab ESPLink (ESP USB Bridge)", _USB_PIDS),
    # The ROM's bootloader, ESP-IDF's USB console and arduino-esp32 (cores/esp32/USB.cpp) share it.
    Row(
        0x303A,
        0x0002,
        BoardKind.USB_OTG,
        "ESP32-S2 USB-OTG",
        "esptool, loader.py (uses_usb_otg: the product id is the chip's image id)",
    ),
    Row(
        0x303A,
        0x0009,
        BoardKind.USB_OTG,
        "ESP32-S3 USB-OTG",
        "esptool, loader.py (uses_usb_otg: the product id is the chip's image id)",
    ),
    # TinyUSB of ESP-IDF (esp_tinyusb: 0x4000 and a bit per class) and all products of customers.
    Row(0x303A, None, BoardKind.USB_OTG, "USB device of an Espressif chip", _USB_PIDS),
    Row(
        0x239A,
        None,
        BoardKind.USB_OTG,
        "Adafruit board with native USB",
        "arduino-esp32, variants/adafruit_*_esp32s2 and _esp32s3, pins_arduino.h",
    ),
    Row(
        0x2341,
        0x0070,
        BoardKind.USB_OTG,
        "Arduino Nano ESP32",
        "arduino-esp32, variants/arduino_nano_nora/pins_arduino.h",
    ),
)


def row_of(usb_ids: UsbIds | None) -> Row | None:
    """The row that fits, if any."""
    if usb_ids is None:
        return None
    vendor_id, product_id = usb_ids
    fitting = (
        row for row in ROWS if row.vendor_id == vendor_id and row.product_id in {product_id, None}
    )
    return next(fitting, None)


def described(usb_ids: UsbIds | None) -> str:
    """A device for a person: its ids and what the table calls it."""
    if usb_ids is None:
        return "no USB device"
    row = row_of(usb_ids)
    return f"{usb_ids[0]:04x}:{usb_ids[1]:04x} {row.name if row is not None else 'unknown'}"


def kind_of(usb_ids: UsbIds | None) -> BoardKind:
    """The kind of board; a bridge where nothing is known, which most boards have."""
    row = row_of(usb_ids)
    return BoardKind.BRIDGE if row is None else row.kind


@dataclass(frozen=True, slots=True)
class _JtagChannel:
    """A channel of a USB device that is wired to JTAG, although the kernel makes a tty of it.

    `product` is part of the device's product text; empty fits every device of these ids.
    """

    vendor_id: int
    product_id: int
    product: str
    interface: int


#: The first row that fits is taken. An FT2232 or FT4232 may be wired in another way, so a port can
#: still ask for such a channel by its interface.
_JTAG_CHANNELS = (
    # Tigard, an adapter with its UART on the first channel: github.com/tigard-tools/tigard
    _JtagChannel(0x0403, 0x6010, "Tigard", 1),
    # ESP-Prog, ESP-WROVER-KIT, Kaluga, Ethernet-Kit: channel A of their FT2232H (OpenOCD's
    # interface/ftdi/esp32_devkitj_v1.cfg); only channels A and B of the chips have an MPSSE.
    _JtagChannel(0x0403, 0x6010, "", 0),
    _JtagChannel(0x0403, 0x6011, "", 0),
)


def is_jtag_channel(usb_ids: UsbIds, interface: int, product: str) -> bool:
    """Whether an interface of a USB device is known to be for JTAG; no board answers on its tty."""
    for row in _JTAG_CHANNELS:
        if (row.vendor_id, row.product_id) == usb_ids and row.product in product:
            return row.interface == interface
    return False
