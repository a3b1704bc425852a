"""Who has a port when its board is to be flashed, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.config.document import OnAbsent, Sharing
from gateway.flash.plan import Outcome
from gateway.flash.user import FlashUser, NoBoardError
from gateway.port.port import Port
from gateway.port_document import PortState
from gateway.protocol.reset import Starts
from tests.support.claim_user import User
from tests.support.pty_board import LoopClock, PtyBoard, port_of, until

LABEL = "flash of ann@desk"


@asynccontextmanager
async def started(
    board: PtyBoard,
    sharing: Sharing = Sharing.EXCLUSIVE,
    on_absent: OnAbsent = OnAbsent.REFUSE,
) -> AsyncIterator[Port]:
    device = port_of(board, sharing=sharing, on_absent=on_absent)
    device.start()
    await until(lambda: device.state is not PortState.OPENING)
    try:
        yield device
    finally:
        await device.stop()


async def with_client(device: Port) -> User:
    client = User("10.0.0.5:51234")
    client.ask(device)
    await until(lambda: client.said == ["granted"])
    return client


async def test_the_tty_is_closed_while_it_is_lent_and_the_port_is_free_afterwards(
    board: PtyBoard,
) -> None:
    async with started(board) as device:
        user = FlashUser(device, LABEL)
        await user.take()
        assert device.arbiter.controller_names == LABEL
        assert await user.lend() == board.location.path
        assert device.state.value == "offline"
        assert device.reason == f"lent to {LABEL}"
        await user.take_back()
        assert device.state.value == "in use"
        await user.start(Starts.APP)
        user.leave()
        await until(lambda: device.state is PortState.IDLE)


async def test_an_exclusive_port_is_not_taken_from_its_client_unless_by_force(
    board: PtyBoard,
) -> None:
    async with started(board) as device:
        client = await with_client(device)
        user = FlashUser(device, LABEL)
        with pytest.raises(NoBoardError, match="desk: in use by 10") as refused:
            await user.take()
        assert refused.value.outcome is Outcome.BUSY
        user.leave()
        assert client.has_port
        forced = FlashUser(device, LABEL)
        await forced.take(disconnect=True)
        assert client.said[1:] == [f"lost: released for {LABEL}"]
        assert device.arbiter.controller_names == LABEL
        forced.leave()
        await until(lambda: device.state is PortState.IDLE)


async def test_a_client_of_a_takeover_port_is_told_who_takes_it(board: PtyBoard) -> None:
    async with started(board, Sharing.TAKEOVER) as device:
        client = await with_client(device)
        user = FlashUser(device, LABEL)
        taking = asyncio.ensure_future(user.take())
        await until(lambda: client.said == ["granted", f"replaced by {LABEL}"])
        client.leave()
        await taking
        user.leave()


async def test_a_client_of_a_preempt_port_watches_meanwhile_and_goes_on(board: PtyBoard) -> None:
    async with started(board, Sharing.PREEMPT) as device:
        client = await with_client(device)
        user = FlashUser(device, LABEL)
        await user.take()
        assert client.said == ["granted", f"suspended by {LABEL}"]
        await user.lend()
        assert device.arbiter.observer_names == client.label
        await user.take_back()
        user.leave()
        await until(lambda: client.said == ["granted", f"suspended by {LABEL}", "resumed"])
        await board.write(b"the app runs")
        await until(lambda: client.received == b"the app runs")


async def test_clients_of_a_shared_port_watch_meanwhile_too(board: PtyBoard) -> None:
    async with started(board, Sharing.SHARED) as device:
        client = await with_client(device)
        user = FlashUser(device, LABEL)
        await user.take()
        await user.lend()
        assert client.said == ["granted", f"suspended by {LABEL}"]
        await user.take_back()
        user.leave()
        assert client.said[2:] == ["resumed"]
        assert device.arbiter.controller_names == client.label


@pytest.mark.parametrize("sharing", list(Sharing))
async def test_nobody_takes_a_port_over_whose_board_is_being_written(
    board: PtyBoard, sharing: Sharing
) -> None:
    async with started(board, sharing) as device:
        user = FlashUser(device, LABEL)
        await user.take()
        await user.lend()
        client = User()
        client.ask(device)
        if sharing is Sharing.EXCLUSIVE:
            await until(lambda: client.said)
            assert client.said[0].startswith(f"refused: desk: in use by {LABEL} since")
        assert not user.lost.done()
        assert LABEL in device.arbiter.controller_names
        await user.take_back()
        user.leave()
        if sharing is not Sharing.EXCLUSIVE:
            await until(lambda: "granted" in client.said)


async def test_a_board_that_is_absent_is_not_waited_for(tmp_path: Path) -> None:
    with PtyBoard(tmp_path, plugged_in=False) as board:
        async with started(board, on_absent=OnAbsent.WAIT) as device:
            user = FlashUser(device, LABEL)
            with pytest.raises(NoBoardError, match="desk: absent: not plugged in") as refused:
                await user.take()
            assert refused.value.outcome is Outcome.ABSENT
            user.leave()


async def test_a_device_that_is_taken_away_says_why(board: PtyBoard) -> None:
    async with started(board) as device:
        user = FlashUser(device, LABEL)
        await user.take()
        await user.lend()
        await device.release("for bob", force=True)
        assert await user.lost == "released for bob"
        with pytest.raises(NoBoardError, match="desk: released for bob"):
            await user.take_back()
        user.leave()
        device.resume()
        await until(lambda: device.state is PortState.IDLE)


async def test_one_that_leaves_without_taking_back_leaves_no_dead_port(board: PtyBoard) -> None:
    async with started(board) as device:
        user = FlashUser(device, LABEL)
        await user.take()
        await user.lend()
        user.leave()
        await until(lambda: device.state is PortState.IDLE)
        client = await with_client(device)
        assert client.has_port


async def test_a_port_that_was_released_to_somebody_is_theirs(board: PtyBoard) -> None:
    async with started(board) as device:
        await device.release("for bob")
        user = FlashUser(device, LABEL)
        with pytest.raises(NoBoardError, match="desk: released: for bob") as refused:
            await user.take()
        assert refused.value.outcome is Outcome.BUSY
        user.leave()
        device.resume()


async def test_a_port_that_is_taken_out_of_the_yaml_meanwhile_is_gone(board: PtyBoard) -> None:
    async with started(board) as device:
        # Time stands still: no limit of lending or of stopping can be over, however slow it is.
        with LoopClock():
            user = FlashUser(device, LABEL)
            await user.take()
            await user.lend()
            assert device.state is PortState.OFFLINE
            await device.stop("its entry has changed")
            with pytest.raises(NoBoardError, match="desk: its entry has changed") as gone:
                await user.take_back()
            assert gone.value.outcome is Outcome.ABSENT
            with pytest.raises(NoBoardError, match="desk: its entry has changed"):
                await user.start(Starts.APP)
            user.leave()
            again = FlashUser(device, LABEL)
            with pytest.raises(NoBoardError, match="desk: stopped"):
                await again.take()
            again.leave()
