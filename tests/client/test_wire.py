from __future__ import annotations

import pytest
from hypothesis import given

from gateway.client.wire import Event, Wire, WireError
from gateway.protocol import rfc2217
from gateway.protocol.rfc2217 import Control
from gateway.protocol.telnet_stream import COMMANDS_PER_CALL, MAX_SUBNEGOTIATION_BYTES, double
from tests.support.telnet_wire import cut

WILL, WONT, DO, DONT = (bytes([255, code]) for code in (0xFB, 0xFC, 0xFD, 0xFE))
COM_PORT, BINARY, SGA, ECHO = b"\x2c", b"\x00", b"\x03", b"\x01"


def greeted() -> Wire:
    wire = Wire()
    wire.data_to_send()
    return wire


def receive(wire: Wire, *chunks: bytes) -> list[Event]:
    """The events of these chunks, neighbouring data as one: where data is cut says nothing."""
    events: list[Event] = []
    for event in (event for chunk in chunks for event in wire.receive(chunk)):
        last = events[-1] if events else None
        if isinstance(event, bytes) and isinstance(last, bytes):
            events[-1] = last + event
        else:
            events.append(event)
    return events


def answer(command: rfc2217.Command) -> bytes:
    return rfc2217.encode(command, from_server=True)


def test_it_asks_for_what_it_needs_at_once() -> None:
    asked = Wire().data_to_send()
    for option in (COM_PORT, BINARY, SGA):
        assert WILL + option in asked
        assert DO + option in asked
    assert len(asked) == 3 * 6


def test_agreement_to_what_was_asked_for_needs_no_answer() -> None:
    wire = greeted()
    assert not wire.takes_commands
    agreed = b"".join(DO + option + WILL + option for option in (COM_PORT, BINARY, SGA))
    assert receive(wire, agreed) == []
    assert wire.takes_commands
    assert wire.data_to_send() == b""


def test_a_server_that_refuses_com_port_option_is_no_rfc2217_server() -> None:
    wire = greeted()
    assert receive(wire, DONT + COM_PORT) == []
    assert wire.refuses_commands
    assert not wire.takes_commands


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (WILL + ECHO, DONT + ECHO),
        (DO + ECHO, WONT + ECHO),
        (WONT + ECHO, b""),
        (DONT + ECHO, b""),
        (WONT + BINARY, b""),  # the answer to our own request
        (DO + BINARY + DONT + BINARY, WONT + BINARY),
        (DO + BINARY + DONT + BINARY + DONT + BINARY, WONT + BINARY),
        (WONT + SGA + WILL + SGA, DO + SGA),
        (WILL + b"\xff", DONT + b"\xff"),
    ],
)
def test_each_negotiation_gets_the_answer_that_ends_it(asked: bytes, answered: bytes) -> None:
    wire = greeted()
    assert receive(wire, asked) == []
    assert wire.data_to_send() == answered


def test_data_and_answers_keep_their_order() -> None:
    purged = rfc2217.PurgeData(1)
    stream = b"old" + answer(purged) + b"new"
    assert receive(greeted(), stream) == [b"old", purged, b"new"]


STREAM = (
    b"boot \xff\xff\xff\xff log\r\n"
    + DO
    + COM_PORT
    + answer(rfc2217.SetBaudrate(0x00FF_FF00))
    + b"\xff\xf1"  # NOP
    + answer(rfc2217.NotifyModemstate(255))
    + WILL
    + ECHO
    + double(bytes(range(256)))
    + answer(rfc2217.SetControl(Control.DTR_ON))
    + answer(rfc2217.Signature(b"a\xffb"))
    + b"\xff\xff"
)


EVENTS = [
    b"boot \xff\xff log\r\n",
    rfc2217.SetBaudrate(0x00FF_FF00),
    rfc2217.NotifyModemstate(255),
    bytes(range(256)),
    rfc2217.SetControl(Control.DTR_ON),
    rfc2217.Signature(b"a\xffb"),
    b"\xff",
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_a_stream_means_the_same_wherever_it_is_cut(size: int) -> None:
    wire = greeted()
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert receive(wire, *chunks) == EVENTS
    assert wire.data_to_send() == DONT + ECHO


def test_all_answers_of_one_segment_are_taken() -> None:
    answers = [rfc2217.PurgeData(1)] * (3 * COMMANDS_PER_CALL)
    assert receive(greeted(), b"".join(map(answer, answers))) == answers


def test_what_is_no_answer_is_passed_over() -> None:
    stream = (
        b"a"
        + b"\xff\xfa\x2c\xff\xf0"  # no command
        + b"\xff\xfa\x18\x01\xff\xf0"  # another option's
        + rfc2217.encode(rfc2217.SetBaudrate(9600), from_server=False)  # a client's
        + b"\xff\xfa\x2c\x65\x00\xff\xf1"  # broken off by a NOP
        + b"b"
    )
    assert receive(greeted(), stream) == [b"ab"]


def test_a_stream_that_can_not_be_followed_is_an_error_behind_what_came_before() -> None:
    wire = greeted()
    events = wire.receive(b"last words\xff\xfa\x2c" + b"x" * MAX_SUBNEGOTIATION_BYTES)
    assert next(events) == b"last words"
    with pytest.raises(WireError, match="subnegotiation longer"):
        next(events)


@given(cut())
def test_any_bytes_do_nothing_but_raise_wire_error(chunks: list[bytes]) -> None:
    wire = Wire()
    wire.data_to_send()
    received = 0
    try:
        for chunk in chunks:
            received += len(chunk)
            list(wire.receive(chunk))
    except WireError:
        pass
    assert len(wire.data_to_send()) <= received
