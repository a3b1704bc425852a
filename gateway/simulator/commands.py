"""The serial protocol that boot ROM and flasher stub share: requests, responses, events.

Source: Espressif's serial protocol documentation, checked against what esptool 4.8 and 5.6 send
and accept. What a command does is the matter of `rom` and `stub`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

_HEADER = struct.Struct("<BBHI")  # direction, opcode, size of the body, checksum or value
_BLOCK_HEADER = struct.Struct("<IIII")  # size of the data, sequence number, two unused words

_DIRECTION_REQUEST = 0
_DIRECTION_RESPONSE = 1

_CHECKSUM_SEED = 0xEF


class Opcode(IntEnum):
    """Commands of the boot ROMs and of the stub (from ERASE_FLASH on)."""

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


@dataclass(frozen=True, slots=True)
class Synced:
    """The host has sent a SYNC and will get its answers."""


@dataclass(frozen=True, slots=True)
class StubStarted:
    """The flasher stub runs now, at the baud rate that was in force."""


@dataclass(frozen=True, slots=True)
class BaudrateChanged:
    """`baudrate` is in force as soon as the answers queued so far have been sent."""

    baudrate: int


@dataclass(frozen=True, slots=True)
class FlashWritten:
    """`size` bytes at `offset` were written."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class FlashErased:
    """`size` bytes at `offset` (whole sectors) were erased."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ResetRequested:
    """The chip resets itself once the answers queued so far have been sent.

    `into_bootloader` says that the straps are not sampled again: a core reset keeps what they
    were at power-on or EN, so the chip comes back in download mode. Otherwise IO0 decides.
    """

    into_bootloader: bool


@dataclass(frozen=True, slots=True)
class AppStarted:
    """The loader was left for user code, in flash or in RAM, without a reset."""


@dataclass(frozen=True, slots=True)
class CommandRefused:
    """A request was answered with an error; `reason` is for a log."""

    opcode: int
    reason: str


Event = (
    Synced
    | StubStarted
    | BaudrateChanged
    | FlashWritten
    | FlashErased
    | ResetRequested
    | AppStarted
    | CommandRefused
)


class RefusedError(Exception):
    """A command cannot be done; `code` is the loader's own error number for the answer."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Request(NamedTuple):
    """A command of the host; `checksum` is only meant by the DATA commands.

    `size` is what the header says the size of `body` is.
    """

    opcode: int
    size: int
    checksum: int
    body: bytes


class Block(NamedTuple):
    """The body of a DATA command; `size` is what it says the size of `data` is."""

    size: int
    sequence: int
    data: bytes


def decode_request(frame: bytes) -> Request | None:
    """Take a request apart; None if the frame is none (too short, or not host to chip)."""
    if len(frame) < _HEADER.size:
        return None
    direction, opcode, size, checksum = _HEADER.unpack_from(frame)
    if direction != _DIRECTION_REQUEST:
        return None
    return Request(opcode, size, checksum, frame[_HEADER.size :])


def encode_response(opcode: int, value: int, body: bytes) -> bytes:
    """Build a response; the status bytes are the end of `body`.

    The size field counts all of the body, as both ROM and stub have it.
    """
    return _HEADER.pack(_DIRECTION_RESPONSE, opcode, len(body), value) + body


def decode_block(body: bytes) -> Block | None:
    """Take the body of a DATA command apart; None if it is too short."""
    if len(body) < _BLOCK_HEADER.size:
        return None
    size, sequence, _, _ = _BLOCK_HEADER.unpack_from(body)
    return Block(size, sequence, body[_BLOCK_HEADER.size :])


def words(body: bytes) -> tuple[int, ...]:
    """The 32-bit little-endian words of a body; an incomplete last one is left out."""
    count = len(body) // 4
    return struct.unpack_from(f"<{count}I", body)


def checksum(data: bytes) -> int:
    """The checksum of a DATA command: EF XORed with every byte.

    Folds the data in halves as one big number, for a loop over bytes would dominate the cost of
    a download.
    """
    folded = int.from_bytes(data, "little")
    size = len(data)
    while size > 1:
        half_bytes = (size + 1) // 2
        half_bits = 8 * half_bytes
        folded = (folded >> half_bits) ^ (folded & ((1 << half_bits) - 1))
        size = half_bytes
    return folded ^ _CHECKSUM_SEED
