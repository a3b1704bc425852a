"""How requests are answered: access checks first, JSON, errors in one line.

What is answered is in the modules that add routes; the rules of access are in `http_access`.
"""

from __future__ import annotations

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
)
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway import clock
from gateway.config.document import ConnectionLimits, peer_holder
from gateway.errors import GatewayError
from gateway.inputs import parse_json
from gateway.web.http_access import JSON, SAFE_METHODS, Asked
from gateway.web.lab import LAB

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: What a request may carry, unless its handler reads it itself, piece by piece.
MAX_BODY_BYTES: Final = 65536

#: How long a client may take to send it.
_BODY_LIMIT_S: Final = 10.0

#: Of a long answer, so much is written at a time, which waits that long for a slow client.
PIECE_BYTES: Final = 65536
_WRITE_LIMIT_S: Final = 30.0

#: Nothing of ours is to be shown in a frame of another page, kept, or taken for what it is not.
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_TAKES: Final = "content_types"


class HttpError(GatewayError):
    """For the client: the status and one line that says why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Places:
    """Places for requests that clients keep open, so that one address can't hold all of them."""

    def __init__(self, limits: ConnectionLimits, what: str) -> None:
        """`what` names them to a client that gets none, in the plural."""
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


def takes(*content_types: str) -> Callable[[Handler], Handler]:
    """Marks a handler whose requests have a body of another type than JSON."""

    def mark(handler: Handler) -> Handler:
        setattr(handler, _TAKES, content_types)
        return handler

    return mark


def answer(content: object, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    """A JSON answer."""
    return web.Response(text=json.dumps(content) + "\n", status=status, content_type=JSON)


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

    One piece of all answers is written in a turn of the event loop. A client that takes none for
    _WRITE_LIMIT_S is cut off: ConnectionAbortedError.
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
    """Write data and wait until there is room for more; cut a client off that does not read.

    `limit_s` None is _WRITE_LIMIT_S.
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


def error_answer(status: int, reason: str) -> web.Response:
    """The answer to a request that is not carried out."""
    response = answer({"error": reason}, HTTPStatus(status))
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers[hdrs.WWW_AUTHENTICATE] = 'Bearer realm="esp-gateway"'
    return response


async def read_body(request: web.Request, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    """What a request carries; HttpError when it is too large or too slow."""
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
    """The JSON object that a request carries, empty without one; its keys are some of `known`."""
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


def knowing_expectations(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Answer 417 before aiohttp does, whose own answer fails on bytes that are not UTF-8."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        expected = request.headers.get(hdrs.EXPECT, "100-continue")
        if expected.lower() != "100-continue":
            return error_answer(HTTPStatus.EXPECTATION_FAILED, "Expect must be 100-continue")
        return await handler(request)

    return handle


def is_true(request: web.Request, name: str) -> bool:
    """A parameter of the query that is true or false, false if it is left out; HttpError."""
    value = request.query.get(name, "false")
    if value not in {"true", "false"}:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"{name} must be true or false")
    return value == "true"


@web.middleware
async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check and answer one request, and answer all errors; every request passes through here."""
    lab = request.app[LAB]
    try:
        response = await _answered(request, handler)
    except HttpError as error:
        response = error_answer(error.status, str(error))
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        response = _plain_error(request, error)
    except (ConnectionError, web.RequestPayloadError) as error:
        response = web.Response()  # nothing of it is sent
        if not _has_left(request):
            response = _failed(request, error)
    except Exception as error:
        response = _failed(request, error)
    if request.method not in SAFE_METHODS:
        lab.log.info(
            "http_asked",
            client=client_name(request),
            path=_path(request),
            status=response.status,
        )
    return response


def _has_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _failed(request: web.Request, error: Exception) -> web.Response:
    """Log a fault of the gateway; the client gets no details of it."""
    log = request.app[LAB].log
    log.error("http_failed", method=request.method, path=_path(request), exc_info=error)
    if request.writer.output_size and request.transport is not None:
        request.transport.abort()  # a second head must not follow within the first answer
    return error_answer(500, "internal error of the gateway: its log has the details")


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """What every answer says (the signal `on_response_prepare`)."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers[hdrs.SERVER] = "esp-gateway"


def client_name(request: web.Request) -> str:
    """The client of a request, as the log and other clients see it."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    if not peer:
        return "HTTP client"
    host = f"[{peer[0]}]" if ":" in peer[0] else peer[0]
    return f"{host}:{peer[1]}"


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    lab = request.app[LAB]
    asked = _asked(request)
    content_types: Collection[str] | None = getattr(request.match_info.handler, _TAKES, (JSON,))
    if request.match_info.http_exception is not None:
        content_types = None  # 404 or 405, whatever comes with it
    refused = lab.policy.refusal(asked, content_types)
    if refused is not None and refused.status is HTTPStatus.MISDIRECTED_REQUEST:
        await lab.read_own_names()  # the host may have a new one
        refused = lab.policy.refusal(asked, content_types)
    if refused is not None:
        raise HttpError(refused.status, refused.reason)
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        reason = "Content-Encoding must be identity: compressed bodies are not accepted"
        raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, reason)
    return await handler(request)


def _asked(request: web.Request) -> Asked:
    headers = request.headers
    offered = headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    return Asked(
        method=request.method,
        host=headers.get(hdrs.HOST, ""),
        # In the usual form the request line has a path only, or "*".
        target_host="" if request.raw_path[:1] in {"/", "*"} else request.host,
        origin=headers.get(hdrs.ORIGIN, ""),
        fetch_site=headers.get("Sec-Fetch-Site", ""),
        content_type=headers.get(hdrs.CONTENT_TYPE, ""),
        has_body=request.body_exists,
        authorization=headers.get(hdrs.AUTHORIZATION, ""),
        is_websocket="websocket" in headers.get(hdrs.UPGRADE, "").lower(),
        protocols=tuple(each.strip() for line in offered for each in line.split(",")),
    )


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
