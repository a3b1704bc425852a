"""`POST /api/v1/ports/{name}/flash`: takes images, writes them to the board, reports each step.

The body is `application/octet-stream`: the plan (`flash.plan`) as JSON in one line, then its images
one behind the other in its order. The answer is a line of JSON for each event, the last of them
`done`; what is refused before anything was done to the board is an error with a status. What is
done to the board is in `flash.job`.

Not multipart: the plan has each length already, so that the body need not be searched for anything,
and a form of a web page can't send it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway import clock
from gateway.flash.esptool import NoEsptoolError
from gateway.flash.image_checks import RefusedImageError, check_images
from gateway.flash.job import Flasher, FlashEvents, FlashRequest, FlashResult
from gateway.flash.plan import (
    MAX_PLAN_BYTES,
    FlashError,
    FlashPlan,
    Outcome,
    WrongInputError,
    plan_from_json,
)
from gateway.flash.store import ImageStore, ImageStores, NoRoomError, NotStoredError
from gateway.flash.user import NoBoardError
from gateway.port_document import API
from gateway.running_port import RunningPort
from gateway.web.http_access import BYTES
from gateway.web.http_answers import (
    LAB,
    HttpError,
    answer,
    client_name,
    is_true,
    port_asked_for,
    takes,
    write_in_time,
)


class _Flashing(set[asyncio.Future[FlashResult]]):
    """What is under way."""


FLASHER: Final = web.AppKey("flasher", Flasher)
STORES: Final = web.AppKey("stores", ImageStores)
FLASHING: Final = web.AppKey("flashing", _Flashing)

#: How long a client may send nothing of what it has announced, and how slow it may be on the whole.
_CHUNK_LIMIT_S: Final = 30.0
_SLOWEST_BYTES_PER_S: Final = 16384
_UPLOAD_START_S: Final = 60.0

#: A client hears of us at least this often, so that either end notices when the other is gone.
_ALIVE_S: Final = 10.0
#: How long a client may not read before it is taken for gone.
_WRITE_LIMIT_S: Final = 60.0


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[FLASHER] = Flasher()
    app[STORES] = ImageStores()
    app[FLASHING] = _Flashing()
    app.on_shutdown.append(_end_all)
    app.router.add_post(f"{API}/ports/{{name}}/flash", flash)


@takes(BYTES)
async def flash(request: web.Request) -> web.StreamResponse:
    """Write images to the board of a port. A client that closes its connection ends it."""
    port = port_asked_for(request)
    try:
        return await _flash(request, port)
    except (FlashError, NoBoardError) as error:
        kinds = (status for kind, status in _STATUS.items() if isinstance(error, kind))
        status = next(kinds, HTTPStatus.CONFLICT)
        return answer({"error": str(error), "outcome": error.outcome.value}, status)


#: Statuses of errors; all others mean that the port is not available.
_STATUS: Final[dict[type[FlashError], HTTPStatus]] = {
    WrongInputError: HTTPStatus.BAD_REQUEST,
    NoRoomError: HTTPStatus.INSUFFICIENT_STORAGE,
    NotStoredError: HTTPStatus.BAD_REQUEST,
    RefusedImageError: HTTPStatus.UNPROCESSABLE_ENTITY,
    NoEsptoolError: HTTPStatus.NOT_IMPLEMENTED,
}


async def _flash(request: web.Request, port: RunningPort) -> web.StreamResponse:
    flasher = request.app[FLASHER]
    disconnect = _is_to_disconnect(request)
    body = _Body(request)
    plan = await body.read_plan()
    await flasher.esptool()  # without one, the images are not waited for
    requester = f"{plan.label} at {client_name(request)}" if plan.label else client_name(request)
    events = FlashEvents()
    with flasher.reserved(port.config.name, requester):
        async with request.app[STORES].store(plan) as store:
            await body.read_images(plan, store)
            chip = await asyncio.to_thread(check_images, plan, store.read)
            plan = replace(plan, options=replace(plan.options, chip=chip))
            asked = FlashRequest(
                port.config, port.port, plan, store, events.add, requester, disconnect=disconnect
            )
            flashing = asyncio.ensure_future(flasher.flash(asked))
            request.app[FLASHING].add(flashing)
            try:
                return await _Answer(request, events, flashing).send()
            finally:
                # The port is free, and the images go, when all of it has ended.
                flashing.cancel()
                await asyncio.wait({flashing})
                request.app[FLASHING].discard(flashing)
                flashing.cancelled() or flashing.exception()  # not logged as never looked at


async def _end_all(app: web.Application) -> None:
    """End all flashing when the server stops; each client gets the reason."""
    flashing = app[FLASHING].copy()
    for each in flashing:
        each.cancel()
    if flashing:
        await asyncio.wait(flashing)


def _is_to_disconnect(request: web.Request) -> bool:
    try:
        return is_true(request, "disconnect")
    except HttpError as error:
        raise WrongInputError(str(error)) from None


class _Body:
    """The body of a request, read as it arrives; nothing of it is kept that is not asked for."""

    def __init__(self, request: web.Request) -> None:
        self._content = request.content
        self._announced_bytes = request.content_length
        self._read_bytes = 0
        self._begun = bytearray()  # read and not taken

    async def read_plan(self) -> FlashPlan:
        """The first line. Raises WrongInputError."""
        async with _while_it_comes(_UPLOAD_START_S):
            end, searched_bytes = -1, 0
            while end < 0 and searched_bytes <= MAX_PLAN_BYTES:
                if not await self._read_more():
                    raise WrongInputError(
                        "the first line has to be the plan: no line ends in the body"
                    )
                end = self._begun.find(b"\n", searched_bytes)
                searched_bytes = len(self._begun)
        if not 0 <= end <= MAX_PLAN_BYTES:
            raise WrongInputError(
                f"the plan, which is the first line, has more than {MAX_PLAN_BYTES} bytes"
            )
        line = bytes(self._begun[:end])
        del self._begun[: end + 1]
        return plan_from_json(line)

    async def read_images(self, plan: FlashPlan, store: ImageStore) -> None:
        """All that follows. Raises NotStoredError when it is not what the plan says."""
        left_bytes = (self._announced_bytes or 0) - self._read_bytes + len(self._begun)
        if self._announced_bytes is not None and left_bytes != plan.total_bytes:
            raise _other_length(plan, left_bytes)
        async with _while_it_comes(_UPLOAD_START_S + plan.total_bytes / _SLOWEST_BYTES_PER_S):
            for number, image in enumerate(plan.images):
                await store.add(number, self._chunks(image.size))
            if self._begun or await self._read_more():  # of a length that was not announced
                raise _other_length(plan, plan.total_bytes + len(self._begun), "or more")

    async def _chunks(self, n_bytes: int) -> AsyncIterator[bytes]:
        """The next `n_bytes`, fewer if the body ends before."""
        while n_bytes and (self._begun or await self._read_more()):
            chunk = bytes(self._begun[:n_bytes])
            del self._begun[:n_bytes]
            n_bytes -= len(chunk)
            yield chunk

    async def _read_more(self) -> bool:
        """Wait for more of it; False at its end."""
        try:
            async with clock.timeout(_CHUNK_LIMIT_S):
                chunk = await self._content.readany()
        except (web.RequestPayloadError, HttpProcessingError):
            raise NotStoredError("the body is not valid HTTP") from None
        self._read_bytes += len(chunk)
        self._begun += chunk
        return bool(chunk)


def _other_length(plan: FlashPlan, found_bytes: int, more: str = "") -> NotStoredError:
    found = f"{found_bytes} bytes {more}".strip()
    return NotStoredError(
        f"{found} follow the plan, whose images have {plan.total_bytes} bytes together"
    )


@contextlib.asynccontextmanager
async def _while_it_comes(limit_s: float) -> AsyncIterator[None]:
    try:
        async with clock.timeout(limit_s):
            yield
    except TimeoutError:
        raise NotStoredError("the images did not arrive in time") from None


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answer to one request, while `flashing` goes on."""

    request: web.Request
    events: FlashEvents
    flashing: asyncio.Future[FlashResult]

    async def send(self) -> web.StreamResponse:
        """Send events as they come, to the last. Raises what is refused before the first."""
        await self._next()
        if self.flashing.done() and not self.flashing.cancelled():
            self.flashing.result()
        response = web.StreamResponse(headers={"X-Accel-Buffering": "no"})
        response.content_type = "application/x-ndjson"
        await response.prepare(self.request)
        while True:
            is_over = self.flashing.done()
            lines = [*self.events.take(), *([self._last()] if is_over else [])]
            if not lines and not await self._next():
                lines = [{"event": "alive"}]
            if lines:
                await self._write(response, lines)
            if is_over:
                await response.write_eof()
                return response

    async def _write(self, response: web.StreamResponse, lines: list[dict[str, object]]) -> None:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        await write_in_time(self.request, response, data, _WRITE_LIMIT_S)

    async def _next(self) -> bool:
        """Wait for an event or the end; False when neither came for a while."""
        arriving = asyncio.ensure_future(self.events.arrived())
        either: set[asyncio.Future[Any]] = {self.flashing, arriving}
        try:
            done, _ = await asyncio.wait(either, timeout=_ALIVE_S, return_when="FIRST_COMPLETED")
        finally:
            arriving.cancel()
        return bool(done)

    def _last(self) -> dict[str, object]:
        try:
            result = self.flashing.result()
        except (FlashError, NoBoardError) as error:
            result = FlashResult(error.outcome, str(error))
        except asyncio.CancelledError:  # what esptool was doing then is not known
            reason = f"{self.request.app[LAB].stop_reason}: esptool was ended"
            result = FlashResult(Outcome.INCOMPLETE, reason)
        except Exception:
            self.request.app[LAB].log.exception("flash_failed")
            result = FlashResult(Outcome.FAILED, "the gateway has made a mistake: see its log")
        return {
            "event": "done",
            "outcome": result.outcome.value,
            "exit_code": result.outcome.exit_code,
            "message": result.message,
            "verified": result.verified,
        }
