"""How requests are answered: JSON, errors in one line, who may ask checked before all else.

What is answered is the matter of each room that adds routes; the rules of access are
`http_access`'s.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway import clock
from gateway.errors import GatewayError
from gateway.web.http_access import JSON, SAFE_METHODS, Asked
from gateway.web.lab import LAB

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: What a request may carry, unless its handler reads it itself, piece by piece.
MAX_BODY_BYTES: Final = 262144

#: How long a client may take to send it.
_BODY_LIMIT_S: Final = 10.0

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


def takes(*content_types: str) -> Callable[[Handler], Handler]:
    """Marks a handler whose requests have a body of another type than JSON."""

    def mark(handler: Handler) -> Handler:
        setattr(handler, _TAKES, content_types)
        return handler

    return mark


def answer(content: object, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    """A JSON answer."""
    return web.Response(text=json.dumps(content) + "\n", status=status, content_type=JSON)


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
        raise HttpError(HTTPStatus.BAD_REQUEST, "the body does not hold to HTTP") from None
    except TimeoutError:
        reason = f"the request did not end within {_BODY_LIMIT_S:g} s"
        raise HttpError(HTTPStatus.REQUEST_TIMEOUT, reason) from None
    return bytes(body)


async def read_options(request: web.Request, known: Collection[str]) -> dict[str, Any]:
    """The JSON object that a request carries, empty without one; its keys are some of `known`."""
    body = await read_body(request)
    try:
        options = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        raise HttpError(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
    if not isinstance(options, dict):
        raise HttpError(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    if unknown := sorted(options.keys() - set(known)):
        reason = f"unknown key {unknown[0][:40]!r} (known: {', '.join(sorted(known)) or 'none'})"
        raise HttpError(HTTPStatus.BAD_REQUEST, reason)
    return options


@web.middleware
async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer who may not ask, and whatever goes wrong; every request comes through here."""
    lab = request.app[LAB]
    try:
        response = await _answered(request, handler)
    except HttpError as error:
        response = error_answer(error.status, str(error))
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        response = _plain_error(request, error)
    except ConnectionError:  # the client has left
        raise
    except Exception:  # our own mistake: the client is not shown where
        lab.log.exception("http_failed", method=request.method, path=_path(request))
        response = error_answer(500, "the gateway has made a mistake: its log says which")
    if request.method not in SAFE_METHODS:
        lab.log.info(
            "http_asked",
            client=client_name(request),
            path=_path(request),
            status=response.status,
        )
    return response


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """What every answer says (the signal `on_response_prepare`)."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers[hdrs.SERVER] = "esp-gateway"


def client_name(request: web.Request) -> str:
    """Who asks, as the log and other clients are told."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    if not peer:
        return "HTTP client"
    host = f"[{peer[0]}]" if ":" in peer[0] else peer[0]
    return f"{host}:{peer[1]}"


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    content_types = getattr(request.match_info.handler, _TAKES, (JSON,))
    refused = request.app[LAB].policy.refusal(_asked(request), content_types)
    if refused is not None:
        raise HttpError(refused.status, refused.reason)
    return await handler(request)


def _asked(request: web.Request) -> Asked:
    headers = request.headers
    offered = headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    return Asked(
        method=request.method,
        host=headers.get(hdrs.HOST, ""),
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
