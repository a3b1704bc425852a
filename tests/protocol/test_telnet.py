"""Telnet wire cases, each cut at every byte, and any bytes at all, cut anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.telnet import Data, Event, Telnet
from gateway.protocol.telnet_stream import MAX_NEGOTIATIONS, ProtocolViolation
from tests.support.telnet_wire import (
    ACCEPTS_COM_PORT,
    BINARY,
    COM_PORT,
    ECHO,
    ENABLED,
    KNOWN_COMMANDS,
    NEGOTIATIONS,
    NOP,
    OPTIONS,
    RFC2217_CLIENT,
    SB,
    SGA,
    STATUS,
    STREAMS,
    TM,
    WIRE_CASES,
    command,
    cut,
    do,
    dont,
    will,
    wont,
)


def joined(events: Iterable[Event]) -> list[Event]:
    """The events with neighbouring data made one: how data is cut says nothing."""
    result: list[Event] = []
    for event in events:
        if isinstance(event, Data) and result and isinstance(last := result[-1], Data):
            result[-1] = Data(last.data + event.data)
        else:
            result.append(event)
    return result


def receive(*chunks: bytes, telnet: Telnet | None = None) -> tuple[list[Event], bytes]:
    """All events and all output after these chunks."""
    telnet = telnet or Telnet()
    events: list[Event] = []
    output = b""
    for chunk in chunks:
        events += telnet.receive_data(chunk)
        output += telnet.data_to_send()
    return joined(events), output


@pytest.mark.parametrize("name", WIRE_CASES)
def test_wire_case_whole_and_cut_at_each_byte(name: str) -> None:
    wire, events, output = WIRE_CASES[name]
    assert receive(wire) == (joined(events), output)
    assert receive(*(bytes([byte]) for byte in wire)) == (joined(events), output)
    for at in range(len(wire)):
        assert receive(wire[:at], wire[at:]) == (joined(events), output), at


@pytest.mark.parametrize(
    "code", [code for code in range(255) if code not in {*KNOWN_COMMANDS, SB, *NEGOTIATIONS}]
)
def test_unknown_two_byte_command_is_dropped(code: int) -> None:
    assert receive(b"a" + command(code) + b"b") == ([Data(b"ab")], b"")


@pytest.mark.parametrize("option", range(256))
def test_each_option_is_answered_and_only_ours_are_accepted(option: int) -> None:
    _, answer = receive(do(option))
    assert answer == (will if option in {BINARY, ECHO, SGA, COM_PORT, TM} else wont)(option)
    _, answer = receive(will(option))
    assert answer[:3] == (do if option in {BINARY, SGA, COM_PORT} else dont)(option)
    assert answer[3:] == (will(BINARY) + do(BINARY) if option == COM_PORT else b"")
    for refusal in (dont(option), wont(option)):
        assert receive(refusal) == ([], b""), "what is off stays off without a word"


@pytest.mark.parametrize("option", sorted({*range(256)} - {BINARY, ECHO, SGA, COM_PORT, TM}))
def test_dont_of_a_refused_option_is_not_answered(option: int) -> None:
    telnet = Telnet()
    for _ in range(2):
        assert receive(do(option), telnet=telnet)[1] == wont(option)
        assert receive(dont(option), telnet=telnet) == ([], b"")


@pytest.mark.parametrize("option", [BINARY, ECHO, SGA, COM_PORT])
def test_dont_of_an_enabled_option_is_confirmed_once(option: int) -> None:
    telnet = Telnet()
    for _ in range(2):
        assert receive(do(option), do(option), telnet=telnet)[1] == will(option)
        assert receive(dont(option), dont(option), telnet=telnet)[1] == wont(option)


@pytest.mark.parametrize("option", [BINARY, SGA])
def test_wont_of_an_enabled_option_is_confirmed_once(option: int) -> None:
    telnet = Telnet()
    for _ in range(2):
        assert receive(will(option), will(option), telnet=telnet)[1] == do(option)
        assert receive(wont(option), wont(option), telnet=telnet)[1] == dont(option)


def test_wont_com_port_is_confirmed_once_and_ends_the_clean_path() -> None:
    telnet = Telnet()
    assert receive(RFC2217_CLIENT, telnet=telnet)[1] == ACCEPTS_COM_PORT
    assert receive(wont(COM_PORT) * 2, telnet=telnet)[1] == dont(COM_PORT)
    assert receive(b"\r\0", telnet=telnet)[0] == [Data(b"\r")]


@pytest.mark.parametrize(
    "answers", [(do(ECHO), do(SGA), will(BINARY)), (dont(ECHO), dont(SGA), wont(BINARY))]
)
def test_answers_to_our_console_offers_are_not_answered(answers: tuple[bytes, bytes]) -> None:
    telnet = Telnet()
    telnet.offer_console()
    assert telnet.data_to_send() == will(ECHO) + will(SGA) + do(BINARY)
    assert receive(*answers, telnet=telnet) == ([], b"")


PYSERIAL_OPEN = (do(ECHO), will(SGA), do(SGA), do(COM_PORT), will(COM_PORT))


@pytest.mark.parametrize("order", list(permutations(PYSERIAL_OPEN)), ids=str)
def test_options_asked_in_any_order_are_each_answered_once(order: tuple[bytes, ...]) -> None:
    expected = {will(ECHO), do(SGA), will(SGA), will(COM_PORT), do(COM_PORT)}
    expected |= {will(BINARY), do(BINARY)}
    events, output = receive(*order)
    answers = [output[i : i + 3] for i in range(0, len(output), 3)]
    assert events == [ENABLED]
    assert set(answers) == expected
    assert len(answers) == len(expected)


def test_client_that_negotiates_nothing_gets_its_bytes() -> None:
    telnet = Telnet()
    telnet.offer_console()
    telnet.data_to_send()
    assert telnet.receive_data(b"AT\r\n") == [Data(b"AT\r\n")]
    assert telnet.receive_data(b"AT\r\0") == [Data(b"AT\r\0")]
    assert telnet.escape(b"\x1b[31mOK\r\n\x80 50 %\r60 %") == b"\x1b[31mOK\r\n\x80 50 %\r60 %"
    assert telnet.escape(b"\xff") == b"\xff\xff", "it may be a telnet that has not answered yet"
    assert telnet.data_to_send() == b""


# --- towards the client ---------------------------------------------------------------------


def binary() -> Telnet:
    telnet = Telnet()
    telnet.receive_data(do(BINARY) + will(BINARY))
    telnet.data_to_send()
    return telnet


def nvt() -> Telnet:
    telnet = Telnet()
    telnet.receive_data(command(NOP))
    return telnet


def test_nvt_line_ends_towards_the_client() -> None:
    telnet = nvt()
    sent = [telnet.escape(data) for data in (b"a\r", b"\n", b"b\r", b"c\rd\r\n\r", b"", b"\0")]
    assert sent == [b"a\r", b"\n", b"b\r", b"\0c\r\0d\r\n\r", b"", b"\0\0"]


def test_cr_before_binary_is_forgotten_behind_it() -> None:
    telnet = nvt()
    assert telnet.escape(b"\r") == b"\r"
    telnet.receive_data(do(BINARY))
    assert telnet.escape(b"x") == b"x"
    telnet.receive_data(dont(BINARY))
    assert telnet.escape(b"y") == b"y"


def test_binary_towards_the_client_doubles_iacs_only() -> None:
    everything = bytes(range(256)) + b"\r\0\r\n\r"
    assert binary().escape(everything) == everything.replace(b"\xff", b"\xff\xff")


def test_each_direction_has_its_own_binary() -> None:
    only_out = Telnet()
    only_out.receive_data(do(BINARY))
    assert only_out.escape(b"\ra") == b"\ra"
    assert only_out.receive_data(b"\r\0") == [Data(b"\r")]
    only_in = Telnet()
    only_in.receive_data(will(BINARY))
    assert only_in.escape(b"\ra") == b"\r\0a"
    assert only_in.receive_data(b"\r\0") == [Data(b"\r\0")]


def test_rfc2217_client_that_refuses_binary_gets_nvt() -> None:
    telnet = Telnet()
    telnet.receive_data(RFC2217_CLIENT)
    assert telnet.escape(b"\ra") == b"\ra"
    telnet.receive_data(dont(BINARY))
    assert telnet.escape(b"\ra") == b"\r\0a"
    telnet.receive_data(do(BINARY))
    assert telnet.escape(b"\ra") == b"\ra"


def test_queued_bytes_stand_behind_the_answers() -> None:
    telnet = Telnet()
    telnet.receive_data(do(ECHO))
    telnet.queue(b"framed")
    telnet.receive_data(do(SGA))
    assert telnet.data_to_send() == will(ECHO) + b"framed" + will(SGA)
    assert telnet.data_to_send() == b""


# --- any bytes, cut anywhere ----------------------------------------------------------------


@given(cut())
def test_cuts_change_nothing(chunks: list[bytes]) -> None:
    assert receive(*chunks) == receive(b"".join(chunks))


@pytest.mark.parametrize(
    ("begun", "rest"),
    [
        (b"\xff", b"\xff"),
        (b"\xff\xfd", b"\x2a"),
        (b"\xff\xfa", b"\x2c\x08\xff\xf0"),
        (b"\xff\xfa\x2c\0\xff\xff", b"\xff\xf0"),
        (b"\xff\xfa\x2c\0\xff", b"\xf0"),
    ],
)
def test_a_client_is_amid_a_command_until_its_last_byte(begun: bytes, rest: bytes) -> None:
    telnet = Telnet()
    assert not telnet.is_amid_command
    telnet.receive_data(b"data" + begun)
    assert telnet.is_amid_command
    telnet.receive_data(rest)
    assert not telnet.is_amid_command


@given(cut())
def test_answers_are_bounded(chunks: list[bytes]) -> None:
    telnet = Telnet()
    received = sent = 0
    for chunk in chunks:
        telnet.receive_data(chunk)
        received += len(chunk)
        sent += len(telnet.data_to_send())
        # WILL COM-PORT-OPTION is answered by two offers more; so may be the next one, if the
        # client has answered the first two.
        assert sent <= received + 6


@given(cut(st.binary(max_size=200) | STREAMS))
def test_binary_round_trip_is_identity(chunks: list[bytes]) -> None:
    sender, receiver = binary(), binary()
    wire = b"".join(sender.escape(chunk) for chunk in chunks)
    assert wire == binary().escape(b"".join(chunks))
    data = b"".join(chunks)
    assert receive(wire, telnet=receiver) == ([Data(data)] if data else [], b"")


@given(cut(st.lists(st.sampled_from([b"\r", b"\n", b"\0", b"\xff", b"a"])).map(b"".join)))
def test_nvt_round_trip_keeps_all_but_what_means_enter(chunks: list[bytes]) -> None:
    sender, receiver = nvt(), nvt()
    wires = [sender.escape(chunk) for chunk in chunks]
    data = b"".join(chunks)
    wanted = data.replace(b"\r\n", b"\r")  # which is one Enter
    assert receive(*wires, telnet=receiver)[0] == ([Data(wanted)] if wanted else [])
    assert b"".join(wires) == nvt().escape(data)


REQUESTS = st.tuples(st.booleans(), st.sampled_from([251, 253]), OPTIONS)


@given(st.lists(st.tuples(REQUESTS, st.booleans()), max_size=20))
def test_two_engines_come_to_rest_and_agree(
    steps: list[tuple[tuple[bool, int, int], bool]],
) -> None:
    here, there = Telnet(), Telnet()
    here.offer_console()
    there.offer_console()
    for (by_here, verb, option), deliver in steps:
        asking = here if by_here else there
        asking._negotiator.iac(bytes([verb]), bytes([option]))
        if deliver:
            there.receive_data(here.data_to_send())
    for _ in range(5):
        there.receive_data(here.data_to_send())
        here.receive_data(there.data_to_send())
    assert here.data_to_send() + there.data_to_send() == b""
    for option in (BINARY, ECHO, SGA, COM_PORT):
        for one, other in ((here, there), (there, here)):
            local, remote = one._negotiator.local_option, other._negotiator.remote_option
            assert local.enabled(bytes([option])) == remote.enabled(bytes([option]))


@pytest.mark.parametrize("verb", NEGOTIATIONS)
@pytest.mark.parametrize("option", [BINARY, ECHO, SGA, STATUS, TM, COM_PORT, 255])
def test_client_that_sends_everything_back_comes_to_rest(verb: int, option: int) -> None:
    telnet = Telnet()
    telnet.offer_console()
    telnet.receive_data(command(verb, option))
    for _ in range(5):
        telnet.receive_data(telnet.data_to_send())
    assert telnet.data_to_send() == b""


def test_a_client_that_negotiates_without_end_is_given_up() -> None:
    engine = Telnet()
    for _ in range(MAX_NEGOTIATIONS):
        assert engine.receive_data(do(31)) == []
    (event,) = engine.receive_data(do(31) + b"data")
    assert event == ProtocolViolation("more than 1000 option negotiations", fatal=True)
    engine.data_to_send()
    assert engine.receive_data(do(31) + b"more") == []
    assert engine.data_to_send() == b""
