"""The access server: every RFC 2217 request, what it asks for and what is answered."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import rfc2217
from gateway.protocol.access_server import (
    AccessServer,
    BreakRequest,
    ClientIdentified,
    Console,
    ConsoleRequest,
    Event,
    LinesRequest,
    OutputSuspended,
    PortRequest,
    PortStatus,
    PurgeRequest,
    RawPipe,
    SerialData,
    SettingsChange,
    SettingsRequest,
    StateRequest,
    StatesWatched,
    Violation,
)
from gateway.protocol.reset import Lines
from gateway.protocol.rfc2217 import Command, Linestate, Modemstate
from gateway.protocol.serial_settings import FlowControl, Parity, SerialSettings, StopBits

#: A port that carries nothing out and is not at its defaults: an answer that only repeats the
#: question is told from the truth.
STUBBORN = PortStatus(
    SerialSettings(9600, 7, Parity.EVEN, StopBits.TWO, FlowControl.XONXOFF),
    Lines(dtr=True, rts=False),
    break_on=True,
)
OFFERS = b"\xff\xfb\x01\xff\xfb\x03\xff\xfd\x00"
CLIENT = b"\xff\xfb\x2c"


def connected() -> AccessServer:
    """A server whose client has agreed to COM-PORT-OPTION."""
    server = AccessServer("gateway")
    server.receive_data(CLIENT)
    server.data_to_send()
    return server


def from_client(command: Command) -> bytes:
    return rfc2217.encode(command, from_server=False)


def from_server(*commands: Command) -> bytes:
    return b"".join(rfc2217.encode(command) for command in commands)


def only_event(server: AccessServer, command: Command) -> Event:
    [event] = server.receive_data(from_client(command))
    return event


def carried_out(request: PortRequest, status: PortStatus) -> PortStatus:
    """The state of a port that does all it is asked for."""
    match request:
        case SettingsRequest():
            return replace(status, settings=request.apply_to(status.settings))
        case LinesRequest(_, dtr, rts):
            return replace(status, lines=status.lines.with_changes(dtr, rts))
        case BreakRequest(_, on):
            return status if on is None else replace(status, break_on=on)
    return status


def answers(request: Command, status: PortStatus, *, obeys: bool) -> tuple[PortRequest, bytes]:
    """What a client's command asks of the port, and the bytes of the acknowledgement."""
    server = connected()
    event = only_event(server, request)
    assert isinstance(event, PortRequest)
    assert server.data_to_send() == b"", "no acknowledgement before the port has answered"
    server.answer(event, carried_out(event, status) if obeys else status)
    return event, server.data_to_send()


Sb, Sd, Sp, Ss, Sc = (
    rfc2217.SetBaudrate,
    rfc2217.SetDatasize,
    rfc2217.SetParity,
    rfc2217.SetStopsize,
    rfc2217.SetControl,
)

#: (request, change asked for, acknowledgement of a port that obeys, of one that doesn't)
SETTINGS: list[tuple[Command, SettingsChange, Command, Command]] = [
    (Sb(115200), {"baudrate": 115200}, Sb(115200), Sb(9600)),
    (Sb(1), {"baudrate": 1}, Sb(1), Sb(9600)),
    (Sb(0xFF00FF), {"baudrate": 0xFF00FF}, Sb(0xFF00FF), Sb(9600)),
    (Sb(2**32 - 1), {"baudrate": 2**32 - 1}, Sb(2**32 - 1), Sb(9600)),
    (Sb(0), {}, Sb(9600), Sb(9600)),
    *((Sd(size), SettingsChange(bytesize=size), Sd(size), Sd(7)) for size in (5, 6, 7, 8)),
    *((Sd(size), SettingsChange(), Sd(7), Sd(7)) for size in (0, 1, 4, 9, 255)),
    (Sp(1), {"parity": Parity.NONE}, Sp(1), Sp(3)),
    (Sp(2), {"parity": Parity.ODD}, Sp(2), Sp(3)),
    (Sp(3), {"parity": Parity.EVEN}, Sp(3), Sp(3)),
    (Sp(4), {"parity": Parity.MARK}, Sp(4), Sp(3)),
    (Sp(5), {"parity": Parity.SPACE}, Sp(5), Sp(3)),
    *((Sp(parity), SettingsChange(), Sp(3), Sp(3)) for parity in (0, 6, 255)),
    (Ss(1), {"stopbits": StopBits.ONE}, Ss(1), Ss(2)),
    (Ss(2), {"stopbits": StopBits.TWO}, Ss(2), Ss(2)),
    (Ss(3), {"stopbits": StopBits.ONE_POINT_FIVE}, Ss(3), Ss(2)),
    *((Ss(stopsize), SettingsChange(), Ss(2), Ss(2)) for stopsize in (0, 4, 255)),
    (Sc(0), {}, Sc(2), Sc(2)),
    (Sc(1), {"flow_control": FlowControl.NONE}, Sc(1), Sc(2)),
    (Sc(2), {"flow_control": FlowControl.XONXOFF}, Sc(2), Sc(2)),
    (Sc(3), {"flow_control": FlowControl.RTSCTS}, Sc(3), Sc(2)),
    # One flow control for both directions: the inbound ones tell what is in force.
    *((Sc(control), SettingsChange(), Sc(15), Sc(15)) for control in (13, 14, 15, 16, 18)),
    *((Sc(control), SettingsChange(), Sc(2), Sc(2)) for control in (17, 19)),
]

#: (request, DTR, RTS asked for, acknowledgement of a port that obeys, of one that doesn't)
LINES = [
    (Sc(7), None, None, Sc(8), Sc(8)),
    (Sc(8), True, None, Sc(8), Sc(8)),
    (Sc(9), False, None, Sc(9), Sc(8)),
    (Sc(10), None, None, Sc(12), Sc(12)),
    (Sc(11), None, True, Sc(11), Sc(12)),
    (Sc(12), None, False, Sc(12), Sc(12)),
]
#: (request, break asked for, acknowledgement of a port that obeys, of one that doesn't)
BREAKS = [
    (Sc(4), None, Sc(5), Sc(5)),
    (Sc(5), True, Sc(5), Sc(5)),
    (Sc(6), False, Sc(6), Sc(5)),
]


def test_settings_have_the_words_of_the_configuration_and_suit_an_esp_s_boot_log() -> None:
    assert [word.value for word in Parity] == ["none", "odd", "even", "mark", "space"]
    assert [word.value for word in StopBits] == ["1", "1.5", "2"]
    assert [word.value for word in FlowControl] == ["none", "rtscts", "xonxoff"]
    assert str(SerialSettings()) == "115200 8N1"


@pytest.mark.parametrize(("request_", "change", "obeyed", "refused"), SETTINGS, ids=str)
def test_setting_is_asked_for_and_answered_with_what_is_in_force(
    request_: Command, change: SettingsChange, obeyed: Command, refused: Command
) -> None:
    event = SettingsRequest(request_, change)
    assert answers(request_, STUBBORN, obeys=True) == (event, from_server(obeyed))
    assert answers(request_, STUBBORN, obeys=False) == (event, from_server(refused))


@pytest.mark.parametrize("flow", FlowControl)
def test_inbound_flow_control_is_answered_truthfully(flow: FlowControl) -> None:
    status = replace(STUBBORN, settings=SerialSettings(flow_control=flow))
    code = {FlowControl.NONE: 1, FlowControl.XONXOFF: 2, FlowControl.RTSCTS: 3}[flow]
    assert answers(Sc(0), status, obeys=False)[1] == from_server(Sc(code))
    assert answers(Sc(13), status, obeys=False)[1] == from_server(Sc(code + 13))


@pytest.mark.parametrize(("request_", "dtr", "rts", "obeyed", "refused"), LINES, ids=str)
def test_line_is_asked_for_and_answered_with_what_is_in_force(
    request_: Command, dtr: bool | None, rts: bool | None, obeyed: Command, refused: Command
) -> None:
    event = LinesRequest(request_, dtr, rts)
    assert answers(request_, STUBBORN, obeys=True) == (event, from_server(obeyed))
    assert answers(request_, STUBBORN, obeys=False) == (event, from_server(refused))


@pytest.mark.parametrize(("request_", "on", "obeyed", "refused"), BREAKS, ids=str)
def test_break_is_asked_for_and_answered_with_what_is_in_force(
    request_: Command, on: bool | None, obeyed: Command, refused: Command
) -> None:
    event = BreakRequest(request_, on)
    assert answers(request_, STUBBORN, obeys=True) == (event, from_server(obeyed))
    assert answers(request_, STUBBORN, obeys=False) == (event, from_server(refused))


@pytest.mark.parametrize(("value", "receive", "transmit"), [(1, 1, 0), (2, 0, 1), (3, 1, 1)])
def test_purge_is_asked_for_and_answered(value: int, receive: int, transmit: int) -> None:
    command = rfc2217.PurgeData(value)
    event = PurgeRequest(command, bool(receive), bool(transmit))
    assert answers(command, STUBBORN, obeys=True) == (event, from_server(command))


@pytest.mark.parametrize("value", [0, 4, 255])
def test_undefined_purge_is_a_violation_without_answer(value: int) -> None:
    server = connected()
    expected = Violation(f"PURGE-DATA with undefined value {value}", fatal=False)
    assert only_event(server, rfc2217.PurgeData(value)) == expected
    assert server.data_to_send() == b""


def test_each_control_is_defined_up_to_19() -> None:
    for value in range(256):
        event = only_event(connected(), Sc(value))
        undefined = Violation(f"SET-CONTROL with undefined value {value}", fatal=False)
        assert (event == undefined) == (value > 19)


@pytest.mark.parametrize(
    "payload", [b"", b"\x01\0\0", b"\x02", b"\x0d", b"\x63", b"\x71", b"\xc8\x01"]
)
def test_malformed_command_is_a_violation_without_answer(payload: bytes) -> None:
    server = connected()
    [event] = server.receive_data(b"\xff\xfa\x2c" + payload + b"\xff\xf0")
    assert isinstance(event, Violation)
    assert event.reason.startswith("COM-PORT-OPTION: ")
    assert not event.fatal
    assert server.data_to_send() == b""


@pytest.mark.parametrize("mask", [0, 1, 16, 254, 255])
def test_masks_are_confirmed_and_decide_what_is_notified(mask: int) -> None:
    server = connected()
    line_mask, modem_mask = rfc2217.SetLinestateMask(mask), rfc2217.SetModemstateMask(mask)
    assert only_event(server, line_mask) == StatesWatched(mask, 255)
    assert only_event(server, modem_mask) == StatesWatched(mask, mask)
    assert server.data_to_send() == from_server(line_mask, modem_mask)
    server.notify_linestate(Linestate.BREAK | Linestate.DATA_READY)
    server.notify_modemstate(Modemstate.CTS | Modemstate.DELTA_CTS)
    notified = mask & 17
    expected = (rfc2217.NotifyLinestate(notified), rfc2217.NotifyModemstate(notified))
    assert server.data_to_send() == (from_server(*expected) if notified else b"")


def test_masks_at_first_are_no_line_state_and_all_modem_state() -> None:
    server = AccessServer("gateway")
    assert StatesWatched(0, 255) in server.receive_data(CLIENT)
    server.data_to_send()
    server.notify_linestate(Linestate.OVERRUN)
    assert server.data_to_send() == b""
    server.notify_modemstate(Modemstate.CD)
    assert server.data_to_send() == from_server(rfc2217.NotifyModemstate(128))


@pytest.mark.parametrize("command", [rfc2217.NotifyLinestate(0), rfc2217.NotifyModemstate(0)])
def test_poll_of_a_state_asks_for_it(command: Command) -> None:
    assert only_event(connected(), command) == StateRequest(command)


def test_polled_state_is_told_whatever_the_masks() -> None:
    server = connected()
    server.receive_data(from_client(rfc2217.SetModemstateMask(0)))
    server.data_to_send()
    server.notify_linestate(Linestate.BREAK, requested=True)
    server.notify_modemstate(Modemstate.CTS, requested=True)
    server.notify_modemstate(Modemstate(0), requested=True)
    assert server.data_to_send() == from_server(
        rfc2217.NotifyLinestate(16), rfc2217.NotifyModemstate(16), rfc2217.NotifyModemstate(0)
    )


def test_signature_is_told_when_asked_for_and_taken_when_given() -> None:
    server = connected()
    assert server.receive_data(from_client(rfc2217.Signature(b""))) == []
    assert server.data_to_send() == from_server(rfc2217.Signature(b"gateway"))
    given_one = rfc2217.Signature(b"sredird\n\xff")
    assert only_event(server, given_one) == ClientIdentified("sredird\n\\xff")
    assert server.data_to_send() == b""


def test_suspend_and_resume_are_asked_for_and_not_acknowledged() -> None:
    server = connected()
    assert only_event(server, rfc2217.FlowcontrolSuspend()) == OutputSuspended(suspended=True)
    assert only_event(server, rfc2217.FlowcontrolResume()) == OutputSuspended(suspended=False)
    assert server.data_to_send() == b"", "RFC 2217 has no acknowledgement for these"


def test_client_without_com_port_option_is_never_sent_any() -> None:
    server = AccessServer("gateway")
    assert server.data_to_send() == OFFERS
    assert server.receive_data(b"AT\r\n") == [SerialData(b"AT\r\n")]
    server.notify_modemstate(Modemstate.CTS, requested=True)
    server.notify_linestate(Linestate.BREAK, requested=True)
    assert server.data_to_send() == b""
    assert server.takes_text
    assert server.escape(b"OK\r\n") == b"OK\r\n"


@pytest.mark.parametrize("farewell", [b"\xff\xfc\x2c", b"\xff\xfd\x2c\xff\xfe\x2c"])
def test_client_that_ends_com_port_option_is_told_nothing_until_it_begins_again(
    farewell: bytes,
) -> None:
    server = connected()
    server.receive_data(from_client(rfc2217.SetLinestateMask(255)))
    assert server.receive_data(farewell) == [StatesWatched(0, 0)]
    assert server.takes_text
    server.data_to_send()
    server.notify_modemstate(Modemstate.CTS, requested=True)
    server.notify_linestate(Linestate.BREAK)
    assert server.data_to_send() == b""
    assert server.receive_data(CLIENT + b"\xff\xfd\x2c") == [StatesWatched(255, 255)]
    assert not server.takes_text


def test_masks_of_a_client_without_com_port_option_watch_nothing_yet() -> None:
    server = AccessServer("gateway")
    masks = from_client(rfc2217.SetLinestateMask(16)) + from_client(rfc2217.SetModemstateMask(32))
    assert server.receive_data(masks) == [StatesWatched(0, 0)] * 2
    assert server.receive_data(CLIENT) == [StatesWatched(16, 32)]


def test_two_access_servers_do_not_answer_each_other_for_ever() -> None:
    here, there = connected(), connected()
    wire = from_server(rfc2217.NotifyModemstate(0), Sb(9600), Sc(8), rfc2217.Signature(b""))
    for _ in range(3):
        assert all(isinstance(event, Violation) for event in there.receive_data(wire))
        wire = there.data_to_send()
        here, there = there, here
    assert wire == b""


def test_console_functions_become_requests_or_the_bytes_a_terminal_sends() -> None:
    wire = b"".join(b"\xff" + bytes([code]) for code in (246, 243, 245, 244, 247, 248, 241, 242))
    assert AccessServer("gateway").receive_data(wire) == [
        ConsoleRequest(Console.ARE_YOU_THERE),
        ConsoleRequest(Console.SEND_BREAK),
        ConsoleRequest(Console.ABORT_OUTPUT),
        SerialData(b"\x03"),
        SerialData(b"\x7f"),
        SerialData(b"\x15"),
    ]


def test_events_keep_the_order_of_the_stream() -> None:
    server = connected()
    assert not server.takes_text
    wire = b"before" + from_client(Sb(9600)) + b"between" + from_client(Sc(9)) + b"after"
    assert server.receive_data(wire) == [
        SerialData(b"before"),
        SettingsRequest(Sb(9600), {"baudrate": 9600}),
        SerialData(b"between"),
        LinesRequest(Sc(9), dtr=False),
        SerialData(b"after"),
    ]


def test_never_ending_subnegotiation_is_fatal() -> None:
    [event] = connected().receive_data(b"\xff\xfa\x2c" + b"x" * 1000)
    assert isinstance(event, Violation)
    assert event.fatal


WIRE = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.binary(max_size=7).map(
            lambda body: b"\xff\xfa\x2c" + body.replace(b"\xff", b"\xff\xff") + b"\xff\xf0"
        ),
        st.builds(lambda *codes: bytes([255, *codes]), st.integers(240, 254), st.just(44)),
        st.builds(lambda code, value: from_client(code(value)), st.just(Sc), st.integers(0, 255)),
    ),
    max_size=30,
).map(b"".join)


@given(WIRE, st.integers(0, 300))
def test_any_bytes_give_events_that_can_be_answered(wire: bytes, cut: int) -> None:
    whole, halves = AccessServer("gateway"), AccessServer("gateway")
    events = whole.receive_data(wire)
    others = halves.receive_data(wire[:cut]) + halves.receive_data(wire[cut:])
    data = b"".join(event.data for event in events if isinstance(event, SerialData))
    assert data == b"".join(event.data for event in others if isinstance(event, SerialData))
    rest = [event for event in events if not isinstance(event, SerialData)]
    assert rest == [event for event in others if not isinstance(event, SerialData)]
    assert whole.data_to_send() == halves.data_to_send()
    for event in rest:
        assert isinstance(event, get_args(Event))
        if isinstance(event, PortRequest):
            whole.answer(event, STUBBORN)
            size = struct.calcsize("!I") * 2 + 6
            assert 0 < len(whole.data_to_send()) <= size


@given(st.binary())
def test_every_byte_is_data_both_ways_and_nothing_is_added(data: bytes) -> None:
    pipe = RawPipe()
    assert pipe.receive_data(data) == ([SerialData(data)] if data else [])
    assert pipe.escape(data) == data
    assert pipe.data_to_send() == b""
