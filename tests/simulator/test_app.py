import pytest

from gateway.simulator.app import (
    BUSY_BYTES,
    MAX_LINE_BYTES,
    MAX_PATTERN_BYTES,
    PROMPT,
    RECEIVE_BUFFER_BYTES,
    App,
    pattern,
)

SECOND = 1_000_000_000
MUCH = 1 << 30


def started(heartbeat_ns: int = 0, started_ns: int = 0) -> App:
    app = App("desk", heartbeat_ns, started_ns)
    assert app.take(MUCH) == b"I (0) app: ready\r\n" + PROMPT
    return app


def answer(app: App, typed: bytes) -> bytes:
    app.receive_data(typed)
    return app.take(MUCH)


def test_characters_are_echoed_as_they_come() -> None:
    app = started()
    assert answer(app, b"he") == b"he"
    assert answer(app, b"llo") == b"llo"


@pytest.mark.parametrize("enter", [b"\r", b"\n", b"\r\n"])
def test_enter_answers_the_line_once(enter: bytes) -> None:
    assert answer(started(), b"version" + enter) == (
        b"version\r\ndesk simulated app 1.0\r\n" + PROMPT
    )


def test_crlf_may_come_in_two_pieces() -> None:
    app = started()
    assert answer(app, b"\r") == b"\r\n" + PROMPT
    assert answer(app, b"\n") == b""
    assert answer(app, b"\n") == b"\r\n" + PROMPT


def test_help_names_every_command() -> None:
    text = answer(started(), b"help\r")
    assert all(command in text for command in (b"help", b"version", b"bytes N"))


@pytest.mark.parametrize("line", [b"reboot", b"bytes", b"bytes x", b"bytes -1", b"bytes 1 2"])
def test_unknown_line_comes_back_with_a_question_mark(line: bytes) -> None:
    assert answer(started(), line + b"\r") == line + b"\r\n? " + line + b"\r\n" + PROMPT


def test_backspace_takes_back_what_was_typed_and_no_more() -> None:
    app = started()
    assert answer(app, b"x\b\x7f") == b"x\b \b"
    assert answer(app, b"\r") == b"\r\n" + PROMPT


def test_bytes_sends_the_fixed_pattern() -> None:
    sent = answer(started(), b"bytes 5000\r")
    assert sent == b"bytes 5000\r\n" + pattern(5000) + b"\r\n" + PROMPT


def test_pattern_is_the_same_from_its_start_and_holds_every_value() -> None:
    assert pattern(100_000)[:4096] == pattern(4096)
    assert set(pattern(4096)) == set(range(256))


def test_pattern_is_limited() -> None:
    sent = answer(started(), b"bytes %d\r" % (MAX_PATTERN_BYTES + 1))
    assert b"? at most %d bytes" % MAX_PATTERN_BYTES in sent


def test_line_that_is_too_long_is_cut() -> None:
    app = started()
    assert answer(app, b"x" * (MAX_LINE_BYTES + 10)) == b"x" * MAX_LINE_BYTES
    assert answer(app, b"y\r").startswith(b"\r\n? x")


def test_heartbeats_are_counted_from_the_start() -> None:
    app = started(heartbeat_ns=2 * SECOND, started_ns=5 * SECOND)
    assert app.next_deadline() == 7 * SECOND
    app.handle_timer(7 * SECOND - 1)
    assert app.unsent_bytes == 0
    app.handle_timer(7 * SECOND)
    assert app.take(MUCH) == b"\r\nI (2000) app: heartbeat 1\r\n" + PROMPT
    assert app.next_deadline() == 9 * SECOND


def test_heartbeat_shows_the_half_typed_line_again() -> None:
    app = started(heartbeat_ns=SECOND)
    answer(app, b"ver")
    app.handle_timer(SECOND)
    assert app.take(MUCH).endswith(PROMPT + b"ver")


def test_missed_heartbeats_are_left_out() -> None:
    app = started(heartbeat_ns=SECOND)
    app.handle_timer(10 * SECOND)
    assert app.take(MUCH).count(b"heartbeat") == 1
    assert app.next_deadline() == 11 * SECOND


def test_no_heartbeat_breaks_into_a_long_answer() -> None:
    app = started(heartbeat_ns=SECOND)
    app.receive_data(b"bytes 100000\r")
    app.handle_timer(SECOND)
    assert app.take(MUCH).endswith(pattern(100_000) + b"\r\n" + PROMPT)


def test_without_heartbeat_there_is_no_deadline() -> None:
    assert started(heartbeat_ns=0).next_deadline() is None


def test_busy_app_answers_what_it_received_when_it_is_done() -> None:
    app = started()
    app.receive_data(b"bytes 100000\r")
    app.receive_data(b"version\r")
    app.take(len(b"bytes 100000\r\n") + 100_000 - BUSY_BYTES)
    assert b"simulated app" not in app.take(BUSY_BYTES)
    assert b"simulated app" in app.take(MUCH)


def test_busy_app_keeps_a_bounded_amount_of_input() -> None:
    app = started()
    app.receive_data(b"bytes 100000\r")
    app.receive_data(b"\r" * (RECEIVE_BUFFER_BYTES + 1000))
    sent = bytearray()
    while chunk := app.take(MUCH):
        sent += chunk
    assert sent.count(b"\r\n" + PROMPT) == 1 + RECEIVE_BUFFER_BYTES


def test_output_is_handed_out_in_order_and_once() -> None:
    app = started()
    app.receive_data(b"abc")
    assert [app.take(2), app.take(2), app.take(2)] == [b"ab", b"c", b""]
