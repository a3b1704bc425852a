"""The user of a device whose board is being flashed: gets it, lends its tty out, gives it back.

It comes by the port's sharing rule as any client does, and who has the port is told as by any. Its
tty is closed for esptool meanwhile; who watches is kept, and goes on afterwards. What is done with
the tty is `job`'s matter.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from gateway import clock
from gateway.devices.device import Device, DeviceState
from gateway.devices.sharing import DeviceUser
from gateway.devices.visitor import Visitor
from gateway.errors import ClientError, DeviceError
from gateway.flash.plan import Outcome
from gateway.protocol.board_kinds import BoardKind, kind_of

#: How long a control call of the kernel may take, and a board to go through a reset.
_STEP_LIMIT_S = 15.0

#: The longest that others need to give the device back: what they have sent is let out for 10 s.
_TAKE_LIMIT_S = 15.0

#: Between two looks at a board that is away, which can't be waited for.
_POLL_S = 0.05


#: A hub is asked every 0.25 s at the slowest whether a device has gone.
_LEAVES_WITHIN_S = 0.5
_LEAVES_BUS = frozenset({BoardKind.USB_JTAG, BoardKind.USB_OTG})

_NO_BOARD = frozenset({DeviceState.ABSENT, DeviceState.BROKEN, DeviceState.STOPPED})


class NoBoardError(ClientError):
    """For the client: why its board can't be flashed, or how it was lost; with the outcome."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class FlashUser(Visitor):
    """See the module; made and used on the loop.

    `lost` is done when the device has been taken away: its result says why.
    """

    def __init__(self, device: Device, label: str) -> None:
        super().__init__(device, label)
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._others: list[DeviceUser] = []  # who drove it together with us
        self._lent = False

    async def take(self, *, disconnect: bool = False) -> None:
        """Get the device; NoBoardError when it is not to be had.

        With `disconnect` its clients are disconnected, whatever its sharing rule.
        """
        if disconnect and self._device.users:
            await self._send_all_away()
        if self._device.state in _NO_BOARD:  # it is not waited for, whatever `on_absent` says
            raise NoBoardError(
                Outcome.ABSENT,
                f"{self._device.name}: {self._device.state.value}: {self._device.reason}",
            )
        self._device.attach(self)
        try:
            async with clock.timeout(_TAKE_LIMIT_S):
                await asyncio.shield(self._has_it)
        except ClientError as error:
            raise NoBoardError(self._why_refused(), str(error)) from None
        except TimeoutError:
            raise NoBoardError(
                Outcome.BUSY, f"{self._device.name}: {self._device.state.value}"
            ) from None
        # Those with whom a `shared` device would be driven get no word through meanwhile.
        self._others = [user for user in self._device.users.drivers if user is not self]
        for user in self._others:
            user.muted(self.label)

    async def lend(self) -> str:
        """Close the tty and tell where it is. NoBoardError if the board is gone."""
        await self._until_there()
        closed = asyncio.get_running_loop().create_future()

        def was_closed() -> None:
            if not closed.done():
                closed.set_result(None)

        self._lent = True
        self._device.lend(f"lent to {self.label}", was_closed)
        await self._step(closed)
        try:
            return self._device.tty_path
        except DeviceError as error:
            raise NoBoardError(Outcome.ABSENT, f"{self._device.name}: {error}") from None

    async def take_back(self) -> None:
        """Open the tty again and wait for the board. NoBoardError if it does not come."""
        if self._lent:
            self._lent = False
            self._device.take_back()
        await self._until_there()

    async def enter_bootloader(self) -> None:
        """Let the gateway reset the board; NoBoardError if the board is gone."""
        await self._until_there()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._device.enter_bootloader(lambda: None if done.done() else done.set_result(None))
        await self._step(done)

    async def reset(self) -> None:
        """Let the gateway start the board's app; NoBoardError if the board is gone."""
        await self._until_there()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._device.reset(lambda: None if done.done() else done.set_result(None))
        await self._step(done)

    async def settle(self) -> None:
        """Wait for a board with native USB, which leaves the bus some time after its reset.

        NoBoardError if it does not come back.
        """
        if kind_of(self._device.usb_ids) in _LEAVES_BUS:
            await asyncio.wait({self.lost}, timeout=_LEAVES_WITHIN_S)
        await self._until_there()

    def leave(self) -> None:
        """Give the device back, whatever has happened; those who had it go on."""
        if self._lent:
            self._lent = False
            self._device.take_back()
        if not self.lost.done() and self._device.state is not DeviceState.STOPPED:
            for user in self._others:
                if user in self._device.users.drivers:
                    user.resumed()
            self._device.detach(self)
        self.lost.cancel()
        self._has_it.cancel()

    # What the device reports (sharing.DeviceUser), as far as a visitor does more than know of it.

    def refused(self, error: ClientError) -> None:
        """It is not to be had."""
        self._has_not("refused")
        super().refused(error)

    def device_lost(self, error: DeviceError) -> None:
        """It has been taken away."""
        self._has_not(str(error))

    def _has_not(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)

    async def _send_all_away(self) -> None:
        with contextlib.suppress(ClientError):  # resumed by others meanwhile
            await self._device.release(f"for {self.label}", force=True)
        self._device.resume()
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_STEP_LIMIT_S):
                await self._device.idle.wait()

    def _why_refused(self) -> Outcome:
        return Outcome.ABSENT if self._device.state in _NO_BOARD else Outcome.BUSY

    async def _until_there(self) -> None:
        """Wait while the board is away; bounded, for the device gives it up."""
        while self._device.state is DeviceState.AWAY and not self.lost.done():
            await asyncio.wait({self.lost}, timeout=_POLL_S)
        if self.lost.done():
            raise NoBoardError(Outcome.ABSENT, f"{self._device.name}: {self.lost.result()}")
        if self._device.state in _NO_BOARD:  # its entry of the YAML has changed
            raise NoBoardError(Outcome.ABSENT, f"{self._device.name}: {self._device.state.value}")

    async def _step(self, done: asyncio.Future[None]) -> None:
        """Wait until it is done; NoBoardError when the device is lost meanwhile."""
        either: set[asyncio.Future[Any]] = {done, self.lost}
        await asyncio.wait(either, timeout=_STEP_LIMIT_S, return_when="FIRST_COMPLETED")
        if self.lost.done():
            raise NoBoardError(Outcome.ABSENT, f"{self._device.name}: {self.lost.result()}")
        if not done.done():
            raise NoBoardError(Outcome.FAILED, f"{self._device.name}: the kernel does not answer")
