"""What one client sends, as it reaches the board: in the order of its stream, however it is cut."""

from __future__ import annotations

import asyncio
import random
import re
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway import clock
from tests.support import loops
from tests.support.clock import ControlledClock
from tests.support.com_port import (
    SET_PARITY,
    baudrate_answer,
    linestate_mask,
    purge,
    purge_answer,
    stopsize,
    stopsize_answer,
)
from tests.support.gateway_end import GatewayEnd, deliver, until_stalled
from tests.support.telnet_wire import command, do, will, wont
from tests.support.world import (
    BOTH,
    IDLE,
    RESET,
    STRAP,
    Client,
    Control,
    Logged,
    World,
    baudrate,
    com_port,
    control,
    control_answers,
    until,
    world,
)

CORPUS = Path(__file__).parent.parent / "corpus"
ALL_BYTES = bytes(range(256))

#: The most that the gateway keeps of what a client has sent: 64 KiB that the tty has not taken,
#: 256 KiB that wait, with one more read of 64 KiB on top of each. A pty takes some 20 KiB.
KEPT_BYTES = 65536 + 262144 + 2 * 65536
PTY_BYTES = 32768
#: As many requests may wait, beside those of one call of the parser.
KEPT_REQUESTS = 1024 + 256
#: More than is kept, and than the kernel takes on the way.
MUCH = random.Random(1).randbytes(8_000_000).replace(b"\xff", b"\xfe")


CHANGES = ("settings", "lines", "break", "flush")


def doubled(data: bytes) -> bytes:
    return data.replace(b"\xff", b"\xff\xff")


def carried_out(w: World, changes: tuple[str, ...] = CHANGES) -> list[tuple[str, Any]]:
    """What was done to the tty, without reading it and waiting; adjacent writes as one."""
    done: list[tuple[str, Any]] = []
    for name, value in w.board.calls.since(0, "write", *changes):
        if name == "write" and done and done[-1][0] == "write":
            done[-1] = (name, done[-1][1] + value)
        else:
            done.append((name, value))
    return done


def answers_in(wire: bytes | bytearray) -> bytes:
    """The answers to commands, without what is told of the board's lines unasked."""
    commands = re.findall(rb"\xff\xfa,(?:[^\xff]|\xff\xff)*\xff\xf0", bytes(wire), re.DOTALL)
    return b"".join(each for each in commands if each[3] not in {106, 107})


# --- bytes


async def test_bytes_of_all_values_go_both_ways_unchanged(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.send(doubled(ALL_BYTES * 300))
        await w.board.reads(ALL_BYTES * 300)
        writing = asyncio.create_task(w.board.write(ALL_BYTES * 300))
        await client.receive_data(ALL_BYTES * 300)
        await writing


# --- requests behind bytes and behind each other

#: What comes in one segment, what is done to the tty for it, and the answers.
IN_ORDER: dict[str, tuple[bytes, list[tuple[str, Any]], bytes]] = {
    "settings between bytes": (
        b"a" + baudrate(9600) + b"b" + baudrate(19200) + b"c",
        [
            ("write", b"a"),
            ("settings", "9600 8N1"),
            ("write", b"b"),
            ("settings", "19200 8N1"),
            ("write", b"c"),
        ],
        baudrate_answer(9600) + baudrate_answer(19200),
    ),
    "settings in force": (
        baudrate(115200) + baudrate(0) + com_port(SET_PARITY, b"\0"),
        [],
        baudrate_answer(115200) * 2 + com_port(SET_PARITY + 100, b"\1"),
    ),
    "settings over each other": (
        baudrate(9600) + stopsize(2),
        [("settings", "9600 8N1"), ("settings", "9600 8N2")],
        baudrate_answer(9600) + stopsize_answer(2),
    ),
    "both lines in one step": (
        control(Control.DTR_ON, Control.RTS_ON),
        [("lines", BOTH)],
        control_answers(Control.DTR_ON, Control.RTS_ON),
    ),
    "a reset, whose ends the network has brought together": (
        control(Control.RTS_ON, Control.DTR_ON, Control.RTS_OFF, Control.DTR_OFF),
        [("lines", RESET), ("lines", STRAP), ("lines", IDLE)],
        control_answers(Control.RTS_ON, Control.DTR_ON, Control.RTS_OFF, Control.DTR_OFF),
    ),
    "lines with a question between them": (
        control(Control.DTR_ON, Control.REQUEST_DTR, Control.DTR_OFF),
        [("lines", STRAP), ("lines", IDLE)],
        control_answers(Control.DTR_ON, Control.DTR_ON, Control.DTR_OFF),
    ),
    "lines behind bytes": (
        b"a" + control(Control.DTR_ON) + b"b",
        [("write", b"a"), ("lines", STRAP), ("write", b"b")],
        control_answers(Control.DTR_ON),
    ),
    "a break around bytes": (
        control(Control.BREAK_ON) + b"x" + control(Control.REQUEST_BREAK, Control.BREAK_OFF),
        [("break", True), ("write", b"x"), ("break", False)],
        control_answers(Control.BREAK_ON, Control.BREAK_ON, Control.BREAK_OFF),
    ),
    "a purge of what was received": (
        b"a" + purge(1) + b"b",
        [("write", b"a"), ("flush", "input"), ("write", b"b")],
        purge_answer(1),
    ),
    "a purge of what was sent, once": (
        b"a" + purge(2) + b"b",
        [("write", b"a"), ("flush", "output"), ("write", b"b")],
        purge_answer(2),
    ),
    "a purge of both": (
        purge(3) + b"b",
        [("flush", "output"), ("flush", "input"), ("write", b"b")],
        purge_answer(3),
    ),
    "2000 settings": (
        b"".join(baudrate(rate) + b"x" for rate in [9600, 19200] * 1000),
        [("settings", "9600 8N1"), ("write", b"x"), ("settings", "19200 8N1"), ("write", b"x")]
        * 1000,
        (baudrate_answer(9600) + baudrate_answer(19200)) * 1000,
    ),
}


@pytest.mark.parametrize("case", IN_ORDER)
async def test_requests_of_one_segment_are_carried_out_and_answered_in_order(
    tmp_path: Path, case: str
) -> None:
    sent, done, answers = IN_ORDER[case]
    async with world(tmp_path) as w:
        client = await w.client()
        client.received.clear()
        w.board.calls.forget()
        await client.send(sent)
        await w.run(client.receive(lambda: len(answers_in(client.received)) >= len(answers)))
        await w.pass_until(lambda: len(carried_out(w)) >= len(done))
        assert carried_out(w) == done
        assert answers_in(client.received) == answers


async def test_a_line_that_does_not_move_is_answered_after_20_ms(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        client.received.clear()
        w.board.calls.hang("lines")
        await deliver(client, control(Control.DTR_ON, Control.REQUEST_DTR) + b"x")
        await w.pass_time(0.019)
        assert answers_in(client.received) == b""
        await w.pass_time(0.001)
        await client.receive_wire(control_answers(Control.DTR_ON))
        assert (w.board.lines[-1], w.board.calls.named("write")) == (IDLE, [])
        w.board.calls.answer()
        await client.receive_wire(control_answers(Control.DTR_ON) * 2)  # to the question
        await w.board.reads(b"x")
        assert w.board.lines[-1] == STRAP


# --- purges


@pytest.mark.parametrize("buffers", [2, 3])
@pytest.mark.parametrize("stuck_bytes", [20_000, 100_000, 330_000])
async def test_a_purge_gets_through_to_a_board_that_takes_nothing(
    tmp_path: Path, buffers: int, stuck_bytes: int
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        client.received.clear()
        half = b"x" * (stuck_bytes // 2)
        await client.send(half + control(Control.RTS_ON) + half + purge(buffers))
        await w.run(client.receive_wire(purge_answer(buffers)))
        answers = control_answers(Control.RTS_ON) + purge_answer(buffers)
        assert answers_in(client.received) == answers
        w.board.start_reading()
        await client.send(b"fresh")
        await until(lambda: w.board.received.endswith(b"fresh"))
        assert len(w.board.received) < PTY_BYTES, "what was stuck has been sent"


async def test_a_purge_overtakes_bytes_and_not_the_changes_among_them(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        client.received.clear()
        w.board.calls.forget()
        await client.send(b"x" * 100_000 + baudrate(9600) + b"stuck" + purge(2) + b"fresh")
        await client.receive_wire(purge_answer(2))
        await w.until(lambda: carried_out(w)[-1] == ("write", b"fresh"))
        assert [each for each in carried_out(w) if each[0] != "write"] == [
            ("flush", "output"),  # ahead of all that waits
            ("settings", "9600 8N1"),
            ("flush", "output"),  # in its turn
        ]
        assert answers_in(client.received) == baudrate_answer(9600) + purge_answer(2)


async def test_a_purge_of_what_was_received_overtakes_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.forget()
        w.board.calls.room = 0
        await deliver(client, b"x" * 100_000 + purge(1))
        assert w.board.calls.named("flush") == []
        w.board.calls.room = None
        w.board.start_reading()
        await client.receive_wire(purge_answer(1))
        await until(lambda: len(w.board.received) == 100_000)


# --- bounds


async def test_a_board_that_does_not_read_stops_the_client_without_loss(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.room = 0
        sending = asyncio.create_task(client.send(MUCH))
        assert 262144 < await until_stalled(client) <= KEPT_BYTES
        assert not sending.done()
        w.board.calls.room = None
        w.board.start_reading()
        await sending
        await until(lambda: len(w.board.received) >= len(MUCH))
        assert w.board.received == MUCH


async def test_a_client_that_asks_behind_a_stuck_board_is_read_no_more(tmp_path: Path) -> None:
    question = control(Control.REQUEST_DTR)
    n_questions = 1_000_000
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.room = 0
        await deliver(client, b"x" * 100_000)
        sending = asyncio.create_task(client.send(question * n_questions))
        read_bytes = await until_stalled(client) - 100_000
        # What is parsed waits as requests, the rest of two reads at most as bytes.
        assert read_bytes <= KEPT_REQUESTS * len(question) + 2 * 65536
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        w.board.calls.room = None
        w.board.start_reading()
        n_answers = client.received.count(control_answers(Control.DTR_OFF))
        assert n_answers == 0
        await client.receive(lambda: GatewayEnd(client).read_bytes > read_bytes + 200_000)


async def test_a_client_is_read_again_once_a_purge_has_made_room(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.send(b"x" * (262144 + 65536) + purge(2))
        await client.receive_wire(purge_answer(2))
        await client.control(Control.DTR_ON)


# --- any segmentation


END = b"<the end>"


async def settled(w: World, client: Client) -> None:
    """All that the client has sent is carried out and answered, resets and breaks included."""
    await client.send(END)
    await w.pass_until(lambda: w.board.received.endswith(END), step_s=0.25)
    await w.pass_time(1.5)


def comparable(w: World, client: Client) -> tuple[object, ...]:
    """What must be the same, however a stream was cut.

    Options, masks and SIGNATURE are answered as soon as they are read, the others when they are
    carried out: there is an order among those of one kind. How two commands for lines are cut
    decides whether they are one step.
    """
    wire = bytes(client.received)
    subnegotiations = re.findall(rb"\xff\xfa(?:[^\xff]|\xff\xff)*\xff\xf0", wire)
    answers = sorted((each for each in subnegotiations if each[3] not in {106, 107}), key=_kind)
    options = re.findall(rb"\xff[\xfb-\xfe].", wire, re.DOTALL)
    done = carried_out(w, changes=("settings", "break", "flush"))
    logged = w.logged(Logged.VIOLATED, Logged.IDENTIFIED, Logged.DISCONNECTED)
    logged = [{**entry, "client": None} for entry in logged]
    return done, w.status.settings, w.status.lines, answers, options, client.data, logged


def _kind(answer: bytes) -> int:
    return answer[3]


async def _played(segments: list[bytes]) -> tuple[object, ...]:
    with TemporaryDirectory() as folder:
        async with world(Path(folder), "hold_s: 0.05") as w:
            client = await w.client()
            end = GatewayEnd(client)
            w.board.start_reading()
            w.board.calls.forget()
            for segment in segments:
                await client.send(segment)
                # More than is read ahead may have to wait for a reset that takes its time.
                await w.pass_until(lambda: end.read_bytes >= client.sent_bytes)
            await settled(w, client)
            return comparable(w, client)


def played(segments: list[bytes]) -> tuple[object, ...]:
    """What becomes of a stream that comes in these segments."""

    async def on_its_own_clock() -> tuple[object, ...]:
        with clock.use(ControlledClock()):
            return await _played(segments)

    return loops.run(on_its_own_clock())


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    at = [0, *sorted({place for place in places if 0 < place < len(stream)}), len(stream)]
    return [stream[a:b] for a, b in pairwise(at)]


#: Complete requests. Those to suspend output and to purge what is to be sent are left out: they
#: concern what stands before them and has not been carried out.
TOKENS = st.one_of(
    st.binary(max_size=8).map(doubled),
    st.builds(com_port, st.sampled_from([0, 1, 2, 3, 4, 6, 7, 10, 11]), st.binary(max_size=5)),
    st.builds(com_port, st.just(5), st.integers(0, 20).map(lambda value: bytes([value]))),
    st.builds(command, st.integers(240, 249)),
    st.builds(
        lambda verb, option: verb(option),
        st.sampled_from([do, will, wont]),
        st.sampled_from([0, 1, 3, 99]),
    ),
)
STREAMS = st.lists(TOKENS, max_size=20).map(b"".join)


@settings(max_examples=20)
@given(STREAMS, st.lists(st.integers(1, 200), max_size=8))
@example(linestate_mask(1) + linestate_mask(0), [7])
@example(b"a" + purge(1) + b"\xff\xff" + baudrate(9600) + b"b", list(range(60)))
@example(control(Control.RTS_ON, Control.DTR_ON, Control.RTS_OFF) + b"x", list(range(60)))
def test_cuts_change_nothing(stream: bytes, places: list[int]) -> None:
    assert played(cut(stream, places)) == played([stream])


RECORDED = ["esptool-flash-id", "gensio-settings", "idf-monitor", "pyserial-settings", "ser2net"]


@pytest.mark.parametrize("name", RECORDED)
def test_the_stream_of_a_real_client_may_be_cut_anywhere(name: str) -> None:
    stream = (CORPUS / f"{name}.bin").read_bytes()
    stream = stream.replace(purge(2), purge(1)).replace(purge(3), purge(1))
    whole = played([stream])
    rng = random.Random(name)
    places = range(len(stream)) if len(stream) < 300 else rng.sample(range(len(stream)), 300)
    assert played(cut(stream, list(places))) == whole
