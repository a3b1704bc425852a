"""The claim under which a board is flashed: gets the port, lends its tty out, gives it back.

It comes by the port's sharing rule as any client does. The tty is closed for esptool meanwhile;
observers are kept, and go on afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from gateway import clock
from gateway.errors import ClientError, DeviceError
from gateway.flash.plan import Outcome
from gateway.port.claim import GRANT_LIMIT_S, Claim
from gateway.port.port import Port
from gateway.port_document import PortState
from gateway.protocol.board_kinds import BoardKind, kind_of
from gateway.protocol.reset import Starts

#: A hub is asked every 0.25 s at the slowest whether a device has gone.
_LEAVES_WITHIN_S: Final = 0.5
_LEAVES_BUS: Final = frozenset({BoardKind.USB_JTAG, BoardKind.USB_OTG})

_NO_BOARD: Final = frozenset({PortState.ABSENT, PortState.BROKEN, PortState.STOPPED})


class NoBoardError(ClientError):
    """For the client: why its board can't be flashed, or how it was lost; with the outcome."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class FlashUser:
    """See the module. `lost` is done when the port has been taken away: its result says why."""

    def __init__(self, port: Port, label: str) -> None:
        self._port = port
        self._claim = port.claim(label)
        self._others: list[Claim] = []  # that controlled the port together with us
        self.lost = self._claim.lost

    async def take(self, *, disconnect: bool = False) -> None:
        """Get the port; NoBoardError when it is not to be had.

        With `disconnect` its clients are disconnected, whatever its sharing rule.
        """
        port = self._port
        if disconnect and port.arbiter:
            await self._disconnect_clients()
        if port.state in _NO_BOARD:  # it is not waited for, whatever `on_absent` says
            raise NoBoardError(Outcome.ABSENT, f"{port.name}: {port.state_text}")
        try:
            await self._claim.acquire()
        except ClientError as error:
            outcome = Outcome.ABSENT if port.state in _NO_BOARD else Outcome.BUSY
            raise NoBoardError(outcome, str(error)) from None
        # On a `shared` port: no byte of others goes to the board meanwhile.
        self._others = [claim for claim in port.arbiter.controllers if claim is not self._claim]
        for claim in self._others:
            port.suspend_claim(claim, self._claim.label)

    async def lend(self) -> str:
        """Close the tty and return where it is. NoBoardError if the board is gone."""
        await self._until_online()
        closed = asyncio.ensure_future(self._port.lend(f"lent to {self._claim.label}"))
        try:
            await self._done(closed)
        finally:
            closed.cancel()
        try:
            return self._port.tty_path
        except DeviceError as error:
            raise NoBoardError(Outcome.ABSENT, f"{self._port.name}: {error}") from None

    async def take_back(self) -> None:
        """Open the tty again and wait for the board. NoBoardError if it does not come."""
        self._port.take_back()
        await self._until_online()

    async def start(self, starts: Starts) -> None:
        """Reset the board into its app or its bootloader; NoBoardError if the board is gone."""
        await self._until_online()
        await self._done(self._port.start_board(starts))

    async def settle(self) -> None:
        """Wait for a board with native USB, which leaves the bus some time after its reset.

        NoBoardError if it does not come back.
        """
        if kind_of(self._port.usb_ids) in _LEAVES_BUS:
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(_LEAVES_WITHIN_S):
                    await asyncio.wait({self.lost})
        await self._until_online()

    def leave(self) -> None:
        """Give the port back, whatever has happened; other clients go on."""
        port = self._port
        port.take_back()
        if not self.lost.done() and port.state is not PortState.STOPPED:
            for claim in self._others:
                if claim in port.arbiter.controllers:
                    port.resume_claim(claim)
            self._claim.leave()
        self.lost.cancel()

    async def _disconnect_clients(self) -> None:
        port = self._port
        with contextlib.suppress(ClientError):  # resumed by others meanwhile
            await port.release(f"for {self._claim.label}", force=True)
        port.resume()
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(GRANT_LIMIT_S):
                await port.idle.wait()

    async def _until_online(self) -> None:
        """Wait while the board is away; bounded, for the port gives it up."""
        while self._port.state is PortState.OFFLINE and not self.lost.done():
            changed = self._port.changed()
            either: set[asyncio.Future[Any]] = {changed, self.lost}
            try:
                await asyncio.wait(either, return_when="FIRST_COMPLETED")
            finally:
                changed.cancel()
        if self.lost.done():
            raise NoBoardError(Outcome.ABSENT, f"{self._port.name}: {self.lost.result()}")
        if self._port.state in _NO_BOARD:  # its entry of the YAML has changed
            raise NoBoardError(Outcome.ABSENT, f"{self._port.name}: {self._port.state.value}")

    async def _done(self, operation: asyncio.Future[Any]) -> None:
        """Wait until it is done; NoBoardError when the port is lost meanwhile."""
        try:
            await self._claim.within(operation)
        except ClientError as error:
            outcome = Outcome.ABSENT if self.lost.done() else Outcome.FAILED
            raise NoBoardError(outcome, str(error)) from None
