"""A port's tty from the start: opened, absent, broken, held by another program, tried again."""

from __future__ import annotations

import errno
from pathlib import Path

from tests.support.world import (
    BOTH,
    IDLE,
    Logged,
    State,
    world,
)


async def test_an_absent_board_is_opened_when_its_tty_appears(tmp_path: Path) -> None:
    async with world(tmp_path, "baudrate: 74880", plugged_in=False) as w:
        assert (w.state, w.status.reason) == (State.ABSENT, "not plugged in")
        assert (w.status.settings, w.status.lines) == ("", "")
        await w.pass_time(4.0)
        assert w.state == State.ABSENT
        w.board.plug()
        await w.until_idle()
        assert w.board.lines == [BOTH, IDLE]
        assert w.status.settings == "74880 8N1"
        assert w.board.baudrate == 74880


async def test_a_tty_that_does_not_open_is_tried_with_growing_pauses_and_logged_once(
    tmp_path: Path,
) -> None:
    async with world(
        tmp_path, starting=lambda w: w.board.calls.fail("open", OSError(errno.EIO, "broken"))
    ) as w:
        assert w.state == State.BROKEN
        assert "Input/output error" in w.status.reason
        for tries, wait_s in enumerate([0.25, 0.5, 1.0, 2.0, 4.0, 4.0], 1):
            await w.pass_time(wait_s - 0.01)
            assert (w.board.calls.tries, w.state) == (tries, State.BROKEN)
            await w.pass_time(0.01)
            assert w.board.calls.tries == tries + 1
        assert w.events.count(Logged.OPEN_FAILED) == 1
        w.board.calls.mend()
        await w.pass_time(4.0)
        assert w.state == State.IDLE
        # Once it was open, the pauses are short again.
        w.board.unplug()
        await w.until(lambda: w.state != State.IDLE)
        w.board.plug()
        await w.pass_time(0.25)
        assert w.state == State.IDLE


async def test_permissions_that_udev_has_not_set_yet_are_waited_for(tmp_path: Path) -> None:
    denied = PermissionError(errno.EACCES, "denied")
    async with world(
        tmp_path, waits=False, starting=lambda w: w.board.calls.fail("open", denied)
    ) as w:
        await w.pass_time(0.2)
        assert w.board.calls.tries > 5
        assert w.state == State.OPENING
        w.board.calls.mend()
        await w.pass_time(0.02)
        assert w.state == State.IDLE
        assert Logged.OPEN_FAILED not in w.events


async def test_permissions_that_stay_denied_break_the_port(tmp_path: Path) -> None:
    denied = PermissionError(errno.EACCES, "denied")
    async with world(tmp_path, starting=lambda w: w.board.calls.fail("open", denied)) as w:
        assert w.state == State.BROKEN
        assert w.status.reason == "no permission (is the user in group dialout?)"
        assert w.events.count(Logged.OPEN_FAILED) == 1
