"""The hold of a client, or of a task, on a port: awaitable operations, and the last bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from gateway import clock
from gateway.errors import ClientError, DeviceError, PortLostError
from gateway.port.state import View
from gateway.protocol.access_server import PortStatus
from gateway.protocol.reset import Starts
from gateway.protocol.serial_settings import SerialSettings
from gateway.serialport.states import PortStates

if TYPE_CHECKING:
    from gateway.port.port import Port

#: How long a board may take none of the bytes of a client that has disconnected. They keep the port
#: from the next client, and are sent as long as the board takes some of them.
STALL_S: Final = 10.0
#: The kernel reports progress in steps, of 1280 bytes with cdc_acm. Below 2560 baud a board may
#: take bytes all the time and show none for longer than STALL_S.
_STEP_BYTES: Final = 1280

#: How long they may take in all: a board that takes a byte now and then keeps no client out for
#: hours.
LONGEST_S: Final = 600.0
#: What may wait for a board when its client has left (docs/rfc2217.md, bounds). Below 15300 baud,
#: twice its time on the wire is longer than LONGEST_S, and is allowed.
_MOST_WAITING_BYTES: Final = 458752
_BITS_PER_BYTE: Final = 10

#: How often progress is looked at: a stall is noticed so much later at most.
_LOOK_S: Final = 1.0

#: How long a task waits for its port: a board with native USB leaves the bus at a reset, and may be
#: back after 5 s; the bytes of the client before are sent for 10 s.
GRANT_LIMIT_S: Final = 15.0


class ClaimOwner(Protocol):
    """Whom a claim reports to; every call is made on the loop."""

    @property
    def is_leaving(self) -> bool:
        """Whether its client has left, and only what it had sent is still carried out."""

    def granted(self) -> None:
        """The claim controls the port."""

    def refused(self, error: ClientError) -> None:
        """The claim does not get the port, and has ended."""

    def suspended(self, by: str) -> None:
        """Another client controls the port from here on; the board's output still comes."""

    def resumed(self) -> None:
        """The claim controls the port again."""

    def replaced(self, by: str) -> None:
        """Another client gets the port: leave it."""

    def data_received(self, data: bytes) -> None:
        """The board has sent bytes."""

    def board_busy(self) -> None:
        """Too many bytes wait to be sent to the board: write no more."""

    def board_ready(self) -> None:
        """Bytes can be written again."""

    def port_lost(self, error: DeviceError) -> None:
        """The port is gone, and the claim has ended."""


class Claim:
    """What one client, or one task of the gateway's, may do with a port while it has it.

    Operations return futures, done when what follows may go to the board; they fail with
    PortLostError when the port is lost. While another client controls the port (`is_suspended`)
    they are done at once, in the client's own view: what it has set is in force again when it
    has control again. Bytes are dropped meanwhile, and counted.

    `label` is shown to clients that are refused. `origin` says where its client connects from, the
    same for each of its connections; empty if it is never to be recognised.
    """

    def __init__(self, port: Port, label: str, owner: ClaimOwner, *, origin: str = "") -> None:
        self.label = label
        self.origin = origin
        self.owner = owner
        self.dropped_bytes = 0  # that the client has sent while it was suspended
        self.made_at = datetime.now(UTC)  # its client connected then
        self.resets_at_end = True  # False leaves out what `on_disconnect` asks for
        self.stall: StallTimeout | None = None  # of the bytes of a client that has left
        self.view = View()
        self.port = port
        #: Send bytes to the board.
        self.write = port.write
        #: The board's output, without a call in between.
        self.deliver = owner.data_received
        self._reconciler = port.reconciler

    @property
    def is_leaving(self) -> bool:
        """Whether its client has left, and only what it had sent is still carried out."""
        return self.owner.is_leaving

    @property
    def is_suspended(self) -> bool:
        """Whether another client controls the port."""
        return self.view.is_suspended

    @property
    def joins_lines(self) -> bool:
        """Whether commands for both lines that come together are one step."""
        return self._reconciler.lines.joins_lines

    @property
    def status(self) -> PortStatus:
        """What is in force, in the client's view."""
        return self._reconciler.status(self.view)

    def request(self) -> None:
        """Ask for the port: `granted` or `refused` is called, perhaps at once."""
        self.port.request(self)

    def leave(self) -> None:
        """Give the port back, or stop asking for it; what was written is still sent."""
        self.port.leave(self)

    def finish(self) -> None:
        """The client has left: from here on its bytes are sent while the board takes them.

        When it takes none for STALL_S, or is too slow in all, the owner's `port_lost` is called.
        """
        if self.stall is None:
            error = DeviceError("disconnected; board not accepting data")
            self.stall = StallTimeout(self.port, lambda: self.owner.port_lost(error))

    def count_dropped(self, n_bytes: int) -> None:
        """Count bytes that the client has sent and its board does not get."""
        self.port.counts.input_dropped_bytes += n_bytes

    # --- operations

    def set_settings(self, settings: SerialSettings) -> asyncio.Future[PortStatus]:
        """Change the settings after the bytes written so far (RFC 2217, SET-BAUDRATE and so on).

        The result has those that are in force then: the driver may have refused some.
        """
        return self.port.change(self._reconciler.set_settings, self.view, settings)

    def set_lines(
        self, *, dtr: bool | None = None, rts: bool | None = None
    ) -> asyncio.Future[PortStatus]:
        """Set DTR, RTS or both after the bytes written so far (RFC 2217, SET-CONTROL 8 to 12)."""
        set_lines = self._reconciler.set_lines
        return self.port.change(set_lines, self.view, clock.time(), dtr=dtr, rts=rts)

    def set_break(self, on: bool) -> asyncio.Future[PortStatus]:
        """Begin or end a break after the bytes written so far (RFC 2217, SET-CONTROL 5 and 6)."""
        return self.port.change(self._reconciler.set_break, self.view, on)

    def purge(self, *, receive: bool, transmit: bool) -> asyncio.Future[PortStatus]:
        """Discard what the board has sent, what waits for it, or both; waits for no bytes."""
        purge = self._reconciler.purge
        return self.port.change(purge, self.view, receive=receive, transmit=transmit)

    def read_states(self) -> asyncio.Future[PortStates]:
        """Read the modem lines, and what has happened on the wire."""
        return self.port.read_states()

    # --- what the port reports

    def suspend(self, by: str) -> None:
        """Another client controls the port."""
        self.write = self._drop
        self.owner.suspended(by)

    def resume(self) -> None:
        """The claim controls the port again."""
        self.write = self.port.write
        self.owner.resumed()

    def _drop(self, data: bytes) -> None:
        self.dropped_bytes += len(data)
        self.count_dropped(len(data))


class TaskClaim(Claim):
    """A claim for a task of the gateway's own: `async with port.claim("a label") as claim:`.

    Entering raises ClientError when the port is not to be had. The claim comes by the port's
    sharing rule as any client does; once it has the port it is not replaced or suspended.
    """

    def __init__(self, port: Port, label: str) -> None:
        super().__init__(port, label, self)
        #: Done when the port has been taken away, with the reason.
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def acquire(self) -> None:
        """Get the port; ClientError when it is not to be had. Ends with `leave`."""
        self.request()
        try:
            async with clock.timeout(GRANT_LIMIT_S):
                await self._granted
        except TimeoutError:
            self.leave()
            raise ClientError(f"{self.port.name}: {self.port.state_text}") from None
        except BaseException:
            self.leave()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Also when its clients were disconnected, as which it counts: the port still has it then.
        self.leave()
        self.lost.cancel()

    async def start(self, starts: Starts) -> None:
        """Reset the board into its app or its bootloader; both lines are at rest afterwards."""
        await self.within(self.port.start_board(starts))

    async def drained(self, limit_s: float = GRANT_LIMIT_S) -> None:
        """Wait until the bytes written so far have left, or can't."""
        await self.within(self.port.drained(), limit_s)

    async def within(self, operation: asyncio.Future[Any], limit_s: float = GRANT_LIMIT_S) -> None:
        """Wait for an operation; PortLostError when it takes too long or the claim is lost."""
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(limit_s):
                await asyncio.wait({operation, self.lost}, return_when="FIRST_COMPLETED")
        if operation.done():
            operation.result()
            return
        operation.cancel()
        reason = self.lost.result() if self.lost.done() else f"not done within {limit_s:.0f} s"
        raise PortLostError(f"{self.port.name}: {reason}")

    # --- ClaimOwner

    @property
    def is_leaving(self) -> bool:
        """True: what was asked for is carried out, whichever client connects meanwhile."""
        return True

    def granted(self) -> None:
        """See ClaimOwner."""
        if not self._granted.done():
            self._granted.set_result(None)

    def refused(self, error: ClientError) -> None:
        """See ClaimOwner."""
        if not self._granted.done():
            self._granted.set_exception(error)

    def suspended(self, by: str) -> None:
        """See ClaimOwner; does not come, as for the next three."""

    def resumed(self) -> None:
        """See ClaimOwner."""

    def replaced(self, by: str) -> None:
        """See ClaimOwner."""

    def data_received(self, data: bytes) -> None:
        """See ClaimOwner; the board's output is for others."""

    def board_busy(self) -> None:
        """See ClaimOwner; so little is written that it does not matter."""

    def board_ready(self) -> None:
        """See ClaimOwner."""

    def port_lost(self, error: DeviceError) -> None:
        """See ClaimOwner."""
        if not self.lost.done():
            self.lost.set_result(str(error))


class StallTimeout:
    """Gives up the bytes of a client that has left, when the board takes none of them.

    Calls `stalled`, once, when the port has sent nothing for STALL_S, or when LONGEST_S have passed
    since it was made; both are longer at low baud rates.
    """

    def __init__(self, port: Port, stalled: Callable[[], None]) -> None:
        self._stalled = stalled
        self._port = port
        self._began_at_s = self._still_since_s = clock.time()
        self._seen_bytes = port.taken_bytes
        self._timer: clock.Timer | None = None
        self._look_later()

    def hand_over(self, stalled: Callable[[], None]) -> None:
        """Call `stalled` from here on; the time that has passed counts."""
        self._stalled = stalled
        if self._timer is None:
            self._look_later()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ends_at_s(self) -> float:
        s_per_byte = _BITS_PER_BYTE / max(self._port.reconciler.settings.baudrate, 1)
        stall_s = max(STALL_S, 2 * _STEP_BYTES * s_per_byte)
        longest_s = max(LONGEST_S, 2 * _MOST_WAITING_BYTES * s_per_byte)
        return min(self._still_since_s + stall_s, self._began_at_s + longest_s)

    def _look_later(self) -> None:
        at_s = min(clock.time() + _LOOK_S, self._ends_at_s())
        self._timer = clock.call_at(at_s, self._look)

    def _look(self) -> None:
        now, taken_bytes = clock.time(), self._port.taken_bytes
        if taken_bytes != self._seen_bytes:
            self._seen_bytes, self._still_since_s = taken_bytes, now
        if now >= self._ends_at_s():
            self._timer = None
            self._stalled()
        else:
            self._look_later()
