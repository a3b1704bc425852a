"""The splitter that both ends of telnet share, against a slow one that reads byte by byte."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.telnet_stream import (
    COMMANDS_PER_CALL,
    MAX_NEGOTIATIONS,
    MAX_SUBNEGOTIATION_BYTES,
    Command,
    Negotiation,
    Piece,
    ProtocolViolation,
    Splitter,
    Subnegotiation,
    double,
    undouble,
)
from tests.support.telnet_wire import COM_PORT, NOP, SB, SE, command, cut, do, subnegotiation

#: Streams of real clients.
RECORDED = sorted((Path(__file__).parents[1] / "corpus").glob("*.bin"))

DENSE = b"\xff" * 300 + b"flash" + b"\xff" * 20_000
CASES = {
    "nothing": b"",
    "no IAC": b"abc",
    "one IAC": b"\xff",
    "IACs only": b"\xff" * 1000,
    "IACs only, more than one read": b"\xff" * 100_000,
    "IAC first": b"\xffabc",
    "IAC last": b"abc\xff",
    "IACs in a row": b"a\xff\xff\xffb",
    "random": random.Random(1).randbytes(65536),
    "dense": DENSE,
    "dense, IAC last but one": DENSE + b"x\xffy",
}
case = pytest.mark.parametrize("data", CASES.values(), ids=CASES)


@case
def test_each_iac_is_doubled_and_nothing_else(data: bytes) -> None:
    assert double(data) == b"".join(bytes([byte]) * (1 + (byte == 255)) for byte in data)


@case
def test_undoubling_gives_the_data_back_and_the_first_half_of_a_pair(data: bytes) -> None:
    assert undouble(double(data)) == (data, b"")
    assert undouble(double(data) + b"\xff") == (data, b"\xff")


@case
@pytest.mark.parametrize("begun", [b"\xff\xf1", b"\xff\xfa,", b"\xff\xfb\x2c", b"\xff\0"])
def test_a_stream_with_a_command_is_not_only_data(data: bytes, begun: bytes) -> None:
    assert undouble(double(data) + begun) is None
    assert undouble(double(data) + begun + double(data)) is None


def slowly_split(stream: bytes) -> list[Piece]:
    """What RFC 854 and 855 say of a whole stream; data byte by byte."""
    pieces: list[Piece] = []
    rest = list(stream)
    while rest:
        is_data = rest[0] != 255 or rest[1:2] == [255]
        size, piece = (1 + (rest[0] == 255), bytes(rest[:1])) if is_data else slow_command(rest)
        if piece is None:
            break
        pieces.append(piece)
        if isinstance(piece, ProtocolViolation) and piece.fatal:
            break
        del rest[:size]
    return joined(pieces)


def slow_command(rest: list[int]) -> tuple[int, Piece | None]:
    """The command that `rest` begins with, and its size; None if it has not ended."""
    if len(rest) == 1:
        return 0, None
    if rest[1] == SB:
        return slow_subnegotiation(rest)
    if rest[1] < 251:
        return 2, Command(rest[1])
    return (3, Negotiation(rest[1], rest[2])) if len(rest) > 2 else (0, None)


def slow_subnegotiation(rest: list[int]) -> tuple[int, Piece | None]:
    body, end = [], 2
    while end < len(rest) and (rest[end] != 255 or rest[end + 1 : end + 2] == [255]):
        body.append(rest[end])
        end += 1 + (rest[end] == 255)
    if end - 2 > MAX_SUBNEGOTIATION_BYTES:
        reason = f"subnegotiation longer than {MAX_SUBNEGOTIATION_BYTES} bytes"
        return end, ProtocolViolation(reason, fatal=True)
    if end + 1 >= len(rest):
        return end, None
    if rest[end + 1] == SE:
        return end + 2, Subnegotiation(bytes(body[:1]), bytes(body[1:]))
    return end, ProtocolViolation("subnegotiation without its end", fatal=False)


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring pieces of data as one: where data is cut says nothing."""
    result: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, bytes) and result and isinstance(last := result[-1], bytes):
            result[-1] = last + piece
        else:
            result.append(piece)
    return result


def split(*chunks: bytes) -> list[Piece]:
    splitter = Splitter()
    pieces: list[Piece] = []
    for chunk in chunks:
        new = splitter.split(chunk)
        assert sum(not isinstance(piece, bytes) for piece in new) <= COMMANDS_PER_CALL
        pieces += new
        while splitter.unsplit_bytes:
            pieces += splitter.split(b"")
    return joined(pieces)


@given(cut())
def test_any_stream_cut_anywhere_is_split_as_the_rfcs_say(chunks: list[bytes]) -> None:
    assert split(*chunks) == slowly_split(b"".join(chunks))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_recorded_clients_cut_anywhere_are_split_as_the_rfcs_say(
    path: Path, sizes: list[int]
) -> None:
    stream = path.read_bytes()[:4096]
    chunks: list[bytes] = []
    position = 0
    while position < len(stream):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(stream[position : position + size])
        position += size
    assert split(*chunks) == slowly_split(stream)


@given(cut())
def test_memory_is_bounded_and_states_are_told(chunks: list[bytes]) -> None:
    splitter = Splitter()
    for chunk in chunks:
        splitter.split(chunk)
        while splitter.unsplit_bytes:
            assert not splitter.is_amid_command
            splitter.split(b"")
        assert len(splitter._kept) <= MAX_SUBNEGOTIATION_BYTES + 3
        assert splitter.is_amid_command == bool(splitter._kept)
        if splitter.is_in_data:
            assert not splitter.is_amid_command


def test_commands_beyond_a_call_wait_for_the_next() -> None:
    splitter = Splitter()
    flood = command(NOP) * (2 * COMMANDS_PER_CALL + 1)
    assert splitter.split(flood) == [Command(NOP)] * COMMANDS_PER_CALL
    assert splitter.unsplit_bytes == len(flood) - 2 * COMMANDS_PER_CALL
    assert not splitter.is_in_data
    assert splitter.split(b"a\xff") == [Command(NOP)] * COMMANDS_PER_CALL
    assert splitter.split(b"\xff") == [Command(NOP), b"a\xff"]
    assert splitter.unsplit_bytes == 0
    assert splitter.is_in_data


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (command(SB) + b"x" * (MAX_SUBNEGOTIATION_BYTES + 1), "subnegotiation longer than 256"),
        (command(SB) + b"\xff" * (MAX_SUBNEGOTIATION_BYTES + 2), "subnegotiation longer than 256"),
        (do(31) * (MAX_NEGOTIATIONS + 1), "more than 1000 option negotiations"),
    ],
)
def test_nothing_is_split_behind_a_fatal_violation(stream: bytes, reason: str) -> None:
    splitter = Splitter()
    last = splitter.split(b"a" + stream + b"b")[-1]
    while splitter.unsplit_bytes:
        last = splitter.split(b"")[-1]
    assert isinstance(last, ProtocolViolation)
    assert last.reason.startswith(reason)
    assert last.fatal
    assert splitter.split(b"c" + do(1)) == []
    assert not splitter.is_in_data


def test_the_longest_subnegotiation_is_taken_in_single_bytes() -> None:
    body = bytes([COM_PORT]) + b"x" * (MAX_SUBNEGOTIATION_BYTES - 1)
    stream = subnegotiation(body)
    assert stream.endswith(command(SE))
    assert split(*(bytes([byte]) for byte in stream)) == [Subnegotiation(body[:1], body[1:])]
