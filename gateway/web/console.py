"""`GET /api/v1/ports/{name}/console`: a client of a port whose connection is a WebSocket.

Binary messages are bytes of and for the board, text messages are JSON: what the client wants to
have set, and what happens to it. It comes by the port's sharing rule as any client does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any, Final, cast

import structlog
from aiohttp import WSCloseCode, WSMessage, WSMsgType, hdrs, web

from gateway.config.document import ConnectionLimits
from gateway.errors import ClientError, DeviceError
from gateway.net.client_socket import peer_host
from gateway.port.claim import Claim
from gateway.port_document import API
from gateway.running_port import RunningPort
from gateway.session.liveness import Liveness
from gateway.session.output import Output
from gateway.web.connection import HttpHandler, PacedConnection, StrictFrames
from gateway.web.console_command import CommandError, carry_out
from gateway.web.flash import FLASHER
from gateway.web.http_access import CONSOLE_PROTOCOL
from gateway.web.http_answers import LAB, HttpError, Places, client_name, port_asked_for

#: One message of a client, a paste for instance. No more is read while the board does not take what
#: has come, which is handed on in pieces.
MAX_MESSAGE_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 65536

#: A text message, which is read as JSON in one turn of the event loop; the longest has 100.
MAX_COMMAND_CHARS: Final = 4096

#: Of those that have come already, which are carried out in one turn of the event loop.
_MESSAGES_A_TURN: Final = 16

#: What waits for a client here before its connection counts as slow: what becomes of the board's
#: output then is the port's `slow_client`.
_UNSENT_BYTES: Final = 65536

#: Notices that a client does not read: a console that has so many is no console any more.
_MAX_UNSENT_MESSAGES: Final = 4096

#: As many as streams of events.
CONSOLE_LIMITS: Final = ConnectionLimits(max=64, max_per_address=48)

#: How long a client may take to read why it is closed.
_CLOSE_S: Final = 0.5

#: How a WebSocket that could not have the port is closed (4000 on are free for use).
_REFUSED: Final = 4409
_MAX_REASON_BYTES: Final = 123  # RFC 6455, 5.5


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[_CONSOLES] = Consoles()
    app.on_shutdown.append(_close_all)
    app.router.add_get(f"{API}/ports/{{name}}/console", open_console)


async def open_console(request: web.Request) -> web.StreamResponse:
    """Be a client of the port until one of both ends it."""
    consoles = request.app[_CONSOLES]
    with consoles.places.taken_by(request):
        return await _run_console(request, consoles.open)


async def _run_console(request: web.Request, consoles: set[Console]) -> web.StreamResponse:
    port = port_asked_for(request)
    offered = request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    protocols = {each.strip() for line in offered for each in line.split(",")}
    if protocols and CONSOLE_PROTOCOL not in protocols:
        reason = f"of the protocols of a WebSocket one must be {CONSOLE_PROTOCOL}"
        raise HttpError(HTTPStatus.BAD_REQUEST, reason)
    socket = web.WebSocketResponse(
        protocols=(CONSOLE_PROTOCOL,),
        max_msg_size=MAX_MESSAGE_BYTES + 1,  # the first that is too many
        timeout=_CLOSE_S,
        compress=False,
    )
    try:
        is_websocket = socket.can_prepare(request).ok
    except UnicodeError:  # bytes of a header that aiohttp puts into its own error
        is_websocket = False
    if not is_websocket:
        raise HttpError(HTTPStatus.UPGRADE_REQUIRED, "a console is a WebSocket")
    await socket.prepare(request)
    assert request.transport is not None  # noqa: S101 - it was there a moment ago
    log = request.app[LAB].log.bind(device=port.config.name)
    label = f"{client_name(request)} (web)"
    flashed_by = partial(request.app[FLASHER].flashed_by, port.config.name)
    console = Console(socket, port, label, log, flashed_by)
    consoles.add(console)
    try:
        frames = cast("HttpHandler", request.protocol).frames
        await console.run(cast("PacedConnection", request.transport), frames)
    finally:
        consoles.discard(console)
    return socket


async def _close_all(app: web.Application) -> None:
    for console in tuple(app[_CONSOLES].open):
        console.close(app[LAB].stop_reason)


class Console:
    """One client (claim.ClaimOwner, liveness.Watched, output.OutputOwner)."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        port: RunningPort,
        label: str,
        log: structlog.typing.FilteringBoundLogger,
        flashed_by: Callable[[], str],
    ) -> None:
        limits = port.config.limits
        self.received_bytes = 0
        self.sent_bytes = 0
        self._socket = socket
        self._way_in = port.way_in
        self._flashed_by = flashed_by
        self._port = port.port
        self._log = log.bind(client=label)
        self._claim = Claim(port.port, label, self)
        # The page shows the past beside it.
        self._output = Output(self._claim, self, replace(limits, replay=False))
        self._liveness = Liveness(self, self._claim, limits.idle_timeout_s)
        self._is_attached = False
        self._is_ours = asyncio.Event()  # the device is, or the end has come
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._outbox: deque[bytes | dict[str, object]] = deque()
        self._unsent_bytes = 0
        self._is_slow = False  # as its output has been told
        self._news = asyncio.Event()
        self._closed = False
        self._code: int = WSCloseCode.OK
        self._reason = ""
        self._transport: PacedConnection | None = None
        self._frames: StrictFrames | None = None

    async def run(self, transport: PacedConnection, frames: StrictFrames | None) -> None:
        """From the moment that it is connected to its end."""
        self._transport = transport
        # A person at a browser is not the tool that was replaced on the same machine.
        self._claim.origin = f"{peer_host(transport)} (web)"
        self._frames = frames
        transport.hold()
        self._claim.request()
        if not self._is_ours.is_set():
            self._way_in.on_contender(peer_host(transport))
        reading = asyncio.create_task(self._read())
        writing = asyncio.create_task(self._write())
        try:
            await asyncio.wait({reading, writing}, return_when="FIRST_COMPLETED")
        finally:
            self.close("left")
            reading.cancel()
            try:
                # What is left for it is sent, if it takes that at once.
                await asyncio.wait({writing}, timeout=_CLOSE_S)
            finally:
                writing.cancel()
        with contextlib.suppress(ConnectionError):
            reason = self._reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore").encode()
            await self._socket.close(code=self._code, message=reason)

    def close(self, reason: str, *, is_fault: bool = False, code: int = WSCloseCode.OK) -> None:
        """End it; `is_fault` when it ends for what the client has done wrong."""
        if self._closed:
            return
        self._closed = True
        if self._is_attached:
            self._log_end(reason, is_fault=is_fault)
            if left := self._output.stop():
                self._post(left)
        self._code, self._reason = code, reason
        self._post({"type": "closed", "error": f"{self._port.name}: {reason}"})
        self._liveness.stop()
        self._is_ours.set()
        self._may_write.set()
        self._claim.leave()

    # What the port reports (claim.ClaimOwner).

    @property
    def is_leaving(self) -> bool:
        """False: when a client has left, so has its console."""
        return False

    @property
    def is_amid_command(self) -> bool:
        """False: a message is whole."""
        return False

    def granted(self) -> None:
        """The port is ours."""
        assert self._transport is not None  # noqa: S101 - we run
        self._is_attached = True
        self._log.info("client_connected")
        self._liveness.start(self._transport)
        self._output.start()
        self._post({"type": "granted"})
        self._is_ours.set()

    def refused(self, error: ClientError) -> None:
        """It is not to be had."""
        self._log.warning("client_refused", reason=str(error))
        reason = str(error).removeprefix(f"{self._port.name}: ")
        self.close(reason, code=_REFUSED)

    def suspended(self, by: str) -> None:
        """Another client controls the port."""
        self._may_write.set()
        self._log.info("client_suspended", by=by)
        self._post(
            {"type": "suspended", "notice": f"{by} controls the port, your input is dropped"}
        )

    def resumed(self) -> None:
        """The port is ours again."""
        self._log.info("client_resumed", dropped_bytes=self._claim.dropped_bytes)
        self._post({"type": "resumed", "notice": "control returned to you"})

    def replaced(self, by: str) -> None:
        """Another client gets the port."""
        self.close(f"{by} takes the port over")

    def data_received(self, data: bytes) -> None:
        """Pass the board's bytes on."""
        self._output.add(data)

    def board_busy(self) -> None:
        """The board does not keep up: read no more from the client."""
        self._may_write.clear()

    def board_ready(self) -> None:
        """The board has caught up."""
        self._may_write.set()

    def port_lost(self, error: DeviceError) -> None:
        """The port is gone."""
        self.close(str(error))

    # What the output comes to (client_output.OutputOwner), and what looks after the client.

    def send(self, data: bytes) -> None:
        """Send bytes of the board to the client."""
        self.sent_bytes += len(data)
        self._post(data)

    def output_dropped(self) -> None:
        """Say so once."""
        self._log.warning("output_dropped", reason="the client is too slow")
        self._post({"type": "dropped", "notice": "output is dropped: you are too slow for it"})

    def died(self, reason: str) -> None:
        """The client's machine does not answer any more."""
        self.close(reason)
        if self._transport is not None:
            self._transport.abort()

    # Ours.

    async def _read(self) -> None:
        """Do what the client sends, in its order, as fast as the board takes it."""
        await self._is_ours.wait()
        messages = 0
        while not self._closed:
            await self._may_write.wait()
            message = await self._next_message()
            if message.type is WSMsgType.ERROR:
                fault = (self._frames and self._frames.fault) or message.data
                self.close(f"WebSocket: {fault}", is_fault=True)
            if self._closed or message.type in _ENDS:
                return
            await self._received(message)
            messages += 1
            if messages % _MESSAGES_A_TURN == 0:
                await asyncio.sleep(0)

    async def _next_message(self) -> WSMessage:
        assert self._transport is not None  # noqa: S101 - we run
        self._transport.release()
        try:
            return await self._socket.receive()
        finally:
            self._transport.hold()

    async def _received(self, message: WSMessage) -> None:
        if message.type is WSMsgType.BINARY:
            self.received_bytes += len(message.data)
            for at in range(0, len(message.data), _PIECE_BYTES):
                await self._may_write.wait()
                if not self._closed:
                    self._claim.write(message.data[at : at + _PIECE_BYTES])
        elif message.type is WSMsgType.TEXT:
            try:
                if len(message.data) > MAX_COMMAND_CHARS:
                    raise CommandError(f"a command has at most {MAX_COMMAND_CHARS} characters")
                answer = await carry_out(self._claim, message.data, self._flashed_by())
            except CommandError as error:
                answer = {"type": "refused", "notice": str(error)}
            self._post(answer)

    async def _write(self) -> None:
        """Send what is to be sent, as fast as the client takes it, until it is closed."""
        while True:
            await self._news.wait()
            while self._outbox:
                message = self._outbox.popleft()
                try:
                    if isinstance(message, bytes):
                        self._unsent_bytes -= len(message)
                        await self._socket.send_bytes(message)
                    else:
                        await self._socket.send_str(json.dumps(message))
                except ConnectionError:
                    return
            self._news.clear()
            if self._closed:
                return
            if self._is_slow:
                self._is_slow = False
                self._output.client_slow(False)

    def _post(self, message: bytes | dict[str, Any]) -> None:
        self._outbox.append(message)
        self._news.set()
        if isinstance(message, bytes):
            self._unsent_bytes += len(message)
            if self._unsent_bytes > _UNSENT_BYTES and not self._closed:
                self._is_slow = True
                self._output.client_slow(True)
        elif len(self._outbox) > _MAX_UNSENT_MESSAGES:
            self.close("does not read what it asks for", is_fault=True)

    def _log_end(self, reason: str, *, is_fault: bool) -> None:
        log = self._log.warning if is_fault else self._log.info
        log(
            "client_disconnected",
            reason=reason,
            received_bytes=self.received_bytes,
            sent_bytes=self.sent_bytes,
            dropped_bytes=self._output.dropped_bytes,
        )


class Consoles:
    """All that are open."""

    def __init__(self) -> None:
        self.open: set[Console] = set()
        self.places = Places(CONSOLE_LIMITS, "consoles")


_CONSOLES = web.AppKey("consoles", Consoles)

_ENDS: Final = frozenset({WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED})
