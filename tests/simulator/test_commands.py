import random
from functools import reduce
from operator import xor

import pytest

from gateway.simulator.commands import (
    Block,
    Request,
    checksum,
    decode_block,
    decode_request,
    encode_response,
    words,
)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 1024, 16384, 16385])
def test_checksum_is_ef_xored_with_every_byte(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert checksum(data) == reduce(xor, data, 0xEF)


def test_a_request_is_taken_apart() -> None:
    frame = bytes.fromhex("000a0400efbe000000100040")
    assert decode_request(frame) == Request(0x0A, 4, 0xBEEF, bytes.fromhex("00100040"))


@pytest.mark.parametrize("frame", ["", "000a0400000000", "010a040000000000"])
def test_what_is_no_request_is_none(frame: str) -> None:
    assert decode_request(bytes.fromhex(frame)) is None


def test_a_response_is_what_an_esp32_sends() -> None:
    # Recorded from a real chip: READ_REG of the magic value.
    expected = bytes.fromhex("010a0400831df00000000000")
    assert encode_response(0x0A, 0x00F01D83, bytes(4)) == expected


def test_a_block_is_taken_apart() -> None:
    assert decode_block(bytes.fromhex("02000000 03000000 00000000 00000000 abcd")) == Block(
        2, 3, b"\xab\xcd"
    )
    assert decode_block(bytes(15)) is None


def test_words_are_little_endian() -> None:
    assert words(bytes.fromhex("01000000 00000080 ff")) == (1, 0x80000000)
