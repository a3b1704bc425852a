"""A tty that is left to local tools, and lent to esptool under its clients."""

from __future__ import annotations

from pathlib import Path

from tests.support.world import BOTH, IDLE, Logged, OtherProgram, State, world


async def test_a_released_tty_is_closed_for_a_local_tool_until_it_is_resumed(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        assert not w.board.is_free
        await w.release("for esptool")
        assert (w.state, w.status.reason) == (State.RELEASED, "for esptool")
        assert (await w.refused(await w.asks())) == "desk: released: for esptool\r\n"
        with OtherProgram(w.board.path):
            w.rescan()
            await w.pass_time(60.0)
        w.resume()
        await w.until(State.IDLE)
        # Opened twice, each time from the kernel's (on, on) to rest in one step.
        assert w.board.lines == [BOTH, IDLE, BOTH, IDLE]
        assert [e for e in w.events if e.startswith("device_")] == [
            Logged.OPENED,
            Logged.RELEASED,
            Logged.RESUMED,
            Logged.OPENED,
        ]
