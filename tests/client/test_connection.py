"""What `test_protocol_gateway` does not see: many threads at once, and answers nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.client.address import Address
from gateway.client.connection import Connection, ConnectionEndedError, NoAnswerError, kind_of
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
