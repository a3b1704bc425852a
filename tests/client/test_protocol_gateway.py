"""pyserial's port, against servers of which the test says what they answer."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import serial
from serial.rs485 import RS485Settings

from gateway.client.connection import Connection
from gateway.client.protocol_gateway import Serial
from gateway.protocol import rfc2217
from gateway.protocol.rfc2217 import Control, Modemstate, PurgeBuffers, encode
from tests.support.delay_proxy import DelayProxy
from tests.support.scripted_access_server import LIMIT_S, ScriptedAccessServer, acknowledge

#: So long that a test that waits for it hangs.
NEVER_S = 3600.0

CONTROL = rfc2217.SetControl
OPENING: list[rfc2217.Command | bytes] = [
    rfc2217.SetBaudrate(115200),
    rfc2217.SetDatasize(8),
    rfc2217.SetParity(1),
    rfc2217.SetStopsize(1),
    CONTROL(Control.FLOW_NONE),
    CONTROL(Control.DTR_ON),
    CONTROL(Control.RTS_ON),
    rfc2217.PurgeData(PurgeBuffers.BOTH),
]


@pytest.fixture
def server() -> Iterator[ScriptedAccessServer]:
    with ScriptedAccessServer() as running:
        yield running


def connect(server: ScriptedAccessServer, options: str = "", **kwargs: Any) -> Serial:
    port = Serial(None, baudrate=115200, timeout=NEVER_S)
    for name, value in kwargs.items():
        setattr(port, name, value)
    port.port = server.url(options)
    port.open()
    return port


@pytest.fixture
def port(server: ScriptedAccessServer) -> Iterator[Serial]:
    with connect(server) as opened:
        yield opened


def bring(port: Serial, server: ScriptedAccessServer, data: bytes) -> None:
    """Let the server send data, and wait until all of it has come."""
    server.say(data)
    server.wait_for(lambda: port.in_waiting == len(data))


def inside(port: Serial) -> Connection:
    assert port._connection is not None
    return port._connection


def wait_for_modemstate(server: ScriptedAccessServer, port: Serial, state: Modemstate) -> None:
    server.wait_for(lambda: inside(port).modemstate == state)


# Opening and closing.


@pytest.mark.parametrize(
    ("settings", "opening"),
    [
        ({}, OPENING),
        (
            {"dtr": False, "rts": False},
            [*OPENING[:5], CONTROL(Control.DTR_OFF), CONTROL(Control.RTS_OFF), OPENING[7]],
        ),
        # Lines that do flow control are left alone.
        (
            {"rtscts": True, "dsrdtr": True},
            [*OPENING[:4], CONTROL(Control.FLOW_HARDWARE), OPENING[7]],
        ),
    ],
)
def test_opening_sets_everything_in_one_segment(
    server: ScriptedAccessServer,
    settings: dict[str, Any],
    opening: list[rfc2217.Command | bytes],
) -> None:
    with connect(server, **settings):
        assert server.segments == [opening]


def test_a_closed_port_can_be_opened_again(server: ScriptedAccessServer) -> None:
    port = connect(server)
    port.close()
    port.close()
    assert not port.is_open
    with port:
        assert port.is_open
        with pytest.raises(serial.SerialException, match="already open"):
            port.open()
    assert server.segments == [OPENING, OPENING]
    assert server.connections == 2


def test_another_address_is_another_connection(server: ScriptedAccessServer) -> None:
    with ScriptedAccessServer() as other, connect(server) as port:
        port.port = other.url()
        port.write(b"there")
        other.wait_for(lambda: other.data() == b"there")
    assert server.data() == b""


def test_a_closed_port_does_nothing() -> None:
    port = Serial()
    with pytest.raises(serial.SerialException, match="must be configured"):
        port.open()
    port.port = "gateway://127.0.0.1:1"
    port.dtr = False
    port.baudrate = 9600
    port.cancel_read()
    port.cancel_write()
    for action in (port.read, port.flush, port.reset_input_buffer, lambda: port.write(b"x")):
        with pytest.raises(serial.PortNotOpenError):
            action()
    for name in ("in_waiting", "cts", "fd"):
        with pytest.raises(serial.PortNotOpenError):
            getattr(port, name)


def test_a_server_that_is_not_there_is_named() -> None:
    with ScriptedAccessServer() as server:
        url = server.url()
    with pytest.raises(serial.SerialException, match=f"could not open port {url}.*refused"):
        Serial(url)


def test_a_url_that_is_wrong_is_explained() -> None:
    with pytest.raises(serial.SerialException, match="unknown option 'speed'"):
        Serial("gateway://127.0.0.1:1?speed=3")


def test_a_server_that_says_nothing_is_given_up() -> None:
    with ScriptedAccessServer(greets=False) as server:
        port = Serial()
        port.port = server.url("?timeout=0.01")
        with pytest.raises(serial.SerialException, match="does not answer as RFC 2217 asks"):
            port.open()
        assert not port.is_open


def test_what_a_server_says_before_it_closes_is_shown() -> None:
    with ScriptedAccessServer(greets=False) as server, ThreadPoolExecutor(1) as pool:
        port = Serial()
        port.port = server.url()
        opened = pool.submit(port.open)
        server.wait_for(lambda: server.connections)
        server.say(b"desk: in use by 192.0.2.7\r\n")
        server.hang_up()
        with pytest.raises(serial.SerialException, match=r"it said: desk: in use by 192\.0\.2\.7"):
            opened.result(LIMIT_S)


def test_a_server_that_answers_no_setting_is_given_up(
    server: ScriptedAccessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_impatient(connection: Connection, greeting: bytes) -> None:
        negotiate(connection, greeting)
        connection._timeout_s = 0.01

    negotiate = Connection._negotiate
    monkeypatch.setattr(Connection, "_negotiate", be_impatient)
    server.answer = lambda _: b""
    with pytest.raises(serial.SerialException, match="no answer to SetBaudrate"):
        connect(server)


# Settings.


def test_a_setting_is_sent_when_it_changes(server: ScriptedAccessServer) -> None:
    with connect(server) as port:
        port.baudrate = 921600
        port.baudrate = 921600
        port.timeout = 1
        port.write_timeout = 2
        port.inter_byte_timeout = 3
        port.exclusive = True
        port.bytesize = 7
        port.parity = "E"
        port.stopbits = 2
        port.xonxoff = True
        port.xonxoff = False
        port.rtscts = True
    assert server.segments[1:] == [
        [rfc2217.SetBaudrate(921600)],
        [rfc2217.SetDatasize(7)],
        [rfc2217.SetParity(3)],
        [rfc2217.SetStopsize(2)],
        [CONTROL(Control.FLOW_XONXOFF)],
        [CONTROL(Control.FLOW_NONE)],
        [CONTROL(Control.FLOW_HARDWARE)],
    ]


def test_settings_that_come_together_go_together(
    server: ScriptedAccessServer, port: Serial
) -> None:
    settings = port.get_settings()
    port.apply_settings({**settings, "baudrate": 9600, "parity": "O", "timeout": 3})
    assert server.segments[1:] == [[rfc2217.SetBaudrate(9600), rfc2217.SetParity(2)]]
    assert port.timeout == 3


def refuse(wanted: rfc2217.Command, instead: rfc2217.Command) -> Any:
    return lambda command: acknowledge(instead if command == wanted else command)


@pytest.mark.parametrize(
    ("name", "value", "wanted", "instead"),
    [
        ("baudrate", 12345678, rfc2217.SetBaudrate(12345678), rfc2217.SetBaudrate(115200)),
        ("stopbits", 1.5, rfc2217.SetStopsize(3), rfc2217.SetStopsize(1)),
        ("rtscts", True, CONTROL(Control.FLOW_HARDWARE), CONTROL(Control.FLOW_NONE)),
    ],
)
def test_a_refused_setting_is_an_error_and_the_old_one_stays(
    server: ScriptedAccessServer,
    name: str,
    value: Any,
    wanted: rfc2217.Command,
    instead: rfc2217.Command,
) -> None:
    with connect(server) as port:
        before = getattr(port, name)
        server.answer = refuse(wanted, instead)
        with pytest.raises(ValueError, match="refuses"):
            setattr(port, name, value)
        assert getattr(port, name) == before
        port.timeout = 1  # the refused one is not asked for again
        assert server.commands()[-1] == wanted


def test_a_rate_that_the_uart_can_nearly_have_is_had(server: ScriptedAccessServer) -> None:
    wanted = rfc2217.SetBaudrate(921600)
    server.answer = refuse(wanted, rfc2217.SetBaudrate(923076))
    with connect(server) as port:
        port.baudrate = 921600
        assert port.baudrate == 921600


def test_answers_to_set_control_are_not_waited_for_if_told_so(
    server: ScriptedAccessServer,
) -> None:
    server.answer = lambda each: b"" if isinstance(each, CONTROL) else acknowledge(each)
    with connect(server, "?ign_set_control") as port:
        port.rtscts = True
        server.wait_for_commands(CONTROL(Control.FLOW_HARDWARE))


@pytest.mark.parametrize("baudrate", [0, 2**32])
def test_what_the_wire_has_no_word_for_is_refused(
    server: ScriptedAccessServer, baudrate: int
) -> None:
    with connect(server) as port:
        with pytest.raises(ValueError, match="baudrate"):
            port.baudrate = baudrate
        port.rtscts = True
        with pytest.raises(ValueError, match="together"):
            port.xonxoff = True
        with pytest.raises(ValueError, match="rs485_mode"):
            port.rs485_mode = RS485Settings()
        port.rs485_mode = None
        assert port.rs485_mode is None


# Lines.


def test_each_line_is_sent_when_it_is_set_and_nothing_is_waited_for(
    server: ScriptedAccessServer, port: Serial
) -> None:
    server.answer = lambda _: b""
    port.dtr = False
    port.rts = True
    port.setDTR(False)  # type: ignore[attr-defined]
    port.break_condition = True
    port.break_condition = False
    expected = [Control.DTR_OFF, Control.RTS_ON, Control.DTR_OFF]
    server.wait_for_commands(*map(CONTROL, (*expected, Control.BREAK_ON, Control.BREAK_OFF)))


def test_both_lines_can_be_set_in_one_segment(server: ScriptedAccessServer, port: Serial) -> None:
    port.set_lines(dtr=False, rts=True)
    server.wait_for_commands(CONTROL(Control.DTR_OFF), CONTROL(Control.RTS_ON))
    assert len(server.segments) == 2
    assert (port.dtr, port.rts) == (False, True)


def test_modem_inputs_are_what_the_server_told_last(
    server: ScriptedAccessServer, port: Serial
) -> None:
    for state in (Modemstate.CTS | Modemstate.RI, Modemstate.DSR | Modemstate.CD):
        server.say(encode(rfc2217.NotifyModemstate(state)))
        wait_for_modemstate(server, port, state)
        values = (port.cts, port.dsr, port.ri, port.cd)
        lines = (Modemstate.CTS, Modemstate.DSR, Modemstate.RI, Modemstate.CD)
        assert values == tuple(bool(state & line) for line in lines)
    assert len(server.segments) == 1


def test_modem_inputs_that_were_never_told_are_asked_for(server: ScriptedAccessServer) -> None:
    state = encode(rfc2217.NotifyModemstate(Modemstate.CTS))
    server.answer = lambda each: (
        state if isinstance(each, rfc2217.NotifyModemstate) else acknowledge(each)
    )
    with connect(server) as port:
        assert port.cts
        assert server.commands()[-1] == rfc2217.NotifyModemstate(0)
        assert not port.dsr
        assert len(server.segments) == 2


def test_a_server_that_tells_no_modem_state_is_given_up(
    server: ScriptedAccessServer, port: Serial
) -> None:
    inside(port)._timeout_s = 0.01
    with pytest.raises(serial.SerialException, match="NOTIFY-MODEMSTATE"):
        _ = port.cd


# Reading.


def test_reading_is_as_at_any_port(server: ScriptedAccessServer, port: Serial) -> None:
    bring(port, server, b"line\nprompt> ")
    assert port.readline() == b"line\n"
    assert port.read() == b"p"
    assert port.read_until(b"> ") == b"rompt> "
    port.timeout = 0
    assert port.read(10) == b""
    assert port.readline() == b""
    bring(port, server, b"ab")
    assert port.read_all() == b"ab"
    bring(port, server, b"one\ntwo")
    assert port.readlines() == [b"one\n", b"two"]
    bring(port, server, b"xyz")
    buffer = bytearray(2)
    assert port.readinto(buffer) == 2
    assert buffer == b"xy"


def test_all_bytes_pass_both_ways(server: ScriptedAccessServer) -> None:
    every = bytes(range(256)) + b"\r\0\r\n\xff\xff\xff"
    with connect(server) as port:
        assert port.write(every) == len(every)
        assert port.write(bytearray(b"x")) == 1
        assert port.write([1, 2]) == 2
        server.wait_for(lambda: server.data() == every + b"x\1\2")
        server.say(every.replace(b"\xff", b"\xff\xff"))
        assert port.read(len(every)) == every


def test_select_tells_when_there_is_something(server: ScriptedAccessServer, port: Serial) -> None:
    assert not select.select([port.fd], [], [], 0)[0]
    server.say(b"x")
    assert select.select([port], [], [], LIMIT_S)[0]


def test_a_read_can_be_cancelled_from_another_thread(
    server: ScriptedAccessServer, port: Serial
) -> None:
    with ThreadPoolExecutor(1) as pool:
        port.timeout = None
        bring(port, server, b"ab")
        taken = pool.submit(port.read, 3)
        port.cancel_read()
        assert taken.result(LIMIT_S) == b"ab"


def test_closing_ends_a_read_in_another_thread(server: ScriptedAccessServer, port: Serial) -> None:
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(port.read, 1)
        port.close()
        with pytest.raises(serial.PortNotOpenError):
            taken.result(LIMIT_S)


def test_a_lost_connection_is_told_once_all_that_came_is_read(
    server: ScriptedAccessServer, port: Serial
) -> None:
    bring(port, server, b"panic")
    server.hang_up()
    server.wait_for(lambda: inside(port).received.ended is not None)
    assert port.in_waiting == 5
    assert port.read(100) == b"panic"
    actions: list[Any] = [port.read, lambda: port.in_waiting, lambda: port.write(b"x")]
    actions += [port.flush, lambda: setattr(port, "baudrate", 9600)]
    for action in actions:
        with pytest.raises(serial.SerialException, match="closed the connection"):
            action()
    port.close()
    port.open()
    bring(port, server, b"here again")


def test_resetting_the_input_discards_what_is_on_its_way(server: ScriptedAccessServer) -> None:
    purge = rfc2217.PurgeData(PurgeBuffers.RECEIVE)
    with connect(server) as port:
        server.answer = lambda _: b""
        bring(port, server, b"old")
        port.reset_input_buffer()
        assert port.in_waiting == 0
        server.wait_for_commands(purge)
        server.say(b"on its way" + encode(purge) + b"new")
        assert port.read(3) == b"new"


def test_resetting_the_output_waits_for_nothing(server: ScriptedAccessServer, port: Serial) -> None:
    server.answer = lambda _: b""
    port.reset_output_buffer()
    server.wait_for_commands(rfc2217.PurgeData(PurgeBuffers.TRANSMIT))


def test_a_reply_may_take_the_networks_time_on_top_of_the_time_out(
    server: ScriptedAccessServer,
) -> None:
    with DelayProxy(int(server.url().rpartition(":")[2]), 0.02) as proxy:
        port = Serial(f"gateway://127.0.0.1:{proxy.port}", timeout=0.001)
        with closing(port):
            assert inside(port).round_trip_s >= 0.04
            inside(port).round_trip_s = NEVER_S  # whatever this machine does meanwhile
            port.write(b"sync")
            server.wait_for(lambda: server.data() == b"sync")
            server.say(b"s")
            assert port.read(1) == b"s"


# Writing.


def test_a_write_that_the_server_does_not_take_times_out(
    server: ScriptedAccessServer, port: Serial
) -> None:
    server.reads.clear()
    port.write_timeout = 0.05
    with pytest.raises(serial.SerialTimeoutException):
        port.write(bytes(64 * 1024 * 1024))
    port.write_timeout = None
    server.reads.set()
    port.write(b"end")
    server.wait_for(lambda: server.data().endswith(b"end"))


def test_a_write_can_be_cancelled_from_another_thread(
    server: ScriptedAccessServer, port: Serial
) -> None:
    with ThreadPoolExecutor(1) as pool:
        server.reads.clear()
        written = pool.submit(port.write, bytes(64 * 1024 * 1024))
        begin_s = time.monotonic()
        while not inside(port)._writing.locked() and not written.done():
            assert time.monotonic() < begin_s + LIMIT_S
        port.cancel_write()
        assert 0 <= written.result(LIMIT_S) < 64 * 1024 * 1024
        server.reads.set()


def test_a_server_that_suspends_us_gets_nothing_until_it_resumes(
    server: ScriptedAccessServer, port: Serial
) -> None:
    with ThreadPoolExecutor(1) as pool:
        server.say(encode(rfc2217.FlowcontrolSuspend()))
        server.wait_for(lambda: inside(port)._suspended)
        port.write_timeout = 0.01
        with pytest.raises(serial.SerialTimeoutException):
            port.write(b"lost")
        port.write_timeout = None
        written = pool.submit(port.write, b"kept")
        port.dtr = False  # commands pass
        server.wait_for_commands(CONTROL(Control.DTR_OFF))
        assert server.data() == b""
        server.say(encode(rfc2217.FlowcontrolResume()))
        assert written.result(LIMIT_S) == 4
        server.wait_for(lambda: server.data() == b"kept")


def test_flushing_waits_until_the_server_has_all(
    server: ScriptedAccessServer, port: Serial
) -> None:
    port.write(b"x" * 100_000)
    port.flush()
    assert server.data() == b"x" * 100_000
    assert port.baudrate == 115200


def test_what_was_written_before_closing_arrives_though_the_board_talks(
    server: ScriptedAccessServer,
) -> None:
    port = connect(server)
    port.write(b"x" * 200_000)
    server.say(b"chatter" * 1000)
    port.close()
    server.wait_for(lambda: len(server.data()) == 200_000)


def test_log_lines_come_on_request(
    server: ScriptedAccessServer, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(server, "?logging=debug") as port:
        port.rts = False
    assert "RTS_OFF" in caplog.text


def test_an_open_port_leaves_no_descriptor_behind(server: ScriptedAccessServer) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with connect(server) as port:
            assert port.fileno() >= 0
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2  # the server's own
