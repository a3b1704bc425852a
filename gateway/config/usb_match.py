"""Which plugged-in device an entry of the YAML means: identities, matches, choices.

Pure: what is plugged in is `sysfs`'s matter, how a choice is written in YAML `config.device`'s,
and who gets a device that several want `assignment`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.protocol.board_kinds import is_jtag_channel

#: What makers of cheap chips write where a serial number belongs. Boards that carry one of these
#: are told apart by where they are plugged in, from the first one on.
_NO_SERIALS = frozenset({"0001", "0002", "00000001", "1234", "12345", "123456", "12345678"})

SIMULATED = "sim://"


@dataclass(frozen=True, slots=True)
class UsbTty:
    """A tty of a USB device that is plugged in.

    `location` is the chain of sockets as the kernel names it (`1-1.3`: bus 1, socket 1, there a
    hub, its socket 3). The number of a bus may change at reboot, so `socket` has the controller
    in its place: `0000:01:00.0-usbv2-1.3`. `tty_number` counts the ttys of one interface.
    `instance` differs each time a device is plugged in. `is_fixed` says that the hub above calls
    the device a part of itself (USB 2.0, 11.23.2.1, DeviceRemovable). Texts are empty where the
    device has none.
    """

    path: str
    vendor_id: int
    product_id: int
    location: str
    socket: str
    configuration: int = 1
    interface: int = 0
    tty_number: int = 0
    serial: str = ""
    manufacturer: str = ""
    product: str = ""
    is_fixed: bool = False
    instance: int = 0

    @property
    def usb(self) -> str:
        """Vendor and product id, `10c4:ea60`."""
        return f"{self.vendor_id:04x}:{self.product_id:04x}"

    @property
    def is_jtag(self) -> bool:
        """Whether it is a JTAG channel; only a match that names its interface fits it."""
        ids = self.vendor_id, self.product_id
        return is_jtag_channel(ids, self.interface, self.product)

    @property
    def unit(self) -> str:
        """Which tty of its device it is."""
        return f"{self.configuration}.{self.interface}-port{self.tty_number}"

    @property
    def serial_key(self) -> str:
        """What it is known by wherever it is plugged in; empty if its serial number is none."""
        text = self.serial.strip()
        if not text.strip("0") or text in _NO_SERIALS:
            return ""
        return f"{self.vendor_id:04x}:{text}:{self.unit}"

    @property
    def socket_key(self) -> str:
        """What whatever is plugged in there is known by."""
        return f"{self.socket}:{self.unit}"

    def __str__(self) -> str:
        return f"{self.path} ({self.usb} at {self.location}:{self.configuration}.{self.interface})"


@dataclass(frozen=True, slots=True)
class UsbMatch:
    """What must be true of a device; None does not matter. One of the first four is given.

    `configuration` is given only together with `interface`, by a location of the kind `1-1.3:1.0`.
    """

    vendor_id: int | None = None
    product_id: int | None = None
    serial: str | None = None
    location: str | None = None
    interface: int | None = None
    configuration: int | None = None
    any_usb: bool = False

    def fits(self, tty: UsbTty) -> bool:
        """Whether a port with this match is for a device.

        A channel for JTAG is left out unless its interface is given.
        """
        return self.describes(tty) and (self.interface is not None or not tty.is_jtag)

    def describes(self, tty: UsbTty) -> bool:
        """Whether all that is given is true of a device."""
        return all(getattr(tty, name) == wanted for name, wanted in self.criteria)

    @property
    def criteria(self) -> tuple[tuple[str, int | str], ...]:
        """The fields that a device must have, with their values; always in the same order."""
        given = ((name, getattr(self, name)) for name in _CRITERIA)
        return tuple((name, value) for name, value in given if value is not None)

    def __str__(self) -> str:
        texts = []
        if self.vendor_id is not None:
            product = "*" if self.product_id is None else f"{self.product_id:04x}"
            texts.append(f"usb {self.vendor_id:04x}:{product}")
        elif self.any_usb:
            texts.append("usb *:*")
        if self.serial is not None:
            texts.append(f"serial {self.serial}")
        if self.location is not None:
            unit = "" if self.configuration is None else f":{self.configuration}.{self.interface}"
            texts.append(f"location {self.location}{unit}")
        if self.interface is not None and self.configuration is None:
            texts.append(f"interface {self.interface}")
        return ", ".join(texts)


_CRITERIA = ("vendor_id", "product_id", "serial", "location", "interface", "configuration")


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """What the YAML says a port's device is: alternatives, of which the first that is there counts.

    Each is an absolute path or a match; a `sim://` URL stands alone.
    """

    alternatives: tuple[str | UsbMatch, ...]

    @property
    def simulated(self) -> str | None:
        """The URL of a simulated board, if it is one."""
        first = self.alternatives[0]
        return first if isinstance(first, str) and first.startswith(SIMULATED) else None

    def fits(self, tty: UsbTty) -> bool:
        """Whether any of its matches is right for a device."""
        return any(match.fits(tty) for match in self.matches)

    @property
    def is_match(self) -> bool:
        """Whether it is matches only."""
        return not self.paths

    @property
    def paths(self) -> list[str]:
        """The alternatives that are paths."""
        return [each for each in self.alternatives if isinstance(each, str)]

    @property
    def matches(self) -> list[UsbMatch]:
        """The alternatives that are matches."""
        return [each for each in self.alternatives if isinstance(each, UsbMatch)]

    def __str__(self) -> str:
        return " or ".join(str(each) for each in self.alternatives)
