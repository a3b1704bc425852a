"""Files as people flash them: images of chips with their headers, and partition tables."""

from __future__ import annotations

import random
import struct
from functools import reduce
from operator import xor

#: Chip ids in image headers (esptool, targets/).
ESP32, ESP32S2, ESP32C3, ESP32S3, ESP32P4 = 0, 2, 5, 9, 18


def image_of(image_id: int, n_bytes: int = 4096, seed: int = 0) -> bytes:
    """A bootloader or an app: headers as esptool writes them, one segment of random data."""
    header = struct.pack("<BBBBI", 0xE9, 1, 2, 0x20, 0x40080000)
    extended = struct.pack("<B3xHBHH4xB", 0xEE, image_id, 0, 0, 399, 0)
    return _with_segment(header + extended, 0x3F400020, n_bytes, seed)


def image_of_8266(n_bytes: int = 4096, seed: int = 0) -> bytes:
    """The same for an ESP8266, which has no extended header."""
    header = struct.pack("<BBBBI", 0xE9, 1, 2, 0x20, 0x40100004)
    return _with_segment(header, 0x40100000, n_bytes, seed)


def _with_segment(header: bytes, address: int, n_bytes: int, seed: int) -> bytes:
    """The segment takes what is left of `n_bytes`, which is rounded to 16, but for the checksum."""
    n_bytes = n_bytes // 16 * 16
    data = random.Random(seed).randbytes(n_bytes - len(header) - 8 - 16)
    checksum = reduce(xor, data, 0xEF)
    image = header + struct.pack("<II", address, len(data)) + data
    return image.ljust(n_bytes - 1, b"\0") + bytes([checksum])


def partition_table(*partitions: tuple[str, int, int, int]) -> bytes:
    """As ESP-IDF writes it; each partition is label, type, offset and size."""
    entries = b"".join(
        struct.pack("<HBBII16sI", 0x50AA, kind, 0, offset, size, label.encode(), 0)
        for label, kind, offset, size in partitions
    )
    return (entries + b"\xeb\xeb" + b"\xff" * 30).ljust(0xC00, b"\xff")
