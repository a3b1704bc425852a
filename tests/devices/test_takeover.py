"""`sharing: takeover` with tools that connect again when they were replaced."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.config.document import Sharing
from gateway.devices.device import Device, DeviceState
from gateway.errors import DeviceError
from tests.devices.test_device import User
from tests.support.pty_board import LoopClock, PtyBoard, device_of, turns, until

LOSER, WINNER, THIRD = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Tool(User):
    """A client from a host; gives the device back when it is replaced."""

    _ports = iter(range(50_000, 60_000))

    def __init__(self, device: Device, host: str) -> None:
        super().__init__(f"{host}:{next(self._ports)}")
        self._device = device

    def replaced(self, by: str) -> None:
        super().replaced(by)
        self.leave()

    def device_lost(self, error: DeviceError) -> None:
        super().device_lost(error)
        self.leave()

    def leave(self) -> None:
        self.has_device = False
        self._device.detach(self)

    @property
    def was_refused(self) -> bool:
        return self.said[-1:] != [] and self.said[-1].startswith("refused")


@asynccontextmanager
async def taken_over(
    tmp_path: Path, loser: str = LOSER, winner: str = WINNER
) -> AsyncIterator[tuple[Device, LoopClock, Tool]]:
    """A device that `winner` has just taken over from `loser`; time stands still."""
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        device = device_of(board, sharing=Sharing.TAKEOVER)
        device.start()
        await until(lambda: device.state is DeviceState.IDLE)
        first = await connected(device, loser)
        second = await connected(device, winner)
        assert first.said == ["attached", f"replaced by {second.label}"]
        try:
            yield device, clock, second
        finally:
            for user in tuple(device.users):
                device.detach(user)
            await device.stop()


async def connected(device: Device, host: str) -> Tool:
    tool = Tool(device, host)
    device.attach(tool)
    await until(lambda: tool.has_device)
    return tool


async def refused(device: Device, clock: LoopClock, host: str) -> Tool:
    """A client that is refused after the moment in which its port may become free."""
    tool = Tool(device, host)
    device.attach(tool)
    await clock.advance(0.4)
    assert tool.said == []
    await clock.advance(0.2)
    assert tool.was_refused
    return tool


@pytest.mark.parametrize("winner", [WINNER, LOSER])
async def test_a_tool_that_was_replaced_does_not_take_the_port_back(
    tmp_path: Path, winner: str
) -> None:
    async with taken_over(tmp_path, winner=winner) as (device, clock, second):
        await clock.advance(1.0)
        again = await refused(device, clock, LOSER)
        assert again.said == [
            f"refused: desk: in use by {second.label} since {device.users.since},"
            " taken over from your address: wait 10 s before you take it back"
        ]
        assert second.has_device
        assert device.users.names == second.label


async def test_it_may_when_it_has_left_the_port_alone_for_a_while(tmp_path: Path) -> None:
    async with taken_over(tmp_path) as (device, clock, second):
        for _ in range(20):
            await refused(device, clock, LOSER)
            await clock.advance(1.0)
        await clock.advance(9.1)
        await connected(device, LOSER)
        assert second.said[-1].startswith("replaced by 10.0.0.1:")
        # Which it does to the other as well.
        await refused(device, clock, WINNER)


async def test_others_and_who_has_the_port_may_replace_at_once(tmp_path: Path) -> None:
    async with taken_over(tmp_path) as (device, clock, second):
        again = await connected(device, WINNER)
        assert second.said[-1] == f"replaced by {again.label}"
        third = await connected(device, THIRD)
        assert again.said[-1] == f"replaced by {third.label}"
        for host in (LOSER, WINNER):
            await refused(device, clock, host)
        assert third.has_device


@pytest.mark.parametrize("winner", [WINNER, LOSER])
async def test_who_has_replaced_another_may_close_and_connect_again(
    tmp_path: Path, winner: str
) -> None:
    """As flashers do between two commands, also from behind the other's address."""
    async with taken_over(tmp_path, winner=winner) as (device, clock, second):
        await refused(device, clock, LOSER)
        second.leave()
        await connected(device, winner)


async def test_a_connection_that_is_seen_before_the_end_of_the_former_one_is_served(
    tmp_path: Path,
) -> None:
    async with taken_over(tmp_path, winner=LOSER) as (device, clock, second):
        again = Tool(device, LOSER)
        device.attach(again)
        await clock.advance(0.3)
        second.leave()
        await until(lambda: again.has_device)


async def test_a_connection_is_waited_for_while_the_bytes_of_the_former_one_are_sent(
    tmp_path: Path,
) -> None:
    async with taken_over(tmp_path, winner=LOSER) as (device, clock, second):
        second.is_leaving = True
        again = Tool(device, LOSER)
        device.attach(again)
        await clock.advance(2.0)
        assert again.said == []
        second.leave()
        await until(lambda: again.has_device)


async def test_a_port_that_is_free_is_had_at_once_by_a_tool_that_was_replaced(
    tmp_path: Path,
) -> None:
    async with taken_over(tmp_path, winner=LOSER) as (device, _, second):
        second.leave()
        taken = await connected(device, LOSER)
        # And is taken from it by who had replaced it, which has the same address.
        again = await connected(device, LOSER)
        assert taken.said[-1] == f"replaced by {again.label}"


async def test_who_waits_beside_a_tool_that_was_replaced_comes_first(tmp_path: Path) -> None:
    async with taken_over(tmp_path) as (device, _, second):
        again = Tool(device, LOSER)
        device.attach(again)
        await turns(5)
        third = await connected(device, THIRD)
        assert second.said[-1] == f"replaced by {third.label}"
        assert again.said == []
        third.leave()
        await until(lambda: again.has_device)


async def test_what_is_remembered_of_replaced_clients_is_bounded(tmp_path: Path) -> None:
    async with taken_over(tmp_path) as (device, clock, _):
        for number in range(300):
            await connected(device, f"2001:db8::{number:x}")
        assert len(device.users._replaced) == 256
        await clock.advance(10.0)
        await connected(device, THIRD)
        assert len(device.users._replaced) == 1


async def test_other_ways_of_sharing_keep_nobody_out(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        device = device_of(board, sharing=Sharing.PREEMPT)
        device.start()
        await until(lambda: device.state is DeviceState.IDLE)
        await connected(device, LOSER)
        await connected(device, WINNER)
        await connected(device, LOSER)
        for user in tuple(device.users):
            device.detach(user)
        await device.stop()
