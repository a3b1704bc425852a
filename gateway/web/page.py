"""The page, its files, and the description of the HTTP interface for programs."""

from __future__ import annotations

import json
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import yaml
from aiohttp import web

from gateway.web.http_answers import HttpError

_FOLDER: Final = Path(str(files("gateway.web")))
STATIC: Final = _FOLDER / "static"
_FILES: web.AppKey[dict[str, Path]] = web.AppKey("files", dict)

#: The page loads nothing from elsewhere, and neither runs nor draws by what stands in its text:
#: static/xterm_document.js has its terminal keep to that.

_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app.router.add_get("/", show_page)
    app.router.add_get("/openapi.json", show_interface)
    app[_FILES] = {
        path.relative_to(STATIC).as_posix(): path
        for path in STATIC.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    app.router.add_get("/static/{filename:.+}", show_file)


async def show_page(request: web.Request) -> web.StreamResponse:  # noqa: ARG001 - aiohttp's signature
    """The page."""
    index = STATIC / "index.html"
    if not index.is_file():
        raise HttpError(HTTPStatus.NOT_FOUND, "there is no page here: see /openapi.json")
    return web.FileResponse(index, headers={"Content-Security-Policy": _POLICY})


async def show_file(request: web.Request) -> web.StreamResponse:
    """A file of the page. What a client sends is looked up in a table, never on the disk."""
    path = request.app[_FILES].get(request.match_info["filename"])
    if path is None:
        raise web.HTTPNotFound
    return web.FileResponse(path)


async def show_interface(request: web.Request) -> web.Response:  # noqa: ARG001 - aiohttp's signature
    """The description of the interface in the form of OpenAPI."""
    return web.Response(text=interface_json(), content_type="application/json")


@cache
def interface_json() -> str:
    """openapi.yaml as JSON."""
    return json.dumps(interface())


def interface() -> Any:
    """What stands in openapi.yaml."""
    return yaml.safe_load((_FOLDER / "openapi.yaml").read_text())
