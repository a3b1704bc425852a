"""pyserial's own RFC 2217 client against the access server: neither may have a complaint."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import serial
import serial.rfc2217

from gateway.protocol.access_server import LinesRequest, PurgeRequest, Violation
from gateway.protocol.reset import BOTH, IDLE, Lines
from gateway.protocol.rfc2217 import Modemstate
from gateway.protocol.serial_settings import FlowControl, Parity, SerialSettings, StopBits
from tests.support import client_sequences as clients
from tests.support.loopback_access_server import LoopbackAccessServer

# pyserial 3.5 itself uses what Python has deprecated; every other warning is an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore:setDaemon:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:setName:DeprecationWarning"),
]

EVERYTHING = bytes(range(256)) + b"\r\0\r\n\r\xff\xff\xff"


@pytest.fixture
def server() -> Iterator[LoopbackAccessServer]:
    with LoopbackAccessServer() as running:
        yield running
        assert not [event for event in running.events if isinstance(event, Violation)]


def connect(server: LoopbackAccessServer, options: str = "") -> serial.rfc2217.Serial:
    return serial.rfc2217.Serial(server.url(options), 115200, timeout=5)


@pytest.mark.parametrize("options", ["", "?ign_set_control"])
def test_open_and_close_send_what_the_recorded_sequences_say(
    server: LoopbackAccessServer, options: str
) -> None:
    connect(server, options).close()
    sent = [
        event.command for event in server.events if isinstance(event, LinesRequest | PurgeRequest)
    ]
    controls = [getattr(command, "control", None) for command in sent]
    assert controls == [step.control for step in clients.OPEN]
    assert server.status.lines == BOTH
    assert server.status.settings == SerialSettings(115200)


@pytest.mark.parametrize("options", ["", "?ign_set_control"])
def test_all_bytes_pass_both_ways_straight_after_open(
    server: LoopbackAccessServer, options: str
) -> None:
    with connect(server, options) as port:
        port.write(EVERYTHING)
        assert port.read(len(EVERYTHING)) == EVERYTHING


@pytest.mark.parametrize("options", ["", "?ign_set_control"])
def test_lines_and_break_are_set(server: LoopbackAccessServer, options: str) -> None:
    with connect(server, options) as port:
        port.dtr = False
        # A purge waits for its acknowledgement, with ign_set_control too.
        port.reset_output_buffer()
        assert server.status.lines == Lines(dtr=False, rts=True)
        port.rts = False
        port.break_condition = True
        port.reset_output_buffer()
        assert server.status.lines == IDLE
        assert server.status.break_on
        port.break_condition = False
        port.reset_output_buffer()
        assert not server.status.break_on


def test_every_parameter_is_set_and_accepted(server: LoopbackAccessServer) -> None:
    with connect(server) as port:
        for baudrate in (300, 921600, 2**32 - 1):
            port.baudrate = baudrate
            assert server.status.settings.baudrate == baudrate
        for bytesize in (5, 6, 7, 8):
            port.bytesize = bytesize
            assert server.status.settings.bytesize == bytesize
        for letter, parity in zip("NOEMS", Parity, strict=True):
            port.parity = letter
            assert server.status.settings.parity == parity
        for stopbits in (StopBits.TWO, StopBits.ONE):
            port.stopbits = int(stopbits.value)
            assert server.status.settings.stopbits == stopbits
        for rtscts, xonxoff, flow_control in (
            (True, False, FlowControl.RTSCTS),
            (False, False, FlowControl.NONE),
            (False, True, FlowControl.XONXOFF),
        ):
            port.rtscts = rtscts
            port.xonxoff = xonxoff
            assert server.status.settings.flow_control == flow_control


def test_parameter_that_the_port_lacks_is_refused_by_the_answer(
    server: LoopbackAccessServer,
) -> None:
    with connect(server) as port:
        with pytest.raises(ValueError, match="remote rejected value for option 'stopsize'"):
            port.stopbits = serial.STOPBITS_ONE_POINT_FIVE
        assert server.status.settings.stopbits == StopBits.ONE


def test_buffers_are_purged_in_order_with_data(server: LoopbackAccessServer) -> None:
    with connect(server) as port:
        before = len(server.events)
        port.reset_input_buffer()
        port.reset_output_buffer()
        purges = [event for event in server.events[before:] if isinstance(event, PurgeRequest)]
        assert [(purge.receive, purge.transmit) for purge in purges] == [
            (True, False),
            (False, True),
        ]
        port.write(b"\xff")
        assert port.read(1) == b"\xff"


def test_modem_state_is_told_at_once_and_when_polled(server: LoopbackAccessServer) -> None:
    with connect(server, "?poll_modem") as port:
        assert port.cts
        assert not port.dsr
        server.modemstate = Modemstate.DSR
        vars(port)["_modemstate_timeout"].restart(0)  # as if 0.3 s had gone by
        assert port.dsr
        assert not port.cts
