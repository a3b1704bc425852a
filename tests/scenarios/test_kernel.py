"""A kernel that answers late, with errors or not at all; and how a port is stopped."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from tests.support.world import (
    BOTH,
    IDLE,
    RESET,
    Control,
    Logged,
    State,
    World,
    baudrate,
    com_port,
    control,
    turns,
    world,
)

#: What a client asks for, by the call on the tty that it comes to.
ASKED = {
    "settings": baudrate(9600),
    "lines": control(Control.RTS_ON),
    "break": control(Control.BREAK_ON),
    "flush": com_port(12, b"\x03"),
}


async def stops(w: World) -> float:
    """Stop the port; return how long it took, which is bounded."""
    began_s = w.clock.now_s
    await w.run(w.stop())
    assert w.state == State.STOPPED
    return w.clock.now_s - began_s


# --- calls that do not return, and calls that fail


@pytest.mark.parametrize("name", ASKED)
async def test_a_call_that_does_not_return_loses_the_board_and_keeps_its_descriptor(
    tmp_path: Path, name: str
) -> None:
    async with world(tmp_path, "grace_s: 0") as w:
        client = await w.client()
        (descriptor,) = w.board.calls.descriptors
        w.board.calls.hang(name)
        await client.send(ASKED[name] + control(Control.DTR_ON) + b"behind")
        await turns(20)
        w.board.calls.hang("open")  # whatever comes next
        await w.clock.advance(8.1)
        await w.clock.advance(1.0)
        await w.until(lambda: w.logged(Logged.LOST))
        assert w.said(Logged.LOST, "reason") == ["the kernel did not answer for 8 s"]
        await w.refused(client)
        os.fstat(descriptor)  # still open: no other file gets its number while the call runs
        calls = len(w.board.calls.log)
        w.board.calls.answer()
        await w.until(lambda: descriptor not in w.board.calls.descriptors)
        names = [call.name for call in w.board.calls.log[calls:]]
        assert names[: names.index("close")] in ([name], [name, "settings"], [name, "flush"])
        assert w.events.count(Logged.LOST) == 1


@pytest.mark.parametrize("name", ASKED)
async def test_a_call_that_fails_loses_the_board_and_nothing_follows_it(
    tmp_path: Path, name: str
) -> None:
    async with world(tmp_path, "grace_s: 0") as w:
        client = await w.client()
        w.board.calls.forget()
        w.board.calls.fail(name, OSError(5, "Input/output error"))
        await client.send(ASKED[name] + b"behind")
        await w.refused(client)
        assert "Input/output error" in w.said(Logged.LOST, "reason")[0]
        assert w.board.calls.log[0].name == "close"
        assert w.events.count(Logged.LOST) == 1


async def test_a_hang_up_delivers_what_came_before_and_is_logged_once(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 0") as w:
        client = await w.client()
        await w.board.write(b"last words")
        await client.receive_data(b"last words")
        await client.send(control(Control.DTR_ON) + b"bytes")
        w.board.unplug()
        await client.send(b"more" + control(Control.DTR_OFF) + baudrate(9600))
        await w.refused(client)
        assert w.said(Logged.LOST, "reason")[0].startswith("stopped working: ")
        assert w.events.count(Logged.LOST) == 1


async def test_a_board_is_not_lost_because_the_gateway_was_held_up(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 0") as w:
        client = await w.client()
        w.board.calls.hang("lines")
        await client.send(control(Control.RTS_ON))
        await turns(3)
        w.clock.jump(60.0)  # neither the loop nor the thread had a turn
        await turns(3)
        w.board.calls.answer()
        await w.until(lambda: w.board.lines[-1] == RESET)
        await client.settled()
        assert Logged.LOST not in w.events


async def test_a_setting_that_is_refused_at_open_is_logged(tmp_path: Path) -> None:
    async with world(tmp_path, "parity: even") as w:  # which the kernel refuses on a pty
        (refused,) = w.logged(Logged.SETTINGS_REFUSED)
        assert str(refused["in_force"]) == "115200 8N1"
        assert w.state == State.IDLE


# --- stopping


async def test_stopping_puts_the_lines_to_rest_and_closes_the_tty(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.control(Control.RTS_ON)
        await client.set_baudrate(9600)
        assert await stops(w) < 2.0
        assert w.board.lines[-2:] == [RESET, IDLE]
        assert (w.board.baudrate, w.board.is_free) == (115200, True)
        reasons = w.said(Logged.DISCONNECTED, "reason")
        assert reasons == ["the gateway is shutting down"]


@pytest.mark.parametrize("kept_by", ["gateway", "kernel"])
async def test_stopping_puts_the_lines_of_a_board_to_rest_that_takes_no_bytes(
    tmp_path: Path, kept_by: str
) -> None:
    """A board that is held in reset takes none, and must not stay so for them."""
    async with world(tmp_path) as w:
        client = await w.client()
        await client.set_baudrate(110)  # the kernel is given 26 s for them
        await client.control(Control.RTS_ON)
        if kept_by == "gateway":
            w.board.calls.room = 0
        else:
            w.board.calls.unsent_bytes = 20_000
        await client.send(b"x" * 1000)
        await w.until(lambda: w.status.sent_bytes == 1000)
        client.close()
        await w.until(State.CLEANUP)
        assert await stops(w) < 2.0
        assert w.board.lines[-2:] == [RESET, IDLE]


@pytest.mark.parametrize("name", ["open", "lines"])
async def test_stopping_leaves_a_kernel_that_does_not_answer_behind(
    tmp_path: Path, name: str
) -> None:
    def start(w: World) -> None:
        if name == "open":
            w.board.calls.hang("open")

    async with world(tmp_path, waits=False, starting=start) as w:
        await w.until(lambda: w.board.calls.tries)
        if name == "lines":
            await w.until(State.IDLE)
            client = await w.client()
            w.board.calls.hang("lines")
            await client.send(control(Control.RTS_ON))
            await turns(20)
            client.close()
        assert await stops(w) < 2.0
        n_threads = threading.active_count()
        # Once the kernel lets go, what was opened is closed and the thread ends.
        w.board.calls.answer()
        await w.until(lambda: threading.active_count() < n_threads)
        assert w.board.is_free
        if name == "open":
            assert w.board.lines == [BOTH, IDLE]


async def test_a_board_that_did_not_open_is_not_opened_once_the_port_has_stopped(
    tmp_path: Path,
) -> None:
    async with world(
        tmp_path, starting=lambda w: w.board.calls.fail("open", OSError(5, "broken"))
    ) as w:
        await stops(w)
        w.board.calls.mend()
        await w.clock.advance(60.0)
        await w.pass_time(10.0)
        assert w.board.calls.tries == 1


@pytest.mark.parametrize("client_stays", [True, False])
async def test_stopping_while_the_board_is_away_leaves_nothing(
    tmp_path: Path, client_stays: bool
) -> None:
    async with world(tmp_path, "grace_s: 10") as w:
        client = await w.client()
        w.board.unplug()
        await w.until(State.OFFLINE)
        if not client_stays:
            client.close()
            await w.until(lambda: w.status.controls == "")
        assert await stops(w) < 2.0
        w.board.plug()
        tries = w.board.calls.tries
        await w.pass_time(60.0)
        assert w.board.calls.tries == tries


async def test_clients_that_wait_are_told_that_the_gateway_stops(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.client()
        waiting = await w.asks()
        await w.pass_time(0.1)
        stopping = asyncio.create_task(w.stop())
        assert await w.refused(waiting) == "desk: the gateway is shutting down\r\n"
        await w.pass_until(stopping.done)
        await stopping
