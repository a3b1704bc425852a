"""The client: how boards are named, what gateways answer, and several boards at once."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.flash.client import (
    INTERRUPTED,
    Address,
    Boards,
    GatewayClient,
    Target,
    find_names,
    read_address,
    read_target,
)
from gateway.flash.files import Images
from gateway.flash.plan import (
    FlashError,
    FlashImage,
    FlashPlan,
    Outcome,
    WrongInputError,
    plan_from_json,
)
from tests.support.processes import free_tcp_port

LIMIT_S = 30.0

# Names of boards and gateways.

PORTS: list[dict[str, Any]] = [
    {"name": "desk", "tcp_port": 4001},
    {"name": "4002", "tcp_port": 4003},
    {"name": "nat", "tcp_port": None},
]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("lab:4001", Target("lab", (4001,))),
        ("lab:4001,4002", Target("lab", (4001, 4002))),
        ("10.0.0.5:4001", Target("10.0.0.5", (4001,))),
        ("[fe80::1]:4001", Target("fe80::1", (4001,))),
        ("lab/desk,4002", Target("lab", ("desk", "4002"))),
        ("rfc2217://lab:4001?ign_set_control", Target("lab", (4001,))),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert read_target(text) == target


@pytest.mark.parametrize(
    "text", ["", "lab", "lab:", "lab:x", "lab:0", "lab:70000", "lab:4001,", "lab:4001,4001", ":1"]
)
def test_invalid_targets(text: str) -> None:
    with pytest.raises(WrongInputError, match=f"invalid board address '{text}': expected HOST:"):
        read_target(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (None, "http://lab:8080"),
        ("", "http://lab:8080"),
        ("other", "http://other:8080"),
        ("other:81", "http://other:81"),
        ("https://other", "https://other:443"),
        ("https://other:8443/", "https://other:8443"),
        ("[::1]:81", "http://[::1]:81"),
    ],
)
def test_addresses(text: str | None, address: str) -> None:
    assert str(read_address(text, "lab")) == address


@pytest.mark.parametrize(
    "text", ["ftp://lab", "http://", "http://lab:x", "lab/api", "http://[::1", "http://lab:99999"]
)
def test_invalid_addresses(text: str) -> None:
    with pytest.raises(WrongInputError, match="invalid HTTP address"):
        read_address(text, "lab")


def test_ports_are_found_by_tcp_port_and_by_name() -> None:
    assert find_names(Target("lab", (4001, 4003)), PORTS, "lab") == ["desk", "4002"]
    assert find_names(Target("lab", ("nat", "4002")), PORTS, "lab") == ["nat", "4002"]


@pytest.mark.parametrize(
    ("target", "ports", "message"),
    [
        (
            Target("lab", (4002,)),
            PORTS,
            "at has no port 4002; it has: nat (lab/nat), desk (4001), 4002 (4003)",
        ),
        (Target("fd00::1", (7001,)), PORTS[2:], "it has: nat ([fd00::1]/nat)"),
        (Target("lab", ("desk",)), [], "at has no port desk; it has: none"),
        (Target("lab", (4001, "desk")), PORTS, "same port twice: desk, desk"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(
    target: Target, ports: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(FlashError) as error:
        find_names(target, ports, "at")
    assert error.value.outcome is Outcome.UNREACHABLE
    assert str(error.value).endswith(message)


# One gateway.

DATA = b"\r\n--an image\xff" * 10000
PLAN = FlashPlan((FlashImage(0x1000, len(DATA), hashlib.sha256(DATA).hexdigest(), "app.bin"),))
IMAGES = Images(PLAN, (DATA,))
DONE = '{"event": "done", "outcome": "written", "message": ""}\n'


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
            address = Address("127.0.0.1", server.getsockname()[1], tls=False)
            yield GatewayClient(address, "secret"), received
        finally:
            thread.join()


def _is_whole(request: bytearray) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    sizes = [
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Len")
    ]
    return bool(end) and len(body) >= sum(sizes)


def http(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def flash(client: GatewayClient) -> tuple[Outcome, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return client.flash("desk 1/2", IMAGES, events.append), events


def test_the_ports_of_a_gateway() -> None:
    with answering(http('{"ports": [{"name": "desk"}]}')) as (client, received):
        assert GatewayClient(client.address).ports() == [{"name": "desk"}]
    assert received.startswith(b"GET /api/v1/ports HTTP/1.1\r\n")
    assert b"Authorization" not in received


def test_images_are_sent_with_their_plan_and_events_come_back() -> None:
    with answering(http('{"event": "chip", "chip": "ESP32"}\n' + DONE)) as (client, received):
        outcome, events = flash(client)
    assert outcome is Outcome.WRITTEN
    assert events[-2:] == [
        {"event": "chip", "chip": "ESP32"},
        {"event": "done", "outcome": "written", "message": ""},
    ]
    sent = [event["sent"] for event in events if event["event"] == "upload"]
    assert sent == sorted(sent)
    assert (sent[0], sent[-1]) == (0, len(DATA))
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/v1/ports/desk%201%2F2/flash HTTP/1.1\r\n")
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
        (http("hello\n"), Outcome.FAILED, "something else than events"),
        (http("[]\n"), Outcome.FAILED, "something else than events"),
        (http('{"event": "done", "outcome": "new"}\n'), Outcome.FAILED, "something else"),
        (b"SSH-2.0\r\n", Outcome.UNREACHABLE, "SSH-2.0"),
        (b"", Outcome.UNREACHABLE, "127.0.0.1"),
    ],
)
def test_what_goes_wrong_has_an_outcome_and_one_line(
    answer: bytes, outcome: Outcome, reason: str
) -> None:
    with answering(answer) as (client, _), pytest.raises(FlashError) as failed:
        flash(client)
    assert failed.value.outcome is outcome
    assert reason in str(failed.value)
    assert "\n" not in str(failed.value)


def test_a_gateway_that_rejects_before_it_has_read_all_is_heard_or_gone() -> None:
    answer = http('{"error": "desk: in use"}', "409 Conflict")
    with answering(answer, reads=False) as (client, _), pytest.raises(FlashError) as failed:
        flash(client)
    # What had come is lost when the kernel hears that more was sent than was read.
    assert failed.value.outcome in {Outcome.BUSY, Outcome.UNREACHABLE}


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"ports": 7}', '{"ports": [7]}'])
def test_what_is_no_gateway_is_not_taken_for_one(body: str) -> None:
    with answering(http(body)) as (client, _), pytest.raises(FlashError) as failed:
        client.ports()
    assert failed.value.outcome is Outcome.UNREACHABLE
    assert "is not an esp-gateway" in str(failed.value)


def test_where_nothing_listens_another_address_is_proposed() -> None:
    client = GatewayClient(Address("127.0.0.1", free_tcp_port(), tls=False))
    with pytest.raises(FlashError, match=r"Connection refused \(another address: --http\)"):
        client.ports()


@pytest.mark.parametrize("name", ["ca.pem", "missing.pem"])
def test_a_file_of_certificates_that_is_none_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(WrongInputError, match=name):
        GatewayClient(Address("lab", 8443, tls=True), "", tmp_path / name)


def test_another_thread_can_hang_up() -> None:
    has_begun = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = GatewayClient(Address("127.0.0.1", server.getsockname()[1], tls=False))

        def hang_up() -> None:
            assert has_begun.wait(LIMIT_S)
            client.hang_up()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(FlashError) as failed:
            client.flash("desk", IMAGES, lambda _: has_begun.set())
        thread.join()
    assert failed.value.outcome is Outcome.UNREACHABLE


# Several boards.

TWO_IMAGES = Images(FlashPlan((FlashImage(0, 1, "", "a"), FlashImage(4096, 1, "", "b"))), ())


class FakeClient:
    """Has an outcome for each board, an error, or events until `hang_up`; all at the same time."""

    def __init__(self, results: dict[str, Outcome | FlashError | list[str]]) -> None:
        self._results = results
        self._all_there = threading.Barrier(len(results), timeout=LIMIT_S)
        self._hung_up = threading.Event()

    def flash(
        self, name: str, images: Images, report: Callable[[Any], None], *, disconnect: bool
    ) -> Outcome:
        assert (images, disconnect) == (TWO_IMAGES, True)
        self._all_there.wait()
        result = self._results[name]
        if isinstance(result, FlashError):
            raise result
        if isinstance(result, Outcome):
            report({"event": "done", "message": f"of {name}"})
            return result
        for event in result:
            kind, _, image = event.partition(" ")
            report({"event": kind, "image": int(image or 0)})
        report({"event": "waiting for hang_up"})
        assert self._hung_up.wait(LIMIT_S)
        report({"event": "line"})  # what was on its way
        raise FlashError(Outcome.UNREACHABLE, "hung up")

    def hang_up(self) -> None:
        self._hung_up.set()


class FakeDisplay:
    """Writes down how each board has ended."""

    def __init__(self) -> None:
        self.ends: dict[str, tuple[Outcome, str]] = {}
        self.waiting: set[str] = set()
        self.changed = threading.Condition()
        self.is_closed = False

    def event(self, board: str, event: dict[str, Any]) -> None:
        with self.changed:
            if event["event"] == "waiting for hang_up":
                self.waiting.add(board)
            self.changed.notify()

    def ended(self, board: str, outcome: Outcome, message: str) -> None:
        with self.changed:
            assert board not in self.ends
            self.ends[board] = outcome, message
            self.changed.notify()

    def close(self) -> None:
        self.is_closed = True


def flash_boards(results: dict[str, Any], display: FakeDisplay) -> int:
    client = cast("GatewayClient", FakeClient(results))
    code = Boards(client, TWO_IMAGES, display, disconnect=True).flash(list(results))
    assert display.is_closed
    return code


def test_all_are_flashed_at_the_same_time() -> None:
    display = FakeDisplay()
    assert flash_boards(dict.fromkeys("abc", Outcome.WRITTEN), display) == 0
    assert display.ends == {name: (Outcome.WRITTEN, f"of {name}") for name in "abc"}


def test_the_exit_code_is_that_of_the_first_that_has_failed() -> None:
    display = FakeDisplay()
    gone = FlashError(Outcome.UNREACHABLE, "gone")
    results = {"a": Outcome.WRITTEN, "b": gone, "c": Outcome.INCOMPLETE}
    assert flash_boards(results, display) == Outcome.UNREACHABLE.exit_code
    assert display.ends["b"] == (Outcome.UNREACHABLE, "gone")
    assert len(display.ends) == 3


@pytest.mark.parametrize(
    ("events", "outcome", "state"),
    [
        ([], Outcome.FAILED, "before anything was done to the board"),
        (["upload", "port"], Outcome.FAILED, "before anything was done to the board"),
        (["port", "started"], Outcome.FAILED, "before anything was written"),
        (["started", "chip"], Outcome.INCOMPLETE, "the board does not start until it is flashed"),
        (["chip", "progress"], Outcome.INCOMPLETE, "the board does not start until it is flashed"),
        (
            ["chip", "verified 0"],
            Outcome.INCOMPLETE,
            "the board does not start until it is flashed",
        ),
        (["verified 0", "verified 1"], Outcome.FAILED, "when all was written and verified"),
    ],
)
def test_a_ctrl_c_shows_the_state_of_each_board_that_is_not_done(
    monkeypatch: pytest.MonkeyPatch, events: list[str], outcome: Outcome, state: str
) -> None:
    display = FakeDisplay()

    def interrupt(*_: object) -> None:
        with display.changed:
            assert display.changed.wait_for(lambda: display.ends and display.waiting, LIMIT_S)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupt)
    before = signal.getsignal(signal.SIGINT)
    results = {"a": events, "b": Outcome.WRITTEN}
    assert flash_boards(results, display) == INTERRUPTED == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert display.ends.pop("b") == (Outcome.WRITTEN, "of b")
    [(ended, message)] = display.ends.values()
    assert ended is outcome
    assert state in message
