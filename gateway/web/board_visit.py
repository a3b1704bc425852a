"""The user of a device for the time of one request; it comes by the port's sharing rule.

What is done with the board meanwhile is asked of `Device` itself; what is asked over HTTP is
`controls_api`'s matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from gateway import clock
from gateway.devices.device import Device
from gateway.devices.device_state import HAS_PORT
from gateway.devices.visitor import Visitor
from gateway.errors import ClientError, DeviceError

#: How long a step may take unless its caller knows better: a board with native USB leaves the bus
#: at a reset, and may be back after 5 s.
STEP_LIMIT_S = 15.0

#: Between two looks whether a device is lost: of one whose users are others, nobody tells us.
_POLL_S = 0.05


class Visit(Visitor):
    """An async context: has the device inside.

    Entering raises ClientError when the device is not to be had. `resets_at_end` False leaves out
    what `on_disconnect` asks for.
    """

    def __init__(self, device: Device, label: str, *, resets_at_end: bool = True) -> None:
        super().__init__(device, label)
        self._resets_at_end = resets_at_end
        self._lost = ""  # why it has been taken away

    async def __aenter__(self) -> Self:
        self._device.attach(self)
        try:
            async with clock.timeout(STEP_LIMIT_S):
                await self._has_it
        except TimeoutError:
            self._device.detach(self)
            device = self._device
            raise ClientError(f"{device.name}: {device.state.value}: {device.reason}") from None
        except asyncio.CancelledError:
            self._device.detach(self)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Also when its clients were disconnected, as which it counts: the device still has it then.
        self._device.detach(self, resets=self._resets_at_end)

    async def step(
        self, ask: Callable[[Callable[[], None]], None], limit_s: float = STEP_LIMIT_S
    ) -> None:
        """Ask the device for something and wait for its `done`; ClientError if it does not come."""
        await _until_done(self._device, ask, limit_s, lambda: self._lost)

    def device_lost(self, error: DeviceError) -> None:
        """It has been taken away."""
        self._lost = str(error)


async def beside_its_users(
    device: Device, ask: Callable[[Callable[[], None]], None], limit_s: float = STEP_LIMIT_S
) -> None:
    """Ask a device for something that others use; ClientError if it is not done."""

    def lost() -> str:
        return "" if device.state in HAS_PORT else device.reason or device.state.value

    await _until_done(device, ask, limit_s, lost)


async def _until_done(
    device: Device,
    ask: Callable[[Callable[[], None]], None],
    limit_s: float,
    lost: Callable[[], str],
) -> None:
    done = asyncio.get_running_loop().create_future()

    def finished() -> None:
        if not done.done():
            done.set_result(None)

    ask(finished)
    deadline = clock.time() + limit_s
    while not done.done() and not lost() and clock.time() < deadline:
        await asyncio.wait({done}, timeout=_POLL_S)
    if not done.done():
        done.cancel()
        raise ClientError(f"{device.name}: {lost() or f'not done within {limit_s:.0f} s'}")
