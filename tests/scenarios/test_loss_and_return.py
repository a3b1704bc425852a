"""A board that leaves the bus: under a client that is kept, under none, and what it gets back."""

from __future__ import annotations

from pathlib import Path

from tests.support.world import (
    BOTH,
    IDLE,
    Control,
    Logged,
    State,
    world,
)


async def test_without_grace_a_client_is_closed_and_the_board_opened_again(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 0") as w:
        client = await w.client()
        w.board.unplug()
        await w.refused(client)
        await w.until(lambda: w.state in {State.ABSENT, State.BROKEN})
        w.board.plug()
        await w.until_idle()
        await w.client()
        assert [event for event in w.events if event.startswith("device_")] == [
            Logged.OPENED,
            Logged.LOST,
            Logged.OPENED,
        ]


async def test_within_the_grace_bytes_settings_and_lines_wait_for_the_board(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "grace_s: 10") as w:
        client = await w.client()
        await client.set_baudrate(921600)
        w.board.unplug()
        await w.until(State.OFFLINE)
        await client.control(Control.DTR_ON, Control.RTS_ON)
        await client.set_baudrate(460800)
        await client.send(b"are you back?")
        await client.settled()
        w.board.calls.forget()
        w.board.plug()
        await w.pass_until(lambda: w.state == State.IN_USE)
        await w.board.reads(b"are you back?")
        assert w.board.baudrate == 460800
        assert w.board.lines == [BOTH, IDLE, BOTH]
        order = [call.name for call in w.board.calls.named("settings", "lines", "write")]
        assert order == ["settings", "lines", "settings", "settings", "lines", "write"]
        await w.board.write(b"yes")
        await client.receive_data(b"yes")


async def test_a_board_that_stays_away_is_lost_with_the_reason(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 10") as w:
        client = await w.client()
        w.board.unplug()
        await w.until(State.OFFLINE)
        await client.send(b"in vain")
        await client.settled()
        await w.pass_time(9.9)
        assert w.state == State.OFFLINE
        await w.refused(client)
        assert "not back within 10 s" in w.said(Logged.DISCONNECTED, "reason")[0]
        assert w.said(Logged.DROPPED, "unsent_bytes") == [7]
        assert w.status.dropped_bytes == 7
