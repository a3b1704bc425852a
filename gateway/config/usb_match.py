"""USB identities: of ttys that are plugged in, and the matches of the YAML that fit them."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.protocol.board_kinds import is_jtag_channel

#: Placeholders that makers of cheap chips use for a serial number. Boards with one of these are
#: identified by their socket.
_PLACEHOLDERS = frozenset({"0001", "0002", "00000001", "1234", "12345", "123456", "12345678"})

SIMULATED = "sim://"


@dataclass(frozen=True, slots=True)
class UsbTty:
    """A tty of a USB device that is plugged in.

    `location` is the chain of sockets as the kernel names it (`1-1.3`: bus 1, socket 1, there a
    hub, its socket 3). Bus numbers may change at reboot, so `socket` has the controller instead:
    `0000:01:00.0-usbv2-1.3`. `tty_number` counts the ttys of one interface. `instance` differs each
    time that a device is plugged in. `is_fixed`: the hub reports the device as a part of itself
    (USB 2.0, 11.23.2.1, DeviceRemovable). Texts are empty where the device has none.
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
        """The tty within its device."""
        return f"{self.configuration}.{self.interface}-port{self.tty_number}"

    @property
    def serial_key(self) -> str:
        """The identity of the device, wherever it is plugged in; empty without a serial number."""
        text = self.serial.strip()
        if not text.strip("0") or text in _PLACEHOLDERS:
            return ""
        return f"{self.vendor_id:04x}:{text}:{self.unit}"

    @property
    def socket_key(self) -> str:
        """The identity of the socket, whatever is plugged in there."""
        return f"{self.socket}:{self.unit}"

    def __str__(self) -> str:
        return f"{self.path} ({self.usb} at {self.location}:{self.configuration}.{self.interface})"


@dataclass(frozen=True, slots=True)
class UsbMatch:
    """Criteria for a device, None for any. One of the first four is given, or `any_usb`.

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
        """Whether a port with this match serves a device; JTAG only if its interface is given."""
        return self.describes(tty) and (self.interface is not None or not tty.is_jtag)

    def describes(self, tty: UsbTty) -> bool:
        """Whether a device has all criteria."""
        return all(getattr(tty, name) == wanted for name, wanted in self.criteria)

    @property
    def criteria(self) -> tuple[tuple[str, int | str], ...]:
        """The given fields with their values, always in the same order."""
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
    """The device of a port: alternatives, of which the first that is plugged in counts.

    Each is an absolute path or a match; a `sim://` URL is alone.
    """

    alternatives: tuple[str | UsbMatch, ...]

    @property
    def simulated(self) -> str | None:
        """The URL of a simulated board, if it is one."""
        first = self.alternatives[0]
        return first if isinstance(first, str) and first.startswith(SIMULATED) else None

    def fits(self, tty: UsbTty) -> bool:
        """Whether any match fits a device."""
        return any(match.fits(tty) for match in self.matches)

    @property
    def is_match(self) -> bool:
        """Whether all alternatives are matches."""
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
