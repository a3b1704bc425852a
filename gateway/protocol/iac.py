"""Doubling and un-doubling IACs in bulk (RFC 854: the data byte 255 is sent as IAC IAC).

What else an IAC may begin is `telnet`'s matter. The ways taken here are those that cost the least
CPU (docs/performance.md); no loop of Python goes over bytes.
"""

from __future__ import annotations

import re
from typing import cast

IAC = b"\xff"
DOUBLED = IAC + IAC

#: Erased flash is all 0xFF, and one read is at most that long. Comparing costs nothing, doubling
#: each by itself 10 ms of CPU a MB.
_ALL_IAC = IAC * 65536

#: Into how many pieces a stream is cut at its IACs at most: 8 times what 64 KiB of random data
#: have. With dense IACs, cutting would cost 50 ms of CPU a MB.
_MOST_PIECES = 4096

#: Data up to the next command: anything but IAC, and doubled IACs. Possessive, so that it is
#: one pass in C without backtracking.
_DATA = re.compile(rb"(?:[^\xff]++|\xff\xff)*+")


def double(data: bytes) -> bytes:
    """The data as it goes on the wire."""
    return data + data if _ALL_IAC.startswith(data) else data.replace(IAC, DOUBLED)


def undouble(stream: bytes) -> tuple[bytes, bytes] | None:
    """The data in a stream of nothing else, and the IAC that it ends with inside of a pair, if
    it does; None of any other stream.

    Between the two IACs of a pair is nothing, so every other piece that IACs cut the stream into
    is empty: 1 ms of CPU a MB of random data, where replacing pairs takes 5.
    """
    if _ALL_IAC.startswith(stream):
        pairs = len(stream) // 2
        return stream[:pairs], stream[2 * pairs :]
    pieces = stream.split(IAC, _MOST_PIECES)
    if len(pieces) > _MOST_PIECES:
        return _undouble_dense(stream)
    if any(pieces[1::2]):
        return None
    return IAC.join(pieces[::2]), b"" if len(pieces) % 2 else IAC


def _undouble_dense(stream: bytes) -> tuple[bytes, bytes] | None:
    lone = stream.replace(DOUBLED, b"")
    if lone.find(IAC) not in {-1, len(lone) - 1}:
        return None
    if lone.endswith(IAC):
        return stream[:-1].replace(DOUBLED, IAC), IAC
    return stream.replace(DOUBLED, IAC), b""


def end_of_data(stream: bytes, start: int) -> int:
    """Where the next IAC stands that begins no pair, from `start` on; the stream's end if none."""
    return cast("re.Match[bytes]", _DATA.match(stream, start)).end()
