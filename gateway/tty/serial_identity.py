"""What USB device is behind a tty, as the kernel's sysfs tells it.

For the control thread: sysfs may wait for a device. What the ids mean is
`protocol.board_kinds`'s matter.
"""

from __future__ import annotations

import os
from pathlib import Path

from gateway.protocol.board_kinds import UsbIds

SYSFS = Path("/sys")

#: A tty of a USB device hangs below its interface (cdc_acm) or below a port of that (usbserial).
_LEVELS = 3


def read_usb_ids(tty_path: str, sysfs: Path = SYSFS) -> UsbIds | None:
    """Vendor and product id of the USB device that a tty belongs to; None if it has none.

    `tty_path` may be a link, as all of /dev/serial/ are.
    """
    name = os.path.basename(os.path.realpath(tty_path))  # noqa: PTH119
    folder = sysfs / "class" / "tty" / name / "device"
    try:
        folder = folder.resolve(strict=True)
        for _ in range(_LEVELS):
            if (folder / "idVendor").exists():
                return _read_id(folder / "idVendor"), _read_id(folder / "idProduct")
            folder = folder.parent
    except (OSError, ValueError):
        pass  # no such tty, not a USB device, or gone meanwhile: nothing is known of it
    return None


def _read_id(path: Path) -> int:
    return int(path.read_text(), 16)
