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
    """One row: a product (None: every other one of the vendor), its kind, and its source."""

    vendor_id: int
    product_id: int | None
    kind: BoardKind
    name: str
    source: str


def _each(
    vendor_id: int, kind: BoardKind, name: str, source: str, product_ids: str
) -> tuple[Row, ...]:
    """One row for each product, whose ids are in hexadecimal."""
    return tuple(Row(vendor_id, int(each, 16), kind, name, source) for each in product_ids.split())


_CP210X = "Linux, drivers/usb/serial/cp210x.c"
_CH341 = "Linux, drivers/usb/serial/ch341.c"
_CH343 = "WCH's Linux driver, ch343.c; Linux, drivers/usb/class/cdc-acm.c"
_FTDI = "Linux, drivers/usb/serial/ftdi_sio_ids.h"
_PL2303 = "Linux, drivers/usb/serial/pl2303.h"
_ESPTOOL = "esptool, loader.py (uses_usb_otg: the product id is the chip's image id)"
_ESP_USB_BRIDGE = "github.com/espressif/esp-usb-bridge, main/Kconfig.projbuild"
_ADAFRUIT_ESP32 = "arduino-esp32, variants/adafruit_*_esp32s2 and _esp32s3, pins_arduino.h"
_ARDUINO_ESP32 = "arduino-esp32, variants/arduino_nano_nora/pins_arduino.h"
_STLINK = "github.com/stlink-org/stlink, config/udev/rules.d"
_MICROPYTHON = "github.com/micropython/micropython, ports/stm32/mpconfigboard_common.h"
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
    Row(0x303A, 0x1002, BoardKind.BRIDGE, "ESP USB Bridge", _ESP_USB_BRIDGE),
    Row(0x303A, 0x8105, BoardKind.BRIDGE, "MuseLab ESPLink (ESP USB Bridge)", _USB_PIDS),
    # The ROM's bootloader, ESP-IDF's USB console and arduino-esp32 (cores/esp32/USB.cpp) share it.
    Row(0x303A, 0x0002, BoardKind.USB_OTG, "ESP32-S2 USB-OTG", _ESPTOOL),
    Row(0x303A, 0x0009, BoardKind.USB_OTG, "ESP32-S3 USB-OTG", _ESPTOOL),
    # TinyUSB of ESP-IDF (esp_tinyusb: 0x4000 and a bit per class) and all products of customers.
    Row(0x303A, None, BoardKind.USB_OTG, "USB device of an Espressif chip", _USB_PIDS),
    *_each(
        0x239A,
        BoardKind.NRF52,
        "nRF52 board of Adafruit",
        _ADAFRUIT_NRF52,
        """
        0029 002A 003F 0040 0045 0051 0052 0071 0087 0088 00D8 00DA 010B 010D 8029
        802A 803F 8040 8045 8046 8051 8052 8071 8072 8087 8088 80D8 80DA 810B 810C
        810D 810E
        """,
    ),
    *_each(
        0x239A,
        BoardKind.SAMD,
        "SAMD board of Adafruit",
        _ADAFRUIT_SAMD,
        """
        000B 000F 0013 0015 0019 001B 001C 001E 0020 0021 0022 0027 002B 002D 002F
        0030 0031 0032 0033 0034 0035 0037 003D 0043 0047 0049 00BF 00C9 00CB 00CC
        00CD 00EF 00FB 00FF 0101 0103 0153 0155 0157 0159 800B 800F 8012 8013 8018
        801B 801C 801E 8020 8021 8022 8026 8027 8028 802B 802D 802F 8031 8033 8034
        8035 8036 8037 803D 803E 8043 8044 8047 8048 8049 804A 8053 80BF 80C0 80C9
        80CA 80CB 80CD 80EF 80F0 80FB 80FC 80FF 8100 8101 8102 8103 8104 8153 8154
        8155 8156 8157 8158 8159 8160
        """,
    ),
    # CircuitPython has the number behind Arduino's.
    *_each(
        0x239A,
        BoardKind.RP2040,
        "RP2040 board of Adafruit",
        _ARDUINO_PICO,
        """
        80E3 80E4 80F1 80F2 80F7 80F8 80FD 80FE 8105 8106 8107 8108 8109 810A 8121
        8122 8127 8128 8129 812A 812B 812C 812D 812E 812F 8130 8131 8132 813D 813E
        814D 814E 814F 8150 8151 8152 815D 815E 816B 816C 816D 816E 81E3 81E4 81F1
        81F2 81F7 81F8 81FD 81FE
        """,
    ),
    Row(0x239A, 0x8011, BoardKind.AVR, "Circuit Playground of Adafruit", _ARDUINO_AVR),
    Row(0x239A, None, BoardKind.USB_OTG, "Adafruit board with native USB", _ADAFRUIT_ESP32),
    Row(0x2341, 0x0070, BoardKind.USB_OTG, "Arduino Nano ESP32", _ARDUINO_ESP32),
    *_each(
        0x2341,
        BoardKind.DTR_RESET,
        "Arduino UNO or Mega",
        _ARDUINO_AVR,
        "0001 0010 003F 0042 0043 0044 0062 006A 0210 0242 0243",
    ),
    *_each(
        0x2A03,  # arduino.org
        BoardKind.DTR_RESET,
        "Arduino UNO or Mega",
        _ARDUINO_AVR,
        "0001 0010 003F 0042 0043 0044 0057",
    ),
    *_each(
        0x2341,
        BoardKind.AVR,
        "Arduino Leonardo or Micro",
        _ARDUINO_AVR,
        "0036 0037 0038 0039 003C 0041 0237 8036 8037 8038 8039 803C 8041 8237",
    ),
    *_each(
        0x2A03,
        BoardKind.AVR,
        "Arduino Leonardo or Micro",
        _ARDUINO_AVR,
        """
        0036 0037 0038 0039 003C 0040 0041 0050 0056 8036 8037 8038 8039 803C 8040
        8041 8050 8056
        """,
    ),
    *_each(
        0x2341,
        BoardKind.SAMD,
        "Arduino Zero, MKR or Nano 33 IoT",
        _ARDUINO_SAMD,
        """
        004D 004E 004F 0050 0052 0053 0054 0055 0056 0057 0059 024D 024E 804D 804E
        804F 8050 8052 8053 8054 8055 8056 8057 8059 824D 824E
        """,
    ),
    *_each(
        0x2341,
        BoardKind.RP2040,
        "Arduino Nano RP2040 Connect",
        _ARDUINO_PICO,
        "005E 015E 025E 805E",
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
        "0026 0038 0044 0045 0046 0047 8026 8038 8044 8045 8046 8047",
    ),
    *_each(
        0x1B4F,
        BoardKind.AVR,
        "Pro Micro and other AVR boards of SparkFun",
        _SPARKFUN,
        "2B74 2B75 9203 9204 9205 9206 9207 9208 F100 F101",
    ),
    *_each(
        0x1B4F,
        BoardKind.SAMD,
        "SAMD board of SparkFun",
        _SPARKFUN,
        """
        0015 0016 0019 0020 002A 002B 0100 0101 0D21 0D24 214F 215F 3ABA 8D21 9D0E
        9D0F F015 F016 F019 F020
        """,
    ),
    *_each(
        0x2886,
        BoardKind.SAMD,
        "XIAO SAMD21, Wio Terminal and others of Seeed",
        _SEEED_SAMD,
        """
        000B 000C 000E 002A 002C 002D 002F 0031 003F 800B 800C 800E 802A 802C 802D
        802F 8031 803F
        """,
    ),
    *_each(
        0x2886,
        BoardKind.RP2040,
        "XIAO RP2350 of Seeed",
        _ARDUINO_PICO,
        "0050 0058 8050 8058",
    ),
    Row(0x0483, 0x5740, BoardKind.STM32, "STM32 virtual COM port", _USB_IDS),
    *_each(
        0x0483,
        BoardKind.STM32,
        "ST-LINK",
        _STLINK,
        "374A 374B 374D 374E 374F 3752 3753 3754 3757",
    ),
    Row(0xF055, None, BoardKind.STM32, "MicroPython board", _MICROPYTHON),
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
    """Return the row of a device, if any."""
    if usb_ids is None:
        return None
    return _ROW_OF.get(usb_ids) or _ROW_OF.get((usb_ids[0], None))


def described(usb_ids: UsbIds | None) -> str:
    """Describe a device for a person: its ids and its name in the table."""
    if usb_ids is None:
        return "no USB device"
    row = row_of(usb_ids)
    return f"{usb_ids[0]:04x}:{usb_ids[1]:04x} {row.name if row is not None else 'unknown'}"


def kind_of(usb_ids: UsbIds | None) -> BoardKind:
    """The kind of board; a bridge, which most boards have, if the ids are unknown."""
    row = row_of(usb_ids)
    return BoardKind.BRIDGE if row is None else row.kind


@dataclass(frozen=True, slots=True)
class _JtagChannel:
    """A channel of a USB device that is wired to JTAG, although the kernel makes a tty for it.

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
