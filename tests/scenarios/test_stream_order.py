"""Bytes and changes reach the tty in the order in which a client sends them; purges overtake."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.loops import watched_descriptors
from tests.support.world import (
    PURGE_BOTH,
    PURGE_RECEIVE,
    PURGE_TRANSMIT,
    STRAP,
    Control,
    State,
    World,
    baudrate,
    com_port,
    control,
    turns,
    world,
)

#: What a client may ask for, and the call on the tty that it comes to.
CHANGES: dict[str, tuple[bytes, tuple[str, Any]]] = {
    "settings": (baudrate(9600), ("settings", "9600 8N1")),
    "lines": (control(Control.DTR_ON), ("lines", STRAP)),
    "break": (control(Control.BREAK_ON), ("break", True)),
}
EACH_CHANGE = pytest.mark.parametrize("name", CHANGES)


def done(w: World) -> list[tuple[str, Any]]:
    """What has been done to the tty since the records were forgotten, but for waiting."""
    return [(call.name, call.value) for call in w.board.calls.log if call.name != "drain"]


@EACH_CHANGE
async def test_a_change_is_made_between_the_bytes_before_and_behind_it(
    tmp_path: Path, name: str
) -> None:
    command, call = CHANGES[name]
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.forget()
        w.board.calls.room = 3
        await client.send(b"before" + command + b"behind")
        await w.until(lambda: done(w) == [("write", b"bef")])
        await turns(20)
        assert done(w) == [("write", b"bef")]
        w.board.calls.room = None
        await w.board.reads(b"beforebehind")
        assert done(w) == [("write", b"bef"), ("write", b"ore"), call, ("write", b"behind")]


@EACH_CHANGE
async def test_no_byte_behind_a_change_leaves_while_it_is_being_made(
    tmp_path: Path, name: str
) -> None:
    command, call = CHANGES[name]
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.forget()
        w.board.calls.hang(name)
        await client.send(b"before" + command + b"behind")
        await w.board.reads(b"before")
        await turns(20)
        assert done(w) == [("write", b"before")]
        w.board.calls.answer()
        await w.board.reads(b"beforebehind")
        assert done(w) == [("write", b"before"), call, ("write", b"behind")]


async def test_changes_and_bytes_alternate_as_they_were_sent(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.forget()
        await client.send(
            CHANGES["lines"][0] + b"a" + CHANGES["settings"][0] + CHANGES["break"][0] + b"b"
        )
        await client.send(control(Control.BREAK_OFF) + baudrate(115200) + b"c")
        await w.board.reads(b"abc")
        assert done(w) == [
            ("lines", STRAP),
            ("write", b"a"),
            ("settings", "9600 8N1"),
            ("break", True),
            ("write", b"b"),
            ("break", False),
            ("settings", "115200 8N1"),
            ("write", b"c"),
        ]


async def test_what_the_kernel_holds_is_waited_for_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.forget()
        await client.control(Control.DTR_ON)
        await client.send(b"bytes")
        await client.control(Control.DTR_OFF)
        await client.control(Control.BREAK_ON)
        names = [call.name for call in w.board.calls.log]
        assert names == ["lines", "write", "drain", "lines", "break"]


async def test_a_stream_that_does_not_end_does_not_keep_another_client_s_change_waiting(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "sharing: shared") as w:
        streaming, other = await w.client(), await w.client()
        sending = asyncio.create_task(streaming.send(bytes(8_000_000)))
        await w.until(lambda: w.status.sent_bytes > 65536)
        asking = asyncio.create_task(other.control(Control.DTR_ON))
        await w.board.reads_until(asking.done)
        assert not sending.done()
        await w.board.reads_bytes(8_000_000)
        await sending


async def test_a_board_that_takes_nothing_is_not_waited_for_without_end(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.unsent_bytes = 100  # for ever, as the driver says
        await client.send(b"bytes" + control(Control.DTR_ON))
        await w.until(lambda: w.board.lines[-1] == STRAP)


@pytest.mark.parametrize(
    ("bps", "n_bytes", "limit_s"),
    [(115200, 1152, 0.62), (115200, 60_000, 2.63), (300, 60_000, 26.0), (9600, 800, 1.5)],
)
async def test_bytes_in_the_kernel_are_given_the_time_that_the_wire_needs(
    tmp_path: Path, bps: int, n_bytes: int, limit_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monotonic, passed_s = time.monotonic, [0.0]

    def note(name: str) -> None:
        if name == "unsent":  # each look takes a while
            passed_s[0] += limit_s / 50

    def of_thread() -> float:
        return 0.0 if threading.current_thread() is threading.main_thread() else passed_s[0]

    async with world(tmp_path) as w:
        client = await w.client()
        await client.set_baudrate(bps)
        await client.send(bytes(n_bytes))
        await w.board.reads_bytes(n_bytes)
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + of_thread())
        began_s = monotonic()
        w.board.calls.on_call = note
        w.board.calls.unsent_bytes = 100
        w.board.calls.hang("unsent")
        await client.send(control(Control.DTR_ON))
        await turns(20)
        await w.clock.advance(limit_s + 7.0)  # a wait for the wire is no kernel that hangs
        assert w.state == State.IN_USE
        w.board.calls.answer()
        await w.until(lambda: w.board.lines[-1] == STRAP)
        assert passed_s[0] <= limit_s * 1.05
        assert passed_s[0] + monotonic() - began_s >= limit_s - 0.01


async def test_a_burst_is_read_at_once_and_in_bounded_pieces(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        sent_bytes = w.board.write_some(bytes(60_000))
        while w.board.unread_bytes < 4095:  # all that a tty gives at a time
            threading.Event().wait(0.001)  # without a turn of the loop
        turn_bytes = []
        while sum(w.board.calls.reads) < sent_bytes:
            before = sum(w.board.calls.reads)
            await asyncio.sleep(0)
            turn_bytes.append(sum(w.board.calls.reads) - before)
        assert max(turn_bytes) > 4095
        assert max(turn_bytes) <= 65536 + 4095
        await client.receive_data(bytes(sent_bytes))


async def test_a_rate_that_the_driver_refuses_leaves_the_former_in_force(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.set_baudrate(74880)
        await client.set_baudrate(3_000_000_000, in_force=74880)
        assert w.status.settings == "74880 8N1"


async def test_all_calls_that_may_block_are_made_on_one_other_thread(tmp_path: Path) -> None:
    threads: dict[str, set[int]] = {}

    def note(name: str) -> None:
        threads.setdefault(name, set()).add(threading.get_ident())

    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.on_call = note
        await client.send(b"bytes")
        for command, _ in CHANGES.values():
            await client.send(command)
        await client.purge(PURGE_BOTH)
        await client.settled()
        client.close()
        await w.until_idle()
        await w.release()
        w.board.calls.on_call = lambda _: None
        assert threads.pop("write") == {threading.get_ident()}
        assert {"settings", "lines", "break", "flush", "close"} <= set(threads)
        assert len(set.union(*threads.values())) == 1
        assert threading.get_ident() not in set.union(*threads.values())


async def test_the_loop_keeps_off_a_tty_whose_settings_are_being_changed(tmp_path: Path) -> None:
    """The kernel would keep it waiting, and with it every other port."""
    async with world(tmp_path) as w:
        client = await w.client()
        (descriptor,) = w.board.calls.descriptors
        assert descriptor in watched_descriptors()
        w.board.calls.hang("settings")
        await client.send(baudrate(9600) + b"to the board")
        await w.until(lambda: descriptor not in watched_descriptors())
        await w.board.write(b"from the board")
        await turns(20)
        assert descriptor not in watched_descriptors()
        await client.reads_what_has_come()
        assert client.data == b""
        w.board.calls.answer()
        await client.receive_data(b"from the board")
        await w.board.reads(b"to the board")


async def test_the_board_is_heard_while_other_calls_block(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.hang("lines")
        await client.send(control(Control.DTR_ON))
        await w.board.write(b"I am here")
        await client.receive_data(b"I am here")


async def stops_reading(w: World) -> int:
    """Wait until the gateway reads nothing more of the board; return how much it has read."""
    received_bytes = -1
    while received_bytes != w.status.received_bytes:
        received_bytes = w.status.received_bytes
        await turns(200)
    assert w.board.unread_bytes > 4000
    return received_bytes


async def test_a_client_that_reads_nothing_stops_the_board_also_over_a_change_of_settings(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        client = await w.client(receive_buffer_bytes=4096)
        writing = asyncio.create_task(w.board.write(b"x" * 8_000_000))
        received_bytes = await stops_reading(w)
        await client.send(baudrate(9600))
        await w.until(lambda: w.board.baudrate == 9600)
        assert await stops_reading(w) == received_bytes
        client.set_receive_buffer(1 << 20)
        await client.receive(lambda: len(client.received) >= 8_000_000)
        await writing
        await client.receive(lambda: client.received.count(b"x") == 8_000_000)


# --- back-pressure and purge


async def test_a_client_is_stopped_while_the_board_takes_nothing_and_goes_on_behind(
    tmp_path: Path,
) -> None:
    much = bytes(range(250)) * 32_000
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.room = 0
        sending = asyncio.create_task(client.send(much))
        await w.until(lambda: w.status.sent_bytes > 65536)
        await turns(50)
        assert not sending.done()
        assert w.status.sent_bytes <= 65536 + 65536
        w.board.calls.room = w.status.sent_bytes - 16384 - 1
        stopped_at = w.status.sent_bytes
        await turns(50)
        assert w.status.sent_bytes == stopped_at  # it goes on below 16 KiB
        w.board.calls.room = None
        await w.board.reads(much)
        await sending


async def test_a_purge_lets_go_on_what_waits_for_bytes_and_comes_before_it(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.forget()
        w.board.calls.room = 0
        await client.send(b"x" * 1000 + baudrate(9600) + b"dropped as well")
        await w.until(lambda: w.status.sent_bytes == 1000)
        await client.purge(PURGE_TRANSMIT)
        await client.settled()
        # What the kernel has is dropped first, or it would leave at another rate.
        assert done(w)[:2] == [("flush", "output"), ("settings", "9600 8N1")]
        w.board.calls.room = None
        await client.send(b"the end")
        await w.board.reads(b"the end")


async def test_a_purge_does_not_wait_for_bytes_that_the_board_does_not_take(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.set_baudrate(110)  # the kernel is given 26 s for them
        w.board.calls.unsent_bytes = 20_000
        await client.send(b"x" * 4000 + baudrate(9600))
        await w.until(lambda: w.status.sent_bytes == 4000)
        await client.purge(PURGE_TRANSMIT)
        await client.settled()
        assert w.board.baudrate == 9600


async def test_a_purge_of_what_was_received_leaves_what_is_to_be_sent_alone(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.forget()
        w.board.calls.room = 0
        await client.send(b"kept")
        await client.send(com_port(12, bytes([PURGE_RECEIVE])))
        await w.until(lambda: w.board.calls.named("flush"))
        w.board.calls.room = None
        await w.board.reads(b"kept")
        assert done(w) == [("flush", "input"), ("write", b"kept")]
