import random

import pytest

from gateway.protocol.iac import double, undouble

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


def slowly_doubled(data: bytes) -> bytes:
    return b"".join(bytes([byte]) * (2 if byte == 255 else 1) for byte in data)


@pytest.mark.parametrize("data", CASES.values(), ids=CASES)
def test_each_iac_is_doubled_and_nothing_else(data: bytes) -> None:
    assert double(data) == slowly_doubled(data)


@pytest.mark.parametrize("data", CASES.values(), ids=CASES)
def test_undoubling_gives_the_data_back(data: bytes) -> None:
    assert undouble(double(data)) == (data, b"")


@pytest.mark.parametrize("data", CASES.values(), ids=CASES)
def test_a_stream_may_end_inside_a_pair(data: bytes) -> None:
    assert undouble(double(data) + b"\xff") == (data, b"\xff")


@pytest.mark.parametrize("command", [b"\xff\xf1", b"\xff\xfa,", b"\xff\xfb\x2c", b"\xff\0"])
@pytest.mark.parametrize("before", CASES.values(), ids=CASES)
def test_a_stream_with_a_command_in_it_is_not_only_data(before: bytes, command: bytes) -> None:
    assert undouble(double(before) + command) is None
    assert undouble(double(before) + command + double(before)) is None
