"""The chip's address space as far as a host looks into it through READ_REG and WRITE_REG.

Plain registers keep what is written; behind a few lie a SPI controller with the flash, the UART
divider and the watchdog that resets the chip. RAM is not here: it reads as 0.
"""

from __future__ import annotations

import struct

from gateway.simulator.chips import MAGIC_REGISTER, Chip, MacLayout
from gateway.simulator.flash import Flash

_WORD_MASK = 0xFFFFFFFF

#: A host can write any address; no tool writes more than some dozens.
_MAX_WRITTEN_REGISTERS = 4096

# SPI controller: bits of its user register, fields of its length registers (TRM, SPI_USER_REG).
_SPI_START = 1 << 18
_USER_COMMAND = 1 << 31
_USER_ADDRESS = 1 << 30
_USER_MISO = 1 << 28
_USER_MOSI = 1 << 27
_USER1_ADDRESS_LENGTH_SHIFT = 26
_USER1_MOSI_LENGTH_SHIFT = 17
_USER1_MISO_LENGTH_SHIFT = 8
_LENGTH_MASK = 0x1FF
_COMMAND_MASK = 0xFF
_DATA_WORDS = 16

#: RTC watchdog (TRM, RTC_CNTL_WDTCONFIG0_REG): its enable bit and the key that unlocks it.
_WATCHDOG_ENABLE = 1 << 31
_WATCHDOG_KEY = 0x50D83AA1


class Registers:
    """What a chip's registers read, with `flash` behind its SPI controller.

    `baudrate` is what the UART divider tells; `flash_attached` whether the flash's pins are
    connected (an unattached flash reads as FF).
    """

    def __init__(self, chip: Chip, flash: Flash, baudrate: int) -> None:
        self.baudrate = baudrate
        self.flash_attached = False
        self._chip = chip
        self._flash = flash
        self._values = {**chip.registers, **_mac_registers(chip), MAGIC_REGISTER: chip.magic}
        self._room = _MAX_WRITTEN_REGISTERS

    def read(self, address: int) -> int:
        """Return the 32 bits at an address; 0 where nothing is known."""
        if address == self._chip.uart_divider:
            return self._chip.crystal_hz * self._chip.uart_clock_factor // self.baudrate
        return self._values.get(address, 0)

    def write(self, address: int, value: int, mask: int) -> bool:
        """Write the bits of `mask`; return whether that makes the chip reset itself."""
        value = (value & mask | self.read(address) & ~mask) & _WORD_MASK
        if address == self._chip.spi.command and value & _SPI_START:
            self._run_spi_command()
            return False  # the start bit reads as 0 again: the command is done
        if address == MAGIC_REGISTER or self._is_locked(address):
            return False
        self._store(address, value)
        return self._is_watchdog_left_armed(address)

    def _store(self, address: int, value: int) -> None:
        if address not in self._values:
            if not self._room:
                return
            self._room -= 1
        self._values[address] = value

    def _is_locked(self, address: int) -> bool:
        watchdog = self._chip.watchdog
        return (
            watchdog is not None
            and address == watchdog.config
            and self.read(watchdog.write_protect) != _WATCHDOG_KEY
        )

    def _is_watchdog_left_armed(self, address: int) -> bool:
        """Whether a write that was done locks the watchdog while it is enabled.

        An enabled watchdog bites after some 15 ms. Hosts lock it again in that time and want to
        be answered, so that is taken for the moment at which it has bitten.
        """
        watchdog = self._chip.watchdog
        return (
            watchdog is not None
            and address == watchdog.write_protect
            and self.read(watchdog.write_protect) != _WATCHDOG_KEY
            and bool(self.read(watchdog.config) & _WATCHDOG_ENABLE)
        )

    def _run_spi_command(self) -> None:
        spi = self._chip.spi
        user = self.read(spi.user)
        mosi_bytes = self._data_bytes(user, _USER_MOSI)
        miso_bytes = self._data_bytes(user, _USER_MISO)
        data = struct.pack(
            f"<{_DATA_WORDS}I", *(self.read(spi.data + 4 * i) for i in range(_DATA_WORDS))
        )
        answer = b"\xff" * miso_bytes
        if self.flash_attached and user & _USER_COMMAND:
            command = self.read(spi.user2) & _COMMAND_MASK
            answer = self._flash.transfer(
                command, self._spi_address(user), data[:mosi_bytes], miso_bytes
            )
        answer = answer.ljust((miso_bytes + 3) // 4 * 4, b"\0")
        for i, (word,) in enumerate(struct.iter_unpack("<I", answer)):
            self._store(spi.data + 4 * i, word)

    def _data_bytes(self, user: int, phase: int) -> int:
        """How many whole bytes the data phase has; 0 if `user` leaves it out."""
        if not user & phase:
            return 0
        spi = self._chip.spi
        register = spi.mosi_length if phase == _USER_MOSI else spi.miso_length
        if register is not None:
            length = self.read(register)
        elif phase == _USER_MOSI:
            length = self.read(spi.user1) >> _USER1_MOSI_LENGTH_SHIFT
        else:
            length = self.read(spi.user1) >> _USER1_MISO_LENGTH_SHIFT
        return ((length & _LENGTH_MASK) + 1) // 8

    def _spi_address(self, user: int) -> int:
        if not user & _USER_ADDRESS:
            return 0
        spi = self._chip.spi
        bits = (self.read(spi.user1) >> _USER1_ADDRESS_LENGTH_SHIFT) + 1
        address = self.read(spi.address)
        # Some chips send the top bits of the register, others its bottom ones.
        return address >> (32 - bits) if spi.address_msb_first else address & ((1 << bits) - 1)


def _mac_registers(chip: Chip) -> dict[int, int]:
    mac, base = chip.mac, chip.mac_register
    if chip.mac_layout is MacLayout.EFUSE:
        return {
            base: int.from_bytes(mac[2:], "big"),
            base + 4: int.from_bytes(mac[:2], "big"),
        }
    return {
        base: mac[5] << 24,
        base + 4: int.from_bytes(mac[3:5], "big"),
        base + 12: int.from_bytes(mac[:3], "big"),
    }
