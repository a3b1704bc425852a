"""Moments of a session that a scenario can't bring about: they depend on the event loop."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from gateway.session.listener import Listener
from tests.support.world import world


async def test_bytes_that_are_read_although_reading_is_paused_are_kept(tmp_path: Path) -> None:
    # uvloop reads once before it pauses.
    async with world(tmp_path) as w:
        w.board.start_reading()
        first = await w.client()
        second = await w.connect()
        listener = w.port.way_in
        assert isinstance(listener, Listener)
        await w.until(lambda: len(listener._sessions) == 2)
        (waiting,) = [each for each in listener._sessions if each.label == second.name]
        await w.pass_until(lambda: waiting.state.value == "waiting", step_s=0.01)
        for early in (b"ear", b"ly "):
            waiting.get_buffer(-1)[: len(early)] = early
            waiting.buffer_updated(len(early))
        await second.send(b"and late")
        first.close()
        await w.pass_until(lambda: w.board.received == b"early and late")


async def test_a_session_that_is_closed_before_its_connection_is_made_hangs_up(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        listener = w.port.way_in
        assert isinstance(listener, Listener)
        session = listener._new_session()
        session.close("the gateway is shutting down")
        ours, theirs = socket.socketpair()
        with theirs:
            connected = asyncio.get_running_loop().connect_accepted_socket
            transport, _ = await connected(lambda: session, ours)
            assert transport.is_closing()
            listener.session_ended(session)
        assert (w.state, w.status.sessions) == ("idle", 0)
