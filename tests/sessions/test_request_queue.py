"""What one client asks of its device, in stream order, on a device that answers when told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from gateway.protocol.access_server import AccessServer, PortStatus
from gateway.protocol.reset import IDLE, Lines
from gateway.protocol.rfc2217 import Control, Linestate, Modemstate
from gateway.protocol.serial_settings import Parity, SerialSettings, StopBits
from gateway.sessions.request_queue import (
    COMMANDS_AFTER_LEAVING,
    EVENTS_PER_TURN,
    LINES_ANSWER_S,
    READ_AHEAD_BYTES,
    READ_AHEAD_EVENTS,
    RequestQueue,
)
from gateway.sessions.seat import Seat
from gateway.tty.port_counts import PortCounts
from gateway.tty.serial_states import EventCounts, PortStates
from tests.support.pty_board import LoopClock
from tests.support.tcp_client import com_port
from tests.support.telnet_wire import AO, AYT, BRK, COM_PORT, RFC2217_CLIENT, SB, command, wont

SET_BAUDRATE, SET_PARITY, SET_STOPSIZE, SET_CONTROL = 1, 3, 4, 5
NOTIFY_LINESTATE, NOTIFY_MODEMSTATE, SUSPEND, RESUME = 6, 7, 8, 9
SET_LINESTATE_MASK, SET_MODEMSTATE_MASK, PURGE = 10, 11, 12


EMPTY = Linestate.TRANSMIT_HOLDING_EMPTY | Linestate.TRANSMIT_SHIFT_EMPTY


class SlowDevice:
    """A device that notes what is asked of it and is done with it when `finish` is called."""

    name = "desk"
    joins_lines = True

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.counts = PortCounts()
        self.status = PortStatus(SerialSettings(), IDLE)
        self.refuses_settings = False
        self.states = PortStates(Modemstate.CTS, EMPTY, EventCounts(0, 0, 0, 0, 0, 0, 0, 0))
        self._under_way: list[Callable[[], None]] = []

    def write(self, data: bytes) -> None:
        self.asked.append(data)

    def apply(self, settings: SerialSettings, done: Callable[[], None]) -> None:
        self.asked.append(settings)
        if not self.refuses_settings:
            self.status = replace(self.status, settings=settings)
        self._under_way.append(done)

    def set_lines(
        self, done: Callable[[], None], *, dtr: bool | None = None, rts: bool | None = None
    ) -> None:
        self.asked.append(("lines", dtr, rts))
        before = self.status.lines
        lines = Lines(before.dtr if dtr is None else dtr, before.rts if rts is None else rts)
        self.status = replace(self.status, lines=lines)
        self._under_way.append(done)

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        self.asked.append(("break", on))
        self.status = replace(self.status, break_on=on)
        self._under_way.append(done)

    def purge(self, done: Callable[[], None], *, receive: bool, transmit: bool) -> None:
        self.asked.append(("purge", receive, transmit))
        self._under_way.append(done)

    def read_states(self, done: Callable[[PortStates], None]) -> None:
        self.asked.append("states")
        self._under_way.append(lambda: done(self.states))

    def finish(self) -> None:
        """Be done with the oldest of what was asked."""
        self._under_way.pop(0)()


class Client:
    """A client's queue on a SlowDevice, and what the client and the session are told."""

    def __init__(self) -> None:
        self.device = SlowDevice()
        self.access = AccessServer("gateway under test")
        self.told: list[object] = []
        self.moves = 0
        self.queue = RequestQueue(cast("Seat", self.device), self.access, self)

    def sends(self, data: bytes) -> None:
        self.queue.add(self.access.receive_data(data))
        while self.access.unparsed_bytes:
            self.queue.add(self.access.receive_data(b""))

    def answers(self) -> bytes:
        return self.access.data_to_send()

    def queue_moved(self) -> None:
        self.moves += 1
        while self.queue.is_behind:
            self.queue.catch_up()

    def output_suspended(self, suspended: bool) -> None:
        self.told.append(suspended)

    def output_purged(self) -> None:
        pass

    def client_identified(self, signature: str) -> None:
        self.told.append(signature)

    def violated(self, reason: str, *, fatal: bool) -> None:
        self.told.append((reason, fatal))
        if fatal:
            self.queue.close()

    def say(self, line: str) -> None:
        self.told.append(line)


def rfc2217_client() -> Client:
    """A client whose first modem state has been read and told."""
    client = Client()
    client.sends(RFC2217_CLIENT)
    client.device.finish()
    client.device.asked.clear()
    client.answers()
    return client


def baudrate(value: int) -> bytes:
    return com_port(SET_BAUDRATE, value.to_bytes(4, "big"))


def control(code: Control) -> bytes:
    return com_port(SET_CONTROL, bytes([code]))


def answer(code: Control) -> bytes:
    return com_port(SET_CONTROL + 100, bytes([code]))


async def test_what_follows_a_change_waits_for_it() -> None:
    client = rfc2217_client()
    client.sends(b"a" + baudrate(9600) + b"b" + baudrate(19200) + b"c")
    first, second = SerialSettings(baudrate=9600), SerialSettings(baudrate=19200)
    assert client.device.asked == [b"a", first]
    assert not client.queue.is_empty
    assert client.answers() == b""
    client.device.finish()
    assert client.device.asked == [b"a", first, b"b", second]
    assert client.answers() == com_port(101, (9600).to_bytes(4, "big"))
    client.device.finish()
    assert client.device.asked == [b"a", first, b"b", second, b"c"]
    assert client.queue.is_empty


async def test_a_setting_that_is_in_force_is_answered_without_touching_the_device() -> None:
    client = rfc2217_client()
    client.sends(baudrate(115200) + baudrate(0) + com_port(SET_PARITY, b"\0"))
    assert client.device.asked == []
    in_force = com_port(101, (115200).to_bytes(4, "big"))
    assert client.answers() == in_force + in_force + com_port(103, b"\x01")


async def test_a_setting_that_the_device_refuses_is_answered_with_what_is_in_force() -> None:
    client = rfc2217_client()
    client.device.refuses_settings = True
    client.sends(com_port(SET_STOPSIZE, b"\x03"))
    client.device.finish()
    assert client.device.asked == [SerialSettings(stopbits=StopBits.ONE_POINT_FIVE)]
    assert client.answers() == com_port(104, b"\x01")


async def test_settings_are_changed_one_by_one_over_each_other() -> None:
    client = rfc2217_client()
    client.sends(baudrate(9600) + com_port(SET_PARITY, b"\x03"))
    client.device.finish()
    client.device.finish()
    assert client.device.asked[-1] == SerialSettings(baudrate=9600, parity=Parity.EVEN)


async def test_lines_of_one_segment_are_one_step_and_are_answered_when_they_have_moved() -> None:
    client = rfc2217_client()
    client.sends(control(Control.DTR_ON) + control(Control.RTS_ON) + control(Control.DTR_OFF))
    assert client.device.asked == [("lines", True, True)]
    assert client.answers() == b""
    client.device.finish()
    assert client.answers() == answer(Control.DTR_ON) + answer(Control.RTS_ON)
    assert client.device.asked[1:] == [("lines", False, None)]
    client.device.finish()
    assert client.answers() == answer(Control.DTR_OFF)


async def test_lines_that_move_late_are_answered_before_pyserial_looks_again() -> None:
    client = rfc2217_client()
    with LoopClock() as clock:
        client.sends(control(Control.DTR_ON) + control(Control.REQUEST_DTR))
        await clock.advance(LINES_ANSWER_S - 0.001)
        assert client.answers() == b""
        await clock.advance(0.001)
        assert client.answers() == answer(Control.DTR_ON)
        client.device.finish()
        assert client.answers() == answer(Control.DTR_ON)  # to the question behind it
        client.sends(control(Control.DTR_OFF))
        client.queue.close()
        await clock.advance(1.0)
        assert client.answers() == b""


async def test_a_reset_is_a_step_of_its_own_whatever_follows_in_its_segment() -> None:
    client = rfc2217_client()
    client.sends(control(Control.RTS_ON) + control(Control.DTR_ON))
    assert client.device.asked == [("lines", None, True)]
    client.device.finish()
    assert client.device.asked == [("lines", None, True), ("lines", True, None)]
    client.device.finish()
    assert client.answers() == answer(Control.RTS_ON) + answer(Control.DTR_ON)


async def test_a_question_between_two_lines_keeps_them_apart() -> None:
    client = rfc2217_client()
    client.sends(control(Control.RTS_ON) + control(Control.REQUEST_RTS) + control(Control.DTR_ON))
    assert client.device.asked == [("lines", None, True)]
    client.device.finish()
    assert client.device.asked[1:] == [("lines", True, None)]
    client.device.finish()
    assert client.answers() == answer(Control.RTS_ON) * 2 + answer(Control.DTR_ON)


async def test_a_device_that_is_done_at_once_gets_all_in_order() -> None:
    client = rfc2217_client()
    slow_apply = client.device.apply

    def apply(settings: SerialSettings, done: Callable[[], None]) -> None:
        slow_apply(settings, done)
        client.device.finish()

    client.device.apply = apply  # type: ignore[method-assign]
    client.sends(b"".join(baudrate(rate) + b"x" for rate in range(1000, 3000)))
    assert client.device.asked[-2:] == [SerialSettings(baudrate=2999), b"x"]
    assert len(client.device.asked) == 4000
    assert client.queue.is_empty


async def test_a_busy_board_gets_nothing_until_it_has_caught_up() -> None:
    client = rfc2217_client()
    client.queue.board_busy()
    client.sends(b"a" + baudrate(9600))
    assert client.device.asked == []
    assert not client.queue.is_empty
    client.queue.board_ready()
    assert client.device.asked == [b"a", SerialSettings(baudrate=9600)]


async def test_break_is_set_ended_and_asked_for() -> None:
    client = rfc2217_client()
    client.sends(control(Control.BREAK_ON) + b"x" + control(Control.REQUEST_BREAK))
    assert client.device.asked == [("break", True)]
    client.device.finish()
    assert client.answers() == answer(Control.BREAK_ON) * 2
    client.sends(control(Control.BREAK_OFF))
    client.device.finish()
    assert client.device.asked == [("break", True), b"x", ("break", False)]
    assert client.answers() == answer(Control.BREAK_OFF)


async def test_a_telnet_break_lasts_and_what_follows_waits() -> None:
    with LoopClock() as clock:
        client = Client()
        client.sends(command(BRK) + b"x")
        client.device.finish()
        await clock.advance(0.24)
        assert client.device.asked == [("break", True)]
        await clock.advance(0.02)
        assert client.device.asked == [("break", True), ("break", False)]
        client.device.finish()
        assert client.device.asked[2:] == [b"x"]


async def test_a_break_of_a_client_that_has_left_touches_nothing() -> None:
    with LoopClock() as clock:
        client = Client()
        client.sends(command(BRK))
        client.device.finish()
        client.queue.close()
        await clock.advance(1.0)
        assert client.device.asked == [("break", True)]


@pytest.mark.parametrize(
    ("buffers", "which"), [(1, (True, False)), (2, (False, True)), (3, (True, True))]
)
async def test_a_purge_waits_and_is_answered(buffers: int, which: tuple[bool, bool]) -> None:
    client = rfc2217_client()
    client.sends(com_port(PURGE, bytes([buffers])) + b"x")
    assert client.device.asked == [("purge", *which)]
    client.device.finish()
    assert client.device.asked[1:] == [b"x"]
    assert client.answers() == com_port(PURGE + 100, bytes([buffers]))


async def test_abort_output_drops_what_the_board_has_sent() -> None:
    client = rfc2217_client()
    client.sends(command(AO) + b"x")
    assert client.device.asked == [("purge", True, False)]
    client.device.finish()
    assert client.device.asked[1:] == [b"x"]
    assert client.answers() == b""


async def test_modem_states_are_read_one_at_a_time_however_often_they_are_asked_for() -> None:
    client = rfc2217_client()
    client.sends(com_port(NOTIFY_MODEMSTATE, b"\0") * 1000)
    assert client.device.asked == ["states"]
    assert not client.queue.is_empty
    client.device.finish()
    assert client.device.asked == ["states"] * 2
    assert client.answers() == com_port(NOTIFY_MODEMSTATE + 100, bytes([Modemstate.CTS]))


async def test_the_first_modem_state_is_told_without_being_asked_for() -> None:
    client = Client()
    # No bit to tell of, and told all the same: pyserial fails until it knows the state.
    client.device.states = replace(client.device.states, modemstate=Modemstate(0))
    client.sends(RFC2217_CLIENT)
    assert client.device.asked == ["states"]
    client.device.finish()
    told = com_port(NOTIFY_MODEMSTATE + 100, b"\0")
    assert client.answers().endswith(told)


async def test_modem_states_are_polled_until_nobody_wants_them() -> None:
    with LoopClock() as clock:
        client = rfc2217_client()
        await clock.advance(0.3)
        assert client.device.asked == ["states"]
        client.device.finish()
        client.sends(com_port(SET_MODEMSTATE_MASK, b"\0"))
        await clock.advance(10.0)
        assert client.device.asked == ["states"]
        client.sends(com_port(SET_MODEMSTATE_MASK, b"\xff"))
        client.device.finish()
        client.queue.client_left()
        await clock.advance(10.0)
        assert client.device.asked == ["states"] * 2


async def test_the_line_state_says_whether_bytes_wait() -> None:
    client = rfc2217_client()
    for linestate in (EMPTY, Linestate.DATA_READY):
        client.device.states = replace(client.device.states, linestate=linestate)
        client.sends(com_port(NOTIFY_LINESTATE, b"\0"))
        client.device.finish()
        assert client.answers() == com_port(NOTIFY_LINESTATE + 100, bytes([linestate]))


async def test_errors_on_the_wire_are_told_to_who_wants_them() -> None:
    with LoopClock() as clock:
        client = rfc2217_client()
        client.sends(com_port(SET_LINESTATE_MASK, bytes([Linestate.BREAK | Linestate.OVERRUN])))
        client.device.finish()
        client.answers()
        broken = EventCounts(0, 0, 0, 0, frame=1, overrun=0, parity=0, brk=1)
        client.device.states = replace(client.device.states, counts=broken)
        await clock.advance(0.3)
        client.device.finish()
        told = com_port(NOTIFY_LINESTATE + 100, bytes([Linestate.BREAK]))
        assert client.answers() == told
        client.sends(com_port(SET_LINESTATE_MASK, b"\0") + com_port(SET_MODEMSTATE_MASK, b"\0"))
        client.device.asked.clear()
        await clock.advance(10.0)
        assert client.device.asked == []


async def test_states_are_watched_only_while_com_port_option_is_agreed() -> None:
    with LoopClock() as clock:
        client = Client()
        client.sends(b"hello" + com_port(SET_MODEMSTATE_MASK, b"\xff"))
        await clock.advance(10.0)
        assert client.device.asked == [b"hello"]
        client.sends(RFC2217_CLIENT)
        client.device.finish()
        client.sends(wont(COM_PORT))
        client.answers()
        client.device.asked.clear()
        await clock.advance(10.0)
        assert client.device.asked == []
        assert client.answers() == b""


async def test_what_is_not_for_the_device_goes_to_the_session_in_order() -> None:
    client = rfc2217_client()
    client.sends(baudrate(9600) + com_port(0, b"tool 1.0") + com_port(99) + command(AYT))
    assert client.told == []
    client.device.finish()
    line = "desk: 9600 8N1, DTR off, RTS off"
    reason = ("COM-PORT-OPTION: unknown command 99", False)
    assert client.told == ["tool 1.0", reason, line]


async def test_output_is_suspended_and_resumed_whatever_waits() -> None:
    client = rfc2217_client()
    client.queue.board_busy()
    client.sends(b"stuck" + com_port(SUSPEND))
    assert client.told == [True]
    client.sends(com_port(RESUME))
    assert client.told == [True, False]
    assert client.device.asked == ["states"], "what has changed meanwhile"


async def test_states_are_not_told_while_output_is_suspended() -> None:
    with LoopClock() as clock:
        client = rfc2217_client()
        client.sends(com_port(SUSPEND))
        await clock.advance(10.0)
        assert client.device.asked == []
        pulse = EventCounts(2, 0, 0, 0, 0, 0, 0, 0)
        client.device.states = replace(client.device.states, counts=pulse)
        client.sends(com_port(RESUME))
        client.device.finish()
        told = bytes([Modemstate.CTS | Modemstate.DELTA_CTS])
        assert client.answers() == com_port(NOTIFY_MODEMSTATE + 100, told)


@pytest.mark.parametrize("buffers", [2, 3])
async def test_a_purge_overtakes_the_bytes_that_a_board_does_not_take(buffers: int) -> None:
    client = rfc2217_client()
    client.queue.board_busy()
    client.sends(b"stuck" + baudrate(9600) + b"also stuck")
    client.sends(b"and this" + com_port(PURGE, bytes([buffers])) + b"fresh")
    assert client.device.asked == [("purge", False, True)]
    client.queue.board_ready()  # there is nothing left that could be stuck
    assert client.device.asked[1:] == [SerialSettings(baudrate=9600)]
    client.device.finish()  # the purge at once
    client.device.finish()
    assert client.device.asked[2:] == [("purge", buffers == 3, True)]
    assert client.answers() == com_port(101, (9600).to_bytes(4, "big"))
    client.device.finish()
    assert client.device.asked[3:] == [b"fresh"]
    assert client.answers() == com_port(PURGE + 100, bytes([buffers]))
    assert client.queue.is_empty


async def test_a_purge_overtakes_a_change_that_waits_for_bytes_to_leave() -> None:
    client = rfc2217_client()
    client.sends(baudrate(9600) + b"behind" + com_port(PURGE, b"\x02"))
    assert client.device.asked == [SerialSettings(baudrate=9600), ("purge", False, True)]


async def test_a_purge_that_nothing_stands_before_is_made_once_behind_its_bytes() -> None:
    client = rfc2217_client()
    client.sends(b"a" + com_port(PURGE, b"\x02"))
    assert client.device.asked == [b"a", ("purge", False, True)]


async def test_a_purge_of_what_was_received_overtakes_nothing() -> None:
    client = rfc2217_client()
    client.queue.board_busy()
    client.sends(b"a" + com_port(PURGE, b"\x01"))
    assert client.device.asked == []


async def test_the_queue_is_full_of_many_bytes_or_of_many_requests() -> None:
    client = rfc2217_client()
    client.queue.board_busy()
    client.sends(b"x" * READ_AHEAD_BYTES)
    assert not client.queue.is_full
    client.sends(b"x")
    assert client.queue.is_full
    client.sends(com_port(PURGE, b"\x02"))
    assert not client.queue.is_full
    client.sends(control(Control.REQUEST_DTR) * READ_AHEAD_EVENTS)
    assert client.queue.is_full
    client.queue.board_ready()
    client.device.finish()
    client.device.finish()
    assert not client.queue.is_full
    assert client.queue.is_empty


async def test_nothing_behind_a_fatal_violation_is_carried_out() -> None:
    client = rfc2217_client()
    client.sends(b"a" + command(SB) + b"x" * 300 + b"b" + baudrate(9600))
    assert client.device.asked == [b"a"]
    assert client.told == [("subnegotiation longer than 256 bytes", True)]


async def test_a_closed_queue_drops_what_waits_and_moves_no_more() -> None:
    client = rfc2217_client()
    client.sends(baudrate(9600) + b"x" + com_port(NOTIFY_MODEMSTATE, b"\0"))
    moves = client.moves
    client.queue.close()
    client.device.finish()
    client.queue.board_ready()
    assert client.device.asked == [SerialSettings(baudrate=9600)]
    assert client.moves == moves
    assert client.answers() == b""


async def test_of_a_client_that_has_left_what_it_asks_is_not_answered_and_what_it_sets_is_set() -> (
    None
):
    client = rfc2217_client()
    client.queue.board_busy()
    asked = control(Control.REQUEST_DTR) + com_port(NOTIFY_LINESTATE) + baudrate(0) + command(AYT)
    client.sends(b"a" + asked + baudrate(9600) + b"b")
    client.queue.client_left()
    client.sends(asked + b"c")
    client.queue.board_ready()
    client.device.finish()
    assert client.device.asked == [b"a", SerialSettings(baudrate=9600), b"b", b"c"]
    assert client.queue.is_empty


async def test_of_a_client_that_has_left_so_many_commands_are_carried_out_and_no_more() -> None:
    client = rfc2217_client()
    client.queue.board_busy()
    client.sends((b"x" + command(BRK)) * COMMANDS_AFTER_LEAVING)
    client.queue.client_left()
    client.queue.client_left()
    client.sends(b"last" + command(BRK) + b"lost" + command(BRK) + b"lost")
    client.queue.board_ready()
    with LoopClock() as clock:
        for _ in range(2 * COMMANDS_AFTER_LEAVING):
            client.device.finish()
            await clock.advance(0.25)
    breaks = [each for each in client.device.asked if each == ("break", True)]
    assert len(breaks) == COMMANDS_AFTER_LEAVING
    assert client.device.asked[-1] == b"last"
    assert client.queue.is_empty
    assert client.queue.waiting_bytes == 2 * len(b"lost")


async def test_requests_that_need_not_wait_are_carried_out_a_few_in_a_turn() -> None:
    client = rfc2217_client()
    client.queue.board_busy()
    client.sends(control(Control.REQUEST_DTR) * 3 * EVENTS_PER_TURN)
    client.queue_moved = lambda: None  # type: ignore[method-assign]
    for turn in range(3):
        client.queue.board_ready() if turn == 0 else client.queue.catch_up()
        assert client.answers() == answer(Control.DTR_OFF) * EVENTS_PER_TURN
        assert client.queue.is_behind is (turn < 2)
        client.queue.carry_on()  # not before its turn
        assert client.answers() == b""
    assert client.queue.is_empty
