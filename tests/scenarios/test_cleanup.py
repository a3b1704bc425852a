"""After the last client: its bytes, break, lines and settings, and what the board is left in."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.world import (
    BOTH,
    IDLE,
    RESET,
    Client,
    Control,
    Logged,
    Notice,
    State,
    World,
    baudrate,
    turns,
    until,
    world,
)

LAST_BYTES = b"x" * 1000


async def leaves_unsent(w: World, client: Client | None = None) -> None:
    """A client sends what its board does not take, and disconnects."""
    client = client or await w.client()
    w.board.calls.room = 0
    await client.send(LAST_BYTES)
    await w.until(lambda: w.status.sent_bytes == len(LAST_BYTES))
    client.close()
    await w.until(State.CLEANUP)


async def test_last_bytes_are_sent_before_break_lines_and_settings_go_back(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "baudrate: 74880") as w:
        client = await w.client()
        await client.set_baudrate(9600)
        await client.control(Control.RTS_ON, Control.BREAK_ON)
        w.board.calls.forget()
        await leaves_unsent(w, client)
        await w.pass_time(5.0)
        assert w.board.calls.log == []
        assert (w.state, w.status.settings) == (State.CLEANUP, "9600 8N1")
        w.board.calls.room = None
        await w.board.reads(LAST_BYTES)
        await w.until_idle()
        after = [call.name for call in w.board.calls.named("break", "lines", "settings")]
        assert after == ["break", "lines", "settings", "settings"]  # pyserial's two steps
        assert (w.board.lines, w.board.baudrate) == ([IDLE], 74880)
        assert (w.status.settings, w.status.controls) == ("74880 8N1", "")
        assert not w.logged(Logged.DROPPED)
        await w.pass_time(20.0)
        assert w.state == State.IDLE


async def test_a_client_waits_while_the_lines_of_the_former_one_go_back(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.control(Control.RTS_ON)
        w.board.calls.hang("lines")
        client.close()
        await w.until(State.CLEANUP)
        second = await w.asks()
        await w.pass_time(2.4)  # a client that stays is waited for 0.5 s
        assert (w.state, w.logged(Logged.REFUSED)) == (State.CLEANUP, [])
        w.board.calls.answer()
        await w.until(lambda: w.status.controls == second.name)


async def test_bytes_that_the_board_does_not_take_are_dropped_after_ten_seconds(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        await leaves_unsent(w)
        await w.pass_time(9.9)
        assert w.state == State.CLEANUP
        await w.pass_time(0.2)
        await w.until(State.IDLE)
        assert w.said(Logged.DROPPED, "unsent_bytes") == [1000]
        assert w.status.dropped_bytes == 1000
        client = await w.client()
        w.board.calls.room = None
        await client.send(b"next")
        await w.board.reads(b"next")


@pytest.mark.parametrize(
    ("bps", "stall_s"), [(115200, 10.0), (300, 2 * 1280 * 10 / 300), (110, 2 * 1280 * 10 / 110)]
)
async def test_a_slow_board_is_given_the_time_that_the_kernel_needs_to_show_progress(
    tmp_path: Path, bps: int, stall_s: float
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.set_baudrate(bps)
        await leaves_unsent(w, client)
        await w.clock.advance(stall_s - 1.5)
        assert w.state == State.CLEANUP
        await w.clock.advance(1.6)
        await w.until(lambda: w.logged(Logged.DROPPED))


async def test_the_time_of_a_client_that_finishes_counts_for_the_cleanup_behind_it(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.room = 0
        await client.send(b"x" * 200_000)  # more than the port takes: the session finishes first
        await w.until(lambda: w.status.sent_bytes > 65536)
        await client.reads_what_has_come()
        client.close()
        await w.pass_time(9.5)
        assert (w.state, w.logged(Logged.DROPPED)) == (State.IN_USE, [])
        await w.pass_time(0.6)
        await w.until(State.IDLE)
        assert w.status.dropped_bytes == 200_000


@pytest.mark.parametrize(("bps", "limit_s"), [(115200, 600.0), (9600, 2 * 458752 * 10 / 9600)])
async def test_bytes_that_leave_are_let_out_for_ten_minutes_or_twice_their_time_and_no_longer(
    tmp_path: Path, bps: int, limit_s: float
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.set_baudrate(bps)
        await leaves_unsent(w, client)
        n_steps = int(limit_s // 8) - 1
        for _ in range(n_steps):
            await w.clock.advance(8.0)
            w.board.calls.room = 1
        assert (w.state, w.logged(Logged.DROPPED)) == (State.CLEANUP, [])
        await w.clock.advance(limit_s - 8 * n_steps - 0.1)
        assert w.state == State.CLEANUP
        await w.clock.advance(0.2)
        await w.until(State.IDLE)
        assert w.said(Logged.DROPPED, "unsent_bytes") == [1000 - n_steps]


@pytest.mark.parametrize("sharing", ["takeover", "preempt"])
async def test_bytes_of_a_client_whose_port_another_gets_are_let_out_for_half_a_second(
    tmp_path: Path, sharing: str
) -> None:
    async with world(tmp_path, f"sharing: {sharing}") as w:
        first = await w.client()
        w.board.calls.room = 0
        await first.send(LAST_BYTES)
        await w.until(lambda: w.status.sent_bytes == 1000)
        second = await w.asks()
        await w.until(State.CLEANUP)
        for _ in range(4):
            await w.pass_time(0.1)
            w.board.calls.room = 1  # that some of them leave does not count
        assert (w.state, w.logged(Logged.DROPPED)) == (State.CLEANUP, [])
        await w.pass_time(0.11)
        await w.until(lambda: w.status.controls == second.name)
        assert w.said(Logged.DROPPED, "reason") == ["the board does not accept data"]
        assert w.said(Logged.DROPPED, "unsent_bytes") == [996]


async def test_what_the_board_says_to_a_client_that_did_not_read_it_is_dropped(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        client = await w.client(receive_buffer_bytes=4096)
        writing = asyncio.create_task(w.board.write(b"x" * 8_000_000))
        await w.until(lambda: w.board.unread_bytes > 4000)
        await turns(50)
        assert w.board.unread_bytes > 4000
        client.close()
        await writing
        await w.until(lambda: w.board.unread_bytes == 0)
        await w.until(State.IDLE)
        assert (await w.client()).data == b""


async def test_on_disconnect_resets_the_board_behind_the_last_byte(tmp_path: Path) -> None:
    async with world(tmp_path, "on_disconnect: reset") as w:
        client = await w.client()
        await client.control(Control.DTR_ON)
        w.board.calls.forget()
        await leaves_unsent(w, client)
        assert w.board.lines == []
        w.board.calls.room = None
        await w.board.reads(LAST_BYTES)
        await w.until_idle()
        assert w.board.lines == [RESET, IDLE]
        assert w.said(Logged.RESET, "into") == ["app"]


async def test_a_client_that_closes_at_once_leaves_the_port_to_the_next(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for _ in range(5):
            (await w.client()).close()
        await w.until(State.IDLE)
        await w.client()
        assert w.status.sessions == 6


async def test_a_board_that_is_lost_during_cleanup_is_opened_again(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 0") as w:
        await leaves_unsent(w)
        w.board.unplug()
        await w.until(lambda: w.state != State.CLEANUP)
        w.board.plug()
        await w.until_idle()
        await w.pass_time(20.0)
        assert w.state == State.IDLE


# --- boards that are reset by 1200 baud

PICO, FEATHER_M0, OTG = (0x2E8A, 0x000A), (0x239A, 0x800B), (0x303A, 0x4001)
RESETS = "on_disconnect: reset"
NRF52, NUCLEO, UNKNOWN = (0x239A, 0x8029), (0x0483, 0x374B), (0x1234, 0x5678)


async def opened_at_1200(w: World) -> Client:
    """As pyserial's open() is: settings first, then the lines."""
    client = await w.client()
    await client.send(baudrate(1200))
    await client.control(Control.DTR_ON, Control.RTS_ON)
    await w.until(lambda: w.board.lines[-1] == BOTH)
    w.board.calls.forget()
    return client


@pytest.mark.parametrize("usb_ids", [PICO, FEATHER_M0, NRF52, NUCLEO])
async def test_dtr_of_boards_that_need_it_is_on_without_a_client_and_under_raw_ones(
    tmp_path: Path, usb_ids: tuple[int, int]
) -> None:
    async with world(tmp_path, "protocol: raw", usb_ids=usb_ids) as w:
        assert w.board.lines == [BOTH, BOTH]  # the kernel's open, and where they rest
        await w.board.write(b"for the recorder")
        await w.until(lambda: w.recorded == b"for the recorder")
        client = await w.connect(b"x")
        await w.pass_until(lambda: w.status.controls == client.name)
        client.close()
        await w.until(State.IDLE)
        assert set(w.board.lines) == {BOTH}


@pytest.mark.parametrize(
    ("usb_ids", "keys"),
    [
        *((usb_ids, keys) for usb_ids in (PICO, FEATHER_M0, OTG) for keys in ("", RESETS)),
        (UNKNOWN, ""),
    ],
)
async def test_a_client_that_closes_at_1200_baud_has_touched_the_board(
    tmp_path: Path, usb_ids: tuple[int, int], keys: str
) -> None:
    rests_at = IDLE if usb_ids == UNKNOWN else BOTH
    async with world(tmp_path, keys, usb_ids=usb_ids) as w:
        client = await opened_at_1200(w)
        client.close()
        await w.pass_until(lambda: w.board.lines == [IDLE])
        await w.pass_time(0.34)
        assert (w.board.lines, w.board.baudrate, w.state) == ([IDLE], 1200, State.CLEANUP)
        await w.pass_time(0.1)
        assert w.state == State.IDLE
        settings_behind = [call.name for call in w.board.calls.named("lines", "settings")]
        assert w.board.lines[1:] in ([], [rests_at])
        assert (settings_behind[-1], w.board.baudrate) == ("settings", 115200)
        assert w.said(Logged.RESET, "into") == ([] if usb_ids == UNKNOWN else ["bootloader"])


async def test_a_touch_of_a_client_that_is_sent_off_is_followed_by_on_disconnect(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "on_disconnect: reset", usb_ids=OTG) as w:
        await opened_at_1200(w)
        await w.run(w.release("for a tool", force=True))
        assert w.said(Logged.RESET, "into") == ["app"]


async def test_a_client_that_takes_dtr_off_at_1200_baud_touches_the_board_once(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, usb_ids=FEATHER_M0) as w:
        client = await opened_at_1200(w)
        await w.run(client.control(Control.DTR_OFF))
        client.close()
        await w.until_idle()
        assert w.board.lines == [RESET, BOTH]


async def test_a_suspended_client_at_1200_baud_touches_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt", usb_ids=FEATHER_M0) as w:
        first = await opened_at_1200(w)
        second = await w.client()
        await first.is_told(Notice.suspended(second))
        await w.until(lambda: w.board.baudrate == 115200)
        assert all(lines.dtr for lines in w.board.lines)


async def test_one_of_several_that_leaves_a_shared_board_at_1200_baud_touches_nothing(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "sharing: shared", usb_ids=FEATHER_M0) as w:
        other = await w.client()
        (await opened_at_1200(w)).close()
        await w.until(lambda: w.status.controls == other.name)
        await other.send(b"goes on")
        await w.board.reads(b"goes on")
        assert all(lines.dtr for lines in w.board.lines)


async def test_a_port_whose_own_rate_is_1200_baud_is_touched_by_no_client_that_sets_none(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "baudrate: 1200", usb_ids=FEATHER_M0) as w:
        for sets_a_rate in (True, True, False):
            client = await w.client()
            if sets_a_rate:
                await client.set_baudrate(9600)
            await client.control(Control.DTR_ON, Control.RTS_ON)
            if sets_a_rate:
                await client.set_baudrate(115200)
            client.close()
            await w.until_idle()
        assert set(w.board.lines) == {BOTH}


async def test_a_board_that_is_back_from_its_touch_is_not_touched_again(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 30", usb_ids=FEATHER_M0) as w:
        client = await opened_at_1200(w)
        await w.run(client.control(Control.DTR_OFF))
        w.board.unplug()
        await w.until(State.OFFLINE)
        w.board.calls.forget()
        w.board.plug()
        await w.pass_until(lambda: w.state == State.IN_USE)
        client.close()
        await w.until_idle()
        assert set(w.board.lines) == {BOTH}


async def test_a_board_that_leaves_at_its_touch_does_not_keep_the_port(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 30", usb_ids=FEATHER_M0) as w:
        (await opened_at_1200(w)).close()
        await w.pass_until(lambda: w.board.lines == [IDLE])
        w.board.unplug()
        await w.until(lambda: w.state in {State.ABSENT, State.BROKEN})
        w.board.plug()
        await w.pass_until(lambda: w.state == State.IDLE)
        assert w.board.lines == [IDLE, BOTH, BOTH]


async def test_a_rate_that_was_set_for_a_board_that_has_gone_is_no_touch_of_the_next(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "grace_s: 30", usb_ids=FEATHER_M0) as w:
        client = await opened_at_1200(w)
        w.board.unplug()
        await w.until(State.OFFLINE)
        w.board.plug()
        await w.pass_until(lambda: w.state == State.IN_USE)
        client.close()
        await w.until_idle()
        assert IDLE not in w.board.lines
        await until(lambda: w.board.baudrate == 115200)
