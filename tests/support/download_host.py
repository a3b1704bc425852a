"""The host's side of the serial download protocol, written from the documentation alone.

It shares no code with the simulator, so that a mistake in the one is not hidden by the other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import reduce
from operator import xor

from gateway.simulator.chips import CHIPS
from gateway.simulator.flash import Flash
from gateway.simulator.loader import DownloadMode, Event

FLASH_BEGIN, FLASH_DATA, FLASH_END = 0x02, 0x03, 0x04
MEM_BEGIN, MEM_END, MEM_DATA = 0x05, 0x06, 0x07
SYNC, WRITE_REG, READ_REG = 0x08, 0x09, 0x0A
SPI_SET_PARAMS, SPI_ATTACH, READ_FLASH_SLOW, CHANGE_BAUDRATE = 0x0B, 0x0D, 0x0E, 0x0F
FLASH_DEFL_BEGIN, FLASH_DEFL_DATA, FLASH_DEFL_END = 0x10, 0x11, 0x12
SPI_FLASH_MD5, GET_SECURITY_INFO = 0x13, 0x14
ERASE_FLASH, ERASE_REGION, READ_FLASH, RUN_USER_CODE = 0xD0, 0xD1, 0xD2, 0xD3

SYNC_BODY = b"\x07\x07\x12\x20" + 32 * b"\x55"

#: Where the stubs of esptool 4 and 5 for the ESP32 are put, and about how long they are.
STUBS = {"legacy": (0x400BE000, 3500), "current": (0x400A8000, 6400)}


def slip(payload: bytes) -> bytes:
    escaped = payload.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc")
    return b"\xc0" + escaped + b"\xc0"


def unslip(stream: bytes) -> list[bytes]:
    frames = [frame for frame in stream.split(b"\xc0") if frame]
    return [frame.replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb") for frame in frames]


def pack(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


def request(opcode: int, body: bytes = b"", checksum: int = 0) -> bytes:
    return slip(struct.pack("<BBHI", 0, opcode, len(body), checksum) + body)


def block(opcode: int, data: bytes, sequence: int = 0, checksum: int | None = None) -> bytes:
    if checksum is None:
        checksum = reduce(xor, data, 0xEF)
    return request(opcode, pack(len(data), sequence, 0, 0) + data, checksum)


@dataclass(frozen=True)
class Response:
    """What the chip answered; `body` ends with its status bytes."""

    opcode: int
    value: int
    body: bytes

    @property
    def status(self) -> bytes:
        return self.body[:2]


class Host:
    """Talks to a chip in download mode and keeps its events and responses."""

    def __init__(self, chip_name: str = "esp32", flash_bytes: int = 1 << 20) -> None:
        self.flash = Flash(flash_bytes)
        self.download_mode = DownloadMode(CHIPS[chip_name], self.flash)
        self.events: list[Event] = []

    def send(self, data: bytes) -> list[bytes]:
        """Send raw bytes; return the payloads of the frames that come back."""
        self.events += self.download_mode.receive_data(data)
        return unslip(self.download_mode.data_to_send())

    def ask(self, frame: bytes) -> Response:
        """Send a request that has one response."""
        (payload,) = self.send(frame)
        return decode(payload)

    def attach(self) -> None:
        self.ask(request(SPI_ATTACH, pack(0, 0)))

    def start_stub(self, generation: str = "current") -> list[bytes]:
        """Upload what looks like a stub and jump to it; return the answers to the jump."""
        start, size = STUBS[generation]
        self.ask(request(MEM_BEGIN, pack(size, -(-size // 0x1800), 0x1800, start)))
        for sequence, at in enumerate(range(0, size, 0x1800)):
            self.ask(block(MEM_DATA, bytes(min(0x1800, size - at)), sequence))
        return self.send(request(MEM_END, pack(0, start + 16)))


def decode(payload: bytes) -> Response:
    direction, opcode, size, value = struct.unpack_from("<BBHI", payload)
    assert direction == 1
    assert size == len(payload) - 8
    return Response(opcode, value, payload[8:])
