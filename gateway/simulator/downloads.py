"""Downloads in progress, as boot ROM and stub share them: into RAM, into flash, out of flash.

They keep the state between a BEGIN command and its last DATA; which errors that gives, and when a
flash is erased, differs between `rom` and `stub` and is decided there.
"""

from __future__ import annotations

import hashlib
import zlib
from enum import Enum

from gateway.simulator.chips import Chip
from gateway.simulator.commands import FlashWritten
from gateway.simulator.flash import Flash

#: All RAM of the largest chip; no host has anything bigger to put there.
_MAX_RAM_BYTES = 512 * 1024

#: A stub has two, an image to be run from RAM a handful.
_MAX_RAM_SEGMENTS = 64

#: The stub's first words to the host, which lie in its image somewhere.
STUB_GREETING = b"OHAI"


class StubGeneration(Enum):
    """Which of the two flasher stubs a host has uploaded."""

    LEGACY = "esptool up to 4.x: leaves by a reset or into user code when told so"
    CURRENT = "esptool 5: does neither"


class RamDownload:
    """What MEM_BEGIN and MEM_DATA have put into RAM since reset."""

    def __init__(self) -> None:
        self._segments: dict[int, bytearray] = {}
        self._start: int | None = None
        self._remaining = 0

    @property
    def remaining(self) -> int | None:
        """Bytes that the segment begun last still takes; None if there is none."""
        return None if self._start is None else self._remaining

    def begin(self, start: int, size: int) -> bool:
        """Start a segment, or start it again; False if RAM has no room for it and the others."""
        self._segments.pop(start, None)
        used_bytes = sum(map(len, self._segments.values()))
        if used_bytes + size > _MAX_RAM_BYTES or len(self._segments) == _MAX_RAM_SEGMENTS:
            self._start = None
            return False
        self._segments[start] = bytearray()
        self._start, self._remaining = start, size
        return True

    def add(self, data: bytes) -> None:
        """Append to the segment begun last; the caller has compared with `remaining`."""
        if self._start is not None:
            self._segments[self._start] += data
            self._remaining -= len(data)

    def stub_at(self, entry: int, chip: Chip) -> StubGeneration | None:
        """The flasher stub that a jump to `entry` starts; None if no stub was uploaded there."""
        for start, data in self._segments.items():
            if not start <= entry < start + len(data):
                continue
            greets = any(STUB_GREETING in segment for segment in self._segments.values())
            if not greets and start not in chip.stub_text_starts:
                return None
            is_legacy = len(data) <= chip.legacy_stub_max_text_bytes
            return StubGeneration.LEGACY if is_legacy else StubGeneration.CURRENT
        return None


class FlashDownload:
    """The blocks between a FLASH_BEGIN or FLASH_DEFL_BEGIN and the end of what it announced.

    `size` is what was announced, in bytes of flash. zlib.error comes from compressed data that
    are none.
    """

    def __init__(self, flash: Flash, offset: int, size: int, *, compressed: bool) -> None:
        self.offset = offset
        self.remaining = size
        self._flash = flash
        self._inflator = zlib.decompressobj() if compressed else None

    def unpack(self, data: bytes) -> bytes:
        """The bytes of flash that a block holds, at most one more than `remaining`."""
        if self._inflator is None:
            return data
        # The limit keeps a few bytes from becoming gigabytes; 0 would mean none.
        return self._inflator.decompress(data, self.remaining + 1)

    def write(self, data: bytes) -> FlashWritten:
        """Write at where the last block ended; FlashRangeError beyond the flash."""
        self._flash.write(self.offset, data)
        event = FlashWritten(self.offset, len(data))
        self.offset += len(data)
        self.remaining = max(0, self.remaining - len(data))
        return event


class FlashRead:
    """A READ_FLASH in progress: packets that the host acknowledges one by one, then a digest."""

    def __init__(self, flash: Flash, offset: int, size: int, packet_bytes: int) -> None:
        self._flash = flash
        self._offset = offset
        self._remaining = size
        self._unacknowledged = size
        self._size = size
        self._packet_bytes = packet_bytes
        self._md5 = hashlib.md5(usedforsecurity=False)

    @property
    def is_done(self) -> bool:
        """True when everything was sent and acknowledged."""
        return not self._remaining and not self._unacknowledged

    def next_packet(self) -> bytes:
        """The next packet to send; empty if all of them were."""
        packet = self._flash.read(self._offset, min(self._remaining, self._packet_bytes))
        self._offset += len(packet)
        self._remaining -= len(packet)
        self._md5.update(packet)
        return packet

    def acknowledge(self, received_bytes: int) -> None:
        """The host says how much it has of the whole."""
        self._unacknowledged = max(0, self._size - received_bytes)

    def digest(self) -> bytes:
        """The 16 bytes that end the conversation."""
        return self._md5.digest()
