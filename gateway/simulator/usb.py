"""How a simulated board hangs on USB: through a bridge, or by a USB device in the chip itself.

Names and numbers only: what DTR and RTS do to the chip is the matter of `circuit` (bridge),
`usb_jtag` and `usb_otg`.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class UsbKind(Enum):
    """What the host's tty belongs to."""

    BRIDGE = "bridge"  # a USB-UART bridge; DTR and RTS go to the circuit of two transistors
    JTAG = "jtag"  # the chip's USB-Serial/JTAG controller, which is hardware
    OTG = "otg"  # the chip's USB-OTG controller, driven by whatever the chip runs


class UsbIds(NamedTuple):
    """Vendor and product id of a USB device; str() writes them as lsusb does."""

    vendor: int
    product: int

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.product:04x}"

    @classmethod
    def parse(cls, text: str) -> UsbIds:
        """Read what str() writes; ValueError when it is something else."""
        vendor, product = text.split(":")
        return cls(int(vendor, 16), int(product, 16))


#: A CP2102N, on most of Espressif's own boards.
BRIDGE_IDS = UsbIds(0x10C4, 0xEA60)
#: The USB-Serial/JTAG controller: the same on every chip that has one, whatever the chip runs.
JTAG_IDS = UsbIds(0x303A, 0x1001)
#: The boot ROM's own CDC device; the product id is the chip's number in image headers (ESP32-S2).
OTG_ROM_IDS = UsbIds(0x303A, 0x0002)
#: An app made with arduino-esp32 for a LOLIN S2 mini (its variant's pins_arduino.h); each board
#: has an id of its own.
OTG_APP_IDS = UsbIds(0x303A, 0x80C2)

#: What goes over a full-speed CDC device, as the rate of a UART with ten bits to a byte: 800 KB/s,
#: of the 1.2 MB/s that a bus without other traffic carries. The rate that the host sets is not
#: looked at.
USB_BAUDRATE = 8_000_000
