"""One entry of the configuration over time: its board, its clients, and what is left for the next.

`Port` holds the parts together. The tty is opened and watched by `BoardTty`, the `Reconciler`
decides what to do on it, the `Arbiter` which claim has control. A board that is away is a port
without a tty: requests are answered from what is wanted, bytes wait here, and both go to the board
when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Final

import structlog

from gateway import clock
from gateway.config.document import OnAbsent, OnConnect, OnDisconnect, Opening, PortConfig
from gateway.errors import ClientError, DeviceAbsentError, DeviceError, PortLostError
from gateway.port.arbiter import TAKE_BACK_AFTER_S, Arbiter, Dismissed, OnContender
from gateway.port.board_tty import BoardTty, Locate
from gateway.port.claim import Claim, StallTimeout, TaskClaim
from gateway.port.output_log import OutputLog, open_log
from gateway.port.recorder import Recorder
from gateway.port.state import (
    Action,
    Apply,
    BoardReset,
    Drain,
    DropUnsent,
    Log,
    Purge,
    ReadStates,
    Reconciler,
    SetBreak,
    SetLines,
)
from gateway.port_document import PortCounts, PortState
from gateway.protocol.access_server import PortStatus
from gateway.protocol.board_kinds import UsbIds
from gateway.protocol.reset import Starts
from gateway.runtime import call_blocking
from gateway.serialport.states import NO_STATES, PortStates
from gateway.serialport.transport import UNSENT_HIGH_BYTES, SerialTransport

#: Why a port with `open: on_connect` is released.
_UNTIL_NEEDED: Final = "until a client connects"

#: How long a board that has left the bus under its last client is waited for: boards come back
#: within 2.5 s, over a slow hub within 5.
_RETURN_S: Final = 5.0

#: The same for a board whose tty was lent: what has been done to it makes it leave the bus, and the
#: port may have no `grace_s` at all.
_LENT_RETURN_S: Final = 10.0

#: How long stopping waits for the last bytes to be sent, and again for the lines to be released
#: without them.
_STOP_LIMIT_S: Final = 0.5

#: How long the last bytes are sent where another client is to have the port at once.
_HURRY_S: Final = 0.5

#: What clients may write to a board that is away before they are asked to stop: one read of their
#: sockets more may follow. A flasher sends one packet of up to 16 KiB and waits for the answer.
HELD_HIGH_BYTES: Final = 65536

#: A client that has sent nothing for so long has ended what it was sending when its board vanished:
#: the pieces of one write follow each other within a round trip.
CUT_OFF_PAUSE_S: Final = 0.5

_NEVER_S: Final = float("-inf")

#: Why bytes are dropped that a board has got the beginning of.
_VANISHED: Final = "the board has vanished"


#: The port has settings and lines: a tty, or clients that wait for it.
HAS_STATUS: Final = frozenset(
    {PortState.IDLE, PortState.IN_USE, PortState.OFFLINE, PortState.CLEANUP}
)

#: No client has the port and nothing is under way that has to end first: it can be closed at once.
_MAY_CLOSE: Final = frozenset(
    {PortState.OPENING, PortState.ABSENT, PortState.IDLE, PortState.BROKEN}
)

#: Something is under way that may not be cut short when the port is stopped.
_NOT_AT_REST: Final = frozenset({PortState.IN_USE, PortState.CLEANUP})


class Port(asyncio.Protocol):
    """One port; made and used on the loop. It is the protocol of its tty's transport."""

    def __init__(
        self,
        config: PortConfig,
        locate: Locate,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.name = config.name
        self.state = PortState.OPENING
        self.reason = ""  # for the state, where there is one
        self.idle = asyncio.Event()  # set while a client can have the port at once
        self.received_bytes = 0  # from the board, since the gateway runs
        self.sent_bytes = 0  # to the board
        self.sessions = 0  # claims that have had the port
        self.usb_ids: UsbIds | None = None  # of the device that was last open
        self.counts = PortCounts()
        self.recorder = Recorder(1024 * config.recording.record_kib)
        self.arbiter = Arbiter(config.sharing)
        self.reconciler = Reconciler(config.serial, config.resets)
        self._config = config
        self._log = log
        self._tty = BoardTty(
            locate=locate,
            settings=config.serial,
            lines_at_rest=lambda ids: config.resets.strategy(ids).rest,
            owner=self,
            protocol=self,
            counts=self.counts,
            log=log,
        )
        self._transport: SerialTransport | None = None
        self._output_log: OutputLog | None = None
        self._operations: set[asyncio.Future[Any]] = set()
        self._held = bytearray()  # for a board that is away, or not ready since it is back
        self._cut_off_at_s = _NEVER_S  # a client goes on with what the board has not got
        self._cut_off_bytes = 0  # dropped of that, and not logged yet
        self._is_busy = False  # the controllers have been asked to write no more
        self._is_returning = False  # the board is back, and can't have the held bytes yet
        self._is_lent = False
        self._local_use = ""  # what the tty is released for, by request
        self._releases: list[asyncio.Future[None]] = []  # requests that wait for the tty's close
        self._cleanup: asyncio.Task[None] | None = None
        self._stall: StallTimeout | None = None  # of the last bytes
        self._hurry: clock.Timer | None = None
        self._grace: clock.Timer | None = None  # ends the wait for a board that is away
        self._grace_ends_s = 0.0
        self._lines_timer: clock.Timer | None = None
        self._lines_deadline: float | None = None  # for which it is set
        self._waiting_timer: clock.Timer | None = None
        self._at_rest = asyncio.Event()  # nothing is under way that stopping has to wait for
        self._at_rest.set()
        self._changed: list[asyncio.Future[None]] = []  # done when the state changes
        self._stop_reason = ""

    # --- the operator

    def start(self) -> None:
        """Open the tty, now and whenever it is there."""
        self._output_log = open_log(self._config.recording, self._log)
        if self._shall_be_open:
            self._tty.start()
        else:
            self._close_tty()

    async def release(self, reason: str = "for a local tool", *, force: bool = False) -> None:
        """Leave the tty to a local tool until `resume`; returns when the kernel has closed it.

        What was written is sent before, lines and settings go back. Raises ClientError when a
        client has the port (`force` disconnects it), when the port is resumed meanwhile, and when
        it is stopped. Clients that connect are refused with `reason`, or wait if `on_absent` says
        so.
        """
        if self.state is PortState.STOPPED:
            raise ClientError(f"{self.name}: stopped")
        if self.arbiter and not force:
            raise ClientError(f"{self.name}: {self.arbiter.in_use}")
        self._local_use = reason
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._releases.append(closed)
        gone = self.arbiter.dismiss()
        match self.state:
            case PortState.IN_USE:
                self._begin_cleanup(is_hurried=True, resets=self._resets_at_end, has_left=False)
            case PortState.OFFLINE | PortState.RELEASED:
                self._close_tty()
            case _:
                self._hurry_cleanup()
                self._close_if_unwanted()
        self._tell(gone, DeviceError(f"released {reason}"), f"{self.name}: released: {reason}")
        await closed

    def resume(self) -> None:
        """Take the tty back after `release`; does nothing without one."""
        if not self._local_use:
            return
        self._log.info("device_resumed")
        self._end_releases(ClientError(f"{self.name}: resumed before it was closed"))
        if self.state is PortState.RELEASED:
            self._enter(PortState.RELEASED, _UNTIL_NEEDED)
            self._serve_waiting()

    def reopen_log(self) -> None:
        """Open the log file again by its name: it may have been moved."""
        if self._output_log is not None:
            self._output_log.reopen()

    def rescan(self) -> None:
        """What is plugged in has changed, and may concern this port."""
        self._tty.rescan(in_use=self.state is not PortState.IDLE or bool(self.arbiter))

    def disconnect_clients(self, reason: str) -> None:
        """End the sessions of all clients of the port."""
        for claim in tuple(self.arbiter):
            claim.owner.port_lost(DeviceError(reason))

    async def stop(self, reason: str = "the gateway is shutting down") -> None:
        """Release the lines and close the tty for good; all clients get `reason`.

        Bounded: bytes that the board does not take are dropped, a kernel that does not answer
        is left behind.
        """
        self._stop_reason = reason
        self._refuse_waiting(f"{self.name}: {reason}")
        if self.arbiter:
            gone = self.arbiter.dismiss()
            if self.state is PortState.IN_USE:
                self._begin_cleanup(is_hurried=False, resets=self._resets_at_end, has_left=False)
            self._tell(gone, DeviceError(reason), f"{self.name}: {reason}")
        await self._rest()
        if self.state is PortState.CLEANUP:
            # A board that is held in reset takes no bytes, and must not stay so for them.
            self._drop_stalled()
            await self._rest()
        self._enter(PortState.STOPPED, "stopped")
        self._end_releases(ClientError(f"{self.name}: stopped"))
        self._forget("stopped")
        self._set_waiting_timer()
        await self._tty.stop()
        if self._output_log is not None:
            # All ports at once: each takes its limit where the disk does not answer.
            await call_blocking(self._output_log.close, "log file end")

    async def _rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_STOP_LIMIT_S):
                await self._at_rest.wait()

    # --- what is known

    @property
    def state_text(self) -> str:
        """The state, and the reason for it where there is one."""
        return f"{self.state.value}: {self.reason}" if self.reason else self.state.value

    @property
    def has_status(self) -> bool:
        """Whether there is a tty, or a client that waits for it: `status` means something."""
        return self.state in HAS_STATUS

    @property
    def status(self) -> PortStatus:
        """Settings, lines and break in force, or that will be when the board is back."""
        return self.reconciler.status()

    @property
    def tty_path(self) -> str:
        """Where the tty is now; raises DeviceError when it is nowhere."""
        return self._tty.path

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        unsent = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return unsent + len(self._held)

    @property
    def taken_bytes(self) -> int:
        """A number that changes whenever the kernel takes bytes for the board."""
        return self.sent_bytes - self.unsent_bytes

    @property
    def request_has_effect(self) -> bool:
        """Whether a client that asks for the port costs another it, or acts on the board.

        Opening the tty is such an act: the kernel raises DTR and RTS.
        """
        if self.arbiter.controllers:
            return self.arbiter.on_contender in {OnContender.REPLACE, OnContender.SUSPEND}
        config = self._config
        return config.on_connect is not OnConnect.NOTHING or config.open is not Opening.ALWAYS

    def changed(self) -> asyncio.Future[None]:
        """Return a future that is done at the next change of the state, counted from this call."""
        changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed.append(changed)
        return changed

    # --- claims

    def claim(self, label: str) -> TaskClaim:
        """Return a claim for a task of the gateway's own: an async context."""
        return TaskClaim(self, label)

    def request(self, claim: Claim) -> None:
        """Queue a claim, and give it the port if it can be given."""
        self.arbiter.wait(claim, clock.time())
        self._set_waiting_timer()
        self._serve_waiting()
        if self.arbiter.is_waiting(claim) and self.state is PortState.ABSENT:
            self._log.info("client_waits", client=claim.label, reason=self.reason)

    def leave(self, claim: Claim) -> None:
        """A claim gives the port back, or stops asking for it; what was written is still sent."""
        stall, claim.stall = claim.stall, None
        was_last = self.arbiter.leave(claim)
        self._set_waiting_timer()
        others_stay = not was_last and bool(self.arbiter.controllers)
        self.reconciler.leave(claim.view, clock.time(), others_stay=others_stay)
        self.reconcile()
        if was_last and self.state is PortState.OFFLINE:
            self._forget_clients()
        elif was_last:
            resets = claim.resets_at_end and self._resets_at_end
            self._begin_cleanup(is_hurried=False, resets=resets, stall=stall)
            return
        else:
            self._read_or_not()
            self._close_if_unwanted()
        if stall is not None:
            stall.stop()

    def hold_output(self, claim: Claim, held: bool) -> None:
        """The client takes no output for now (True), or takes it again.

        What the board sends stays in the kernel while no controller takes it.
        """
        self.arbiter.hold(claim, held)
        self._read_or_not()

    def waits_for(self, claim: Claim) -> bool:
        """Whether output that this client does not take is left in the kernel."""
        return self.arbiter.holds_output and claim in self.arbiter.controllers

    def write(self, data: bytes) -> None:
        """Send bytes to the board."""
        self.sent_bytes += len(data)
        if self._transport is None or self._is_returning:
            self._hold(data)
        else:
            self._transport.write(data)

    # --- operations (see Claim)

    def change(
        self, request: Callable[..., None], *args: object, **kwargs: object
    ) -> asyncio.Future[Any]:
        """Ask for a change; the bytes that follow do not go on with those before it."""
        self._cut_off_at_s = _NEVER_S
        return self._ask(request, *args, **kwargs)

    def _ask(
        self, request: Callable[..., None], *args: object, **kwargs: object
    ) -> asyncio.Future[Any]:
        """Make a request of the reconciler; its result completes the future."""
        operation = asyncio.get_running_loop().create_future()
        self._operations.add(operation)
        request(*args, token=operation, **kwargs)
        self.reconcile()
        return operation

    def start_board(self, starts: Starts) -> asyncio.Future[PortStatus]:
        """Reset the board into its app or its bootloader; both lines are at rest afterwards."""
        return self.change(self.reconciler.start, starts, clock.time())

    def lines_settled(self) -> asyncio.Future[PortStatus]:
        """Done when nothing that was asked of the lines so far is under way."""
        return self._ask(self.reconciler.settle_lines)

    def drained(self) -> asyncio.Future[PortStatus]:
        """Done when the bytes written so far have left, or can't."""
        return self._ask(self.reconciler.drain)

    def read_states(self) -> asyncio.Future[PortStates]:
        """Read the modem lines, and what has happened on the wire."""
        return self._ask(self.reconciler.read_states)

    def check_start(self, starts: Starts) -> None:
        """Raise ClientError where no line can make the board start this."""
        if problem := self.reconciler.lines.problem_of(starts):
            raise ClientError(f"{self.name}: {problem}")

    async def lend(self, reason: str) -> None:
        """Close the tty for a tool of the claim's until `take_back`; returns when it is closed.

        Meanwhile the board is offline for all clients: they stay, and what they ask for waits.
        """
        self._is_lent = True
        self._count_dropped(self.unsent_bytes - len(self._held), reason)
        self._cancel_grace()
        self._go_offline(DeviceError(reason))
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tty.release(lambda: None if closed.done() else closed.set_result(None))
        await closed

    def take_back(self) -> None:
        """Open the tty again after `lend`; a board that stays away is lost.

        Must be called before the claim leaves; does nothing if the tty is not lent.
        """
        if not self._is_lent:
            return
        self._is_lent = False
        limit_s = max(self._grace_s, _LENT_RETURN_S)
        error = DeviceError(f"not back within {limit_s:g} s of being lent out")
        self._grace = clock.call_later(limit_s, self.tty_not_open, error)
        self._tty.start()

    # --- what the tty reports (asyncio.Protocol, BoardTtyOwner)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol; `tty_opened` has come before."""

    def data_received(self, data: bytes) -> None:
        """Pass the board's bytes on, and keep what is to be kept of them."""
        self.received_bytes += len(data)
        self.recorder.record(clock.time(), data)
        if self._output_log is not None:
            self._output_log.write(data)
        for claim in self.arbiter.audience:
            claim.deliver(data)

    def pause_writing(self) -> None:
        """Too many bytes wait to be sent."""
        if not self._is_busy:
            self._is_busy = True
            for claim in tuple(self.arbiter.controllers):
                claim.owner.board_busy()

    def resume_writing(self) -> None:
        """Bytes can be written again."""
        if self._is_busy:
            self._is_busy = False
            for claim in tuple(self.arbiter.controllers):
                claim.owner.board_ready()

    def connection_lost(self, exc: Exception | None) -> None:
        """The tty has failed: wait for the board, or give the port up and try to open it again."""
        assert isinstance(exc, DeviceError)  # noqa: S101 - SerialTransport reports no other
        assert self._transport is not None  # noqa: S101 - the others are closed
        unsent = self._transport.take_unsent()
        self._transport = None
        if not self._grace_s:
            self._count_dropped(
                unsent.cut_off_bytes + len(self._held) + len(unsent.whole), _VANISHED
            )
            self._held.clear()
            self._tty.lost(exc)
            return
        self._count_dropped(unsent.cut_off_bytes, _VANISHED)
        self._grace_ends_s = clock.time() + self._grace_s
        stayed_away = DeviceError(f"{exc}; not back within {self._grace_s:g} s")
        self._grace = clock.call_at(self._grace_ends_s, self.tty_not_open, stayed_away)
        self._go_offline(exc)
        self._tty.lost(exc)
        if unsent.is_cut_off:
            self._cut_off_at_s = clock.time()
        if unsent.whole:
            self._hold(unsent.whole)
        if self.unsent_bytes <= HELD_HIGH_BYTES:
            self.resume_writing()

    def tty_opened(self, transport: SerialTransport) -> None:
        """The tty is open: the port can be had, or goes on where its board has left the bus."""
        self._transport = transport
        self.usb_ids = transport.tty.usb_ids
        if self._tty.is_awaited:
            self._come_back(transport)
        else:
            self.reconciler.opened(transport.tty.in_force, self.usb_ids)
            self.reconcile()
            self._become_idle()

    def tty_not_open(self, error: DeviceError) -> None:
        """The tty is not there, or can't be used; it is tried again. Clients are told."""
        gone = self.arbiter.dismiss()
        self._forget(str(error))
        absent = isinstance(error, DeviceAbsentError)
        self._enter(PortState.ABSENT if absent else PortState.BROKEN, str(error))
        refusal = f"{self.name}: {self.state_text}"
        self._serve_waiting()
        self._tell(gone, error, refusal)

    # --- a board that is away

    @property
    def _grace_s(self) -> float:
        """How long a board that vanishes is waited for."""
        return self._config.grace_s if self.arbiter else 0.0

    def _go_offline(self, error: DeviceError) -> None:
        """The clients keep the port while its tty is gone."""
        self._transport = None
        self._is_returning = False
        self._tty.is_awaited = True
        # Of a cleanup, the end comes at once: its operations are done in what is wanted.
        if self.state is not PortState.CLEANUP:
            self._enter(PortState.OFFLINE, str(error))
        self.reconciler.lost(clock.time())
        self.reconcile()

    def _come_back(self, transport: SerialTransport) -> None:
        self._tty.is_awaited = False
        self._is_returning = True
        self._cancel_grace()
        self._log_cut_off()
        self.reconciler.returned(transport.tty.in_force, self.usb_ids, clock.time())
        if self.state is PortState.OFFLINE and self.arbiter.controllers:
            self._enter(PortState.IN_USE)
            self._read_or_not()
            self.reconcile()
            self._serve_waiting()
        elif self.state is PortState.OFFLINE:
            self.reconcile()
            self._begin_cleanup(is_hurried=True, resets=self._resets_at_end)
        else:
            self.reconcile()
        if self._is_returning:
            self.pause_writing()

    def _cancel_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()

    def _forget_clients(self) -> None:
        """The last controller of a board that is away has left: drop what it has asked for.

        The board is cleaned up when it is back.
        """
        self._drop_held()
        self.reconciler.forget_clients(clock.time())
        self.reconcile()
        self.resume_writing()
        if not self._resume_suspended():
            self._cancel_grace()
            if not self._is_lent:
                self._grace_ends_s = min(self._grace_ends_s, clock.time() + _RETURN_S)
                absent = DeviceAbsentError("not plugged in")
                self._grace = clock.call_at(self._grace_ends_s, self.tty_not_open, absent)

    def _hold(self, data: bytes) -> None:
        """Keep bytes for when the board is back, unless they go on with what was cut off."""
        if clock.time() - self._cut_off_at_s < CUT_OFF_PAUSE_S:
            self._cut_off_at_s = clock.time()
            self.counts.input_dropped_bytes += len(data)
            self._cut_off_bytes += len(data)  # pieces of one write: logged together
            return
        self._held += data
        if len(self._held) > HELD_HIGH_BYTES:
            self.pause_writing()

    def _send_held(self, transport: SerialTransport) -> None:
        """The board is back and ready: send what has waited for it."""
        self._is_returning = False
        held, self._held = bytes(self._held), bytearray()
        if held:
            transport.write(held)
        if transport.get_write_buffer_size() <= UNSENT_HIGH_BYTES:
            self.resume_writing()

    def _drop_held(self) -> None:
        self._log_cut_off()
        n_bytes = len(self._held)
        self._held.clear()
        self._count_dropped(n_bytes, "the board is away")

    def _log_cut_off(self) -> None:
        n_bytes, self._cut_off_bytes = self._cut_off_bytes, 0
        self._cut_off_at_s = _NEVER_S
        self._log_dropped(n_bytes, _VANISHED)

    def _count_dropped(self, n_bytes: int, reason: str) -> None:
        self.counts.input_dropped_bytes += n_bytes
        self._log_dropped(n_bytes, reason)

    def _log_dropped(self, n_bytes: int, reason: str) -> None:
        if n_bytes:
            self._log.warning("unsent_dropped", unsent_bytes=n_bytes, reason=reason)

    # --- wanted and applied

    def reconcile(self) -> None:
        """Carry out what the reconciler says is to be done, and complete what is done."""
        reconciler = self.reconciler
        if reconciler.lines.events:
            self._log_events()
        while reconciler.actions:
            self._carry_out(reconciler.actions.popleft())
        while reconciler.results:
            token, result = reconciler.results.popleft()
            if token in self._operations:
                self._operations.discard(token)
                if not token.done():
                    token.set_result(NO_STATES if result is None else result)
        if self._is_returning and self._transport is not None and not reconciler.holds_bytes:
            self._send_held(self._transport)
        if reconciler.lines.deadline != self._lines_deadline:
            self._set_lines_timer()

    def _log_events(self) -> None:
        events = self.reconciler.lines.events
        while events:
            match events.popleft():
                case Log(name, level, fields):
                    getattr(self._log, level)(name, **fields)
                case BoardReset(starts, strategy):
                    self.counts.resets[starts.value, strategy] += 1
                case DropUnsent(reason):
                    self._drop_unsent(reason)

    def _carry_out(self, action: Action) -> None:  # noqa: C901 - one arm for each action
        transport = self._transport

        def done(result: object) -> None:
            self.reconciler.done(action, result, clock.time())
            self.reconcile()

        if isinstance(action, Purge) and action.transmit:
            self._held.clear()
        if transport is None:
            if isinstance(action, Purge):
                self.reconciler.done(action, None, clock.time())
                self.resume_writing()
            return
        tty = transport.tty
        match action:
            case Apply(settings):
                transport.call_in_order(lambda: tty.apply(settings), done, holds_reading=True)
            case SetLines(lines):
                transport.call_in_order(lambda: tty.set_lines(lines), done)
            case SetBreak(on):
                transport.call_in_order(lambda: tty.set_break(on), done)
            case Drain():
                transport.call_in_order(lambda: None, done)
            case Purge(receive, transmit):
                transport.purge(receive=receive, transmit=transmit, done=done)
            case ReadStates():
                transport.read_states(done)

    def _set_lines_timer(self) -> None:
        if self._lines_timer is not None:
            self._lines_timer.cancel()
            self._lines_timer = None
        self._lines_deadline = self.reconciler.lines.deadline
        if self._lines_deadline is not None:
            self._lines_timer = clock.call_at(self._lines_deadline, self._on_lines_timer)

    def _on_lines_timer(self) -> None:
        self._lines_timer = self._lines_deadline = None
        self.reconciler.handle_timer(clock.time())
        self.reconcile()

    def _drop_unsent(self, reason: str) -> None:
        """Drop what was written and the kernel has not taken; count and log how much."""
        self._count_dropped(self.unsent_bytes, reason)
        self.reconciler.purge(None, object(), receive=False, transmit=True)
        self.reconcile()

    # --- the end of a client's control

    @property
    def _resets_at_end(self) -> bool:
        return self._config.on_disconnect is OnDisconnect.RESET

    def _begin_cleanup(
        self,
        *,
        is_hurried: bool,
        resets: bool,
        has_left: bool = True,
        stall: StallTimeout | None = None,
    ) -> None:
        """Bring the board to where the next client expects it.

        `has_left` is False for a client that has to stop and has not disconnected: what
        disconnecting means to a board is not done. `stall` has the time of a client that has.
        """
        self._enter(PortState.CLEANUP)
        if self._transport is not None:
            self._transport.resume_reading()
        self._stall = stall or StallTimeout(self, self._drop_stalled)
        self._stall.hand_over(self._drop_stalled)
        if is_hurried:
            self._hurry_cleanup()
        self._cleanup = asyncio.get_running_loop().create_task(
            self._clean_up(resets=resets, has_left=has_left)
        )

    async def _clean_up(self, *, resets: bool, has_left: bool) -> None:
        """Send the last bytes, then bring the board, lines, break and settings to rest."""
        try:
            await self.drained()
            # A touch is what the client has asked for last: a reset would undo it.
            if resets and not (has_left and self.reconciler.lines.is_touched_by_leaving):
                await self.start_board(Starts.APP)
            self._end_timeouts()
            if self.reconciler.break_on:
                await self.change(self.reconciler.set_break, None, False)
            await self.change(self.reconciler.release_lines, clock.time(), has_left=has_left)
            if self.reconciler.settings != self._config.serial:
                await self.change(self.reconciler.set_settings, None, self._config.serial)
        except PortLostError:
            return  # there is nothing to clean up
        self._cleanup = None
        self._become_idle()

    def _hurry_cleanup(self) -> None:
        """Another client is to have the port at once: bytes are sent for _HURRY_S at most."""
        if self._stall is not None:
            self._stall.stop()
            self._stall = None
            self._hurry = clock.call_later(_HURRY_S, self._drop_stalled)

    def _drop_stalled(self) -> None:
        self._drop_unsent("the board does not accept data")

    def _end_timeouts(self) -> None:
        if self._stall is not None:
            self._stall.stop()
            self._stall = None
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None

    def _become_idle(self) -> None:
        if self._tty.is_awaited:
            self._enter(PortState.OFFLINE, "not plugged in")
            self._forget_clients()
        elif not self._shall_be_open:
            self._close_tty()
        else:
            self._enter(PortState.IDLE)
            # What has changed while it was in use may be that it is not the right one any longer.
            self.rescan()
            self._serve_waiting()

    def _forget(self, reason: str) -> None:
        """The tty is gone: nothing that was asked for comes true."""
        if self._cleanup is not None:
            self._cleanup.cancel()
            self._cleanup = None
        self._end_timeouts()
        self._cancel_grace()
        self._drop_held()
        self._is_busy = self._is_returning = self._is_lent = self._tty.is_awaited = False
        self._transport = None
        self.reconciler.close()
        self._set_lines_timer()
        operations, self._operations = self._operations, set()
        _complete(operations, PortLostError(f"{self.name}: {reason}"))

    # --- opening on demand, local tools

    @property
    def _shall_be_open(self) -> bool:
        is_needed = bool(self.arbiter) or self.arbiter.has_waiting
        return not self._local_use and (self._config.open is Opening.ALWAYS or is_needed)

    def _close_if_unwanted(self) -> bool:
        """Close a tty that is not needed; returns whether it was."""
        if self.state not in _MAY_CLOSE or self._shall_be_open:
            return False
        self._close_tty()
        return True

    def _close_tty(self) -> None:
        reason = self._local_use or _UNTIL_NEEDED
        self._forget(f"released {reason}")
        if self.state is not PortState.RELEASED:
            self._log.info("device_released", reason=reason)
        self._enter(PortState.RELEASED, reason)
        self._tty.release(self._tty_closed)
        self._serve_waiting()

    def _tty_closed(self) -> None:
        releases, self._releases = self._releases, []
        _complete(releases)

    def _end_releases(self, error: ClientError) -> None:
        """The tty is no longer released; requests that still wait for that get `error`."""
        self._local_use = ""
        releases, self._releases = self._releases, []
        _complete(releases, error)

    # --- control of the port

    def _serve_waiting(self) -> None:
        """Give the port to a claim that waits, or that has had it before, if it can be given."""
        if self._stop_reason:
            self._refuse_waiting(f"{self.name}: {self._stop_reason}")
            return
        if self._close_if_unwanted():
            return
        arbiter = self.arbiter
        waits_for_board = self._config.on_absent is OnAbsent.WAIT
        match self.state:
            case PortState.IDLE if arbiter.has_waiting:
                self._admit(arbiter.next_waiting(clock.time()))
                self._enter(PortState.IN_USE)
                self._prepare()
            case PortState.IDLE:
                self._resume_suspended()
            case PortState.IN_USE | PortState.OFFLINE:
                if arbiter.has_waiting and arbiter.controllers:
                    self._contend()
            case PortState.RELEASED if self._shall_be_open:
                self._enter(PortState.OPENING)
                self._tty.start()
            case PortState.ABSENT | PortState.RELEASED if waits_for_board:
                pass
            case PortState.ABSENT | PortState.BROKEN | PortState.RELEASED | PortState.STOPPED:
                self._refuse_waiting(f"{self.name}: {self.state_text}")
                self._close_if_unwanted()

    def _admit(self, claim: Claim) -> None:
        self.sessions += 1
        self.arbiter.admit(claim)
        self._set_waiting_timer()

    def _prepare(self) -> None:
        """Do to the board what `on_connect` asks for, then grant the port."""
        match self._config.on_connect:
            case OnConnect.NOTHING:
                self._grant()
                return
            case OnConnect.BOOTLOADER:
                operation = self.start_board(Starts.BOOTLOADER)
            case OnConnect.RESET:
                operation = self.start_board(Starts.APP)

        def done(_: asyncio.Future[PortStatus]) -> None:
            if not operation.cancelled() and operation.exception() is None:
                self._grant()

        operation.add_done_callback(done)

    def _grant(self) -> None:
        if self.arbiter.is_granted:
            return
        self.arbiter.grant()
        for claim in tuple(self.arbiter.controllers):  # they may have left meanwhile
            self._introduce(claim)
        self._serve_waiting()

    def _introduce(self, claim: Claim) -> None:
        claim.owner.granted()
        self._read_or_not()  # it may take what the others leave
        if self._is_busy:
            claim.owner.board_busy()

    def _contend(self) -> None:
        """Do to the controllers what the first claim that waits may have done to them."""
        arbiter, now = self.arbiter, clock.time()
        if not arbiter.is_granted:
            return  # claims wait until the board is prepared
        if arbiter.on_contender is OnContender.JOIN:
            while arbiter.has_waiting:
                claim = arbiter.next_waiting(now)
                self._admit(claim)
                self._introduce(claim)
            return
        if not arbiter.may_be_followed or self._tty.is_awaited:
            return
        by = arbiter.next_waiting(now)
        if arbiter.on_contender is OnContender.SUSPEND:
            for claim in arbiter.suspend():
                self.suspend_claim(claim, by.label)
            self._begin_cleanup(is_hurried=True, resets=False, has_left=False)
        elif arbiter.on_contender is OnContender.REPLACE and not arbiter.keeps_out(by, now):
            for claim in arbiter.replace(by, now):
                claim.owner.replaced(by.label)
            self._hurry_cleanup()

    def _resume_suspended(self) -> bool:
        """Give the port back to the claim that was suspended last, if there is one."""
        claim = self.arbiter.resume()
        if claim is None:
            return False
        if self.state is PortState.IDLE:
            self._enter(PortState.IN_USE)
        self.resume_claim(claim)
        self._read_or_not()
        return True

    def suspend_claim(self, claim: Claim, by: str) -> None:
        """Let a controller observe while another client controls the port."""
        self.reconciler.suspend(claim.view)
        self.reconcile()
        claim.suspend(by)

    def resume_claim(self, claim: Claim) -> None:
        """Give control back to a claim that was suspended."""
        self.reconciler.resume(claim.view, clock.time())
        self.reconcile()
        claim.resume()

    def _set_waiting_timer(self) -> None:
        if self._waiting_timer is not None:
            self._waiting_timer.cancel()
            self._waiting_timer = None
        if (deadline := self.arbiter.deadline) is not None:
            self._waiting_timer = clock.call_at(deadline, self._on_waiting_timer)

    def _on_waiting_timer(self) -> None:
        now = clock.time()
        for claim in self.arbiter.overdue(now):
            if not self.arbiter.is_waiting(claim):
                continue  # served meanwhile
            if self._will_be_served(claim, now):
                self.arbiter.wait(claim, now)
                self._serve_waiting()
            else:
                self._refuse_overdue(claim, now)
        self._set_waiting_timer()

    def _will_be_served(self, claim: Claim, now: float) -> bool:
        """Whether a claim may still get the port; what it waits for is bounded."""
        waits_for_board = self._config.on_absent is OnAbsent.WAIT
        match self.state:
            case PortState.OPENING if self._config.open is Opening.ON_CONNECT:
                return True
            case PortState.OPENING | PortState.ABSENT | PortState.RELEASED:
                return waits_for_board
            case PortState.OFFLINE if not self.arbiter:
                return True
            case PortState.CLEANUP if not self.unsent_bytes:
                return True  # on a busy machine, calls that take moments take longer
        arbiter = self.arbiter
        may_follow = arbiter.on_contender is not OnContender.WAIT
        may_follow = may_follow and not arbiter.keeps_out(claim, now)
        return self.state in HAS_STATUS and (may_follow or arbiter.are_probed)

    def _refuse_overdue(self, claim: Claim, now: float) -> None:
        arbiter = self.arbiter
        arbiter.stop_waiting(claim)
        reason = arbiter.in_use if arbiter.controllers else self.state.value
        if arbiter.keeps_out(claim, now):
            arbiter.tried_to_take_back(claim, now)
            reason += (
                ", taken over from your address:"
                f" wait {TAKE_BACK_AFTER_S:g} s before you take it back"
            )
        claim.owner.refused(ClientError(f"{self.name}: {reason}"))
        self._close_if_unwanted()

    def _refuse_waiting(self, reason: str) -> None:
        for claim in self.arbiter.take_waiting():
            claim.owner.refused(ClientError(reason))
        self._set_waiting_timer()

    def _tell(self, gone: Dismissed, error: DeviceError, refusal: str) -> None:
        """Tell claims that they have lost the port, or do not get it."""
        for claim in gone.awaited:
            claim.owner.refused(ClientError(refusal))
        for claim in gone.had:
            claim.owner.port_lost(error)

    def _read_or_not(self) -> None:
        if self._transport is not None and self.arbiter.controllers:
            if self.arbiter.holds_output:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _enter(self, state: PortState, reason: str = "") -> None:
        if self.state is PortState.STOPPED:
            return
        self.state = state
        self.reason = reason
        for event, is_set in (
            (self.idle, state is PortState.IDLE),
            (self._at_rest, state not in _NOT_AT_REST),
        ):
            if is_set:
                event.set()
            else:
                event.clear()
        changed, self._changed = self._changed, []
        _complete(changed)


def _complete(futures: Iterable[asyncio.Future[Any]], error: ClientError | None = None) -> None:
    """Complete those that are still waited for, with None or with an error."""
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            future.exception()  # it may have no reader
