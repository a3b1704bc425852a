"""Ttys whose far end a thread plays: for clients that block or are other processes."""

from __future__ import annotations

import os
import pty
import re
import select
import threading
import tty
from typing import ClassVar, Self


class PlayedTty:
    """A context manager; `tty_path` is what a program opens. This one echoes."""

    def __init__(self) -> None:
        self._master, self._slave = pty.openpty()
        # Until a program opens the tty and sets it to raw, the kernel would echo as well.
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.tty_path = os.ttyname(self._slave)
        self._end_read, self._end_write = os.pipe()
        self._thread = threading.Thread(target=self._play, name=type(self).__name__)

    def answer(self, data: bytes) -> bytes:
        """Return what to send after these bytes have come."""
        return data

    def _play(self) -> None:
        while self._master in select.select([self._master, self._end_read], [], [])[0]:
            data = self.answer(os.read(self._master, 65536))
            while data and select.select([self._end_read], [self._master], [])[1]:
                data = data[os.write(self._master, data) :]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._end_write)
        self._thread.join()
        for fd in (self._end_read, self._master, self._slave):
            os.close(fd)


class MicroPythonBoard(PlayedTty):
    """A MicroPython prompt as far as mpremote needs it.

    It knows the raw REPL and runs nothing: each piece of code is answered with what it was.
    """

    #: Ctrl-E A Ctrl-A asks for raw-paste mode, Ctrl-A enters the raw REPL, Ctrl-B leaves it, Ctrl-D
    #: runs what was sent (MicroPython's documentation, "Raw mode and raw-paste mode").
    _KEYS = re.compile(rb"\x05A\x01|[\x01\x02\x04]")

    _received = b""

    def answer(self, data: bytes) -> bytes:
        """See PlayedTty."""
        self._received += data
        said = b""
        while key := self._KEYS.search(self._received):
            match key.group():
                case b"\x01":
                    said += b"raw REPL; CTRL-B to exit\r\n>"
                case b"\x02":
                    said += b"\r\n>>> "
                case b"\x04":
                    said += b"OK" + self._received[: key.start()] + b"\r\n\x04\x04>"
                case _:
                    said += b"R\0"  # raw-paste mode is not supported
            self._received = self._received[key.end() :]
        return said


class Stk500Board(PlayedTty):
    """An Arduino Uno's bootloader, as far as avrdude's `-c arduino` needs it.

    STK500 version 1 (Atmel's application note AVR061): each command ends with 0x20, each answer
    stands between 0x14 and 0x10. Flash is kept in `flash`.
    """

    _LOAD_ADDRESS, _PROGRAM_PAGE, _READ_PAGE = 0x55, 0x64, 0x74
    #: Bytes of arguments by command; a page to be programmed has its data besides.
    _ARGUMENTS: ClassVar = {
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
    #: Commands that are answered with the same bytes each time; the last with an ATmega328P's.
    _RESULTS: ClassVar = {0x41: b"\x03", 0x56: b"\x00", 0x75: b"\x1e\x95\x0f"}

    def __init__(self) -> None:
        super().__init__()
        self.flash = bytearray(b"\xff" * 32768)
        self._address = 0  # in bytes
        self._received = b""

    def answer(self, data: bytes) -> bytes:
        """See PlayedTty."""
        self._received += data
        said = b""
        while (length := self._command_bytes()) and len(self._received) >= length:
            said += self._execute(self._received[:length])
            self._received = self._received[length:]
        return said

    def _command_bytes(self) -> int:
        """Length of the first command received, 0 while it is not known."""
        if not self._received:
            return 0
        arguments = self._ARGUMENTS.get(self._received[0])
        if arguments is None:
            return 1  # noise of a program that looks for the board
        if self._received[0] == self._PROGRAM_PAGE:
            if len(self._received) < 3:
                return 0
            arguments += int.from_bytes(self._received[1:3], "big")
        return 1 + arguments + 1

    def _execute(self, command: bytes) -> bytes:
        if command[-1] != 0x20:
            return b"\x15"  # not in sync
        result = self._RESULTS.get(command[0], b"")
        match command[0]:
            case self._LOAD_ADDRESS:
                self._address = 2 * int.from_bytes(command[1:3], "little")
            case self._PROGRAM_PAGE:
                self.flash[self._address : self._address + len(command) - 5] = command[4:-1]
            case self._READ_PAGE:
                size = int.from_bytes(command[1:3], "big")
                result = bytes(self.flash[self._address : self._address + size])
        return b"\x14" + result + b"\x10"
