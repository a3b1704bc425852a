"""A board's output: the last of it with times, as a file, and waiting for a regular expression.

Some expressions take years (`(a+)+b`), and nothing in Python can stop one. So each runs in a
process of its own (text_matcher.py), which can be killed without disturbing other boards.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from aiohttp import hdrs, web

from gateway import clock
from gateway.config.document import ConnectionLimits
from gateway.errors import GatewayError
from gateway.port.recorder import Piece
from gateway.port_document import API, utc_text
from gateway.running_port import RunningPort
from gateway.runtime import start_process
from gateway.web.http_access import JSON
from gateway.web.http_answers import (
    LAB,
    HttpError,
    Places,
    answer,
    cut_off,
    port_asked_for,
    read_options,
    stream,
)

#: In one answer; `record_kib` may be more.
MAX_TAIL_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 65536

#: Written in one turn of the event loop: 1 ms on a PC.
_PART_BYTES: Final = 65536
_PART_PIECES: Final = 128

#: How long a request may wait for a match.
MAX_WAIT_S: Final = 600.0
_WAIT_S: Final = 30.0

MAX_PATTERN_CHARS: Final = 1000

#: Waiting for the process: an expression that is slower than the board is given up.
MAX_UNREAD_BYTES: Final = 1 << 22

#: The longest line of JSON that the process writes (_MOST_FOUND_BYTES in text_matcher.py).
MAX_ANSWER_BYTES: Final = 1 << 21

_PROGRAM: Final = Path(__file__).with_name("text_matcher.py")

#: Waits at a time, each of which has a process, and of one address.
WAIT_LIMITS: Final = ConnectionLimits(max=16, max_per_address=12)


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[_WAITS] = set()
    app[_PLACES] = Places(WAIT_LIMITS, "waits")
    app.on_shutdown.append(_end_waits)
    app.router.add_get(f"{API}/ports/{{name}}/tail", show_tail)
    app.router.add_get(f"{API}/ports/{{name}}/log", show_log)
    app.router.add_post(f"{API}/ports/{{name}}/wait", wait_for_text)


async def show_tail(request: web.Request) -> web.StreamResponse:
    """The last of the output, or the output since a position."""
    recorder = port_asked_for(request).recorder
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
    """All output that is kept, byte for byte."""
    port = port_asked_for(request)
    recorder = port.recorder
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
    """Wait until a regular expression matches the output."""
    port = port_asked_for(request)
    options = await read_options(request, {"pattern", "timeout_s", "since"})
    pattern = options.get("pattern")
    if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN_CHARS:
        reason = f"pattern must be a regular expression of 1 to {MAX_PATTERN_CHARS} characters"
        raise HttpError(HTTPStatus.BAD_REQUEST, reason)
    limit_s = _option(options, "timeout_s", _WAIT_S, MAX_WAIT_S)
    since = int(_option(options, "since", port.recorder.end, 1 << 62))
    waits = request.app[_WAITS]
    with request.app[_PLACES].taken_by(request):
        wait = TextWait(pattern)
        waits.add(wait)
        try:
            return await _waited(port, wait, since, limit_s)
        finally:
            waits.discard(wait)
            await wait.close()


async def _waited(port: RunningPort, wait: TextWait, since: int, limit_s: float) -> web.Response:
    recorder = port.recorder
    for piece in recorder.pieces(since):
        wait.add(piece.seq, piece.data)
    recorder.follow(wait.add)
    try:
        async with clock.timeout(limit_s):
            return answer(await wait.found())
    except PatternError as error:
        raise HttpError(HTTPStatus.BAD_REQUEST, str(error)) from None
    except TimeoutError:
        reason = f"{port.config.name}: no match within {limit_s:g} s"
        raise HttpError(HTTPStatus.REQUEST_TIMEOUT, reason) from None
    except OSError as error:
        reason = f"the gateway can't start a process: {error.strerror or error}"
        raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, reason) from None
    finally:
        recorder.unfollow(wait.add)


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
    at = time.time() - (clock.time() - piece.at)  # the recorder's times are `clock`'s
    return json.dumps(
        {
            "seq": piece.seq,
            "time": utc_text(datetime.fromtimestamp(at, UTC)),
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


class PatternError(GatewayError):
    """The expression can't be used, or is too slow."""


class TextWait:
    """Waits for an expression in a process of its own; `close` must be called in the end."""

    def __init__(self, pattern: str) -> None:
        self._reason = "the expression takes more time or memory than there is"
        # Not an argument of the process, which can't contain NUL.
        self._early: list[bytes] = [_frame(0, pattern.encode())]
        self._process: asyncio.subprocess.Process | None = None

    def add(self, seq: int, data: bytes) -> None:
        """Search `data` too, output of the board that begins at position `seq`."""
        frame = _frame(seq, data)
        process = self._process
        if process is None:  # being started, which takes no longer than the board's next lines
            self._early.append(frame)
            return
        assert process.stdin is not None  # noqa: S101 - for the type checker
        if process.stdin.is_closing():
            return  # it has found a match
        process.stdin.write(frame)
        if process.stdin.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.give_up(self._reason)

    def give_up(self, reason: str) -> None:
        """End it; `found` raises PatternError with the reason."""
        self._reason = reason
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def found(self) -> dict[str, Any]:
        """Wait indefinitely for a match, and return it as the interface describes it.

        Raises PatternError when the expression can't be used or is too slow for the board, OSError
        when no process can be started.
        """
        # Isolated: neither the environment nor the current folder has an influence.
        process = await start_process(
            sys.executable,
            "-I",
            "-S",
            str(_PROGRAM),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=MAX_ANSWER_BYTES,
        )
        self._process = process
        assert process.stdin is not None  # noqa: S101 - for the type checker
        assert process.stdout is not None  # noqa: S101
        process.stdin.writelines(self._early)
        self._early.clear()
        line = await process.stdout.readline()
        if not line:
            raise PatternError(self._reason)
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise PatternError(str(found["error"]))
        return found

    async def close(self) -> None:
        """End the process and close its pipes."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        with contextlib.suppress(ConnectionError):
            await self._process.communicate()


_WAITS: web.AppKey[set[TextWait]] = web.AppKey("waits", set)
_PLACES: web.AppKey[Places] = web.AppKey("wait_places", Places)


def _frame(seq: int, data: bytes) -> bytes:
    return b"%d %d\n%b" % (seq, len(data), data)
