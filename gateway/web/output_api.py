"""What a board has said: the last of it with times, as a file, and waiting for something in it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from aiohttp import hdrs, web

from gateway import clock
from gateway.config.document import ConnectionLimits
from gateway.devices.device import Device
from gateway.devices.recorder import Piece
from gateway.web.http_access import JSON
from gateway.web.http_answers import HttpError, Places, answer, cut_off, read_options, stream
from gateway.web.lab import LAB
from gateway.web.ports_api import port_asked_for
from gateway.web.text_wait import MAX_PATTERN_CHARS, PatternError, TextWait

#: As much of the output as one answer has; `record_kib` may be more.
MAX_TAIL_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 65536

#: Of it, what is written in one turn of the event loop: 1 ms on a PC.
_PART_BYTES: Final = 65536
_PART_PIECES: Final = 128

#: How long a request may wait for something that a board says.
MAX_WAIT_S: Final = 600.0
_WAIT_S: Final = 30.0

#: Waits in all, each of which has a process, and of one address.
WAIT_LIMITS: Final = ConnectionLimits(max=16, max_per_address=12)
_WAITS: web.AppKey[set[TextWait]] = web.AppKey("waits", set)
_PLACES: web.AppKey[Places] = web.AppKey("wait_places", Places)


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[_WAITS] = set()
    app[_PLACES] = Places(WAIT_LIMITS, "waits")
    app.on_shutdown.append(_end_waits)
    app.router.add_get("/api/ports/{name}/tail", show_tail)
    app.router.add_get("/api/ports/{name}/log", show_log)
    app.router.add_post("/api/ports/{name}/wait", wait_for_text)


async def show_tail(request: web.Request) -> web.StreamResponse:
    """The last of what the board has said, or what it has said since a position."""
    recorder = port_asked_for(request).device.recorder
    n_bytes = _number(request, "bytes", _TAIL_BYTES, MAX_TAIL_BYTES)
    since = _number(request, "since", -1, 1 << 62)
    pieces = recorder.first(max(0, recorder.end - n_bytes) if since < 0 else since, n_bytes)
    end = pieces[-1].seq + len(pieces[-1].data) if pieces else recorder.end

    async def text() -> AsyncIterator[bytes]:
        yield b'{"entries": ['
        for at, part in _in_parts(pieces):
            yield ((", " if at else "") + ", ".join(map(_entry, part))).encode()
        yield b'], "next": %d}\n' % end

    return await stream(request, JSON, text())


async def show_log(request: web.Request) -> web.StreamResponse:
    """All that is kept, as the board has sent it."""
    port = port_asked_for(request)
    recorder = port.device.recorder
    begin, end = recorder.begin, recorder.end

    async def output() -> AsyncIterator[bytes]:
        at = begin
        while at < end:
            pieces = recorder.first(at, min(_PART_BYTES, end - at))
            if not pieces or pieces[0].seq > at:
                # The board sends faster than the client reads: better no file than one with a gap.
                raise cut_off(request, "the rest of the output is no longer kept")
            data = b"".join(piece.data for piece in pieces)
            at += len(data)
            yield data

    return await stream(
        request,
        "text/plain; charset=utf-8",
        output(),
        n_bytes=end - begin,
        headers={hdrs.CONTENT_DISPOSITION: f'attachment; filename="{port.config.name}.log"'},
    )


async def wait_for_text(request: web.Request) -> web.Response:
    """Wait until the board says something."""
    device = port_asked_for(request).device
    options = await read_options(request, {"pattern", "timeout_s", "since"})
    pattern = options.get("pattern")
    if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN_CHARS:
        reason = f"pattern must be a regular expression of 1 to {MAX_PATTERN_CHARS} characters"
        raise HttpError(HTTPStatus.BAD_REQUEST, reason)
    limit_s = _option(options, "timeout_s", _WAIT_S, MAX_WAIT_S)
    since = int(_option(options, "since", device.recorder.end, 1 << 62))
    waits = request.app[_WAITS]
    with request.app[_PLACES].taken_by(request):
        wait = TextWait(pattern)
        waits.add(wait)
        try:
            return await _waited(device, wait, since, limit_s)
        finally:
            waits.discard(wait)
            await wait.close()


async def _waited(device: Device, wait: TextWait, since: int, limit_s: float) -> web.Response:
    recorder = device.recorder
    for piece in recorder.pieces(since):
        wait.add(piece.seq, piece.data)
    recorder.follow(wait.add)
    try:
        async with clock.timeout(limit_s):
            found = await wait.found()
    except PatternError as error:
        raise HttpError(HTTPStatus.BAD_REQUEST, str(error)) from None
    except TimeoutError:
        reason = f"{device.name}: nothing that fits within {limit_s:g} s"
        raise HttpError(HTTPStatus.REQUEST_TIMEOUT, reason) from None
    except OSError as error:
        reason = f"the gateway can't start a process: {error.strerror or error}"
        raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, reason) from None
    finally:
        recorder.unfollow(wait.add)
    return answer(found)


async def _end_waits(app: web.Application) -> None:
    waits = app[_WAITS]
    for wait in tuple(waits):
        wait.give_up(app[LAB].stop_reason)


def _in_parts(pieces: list[Piece]) -> Iterator[tuple[int, list[Piece]]]:
    """The pieces, as many at a time as one turn of the event loop may take; with their numbers."""
    part: list[Piece] = []
    n_bytes = 0
    for number, piece in enumerate(pieces):
        part.append(piece)
        n_bytes += len(piece.data)
        if len(part) >= _PART_PIECES or n_bytes >= _PART_BYTES:
            yield number + 1 - len(part), part
            part, n_bytes = [], 0
    if part:
        yield len(pieces) - len(part), part


def _entry(piece: Piece) -> str:
    # The recorder knows the time of `clock` only.
    at = time.time() - (clock.time() - piece.at)
    return json.dumps(
        {
            "seq": piece.seq,
            "time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
            "data": piece.data.decode(errors="replace"),
            "base64": base64.b64encode(piece.data).decode(),
        }
    )


def _number(request: web.Request, name: str, default: int, most: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or int(text) > most:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"{name} must be a number from 0 to {most}")
    return int(text)


def _option(options: dict[str, Any], name: str, default: float, most: float) -> float:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"{name} must be a number from 0 to {most:g}")
    return value
