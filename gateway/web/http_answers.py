"""Every request passes through `guarded`: access checks, then its handler, then errors as JSON.

Beside it, helpers for handlers: bodies, JSON, long answers, and `Lab`, the service as they see it.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final, Generic, TypeVar

import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway import clock
from gateway.config.document import ConnectionLimits, peer_holder
from gateway.inputs import parse_json
from gateway.net.access import Rejection
from gateway.net.client_socket import peer_name
from gateway.running_port import RunningPort
from gateway.turns import Turns
from gateway.web.http_access import JSON, SAFE_METHODS, AccessError, Policy, own_names

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")

#: For requests whose handler does not read the body itself.
MAX_BODY_BYTES: Final = 65536
_BODY_LIMIT_S: Final = 10.0

#: Long answers are written in pieces, and a client that does not read one so long is cut off.
PIECE_BYTES: Final = 65536
_WRITE_LIMIT_S: Final = 30.0

#: A host learns its domain from the network, perhaps after the gateway has started.
_NAMES_AGE_S: Final = 10.0

#: Answers must not be framed by another page, kept, or interpreted as another type.
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_TAKES: Final = "content_types"


@dataclass
class Lab:
    """The service behind the server, in each request's `app[LAB]`.

    `ports` returns the running ports in the order of the file, `not_served` USB devices without a
    port with the reasons. `policy` is replaced by a reload. `rejections` counts connections,
    `errors` answers by their status.
    """

    version: str
    ports: Callable[[], Sequence[RunningPort]]
    not_served: Callable[[], Mapping[str, str]]
    policy: Policy
    log: structlog.typing.FilteringBoundLogger = field(default_factory=structlog.get_logger)
    turns: Turns = field(default_factory=Turns)
    stop_reason: str = "the gateway is shutting down"  # for clients, when the server stops
    rejections: Counter[Rejection] = field(default_factory=Counter)
    errors: Counter[int] = field(default_factory=Counter)
    _names_read_at: float | None = field(default=None, init=False)

    async def read_own_names(self) -> None:
        """Read the host's names, unless that was done within _NAMES_AGE_S."""
        now = clock.time()
        if self._names_read_at is None or now - self._names_read_at >= _NAMES_AGE_S:
            self._names_read_at = now
            names = await asyncio.to_thread(own_names)
            self.policy = replace(self.policy, own_names=names)


LAB: web.AppKey[Lab] = web.AppKey("lab", Lab)


class HttpError(AccessError):
    """An error for the client, raised by a handler."""


class Places:
    """Limits requests that clients keep open; `what` names them in errors, in the plural."""

    def __init__(self, limits: ConnectionLimits, what: str) -> None:
        self._limits = limits
        self._what = what
        self._taken: Counter[str] = Counter()  # by holder

    @contextmanager
    def taken_by(self, request: web.Request) -> Iterator[None]:
        """Hold a place; raises HttpError if there is none."""
        holder = peer_holder(request.remote or "")
        if self._taken[holder] >= self._limits.max_per_address:
            reason = f"{self._limits.max_per_address} {self._what} of this address are open already"
            raise HttpError(HTTPStatus.TOO_MANY_REQUESTS, reason)
        if self._taken.total() >= self._limits.max:
            reason = f"{self._limits.max} {self._what} are open already"
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, reason)
        self._taken[holder] += 1
        try:
            yield
        finally:
            self._taken[holder] -= 1
            if not self._taken[holder]:
                del self._taken[holder]


class SharedBuild(Generic[T]):
    """Shares one `build` among all callers of `get`: one at a time, at most once in `every_s`.

    Every caller gets a build that began after its call, so that none is older than what it has
    seen before. `build` must give up its turn on the event loop now and then.
    """

    def __init__(self, build: Callable[[], Awaitable[T]], every_s: float) -> None:
        self._build = build
        self._every_s = every_s
        self._waiting: list[asyncio.Future[T]] = []
        self._task: asyncio.Task[None] | None = None
        self._begun_at: float | None = None

    async def get(self) -> T:
        """Return what was built; raises what `build` raised."""
        waiting: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await waiting

    async def stop(self, _: object = None) -> None:
        """Cancel the build and every `get` that waits."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        for each in self._waiting:
            each.cancel()

    async def _work(self) -> None:
        try:
            while self._waiting:
                if self._begun_at is not None:
                    await clock.sleep(max(0.0, self._begun_at + self._every_s - clock.time()))
                self._begun_at = clock.time()
                asking, self._waiting = self._waiting, []
                await self._build_for(asking)
        finally:
            self._task = None

    async def _build_for(self, asking: list[asyncio.Future[T]]) -> None:
        if all(each.done() for each in asking):  # the clients have disconnected
            return
        try:
            built = await self._build()
        except Exception as error:  # logged by `guarded`
            for each in asking:
                if not each.done():
                    each.set_exception(error)
        except asyncio.CancelledError:
            for each in asking:
                each.cancel()
            raise
        else:
            for each in asking:
                if not each.done():
                    each.set_result(built)


# --- requests


def port_asked_for(request: web.Request) -> RunningPort:
    """The port whose name is in the path; HttpError if there is none."""
    name = request.match_info["name"]
    for port in request.app[LAB].ports():
        if port.config.name == name:
            return port
    raise HttpError(HTTPStatus.NOT_FOUND, f"there is no port {name[:40]!r}")


def client_name(request: web.Request) -> str:
    """The address of a request's client, for logs and other clients."""
    return peer_name(request.transport) if request.transport else "unknown"


def is_true(request: web.Request, name: str) -> bool:
    """A boolean parameter of the query, false if it is left out; raises HttpError."""
    value = request.query.get(name, "false")
    if value not in {"true", "false"}:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"{name} must be true or false")
    return value == "true"


def takes(*content_types: str) -> Callable[[Handler], Handler]:
    """Mark a handler whose requests have a body of another type than JSON."""

    def mark(handler: Handler) -> Handler:
        setattr(handler, _TAKES, content_types)
        return handler

    return mark


async def read_body(request: web.Request, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Read a body; raises HttpError when it is too large or too slow."""
    too_large = HttpError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {limit_bytes} bytes in one request"
    )
    if (request.content_length or 0) > limit_bytes:
        raise too_large
    body = bytearray()
    try:
        async with clock.timeout(_BODY_LIMIT_S):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > limit_bytes:
                    raise too_large
    except (web.RequestPayloadError, HttpProcessingError):
        raise HttpError(HTTPStatus.BAD_REQUEST, "the body is not valid HTTP") from None
    except TimeoutError:
        reason = f"the request did not end within {_BODY_LIMIT_S:g} s"
        raise HttpError(HTTPStatus.REQUEST_TIMEOUT, reason) from None
    return bytes(body)


async def read_options(request: web.Request, known: Collection[str]) -> dict[str, Any]:
    """Read a body that is a JSON object with some of the `known` keys, or empty."""
    body = await read_body(request)
    try:
        options = parse_json(body) if body.strip() else {}
    except ValueError as error:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {error}") from None
    if not isinstance(options, dict):
        raise HttpError(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    if unknown := sorted(options.keys() - set(known)):
        reason = f"unknown key {unknown[0][:40]!r} (known: {', '.join(sorted(known)) or 'none'})"
        raise HttpError(HTTPStatus.BAD_REQUEST, reason)
    return options


# --- answers


def answer(content: object, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    """A JSON answer."""
    return web.Response(text=json.dumps(content) + "\n", status=status, content_type=JSON)


def error_answer(status: int, reason: str) -> web.Response:
    """The answer to a request that is not carried out."""
    response = answer({"error": reason}, HTTPStatus(status))
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers[hdrs.WWW_AUTHENTICATE] = 'Bearer realm="esp-gateway"'
    return response


async def send(request: web.Request, content_type: str, body: bytes) -> web.StreamResponse:
    """Send a long body in pieces, as fast as the client reads: none of it is copied ahead."""

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), PIECE_BYTES):
            yield body[at : at + PIECE_BYTES]

    return await stream(request, content_type, pieces(), n_bytes=len(body))


async def stream(
    request: web.Request,
    content_type: str,
    pieces: AsyncIterable[bytes],
    *,
    n_bytes: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.StreamResponse:
    """Send pieces as they are made, `n_bytes` together if that is known.

    One piece of all answers is written in a turn of the event loop. Raises ConnectionAbortedError
    when the client reads nothing for _WRITE_LIMIT_S.
    """
    turns = request.app[LAB].turns
    await turns.wait()
    response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: content_type, **(headers or {})})
    if n_bytes is not None:
        response.content_length = n_bytes
    await response.prepare(request)
    if request.method != hdrs.METH_HEAD:
        async for piece in pieces:
            await write_in_time(request, response, piece)
            await turns.wait()
    await response.write_eof()
    return response


async def write_in_time(
    request: web.Request,
    response: web.StreamResponse,
    data: bytes,
    limit_s: float | None = None,
) -> None:
    """Write data and wait until there is room for more; by default at most _WRITE_LIMIT_S.

    Raises ConnectionAbortedError after that time.
    """
    limit_s = _WRITE_LIMIT_S if limit_s is None else limit_s
    try:
        async with clock.timeout(limit_s):
            await response.write(data)
    except TimeoutError:
        raise cut_off(request, f"the client has read nothing for {limit_s:g} s") from None


def cut_off(request: web.Request, reason: str) -> ConnectionError:
    """Close the connection within an answer, whose rest is missing; returns what to raise."""
    if request.transport is not None:
        request.transport.abort()
    return ConnectionAbortedError(reason)


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Add the headers of every answer (the signal `on_response_prepare`)."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers[hdrs.SERVER] = "esp-gateway"


# --- around every request


def knowing_expectations(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Answer 417 before aiohttp does, whose own answer fails on bytes that are not UTF-8."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get(hdrs.EXPECT, "100-continue").lower() != "100-continue":
            return error_answer(HTTPStatus.EXPECTATION_FAILED, "Expect must be 100-continue")
        return await handler(request)

    return handle


@web.middleware
async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check one request, have it handled, and answer all errors."""
    lab = request.app[LAB]
    try:
        await _check(request)
        response = await handler(request)
    except AccessError as error:
        response = error_answer(error.status, str(error))
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        response = _plain_error(request, error)
    except (ConnectionError, web.RequestPayloadError) as error:
        response = web.Response()  # nothing of it is sent
        if request.transport is not None and not request.transport.is_closing():
            response = _failed(request, error)
    except Exception as error:
        response = _failed(request, error)
    if response.status >= HTTPStatus.BAD_REQUEST:
        lab.errors[response.status] += 1
    if request.method not in SAFE_METHODS:
        lab.log.info(
            "http_asked",
            client=client_name(request),
            path=_path(request),
            status=response.status,
        )
    return response


async def _check(request: web.Request) -> None:
    """Raise AccessError for a request that the policy does not permit."""
    lab = request.app[LAB]
    content_types: Collection[str] | None = getattr(request.match_info.handler, _TAKES, (JSON,))
    if request.match_info.http_exception is not None:
        content_types = None  # 404 or 405, whatever the body
    try:
        lab.policy.check(request, content_types)
    except AccessError as error:
        if error.status is not HTTPStatus.MISDIRECTED_REQUEST:
            raise
        await lab.read_own_names()  # the host may have a new one
        lab.policy.check(request, content_types)
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        reason = "Content-Encoding must be identity: compressed bodies are not accepted"
        raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, reason)


def _failed(request: web.Request, error: Exception) -> web.Response:
    """Log a fault of the gateway; the client gets no details of it."""
    log = request.app[LAB].log
    log.error("http_failed", method=request.method, path=_path(request), exc_info=error)
    if request.writer.output_size and request.transport is not None:
        request.transport.abort()  # a second head must not follow within the first answer
    return error_answer(500, "internal error of the gateway: its log has the details")


def _plain_error(request: web.Request, error: web.HTTPException) -> web.Response:
    if error.status == HTTPStatus.NOT_FOUND:
        return error_answer(404, f"there is no {_path(request)} here")
    response = error_answer(error.status, error.reason)
    if hdrs.ALLOW in error.headers:
        response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    return response


def _path(request: web.Request) -> str:
    path = request.rel_url.raw_path
    return path if len(path) <= 120 else path[:117] + "..."
