"""The client on what gateways answer, and on what is no gateway."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.flash.client import GatewayClient, RequestError
from gateway.flash.files import Images
from gateway.flash.outcome import Outcome
from gateway.flash.plan import FlashImage, FlashPlan, plan_from_json
from gateway.flash.target import Address
from tests.support.processes import free_tcp_port

LIMIT_S = 30.0
DATA = b"\r\n--an image\xff" * 10000
PLAN = FlashPlan((FlashImage(0x1000, len(DATA), hashlib.sha256(DATA).hexdigest(), "app.bin"),))
IMAGES = Images(PLAN, (DATA,))


@contextmanager
def answering(answer: bytes, *, reads: bool = True) -> Iterator[tuple[GatewayClient, bytearray]]:
    """A server that gives one answer to one request, and what it has received."""
    received = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT_S)

        def serve() -> None:
            connection, _ = server.accept()
            connection.settimeout(LIMIT_S)
            with connection, contextlib.suppress(ConnectionError):
                while not _is_whole(received) if reads else b"\r\n\r\n" not in received:
                    received.extend(connection.recv(65536))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield GatewayClient(Address("127.0.0.1", server.getsockname()[1], tls=False)), received
        finally:
            thread.join()


def _is_whole(request: bytearray) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    if not end:
        return False
    sizes = [
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Len")
    ]
    return len(body) >= sum(sizes)


def http(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


DONE = '{"event": "done", "outcome": "written", "message": ""}\n'


def flash(client: GatewayClient) -> tuple[Outcome, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return client.flash("desk 1/2", IMAGES, events.append), events


def test_the_ports_of_a_gateway() -> None:
    with answering(http('{"ports": [{"name": "desk"}]}')) as (client, received):
        assert client.ports() == [{"name": "desk"}]
    assert received.startswith(b"GET /api/ports HTTP/1.1\r\n")
    assert b"Authorization" not in received


def test_images_are_sent_with_their_plan_and_events_come_back() -> None:
    with answering(http('{"event": "chip", "chip": "ESP32"}\n' + DONE)) as (client, received):
        outcome, events = flash(GatewayClient(client.address, "secret"))
    assert outcome is Outcome.WRITTEN
    assert events[-2:] == [
        {"event": "chip", "chip": "ESP32"},
        {"event": "done", "outcome": "written", "message": ""},
    ]
    sent = [event["sent"] for event in events if event["event"] == "upload"]
    assert sent == sorted(sent)
    assert (sent[0], sent[-1]) == (0, len(DATA))
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/ports/desk%201%2F2/flash HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret" in head
    assert b"Content-Type: application/octet-stream" in head
    plan, _, data = body.partition(b"\n")
    assert plan_from_json(plan) == PLAN
    assert data == DATA


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        (http('{"error": "no!"}', "401 Unauthorized"), Outcome.NOT_ALLOWED, "no!"),
        (http('{"error": "desk: in use"}', "409 Conflict"), Outcome.BUSY, "desk: in use"),
        (http('{"error": "a", "outcome": "absent"}', "409 C"), Outcome.ABSENT, "a"),
        (http("<html>", "404 Not Found"), Outcome.UNREACHABLE, "HTTP status 404"),
        (http('{"error": "our mistake"}', "500 Error"), Outcome.FAILED, "our mistake"),
        (http(""), Outcome.UNREACHABLE, "hung up before the end"),
        (http('{"event": "chip"}\n'), Outcome.UNREACHABLE, "hung up before the end"),
        (http("hello\n"), Outcome.FAILED, "something else than progress"),
        (http("[]\n"), Outcome.FAILED, "something else than progress"),
        (http('{"event": "done", "outcome": "new"}\n'), Outcome.FAILED, "something else"),
        (b"SSH-2.0\r\n", Outcome.UNREACHABLE, "SSH-2.0"),
        (b"", Outcome.UNREACHABLE, "127.0.0.1"),
    ],
)
def test_what_goes_wrong_has_an_outcome_and_one_line(
    answer: bytes, outcome: Outcome, reason: str
) -> None:
    with answering(answer) as (client, _), pytest.raises(RequestError) as failed:
        flash(client)
    assert failed.value.outcome is outcome
    assert reason in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_gateway_that_refuses_before_it_has_read_all_is_heard_or_gone() -> None:
    answer = http('{"error": "desk: in use"}', "409 Conflict")
    with answering(answer, reads=False) as (client, _), pytest.raises(RequestError) as failed:
        flash(client)
    # What had come is lost when the kernel hears that more was sent than was read.
    assert failed.value.outcome in {Outcome.BUSY, Outcome.UNREACHABLE}


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"ports": 7}', '{"ports": [7]}'])
def test_what_is_no_gateway_is_not_taken_for_one(body: str) -> None:
    with answering(http(body)) as (client, _), pytest.raises(RequestError) as failed:
        client.ports()
    assert failed.value.outcome is Outcome.UNREACHABLE
    assert "is no esp-gateway" in str(failed.value)


def test_where_nobody_listens_another_address_is_proposed() -> None:
    client = GatewayClient(Address("127.0.0.1", free_tcp_port(), tls=False))
    with pytest.raises(RequestError, match=r"Connection refused \(another address: --http\)"):
        client.ports()


def test_another_thread_can_hang_up() -> None:
    client_is_there = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = GatewayClient(Address("127.0.0.1", server.getsockname()[1], tls=False))
        failed: list[RequestError] = []

        def run() -> None:
            try:
                client.flash("desk", IMAGES, lambda _: client_is_there.set())
            except RequestError as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert client_is_there.wait(LIMIT_S)
        client.hang_up()
        thread.join(LIMIT_S)
        assert [error.outcome for error in failed] == [Outcome.UNREACHABLE]


def test_a_file_of_certificates_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(RequestError, match=name) as failed:
            GatewayClient(Address("lab", 8443, tls=True), "", tmp_path / name)
        assert failed.value.outcome is Outcome.WRONG_INPUT
