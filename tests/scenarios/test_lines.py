"""DTR and RTS between a client that sends one command after the other and a board that is reset.

What each strategy plays is tests/protocol's and the ioctl records' subject; here, when lines move.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.world import (
    BOTH,
    IDLE,
    RESET,
    STRAP,
    ClientError,
    Control,
    Lines,
    Logged,
    State,
    UsbIds,
    World,
    control,
    control_answers,
    turns,
    world,
)

HOLD_S = 1.0
#: The least that EN and IO0 are held (docs/reset.md).
MIN_RESET_S = MIN_STRAP_S = 0.05
KEYS = f"hold_s: {HOLD_S}"
PICO, NUCLEO = (0x2E8A, 0x0005), (0x0483, 0x374B)


def moved(w: World) -> list[Lines]:
    """The states of the lines since the tty was opened."""
    return w.board.lines[2:]


async def test_a_line_has_moved_when_its_command_is_answered(tmp_path: Path) -> None:
    async with world(tmp_path, KEYS) as w:
        client = await w.client()
        for code, lines in (
            (Control.DTR_ON, STRAP),
            (Control.DTR_OFF, IDLE),
            (Control.RTS_ON, RESET),
            (Control.RTS_OFF, IDLE),
        ):
            await client.control(code)  # no time passes
            assert w.board.lines[-1] == lines
            await w.pass_time(0.2)


async def test_commands_that_change_nothing_are_answered_and_not_played(tmp_path: Path) -> None:
    async with world(tmp_path, KEYS) as w:
        client = await w.client()
        await client.control(Control.DTR_OFF, Control.RTS_OFF)
        assert moved(w) == []


async def test_a_tty_without_modem_lines_is_served_as_well(tmp_path: Path) -> None:
    async with world(tmp_path, KEYS, has_lines=False) as w:
        assert w.logged(Logged.OPENED)[0]["has_lines"] is False
        client = await w.client()
        await w.run(client.control(Control.RTS_ON, Control.RTS_OFF, Control.DTR_ON))
        assert w.status.lines == "DTR on, RTS off"
        assert w.board.calls.named("lines") == []


async def test_commands_that_come_together_are_one_step(tmp_path: Path) -> None:
    async with world(tmp_path, KEYS) as w:
        client = await w.client()
        await client.send(control(Control.DTR_ON, Control.RTS_ON))
        await client.receive_wire(control_answers(Control.DTR_ON, Control.RTS_ON))
        assert moved(w) == [BOTH]


async def test_the_first_half_of_an_entry_is_held_back_until_its_time_is_over(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, KEYS) as w:
        client = await w.client()
        await client.control(Control.RTS_ON)
        await w.pass_time(MIN_RESET_S)
        await client.control(Control.DTR_ON)  # answered at once
        assert (moved(w), w.status.lines) == ([RESET], "DTR on, RTS on")
        await w.pass_time(HOLD_S - 0.01)
        assert moved(w) == [RESET]
        await w.pass_time(0.01)
        assert moved(w) == [RESET, BOTH]


async def test_the_other_half_of_an_entry_makes_it_one_step(tmp_path: Path) -> None:
    async with world(tmp_path, KEYS) as w:
        client = await w.client()
        await client.control(Control.RTS_ON)
        await w.pass_time(MIN_RESET_S)
        await client.control(Control.DTR_ON, Control.RTS_OFF)
        await w.pass_time(2 * HOLD_S)
        assert moved(w) == [RESET, STRAP]


async def test_a_short_reset_is_made_long_enough(tmp_path: Path) -> None:
    async with world(tmp_path, KEYS) as w:
        client = await w.client()
        await client.control(Control.RTS_ON)
        await client.send(control(Control.RTS_OFF))
        await w.pass_time(MIN_RESET_S - 0.001)
        assert moved(w) == [RESET]
        await w.pass_time(0.001)
        assert moved(w) == [RESET, IDLE]


@pytest.mark.parametrize(
    ("codes", "states", "least_s"),
    [
        ((Control.RTS_ON, Control.RTS_OFF), [RESET, IDLE], MIN_RESET_S),
        ((Control.DTR_ON, Control.DTR_OFF), [STRAP, IDLE], None),
    ],
    ids=["reset", "no reset"],
)
async def test_a_state_lasts_from_when_the_line_has_moved(
    tmp_path: Path, codes: tuple[Control, Control], states: list[Lines], least_s: float | None
) -> None:
    """A USB device, or bytes that were written before, may delay the change."""
    async with world(tmp_path, KEYS) as w:
        client = await w.client()
        w.board.calls.hang("lines")
        await client.send(control(*codes))
        await turns(20)
        await w.pass_time(0.4)
        w.board.calls.answer()
        await w.until(lambda: moved(w)[:1] == states[:1])
        if least_s is not None:
            await w.pass_time(least_s - 0.001)
            assert moved(w) == states[:1]
            await w.pass_time(0.001)
        await w.until(lambda: moved(w) == states)


async def test_io0_is_low_from_when_its_line_has_moved(tmp_path: Path) -> None:
    async with world(tmp_path, KEYS) as w:
        client = await w.client()
        await client.control(Control.RTS_ON)
        await w.pass_time(MIN_RESET_S)
        w.board.calls.hang("lines")
        await client.send(control(Control.DTR_ON, Control.RTS_OFF, Control.DTR_OFF))
        await turns(20)
        await w.pass_time(0.4)
        w.board.calls.answer()
        await w.until(lambda: moved(w) == [RESET, STRAP])
        await w.pass_time(MIN_STRAP_S - 0.001)
        assert moved(w) == [RESET, STRAP]
        await w.pass_time(0.001)
        assert moved(w) == [RESET, STRAP, IDLE]


async def test_a_delayed_change_does_not_shift_what_is_asked_for_long_after_it(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, KEYS) as w:
        client = await w.client()
        w.board.calls.hang("lines")
        await client.send(control(Control.DTR_ON))
        await w.pass_time(1.0)
        w.board.calls.answer()
        await w.pass_time(10.0)
        await client.control(Control.DTR_OFF, Control.RTS_ON)
        await client.send(control(Control.RTS_OFF))
        await w.pass_time(MIN_RESET_S)
        assert moved(w) == [STRAP, IDLE, RESET, IDLE]


async def test_a_client_that_leaves_in_a_reset_leaves_the_board_running(tmp_path: Path) -> None:
    async with world(tmp_path, KEYS) as w:
        client = await w.client()
        await client.control(Control.RTS_ON)
        client.close()
        await w.until(State.CLEANUP)
        await w.pass_time(MIN_RESET_S)
        assert (moved(w), w.state) == ([RESET, IDLE], State.IDLE)


async def test_the_end_of_each_reset_is_logged_with_what_the_board_starts(tmp_path: Path) -> None:
    async with world(tmp_path, KEYS) as w:
        client = await w.client()
        for code in (
            *(Control.RTS_ON, Control.DTR_ON, Control.RTS_OFF, Control.DTR_OFF),
            *(Control.RTS_ON, Control.RTS_OFF),
        ):
            await w.run(client.control(code))
            await w.pass_time(0.1)
        assert moved(w) == [RESET, STRAP, IDLE, RESET, IDLE]
        assert w.said(Logged.RESET, "into") == ["bootloader", "app"]


async def test_a_held_edge_is_not_made_once_the_tty_is_released(tmp_path: Path) -> None:
    async with world(tmp_path, KEYS) as w:
        client = await w.client()
        await client.control(Control.RTS_ON)
        await w.pass_time(MIN_RESET_S)
        await client.control(Control.DTR_ON)
        w.board.unplug()
        await w.until(State.OFFLINE)
        w.board.plug()
        await w.run(w.release(force=True))
        await w.pass_time(2 * HOLD_S)
        assert BOTH not in moved(w)


# --- resets by the gateway


async def test_a_reset_by_the_gateway_is_done_when_the_board_runs(tmp_path: Path) -> None:
    async with world(tmp_path, KEYS) as w:

        async def reset_then_enter_bootloader() -> None:
            async with w.claim() as claim:
                await claim.reset()
                assert moved(w) == [RESET, IDLE]
                await claim.enter_bootloader()

        began_s = w.clock.now_s
        await w.run(reset_then_enter_bootloader())
        assert moved(w) == [RESET, IDLE, RESET, STRAP, IDLE]
        assert w.clock.now_s - began_s >= 2 * MIN_RESET_S + MIN_STRAP_S
        assert w.said(Logged.RESET, "into") == ["app", "bootloader"]
        await w.until_idle()


async def test_a_touch_by_the_gateway_gives_the_port_its_rate_back(tmp_path: Path) -> None:
    async with world(tmp_path, "reset: touch-1200, baudrate: 921600") as w:
        w.board.calls.forget()

        async def enter_bootloader() -> None:
            async with w.claim() as claim:
                await claim.enter_bootloader()

        await w.run(enter_bootloader())
        assert [lines for lines, _ in w.board.wire()] == [IDLE, BOTH]
        at_s = {call.value: call.at_s for call in w.board.calls.named("lines", "settings")}
        assert at_s[IDLE] - at_s["1200 8N1"] >= 0.0499
        assert at_s["921600 8N1"] - at_s[IDLE] >= 0.3499
        await w.until_idle()
        assert w.board.baudrate == 921600


@pytest.mark.parametrize("on_connect", ["reset", "bootloader"])
async def test_a_reset_that_no_line_does_is_logged_and_keeps_nobody_waiting(
    tmp_path: Path, on_connect: str
) -> None:
    async with world(tmp_path, f"on_connect: {on_connect}", usb_ids=NUCLEO) as w:
        await w.run(w.client())
        assert moved(w) == []
        into = {"reset": "app", "bootloader": "bootloader"}[on_connect]
        assert w.said(Logged.NOT_RESET, "into") == [into]
        assert w.logged(Logged.RESET) == []


@pytest.mark.parametrize(("usb_ids", "warnings"), [(None, 1), (PICO, 0)])
async def test_lines_at_rest_that_would_hold_the_board_in_reset_are_not_used(
    tmp_path: Path, usb_ids: UsbIds | None, warnings: int
) -> None:
    async with world(tmp_path, "rest: {dtr: on, rts: off}", usb_ids=usb_ids) as w:
        # Before it is opened, nothing is known of the board.
        since_opened = w.events[w.events.index(Logged.OPENED) :]
        assert since_opened.count(Logged.REST_NOT_USED) == warnings
        assert w.board.lines == [BOTH, IDLE if warnings else STRAP]


@pytest.mark.parametrize(
    ("keys", "states"),
    [
        ("reset: classic", [STRAP, IDLE]),
        ("reset: none", [STRAP, IDLE]),
        ("reset: touch-1200", [IDLE, BOTH]),
        ("reset: none, rest: {dtr: on, rts: on}", [STRAP, IDLE, BOTH]),
    ],
)
async def test_a_client_that_leaves_at_1200_baud_drops_dtr_and_nothing_follows_too_soon(
    tmp_path: Path, keys: str, states: list[Lines]
) -> None:
    async with world(tmp_path, keys) as w:
        client = await w.client()
        await client.set_baudrate(1200)
        await w.run(client.control(Control.DTR_ON, Control.RTS_OFF))
        client.close()
        await w.pass_until(lambda: moved(w)[-1:] == [IDLE])
        await w.pass_time(0.34)
        assert (w.state, moved(w)[-1]) == (State.CLEANUP, IDLE)
        await w.pass_time(0.1)
        assert (w.state, moved(w)[-len(states) :]) == (State.IDLE, states)


async def test_a_claim_of_a_port_that_is_in_use_fails(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()

        async def claims() -> None:
            async with w.claim():
                raise AssertionError

        with pytest.raises(ClientError, match=f"in use by {client.name}"):
            await w.run(claims())
