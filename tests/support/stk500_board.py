"""An Arduino Uno's bootloader behind a pty, as far as avrdude's `-c arduino` needs it.

STK500 version 1 (Atmel's application note AVR061): each command ends with 0x20, each answer stands
between 0x14 and 0x10. Flash is kept in `flash`.
"""

from __future__ import annotations

import os
import pty
import select
import threading
import tty
from types import TracebackType
from typing import Self

FLASH_BYTES = 32768
SIGNATURE = b"\x1e\x95\x0f"  # ATmega328P

_END = 0x20
_LOAD_ADDRESS = 0x55
_PROGRAM_PAGE = 0x64
_READ_PAGE = 0x74

#: Command -> how many bytes of arguments follow it, a page's data excepted.
_ARGUMENTS = {
    0x30: 0,  # GET_SYNC
    0x41: 1,  # GET_PARAMETER
    0x42: 20,  # SET_DEVICE
    0x45: 5,  # SET_DEVICE_EXT
    0x50: 0,  # ENTER_PROGMODE
    0x51: 0,  # LEAVE_PROGMODE
    _LOAD_ADDRESS: 2,
    0x56: 4,  # UNIVERSAL
    _PROGRAM_PAGE: 3,
    _READ_PAGE: 3,
    0x75: 0,  # READ_SIGN
}


class Stk500Board:
    """A context manager; `tty_path` is what a gateway opens."""

    def __enter__(self) -> Self:
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self.tty_path = os.ttyname(self._slave)
        self.flash = bytearray(b"\xff" * FLASH_BYTES)
        self._address = 0  # in bytes
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._play, name="STK500")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._stop_write)
        self._thread.join()
        for fd in (self._stop_read, self._master, self._slave):
            os.close(fd)

    def _play(self) -> None:
        received = b""
        while True:
            readable, _, _ = select.select([self._master, self._stop_read], [], [])
            if self._stop_read in readable:
                return
            received += os.read(self._master, 4096)
            while (length := _command_bytes(received)) and len(received) >= length:
                os.write(self._master, self._answer(received[:length]))
                received = received[length:]

    def _answer(self, command: bytes) -> bytes:
        if command[-1] != _END:
            return b"\x15"  # not in sync
        result = b""
        match command[0]:
            case 0x41:
                result = b"\x03"
            case 0x56:
                result = b"\x00"
            case 0x75:
                result = SIGNATURE
            case 0x55:
                self._address = 2 * int.from_bytes(command[1:3], "little")
            case 0x64:
                page = command[4:-1]
                self.flash[self._address : self._address + len(page)] = page
            case 0x74:
                size = int.from_bytes(command[1:3], "big")
                result = bytes(self.flash[self._address : self._address + size])
        return b"\x14" + result + b"\x10"


def _command_bytes(received: bytes) -> int:
    """How long the command is that stands first, 0 while that is not known."""
    if not received:
        return 0
    arguments = _ARGUMENTS.get(received[0])
    if arguments is None:
        return 1  # noise of a program that looks for the board
    if received[0] == _PROGRAM_PAGE:
        if len(received) < 3:
            return 0
        arguments += int.from_bytes(received[1:3], "big")
    return 1 + arguments + 1
