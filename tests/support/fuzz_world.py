"""Plays a fuzz case on the whole session: telnet, access server, request queue, device, transport.

The TCP connection is played too, and the clock jumps, so that 10 MB take minutes and a case
always takes the same course. Beside it another client talks to another board all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import tracemalloc
from collections.abc import AsyncIterator, MutableMapping
from functools import partial
from typing import Any

import structlog
from structlog.testing import capture_logs

from gateway import clock
from gateway.net.access import AcceptOptions
from gateway.port.port import Port
from gateway.port_document import PortState
from gateway.protocol.reset import IDLE
from gateway.protocol.serial_settings import SerialSettings
from gateway.serialport.tty import TtyLocation
from gateway.session.listener import Listener
from tests.support.fuzz_board import FuzzBoard, boards_for_ttys
from tests.support.fuzz_case import Action, Case, Step, sent_bytes
from tests.support.fuzz_client import FuzzClient
from tests.support.pty_board import access_server, port_config
from tests.support.tcp_client import data_of
from tests.support.telnet_wire import RFC2217_CLIENT

#: Answers to one byte: AYT takes two, and is answered with a line of some 50.
_ANSWER_FACTOR = 32
#: Greeting, BINARY offers, first modem state, the last line.
_ANSWERS_UNASKED_BYTES = 400

#: What a client that does not read may leave in our memory, see session._UNREAD_LIMIT_BYTES,
#: and what one more read of it and of its board may add.
MAX_SEGMENT_BYTES = 4096
_UNREAD_LIMIT_BYTES = 262144 + 2 * 131072
#: Of what it has sent: see tests/scenarios/test_requests.KEPT_BYTES.
_UNSENT_LIMIT_BYTES = 3 * 65536

#: All limits of a session that ends add up to less.
_END_LIMIT_S = 60.0
#: More than a control call takes: what can be done now has been done then.
_SETTLE_S = 0.05

_WELL_FORMED = re.compile(
    rb"(?:[^\xff]|\xff(?:\xff|[\xfb-\xfe].|\xfa(?:[^\xff]|\xff\xff)*+\xff\xf0|[\xf1-\xf9]))*+",
    re.DOTALL,
)

_NOBODY = b"nobody but me" * 5

#: A segment that may have so many commands in it that it is worth a look at the other client.
_LONG_SEGMENT_BYTES = 1000
#: Turns of the loop until a byte of the other client has come back; it takes 4 where nobody floods.
_ECHO_TURNS = 12
#: CPU of one turn; 1 to 3 ms were measured.
_TURN_LIMIT_S = 0.05


class FuzzFailure(AssertionError):  # noqa: N818 - what it is, not an error of the fuzzer
    """A property does not hold; the text says which."""


class FuzzWorld:
    """Two boards behind listeners, one of them in use all the time; made by `fuzz_world`."""

    def __init__(
        self,
        boards: dict[str, FuzzBoard],
        devices: dict[str, Port],
        listeners: dict[str, Listener],
        logs: list[MutableMapping[str, Any]],
    ) -> None:
        self._boards = boards
        self._devices = devices
        self._listeners = listeners
        self._logs = logs
        self._clients = 0
        self._keeps = True  # what the client and the board have got
        self._errors: list[str] = []

    async def start(self) -> None:
        """Let the other client connect."""
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: self._errors.append(_told(context))
        )
        self._boards["other"].listen()
        self._other = self._connect("other")
        self._other.deliver(RFC2217_CLIENT)
        await asyncio.sleep(_SETTLE_S)

    async def play(self, case: Case) -> int:
        """Play a case; the bytes that were taken of its client. Raises FuzzFailure."""
        board, device = self._boards["desk"], self._devices["desk"]
        # What the case before has left unread on either side is not this one's.
        board.listen()
        await asyncio.sleep(_SETTLE_S)
        self._logs.clear()
        board.received.clear()
        board.change_states(0)
        client = self._connect("desk")
        longest_bytes = max(
            (len(step.data) for step in case if step.action is Action.SEND), default=0
        )
        unread_limit_bytes = _UNREAD_LIMIT_BYTES + longest_bytes * _ANSWER_FACTOR
        for step in case:
            await self._play_step(step, client, board)
            self._check_errors()
            _require(client.unread_bytes <= unread_limit_bytes, "too much is kept for the client")
            _require(
                device.state is not PortState.IN_USE or device.unsent_bytes <= _UNSENT_LIMIT_BYTES,
                "too much is kept for the board",
            )
        client.leave()
        await self._until_idle(device)
        self._check_errors()
        self._check_board(board, device)
        self._check_answers(case, client)
        self._check_expectations(case, client, board)
        self._check_logs()
        await self._check_other()
        return client.taken_bytes

    async def play_measured(self, case: Case) -> int:
        """Play a case; the most memory in bytes that was taken meanwhile.

        What the client and the board get is dropped, so expectations fail.
        """
        self._keeps = self._boards["desk"].keeps = False
        tracemalloc.start()
        try:
            await self.play(case)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            self._keeps = self._boards["desk"].keeps = True

    async def stop(self) -> None:
        """End the other client too."""
        self._other.leave()
        for device in self._devices.values():
            await self._until_idle(device)

    def _connect(self, name: str) -> FuzzClient:
        self._clients += 1
        session = self._listeners[name]._new_session()
        return FuzzClient(session, self._clients, keeps=self._keeps or name == "other")

    async def _play_step(self, step: Step, client: FuzzClient, board: FuzzBoard) -> None:
        plain = {
            Action.STALL: client.stall,
            Action.READ: client.read,
            Action.DEAF: board.be_deaf,
            Action.LISTEN: board.listen,
            Action.LEAVE: client.leave,
            Action.RESET: client.reset,
        }
        match step.action:
            case Action.SEND:
                client.deliver(step.data)
                if len(step.data) >= _LONG_SEGMENT_BYTES:
                    await self._check_other_is_served()
            case Action.BOARD:
                board.say(step.data)
            case Action.WAIT:
                await asyncio.sleep(step.number)
            case Action.MODEM:
                board.change_states(int(step.number))
            case Action.EXPECT_BOARD | Action.EXPECT_CLIENT:
                await asyncio.sleep(_SETTLE_S)  # checked at the end
            case _:
                plain[step.action]()

    async def _until_idle(self, device: Port) -> None:
        deadline = asyncio.get_running_loop().time() + _END_LIMIT_S
        listener = self._listeners[device.name]
        while device.state is not PortState.IDLE or listener._sessions:
            _require(
                asyncio.get_running_loop().time() < deadline,
                f"the device is {device.state.value} long after its client has left",
            )
            await asyncio.sleep(_SETTLE_S)

    def _check_errors(self) -> None:
        if self._errors:
            raise FuzzFailure(self._errors[0])

    def _check_board(self, board: FuzzBoard, device: Port) -> None:
        _require(board.lines == IDLE, f"the lines are left at {board.lines}")
        _require(not board.break_on, "a break is left on")
        left = device.status.settings
        _require(left == SerialSettings(), f"the settings are left at {left}")

    def _check_answers(self, case: Case, client: FuzzClient) -> None:
        board_bytes = sum(len(step.data) for step in case if step.action is Action.BOARD)
        changes = sum(step.action is Action.MODEM for step in case)
        bound = (
            _ANSWER_FACTOR * sent_bytes(case)
            + 2 * board_bytes
            + 32 * changes
            + _ANSWERS_UNASKED_BYTES
        )
        written = client.written_bytes
        _require(written <= bound, f"{written} bytes came back where {bound} are the most")
        whole = bytes(client.received)
        match = _WELL_FORMED.match(whole)
        end = match.end() if match else 0
        _require(end == len(whole), f"no telnet: {whole[end : end + 20]!r} at {end}")

    def _check_expectations(self, case: Case, client: FuzzClient, board: FuzzBoard) -> None:
        for step in case:
            if step.action is Action.EXPECT_BOARD:
                _require_same(bytes(board.received), step.data, "the board got")
            elif step.action is Action.EXPECT_CLIENT:
                _require_same(data_of(bytes(client.received)), step.data, "the client got")

    def _check_logs(self) -> None:
        events = [entry["event"] for entry in self._logs if entry.get("device") == "desk"]
        # A client that leaves in its first 50 ms or speaks another protocol has not connected.
        connected, disconnected = map(events.count, ("client_connected", "client_disconnected"))
        _require(connected == disconnected, f"{connected} connected, {disconnected} disconnected")
        for event in ("client_connected", "client_violated_protocol", "client_identified"):
            _require(events.count(event) <= 1, f"{event} was logged more than once")
        _require("device_lost" not in events, "the device was given up")
        bad = [entry for entry in self._logs if entry["log_level"] in {"error", "critical"}]
        _require(not bad, f"logged: {bad}")

    async def _check_other_is_served(self) -> None:
        """While a client floods the gateway, no turn takes long and the other's byte comes back."""
        other = self._other
        other.received.clear()
        other.deliver(b"o")
        for _ in range(_ECHO_TURNS):
            began_s = time.thread_time()
            await asyncio.sleep(0)
            turn_s = time.thread_time() - began_s
            _require(turn_s < _TURN_LIMIT_S, f"a turn of the loop took {turn_s:.3f} s of CPU")
            if b"o" in data_of(bytes(other.received)):
                return
        raise FuzzFailure(f"no echo for the other client within {_ECHO_TURNS} turns")

    async def _check_other(self) -> None:
        self._other.received.clear()
        self._other.deliver(_NOBODY)
        await asyncio.sleep(_SETTLE_S)
        _require_same(data_of(bytes(self._other.received)), _NOBODY, "the other client got")


@contextlib.asynccontextmanager
async def fuzz_world() -> AsyncIterator[FuzzWorld]:
    """A world to play cases in, on a VirtualLoop."""
    boards = {"desk": FuzzBoard(), "other": FuzzBoard(echoes=True)}
    ttys = {f"/dev/{name}": board for name, board in boards.items()}
    loop_time = clock.use(asyncio.get_running_loop())
    with loop_time, boards_for_ttys(ttys), capture_logs() as logs:
        devices, listeners = {}, {}
        for name in boards:
            log = structlog.get_logger().bind(device=name)
            config = port_config(name)
            devices[name] = Port(config, partial(TtyLocation, f"/dev/{name}"), log)
            listeners[name] = Listener(config, devices[name], access_server, log, AcceptOptions())
            devices[name].start()
        await asyncio.sleep(_SETTLE_S)
        world = FuzzWorld(boards, devices, listeners, logs)
        await world.start()
        try:
            yield world
        finally:
            with contextlib.suppress(FuzzFailure):
                await world.stop()
            await asyncio.gather(*(device.stop() for device in devices.values()))
            await asyncio.sleep(_SETTLE_S)
            for board in boards.values():
                board.close()


def _told(context: dict[str, Any]) -> str:
    """An error that asyncio reports, with where it was raised."""
    error = context.get("exception")
    if error is None:
        return str(context["message"])
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    where = ""
    if traceback is not None:
        where = f" at {traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
    return f"{error!r}{where}"


def _require(holds: object, text: str) -> None:
    if not holds:
        raise FuzzFailure(text)


def _require_same(found: bytes, wanted: bytes, text: str) -> None:
    if found == wanted:
        return
    pairs = zip(found, wanted, strict=False)
    at = next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(found), len(wanted)))
    raise FuzzFailure(
        f"{text} {len(found)} bytes instead of {len(wanted)}; at {at}: "
        f"{found[at : at + 20]!r} instead of {wanted[at : at + 20]!r}"
    )
