"""An open port: the order of bytes and calls, backpressure, purge."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from gateway.protocol.reset import STRAP
from gateway.protocol.rfc2217 import Linestate, Modemstate
from gateway.protocol.serial_settings import SerialSettings
from gateway.serialport import transport as serial_port
from gateway.serialport.states import PortStates
from gateway.serialport.transport import UNSENT_HIGH_BYTES, UNSENT_LOW_BYTES
from tests.support.port_bench import OTHER, SETTINGS, BenchPort, open_bench
from tests.support.pty_board import turns, until

EMPTY = Linestate.TRANSMIT_HOLDING_EMPTY | Linestate.TRANSMIT_SHIFT_EMPTY

Change = Callable[[BenchPort, Callable[..., None]], None]

CHANGES: dict[str, Change] = {
    "apply": lambda port, done: port.apply(OTHER, done),
    "lines": lambda port, done: port.set_lines(STRAP, done),
    "break": lambda port, done: port.set_break(True, done),
}
CALLS = {"apply": f"apply {OTHER.baudrate}", "lines": "lines", "break": "break"}


async def test_bytes_go_both_ways_at_once() -> None:
    async with open_bench() as bench:
        bench.port.write(b"to the board")
        assert bench.port.unsent_bytes == 0
        assert bench.board.received(12) == b"to the board"
        bench.board.send(b"from the board")
        await until(lambda: bench.received == b"from the board")


async def test_every_call_is_made_on_one_thread_that_is_not_the_loops() -> None:
    async with open_bench() as bench:
        for change in CHANGES.values():
            change(bench.port, bench.noting("done"))
        bench.port.purge(receive=True, transmit=True, done=bench.noting("done"))
        bench.port.read_states(bench.noting("done"))
        await until(lambda: len(bench.events) == 5)
        bench.port.close()
        await until(lambda: not bench.tty.is_open)
        assert len(bench.tty.threads) == 1
        assert threading.get_ident() not in bench.tty.threads


async def test_apply_tells_what_is_in_force_then() -> None:
    async with open_bench() as bench:
        results: list[SerialSettings] = []
        bench.port.apply(OTHER, results.append)
        bench.port.apply(SerialSettings(baudrate=3_000_000_000), results.append)
        await until(lambda: len(results) == 2)
        assert results == [OTHER, OTHER]
        assert bench.port.settings == OTHER


async def test_a_pty_has_no_lines_and_its_board_no_modem_state() -> None:
    async with open_bench() as bench:
        states: list[PortStates] = []
        bench.port.read_states(states.append)
        await until(lambda: states)
        assert states == [PortStates(Modemstate(0), EMPTY)]
        assert not bench.tty.has_lines


async def test_bytes_that_the_kernel_has_not_taken_are_not_told_as_transmitted() -> None:
    async with open_bench() as bench:
        states: list[PortStates] = []
        bench.port.write(b"x" * 300_000)  # more than a pty takes
        bench.port.read_states(states.append)
        await until(lambda: states)
        assert states == [PortStates(Modemstate(0), Linestate(0))]


# --- order


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_is_made_between_the_bytes_before_and_behind_it(name: str) -> None:
    async with open_bench() as bench:
        gone: list[int] = []
        bench.tty.before = lambda _: gone.append(bench.port._transport.gone_bytes)
        before = bench.fill()
        CHANGES[name](bench.port, bench.noting("done"))
        bench.port.write(b"behind")
        await turns(3)
        assert bench.tty.calls == []
        assert await bench.until_sent(len(before) + 6) == before + b"behind"
        await bench.until_events("done")
        assert bench.tty.calls == ["drain", CALLS[name]]
        assert gone == [len(before)] * 2


@pytest.mark.parametrize("name", CHANGES)
async def test_no_byte_behind_a_change_leaves_while_it_is_being_made(name: str) -> None:
    async with open_bench() as bench:
        bench.tty.blocks = CALLS[name]
        bench.port.write(b"before")
        CHANGES[name](bench.port, bench.noting("done"))
        bench.port.write(b"behind")
        await until(lambda: CALLS[name] in bench.tty.calls)
        assert bench.board.received(6) == b"before"
        await turns(3)
        assert not bench.board.has_received_more()
        assert bench.port.unsent_bytes == 6
        bench.tty.door.set()
        assert await bench.until_sent(6) == b"behind"
        assert bench.events == ["done"]


async def test_changes_and_bytes_alternate_as_they_were_asked_for() -> None:
    async with open_bench() as bench:
        board_has_read: list[tuple[str, bytes]] = []

        def read_then_note(call: str) -> None:
            if call != "drain":
                bench.read_some()
                board_has_read.append((call, bytes(bench.sent)))

        bench.tty.before = read_then_note
        bench.port.set_lines(STRAP, bench.noting("1"))
        bench.port.write(b"a")
        bench.port.apply(OTHER, bench.noting("2"))
        bench.port.set_break(True, bench.noting("3"))
        bench.port.write(b"b")
        bench.port.when_sent(bench.noting("4"))
        bench.port.apply(SETTINGS, bench.noting("5"))
        bench.port.write(b"c")
        await bench.until_events("1", "2", "3", "4", "5")
        assert await bench.until_sent(3) == b"abc"
        assert [call for call, _ in board_has_read] == [
            "lines",
            "apply 74880",
            "break",
            "apply 115200",
        ]
        # What a pty's kernel has taken comes a moment later; what it was not given can't.
        assert [b"b" in sent for _, sent in board_has_read[:3]] == [False] * 3
        assert b"c" not in board_has_read[3][1]


async def test_a_stream_that_never_ends_does_not_keep_a_change_from_being_made() -> None:
    async with open_bench() as bench:
        bench.on_resume = lambda: bench.port.write(bytes(UNSENT_HIGH_BYTES))
        bench.port.write(bytes(2 * UNSENT_HIGH_BYTES))
        bench.port.set_lines(STRAP, bench.noting("set"))

        def has_been_set() -> bool:
            bench.read_some()
            return "set" in bench.events

        await until(has_been_set)
        assert bench.events.count("resume") >= 1
        bench.on_resume = lambda: None


async def test_a_change_asked_for_from_the_report_of_another_comes_behind_what_waits() -> None:
    async with open_bench() as bench:
        bench.port.set_lines(
            STRAP, lambda: bench.port.set_break(True, bench.noting("asked for last"))
        )
        bench.port.apply(OTHER, bench.noting("asked for second"))
        await bench.until_events("asked for second", "asked for last")
        assert bench.tty.calls == ["lines", "apply 74880", "break"]


async def test_bytes_written_from_the_report_of_a_change_keep_their_order() -> None:
    async with open_bench() as bench:
        bench.port.set_lines(STRAP, lambda: bench.port.write(b"two"))
        bench.port.write(b"one")
        assert await bench.until_sent(6) == b"onetwo"


async def test_what_the_kernel_holds_is_waited_for_once() -> None:
    async with open_bench() as bench:
        bench.port.set_lines(STRAP, bench.noting("nothing written"))
        bench.port.write(b"bytes")
        bench.port.set_lines(STRAP, bench.noting("bytes written"))
        bench.port.set_lines(STRAP, bench.noting("no more written"))
        await until(lambda: len(bench.events) == 3)
        assert bench.tty.calls == ["lines", "drain", "lines", "lines"]


async def test_a_board_that_takes_nothing_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serial_port, "_DRAIN_LONGEST_S", 0.01)
    async with open_bench() as bench:
        bench.tty.unsent_bytes = 100
        bench.port.write(b"bytes")
        bench.port.set_lines(STRAP, bench.noting("set"))
        await bench.until_events("set")


@pytest.mark.parametrize(
    ("baudrate", "written_bytes", "drain_limit_s"),
    [(115200, 1152, 0.62), (115200, 1_000_000, 2.63), (300, 1_000_000, 26.0), (9600, 800, 1.5)],
)
async def test_unsent_bytes_are_given_the_time_that_the_wire_needs(
    monkeypatch: pytest.MonkeyPatch, baudrate: int, written_bytes: int, drain_limit_s: float
) -> None:
    drain_limits: list[float] = []
    call_limits: list[float] = []
    async with open_bench() as bench:
        bench.port.apply(SerialSettings(baudrate), bench.noting("applied"))
        await bench.until_events("applied")
        submit = bench.port.worker.submit

        def submit_and_note(*args: Callable[..., None], limit_s: float) -> None:
            call_limits.append(limit_s)
            submit(*args, limit_s=limit_s)

        monkeypatch.setattr(bench.tty, "drain", drain_limits.append)
        monkeypatch.setattr(bench.port.worker, "submit", submit_and_note)
        bench.port.write(bytes(written_bytes))
        bench.port.when_sent(bench.noting("sent"))
        await bench.until_sent(written_bytes)
        await until(lambda: "sent" in bench.events)
        assert drain_limits == [pytest.approx(drain_limit_s, abs=0.01)]
        # A drain that takes its time is not stuck.
        assert call_limits[0] == drain_limits[0] + call_limits[1]


async def test_when_sent_waits_for_the_bytes_and_the_kernel() -> None:
    async with open_bench() as bench:
        before = bench.fill()
        bench.port.when_sent(bench.noting("sent"))
        await turns(3)
        assert bench.events == []
        await bench.until_sent(len(before))
        await bench.until_events("sent")
        assert bench.tty.calls == ["drain"]


async def test_the_loop_keeps_off_a_tty_whose_settings_are_being_changed() -> None:
    """The kernel would keep it waiting, and with it every other port."""
    async with open_bench() as bench:
        bench.tty.blocks = CALLS["apply"]
        bench.port.apply(OTHER, bench.noting("done"))
        await until(lambda: bench.tty.calls == [CALLS["apply"]])
        assert not bench.is_watched
        bench.board.send(b"data")
        bench.port.resume_reading()
        bench.port.write(b"data")
        await turns(3)
        assert not bench.is_watched
        assert bench.received == b""
        assert not bench.board.has_received_more()
        bench.tty.door.set()
        await until(lambda: bench.received == b"data")
        assert await bench.until_sent(4) == b"data"


async def test_a_pause_outlasts_a_change_of_the_settings() -> None:
    async with open_bench() as bench:
        bench.port.pause_reading()
        bench.port.apply(OTHER, bench.noting("done"))
        await bench.until_events("done")
        bench.board.send(b"data")
        await turns(3)
        assert bench.received == b""
        bench.port.resume_reading()
        await until(lambda: bench.received == b"data")


async def test_the_board_is_heard_while_other_calls_block() -> None:
    async with open_bench() as bench:
        bench.tty.blocks = "lines"
        bench.port.set_lines(STRAP, bench.noting("done"))
        await until(lambda: bench.tty.calls == ["lines"])
        bench.board.send(b"data")
        await until(lambda: bench.received == b"data")
        assert bench.events == []


# --- backpressure


async def test_the_owner_is_paused_above_the_high_mark_and_resumed_at_the_low_one() -> None:
    async with open_bench() as bench:
        written = bench.fill()
        rest = UNSENT_HIGH_BYTES - bench.port.unsent_bytes
        bench.port.write(bytes(rest))
        assert bench.events == []
        bench.port.write(b"x")
        assert bench.events == ["pause"]
        assert bench.port.unsent_bytes == UNSENT_HIGH_BYTES + 1
        unsent_at_resume: list[int] = []
        bench.on_resume = lambda: unsent_at_resume.append(bench.port.unsent_bytes)
        await bench.until_sent(len(written) + rest + 1)
        assert bench.events == ["pause", "resume"]
        assert unsent_at_resume[0] <= UNSENT_LOW_BYTES


async def test_what_waits_behind_a_change_counts_as_unsent() -> None:
    async with open_bench() as bench:
        bench.tty.blocks = "lines"
        bench.port.set_lines(STRAP, bench.noting("done"))
        bench.port.write(bytes(UNSENT_HIGH_BYTES + 1))
        assert bench.port.unsent_bytes == UNSENT_HIGH_BYTES + 1
        assert bench.events == ["pause"]
        bench.tty.door.set()
        await bench.until_sent(UNSENT_HIGH_BYTES + 1)
        assert bench.events == ["pause", "done", "resume"]


# --- purge


async def test_purging_what_is_to_be_sent_lets_what_waits_for_it_go_on() -> None:
    async with open_bench() as bench:
        written = bench.fill()
        bench.port.write(bytes(2 * UNSENT_HIGH_BYTES))
        bench.port.apply(OTHER, bench.noting("applied"))
        bench.port.when_sent(bench.noting("sent"))
        bench.port.purge(receive=False, transmit=True, done=bench.noting("purged"))
        assert bench.port.unsent_bytes == 0
        await bench.until_events("pause", "resume", "applied", "sent", "purged")
        # The kernel's share goes before the change, else it would leave at another rate.
        assert bench.tty.calls == ["purge", CALLS["apply"]]
        bench.read_some()
        assert len(bench.sent) < len(written)


@pytest.mark.parametrize("wait_for_it", [False, True])
async def test_what_is_written_behind_a_purge_is_not_purged(*, wait_for_it: bool) -> None:
    async with open_bench() as bench:
        bench.fill()
        bench.port.purge(receive=True, transmit=True, done=bench.noting("purged"))
        if wait_for_it:
            await bench.until_events("purged")
        bench.port.write(b"the end")

        def has_ended() -> bool:
            bench.read_some()
            return bench.sent.endswith(b"the end")

        await until(has_ended)
        assert bench.events == ["purged"]


async def test_a_purge_does_not_wait_for_bytes_that_the_board_does_not_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_DRAIN_SLACK_S", "_DRAIN_LONGEST_S"):
        monkeypatch.setattr(serial_port, name, 10_000.0)
    async with open_bench() as bench:
        bench.tty.unsent_bytes = 100
        bench.port.write(b"bytes")
        bench.port.apply(OTHER, bench.noting("applied"))
        await until(lambda: bench.tty.calls == ["drain"])
        bench.port.purge(receive=False, transmit=True, done=bench.noting("purged"))
        await bench.until_events("applied", "purged")
        assert bench.tty.calls == ["drain", "purge", CALLS["apply"]]


async def test_purging_what_was_received_leaves_what_is_to_be_sent_alone() -> None:
    async with open_bench() as bench:
        bench.port.pause_reading()
        await asyncio.sleep(0)
        bench.board.send(b"old")
        written = bench.fill()
        bench.port.purge(receive=True, transmit=False, done=bench.noting("purged"))
        await bench.until_events("purged")
        bench.board.send(b"new")
        bench.port.resume_reading()
        assert await bench.until_sent(len(written)) == written
        await until(lambda: bench.received)
        assert bench.received == b"new"
