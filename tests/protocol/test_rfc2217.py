"""COM-PORT-OPTION commands: what is encoded is decoded again, and nothing else is."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import rfc2217
from gateway.protocol.rfc2217 import Command, Malformed

ONE_OCTET: dict[int, Callable[[int], Command]] = {
    2: rfc2217.SetDatasize,
    3: rfc2217.SetParity,
    4: rfc2217.SetStopsize,
    5: rfc2217.SetControl,
    6: rfc2217.NotifyLinestate,
    7: rfc2217.NotifyModemstate,
    10: rfc2217.SetLinestateMask,
    11: rfc2217.SetModemstateMask,
    12: rfc2217.PurgeData,
}
NOTIFICATIONS = {6, 7}
WITHOUT_VALUE: dict[int, Command] = {
    8: rfc2217.FlowcontrolSuspend(),
    9: rfc2217.FlowcontrolResume(),
}
CONTROLS = (
    "REQUEST_FLOW FLOW_NONE FLOW_XONXOFF FLOW_HARDWARE REQUEST_BREAK BREAK_ON BREAK_OFF "
    "REQUEST_DTR DTR_ON DTR_OFF REQUEST_RTS RTS_ON RTS_OFF REQUEST_FLOW_IN FLOW_IN_NONE "
    "FLOW_IN_XONXOFF FLOW_IN_HARDWARE FLOW_DCD FLOW_IN_DTR FLOW_DSR"
)
#: From the highest bit down.
LINESTATES = (
    "TIMEOUT TRANSMIT_SHIFT_EMPTY TRANSMIT_HOLDING_EMPTY BREAK FRAMING_ERROR PARITY_ERROR OVERRUN "
    "DATA_READY"
)
MODEMSTATES = "CD RI DSR CTS DELTA_CD TRAILING_EDGE_RI DELTA_DSR DELTA_CTS"

#: Added to a client's code by the access server (RFC 2217 section 2).
OFFSETS = [pytest.param(0, id="client"), pytest.param(100, id="server")]


def payload_of(wire: bytes) -> bytes:
    """What telnet hands on of a subnegotiation: between option code and IAC SE, un-doubled."""
    assert wire[:3] == b"\xff\xfa\x2c"
    assert wire[-2:] == b"\xff\xf0"
    body = wire[3:-2]
    assert body.count(b"\xff") == 2 * body.count(b"\xff\xff"), "every IAC is doubled"
    return body.replace(b"\xff\xff", b"\xff")


def commands() -> st.SearchStrategy[Command]:
    octets = st.integers(0, 255)
    return st.one_of(
        *(st.builds(command, octets) for command in ONE_OCTET.values()),
        st.sampled_from(list(WITHOUT_VALUE.values())),
        st.builds(rfc2217.SetBaudrate, st.integers(0, 2**32 - 1)),
        st.builds(rfc2217.Signature, st.binary(max_size=rfc2217.MAX_SIGNATURE_BYTES)),
    )


def test_values_are_those_of_rfc_2217() -> None:
    """RFC 2217 section 3: SET-CONTROL, NOTIFY-LINESTATE, NOTIFY-MODEMSTATE, PURGE-DATA."""
    assert [each.value for each in rfc2217.Control] == list(range(20))
    assert [each.name for each in rfc2217.Control] == CONTROLS.split()
    bits = [1 << bit for bit in reversed(range(8))]
    assert [rfc2217.Linestate[name].value for name in LINESTATES.split()] == bits
    assert [rfc2217.Modemstate[name].value for name in MODEMSTATES.split()] == bits
    buffers = {each.name: each.value for each in rfc2217.PurgeBuffers}
    assert buffers == {"RECEIVE": 1, "TRANSMIT": 2, "BOTH": 3}


@given(commands(), st.booleans())
def test_decode_is_the_inverse_of_encode(command: Command, from_server: bool) -> None:
    wire = rfc2217.encode(command, from_server=from_server)
    assert rfc2217.decode(payload_of(wire), from_server=from_server) == command


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("code", ONE_OCTET)
def test_every_value_of_a_one_octet_command(code: int, offset: int) -> None:
    for value in range(256):
        command = ONE_OCTET[code](value)
        wire = rfc2217.encode(command, from_server=offset == 100)
        octet = b"\xff\xff" if value == 255 else bytes([value])
        assert wire == bytes([255, 250, 44, code + offset]) + octet + b"\xff\xf0"
        payload = bytes([code + offset, value])
        assert rfc2217.decode(payload, from_server=offset == 100) == command


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize(
    "baudrate", [0, 50, 255, 9600, 115200, 0xFF00FF, 12_000_000, 0xFFFFFFFE, 2**32 - 1]
)
def test_baudrate_is_four_octets_in_network_order(baudrate: int, offset: int) -> None:
    payload = bytes([1 + offset]) + struct.pack("!I", baudrate)
    command = rfc2217.SetBaudrate(baudrate)
    assert rfc2217.decode(payload, from_server=offset == 100) == command
    assert payload_of(rfc2217.encode(command, from_server=offset == 100)) == payload


def test_iacs_in_values_are_doubled() -> None:
    assert rfc2217.encode(rfc2217.SetBaudrate(2**32 - 1)) == (
        b"\xff\xfa\x2c\x65" + b"\xff" * 8 + b"\xff\xf0"
    )
    assert rfc2217.encode(rfc2217.Signature(b"a\xffb")) == b"\xff\xfa\x2c\x64a\xff\xffb\xff\xf0"


@pytest.mark.parametrize("offset", OFFSETS)
def test_commands_without_value(offset: int) -> None:
    for code, command in WITHOUT_VALUE.items():
        wire = rfc2217.encode(command, from_server=offset == 100)
        assert wire == bytes([255, 250, 44, code + offset, 255, 240])
        assert rfc2217.decode(bytes([code + offset]), from_server=offset == 100) == command


def test_signature_is_cut_both_ways() -> None:
    long = b"x" * (rfc2217.MAX_SIGNATURE_BYTES + 1)
    assert rfc2217.decode(b"\0" + long) == rfc2217.Signature(long[:-1])
    assert rfc2217.decode(b"\x64" + long, from_server=True) == rfc2217.Signature(long[:-1])
    assert payload_of(rfc2217.encode(rfc2217.Signature(long))) == b"\x64" + long[:-1]
    assert rfc2217.decode(b"\0") == rfc2217.Signature(b"")


@pytest.mark.parametrize("code", sorted(NOTIFICATIONS))
def test_client_may_ask_for_a_state_without_an_octet(code: int) -> None:
    assert rfc2217.decode(bytes([code])) == ONE_OCTET[code](0)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("code", sorted(set(ONE_OCTET) - NOTIFICATIONS))
def test_command_without_its_octet_is_malformed(code: int, offset: int) -> None:
    payload = bytes([code + offset])
    expected = Malformed(f"command {code} without a value")
    assert rfc2217.decode(payload, from_server=offset == 100) == expected


@pytest.mark.parametrize("octets", range(4))
def test_short_baudrate_is_malformed(octets: int) -> None:
    expected = Malformed(f"SET-BAUDRATE with {octets} of 4 octets")
    assert rfc2217.decode(b"\x01" + b"\0" * octets) == expected


def test_empty_subnegotiation_is_malformed() -> None:
    assert rfc2217.decode(b"") == Malformed("no command")


@pytest.mark.parametrize("code", range(13, 256))
def test_unknown_command_is_malformed(code: int) -> None:
    assert rfc2217.decode(bytes([code, 1, 2, 3, 4])) == Malformed(f"unknown command {code}")


@pytest.mark.parametrize("code", [*range(100), *range(113, 256)])
def test_unknown_command_of_a_server_is_malformed(code: int) -> None:
    decoded = rfc2217.decode(bytes([code, 1, 2, 3, 4]), from_server=True)
    assert decoded == Malformed(f"unknown command {code}")


@pytest.mark.parametrize("code", [1, *ONE_OCTET, *WITHOUT_VALUE])
def test_octets_behind_the_value_are_ignored(code: int) -> None:
    value = b"\0\0\x25\x80"
    assert rfc2217.decode(bytes([code]) + value + b"more") == rfc2217.decode(bytes([code]) + value)


@given(st.binary(max_size=300))
def test_any_payload_decodes_to_a_command_or_a_reason(payload: bytes) -> None:
    decoded = rfc2217.decode(payload)
    if isinstance(decoded, Malformed):
        assert decoded.reason
    else:
        wire = rfc2217.encode(decoded, from_server=False)
        assert rfc2217.decode(payload_of(wire)) == decoded
