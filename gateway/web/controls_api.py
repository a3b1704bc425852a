"""`POST /api/v1/ports/{name}/...`: what can be done to a board and its clients.

Clients of a port are not disturbed unless the request says `force`, and a flash not even then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from gateway import clock
from gateway.errors import ClientError, DeviceError
from gateway.port.arbiter import OnContender
from gateway.port.claim import GRANT_LIMIT_S
from gateway.port.port import Port
from gateway.port_document import API
from gateway.protocol.reset import Starts
from gateway.running_port import RunningPort
from gateway.web.flash import FLASHER
from gateway.web.http_access import BYTES
from gateway.web.http_answers import (
    HttpError,
    answer,
    client_name,
    is_true,
    port_asked_for,
    read_body,
    read_options,
    takes,
)
from gateway.web.ports_api import document_of

#: As much as is read from a client at once.
MAX_WRITE_BYTES: Final = 65536

#: How long bytes may take beyond the time that they need on the wire.
_WRITE_LIMIT_S: Final = 5.0

#: Start and stop bits included.
_BITS_A_BYTE: Final = 12


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    for name, handler in (
        ("reset", reset_board),
        ("bootloader", enter_bootloader),
        ("disconnect", disconnect_clients),
        ("release", release_tty),
        ("resume", resume_tty),
        ("write", write_to_board),
    ):
        app.router.add_post(f"{API}/ports/{{name}}/{name}", handler)


async def reset_board(request: web.Request) -> web.Response:
    """Reset the board into its app."""
    return await _start(request, Starts.APP)


async def enter_bootloader(request: web.Request) -> web.Response:
    """Reset the board into its bootloader."""
    return await _start(request, Starts.BOOTLOADER)


async def disconnect_clients(request: web.Request) -> web.Response:
    """End the connections of all clients of the port."""
    port = port_asked_for(request)
    force = await _force(request)
    _check_not_flashed(request, port)
    if port.port.arbiter and not force:
        raise _in_use(port.port)
    port.port.disconnect_clients(f"disconnected by {client_name(request)}")
    return answer(document_of(port))


async def release_tty(request: web.Request) -> web.Response:
    """Leave the tty to a local tool."""
    port = port_asked_for(request)
    options = await read_options(request, {"force", "reason"})
    reason = options.get("reason", "for a local tool")
    if not isinstance(reason, str) or not reason.isprintable() or not 0 < len(reason) <= 100:
        raise HttpError(HTTPStatus.BAD_REQUEST, "reason must be 1 to 100 printable characters")
    force = _is_true(options.get("force", False))
    _check_not_flashed(request, port)
    with _conflicts():
        try:
            async with clock.timeout(GRANT_LIMIT_S):
                await port.port.release(reason, force=force)
        except TimeoutError:
            raise ClientError(f"{port.port.name}: the kernel does not close it") from None
    return answer(document_of(port))


async def resume_tty(request: web.Request) -> web.Response:
    """Take the tty back."""
    port = port_asked_for(request)
    await read_options(request, ())
    port.port.resume()
    return answer(document_of(port))


@takes(BYTES)
async def write_to_board(request: web.Request) -> web.Response:
    """Send bytes to the board; answered when they have left."""
    port = port_asked_for(request)
    board = port.port
    force = is_true(request, "force")
    data = await read_body(request, MAX_WRITE_BYTES)
    _check_not_flashed(request, port)
    with _conflicts():
        if not board.arbiter or board.arbiter.on_contender is OnContender.JOIN:
            async with board.claim(client_name(request)) as claim:
                claim.write(data)
                await claim.drained(_time_for(board, data))
        elif force:
            limit_s = _time_for(board, data)
            board.write(data)
            await within(board, board.drained(), limit_s)
        else:
            raise _in_use(board)
    return answer(document_of(port))


@contextmanager
def _conflicts() -> Iterator[None]:
    """Makes an HttpError of why a device is not to be had."""
    try:
        yield
    except (ClientError, DeviceError) as error:
        raise HttpError(HTTPStatus.CONFLICT, str(error)) from error


async def _start(request: web.Request, starts: Starts) -> web.Response:
    port = port_asked_for(request)
    board = port.port
    force = await _force(request)
    _check_not_flashed(request, port)
    with _conflicts():
        if not board.arbiter:
            async with board.claim(client_name(request)) as claim:
                claim.resets_at_end = False  # what is asked for is what the board is left in
                board.check_start(starts)
                await claim.start(starts)
        elif force:
            board.check_start(starts)
            # After what a client has asked of the lines so far, never between two halves of it.
            await within(board, board.lines_settled())
            await within(board, board.start_board(starts))
        else:
            raise _in_use(board)
    return answer(document_of(port))


async def within(
    port: Port, operation: asyncio.Future[Any], limit_s: float = GRANT_LIMIT_S
) -> None:
    """Wait for an operation on a port that clients have; ClientError if it is not done."""
    try:
        async with clock.timeout(limit_s):
            await operation
    except TimeoutError:
        raise ClientError(f"{port.name}: not done within {limit_s:.0f} s") from None


def _check_not_flashed(request: web.Request, port: RunningPort) -> None:
    name = port.config.name
    if by := request.app[FLASHER].flashed_by(name):
        raise HttpError(HTTPStatus.CONFLICT, f"{name}: being flashed by {by}")


async def _force(request: web.Request) -> bool:
    options = await read_options(request, {"force"})
    return _is_true(options.get("force", False))


def _is_true(value: object) -> bool:
    if not isinstance(value, bool):
        raise HttpError(HTTPStatus.BAD_REQUEST, "force must be true or false")
    return value


def _in_use(port: Port) -> HttpError:
    return HttpError(HTTPStatus.CONFLICT, f"{port.name}: {port.arbiter.in_use}")


def _time_for(port: Port, data: bytes) -> float:
    return _WRITE_LIMIT_S + _BITS_A_BYTE * len(data) / max(port.status.settings.baudrate, 1)
