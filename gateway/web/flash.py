"""`POST /api/ports/{name}/flash`: takes images, writes them to the board, tells how it goes.

The request is multipart/form-data: first the part `plan` (`flash.plan`, JSON), then a part for each
image, named by its offset as in `0x10000`. The answer is a line of JSON for each event, the last of
them `done`; what is refused before anything was done to the board is an error with a status. What
is done to the board is `flash.job`'s matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import structlog
from aiohttp import BodyPartReader, MultipartReader, web

from gateway import clock
from gateway.errors import GatewayError
from gateway.flash.esptool_process import NoEsptoolError
from gateway.flash.events import FlashEvents
from gateway.flash.job import Flasher, FlashRequest, FlashResult
from gateway.flash.outcome import Outcome
from gateway.flash.plan import MAX_PLAN_BYTES, FlashPlan, PlanError, plan_from_json
from gateway.flash.store import ImageStore, NoRoomError, NotStoredError
from gateway.flash.user import NoBoardError
from gateway.ports.running_port import RunningPort
from gateway.web.http_answers import answer, client_name, takes
from gateway.web.lab import LAB
from gateway.web.ports_api import port_asked_for


class _Flashing(set[asyncio.Future[FlashResult]]):
    """What is under way."""


FLASHER: Final = web.AppKey("flasher", Flasher)
FLASHING: Final = web.AppKey("flashing", _Flashing)

#: How long a client may send nothing of what it has announced, and how slow it may be on the whole.
_CHUNK_LIMIT_S: Final = 30.0
_SLOWEST_BYTES_PER_S: Final = 16384
_UPLOAD_START_S: Final = 60.0

_CHUNK_BYTES: Final = 65536

#: A client hears of us at least this often, so that either end notices when the other is gone.
_ALIVE_S: Final = 10.0
#: How long a client may not read before it is taken for gone.
_WRITE_LIMIT_S: Final = 60.0


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[FLASHER] = Flasher(structlog.get_logger())
    app[FLASHING] = _Flashing()
    app.on_shutdown.append(_end_all)
    app.router.add_post("/api/ports/{name}/flash", flash)


@takes("multipart/form-data")
async def flash(request: web.Request) -> web.StreamResponse:
    """Write images to the board of a port. A client that hangs up ends it."""
    port = port_asked_for(request)
    try:
        return await _flash(request, port)
    except tuple(_REFUSALS) as error:
        status, outcome = _refusal(error)
        return answer({"error": str(error), "outcome": outcome.value}, status)


_REFUSALS: Final[dict[type[GatewayError], tuple[HTTPStatus, Outcome]]] = {
    PlanError: (HTTPStatus.BAD_REQUEST, Outcome.WRONG_INPUT),
    NoRoomError: (HTTPStatus.INSUFFICIENT_STORAGE, Outcome.NOT_STORED),
    NotStoredError: (HTTPStatus.BAD_REQUEST, Outcome.NOT_STORED),
    NoEsptoolError: (HTTPStatus.NOT_IMPLEMENTED, Outcome.NO_ESPTOOL),
    NoBoardError: (HTTPStatus.CONFLICT, Outcome.BUSY),
}


def _refusal(error: BaseException) -> tuple[HTTPStatus, Outcome]:
    kind = next(kind for kind in _REFUSALS if isinstance(error, kind))
    status, outcome = _REFUSALS[kind]
    return status, error.outcome if isinstance(error, NoBoardError) else outcome


async def _flash(request: web.Request, port: RunningPort) -> web.StreamResponse:
    flasher = request.app[FLASHER]
    upload = _Upload(await _multipart(request))
    plan = await upload.read_plan()
    await flasher.esptool()  # before the images come for nothing
    who = f"{plan.label} at {client_name(request)}" if plan.label else client_name(request)
    events = FlashEvents()
    with flasher.reserved(port.config.name, who):
        async with ImageStore(plan, None) as store:
            await upload.read_images(plan, store)
            force = request.query.get("force", "") in {"1", "true"}
            asked = FlashRequest(
                port.config, port.device, plan, store, events.add, who, force=force
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
    """The server stops: those who flash are told so."""
    flashing = app[FLASHING].copy()
    for each in flashing:
        each.cancel()
    if flashing:
        await asyncio.wait(flashing)


async def _multipart(request: web.Request) -> MultipartReader:
    try:
        return await request.multipart()
    except (AssertionError, ValueError) as error:
        raise PlanError(f"the body is no multipart/form-data: {error}") from None


class _Upload:
    """The parts of a request in the order in which they come."""

    def __init__(self, reader: MultipartReader) -> None:
        self._reader = reader

    async def read_plan(self) -> FlashPlan:
        """The first part. Raises PlanError."""
        async with _while_it_comes(_UPLOAD_START_S):
            part = await self._next()
            if part is None or part.name != "plan":
                raise PlanError("the first part has to be `plan`")
            text = bytearray()
            async for chunk in _chunks(part):
                text += chunk
                if len(text) > MAX_PLAN_BYTES:
                    raise PlanError(f"the plan has more than {MAX_PLAN_BYTES} bytes")
        return plan_from_json(bytes(text))

    async def read_images(self, plan: FlashPlan, store: ImageStore) -> None:
        """The others, each an image of the plan. Raises NotStoredError."""
        missing = {image.offset: number for number, image in enumerate(plan.images)}
        async with _while_it_comes(_UPLOAD_START_S + plan.total_bytes / _SLOWEST_BYTES_PER_S):
            while missing:
                part = await self._next()
                if part is None:
                    offset = min(missing)
                    raise NotStoredError(f"there is no part {offset:#x}, which the plan has")
                await store.add(missing.pop(_offset(part, missing)), _chunks(part))

    async def _next(self) -> BodyPartReader | None:
        try:
            part = await self._reader.next()
        except ValueError as error:
            raise PlanError(f"the body is no multipart/form-data: {error}") from None
        if part is not None and not isinstance(part, BodyPartReader):
            raise PlanError("a part has parts of its own")
        return part


def _offset(part: BodyPartReader, missing: dict[int, int]) -> int:
    with contextlib.suppress(ValueError):
        if (offset := int(part.name or "", 0)) in missing:
            return offset
    shown = "".join(c if c.isprintable() else "?" for c in (part.name or "")[:40])
    raise NotStoredError(f"part {shown!r} is none of the plan's offsets, or comes again")


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while True:
        async with clock.timeout(_CHUNK_LIMIT_S):
            chunk = await part.read_chunk(_CHUNK_BYTES)
        if not chunk:
            return
        yield bytes(chunk)


@contextlib.asynccontextmanager
async def _while_it_comes(limit_s: float) -> AsyncIterator[None]:
    try:
        async with clock.timeout(limit_s):
            yield
    except TimeoutError:
        raise NotStoredError("the images did not come in time") from None


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
                async with clock.timeout(_WRITE_LIMIT_S):
                    await response.write(
                        "".join(json.dumps(line) + "\n" for line in lines).encode()
                    )
            if is_over:
                await response.write_eof()
                return response

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
        except tuple(_REFUSALS) as error:
            result = FlashResult(_refusal(error)[1], str(error))
        except asyncio.CancelledError:  # what esptool was doing then is not known
            reason = "the gateway is shutting down: esptool was ended"
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
