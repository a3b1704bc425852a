"""Several clients at one port, by each of the YAML's rules."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.world import Logged, Notice, State, world


async def test_exclusive_rejects_a_second_client_and_names_the_first(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        first = await w.client()
        second = await w.asks()
        await w.pass_time(0.45)
        assert not w.logged(Logged.REFUSED)
        told = await w.refused(second)
        assert re.fullmatch(re.escape(Notice.in_use(first)) + r"\d\d:\d\d:\d\d\r\n", told)
        await w.board.write(b"for the first")
        await first.receive_data(b"for the first")


async def test_preempt_suspends_a_client_until_the_other_has_left(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        monitor = await w.client()
        await monitor.set_baudrate(74880)
        flasher = await w.client()
        await monitor.is_told(Notice.suspended(flasher))
        assert w.board.baudrate == 115200
        await flasher.set_baudrate(921600)
        assert (w.status.controls, w.status.observes) == (flasher.name, monitor.name)
        flasher.close()
        await monitor.is_told(Notice.RESUMED)
        await w.until(lambda: w.board.baudrate == 74880)
        assert w.state == State.IN_USE
        assert w.status.controls == monitor.name
