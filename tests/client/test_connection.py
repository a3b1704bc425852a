"""What `test_protocol_gateway` does not see: many threads at once, late and unrequested answers."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from gateway.client import connection as connection_module
from gateway.client.address import Address
from gateway.client.connection import (
    Connection,
    ConnectionEndedError,
    NoAnswerError,
    Received,
    kind_of,
)
from gateway.protocol import rfc2217
from gateway.protocol.rfc2217 import encode
from tests.support.scripted_access_server import LIMIT_S, ScriptedAccessServer


@pytest.fixture
def server() -> Iterator[ScriptedAccessServer]:
    with ScriptedAccessServer() as running:
        yield running


@pytest.fixture
def connection(server: ScriptedAccessServer) -> Iterator[Connection]:
    tcp_port = int(server.url().rpartition(":")[2])
    made = Connection(Address("127.0.0.1", tcp_port, timeout_s=LIMIT_S))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("controls", "kind"),
    [
        (range(4), "flow"),
        (range(4, 7), "break"),
        (range(7, 10), "dtr"),
        (range(10, 13), "rts"),
        (range(13, 20), "flow"),
    ],
)
def test_an_answer_to_set_control_is_about_one_thing(controls: range, kind: str) -> None:
    assert {kind_of(rfc2217.SetControl(control)) for control in controls} == {kind}


def test_threads_that_ask_at_once_all_get_their_answers(
    server: ScriptedAccessServer, connection: Connection
) -> None:
    def ask(number: int) -> None:
        for _ in range(50):
            connection.ask([rfc2217.SetBaudrate(9600), rfc2217.SetDatasize(7 + number % 2)])
            connection.write(b"%d" % number, None)

    with ThreadPoolExecutor(4) as pool:
        for asked in [pool.submit(ask, number) for number in range(4)]:
            asked.result(LIMIT_S)
    server.wait_for(lambda: len(server.data()) == 200)
    assert sorted(server.data()) == sorted(b"0123" * 50)
    assert len(server.commands()) == 400


def test_writes_of_two_threads_do_not_mix(
    server: ScriptedAccessServer, connection: Connection
) -> None:
    texts = [bytes([number]) * 100_000 for number in b"ab"]
    with ThreadPoolExecutor(2) as pool:
        for written in [pool.submit(connection.write, text, None) for text in texts]:
            assert written.result(LIMIT_S) == 100_000
    server.wait_for(lambda: len(server.data()) == 200_000)
    assert server.data() in {texts[0] + texts[1], texts[1] + texts[0]}


def test_an_answer_that_nobody_asked_for_answers_nothing_else(
    server: ScriptedAccessServer, connection: Connection
) -> None:
    server.say(encode(rfc2217.SetBaudrate(300)))
    server.wait_for(lambda: "SetBaudrate" in connection.in_force)
    connection.ask([rfc2217.SetBaudrate(9600)])
    assert connection.in_force["SetBaudrate"] == rfc2217.SetBaudrate(9600)


def test_an_answer_that_comes_too_late_is_not_the_next_ones(
    server: ScriptedAccessServer, connection: Connection
) -> None:
    connection._timeout_s = 0.05
    server.answer = lambda _: b""
    with pytest.raises(NoAnswerError, match=r"no answer to SetBaudrate in 0\.05 s"):
        connection.ask([rfc2217.SetBaudrate(9600)])
    assert not any(connection._unanswered.values())


def test_the_stream_of_a_server_that_makes_no_sense_ends_the_connection(
    server: ScriptedAccessServer, connection: Connection
) -> None:
    server.say(b"last\xff\xfa" + b"x" * 1000)
    server.wait_for(lambda: connection.received.ended)
    with pytest.raises(ConnectionEndedError, match="subnegotiation longer"):
        connection.write(b"x", None)


def test_data_in_front_of_an_answer_does_not_hold_it_up(
    server: ScriptedAccessServer, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.client.connection.MAX_WAITING_BYTES", 1000)
    server.answer = lambda each: b"x" * 1_000_000 + encode(each)
    connection.ask([rfc2217.SetBaudrate(9600)])
    assert connection.received.take(1_000_000, 0, None, 0.0) == b"x" * 1_000_000


# What waits to be read.

#: So long that a test that waits for it hangs.
NEVER_S = 3600.0


@pytest.fixture
def received() -> Iterator[Received]:
    buffer = Received(threading.Condition())
    yield buffer
    buffer.close()


@contextmanager
def in_thread(action: Callable[[], object]) -> Iterator[Future[object]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(action)


def wait_until_waited_for(received: Received) -> None:
    """Until some thread waits for news."""
    deadline_s = time.monotonic() + LIMIT_S
    while not received.news._waiters:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_a_reader_waits_for_all_it_wants(received: Received) -> None:
    with in_thread(lambda: received.take(4, None, None, 0.0)) as taken:
        for piece in (b"ab", b"c", b"de"):
            wait_until_waited_for(received)
            received.feed(piece)
        assert taken.result(LIMIT_S) == b"abcd"
    assert len(received) == 1


def test_a_gap_ends_reading_but_only_behind_something(received: Received) -> None:
    received.feed(b"ab")
    assert received.take(4, None, 0.001, 0.0) == b"ab"
    with in_thread(lambda: received.take(4, None, 0.001, 0.0)) as taken:
        wait_until_waited_for(received)
        assert not taken.done()
        received.feed(b"c")
        assert taken.result(LIMIT_S) == b"c"


def test_a_reader_that_has_something_does_not_wait_for_a_reply(received: Received) -> None:
    received.feed(b"x")
    assert received.take(2, 0.001, None, time.monotonic() + NEVER_S) == b"x"
    assert received.take(1, 0, None, time.monotonic() + NEVER_S) == b""


def test_cancelling_before_the_read_counts_once(received: Received) -> None:
    received.cancel()
    received.feed(b"ab")
    assert received.take(1, None, None, 0.0) == b"a"  # needs not wait
    assert received.take(2, None, None, 0.0) == b"b"
    with in_thread(lambda: received.take(1, None, None, 0.0)) as taken:
        wait_until_waited_for(received)
        received.feed(b"c")
        assert taken.result(LIMIT_S) == b"c"


def test_purging_forgets_what_came_and_what_comes_before_the_answer(received: Received) -> None:
    received.feed(b"old")
    received.purge(time.monotonic() + NEVER_S)
    received.purge(time.monotonic() + NEVER_S)
    received.feed(b"on its way")
    received.purged()
    received.feed(b"on its way, too")
    received.purged()
    received.feed(b"new")
    received.purged()  # nobody has asked
    assert received.take(100, 0, None, 0.0) == b"new"


def test_a_server_that_does_not_answer_a_purge_is_heard_all_the_same(received: Received) -> None:
    received.purge(time.monotonic())
    time.sleep(0.001)
    received.feed(b"new")
    assert received.take(100, 0, None, 0.0) == b"new"


@pytest.mark.parametrize("cut", range(8))
def test_an_end_is_found_wherever_the_stream_is_cut(received: Received, cut: int) -> None:
    text = b"a\rb\r\nc\n"
    with in_thread(lambda: received.take_until(b"\r\n", None, None, 0.0, restart=False)) as taken:
        received.feed(text[:cut])
        received.feed(text[cut:])
        assert taken.result(LIMIT_S) == b"a\rb\r\n"
    assert received.take(100, 0, None, 0.0) == b"c\n"


@pytest.mark.parametrize(
    ("size", "taken"), [(None, b"ab\n"), (1, b"a"), (2, b"ab"), (3, b"ab\n"), (4, b"ab\n")]
)
def test_a_size_cuts_what_is_read_up_to_an_end(
    received: Received, size: int | None, taken: bytes
) -> None:
    received.feed(b"ab\ncd")
    assert received.take_until(b"\n", size, 0, 0.0, restart=True) == taken


@pytest.mark.parametrize("restart", [True, False])
def test_a_line_without_an_end_is_given_when_the_time_is_up(
    received: Received, restart: bool
) -> None:
    received.feed(b"prompt> ")
    assert received.take_until(b"\n", None, 0.001, 0.0, restart=restart) == b"prompt> "
    assert received.take_until(b"\n", None, 0.001, 0.0, restart=restart) == b""


def test_the_receiver_pauses_while_too_much_waits(
    received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "MAX_WAITING_BYTES", 4)
    received.wait_for_room()
    received.feed(b"1234")
    with in_thread(received.wait_for_room) as has_room:
        wait_until_waited_for(received)
        assert not has_room.done()
        received.take(1, 0, None, 0.0)
        has_room.result(LIMIT_S)


def test_a_read_of_more_than_may_wait_gets_all(
    received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "MAX_WAITING_BYTES", 4)
    with in_thread(lambda: received.take(10, None, None, 0.0)) as taken:
        for _ in range(10):
            received.wait_for_room()
            received.feed(b"x")
        assert taken.result(LIMIT_S) == b"x" * 10


def test_answers_are_heard_behind_too_much_data(
    received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "MAX_WAITING_BYTES", 4)
    monkeypatch.setattr(connection_module, "MAX_WAITING_BYTES_AHEAD_OF_ANSWERS", 8)
    received.feed(b"1234")
    with in_thread(received.wait_for_room) as has_room:
        wait_until_waited_for(received)
        with received.news:
            received.answers_awaited += 1
            received.news.notify_all()
        has_room.result(LIMIT_S)
    received.feed(b"5678")
    with in_thread(received.wait_for_room) as has_room:
        wait_until_waited_for(received)
        assert not has_room.done()
        received.drop()
        has_room.result(LIMIT_S)


def test_the_descriptor_can_be_read_while_there_is_something(received: Received) -> None:
    def is_readable() -> bool:
        return bool(select.select([received.fileno()], [], [], 0)[0])

    received.feed(b"before anybody asked")
    assert is_readable()
    assert received.take(3, 0, None, 0.0)
    assert is_readable()
    received.take(100, 0, None, 0.0)
    assert not is_readable()
    received.feed(b"a")
    received.feed(b"b")
    assert is_readable()
    received.take(2, 0, None, 0.0)
    assert not is_readable()
    received.end("gone")
    assert is_readable()
