"""The page, its files, and the description of the interface."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web

from gateway.web import page
from gateway.web.http_access import Policy
from gateway.web.http_answers import LAB, Lab
from gateway.web.server import ROUTES
from tests.support.http_lab import INTERFACE, http_client


async def test_the_page_is_shown_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "page.js").write_text("1")
    monkeypatch.setattr(page, "STATIC", tmp_path)
    async with http_client([]) as client:
        shown = await client.get("/")
        assert shown.body == b"<!doctype html>"
        assert "default-src 'self'" in shown.headers["content-security-policy"]
        script = await client.get("/static/page.js")
        assert script.body == b"1"
        assert "javascript" in script.headers["content-type"]


@pytest.mark.parametrize("path", ["../secret", "%2e%2e/secret", "..%2fsecret", "link", ""])
async def test_nothing_beside_its_files_is_shown(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "static"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    monkeypatch.setattr(page, "STATIC", folder)
    async with (
        http_client([]) as client,
        client.session.get(f"{client.url}/static/{path}") as response,
    ):
        assert response.status in {403, 404}


async def test_without_a_page_it_is_said_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "STATIC", tmp_path)
    async with http_client([]) as client:
        assert (await client.get("/")).error == "there is no page here: see /openapi.json"


async def test_the_interface_is_described_for_programs() -> None:
    async with http_client([]) as client:
        assert (await client.get("/openapi.json")).content == INTERFACE


def test_the_description_names_every_route_and_no_other() -> None:
    app = web.Application()
    app[LAB] = Lab("1", list, dict, Policy(None))
    for add_routes in ROUTES:
        add_routes(app)
    served = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    described = {
        (method.upper(), path)
        for path, item in INTERFACE["paths"].items()
        for method in item
        if method in {"get", "post"}
    }
    assert described == served


def test_whatever_changes_something_is_described_as_needing_the_token() -> None:
    for path, item in INTERFACE["paths"].items():
        for method, operation in item.items():
            needs_none = operation.get("security") == [{}]
            assert needs_none == (method == "get" and not path.endswith("/console")), path
