from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gateway.config.document import Sharing
from gateway.devices.device import Device
from gateway.devices.sharing import Users
from gateway.devices.visitor import Visitor
from gateway.errors import ClientError, DeviceError


class Task(Visitor):
    """A task that says whether it has the device."""

    def __init__(self) -> None:
        super().__init__(cast("Device", None), "a task")
        self.lost = ""

    async def wait(self) -> None:
        await self._has_it

    def device_lost(self, error: DeviceError) -> None:
        self.lost = str(error)


async def test_it_waits_until_the_device_is_its_own() -> None:
    task = Task()
    waiting = asyncio.ensure_future(task.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    task.attached()
    await waiting


async def test_a_refusal_is_raised_where_it_waits() -> None:
    task = Task()
    task.refused(ClientError("desk: in use"))
    with pytest.raises(ClientError, match="desk: in use"):
        await task.wait()


async def test_what_comes_after_it_has_given_up_does_no_harm() -> None:
    for told in (Task.attached, lambda task: task.refused(ClientError("late"))):
        task = Task()
        waiting = asyncio.ensure_future(task.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        told(task)
        assert task._has_it.cancelled()


@pytest.mark.parametrize("sharing", Sharing)
async def test_nobody_takes_over_from_it(sharing: Sharing) -> None:
    users = Users(sharing)
    users.enter(Task())
    users.tell()
    assert not users.may_be_followed
