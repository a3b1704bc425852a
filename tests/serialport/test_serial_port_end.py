"""How a port begins and ends: opening, closing, hang-up, calls that fail or never return."""

import asyncio
import os
import threading
from collections.abc import Callable

import pytest

from gateway.errors import DeviceAbsentError, DeviceError
from gateway.protocol.reset import STRAP
from gateway.serialport import transport as serial_port
from gateway.serialport.transport import UNSENT_HIGH_BYTES
from gateway.serialport.tty import Tty, TtyLocation
from tests.support import loops
from tests.support.bare_pty import LIMIT_S, BarePty
from tests.support.loops import watched_descriptors
from tests.support.port_bench import OTHER, SETTINGS, BenchPort, PortBench, open_bench
from tests.support.pty_board import turns, until

SOON_S = 0.02

#: Whatever can be asked of a port.
REQUESTS: dict[str, Callable[[BenchPort, Callable[..., None]], None]] = {
    "apply": lambda port, done: port.apply(OTHER, done),
    "lines": lambda port, done: port.set_lines(STRAP, done),
    "break": lambda port, done: port.set_break(True, done),
    "when_sent": lambda port, done: port.when_sent(done),
    "purge": lambda port, done: port.purge(receive=True, transmit=True, done=done),
    "purge received": lambda port, done: port.purge(receive=True, transmit=False, done=done),
    "modemstate": lambda port, done: port.read_states(done),
}


# --- opening


async def test_an_absent_tty_is_reported_as_such_and_leaves_no_thread() -> None:
    errors: list[DeviceError] = []
    with BarePty() as board:
        bench = PortBench(board)
        tty = Tty(TtyLocation(f"{board.path}-absent"), SETTINGS)
        opener = serial_port.Opening(bench, lambda _: None)
        opener.begin(tty, bench._opened, errors.append)
        opener.end()
        await until(lambda: errors)
        assert isinstance(errors[0], DeviceAbsentError)
        assert bench.events == []


async def test_an_unexpected_failure_of_opening_is_told_as_a_device_error() -> None:
    with BarePty() as board:
        bench = PortBench(board)
        bench.tty.fails, bench.tty.error = "open", RuntimeError("unexpected")
        bench.open()
        await until(lambda: bench.events)
        [error] = bench.events
        assert isinstance(error, DeviceError)
        assert str(error) == "unexpected"


async def test_an_open_that_does_not_return_fails_and_is_closed_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serial_port, "_OPEN_LIMIT_S", SOON_S)
    with BarePty() as board:
        bench = PortBench(board)
        bench.tty.blocks = "open"
        bench.open()
        await until(lambda: bench.events)
        assert [str(error) for error in bench.events] == ["the kernel did not answer for 0.02 s"]
        bench.tty.door.set()
        await until(lambda: "close" in bench.tty.calls and not bench.tty.is_open)
        await turns(3)
        assert len(bench.events) == 1
        assert bench.opened is None


async def test_what_came_before_open_is_delivered_and_nothing_is_echoed_from_then_on() -> None:
    with BarePty() as board:
        bench = PortBench(board)
        os.write(board.master, b"early")
        board.received(5)  # echoed by the fresh tty
        bench.open()
        await until(lambda: bench.received == b"early")
        board.send(b"late")
        await until(lambda: bench.received == b"earlylate")
        assert not board.has_received_more()
        bench.port.close()
        await until(lambda: not bench.tty.is_open)


# --- closing


async def test_close_closes_on_the_thread_after_the_loop_has_let_go() -> None:
    async with open_bench() as bench:
        bench.fill()  # so that the loop watches for writing as well
        await turns(2)
        watched: list[bool] = []
        bench.tty.at_close = lambda: watched.append(fd in watched_descriptors())
        fd = bench.tty.descriptor
        assert bench.is_watched
        closed = threading.Event()
        bench.port.close(closed.set)
        assert not bench.is_watched
        assert await asyncio.to_thread(closed.wait, LIMIT_S)
        assert watched == [False]
        assert bench.tty.descriptor == -1


async def test_close_is_told_behind_the_call_that_closes() -> None:
    async with open_bench() as bench:
        seen: list[bool] = []
        bench.port.close(lambda: seen.append(bench.tty.is_open))
        await until(lambda: seen)
        assert seen == [False]


async def test_close_drops_what_is_unsent_and_what_waits() -> None:
    async with open_bench() as bench:
        written = bench.fill()
        bench.port.write(bytes(UNSENT_HIGH_BYTES))
        bench.port.apply(OTHER, bench.noting("applied"))
        bench.port.close()
        await until(lambda: not bench.tty.is_open)
        await turns(3)
        bench.read_some()
        assert len(bench.sent) < len(written)
        assert bench.tty.calls == ["close"]
        assert bench.events == ["pause"]


async def test_close_lets_a_running_call_end_first_and_does_not_report_it() -> None:
    async with open_bench() as bench:
        bench.tty.blocks = "lines"
        bench.port.set_lines(STRAP, bench.noting("set"))
        bench.port.set_break(True, bench.noting("break"))
        await until(lambda: bench.tty.calls == ["lines"])
        descriptor = bench.tty.descriptor
        bench.port.close()
        await turns(3)
        os.fstat(descriptor)  # not closed under the call
        bench.tty.door.set()
        await until(lambda: not bench.tty.is_open)
        assert bench.tty.calls == ["lines", "close"]
        assert bench.events == []


async def test_close_does_not_wait_for_a_board_that_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_DRAIN_SLACK_S", "_DRAIN_LONGEST_S"):
        monkeypatch.setattr(serial_port, name, 10_000.0)
    async with open_bench() as bench:
        bench.tty.unsent_bytes = 100
        bench.port.write(b"bytes")
        bench.port.when_sent(bench.noting("sent"))
        await until(lambda: bench.tty.calls == ["drain"])
        bench.port.close()
        await until(lambda: not bench.tty.is_open)
        assert bench.events == []


async def test_a_result_that_is_on_its_way_when_the_port_is_closed_is_not_reported() -> None:
    async with open_bench() as bench:
        made = threading.Event()
        bench.port.set_lines(STRAP, bench.noting("set"))
        bench.port.worker._inbox.put(made.set)
        assert made.wait(LIMIT_S)  # without a turn of the loop
        bench.port.close()
        await turns(3)
        assert bench.events == []


@pytest.mark.parametrize("request_name", REQUESTS)
async def test_nothing_comes_of_what_is_asked_of_a_closed_port(request_name: str) -> None:
    async with open_bench() as bench:
        bench.fill()
        bench.port.write(bytes(UNSENT_HIGH_BYTES))
        bench.port.close()
        bench.port.close()
        REQUESTS[request_name](bench.port, bench.noting("done"))
        bench.port.write(b"bytes")
        bench.port.pause_reading()
        bench.port.resume_reading()
        await until(lambda: not bench.tty.is_open)
        await turns(3)
        assert bench.tty.calls == ["close"]
        assert bench.events == ["pause"]
        assert bench.lost == []


# --- losing the port


async def test_a_hang_up_delivers_what_came_before_then_tells_once() -> None:
    async with open_bench() as bench:
        bench.board.send(b"last words")
        await until(lambda: bench.received == b"last words")
        bench.board.hang_up()
        await until(lambda: bench.lost)
        assert [str(error) for error in bench.lost] == ["stopped working: hung up"]
        await until(lambda: not bench.tty.is_open)
        await turns(3)
        assert bench.events == ["lost"]
        assert bench.tty.calls == ["close"]


@pytest.mark.parametrize("request_name", [name for name in REQUESTS if name != "when_sent"])
async def test_a_hang_up_seen_by_several_is_told_once_and_nothing_after_it(
    request_name: str,
) -> None:
    async with open_bench() as bench:
        bench.fill()
        bench.port.pause_reading()
        bench.tty.has_lines = True
        bench.board.hang_up()
        bench.port.write(b"bytes")
        REQUESTS[request_name](bench.port, bench.noting("done"))
        bench.port.read_states(bench.noting("modemstate"))
        bench.port.resume_reading()
        await until(lambda: bench.lost)
        await until(lambda: not bench.tty.is_open)
        await turns(3)
        assert len(bench.lost) == 1
        assert bench.events == ["lost"]


async def test_a_failing_write_is_told_after_write_has_returned() -> None:
    async with open_bench() as bench:
        bench.board.hang_up()
        bench.port.write(b"bytes")
        assert bench.events == []
        bench.port.apply(OTHER, bench.noting("done"))
        await bench.until_events("lost")


async def test_a_failing_call_loses_the_port_and_drops_what_waits() -> None:
    async with open_bench() as bench:
        bench.tty.fails, bench.tty.error = "lines", OSError(5, "Input/output error")
        bench.port.set_lines(STRAP, bench.noting("set"))
        bench.port.apply(OTHER, bench.noting("applied"))
        await bench.until_events("lost")
        assert str(bench.lost[0]) == "stopped working: [Errno 5] Input/output error"
        await until(lambda: not bench.tty.is_open)
        assert bench.tty.calls == ["lines", "close"]


async def test_a_port_may_be_closed_from_its_own_loss() -> None:
    async with open_bench() as bench:

        def close(_: Exception | None) -> None:
            bench.events.append("lost")
            bench.port.close()

        bench.connection_lost = close  # type: ignore[method-assign,assignment]
        bench.board.hang_up()
        await bench.until_events("lost")
        await until(lambda: not bench.tty.is_open)
        assert bench.tty.calls == ["close"]


# --- calls that do not return


@pytest.mark.parametrize(
    ("request_name", "call"),
    [("lines", "lines"), ("apply", "apply 74880"), ("modemstate", "modemstate")],
)
async def test_a_stuck_call_loses_the_port_once_and_keeps_its_descriptor(
    monkeypatch: pytest.MonkeyPatch, request_name: str, call: str
) -> None:
    monkeypatch.setattr(serial_port, "_CALL_LIMIT_S", SOON_S)
    async with open_bench() as bench:
        bench.tty.blocks = call
        REQUESTS[request_name](bench.port, bench.noting("done"))
        bench.port.set_break(True, bench.noting("break"))
        await bench.until_events("lost")
        assert [str(error) for error in bench.lost] == ["the kernel did not answer for 0.02 s"]
        descriptor = bench.tty.descriptor
        os.fstat(descriptor)  # still open: nobody else gets its number while the call runs
        assert not bench.is_watched
        bench.port.write(b"bytes")
        bench.port.read_states(bench.noting("modemstate"))
        await asyncio.sleep(2 * SOON_S)
        bench.tty.door.set()
        await until(lambda: not bench.tty.is_open)
        await turns(3)
        assert "close" in bench.tty.calls
        assert "break" not in bench.tty.calls
        assert bench.events == ["lost"]


def test_a_stuck_call_may_return_after_the_loop_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lose_a_port(board: BarePty) -> PortBench:
        bench = PortBench(board)
        bench.open()
        await bench.until_events("opened")
        bench.tty.blocks = "lines"
        bench.port.set_lines(STRAP, bench.noting("set"))
        await bench.until_events("opened", "lost")
        return bench

    monkeypatch.setattr(serial_port, "_CALL_LIMIT_S", SOON_S)
    with BarePty() as board:
        bench = loops.run(lose_a_port(board))
        descriptor = bench.tty.descriptor
        os.fstat(descriptor)
        bench.tty.door.set()
        bench.port.worker._thread.join(LIMIT_S)
        assert not bench.port.worker._thread.is_alive()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        assert bench.events == ["opened", "lost"]
