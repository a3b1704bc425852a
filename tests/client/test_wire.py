from __future__ import annotations

import random

import pytest

from gateway.client.wire import MAX_NEGOTIATIONS, MAX_SUBNEGOTIATION_BYTES, Event, Wire, WireError
from gateway.protocol import rfc2217
from gateway.protocol.iac import double
from gateway.protocol.rfc2217 import Control

WILL, WONT, DO, DONT = (bytes([255, code]) for code in (0xFB, 0xFC, 0xFD, 0xFE))
COM_PORT, BINARY, SGA, ECHO = b"\x2c", b"\x00", b"\x03", b"\x01"


def greeted() -> Wire:
    wire = Wire()
    wire.data_to_send()
    return wire


def joined(events: list[Event]) -> list[Event]:
    """Neighbouring pieces of data as one: where a stream is cut says nothing."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, bytes) and isinstance(last, bytes):
            result[-1] = last + event
        else:
            result.append(event)
    return result


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
    assert wire.receive(agreed) == []
    assert wire.takes_commands
    assert wire.data_to_send() == b""


def test_a_server_that_refuses_com_port_option_is_no_rfc2217_server() -> None:
    wire = greeted()
    wire.receive(DONT + COM_PORT)
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
    assert wire.receive(asked) == []
    assert wire.data_to_send() == answered


def test_data_and_answers_keep_their_order() -> None:
    purged = rfc2217.PurgeData(1)
    stream = b"old" + answer(purged) + b"new"
    assert greeted().receive(stream) == [b"old", purged, b"new"]


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


def test_a_stream_means_the_same_wherever_it_is_cut() -> None:
    whole = greeted()
    expected = whole.receive(STREAM)
    assert expected == [
        b"boot \xff\xff log\r\n",
        rfc2217.SetBaudrate(0x00FF_FF00),
        rfc2217.NotifyModemstate(255),
        bytes(range(256)),
        rfc2217.SetControl(Control.DTR_ON),
        rfc2217.Signature(b"a\xffb"),
        b"\xff",
    ]
    answered = whole.data_to_send()
    for cut in range(len(STREAM) + 1):
        wire = greeted()
        events = [*wire.receive(STREAM[:cut]), *wire.receive(STREAM[cut:])]
        assert joined(events) == expected, cut
        assert wire.data_to_send() == answered
    wire = greeted()
    one_by_one = [event for byte in STREAM for event in wire.receive(bytes([byte]))]
    assert joined(one_by_one) == expected


def test_what_is_no_answer_is_passed_over() -> None:
    stream = (
        b"a"
        + b"\xff\xfa\x2c\xff\xf0"  # no command
        + b"\xff\xfa\x18\x01\xff\xf0"  # another option's
        + rfc2217.encode(rfc2217.SetBaudrate(9600), from_server=False)  # a client's
        + b"\xff\xfa\x2c\x65\x00\xff\xf1"  # broken off by a NOP
        + b"b"
    )
    assert joined(greeted().receive(stream)) == [b"ab"]


def test_a_subnegotiation_without_end_is_given_up() -> None:
    wire = greeted()
    wire.receive(b"\xff\xfa\x2c" + b"x" * (MAX_SUBNEGOTIATION_BYTES - 1))
    with pytest.raises(WireError, match="subnegotiation longer"):
        wire.receive(b"x")


def test_negotiation_without_end_is_given_up() -> None:
    wire = greeted()
    wire.receive((DO + ECHO) * MAX_NEGOTIATIONS)
    with pytest.raises(WireError, match="negotiations"):
        wire.receive(DO + ECHO)


def test_random_bytes_never_do_anything_but_raise_wire_error() -> None:
    rng = random.Random(2217)
    codes = bytes([255, 0xFA, 0xF0, 0xFB, 0xFC, 0xFD, 0xFE, 44, 0, 3, 101, 105, 107, 65])
    for _ in range(300):
        wire = Wire()
        try:
            for _ in range(20):
                wire.receive(bytes(rng.choices(codes, k=rng.randrange(40))))
        except WireError:
            continue
