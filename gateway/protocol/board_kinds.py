"""Which kind of board is behind a USB device: one table of vendor and product ids.

To add a board, add a row with its source; a product's row goes before its vendor's. What a kind
needs is in `reset`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

#: Vendor and product id of a USB device.
UsbIds = tuple[int, int]


class BoardKind(Enum):
    """What a board makes of DTR, RTS and the baud rate."""

    BRIDGE = "UART bridge"  # the two-transistor circuit, from a bridge's pins
    FLOW_CONTROL_BRIDGE = "UART bridge with hardware flow control"  # RTS moves by itself too
    USB_JTAG = "USB-Serial/JTAG"  # logic in the chip, whatever the firmware does
    USB_OTG = "USB-OTG"  # the firmware or the ROM, each by rules of its own
    # Boards that are not ESPs. With native USB: DTR on means that a program listens, and DTR going
    # off at 1200 baud starts the bootloader.
    RP2040 = "RP2040"
    NRF52 = "nRF52"
    SAMD = "SAMD"
    AVR = "AVR with native USB"
    ARDUINO = "Arduino with native USB"
    STM32 = "STM32"  # a virtual COM port: DTR on means that a program listens, nothing resets it
    DTR_RESET = "Arduino with a USB bridge"  # DTR going on resets the board, through a capacitor
    OTHER = "no ESP"  # debug probes, radio sticks: as STM32


#: Boards whose product id and serial number change with the program that the chip runs.
CHANGES_IDENTITY = frozenset(
    {
        BoardKind.USB_OTG,
        BoardKind.RP2040,
        BoardKind.NRF52,
        BoardKind.SAMD,
        BoardKind.AVR,
        BoardKind.ARDUINO,
    }
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a product (None: every other one of the vendor), its kind, and who says so."""

    vendor_id: int
    product_id: int | None
    kind: BoardKind
    name: str
    source: str


def _each(
    vendor_id: int, kind: BoardKind, name: str, source: str, *product_ids: int
) -> tuple[Row, ...]:
    """One row for each product."""
    return tuple(Row(vendor_id, each, kind, name, source) for each in product_ids)


_CP210X = "Linux, drivers/usb/serial/cp210x.c"
_CH341 = "Linux, drivers/usb/serial/ch341.c"
_CH343 = "WCH's Linux driver, ch343.c; Linux, drivers/usb/class/cdc-acm.c"
_FTDI = "Linux, drivers/usb/serial/ftdi_sio_ids.h"
_PL2303 = "Linux, drivers/usb/serial/pl2303.h"
_ESP_PYLIB = "Espressif's esp-pylib, constants.py"
_USB_PIDS = "github.com/espressif/usb-pids, allocated-pids.txt"
_ADAFRUIT_NRF52 = "github.com/adafruit/Adafruit_nRF52_Arduino, boards.txt"
_ADAFRUIT_SAMD = "github.com/adafruit/ArduinoCore-samd, boards.txt"
_ARDUINO_AVR = "github.com/arduino/ArduinoCore-avr, boards.txt"
_ARDUINO_SAMD = "github.com/arduino/ArduinoCore-samd, boards.txt"
_ARDUINO_PICO = "github.com/earlephilhower/arduino-pico, boards.txt"
_SPARKFUN = "github.com/sparkfun/Arduino_Boards, avr and samd, boards.txt"
_SEEED_SAMD = "github.com/Seeed-Studio/ArduinoCore-samd, boards.txt"
_RP_PIDS = "github.com/raspberrypi/usb-pid, Readme.md"
_USB_IDS = "linux-usb.org, usb.ids"

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
    *_each(
        0x239A,
        BoardKind.NRF52,
        "nRF52 board of Adafruit",
        _ADAFRUIT_NRF52,
        0x0029,
        0x002A,
        0x003F,
        0x0040,
        0x0045,
        0x0051,
        0x0052,
        0x0071,
        0x0087,
        0x0088,
        0x00D8,
        0x00DA,
        0x010B,
        0x010D,
        0x8029,
        0x802A,
        0x803F,
        0x8040,
        0x8045,
        0x8046,
        0x8051,
        0x8052,
        0x8071,
        0x8072,
        0x8087,
        0x8088,
        0x80D8,
        0x80DA,
        0x810B,
        0x810C,
        0x810D,
        0x810E,
    ),
    *_each(
        0x239A,
        BoardKind.SAMD,
        "SAMD board of Adafruit",
        _ADAFRUIT_SAMD,
        0x000B,
        0x000F,
        0x0013,
        0x0015,
        0x0019,
        0x001B,
        0x001C,
        0x001E,
        0x0020,
        0x0021,
        0x0022,
        0x0027,
        0x002B,
        0x002D,
        0x002F,
        0x0030,
        0x0031,
        0x0032,
        0x0033,
        0x0034,
        0x0035,
        0x0037,
        0x003D,
        0x0043,
        0x0047,
        0x0049,
        0x00BF,
        0x00C9,
        0x00CB,
        0x00CC,
        0x00CD,
        0x00EF,
        0x00FB,
        0x00FF,
        0x0101,
        0x0103,
        0x0153,
        0x0155,
        0x0157,
        0x0159,
        0x800B,
        0x800F,
        0x8012,
        0x8013,
        0x8018,
        0x801B,
        0x801C,
        0x801E,
        0x8020,
        0x8021,
        0x8022,
        0x8026,
        0x8027,
        0x8028,
        0x802B,
        0x802D,
        0x802F,
        0x8031,
        0x8033,
        0x8034,
        0x8035,
        0x8036,
        0x8037,
        0x803D,
        0x803E,
        0x8043,
        0x8044,
        0x8047,
        0x8048,
        0x8049,
        0x804A,
        0x8053,
        0x80BF,
        0x80C0,
        0x80C9,
        0x80CA,
        0x80CB,
        0x80CD,
        0x80EF,
        0x80F0,
        0x80FB,
        0x80FC,
        0x80FF,
        0x8100,
        0x8101,
        0x8102,
        0x8103,
        0x8104,
        0x8153,
        0x8154,
        0x8155,
        0x8156,
        0x8157,
        0x8158,
        0x8159,
        0x8160,
    ),
    # CircuitPython has the number behind Arduino's.
    *_each(
        0x239A,
        BoardKind.RP2040,
        "RP2040 board of Adafruit",
        _ARDUINO_PICO,
        0x80E3,
        0x80E4,
        0x80F1,
        0x80F2,
        0x80F7,
        0x80F8,
        0x80FD,
        0x80FE,
        0x8105,
        0x8106,
        0x8107,
        0x8108,
        0x8109,
        0x810A,
        0x8121,
        0x8122,
        0x8127,
        0x8128,
        0x8129,
        0x812A,
        0x812B,
        0x812C,
        0x812D,
        0x812E,
        0x812F,
        0x8130,
        0x8131,
        0x8132,
        0x813D,
        0x813E,
        0x814D,
        0x814E,
        0x814F,
        0x8150,
        0x8151,
        0x8152,
        0x815D,
        0x815E,
        0x816B,
        0x816C,
        0x816D,
        0x816E,
        0x81E3,
        0x81E4,
        0x81F1,
        0x81F2,
        0x81F7,
        0x81F8,
        0x81FD,
        0x81FE,
    ),
    Row(0x239A, 0x8011, BoardKind.AVR, "Circuit Playground of Adafruit", _ARDUINO_AVR),
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
    *_each(
        0x2341,
        BoardKind.DTR_RESET,
        "Arduino UNO or Mega",
        _ARDUINO_AVR,
        *(0x0001, 0x0010, 0x003F, 0x0042, 0x0043, 0x0044),
        *(0x0062, 0x006A, 0x0210, 0x0242, 0x0243),
    ),
    *_each(
        0x2A03,  # arduino.org
        BoardKind.DTR_RESET,
        "Arduino UNO or Mega",
        _ARDUINO_AVR,
        *(0x0001, 0x0010, 0x003F, 0x0042, 0x0043, 0x0044, 0x0057),
    ),
    *_each(
        0x2341,
        BoardKind.AVR,
        "Arduino Leonardo or Micro",
        _ARDUINO_AVR,
        *(0x0036, 0x0037, 0x0038, 0x0039, 0x003C, 0x0041, 0x0237),
        *(0x8036, 0x8037, 0x8038, 0x8039, 0x803C, 0x8041, 0x8237),
    ),
    *_each(
        0x2A03,
        BoardKind.AVR,
        "Arduino Leonardo or Micro",
        _ARDUINO_AVR,
        *(0x0036, 0x0037, 0x0038, 0x0039, 0x003C, 0x0040, 0x0041, 0x0050, 0x0056),
        *(0x8036, 0x8037, 0x8038, 0x8039, 0x803C, 0x8040, 0x8041, 0x8050, 0x8056),
    ),
    *_each(
        0x2341,
        BoardKind.SAMD,
        "Arduino Zero, MKR or Nano 33 IoT",
        _ARDUINO_SAMD,
        *(0x004D, 0x004E, 0x004F, 0x0050, 0x0052, 0x0053, 0x0054, 0x0055, 0x0056, 0x0057),
        *(0x0059, 0x024D, 0x024E, 0x804D, 0x804E, 0x804F, 0x8050, 0x8052, 0x8053, 0x8054),
        *(0x8055, 0x8056, 0x8057, 0x8059, 0x824D, 0x824E),
    ),
    *_each(
        0x2341,
        BoardKind.RP2040,
        "Arduino Nano RP2040 Connect",
        _ARDUINO_PICO,
        *(0x005E, 0x015E, 0x025E, 0x805E),
    ),
    # Nano 33 BLE, Portenta, UNO R4 and those to come; all take the touch.
    Row(0x2341, None, BoardKind.ARDUINO, "Arduino board with native USB", _ARDUINO_SAMD),
    Row(0x2A03, None, BoardKind.ARDUINO, "Arduino board with native USB", _ARDUINO_SAMD),
    Row(0x2E8A, 0x000C, BoardKind.OTHER, "Raspberry Pi Debug Probe", _RP_PIDS),
    Row(0x2E8A, 0x0004, BoardKind.OTHER, "Raspberry Pi PicoProbe", _RP_PIDS),
    Row(0x2E8A, None, BoardKind.RP2040, "RP2040 or RP2350 board", _RP_PIDS),
    *_each(
        0x1B4F,
        BoardKind.RP2040,
        "RP2040 board of SparkFun",
        _ARDUINO_PICO,
        *(0x0026, 0x0038, 0x0044, 0x0045, 0x0046, 0x0047),
        *(0x8026, 0x8038, 0x8044, 0x8045, 0x8046, 0x8047),
    ),
    *_each(
        0x1B4F,
        BoardKind.AVR,
        "Pro Micro and other AVR boards of SparkFun",
        _SPARKFUN,
        *(0x2B74, 0x2B75, 0x9203, 0x9204, 0x9205, 0x9206, 0x9207, 0x9208, 0xF100, 0xF101),
    ),
    *_each(
        0x1B4F,
        BoardKind.SAMD,
        "SAMD board of SparkFun",
        _SPARKFUN,
        *(0x0015, 0x0016, 0x0019, 0x0020, 0x002A, 0x002B, 0x0100, 0x0101, 0x0D21, 0x0D24),
        *(0x214F, 0x215F, 0x3ABA, 0x8D21, 0x9D0E, 0x9D0F, 0xF015, 0xF016, 0xF019, 0xF020),
    ),
    *_each(
        0x2886,
        BoardKind.SAMD,
        "XIAO SAMD21, Wio Terminal and others of Seeed",
        _SEEED_SAMD,
        *(0x000B, 0x000C, 0x000E, 0x002A, 0x002C, 0x002D, 0x002F, 0x0031, 0x003F),
        *(0x800B, 0x800C, 0x800E, 0x802A, 0x802C, 0x802D, 0x802F, 0x8031, 0x803F),
    ),
    *_each(
        0x2886,
        BoardKind.RP2040,
        "XIAO RP2350 of Seeed",
        _ARDUINO_PICO,
        0x0050,
        0x0058,
        0x8050,
        0x8058,
    ),
    Row(0x0483, 0x5740, BoardKind.STM32, "STM32 virtual COM port", _USB_IDS),
    *_each(
        0x0483,
        BoardKind.STM32,
        "ST-LINK",
        "github.com/stlink-org/stlink, config/udev/rules.d",
        *(0x374A, 0x374B, 0x374D, 0x374E, 0x374F, 0x3752, 0x3753, 0x3754, 0x3757),
    ),
    Row(
        0xF055,
        None,
        BoardKind.STM32,
        "MicroPython board",
        "github.com/micropython/micropython, ports/stm32/mpconfigboard_common.h",
    ),
    Row(0x16C0, 0x0483, BoardKind.OTHER, "Teensy", "pjrc.com, 00-teensy.rules"),
    Row(0x1366, None, BoardKind.OTHER, "SEGGER J-Link", _USB_IDS),
    Row(0x0D28, 0x0204, BoardKind.OTHER, "DAPLink (micro:bit and others)", _USB_IDS),
    Row(0x03EB, 0x2111, BoardKind.OTHER, "EDBG (Arduino Zero's programming port)", _ARDUINO_SAMD),
    Row(0x03EB, 0x2157, BoardKind.OTHER, "EDBG (Arduino Zero's programming port)", _ARDUINO_SAMD),
    Row(0x1915, None, BoardKind.OTHER, "Nordic device", _USB_IDS),
    Row(0x0451, 0x16A8, BoardKind.OTHER, "CC2531 Zigbee stick", _USB_IDS),
    Row(0x0451, 0xBEF3, BoardKind.OTHER, "XDS110 debug probe", _USB_IDS),
    Row(0x1CF1, None, BoardKind.OTHER, "ConBee Zigbee stick", _USB_IDS),
    Row(0x0658, 0x0200, BoardKind.OTHER, "Z-Wave stick", _USB_IDS),
)

_ROW_OF = {(row.vendor_id, row.product_id): row for row in reversed(ROWS)}


def row_of(usb_ids: UsbIds | None) -> Row | None:
    """The row that fits, if any."""
    if usb_ids is None:
        return None
    return _ROW_OF.get(usb_ids) or _ROW_OF.get((usb_ids[0], None))


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
