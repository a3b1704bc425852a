"""The simulated chips as data: what makes esptool and a boot log name each one right.

Register addresses are those of Espressif's technical reference manuals. A chip whose loader differs
from others' only in such data needs only an entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum


class Opcode(IntEnum):
    """Commands of the boot ROMs and of the flasher stub (from ERASE_FLASH on)."""

    FLASH_BEGIN = 0x02
    FLASH_DATA = 0x03
    FLASH_END = 0x04
    MEM_BEGIN = 0x05
    MEM_END = 0x06
    MEM_DATA = 0x07
    SYNC = 0x08
    WRITE_REG = 0x09
    READ_REG = 0x0A
    SPI_SET_PARAMS = 0x0B
    SPI_ATTACH = 0x0D
    READ_FLASH_SLOW = 0x0E
    CHANGE_BAUDRATE = 0x0F
    FLASH_DEFL_BEGIN = 0x10
    FLASH_DEFL_DATA = 0x11
    FLASH_DEFL_END = 0x12
    SPI_FLASH_MD5 = 0x13
    GET_SECURITY_INFO = 0x14
    ERASE_FLASH = 0xD0
    ERASE_REGION = 0xD1
    READ_FLASH = 0xD2
    RUN_USER_CODE = 0xD3


class UsbKind(Enum):
    """How a board is connected to USB."""

    BRIDGE = "bridge"  # a USB-UART bridge; DTR and RTS go to the circuit of two transistors
    JTAG = "jtag"  # the chip's USB-Serial/JTAG controller, which is hardware
    OTG = "otg"  # the chip's USB-OTG controller, driven by the firmware that runs


class ResetCause(Enum):
    """Why a chip starts, as far as its boot log tells them apart."""

    POWER_ON = "power on or EN"
    SOFTWARE = "software reset"
    WATCHDOG = "RTC watchdog"
    USB = "USB-Serial/JTAG controller"


@dataclass(frozen=True)
class SpiController:
    """Addresses and habits of the SPI peripheral that the flash is connected to.

    Behind `command` is its address register, behind `user` are `user1`, `user2` and the lengths of
    MOSI and MISO data; without `has_lengths` (ESP8266) those are fields of `user1`.
    """

    command: int
    user: int
    data: int
    address_msb_first: bool = False
    has_lengths: bool = True


@dataclass(frozen=True)
class Watchdog:
    """The RTC watchdog that a host can arm to reset the chip: two of its registers."""

    config: int
    write_protect: int


@dataclass(frozen=True)
class BootLog:
    """What the boot ROM prints; `{cause}` is replaced, lines end as on the wire."""

    causes: Mapping[ResetCause, str]
    flash: str
    download: str
    baudrate: int = 115200


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip with its flash; use `dataclasses.replace` to give a board its own `mac`.

    `chip_id` is what GET_SECURITY_INFO returns, in `security_info_bytes` (0: the ROM does not know
    it). `mac_in_otp` says that the MAC address is spread over four words, as in the ESP8266.
    `status_bytes` end each answer of the ROM. `sync_value` is what the ROM answers to a SYNC:
    left-overs of the frame, never 0, which is how esptool knows a running stub. `crystal_hz` times
    `uart_clock_factor` is the clock that the UART divider divides. `usb_kinds` are the ways onto
    USB that boards with this chip have, the usual one first; `usb_registers` is what a host reads
    differently on a board without a bridge.
    """

    magic: int
    mac: bytes
    mac_register: int
    rom_commands: frozenset[Opcode]
    uart_divider: int
    spi: SpiController
    boot_log: BootLog
    stub_text_starts: frozenset[int]
    legacy_stub_max_text_bytes: int = 5000
    chip_id: int = 0
    mac_in_otp: bool = False
    flash_bytes: int = 4 << 20
    status_bytes: int = 4
    sync_value: int = 0x20120707
    security_info_bytes: int = 0
    flash_begin_bytes: int = 16
    crystal_hz: int = 40_000_000
    uart_clock_factor: int = 1
    watchdog: Watchdog | None = None
    rom_baudrate: int = 115200
    has_erase_size_bug: bool = False
    usb_kinds: tuple[UsbKind, ...] = (UsbKind.BRIDGE,)
    usb_registers: Mapping[int, int] = field(default_factory=dict)
    registers: Mapping[int, int] = field(default_factory=dict)

    def boot_messages(self, cause: ResetCause, *, download: bool) -> bytes:
        """What the ROM prints after a reset, at `boot_log.baudrate`, up to where it hands over."""
        text = self.boot_log.download if download else self.boot_log.flash
        return text.format(cause=self.boot_log.causes[cause]).encode("ascii")

    def security_info(self) -> bytes:
        """The answer to GET_SECURITY_INFO: no feature enabled; the chip id where there is room."""
        info = bytes(12) + self.chip_id.to_bytes(4, "little")
        return info.ljust(self.security_info_bytes, b"\0")[: self.security_info_bytes]

    def mac_registers(self) -> dict[int, int]:
        """The words that hold the MAC address, by their addresses."""
        mac, base = self.mac, self.mac_register
        if self.mac_in_otp:
            return {
                base: mac[5] << 24,
                base + 4: int.from_bytes(mac[3:5], "big"),
                base + 12: int.from_bytes(mac[:3], "big"),
            }
        return {base: int.from_bytes(mac[2:], "big"), base + 4: int.from_bytes(mac[:2], "big")}


#: Where every ROM has a word that no other chip has there; esptool reads it to tell chips apart.
MAGIC_REGISTER = 0x40001000

_ESP8266_COMMANDS = frozenset(opcode for opcode in Opcode if opcode <= Opcode.READ_REG)
_ESP32_COMMANDS = frozenset(opcode for opcode in Opcode if opcode <= Opcode.SPI_FLASH_MD5)
_LATER_COMMANDS = _ESP32_COMMANDS | {Opcode.GET_SECURITY_INFO}


def _boot_log_of_later_chips(head: str, app_mode: str, download_mode: str) -> BootLog:
    return BootLog(
        causes={
            ResetCause.POWER_ON: "rst:0x1 (POWERON)",
            ResetCause.SOFTWARE: "rst:0x3 (RTC_SW_SYS_RST)",
            ResetCause.WATCHDOG: "rst:0x10 (RTCWDT_RTC_RST)",
            ResetCause.USB: "rst:0x15 (USB_UART_CHIP_RESET)",
        },
        flash=(
            f"{head}{{cause}},boot:{app_mode} (SPI_FAST_FLASH_BOOT)\r\n"
            "SPIWP:0xee\r\nmode:DIO, clock div:2\r\n"
        ),
        download=f"{head}{{cause}},boot:{download_mode}\r\nwaiting for download\r\n",
    )


_ESP32 = Chip(
    magic=0x00F01D83,
    mac=bytes.fromhex("240ac4000001"),
    mac_register=0x3FF5A004,
    rom_commands=_ESP32_COMMANDS,
    sync_value=0x55201207,
    uart_divider=0x3FF40014,
    spi=SpiController(0x3FF42000, user=0x3FF4201C, data=0x3FF42080, address_msb_first=True),
    boot_log=BootLog(
        causes={
            ResetCause.POWER_ON: "rst:0x1 (POWERON_RESET)",
            ResetCause.SOFTWARE: "rst:0x3 (SW_RESET)",
            ResetCause.WATCHDOG: "rst:0x10 (RTCWDT_RTC_RESET)",
        },
        flash=(
            "ets Jul 29 2019 12:21:46\r\n\r\n{cause},boot:0x13 (SPI_FAST_FLASH_BOOT)\r\n"
            "configsip: 0, SPIWP:0xee\r\n"
            "clk_drv:0x00,q_drv:0x00,d_drv:0x00,cs0_drv:0x00,hd_drv:0x00,wp_drv:0x00\r\n"
            "mode:DIO, clock div:2\r\n"
        ),
        download=(
            "ets Jul 29 2019 12:21:46\r\n\r\n"
            "{cause},boot:0x3 (DOWNLOAD_BOOT(UART0/UART1/SDIO_REI_REO_V2))\r\n"
            "waiting for download\r\n"
        ),
    ),
    stub_text_starts=frozenset({0x400BE000, 0x400A8000}),
    registers={
        # An ESP32-D0WD-V3 revision 3.1: the revision's bits are in word 3 (bit 15), word 5
        # (bit 20; minor in bits 24, 25) and the date register (bit 31). Word 3 also says
        # package 1 and 240 MHz.
        0x3FF5A00C: 0x0000A200,
        0x3FF5A014: 0x01100000,
        0x3FF6607C: 0x80000000,
        # esptool computes the crystal from the ratio of the calibration to the 8 MHz clock
        # (word 4, bits 0-7, in units of 15625/40 kHz) and bends the baud rate that it asks for by
        # the result. These two make it 40 MHz exactly, so the rate asked for is the rate meant.
        0x3FF5A010: 0x00000732,
        0x3FF5F06C: 2048 << 7,
        # Straps as in download mode; MTDI low says 3.3 V flash.
        0x3FF44038: 0x00000003,
    },
)

_ESP32S2 = Chip(
    magic=0x000007C6,
    mac=bytes.fromhex("7cdfa1000001"),
    mac_register=0x3F41A044,
    rom_commands=_LATER_COMMANDS,
    security_info_bytes=12,  # no room for a chip id
    flash_begin_bytes=20,
    uart_divider=0x3F400014,
    spi=SpiController(0x3F402000, user=0x3F402018, data=0x3F402058),
    watchdog=Watchdog(config=0x3F408094, write_protect=0x3F4080AC),
    boot_log=_boot_log_of_later_chips(
        "ESP-ROM:esp32s2-rc4-20191025\r\nBuild:Oct 25 2019\r\n",
        "0x8",
        "0x0 (DOWNLOAD(USB/UART0/1/SPI))",
    ),
    stub_text_starts=frozenset({0x40028000}),
    usb_kinds=(UsbKind.OTG, UsbKind.BRIDGE),
    # The ROM's variable that tells through which port it speaks; then what tells whether a
    # software reset can leave download mode: the strap GPIO0 (bit 3) is high, so the flag that
    # forces download mode (bit 0) must have led there.
    usb_registers={0x3FFFFD14: 2, 0x3F404038: 1 << 3, 0x3F408128: 1},
)

_ESP32C3 = Chip(
    magic=0x1B31506F,
    chip_id=5,
    mac=bytes.fromhex("a0764e000001"),
    mac_register=0x60008844,
    rom_commands=_LATER_COMMANDS,
    security_info_bytes=20,
    flash_begin_bytes=20,
    uart_divider=0x60000014,
    spi=SpiController(0x60002000, user=0x60002018, data=0x60002058),
    watchdog=Watchdog(config=0x60008090, write_protect=0x600080A8),
    boot_log=_boot_log_of_later_chips(
        "ESP-ROM:esp32c3-api1-20210207\r\nBuild:Feb  7 2021\r\n",
        "0xc",
        "0x4 (DOWNLOAD(USB/UART0/1))",
    ),
    stub_text_starts=frozenset({0x40380000}),
    usb_kinds=(UsbKind.JTAG, UsbKind.BRIDGE),
    usb_registers={0x3FCDF07C: 3},
    # Revision 0.4: the minor number in word 3 of the block that begins with the MAC.
    registers={0x60008850: 4 << 18},
)

_ESP8266 = Chip(
    magic=0xFFF0C101,
    mac=bytes.fromhex("5ccf7f000001"),
    mac_in_otp=True,
    mac_register=0x3FF00050,
    rom_commands=_ESP8266_COMMANDS,
    status_bytes=2,
    crystal_hz=26_000_000,
    uart_clock_factor=2,
    uart_divider=0x60000014,
    spi=SpiController(
        0x60000200, user=0x6000021C, data=0x60000240, address_msb_first=True, has_lengths=False
    ),
    boot_log=BootLog(
        baudrate=74880,  # the ROM takes its 26 MHz crystal for one of 40 MHz
        causes={
            ResetCause.POWER_ON: "rst cause:2",
            ResetCause.SOFTWARE: "rst cause:1",
            ResetCause.WATCHDOG: "rst cause:4",
        },
        flash="\r\n ets Jan  8 2013,{cause}, boot mode:(3,6)\r\n\r\n",
        download="\r\n ets Jan  8 2013,{cause}, boot mode:(1,6)\r\n\r\n",
    ),
    stub_text_starts=frozenset({0x4010D000, 0x4010C500}),
    legacy_stub_max_text_bytes=10000,
    has_erase_size_bug=True,
)

#: By the name that a `sim://` device uses.
CHIPS: Mapping[str, Chip] = {
    "esp32": _ESP32,
    "esp32c3": _ESP32C3,
    "esp32s2": _ESP32S2,
    "esp8266": _ESP8266,
}
