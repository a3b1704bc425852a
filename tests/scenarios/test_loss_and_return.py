"""A board that leaves the bus: under a client that is kept, under none, and what it gets back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.world import (
    BOTH,
    IDLE,
    PURGE_RECEIVE,
    PURGE_TRANSMIT,
    RESET,
    STRAP,
    Client,
    ClientError,
    Control,
    Lines,
    Logged,
    State,
    UsbIds,
    World,
    baudrate,
    com_port,
    control,
    hard_reset,
    turns,
    world,
)

KEPT = "grace_s: 10"
OTG, JTAG = (0x303A, 0x0002), (0x303A, 0x1001)
BREAK_ON = Control.BREAK_ON
PURGE = com_port(12, bytes([PURGE_TRANSMIT]))
ENTRY = (Control.RTS_ON, Control.DTR_ON, Control.RTS_OFF, Control.DTR_OFF)
HARD_RESET = (Control.RTS_ON, Control.RTS_OFF)


async def leaves(w: World) -> None:
    """The board leaves the bus under its client."""
    w.board.unplug()
    await w.until(State.OFFLINE)
    w.board.calls.forget()


async def returns(w: World) -> None:
    """It is back, and its client goes on."""
    w.board.plug()
    await w.pass_until(lambda: w.state == State.IN_USE)


def order(w: World) -> list[str]:
    """What was done to the tty since it was opened again, in order."""
    names = [call.name for call in w.board.calls.log]
    return [name for name in names[names.index("lines") :] if name != "close"]


# --- without a grace period


async def test_without_grace_a_client_is_closed_and_the_board_opened_again(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 0") as w:
        client = await w.client()
        w.board.unplug()
        await w.refused(client)
        await w.until(lambda: w.state in {State.ABSENT, State.BROKEN})
        w.board.plug()
        await w.until_idle()
        opened = [event for event in w.events if event.startswith("device_")]
        assert opened == [Logged.OPENED, Logged.LOST, Logged.OPENED]
        # The next client's bytes are held back again when there are too many.
        client = await w.client()
        sending = asyncio.create_task(client.send(bytes(8_000_000)))
        await w.until(lambda: w.status.sent_bytes > 65536)
        await turns(50)
        assert not sending.done()
        await w.board.reads_bytes(8_000_000)
        await sending


async def test_without_grace_what_the_board_has_not_got_is_counted(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 0") as w:
        client = await w.client()
        w.board.calls.room = 100
        await client.send(b"x" * 1000 + baudrate(9600) + b"y" * 50)
        await w.until(lambda: w.status.sent_bytes == 1000)
        w.board.unplug()
        await w.refused(client)
        assert sum(w.said(Logged.DROPPED, "unsent_bytes")) == w.status.dropped_bytes == 950


async def test_lines_that_fail_lose_the_board_and_its_clients(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 0") as w:
        client = await w.client()
        w.board.calls.fail("lines", OSError(5, "Input/output error"))
        await client.send(control(Control.RTS_ON))
        await w.until(State.BROKEN)
        assert "Input/output error" in w.said(Logged.LOST, "reason")[0]
        assert w.status.controls == ""


# --- a client that is kept


async def test_settings_lines_and_bytes_wait_for_the_board_and_come_in_that_order(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        await leaves(w)
        await client.send(b"are you ")
        for bps in (230400, 921600):
            await client.set_baudrate(bps)
        await client.control(Control.DTR_ON, Control.RTS_ON)
        await client.send(b"back?")
        await client.settled()
        assert w.status.settings == "921600 8N1"
        await returns(w)
        await w.board.reads(b"are you back?")
        assert order(w) == ["lines", "settings", "settings", "lines", "write"]
        assert (w.board.lines, w.board.baudrate) == ([BOTH, IDLE, BOTH], 921600)
        await w.board.write(b"yes")
        await client.receive_data(b"yes")
        client.close()
        await w.until_idle()
        assert w.board.baudrate == 115200


async def test_a_board_of_which_nothing_was_asked_gets_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        await leaves(w)
        await client.control(Control.BREAK_ON, Control.BREAK_OFF)
        await returns(w)
        await client.settled()
        assert order(w) == ["lines", "settings"]  # as at any open


async def test_a_break_goes_on_and_purged_bytes_are_gone(tmp_path: Path) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        await leaves(w)
        await client.send(b"old")
        await client.purge(PURGE_RECEIVE)
        await client.control(Control.BREAK_ON)
        await returns(w)
        await w.board.reads(b"old")
        assert order(w) == ["lines", "settings", "break", "write"]
        await client.control(Control.BREAK_OFF)
        await leaves(w)
        await client.send(b"old")
        await client.purge(PURGE_TRANSMIT)
        await client.send(b"new")
        await returns(w)
        await w.board.reads(b"oldnew")
        assert order(w) == ["lines", "settings", "write"]


async def test_a_board_that_is_back_is_not_read_while_its_client_reads_nothing(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client(receive_buffer_bytes=4096)
        writing = asyncio.create_task(w.board.write(bytes(8_000_000)))
        received_bytes = -1
        while received_bytes != w.status.received_bytes:
            received_bytes = w.status.received_bytes
            await turns(200)
        writing.cancel()
        w.board.unplug()
        await client.send(b"x")  # a tty that is not read tells of its end when it is written to
        await w.until(State.OFFLINE)
        await returns(w)
        writing = asyncio.create_task(w.board.write(bytes(8_000_000)))
        await turns(500)
        writing.cancel()
        assert w.status.received_bytes - received_bytes <= 65536  # one read


async def test_what_was_being_done_as_the_board_left_is_answered_once(tmp_path: Path) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        w.board.calls.hang("lines", "settings")
        await client.send(control(Control.DTR_ON))
        await turns(20)
        w.board.unplug()
        await w.until(State.OFFLINE)
        await client.set_baudrate(9600)
        w.board.calls.answer()
        await returns(w)
        n_bytes = len(client.received)
        await client.settled()
        assert len(client.received) - n_bytes == 2 * len(baudrate(0))


@pytest.mark.parametrize("is_away_first", [True, False])
async def test_a_client_that_sends_too_much_to_a_board_that_is_away_is_held_back(
    tmp_path: Path, is_away_first: bool
) -> None:
    much = b"0123456789" * 800_000
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        if is_away_first:
            await leaves(w)
        else:
            w.board.unplug()
        sending = asyncio.create_task(client.send(much))
        await w.until(lambda: w.status.sent_bytes > 65536)
        await turns(50)
        assert not sending.done()
        assert w.status.sent_bytes <= 65536 + 2 * 65536
        await w.until(State.OFFLINE)
        await returns(w)
        await turns(20)
        assert not sending.done()
        await w.board.reads(much)
        await sending


async def test_a_purge_makes_room_for_a_client_that_was_held_back(tmp_path: Path) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        await leaves(w)
        await client.send(b"x" * 300_000)
        await w.until(lambda: w.status.sent_bytes > 65536)
        await client.purge(PURGE_TRANSMIT)
        await client.send(b"fresh")
        await client.settled()
        await returns(w)
        await w.board.reads(b"fresh")


async def test_the_rest_of_what_the_board_had_begun_to_take_is_dropped(tmp_path: Path) -> None:
    """A board that starts would be typed the middle of something."""
    async with world(tmp_path, f"{KEPT}, protocol: raw") as w:
        client = await w.connect(b"\0")
        await w.pass_until(lambda: w.status.controls == client.name)
        await w.board.reads(b"\0")
        w.board.calls.room = 100
        await client.send(b"x" * 1000)
        await w.until(lambda: w.status.sent_bytes == 1001)
        await leaves(w)
        assert w.status.dropped_bytes == 900
        await w.pass_time(0.4)
        await client.send(b"goes on")
        await w.until(lambda: w.status.sent_bytes == 1008)
        await w.pass_time(0.5)  # longer than the pieces of one write are apart
        await client.send(b"begins")
        await w.until(lambda: w.status.sent_bytes == 1014)
        w.board.calls.room = None
        await returns(w)
        await w.board.reads_until(lambda: w.board.received.endswith(b"begins"))
        assert w.board.received == b"\0begins"
        assert sum(w.said(Logged.DROPPED, "unsent_bytes")) == w.status.dropped_bytes == 907
        assert set(w.said(Logged.DROPPED, "reason")) == {"the board has vanished"}


async def test_what_was_sent_behind_a_command_begins_again_and_is_kept(tmp_path: Path) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        w.board.calls.room = 0
        await client.send(b"x" * 1000 + baudrate(9600) + b"kept")
        await w.until(lambda: w.status.sent_bytes == 1000)
        await leaves(w)
        await client.settled()
        w.board.calls.room = None
        await returns(w)
        await w.board.reads(b"kept")
        assert w.status.dropped_bytes == 1000


@pytest.mark.parametrize("command", [hard_reset(), PURGE, baudrate(9600), control(BREAK_ON)])
async def test_a_command_ends_what_was_cut_off(tmp_path: Path, command: bytes) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        w.board.calls.room = 0
        await client.send(b"x" * 1000)
        await w.until(lambda: w.status.sent_bytes == 1000)
        await leaves(w)
        await client.send(b"dropped" + command + b"kept")
        await w.pass_until(lambda: w.status.sent_bytes == 1011)
        w.board.calls.room = None
        await returns(w)
        await w.pass_time(0.5)
        await w.board.reads(b"kept")
        assert w.status.dropped_bytes == 1007


async def test_other_clients_are_rejected_meanwhile(tmp_path: Path) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        await leaves(w)
        assert (await w.refused(await w.asks())).startswith(f"desk: in use by {client.name} since ")


async def test_a_board_that_stays_away_is_lost_with_the_reason(tmp_path: Path) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        await leaves(w)
        await client.send(b"in vain")
        await client.settled()
        await w.pass_time(9.9)
        assert w.state == State.OFFLINE
        await w.refused(client)
        assert w.said(Logged.DISCONNECTED, "reason")[0].endswith("; not back within 10 s")
        assert w.said(Logged.DROPPED, "unsent_bytes") == [7]
        # With no client, a board is not waited for.
        w.board.plug()
        await w.until_idle()
        w.board.unplug()
        await w.until(lambda: w.state in {State.ABSENT, State.BROKEN})
        assert w.events.count(Logged.LOST) == 2


@pytest.mark.parametrize("call", ["write", "read"])
async def test_a_tty_that_fails_is_opened_again_and_gets_what_was_written(
    tmp_path: Path, call: str
) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        w.board.calls.room = 0
        w.board.calls.fail(call, OSError(5, "Input/output error"))
        if call == "read":
            await w.board.write(b"not read")
            await w.until(lambda: w.logged(Logged.LOST))
        await client.send(b"not taken")
        await w.until(lambda: w.logged(Logged.LOST))
        assert w.said(Logged.LOST, "reason") == ["stopped working: [Errno 5] Input/output error"]
        w.board.calls.mend()
        w.board.calls.room = None
        await w.pass_until(lambda: w.state == State.IN_USE)
        await w.board.reads(b"not taken")
        assert w.status.dropped_bytes == 0


# --- clients that do not wait for the board


async def test_what_a_client_asked_for_goes_with_it(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 60, on_disconnect: reset") as w:
        client = await w.client()
        await leaves(w)
        await client.send(b"gone with its sender" + baudrate(921600))
        await client.control(Control.DTR_ON, Control.RTS_ON, Control.BREAK_ON)
        client.close()
        await w.until(lambda: w.status.controls == "")
        second = await w.asks()
        await w.pass_time(0.3)
        assert w.state == State.OFFLINE
        w.board.plug()
        await w.pass_until(lambda: w.status.controls == second.name)
        # Cleaned up as if the client had left while the board was there.
        assert w.board.lines == [BOTH, IDLE, RESET, IDLE]
        assert not w.board.calls.named("break")
        assert w.board.baudrate == 115200
        await second.send(b"fresh")
        await w.board.reads(b"fresh")
        assert w.status.dropped_bytes == sum(w.said(Logged.DROPPED, "unsent_bytes")) == 20


async def test_a_board_without_a_client_is_waited_for_five_seconds(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 60, on_disconnect: reset") as w:
        client = await w.client()
        await leaves(w)
        client.close()
        await w.until(lambda: w.status.controls == "")
        waiting = await w.asks()
        await w.pass_time(4.9)
        assert (w.state, w.logged(Logged.REFUSED)) == (State.OFFLINE, [])
        await w.pass_time(0.2)
        assert w.state == State.ABSENT
        assert await w.refused(waiting) == "desk: absent: not plugged in\r\n"
        w.board.plug()
        await w.until_idle()
        assert w.board.lines == [BOTH, IDLE]  # it has been plugged in again: nothing is owed


async def test_the_end_of_a_short_grace_is_not_put_off_by_a_client_that_leaves(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "grace_s: 2") as w:
        client = await w.client()
        await leaves(w)
        await w.pass_time(1.0)
        client.close()
        await w.pass_time(0.9)
        assert w.state == State.OFFLINE
        await w.pass_time(0.2)
        assert w.state == State.ABSENT


async def test_a_board_that_leaves_during_cleanup_is_not_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path, "grace_s: 60, on_disconnect: reset") as w:
        client = await w.client()
        await leaves(w)
        client.close()
        await w.until(lambda: w.status.controls == "")
        w.board.plug()
        await w.pass_until(lambda: w.state == State.CLEANUP)
        w.board.unplug()
        await w.until(lambda: w.state in {State.ABSENT, State.BROKEN})


async def test_a_client_of_a_port_that_opens_on_connect_is_closed_and_the_port_released(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "open: on_connect, grace_s: 0") as w:
        client = await w.client()
        w.board.unplug()
        await w.refused(client)
        await w.until(State.RELEASED)
        w.board.plug()
        tries = w.board.calls.tries
        await w.pass_time(60.0)
        assert w.board.calls.tries == tries
        await w.client()


# --- resets that are asked for while the board is away


async def sends(w: World, client: Client, *codes: Control) -> None:
    """The client moves lines, one command after the other, with time for each."""
    for code in codes:
        await w.run(client.control(code))
        await w.pass_time(0.1)


async def test_a_reset_is_owed_and_done_before_the_bytes_behind_it(tmp_path: Path) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        await leaves(w)
        await client.send(b"before" + hard_reset() + b"behind")
        await w.pass_until(lambda: w.status.sent_bytes == 12)
        assert w.said(Logged.RESET_OWED, "into") == ["app"]
        await returns(w)
        await w.pass_time(0.5)
        await w.board.reads(b"behind")
        assert w.board.lines == [BOTH, IDLE, RESET, IDLE]
        assert order(w)[-3:] == ["lines", "lines", "write"]
        assert w.said(Logged.RESET, "into") == ["app"]
        assert w.said(Logged.DROPPED, "unsent_bytes") == [6]
        assert w.said(Logged.DROPPED, "reason") == ["the board is to be reset when it is back"]


async def test_lines_that_are_both_on_come_back_behind_a_reset_that_is_owed(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        await leaves(w)
        await sends(w, client, *HARD_RESET)
        await w.run(client.control(Control.DTR_ON, Control.RTS_ON))
        await returns(w)
        await w.pass_time(0.5)
        assert w.board.lines == [BOTH, IDLE, BOTH, RESET, IDLE, BOTH]


@pytest.mark.parametrize(
    ("into", "stays", "lines"),
    [
        (["bootloader", "app"], False, [BOTH, IDLE, RESET, IDLE]),
        (["app", "bootloader"], True, [BOTH, IDLE, RESET, STRAP, IDLE]),
    ],
)
async def test_the_last_of_several_resets_is_owed_also_for_a_client_that_has_left(
    tmp_path: Path, into: list[str], stays: bool, lines: list[Lines]
) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        await leaves(w)
        for each in into:
            await sends(w, client, *(HARD_RESET if each == "app" else ENTRY))
        assert w.said(Logged.RESET_OWED, "into") == into
        if not stays:
            client.close()
            await w.until(lambda: w.status.controls == "")
        w.board.plug()
        await w.pass_until(lambda: w.state in {State.IDLE, State.IN_USE})
        await w.pass_time(1.0)
        assert w.board.lines == lines
        # It is done once.
        if not stays:
            await w.client()
        await leaves(w)
        await returns(w)
        await w.pass_time(5.0)
        assert w.said(Logged.RESET, "into") == into[1:]


async def test_bytes_that_wait_behind_an_owed_reset_can_be_purged(tmp_path: Path) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        await leaves(w)
        await client.send(hard_reset() + b"old")
        await w.pass_until(lambda: w.status.sent_bytes == 3)
        w.board.plug()
        await w.pass_until(lambda: RESET in w.board.lines)
        await w.run(client.purge(PURGE_TRANSMIT))
        await client.send(b"new")
        await w.pass_time(1.0)
        await w.board.reads(b"new")


async def test_a_reset_of_which_the_board_got_the_first_half_is_not_repeated(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, KEPT) as w:
        client = await w.client()
        await sends(w, client, Control.RTS_ON)
        await leaves(w)
        await sends(w, client, Control.RTS_OFF)
        await returns(w)
        await w.pass_time(1.0)
        assert w.board.lines == [BOTH, IDLE]
        assert (w.said(Logged.RESET, "into"), w.logged(Logged.RESET_OWED)) == (["app"], [])


async def test_a_board_that_left_for_its_bootloader_is_owed_a_restart_but_no_second_entry(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, KEPT, usb_ids=OTG) as w:
        client = await w.client()
        await sends(w, client, *ENTRY[:3])
        assert w.said(Logged.RESET, "into") == ["bootloader"]
        await leaves(w)
        await sends(w, client, Control.DTR_OFF, *ENTRY)
        await w.pass_time(4.0)
        assert w.logged(Logged.RESET_OWED) == []
        await sends(w, client, *HARD_RESET)
        await w.pass_time(1.0)
        assert w.said(Logged.RESET_OWED, "into") == ["app"]
        await returns(w)
        await w.pass_time(1.0)
        assert w.said(Logged.RESET, "into") == ["bootloader", "app"]
        assert w.board.lines == [BOTH, BOTH, RESET, IDLE, BOTH]  # opened, at rest, reset, at rest


@pytest.mark.parametrize(
    ("ids", "strategies", "lines"),
    [
        ((OTG, JTAG), ["usb-otg", "usb-jtag"], [BOTH, IDLE, RESET, IDLE]),
        ((JTAG, OTG), ["usb-jtag", "usb-otg"], [BOTH, BOTH, RESET, IDLE, BOTH]),
        ((JTAG, JTAG), ["usb-jtag"], [BOTH, IDLE, RESET, IDLE]),
    ],
    ids=["otg-jtag", "jtag-otg", "the same"],
)
async def test_a_board_that_comes_back_as_another_device_gets_what_that_needs(
    tmp_path: Path, ids: tuple[UsbIds, UsbIds], strategies: list[str], lines: list[Lines]
) -> None:
    async with world(tmp_path, KEPT, usb_ids=ids[0]) as w:
        client = await w.client()
        await leaves(w)
        w.board.usb_ids = ids[1]
        await returns(w)
        await sends(w, client, *HARD_RESET)
        await w.pass_time(0.5)
        assert w.said(Logged.STRATEGY, "reset") == strategies
        assert w.board.lines == lines


async def test_a_board_that_leaves_in_the_middle_of_its_touch_has_its_rate_back(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, f"{KEPT}, reset: touch-1200") as w:
        client = await w.client()
        await client.set_baudrate(921600)
        await client.send(control(*ENTRY))
        await w.pass_until(lambda: w.board.baudrate == 1200)
        await leaves(w)
        await w.pass_time(0.1)
        assert w.status.settings == "921600 8N1"
        await returns(w)
        await w.run(client.settled())
        assert w.board.baudrate == 921600
        assert IDLE not in w.board.lines


# --- a tty that is lent to esptool


async def test_a_lent_tty_comes_back_with_what_was_asked_for_meanwhile(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: shared, grace_s: 0") as w:
        client = await w.client()
        async with w.lent() as path:
            assert path == str(w.board.path)
            assert (w.state, w.board.is_free) == (State.OFFLINE, True)
            tries = w.board.calls.tries
            w.rescan()  # udev has seen the tool
            await w.pass_time(60.0)
            assert w.board.calls.tries == tries
        await w.until(State.IN_USE)
        await client.send(b"on")
        await w.board.reads(b"on")


async def test_a_board_that_does_not_come_back_from_being_lent_is_lost(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt, grace_s: 0") as w:
        monitor = await w.client()

        async def lend_and_unplug() -> None:
            async with w.lent():
                w.board.unplug()

        with pytest.raises(ClientError, match="not back within 10 s of being lent out"):
            await w.run(lend_and_unplug())
        await w.refused(monitor)
        w.board.plug()
        await w.until_idle()


async def test_a_board_may_leave_and_return_while_its_tty_is_lent(tmp_path: Path) -> None:
    async with world(tmp_path, "sharing: preempt, grace_s: 60") as w:
        async with w.lent():
            w.board.unplug()
            w.board.plug()
            await w.pass_time(1.0)
            assert w.state == State.OFFLINE
        await w.until_idle()
