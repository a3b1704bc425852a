"""One port of the gateway as its clients, its board and its operator see it: the form of scenarios.

    async def test_a_client_keeps_its_settings_over_a_replug(tmp_path: Path) -> None:
        async with world(tmp_path, "grace_s: 10") as w:
            client = await w.client()
            await client.set_baudrate(921600)
            w.board.unplug()
            await w.until(State.OFFLINE)
            await client.send(b"hello?")
            w.board.plug()
            await w.pass_until(lambda: w.state == State.IN_USE)
            await w.board.reads(b"hello?")
            assert w.board.baudrate == 921600

A scenario knows nothing of the gateway's classes. It begins with the YAML of one port and uses:

- `w.board`: the far end of the tty (tests/support/tty_board.py): `plug`, `unplug`, `write`,
  `reads`, `start_reading`. `w.board.calls` (tests/support/tty_calls.py) has all that the gateway
  has done to the tty, with times and in order, and makes calls hang or fail. `w.board.lines` are
  the states of DTR and RTS.
- `w.client()`: a client that speaks RFC 2217 and controls the port; `w.connect()`: any other.
  Clients are closed in the end. They are at 127.0.0.1 unless `source` says otherwise.
- `w.state`, `w.status`: what `esp-gateway status` says. `w.log`: what was logged; `w.logged(...)`.
- `w.release()`, `w.resume()`, `w.rescan()`, `w.stop()`: what an operator or udev does.
  `w.claim()` has the port for a request over HTTP, `w.lent()` lends its tty to esptool.
- time, which stands still: `w.pass_time(s)` runs what is due at its exact time, `w.pass_until()`
  until something holds, `w.run()` until a coroutine has ended (a request that takes its time);
  `w.until()` waits without letting time pass, for I/O and threads.
  `w.clock.advance(s)` jumps, for long times. Bytes take no time.

Words that may still change (states, log events, notices) are constants here, so that a renaming
is made once. What is imported from gateway/ is imported in this module and in tty_board.py only.
"""

from __future__ import annotations

import asyncio
import re
import termios
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
from structlog.testing import capture_logs

from gateway import clock as gateway_clock
from gateway.config.document import PortConfig
from gateway.config.reader import parse_config
from gateway.errors import ClientError, DeviceAbsentError, DeviceError
from gateway.flash.user import FlashUser
from gateway.net.access import Admission
from gateway.net.tls_context import TlsContexts
from gateway.port import arbiter
from gateway.port.claim import TaskClaim
from gateway.port_document import ClientState
from gateway.protocol.board_kinds import UsbIds
from gateway.protocol.reset import BOTH, IDLE, RESET, STRAP, Lines, Starts
from gateway.protocol.rfc2217 import Control
from gateway.running_port import RunningPort, document, start_port
from gateway.serialport.tty import TtyLocation
from tests.support.clock import ControlledClock
from tests.support.tcp_client import (
    GREETED_ACCEPTS_COM_PORT,
    GREETING,
    SPEAKS_TELNET,
    TcpClient,
    com_port,
)
from tests.support.telnet_wire import RFC2217_CLIENT
from tests.support.tty_board import LoopClock, PtyBoard, turns, until
from tests.support.tty_calls import OtherProgram, TtyCalls, is_free

__all__ = [
    "BOTH",
    "IDLE",
    "PURGE_BOTH",
    "PURGE_RECEIVE",
    "PURGE_TRANSMIT",
    "RESET",
    "SPEAKS_TELNET",
    "STRAP",
    "Board",
    "Client",
    "ClientError",
    "Control",
    "DeviceAbsentError",
    "DeviceError",
    "Lines",
    "Location",
    "Logged",
    "Notice",
    "OtherProgram",
    "State",
    "UsbIds",
    "World",
    "baudrate",
    "com_port",
    "control",
    "control_answers",
    "hard_reset",
    "is_free",
    "moving",
    "set_wall_clock",
    "turns",
    "until",
    "world",
]

T = TypeVar("T")

SET_BAUDRATE, SET_CONTROL, PURGE = 1, 5, 12
PURGE_RECEIVE, PURGE_TRANSMIT, PURGE_BOTH = 1, 2, 3

#: Where a port's tty is; raise DeviceError in the function given to `world` when it is nowhere.
Location = TtyLocation


class State:
    """The states of a port, as status names them."""

    OPENING = "opening"
    ABSENT = "absent"
    IDLE = "idle"
    IN_USE = "in use"
    OFFLINE = "offline"
    CLEANUP = "cleanup"
    RELEASED = "released"
    BROKEN = "broken"
    STOPPED = "stopped"
    NOT_CONNECTED = "not connected"  # a port with `connect`


class Logged:
    """Log events."""

    OPENED = "device_opened"
    OPEN_FAILED = "device_open_failed"
    LOST = "device_lost"
    RELEASED = "device_released"
    RESUMED = "device_resumed"
    DROPPED = "unsent_dropped"
    RESET = "board_reset"
    RESET_OWED = "board_reset_postponed"
    NOT_RESET = "board_not_reset"
    STRATEGY = "reset_strategy_selected"
    REST_NOT_USED = "rest_not_used"
    SETTINGS_REFUSED = "settings_refused"
    CONNECTED = "client_connected"
    DISCONNECTED = "client_disconnected"
    REFUSED = "client_refused"
    WAITS = "client_waits"
    CLIENT_SUSPENDED = "client_muted"
    CLIENT_RESUMED = "client_resumed"
    REJECTED = "client_rejected"
    IDENTIFIED = "client_identified"
    VIOLATED = "client_violated_protocol"
    OUTPUT_DROPPED = "output_dropped"
    DIAL_CONNECTED = "dial_connected"
    DIAL_FAILED = "dial_failed"


class Notice:
    """What clients are told within the board's output, and instead of it."""

    @staticmethod
    def suspended(by: TcpClient | str) -> bytes:
        """Another client controls the port."""
        name = by if isinstance(by, str) else by.name
        return f"--- desk: {name} controls the port, your input is dropped ---\r\n".encode()

    RESUMED = b"control returned to you ---"

    @staticmethod
    def taken_over(by: TcpClient) -> bytes:
        """Another client has taken the port."""
        return f"\r\n--- desk: {by.name} takes the port over ---\r\n".encode()

    @staticmethod
    def in_use(by: TcpClient | str) -> str:
        """The start of a refusal."""
        name = by if isinstance(by, str) else by.name
        return f"desk: in use by {name} since "

    TAKE_BACK = ", taken over from your address: wait 10 s before you take it back"


class Board(PtyBoard):
    """A board on a pty with modem lines; all that is done to its tty is in `calls`.

    `usb_ids` are read at each open.
    """

    def __init__(
        self,
        folder: Path,
        *,
        plugged_in: bool = True,
        usb_ids: UsbIds | None = None,
        has_lines: bool = True,
    ) -> None:
        self.calls = TtyCalls()
        self.calls.has_lines = has_lines
        self.usb_ids = usb_ids
        super().__init__(folder, plugged_in=False)
        self.lines = self.calls.lines
        self.location = Location(str(self.path), None, lambda: self.usb_ids)
        self.calls.watch(str(self.path))
        if plugged_in:
            self.plug()

    def plug(self) -> None:
        """The tty appears."""
        super().plug()
        self.calls.watch(str(self.path))

    def start_echoing_as_fresh(self) -> None:
        """Let the tty be as the kernel makes it: it echoes what the board sends."""
        with OtherProgram(self.path, locks=False) as tty:
            attributes = termios.tcgetattr(tty.descriptor)
            attributes[3] |= termios.ECHO | termios.ICANON
            termios.tcsetattr(tty.descriptor, termios.TCSANOW, attributes)

    async def reads(self, wanted: bytes) -> None:
        """Read until so much has come; all that was ever read is to be `wanted`."""
        await self.reads_bytes(len(wanted))
        assert self.received == wanted

    async def reads_bytes(self, n_bytes: int) -> None:
        """Read until so many bytes have ever been read."""
        await self.reads_until(lambda: len(self.received) >= n_bytes)

    async def reads_until(self, is_enough: Callable[[], object]) -> None:
        """Read what comes until a condition holds."""

        def has_read() -> object:
            self.read_some(65536)
            return is_enough()

        await until(has_read)

    def wire(self, since: int = 0) -> list[tuple[Lines, int]]:
        """Each state of the lines with the baud rate at that moment, without the first `since`."""
        states: list[tuple[Lines, int]] = []
        rate = 0
        for call in self.calls.log:
            if call.name == "settings":
                rate = int(call.value.split()[0])
            elif call.name == "lines":
                states.append((call.value, rate))
        return states[since:]

    @property
    def is_free(self) -> bool:
        """Whether a local tool that locks the tty gets it."""
        return is_free(self.path)


class Client(TcpClient):
    """A client that can speak RFC 2217; each command is sent, and its answer read."""

    _name = ""

    @property
    def name(self) -> str:
        """How the gateway calls this client, also after it has closed."""
        self._name = self._name or super().name
        return self._name

    def close(self) -> None:
        """Leave."""
        if self._socket.fileno() >= 0:
            self._name = self.name
        super().close()

    async def ask(self, code: int, value: bytes, answer: bytes | None = None) -> None:
        """Send a command, and wait for one more answer to it than there were; no time passes."""
        wire = com_port(code + 100, value if answer is None else answer)
        before = self.received.count(wire)
        await self.send(com_port(code, value))
        await self.receive(lambda: self.received.count(wire) > before)

    async def set_baudrate(self, bps: int, in_force: int | None = None) -> None:
        """Set the baud rate; `in_force` is what is answered if that is another one."""
        told = bps if in_force is None else in_force
        await self.ask(SET_BAUDRATE, bps.to_bytes(4, "big"), told.to_bytes(4, "big"))

    async def control(self, *codes: Control) -> None:
        """Set modem lines or a break, one after the other."""
        for code in codes:
            await self.ask(SET_CONTROL, bytes([code]))

    async def purge(self, which: int = PURGE_TRANSMIT) -> None:
        """Discard what was received, what is to be sent, or both."""
        await self.ask(PURGE, bytes([which]))

    async def settled(self) -> None:
        """Wait until all that was sent so far has been carried out."""
        await self.ask(SET_BAUDRATE, bytes(4), (await self.baudrate()).to_bytes(4, "big"))

    async def baudrate(self) -> int:
        """Ask for the baud rate in force."""
        n_bytes = len(self.received)
        answer = re.compile(rb"\xff\xfa\x2c\x65(.{4})\xff\xf0", re.DOTALL)
        await self.send(com_port(SET_BAUDRATE, bytes(4)))
        await self.receive(lambda: answer.search(self.received, n_bytes))
        found = answer.search(self.received, n_bytes)
        assert found is not None
        return int.from_bytes(found[1], "big")

    async def reads_what_has_come(self) -> None:
        """Read without waiting for more."""
        while self.has_more():
            await self.receive_some()

    async def is_told(self, notice: bytes) -> None:
        """Wait until the client has got this among its data."""
        await self.receive(lambda: notice in self.data)


def control(*codes: Control) -> bytes:
    """Commands for modem lines, as bytes to be sent together."""
    return b"".join(com_port(SET_CONTROL, bytes([code])) for code in codes)


def control_answers(*codes: Control) -> bytes:
    """What is answered to these."""
    return b"".join(com_port(SET_CONTROL + 100, bytes([code])) for code in codes)


def baudrate(bps: int) -> bytes:
    """The command for a baud rate."""
    return com_port(SET_BAUDRATE, bps.to_bytes(4, "big"))


@dataclass(frozen=True, slots=True)
class Status:
    """What status says of a port."""

    state: str
    reason: str
    controls: str  # the client that controls the port
    observes: str  # clients that only get the output
    settings: str
    lines: str
    address: str
    sessions: int
    refused: int
    received_bytes: int
    sent_bytes: int
    dropped_bytes: int  # of what clients have sent
    output_dropped_bytes: int  # of the board's output


class Claim:
    """A port had for a task of the gateway's own, as a request over HTTP has it."""

    def __init__(self, claim: TaskClaim) -> None:
        self._claim = claim

    async def reset(self) -> None:
        """Start the board's app."""
        await self._claim.start(Starts.APP)

    async def enter_bootloader(self) -> None:
        """Start the board's bootloader."""
        await self._claim.start(Starts.BOOTLOADER)


class World:
    """See the module; made by `world`."""

    def __init__(
        self, board: Board, clock: LoopClock, log: list[Mapping[str, Any]], admission: Admission
    ) -> None:
        self.board = board
        self.clock = clock
        self.log = log
        self.admission = admission
        self.running: RunningPort | None = None
        self._closing = ExitStack()

    # --- the port

    @property
    def port(self) -> RunningPort:
        """The gateway's own object: for adapters in tests/support, not for scenarios."""
        assert self.running is not None
        return self.running

    @property
    def status(self) -> Status:
        """What status says of the port."""
        said = document(self.port)
        return Status(
            state=said.state,
            reason=said.reason,
            controls=", ".join(said.addresses_of(ClientState.CONTROLLER)),
            observes=", ".join(said.addresses_of(ClientState.SUSPENDED)),
            settings="" if said.settings is None else str(said.settings),
            lines="" if said.lines is None else str(said.lines),
            address=said.address,
            sessions=said.sessions,
            refused=said.rejected["unavailable"],
            received_bytes=said.received_bytes,
            sent_bytes=said.sent_bytes,
            dropped_bytes=said.input_dropped_bytes,
            output_dropped_bytes=said.output_dropped_bytes,
        )

    @property
    def dial_failures(self) -> int:
        """How many attempts to connect have failed, of a port with `connect`."""
        return document(self.port).dial_failures

    @property
    def rejected(self) -> dict[str, int]:
        """Connections that were closed without a session, by reason."""
        counts = document(self.port).rejected
        return {each: n for each, n in counts.items() if n and each != "unavailable"}

    @property
    def state(self) -> str:
        """One of State."""
        return self.status.state

    @property
    def tcp_port(self) -> int:
        """Where clients connect."""
        return int(self.status.address.rpartition(":")[2])

    @property
    def recorded(self) -> bytes:
        """What is kept in memory of the board's output."""
        return self.port.port.recorder.tail()

    async def release(self, reason: str = "for a local tool", *, force: bool = False) -> None:
        """Leave the tty to a local tool, as `esp-gateway release` does."""
        await self.port.port.release(reason, force=force)

    def resume(self) -> None:
        """Take it back."""
        self.port.port.resume()

    def rescan(self) -> None:
        """Something has been plugged in or out somewhere: udev has told of it."""
        self.port.port.rescan()

    async def stop(self, reason: str = "the gateway is shutting down") -> None:
        """Stop serving the port."""
        await self.port.stop(reason)

    @asynccontextmanager
    async def claim(
        self, label: str = "10.0.0.9", *, cleans_up: bool = True
    ) -> AsyncIterator[Claim]:
        """Have the port inside, as a request over HTTP has; ClientError if it can't be had.

        `cleans_up` False leaves out what `on_disconnect` asks for.
        """
        async with self.port.port.claim(label) as claim:
            claim.resets_at_end = cleans_up
            yield Claim(claim)

    @asynccontextmanager
    async def lent(self, label: str = "esptool for 10.0.0.9") -> AsyncIterator[str]:
        """Lend the tty to a tool inside, as flashing does; ClientError when it does not come back.

        Inside, the tty is closed and its path is given.
        """
        user = FlashUser(self.port.port, label)
        try:
            await user.take()
            yield await user.lend()
            await user.take_back()
        finally:
            user.leave()

    # --- clients

    async def connect(
        self,
        first_bytes: bytes = b"",
        *,
        source: str = "127.0.0.1",
        receive_buffer_bytes: int | None = None,
    ) -> Client:
        """A client that has connected, and has sent `first_bytes` and nothing else."""
        client = await Client.connect(
            self.tcp_port, source=source, receive_buffer_bytes=receive_buffer_bytes
        )
        self._closing.callback(client.close)
        if first_bytes:
            await client.send(first_bytes)
        return client

    async def asks(self, *, source: str = "127.0.0.1") -> Client:
        """A client that speaks RFC 2217 and asks for the port; it may have to wait for it."""
        return await self.connect(RFC2217_CLIENT, source=source)

    async def client(
        self, *, source: str = "127.0.0.1", receive_buffer_bytes: int | None = None
    ) -> Client:
        """A client that speaks RFC 2217 and controls the port."""
        client = await self.connect(
            RFC2217_CLIENT, source=source, receive_buffer_bytes=receive_buffer_bytes
        )
        await client.receive_wire(GREETING + GREETED_ACCEPTS_COM_PORT)
        return client

    async def refused(self, client: Client) -> str:
        """What a client is told that does not get the port; time passes until then."""
        return (await self.run(client.receive_to_end())).decode()

    # --- the log

    def logged(self, *names: str) -> list[Mapping[str, Any]]:
        """The log's entries of these events."""
        return [entry for entry in self.log if entry["event"] in names]

    def logged_for(self, client: TcpClient, *names: str) -> list[Mapping[str, Any]]:
        """The same of one client."""
        return [entry for entry in self.logged(*names) if entry.get("client") == client.name]

    def is_served(self, client: TcpClient) -> bool:
        """Whether the client has got the port."""
        return bool(self.logged_for(client, Logged.CONNECTED))

    def ends(self, client: TcpClient) -> list[str]:
        """Why the client's session has ended."""
        return [entry["reason"] for entry in self.logged_for(client, Logged.DISCONNECTED)]

    @property
    def events(self) -> list[str]:
        """The names of all log events so far."""
        return [entry["event"] for entry in self.log]

    def said(self, name: str, key: str) -> list[Any]:
        """The values of one key in the log's entries of one event."""
        return [entry[key] for entry in self.logged(name)]

    # --- time

    async def until(self, condition: Callable[[], object] | str) -> None:
        """Wait for a condition, or a state, without letting time pass."""
        if isinstance(condition, str):
            wanted = condition
            await until(lambda: self.state == wanted)
        else:
            await until(condition)

    async def until_idle(self) -> None:
        """Let time pass until the port can be had at once."""
        await self.pass_until(lambda: self.state == State.IDLE)

    async def pass_time(self, seconds: float) -> None:
        """Let time pass; what becomes due meanwhile happens at its exact time, in its order."""
        end_s = self.clock.now_s + seconds
        await self.clock.advance(0)
        while self.clock.now_s < end_s:
            await self._pass_to_next(end_s)

    async def pass_until(
        self, condition: Callable[[], object], step_s: float = 0.25, limit_s: float = 3600.0
    ) -> None:
        """Let time pass until a condition holds: it is looked at behind all that becomes due."""
        end_s = self.clock.now_s + limit_s
        await self.clock.advance(0)
        while not condition():
            assert self.clock.now_s < end_s, "what the scenario waits for has not happened"
            await self._pass_to_next(self.clock.now_s + step_s)

    async def _pass_to_next(self, end_s: float) -> None:
        """Let time pass until the next timer is due, or `end_s` at the latest."""
        installed = gateway_clock.installed()
        assert isinstance(installed, ControlledClock)
        now_s = self.clock.now_s
        due_s = min(
            (timer.when_s for timer in installed.timers if timer.when_s > now_s), default=end_s
        )
        await self.clock.advance(max(min(due_s, end_s) - now_s, 1e-9))

    async def run(self, operation: Coroutine[Any, Any, T]) -> T:
        """Let time pass until a coroutine has ended; return what it returns."""
        task = asyncio.create_task(operation)
        try:
            await self.pass_until(task.done)
        finally:
            task.cancel()
        return await task


def port_config(path: Path | str, keys: str = "") -> PortConfig:
    """The port `desk` of a YAML with these keys, in flow style, on a TCP port of loopback."""
    is_given = re.search(r"(?<!on_)(?<!dis)connect:|\btcp:", keys)
    tcp = "" if is_given else ", tcp: 0"
    text = f"ports: [{{name: desk{tcp}, device: {path}{', ' if keys else ''}{keys}}}]"
    return parse_config(text, "scenario").ports[0]


@asynccontextmanager
async def world(
    folder: Path,
    keys: str = "",
    *,
    usb_ids: UsbIds | None = None,
    plugged_in: bool = True,
    has_lines: bool = True,
    board: Board | None = None,
    locate: Callable[[], TtyLocation] | None = None,
    starting: Callable[[World], None] = lambda _: None,
    waits: bool = True,
) -> AsyncIterator[World]:
    """Serve one port with these keys of the YAML; time stands still from the first moment on.

    It is past its first try to open its tty inside, unless `waits` is False. `starting` is called
    before that. `locate` says where the board is, instead of where its tty is.
    """
    config = port_config(folder / "tty", keys)
    board = board or Board(folder, plugged_in=plugged_in, usb_ids=usb_ids, has_lines=has_lines)
    with board, board.calls, capture_logs() as log:
        world = World(board, LoopClock(), log, Admission())  # type: ignore[arg-type] # mutable dicts
        starting(world)
        logger = structlog.get_logger()
        with world.clock:
            here = locate or (lambda: world.board.location)
            port = await start_port(config, here, logger, TlsContexts(logger), world.admission)
            world.running = port
            try:
                if waits:
                    await world.pass_until(lambda: world.state != State.OPENING)
                yield world
            finally:
                world._closing.close()
                board.calls.mend()
                board.calls.answer()
                with moving(world.clock):
                    await port.stop("the test is over")


@contextmanager
def moving(clock: LoopClock) -> Iterator[None]:
    """Let time run inside: what only the kernel does, and stopping, are bounded by it."""
    clock.__exit__(None, None, None)
    try:
        yield
    finally:
        clock.__enter__()


def set_wall_clock(monkeypatch: pytest.MonkeyPatch, now: Callable[[], datetime]) -> None:
    """Let it be another time of day in the lab."""
    monkeypatch.setattr(arbiter, "local_now", now)


def hard_reset() -> bytes:
    """What esptool sends to start the app, as bytes that come together."""
    return control(Control.RTS_ON, Control.RTS_OFF)
