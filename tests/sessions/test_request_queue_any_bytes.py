"""Any bytes, cut anywhere, through access server and queue to a device: the same comes of them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway import clock
from gateway.protocol.access_server import AccessServer, PortStatus, SerialData
from gateway.protocol.reset import IDLE, Lines
from gateway.protocol.rfc2217 import Linestate, Modemstate
from gateway.protocol.serial_settings import SerialSettings
from gateway.sessions.request_queue import READ_AHEAD_BYTES, READ_AHEAD_EVENTS, RequestQueue
from gateway.sessions.seat import Seat
from gateway.tty.serial_states import PortStates
from tests.support.tcp_client import com_port
from tests.support.telnet_wire import COM_PORT, NEGOTIATIONS, RFC2217_CLIENT, command

#: A rate that the device refuses.
TOO_FAST = 2**31


class StillClock:
    """Time does not pass, but for a telnet break, which is over at once."""

    def time(self) -> float:
        return 0.0

    def call_later(self, _delay_s: float, callback: Callable[..., object], *args: Any) -> mock.Mock:
        if callback.__name__ == "_end_break":
            callback(*args)
        return mock.Mock()


class Board:
    """A device that has done everything as soon as it is asked, if it does not `stall`."""

    name = "desk"
    joins_lines = True

    def __init__(self) -> None:
        self.got: list[object] = []
        self.status = PortStatus(SerialSettings(), IDLE)
        self.stalls = False
        self.waiting: list[Callable[[], None]] = []

    def write(self, data: bytes) -> None:
        if not self.got or not isinstance(self.got[-1], bytearray):
            self.got.append(bytearray())
        before = self.got[-1]
        assert isinstance(before, bytearray)
        before += data

    def apply(self, settings: SerialSettings, done: Callable[[], None]) -> None:
        if settings.baudrate < TOO_FAST:
            self.status = replace(self.status, settings=settings)
        self._did(settings, done)

    def set_lines(
        self, done: Callable[[], None], *, dtr: bool | None = None, rts: bool | None = None
    ) -> None:
        before = self.status.lines
        lines = Lines(before.dtr if dtr is None else dtr, before.rts if rts is None else rts)
        self.status = replace(self.status, lines=lines)
        # How commands are cut decides whether two lines are one step.
        self._did("lines", done)

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        self.status = replace(self.status, break_on=on)
        self._did(("break", on), done)

    def purge(self, done: Callable[[], None], *, receive: bool, transmit: bool) -> None:
        self._did(("purge", receive, transmit), done)

    def read_states(self, done: Callable[[PortStates], None]) -> None:
        states = PortStates(Modemstate.CTS, Linestate.DATA_READY)
        self._done(lambda: done(states))

    def _did(self, what: object, done: Callable[[], None]) -> None:
        if self.got[-1:] != ["lines"] or what != "lines":
            self.got.append(what)
        self._done(done)

    def _done(self, done: Callable[[], None]) -> None:
        if self.stalls:
            self.waiting.append(done)
        else:
            done()


class Client:
    """A client of a board, and all that it and the session are told."""

    def __init__(self, queue: type[RequestQueue] = RequestQueue) -> None:
        self.board = Board()
        self.access = AccessServer("gateway under test")
        self.told: list[object] = []
        self.answers = bytearray()
        self.queue = queue(cast("Seat", self.board), self.access, self)

    def sends(self, data: bytes) -> None:
        self.queue.add(self.access.receive_data(data))
        while self.access.unparsed_bytes:
            self.queue.add(self.access.receive_data(b""))
        self.answers += self.access.data_to_send()

    def queue_moved(self) -> None:
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
        self.access.say(line.encode())


class SimpleQueue(RequestQueue):
    """The same with one list, which each purge makes anew, and without slices."""

    def _purge_what_waits(self) -> None:
        self._carry_out_waiting()
        if self._waiting_bytes:
            self._events = deque(each for each in self._events if not isinstance(each, SerialData))
            self._waiting_bytes = 0
        if not self._purging and not self.is_empty and not self._closed:
            self._purging = True
            self._device.purge(self._purged, receive=False, transmit=True)

    def _carry_out_waiting(self) -> None:
        if self._carrying_out:
            return
        self._carrying_out = True
        while self._events and not self._change_pending and not self._board_busy:
            self._carry_out(self._events.popleft())
        self._carrying_out = False


@pytest.fixture(autouse=True)
def still_clock() -> Iterator[None]:
    with clock.use(StillClock()):
        yield


TOKENS = st.one_of(
    st.binary(max_size=8),
    st.builds(com_port, st.integers(0, 13), st.binary(max_size=5)),
    st.builds(com_port, st.just(5), st.integers(0, 20).map(lambda value: bytes([value]))),
    st.builds(command, st.integers(240, 255)),
    st.builds(command, st.sampled_from(NEGOTIATIONS), st.sampled_from([0, 1, 3, COM_PORT, 99])),
)
STREAMS = st.lists(TOKENS, max_size=40).map(b"".join)
CUTS = st.lists(st.integers(0, 400), max_size=10)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(cut for cut in cuts if cut < len(stream))
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


NEGOTIATION = re.compile(rb"\xff[\xfb-\xfe].", re.DOTALL)
SUBNEGOTIATION = re.compile(rb"\xff\xfa(?:[^\xff]|\xff\xff)*\xff\xf0")


def by_kind(answers: bytearray) -> tuple[list[bytes], list[bytes], bytes]:
    """Answers to requests by command, to options, and text for a person.

    Options, masks and SIGNATURE are answered as soon as they are read, the others when they are
    carried out: there is an order among those of one kind.
    """
    requests = sorted(SUBNEGOTIATION.findall(answers), key=lambda answer: answer[3])
    rest = SUBNEGOTIATION.sub(b"", answers)
    return requests, NEGOTIATION.findall(rest), NEGOTIATION.sub(b"", rest)


#: What is meant to concern what stands before it in the same piece: suspending answers, and
#: agreeing to them or not.
OVERTAKING = {com_port(code)[:4] for code in (8, 9)}
OVERTAKING |= {command(verb, COM_PORT) for verb in NEGOTIATIONS}

#: These hold from the moment that they are read, too: what is told of the states unasked between
#: two of them depends on whether both have come.
MASKS = {com_port(code)[:4] for code in (10, 11)}
NOTIFICATIONS = re.compile(rb"\xff\xfa,[\x6a\x6b](?:[^\xff]|\xff\xff)\xff\xf0", re.DOTALL)


@given(
    STREAMS.filter(lambda stream: not any(each in stream for each in OVERTAKING)),
    CUTS,
    st.booleans(),
)
@example(com_port(10, b"\x01") + com_port(10, b"\x00"), [7], True)
def test_cuts_change_nothing(stream: bytes, cuts: list[int], is_rfc2217: bool) -> None:
    whole, cut = Client(), Client()
    for client in (whole, cut):
        client.sends(RFC2217_CLIENT if is_rfc2217 else b"")
    whole.sends(stream)
    for piece in pieces(stream, cuts):
        cut.sends(piece)
    assert cut.board.got == whole.board.got
    assert cut.board.status == whole.board.status
    assert cut.told == whole.told
    if any(mask in stream for mask in MASKS):
        for client in (whole, cut):
            client.answers = bytearray(NOTIFICATIONS.sub(b"", client.answers))
    assert by_kind(cut.answers) == by_kind(whole.answers)
    assert whole.queue.is_empty
    assert not whole.queue.is_full


@given(st.lists(st.tuples(STREAMS, st.booleans()), max_size=10))
def test_whatever_waits_is_carried_out_when_the_board_goes_on(
    streams: list[tuple[bytes, bool]],
) -> None:
    client = Client()
    client.sends(RFC2217_CLIENT)
    client.board.stalls = True
    for stream, is_busy in streams:
        client.sends(stream)
        if is_busy:
            client.queue.board_busy()
        else:
            client.queue.board_ready()
        if client.board.waiting and not is_busy:
            client.board.waiting.pop(0)()
    client.queue.board_ready()
    while client.board.waiting:
        client.board.waiting.pop(0)()
    assert client.queue.is_empty
    assert client.queue._waiting_bytes == 0


PURGES = st.sampled_from([com_port(12, bytes([which])) for which in (1, 2, 3)])
MANY = st.builds(bytes.__mul__, st.one_of(TOKENS, PURGES), st.sampled_from([1, 2, 70, 300]))


@given(st.lists(st.tuples(st.lists(st.one_of(MANY, PURGES), max_size=6), st.integers(0, 3))))
def test_the_queue_does_what_a_simple_one_does(rounds: list[tuple[list[bytes], int]]) -> None:
    clients = (Client(), Client(SimpleQueue))
    for client in clients:
        client.sends(RFC2217_CLIENT)
        client.board.stalls = True
    for tokens, what_next in rounds:
        for client in clients:
            client.sends(b"".join(tokens))
            if what_next == 0:
                client.queue.board_busy()
            elif what_next == 1:
                client.queue.board_ready()
            elif client.board.waiting:
                client.board.waiting.pop(0)()
        queue, simple = clients
        assert queue.board.got == simple.board.got
        assert queue.answers + queue.access.data_to_send() == (
            simple.answers + simple.access.data_to_send()
        )
        assert queue.told == simple.told
        assert queue.queue.is_full == simple.queue.is_full
        assert queue.queue.is_empty == simple.queue.is_empty
        assert queue.queue.waiting_bytes == simple.queue.waiting_bytes


@settings(max_examples=50)
@given(st.lists(st.one_of(TOKENS, st.just(b"x" * 65536)), min_size=1, max_size=5), st.booleans())
def test_what_waits_is_bounded_by_the_queue_and_one_read(
    tokens: list[bytes], is_busy: bool
) -> None:
    client = Client()
    client.sends(RFC2217_CLIENT)
    client.board.stalls = True
    if is_busy:
        client.queue.board_busy()
    for round_ in range(READ_AHEAD_EVENTS + 1):
        if client.queue.is_full:
            break
        client.sends(tokens[round_ % len(tokens)])
    largest = max(map(len, tokens))
    assert client.queue._waiting_bytes <= READ_AHEAD_BYTES + largest
    assert len(client.queue._events) <= READ_AHEAD_EVENTS + largest
    # A purge overtakes one that is under way already by being made with it.
    assert len(client.board.waiting) <= 4
