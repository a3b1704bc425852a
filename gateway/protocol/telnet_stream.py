"""Split a telnet stream into data, commands and subnegotiations, for both ends (RFC 854, 855).

Data is handled in bulk, in the ways that cost the least CPU (docs/performance.md); no Python runs
per byte. Imports the standard library only: the client of gateway:// URLs runs it inside other
programs.
"""

from __future__ import annotations

import re
from typing import NamedTuple, cast

IAC = b"\xff"
DOUBLED = IAC + IAC

# Command codes (RFC 854, "TELNET command structure").
SE = 0xF0
BRK, IP, AO, AYT, EC, EL = 0xF3, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8
SB, WILL, WONT, DO, DONT = 0xFA, 0xFB, 0xFC, 0xFD, 0xFE

#: A COM-PORT-OPTION subnegotiation has 2 to 6 octets, a SIGNATURE a line of text.
MAX_SUBNEGOTIATION_BYTES = 256

#: A peer negotiates about twenty times; a peer that goes on is in a loop (RFC 1143), or keeps the
#: event loop busy: telnetlib3 takes 10 us for a command.
MAX_NEGOTIATIONS = 1000

#: Commands that one call of `split` returns: 0.3 to 1 ms of CPU at the server. No client sends as
#: many at once.
COMMANDS_PER_CALL = 64

#: Erased flash is all 0xFF, and one read is at most that long. Comparing costs nothing, doubling
#: each by itself 10 ms of CPU a MB.
_ALL_IAC = IAC * 65536

#: Into how many pieces a stream is cut at its IACs at most: 8 times what 64 KiB of random data
#: have. With dense IACs, cutting would cost 50 ms of CPU a MB.
_MOST_PIECES = 4096

#: Data up to the next command: anything but IAC, and doubled IACs. Possessive, so that it is
#: one pass in C without backtracking.
_DATA = re.compile(rb"(?:[^\xff]++|\xff\xff)*+")


class Command(NamedTuple):
    """A command of two bytes, `IAC code`."""

    code: int


class Negotiation(NamedTuple):
    """`IAC verb option`; the verb is WILL, WONT, DO or DONT."""

    verb: int
    option: int


class Subnegotiation(NamedTuple):
    """`IAC SB option parameters IAC SE`, IACs un-doubled; the option is b"" if there is none."""

    option: bytes
    parameters: bytes


class ProtocolViolation(NamedTuple):
    """The stream breaks the telnet protocol; `fatal` if splitting can't go on behind it."""

    reason: str
    fatal: bool


#: `bytes` are data, IACs un-doubled.
Piece = bytes | Command | Negotiation | Subnegotiation | ProtocolViolation


def double(data: bytes) -> bytes:
    """Return the data as it goes on the wire: the byte 255 is sent as IAC IAC."""
    return data + data if _ALL_IAC.startswith(data) else data.replace(IAC, DOUBLED)


def undouble(stream: bytes) -> tuple[bytes, bytes] | None:
    """Return the data of a stream without commands, and the first IAC of a pair if it ends there.

    Return None for a stream with a command. Between the two IACs of a pair is nothing, so every
    other piece that IACs cut the stream into is empty: 1 ms of CPU a MB of random data, where
    replacing pairs takes 5.
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


def _end_of_data(stream: bytes, start: int) -> int:
    """Return where the next command begins, from `start` on; the stream's end if none does."""
    return cast("re.Match[bytes]", _DATA.match(stream, start)).end()


class Splitter:
    """The receiving half of one telnet connection; a stream may be cut anywhere.

    Memory is bounded: besides complete input that waits for the next call (`unsplit_bytes`), at
    most one command of MAX_SUBNEGOTIATION_BYTES and its frame is kept between calls.
    """

    def __init__(self) -> None:
        self.unsplit_bytes = 0
        #: Whether input without an IAC is one piece as it is: for a caller that saves the call.
        self.is_in_data = True
        self._kept = b""  # an unfinished command from its IAC on, or what is unsplit
        self._negotiations = 0
        self._has_failed = False

    @property
    def is_amid_command(self) -> bool:
        """Whether a command has begun and not ended."""
        return bool(self._kept) and not self.unsplit_bytes

    def split(self, data: bytes) -> list[Piece]:
        """Return the pieces that are complete with `data`, COMMANDS_PER_CALL commands at most.

        While `unsplit_bytes` is not 0, call again; `data` may be empty then. A fatal violation is
        the last piece that is ever returned.
        """
        if self._has_failed:
            return []
        stream = self._kept + data
        if not self.unsplit_bytes:
            if IAC not in stream:
                return [stream] if stream else []
            if (only_data := undouble(stream)) is not None:
                plain, self._kept = only_data
                self.is_in_data = not self._kept
                return [plain] if plain else []
        return self._split_commands(stream)

    def _split_commands(self, stream: bytes) -> list[Piece]:
        pieces: list[Piece] = []
        position = 0
        self.unsplit_bytes = 0
        for _ in range(COMMANDS_PER_CALL):
            end = _end_of_data(stream, position)
            if end > position:
                pieces.append(stream[position:end].replace(DOUBLED, IAC))
            position = self._take_command(stream, end, pieces)
            if position == end:
                break
        else:
            self.unsplit_bytes = len(stream) - position
        self._kept = stream[position:]
        self.is_in_data = not self._kept and not self._has_failed
        return pieces

    def _take_command(self, stream: bytes, start: int, pieces: list[Piece]) -> int:
        """Append the command whose IAC is at `start`; return its end, `start` if unfinished."""
        if len(stream) - start < 2:
            return start
        code = stream[start + 1]
        if code == SB:
            return self._take_subnegotiation(stream, start, pieces)
        if code < WILL:
            pieces.append(Command(code))
            return start + 2
        if len(stream) - start < 3:
            return start
        self._negotiations += 1
        if self._negotiations > MAX_NEGOTIATIONS:
            return self._fail(stream, f"more than {MAX_NEGOTIATIONS} option negotiations", pieces)
        pieces.append(Negotiation(code, stream[start + 2]))
        return start + 3

    def _take_subnegotiation(self, stream: bytes, start: int, pieces: list[Piece]) -> int:
        body = start + 2
        end = _end_of_data(stream, body)
        if end - body > MAX_SUBNEGOTIATION_BYTES:
            reason = f"subnegotiation longer than {MAX_SUBNEGOTIATION_BYTES} bytes"
            return self._fail(stream, reason, pieces)
        if end + 1 >= len(stream):
            return start
        if stream[end + 1] != SE:
            # RFC 855 does not say what this means; the command that interrupts it is kept.
            pieces.append(ProtocolViolation("subnegotiation without its end", fatal=False))
            return end
        content = stream[body:end].replace(DOUBLED, IAC)
        pieces.append(Subnegotiation(content[:1], content[1:]))
        return end + 2

    def _fail(self, stream: bytes, reason: str, pieces: list[Piece]) -> int:
        self._has_failed = True
        pieces.append(ProtocolViolation(reason, fatal=True))
        return len(stream)
