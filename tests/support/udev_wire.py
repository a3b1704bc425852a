"""udev's messages as udevd puts them on the netlink socket, for tests without udevd.

The layout is systemd's, src/libsystemd/sd-device/device-monitor.c (struct monitor_netlink_header);
the properties are those that `udevadm monitor --udev --property` shows, made after systemd's rules,
not recorded from hardware.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping

_NETLINK_KOBJECT_UEVENT = 15
_GROUP_UDEV = 2
_MAGIC = 0xFEEDCAFE

TTY_ADDED = {
    "ACTION": "add",
    "DEVPATH": "/devices/platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0/usb1/1-1"
    "/1-1.3/1-1.3:1.0/ttyUSB0/tty/ttyUSB0",
    "SUBSYSTEM": "tty",
    "DEVNAME": "/dev/ttyUSB0",
    "SEQNUM": "3021",
    "USEC_INITIALIZED": "91423107",
    "MAJOR": "188",
    "MINOR": "0",
    "ID_BUS": "usb",
    "ID_MODEL": "CP2102N_USB_to_UART_Bridge_Controller",
    "ID_MODEL_ID": "ea60",
    "ID_SERIAL_SHORT": "8a2f1c0d9e3bec11a5d4f3d0639e525b",
    "ID_VENDOR_ID": "10c4",
    "ID_USB_INTERFACE_NUM": "00",
    "ID_USB_DRIVER": "cp210x",
    "ID_PATH": "platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1.3:1.0",
    "TAGS": ":systemd:",
}
TTY_REMOVED = TTY_ADDED | {"ACTION": "remove", "SEQNUM": "3040"}
#: The interface's own event comes too; it is no tty.
INTERFACE_BOUND = {
    "ACTION": "bind",
    "DEVPATH": TTY_ADDED["DEVPATH"].removesuffix("/ttyUSB0/tty/ttyUSB0"),
    "SUBSYSTEM": "usb",
    "DEVTYPE": "usb_interface",
    "SEQNUM": "3022",
    "DRIVER": "cp210x",
}


def can_send() -> bool:
    """Whether this process may speak as udevd: root in its own network namespace may."""
    try:
        send(INTERFACE_BOUND)
    except OSError:
        return False
    return os.geteuid() == 0


def send(properties: Mapping[str, str]) -> None:
    """Send one event to all who listen to udev."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_KOBJECT_UEVENT) as udevd:
        udevd.bind((0, 0))
        udevd.sendto(message(properties), (0, _GROUP_UDEV))


def message(properties: Mapping[str, str]) -> bytes:
    """One event as a netlink message."""
    text = b"".join(f"{name}={value}".encode() + b"\0" for name, value in properties.items())
    header_bytes = 40
    header = b"libudev\0" + struct.pack(">I", _MAGIC)
    header += struct.pack("=III", header_bytes, header_bytes, len(text))
    header += struct.pack(">II", _hash(properties["SUBSYSTEM"]), _hash(properties.get("DEVTYPE")))
    header += struct.pack(">II", 0, 0)  # the tags' Bloom filter
    return header + text


def _hash(text: str | None) -> int:
    """MurmurHash2 with seed 0, by which the kernel filters what a listener does not want."""
    if not text:
        return 0
    data = text.encode()
    multiplier, mask = 0x5BD1E995, 0xFFFFFFFF
    value = len(data)
    whole = len(data) // 4 * 4
    for position in range(0, whole, 4):
        word = int.from_bytes(data[position : position + 4], "little") * multiplier & mask
        word = (word ^ word >> 24) * multiplier & mask
        value = value * multiplier & mask ^ word
    if rest := data[whole:]:
        value = (value ^ int.from_bytes(rest, "little")) * multiplier & mask
    value = (value ^ value >> 13) * multiplier & mask
    return value ^ value >> 15
