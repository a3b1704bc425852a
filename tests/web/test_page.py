"""The page, its files, and the description of the interface, which schemathesis tries."""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
from pathlib import Path

import pytest
from aiohttp import web

from gateway.web import page
from gateway.web.http_access import Policy
from gateway.web.http_answers import LAB, Lab
from gateway.web.page import STATIC
from gateway.web.server import ROUTES
from tests.support.http_fuzz import http_fuzz_world
from tests.support.http_lab import INTERFACE, http_client

VENDOR = STATIC / "vendor"
OURS = sorted(path for path in STATIC.rglob("*") if path.is_file() and VENDOR not in path.parents)

#: Ways to have text read as markup or as a program: text of boards must not be.
READS_MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc"
    r"|\beval\(|new Function|setTimeout\(['\"]|createContextualFragment|setHTML"
)

#: Of schemathesis, for each operation and kind; the number of requests is about 500.
EXAMPLES = 8
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)

#: They last as long as the client asks for; tests/support/http_fuzz.py has them.
LASTING = ("/api/v1/events", "/api/v1/ports/{name}/wait")
LIMIT_S = 280.0


async def test_the_page_is_shown_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "STATIC", tmp_path)
    async with http_client([]) as client:
        assert (await client.get("/")).error == "there is no page here: see /openapi.json"
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "page.js").write_text("1")
    async with http_client([]) as client:
        shown = await client.get("/")
        assert shown.body == b"<!doctype html>"
        assert "default-src 'self'" in shown.headers["content-security-policy"]
        script = await client.get("/static/page.js")
        assert script.body == b"1"
        assert "javascript" in script.headers["content-type"]


@pytest.mark.parametrize("path", ["../secret", "%2e%2e/secret", "..%2fsecret", "link", ""])
async def test_no_other_file_is_shown(
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


def test_files_of_others_are_those_that_their_table_names() -> None:
    table = (VENDOR / "README.md").read_text()
    wanted = dict(re.findall(r"^\| (\w+/\S+) \| \S+ \| ([0-9a-f]{64}) \|$", table, re.MULTILINE))
    assert "xterm/xterm.js" in wanted
    found = {
        str(path.relative_to(VENDOR)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != "README.md"
    }
    assert found == wanted


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_a_file_of_the_page_is_safe_and_complete(path: Path) -> None:
    text = path.read_text()
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s'\"]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    if path.suffix == ".js":
        assert text.startswith("/**")
        assert not READS_MARKUP.findall(re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))
        for name in re.findall(r"^import .*?from '(.+?)';$", text, re.MULTILINE | re.DOTALL):
            assert (path.parent / name).is_file(), name
    if path.suffix == ".html":
        assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)


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


def test_an_operation_that_changes_something_is_described_as_needing_the_token() -> None:
    for path, item in INTERFACE["paths"].items():
        for method, operation in item.items():
            needs_none = operation.get("security") == [{}]
            assert needs_none == (method == "get" and not path.endswith("/console")), path


async def test_every_answer_is_as_described_and_none_an_internal_error(tmp_path: Path) -> None:
    async with http_client([]) as client:
        assert (await client.get("/openapi.json")).content == INTERFACE
    async with http_fuzz_world(tmp_path, None) as world:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run"),
            f"http://127.0.0.1:{world.tcp_port}/openapi.json",
            *("--max-examples", str(EXAMPLES), "--seed", "1", "--checks", ",".join(CHECKS)),
            *(word for path in LASTING for word in ("--exclude-path", path)),
            *("--no-color", "--generation-database", "none"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(LIMIT_S):
                output = (await process.stdout.read()).decode()
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        world.resume()
        assert process.returncode == 0, output
        assert "Tested: 15" in output, output
