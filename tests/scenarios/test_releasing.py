"""A tty that is left to local tools, and lent to esptool under its clients."""

from __future__ import annotations

from pathlib import Path

from tests.support.world import BOTH, IDLE, RESET, STRAP, Logged, OtherProgram, State, world


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


async def test_a_lent_tty_comes_back_with_what_the_board_was_sent_meanwhile(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "sharing: preempt") as w:
        client = await w.client()
        async with w.lent() as path:
            assert path == str(w.board.path)
            assert w.board.is_free
            assert w.state == State.OFFLINE
        await w.until(State.IN_USE)
        await client.settled()


async def test_a_claim_resets_the_board_and_enters_its_bootloader(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.board.calls.forget()

        async def reset_then_enter_bootloader() -> None:
            async with w.claim() as claim:
                await claim.reset()
                assert w.board.lines == [RESET, IDLE]
                await claim.enter_bootloader()

        await w.run(reset_then_enter_bootloader())
        assert w.board.lines == [RESET, IDLE, RESET, STRAP, IDLE]
        assert w.said(Logged.RESET, "into") == ["app", "bootloader"]
        await w.until_idle()
