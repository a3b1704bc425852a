"""How requests are answered, whatever is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.config.document import HttpConfig
from gateway.web import http_answers
from gateway.web import server as module
from gateway.web.http_answers import MAX_BODY_BYTES, answer, read_body, read_options, takes
from tests.support.http_lab import LOOPBACK, HttpClient, client_of, http_client, http_server

TOKEN = "0123456789abcdef"  # noqa: S105 - nobody's


async def echo(request: web.Request) -> web.Response:
    return answer(await read_options(request, {"one", "two"}))


@takes("application/octet-stream")
async def count(request: web.Request) -> web.Response:
    return answer({"bytes": len(await read_body(request, 10))})


async def fail(request: web.Request) -> web.Response:
    raise RuntimeError("a secret")


def add_routes(app: web.Application) -> None:
    app.router.add_post("/echo", echo)
    app.router.add_post("/count", count)
    app.router.add_post("/fail", fail)


@pytest.fixture(autouse=True)
def rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUTES", (*module.ROUTES, add_routes))


async def post(client: HttpClient, path: str, body: bytes, kind: str) -> tuple[int, Any]:
    """Post to one of the routes of this test, which the interface does not describe."""
    url = client.url + path
    headers = {"Content-Type": kind}
    async with client.session.post(url, data=body, headers=headers) as response:
        return response.status, await response.json()


JSON = "application/json"


async def test_options_are_a_json_object_of_known_keys() -> None:
    async with http_client([]) as client:
        assert await post(client, "/echo", b'{"one": 1}', JSON) == (200, {"one": 1})
        assert await post(client, "/echo", b"", JSON) == (200, {})
        for body, reason in [
            (b"{", "the body is not JSON: Expecting property name enclosed in double quotes: line"),
            (b"\xff", "the body is not JSON: not UTF-8"),
            ("{}".encode("utf-16"), "the body is not JSON: not UTF-8"),
            (b'{"one": "\\ud800"}', "the body is not JSON: half of a surrogate pair"),
            (b'{"one": NaN}', "the body is not JSON: NaN is not a JSON value"),
            (b"[" * 50_000, "the body is not JSON: nested too deeply"),
            (b"[]", "the body is not a JSON object"),
            (b'{"three": 3}', "unknown key 'three' (known: one, two)"),
        ]:
            status, content = await post(client, "/echo", body, JSON)
            assert status == 400
            assert content["error"].startswith(reason)


async def test_what_is_too_large_is_refused_whether_it_says_so_or_not() -> None:
    async def trickle() -> object:
        for _ in range(11):
            yield b"x"

    async with http_client([]) as client:
        kind = "application/octet-stream"
        assert await post(client, "/count", b"x" * 10, kind) == (200, {"bytes": 10})
        assert (await post(client, "/count", b"x" * 11, kind))[0] == 413
        headers = {"Content-Type": kind}
        url = f"{client.url}/count"
        async with client.session.post(url, data=trickle(), headers=headers) as response:
            assert response.status == 413
        assert (await post(client, "/echo", b" " * (MAX_BODY_BYTES + 1), JSON))[0] == 413


async def test_a_body_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_answers, "_BODY_LIMIT_S", 0.01)
    async with http_client([]) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.tcp_port)
        writer.write(
            b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 5\r\n\r\n{"
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 408 " in head.splitlines()[0]
        writer.close()
        await writer.wait_closed()


async def test_a_mistake_of_ours_is_logged_and_not_shown() -> None:
    async with http_client([]) as client:
        with capture_logs() as logs:
            status, told = await post(client, "/fail", b"", JSON)
        assert status == 500
        assert "secret" not in json.dumps(told)
        assert [each["event"] for each in logs] == ["http_failed", "http_asked"]
        assert logs[0]["exc_info"]


async def test_who_may_not_is_refused_before_a_handler_sees_it() -> None:
    async with http_client([], TOKEN) as client:
        refused = await client.post("/api/v1/ports", {})
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == 'Bearer realm="esp-gateway"'
        assert (await post(client, "/fail", b"", JSON))[0] == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        allowed = await client.post("/api/v1/ports", {}, headers=headers)
        assert (allowed.status, allowed.headers["allow"]) == (405, "GET,HEAD")


async def test_a_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    async with http_client([]) as client:
        answered = await client.get("/api/nothing%0Ahere?x=1")
        assert answered.status == 404
        assert answered.error == "there is no /api/nothing%0Ahere here"
        assert "..." in (await client.get("/" + "x" * 500)).error


async def test_every_answer_says_what_browsers_may_do_with_it() -> None:
    async with http_client([]) as client:
        for path in ("/api/v1/ports", "/nothing", "/openapi.json"):
            headers = (await client.get(path)).headers
            assert headers["x-frame-options"] == "DENY"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["server"] == "esp-gateway"
            assert "access-control-allow-origin" not in headers


async def test_a_name_of_somebody_else_is_refused() -> None:
    async with http_client([]) as client:
        for method, path in [
            ("GET", "/api/v1/ports"),
            ("GET", "/"),
            ("GET", "/static/app.js"),
            ("GET", "/nothing"),
            ("GET", "/metrics"),
            ("GET", "/api/v1/events"),
            ("GET", "/api/v1/ports/desk/console"),
            ("POST", "/api/v1/ports/desk/reset"),
            ("OPTIONS", "/api/v1/ports"),
        ]:
            answered = await client.ask(method, path, headers={"Host": "evil.example"})
            assert answered.status == 421
            assert answered.error.startswith("evil.example is not a name of this gateway: use")


async def test_a_request_line_with_a_host_of_somebody_else_is_refused() -> None:
    async with http_client([]) as client:
        for host, status in (("evil.example", b"421"), ("localhost", b"200")):
            reader, writer = await asyncio.open_connection("127.0.0.1", client.tcp_port)
            writer.write(
                f"GET http://{host}/api/v1/ports HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            assert status in await reader.readuntil(b"\r\n")
            writer.close()
            await writer.wait_closed()


async def test_a_name_that_the_host_has_got_meanwhile_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: set[str] = set()
    monkeypatch.setattr(http_answers, "own_names", lambda: frozenset(names))
    monkeypatch.setattr(http_answers, "_NAMES_AGE_S", 0.0)
    async with http_client([]) as client:
        headers = {"Host": "pi.lab.example"}
        assert (await client.get("/api/v1/ports", headers=headers)).status == 421
        names.add("pi.lab.example")
        assert (await client.get("/api/v1/ports", headers=headers)).status == 200


async def test_names_of_the_configuration_are_served() -> None:
    config = HttpConfig(LOOPBACK, 0, host_names=frozenset({"lab.example"}))
    async with http_server([], config=config) as server, client_of(server) as client:
        answered = await client.get("/api/v1/ports", headers={"Host": "Lab.example:8080"})
        assert answered.status == 200


async def test_a_compressed_body_is_refused() -> None:
    async with http_client([]) as client:
        headers = {"Content-Encoding": "gzip", "Content-Type": JSON}
        answered = await client.post("/api/v1/ports/desk/reset", headers=headers, data=b"x")
        assert answered.status == 415
        assert answered.error.startswith("Content-Encoding must be identity")


@pytest.mark.parametrize("what", [ConnectionResetError(), RuntimeError("a mistake")])
async def test_what_fails_within_an_answer_ends_the_connection(what: Exception) -> None:
    """No second head within the first answer."""

    async def begin(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        raise what

    with pytest.MonkeyPatch.context() as patch:
        routes = (*module.ROUTES, lambda app: app.router.add_get("/begin", begin))
        patch.setattr(module, "ROUTES", routes)
        async with http_client([]) as client:
            reader, writer = await asyncio.open_connection("127.0.0.1", client.tcp_port)
            writer.write(b"GET /begin HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with capture_logs() as logs:
                got = b""
                with contextlib.suppress(ConnectionError):
                    while chunk := await reader.read(65536):
                        got += chunk
            writer.close()
    assert got.count(b"HTTP/1.") <= 1
    assert [each["event"] for each in logs] == ["http_failed"]


async def test_what_is_asked_to_be_changed_is_logged_with_who_and_what_came_of_it() -> None:
    async with http_client([]) as client:
        with capture_logs() as logs:
            await client.get("/api/v1/ports")
            await client.post("/api/v1/ports", {})
        [told] = logs
        assert told["event"] == "http_asked"
        assert told["path"] == "/api/v1/ports"
        assert told["status"] == 405
        assert told["client"].startswith("127.0.0.1:")


async def test_a_body_that_is_no_http_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with http_client([]) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.tcp_port)
        writer.write(
            b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        writer.write(b"not a chunk\r\n\r\n")
        assert b" 400 " in await reader.readuntil(b"\r\n")
        writer.close()
        await writer.wait_closed()
    assert not caplog.records


@pytest.mark.parametrize(
    "noise",
    [
        b"\0\xff\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"GET /" + b"x" * 20000,
        b"\x16\x03\x01\x02\0\r\n",
    ],
)
async def test_noise_is_answered_and_not_logged_as_our_mistake(
    noise: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with http_client([]) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.tcp_port)
        writer.write(noise)
        assert b" 400 " in (await reader.readuntil(b"\r\n"))
        writer.close()
        await writer.wait_closed()
    assert not caplog.records
