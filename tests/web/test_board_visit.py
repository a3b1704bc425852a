"""A device's user for the time of one request."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.devices.device import DeviceState
from gateway.errors import ClientError
from gateway.web import board_visit
from gateway.web.board_visit import Visit, beside_its_users
from tests.support.pty_board import PtyBoard, serving, until
from tests.support.tcp_client import GREETING, TcpClient


async def test_it_has_the_device_inside_and_leaves_it_whatever_happens(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with suppress(ZeroDivisionError):
                async with Visit(served.device, "visitor"):
                    assert served.device.users.names == "visitor"
                    raise ZeroDivisionError
            await served.until_idle()


async def test_who_has_an_exclusive_device_keeps_it(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as user:
                await user.receive_wire(GREETING)
                with pytest.raises(ClientError, match=f"desk: in use by {user.name}"):
                    async with Visit(served.device, "visitor"):
                        pass


async def test_one_that_is_cancelled_asks_for_the_device_no_more(tmp_path: Path) -> None:
    async def visit() -> None:
        async with Visit(served.device, "visitor"):
            pass

    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as user:
                await user.receive_wire(GREETING)
                visiting = asyncio.create_task(visit())
                await until(lambda: len(served.device._waiting))
                visiting.cancel()
                await asyncio.wait({visiting})
                assert not len(served.device._waiting)


async def test_a_device_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_visit, "STEP_LIMIT_S", 0.01)
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as user:
                await user.receive_wire(GREETING)
                with pytest.raises(ClientError, match="desk: in use: "):
                    async with Visit(served.device, "visitor"):
                        pass
                assert not len(served.device._waiting)


async def test_a_step_ends_when_the_device_is_lost(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            async with Visit(served.device, "visitor") as visit:
                board.unplug()
                with pytest.raises(ClientError, match="desk: "):
                    await visit.step(lambda _: None)
            await until(lambda: served.device.state is DeviceState.ABSENT)
            with pytest.raises(ClientError, match="desk: not plugged in"):
                await beside_its_users(served.device, lambda _: None)


async def test_a_step_that_is_not_done_is_given_up(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            async with Visit(served.device, "visitor") as visit:
                with pytest.raises(ClientError, match="desk: not done within 0 s"):
                    await visit.step(lambda _: None, 0.01)
            with pytest.raises(ClientError, match="desk: not done within 0 s"):
                await beside_its_users(served.device, lambda _: None, 0.01)
