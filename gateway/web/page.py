"""The page, its files, and the description of the HTTP interface for programs."""

from __future__ import annotations

import asyncio
import json
import mimetypes
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import yaml
from aiohttp import web

from gateway.web.http_access import JSON
from gateway.web.http_answers import HttpError, send

_FOLDER: Final = Path(str(files("gateway.web")))
STATIC: Final = _FOLDER / "static"

#: The page loads nothing from elsewhere, and its text is neither run nor drawn:
#: static/xterm_document.js makes its terminal comply.
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[_FILES] = StaticFiles(STATIC)
    app.router.add_get("/", show_page)
    app.router.add_get("/openapi.json", show_interface)
    app.router.add_get("/static/{filename:.+}", show_file)


class StaticFiles:
    """The files of a folder, listed and read once: a name in a request never reaches the disk."""

    def __init__(self, folder: Path) -> None:
        self._paths = {
            path.relative_to(folder).as_posix(): path
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        self._read: dict[str, tuple[str, bytes]] = {}

    async def get(self, name: str) -> tuple[str, bytes] | None:
        """Content type and bytes of a file; None if there is none of that name."""
        if name not in self._paths:
            return None
        if name not in self._read:
            content_type, _ = mimetypes.guess_type(name)
            data = await asyncio.to_thread(self._paths[name].read_bytes)
            self._read[name] = content_type or "application/octet-stream", data
        return self._read[name]


_FILES: Final[web.AppKey[StaticFiles]] = web.AppKey("files", StaticFiles)


async def show_page(request: web.Request) -> web.StreamResponse:
    """The page."""
    found = await request.app[_FILES].get("index.html")
    if found is None:
        raise HttpError(HTTPStatus.NOT_FOUND, "there is no page here: see /openapi.json")
    headers = {"Content-Security-Policy": _POLICY}
    return web.Response(body=found[1], content_type=found[0], charset="utf-8", headers=headers)


async def show_file(request: web.Request) -> web.StreamResponse:
    """A file of the page."""
    found = await request.app[_FILES].get(request.match_info["filename"])
    if found is None:
        raise web.HTTPNotFound
    return await send(request, *found)


async def show_interface(request: web.Request) -> web.StreamResponse:
    """The description of the interface, OpenAPI in JSON."""
    text = await asyncio.to_thread(_interface_json)  # parsing it takes 0.2 s the first time
    return await send(request, JSON, text.encode())


@cache
def _interface_json() -> str:
    return json.dumps(interface())


def interface() -> Any:
    """The content of openapi.yaml."""
    return yaml.safe_load((_FOLDER / "openapi.yaml").read_text())
