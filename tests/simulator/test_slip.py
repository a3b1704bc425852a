import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.slip import SlipReader, decode, encode

#: Half of the bytes are those that mean something.
_SLIPPERY = st.lists(st.sampled_from([0xC0, 0xDB, 0xDC, 0xDD, 0, 1, 2, 3])).map(bytes)


def test_end_and_escape_are_escaped() -> None:
    assert encode(b"a\xc0b\xdbc") == b"\xc0a\xdb\xdcb\xdb\xddc\xc0"


@given(st.lists(_SLIPPERY.filter(bool)), st.data())
def test_payloads_survive_any_segmentation(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(encode, payloads))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    reader = SlipReader(1000)
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += reader.receive_data(stream[start:end])
    assert received == payloads


@given(_SLIPPERY)
def test_any_bytes_can_be_received(garbage: bytes) -> None:
    reader = SlipReader(1000)
    reader.receive_data(garbage)
    # Whatever state that left it in, two frames are enough to be in step again.
    assert reader.receive_data(encode(b"lost") + encode(b"found"))[-1] == b"found"


def test_garbage_between_frames_is_ignored() -> None:
    stream = b"\x00boot log\xff" + encode(b"one") + b"noise" + encode(b"two")
    assert SlipReader(100).receive_data(stream) == [b"one", b"two"]


def test_empty_frames_are_no_frames() -> None:
    assert SlipReader(100).receive_data(b"\xc0\xc0\xc0one\xc0") == [b"one"]


@pytest.mark.parametrize("content", [b"\xdb", b"a\xdbb", b"\xdb\xdb\xdc", b"\xdb\xdc\xdb"])
def test_an_invalid_escape_drops_its_frame_alone(content: bytes) -> None:
    assert decode(content) is None
    assert SlipReader(100).receive_data(b"\xc0" + content + b"\xc0" + encode(b"x")) == [b"x"]


@pytest.mark.parametrize("byte", [b"a", b"\xc0"])
def test_frames_are_taken_up_to_the_limit(byte: bytes) -> None:
    reader = SlipReader(10)
    assert reader.receive_data(encode(byte * 10)) == [byte * 10]
    assert reader.receive_data(encode(byte * 11)) == []
    assert reader.receive_data(encode(b"next")) == [b"next"]


def test_a_frame_without_end_is_not_kept() -> None:
    reader = SlipReader(10)
    reader.receive_data(b"\xc0")
    for _ in range(100):
        reader.receive_data(bytes(1000))
    assert len(reader._content) <= 2 * 10 + 1
    assert reader.receive_data(b"\xc0" + encode(b"next")) == [b"next"]
