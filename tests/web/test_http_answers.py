"""Every request is checked, answered and its errors are JSON, whatever a client sends."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.config.document import HttpConfig
from gateway.web import http_answers, output_api
from gateway.web import server as module
from gateway.web.http_answers import (
    MAX_BODY_BYTES,
    answer,
    read_body,
    read_options,
    takes,
)
from tests.support.http_fuzz import TOKEN, HttpCase, http_fuzz_world, make_http_case
from tests.support.http_lab import (
    LOOPBACK,
    HttpClient,
    client_of,
    exchange,
    http_client,
    http_server,
)

JSON = "application/json"
BYTES = "application/octet-stream"

#: Of the cases of `make fuzz`, enough for each kind to be among them.
CASES = 400


async def echo(request: web.Request) -> web.Response:
    return answer(await read_options(request, {"one", "two"}))


@takes(BYTES)
async def count(request: web.Request) -> web.Response:
    return answer({"bytes": len(await read_body(request, 10))})


async def fail(request: web.Request) -> web.Response:
    raise RuntimeError("a secret")


def add_routes(app: web.Application) -> None:
    app.router.add_post("/echo", echo)
    app.router.add_post("/count", count)
    app.router.add_post("/fail", fail)


@pytest.fixture(autouse=True)
def routes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUTES", (*module.ROUTES, add_routes))


async def post(client: HttpClient, path: str, body: object, kind: str) -> tuple[int, Any]:
    """Post to one of the routes of this test, which the interface does not describe."""
    headers = {"Content-Type": kind}
    async with client.session.post(client.url + path, data=body, headers=headers) as response:
        return response.status, await response.json()


# --- bodies


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


async def test_a_body_that_is_too_large_is_rejected_with_and_without_its_length() -> None:
    async def trickle() -> object:
        for _ in range(11):
            yield b"x"

    async with http_client([]) as client:
        assert await post(client, "/count", b"x" * 10, BYTES) == (200, {"bytes": 10})
        for path, body, kind in (
            ("/count", b"x" * 11, BYTES),
            ("/count", trickle(), BYTES),
            ("/echo", b" " * (MAX_BODY_BYTES + 1), JSON),
        ):
            assert (await post(client, path, body, kind))[0] == 413


ECHO = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (ECHO + b"Content-Length: 5\r\n\r\n{", b" 408 "),  # it does not end
        (ECHO + b"Transfer-Encoding: chunked\r\n\r\nnot a chunk\r\n\r\n", b" 400 "),
        (b"\0\xff\r\n\r\n", b" 400 "),
        (b"GET / HTTP/9\r\n\r\n", b" 400 "),
        (b"GET /" + b"x" * 20000, b" 400 "),
        (b"\x16\x03\x01\x02\0\r\n", b" 400 "),
        (b"GET http://localhost/api/v1/ports HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 200 "),
        (b"GET http://evil.example/api/v1/ports HTTP/1.1\r\nHost: localhost\r\n\r\n", b" 421 "),
    ],
)
async def test_a_client_s_error_is_answered_and_not_logged_as_ours(
    data: bytes, status: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http_answers, "_BODY_LIMIT_S", 0.01)
    async with http_client([]) as client:
        assert status in await exchange(client.tcp_port, data)
    assert not caplog.records


async def test_a_compressed_body_is_rejected() -> None:
    async with http_client([]) as client:
        headers = {"Content-Encoding": "gzip", "Content-Type": JSON}
        answered = await client.post("/api/v1/ports/desk/reset", headers=headers, data=b"x")
        assert answered.status == 415
        assert answered.error.startswith("Content-Encoding must be identity")


# --- access


async def test_a_request_without_the_token_never_reaches_its_handler() -> None:
    async with http_client([], TOKEN) as client:
        refused = await client.post("/api/v1/ports", {})
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == 'Bearer realm="esp-gateway"'
        assert (await post(client, "/fail", b"", JSON))[0] == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        allowed = await client.post("/api/v1/ports", {}, headers=headers)
        assert (allowed.status, allowed.headers["allow"]) == (405, "GET,HEAD")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/ports"),
        ("GET", "/"),
        ("GET", "/static/app.js"),
        ("GET", "/nothing"),
        ("GET", "/metrics"),
        ("GET", "/api/v1/events"),
        ("GET", "/api/v1/ports/desk/console"),
        ("POST", "/api/v1/ports/desk/reset"),
        ("OPTIONS", "/api/v1/ports"),
    ],
)
async def test_no_path_is_served_under_a_host_name_of_another_party(method: str, path: str) -> None:
    async with http_client([]) as client:
        answered = await client.ask(method, path, headers={"Host": "evil.example"})
        assert answered.status == 421
        assert answered.error.startswith("evil.example is not a name of this gateway: use")


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


# --- answers


async def test_a_fault_of_the_gateway_is_logged_and_not_shown() -> None:
    async with http_client([]) as client:
        with capture_logs() as logs:
            status, content = await post(client, "/fail", b"", JSON)
        assert status == 500
        assert "secret" not in json.dumps(content)
        assert [each["event"] for each in logs] == ["http_failed", "http_asked"]
        assert logs[0]["exc_info"]


async def test_a_path_that_is_not_there_is_an_error_with_the_path() -> None:
    async with http_client([]) as client:
        answered = await client.get("/api/nothing%0Ahere?x=1")
        assert answered.status == 404
        assert answered.error == "there is no /api/nothing%0Ahere here"
        assert "..." in (await client.get("/" + "x" * 500)).error


async def test_every_answer_restricts_what_browsers_may_do_with_it() -> None:
    async with http_client([]) as client:
        for path in ("/api/v1/ports", "/nothing", "/openapi.json"):
            headers = (await client.get(path)).headers
            assert headers["x-frame-options"] == "DENY"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["server"] == "esp-gateway"
            assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("error", [ConnectionResetError(), RuntimeError("a mistake")])
async def test_an_error_within_an_answer_ends_the_connection(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second head within the first answer."""

    async def begin(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        raise error

    routes = (*module.ROUTES, lambda app: app.router.add_get("/begin", begin))
    monkeypatch.setattr(module, "ROUTES", routes)
    got = b""
    async with http_client([]) as client:
        with capture_logs() as logs, suppress(ConnectionError):
            head = b"GET /begin HTTP/1.1\r\nHost: localhost\r\n\r\n"
            got = await exchange(client.tcp_port, head, to_end=True)
    assert got.count(b"HTTP/1.") <= 1
    assert [each["event"] for each in logs] == ["http_failed"]


async def test_a_request_that_may_change_something_is_logged() -> None:
    async with http_client([]) as client:
        with capture_logs() as logs:
            await client.get("/api/v1/ports")
            await client.post("/api/v1/ports", {})
        [logged] = logs
        assert logged["client"].startswith("127.0.0.1:")
        found = logged["event"], logged["path"], logged["status"]
        assert found == ("http_asked", "/api/v1/ports", 405)


# --- hostile requests


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_a_slice_of_the_fuzzer(tmp_path: Path, token: str | None) -> None:
    async with http_fuzz_world(tmp_path, token) as world:
        for seed in range(CASES):
            await world.play(make_http_case(seed))
        # It gets to where something is done.
        reached = {101, 200, 400, 404, 405, 408, 413, 415, 417, 421} | ({401} if token else set())
        assert reached <= world.statuses.keys()


def test_a_case_follows_from_its_seed() -> None:
    cases = [make_http_case(seed) for seed in range(200)]
    assert cases == [make_http_case(seed) for seed in range(200)]
    assert len({case.pieces for case in cases}) > 190
    assert {case.is_whole for case in cases} == {True, False}


async def test_a_planted_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(output_api, "_number", fail)
    with pytest.raises(AssertionError, match="planted"):
        async with http_fuzz_world(tmp_path, None) as world:
            await world.play(request("GET", "/api/v1/ports/desk/tail"))


def request(method: str, target: str, *headers: str, body: bytes = b"") -> HttpCase:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return HttpCase((head + body,), is_whole=True)


TYPE = "Content-Type: application/json"
PORTS = "/api/v1/ports"
WAIT = f"{PORTS}/desk/wait"
FLASH = f"{PORTS}/desk/flash"


@pytest.mark.parametrize(
    ("case", "status"),
    [
        (request("POST", f"{PORTS}/desk/reset", "Authorization: Bearer \xff"), 401),
        (request("POST", WAIT, TYPE, body=b'{"pattern": "\\ud800"}'), 400),
        (request("POST", WAIT, TYPE, body=b'{"pattern": "\\u0000", "timeout_s": 0}'), 408),
        (request("POST", WAIT, TYPE, body=b'{"pattern": "(", "timeout_s": 0}'), 408),
        (request("POST", WAIT, TYPE, body=b'{"pattern": "x", "timeout_s": 1e999}'), 400),
        (request("POST", WAIT, TYPE, body=b'{"pattern": "x", "since": ' + b"9" * 4000 + b"}"), 400),
        (request("POST", WAIT, TYPE, body=b'{"pattern": "x", "since": ' + b"9" * 5000 + b"}"), 400),
        (request("POST", FLASH, "Content-Type: multipart/form-data; boundary=x", body=b"x"), 415),
        (request("POST", FLASH, "Content-Encoding: gzip", body=b"x"), 415),
        (request("POST", FLASH, f"Content-Type: {BYTES}", body=b"\n" * 500000), 400),
        (request("GET", "/static/0"), 404),
        (request("GET", "/static/%00"), 404),
        (request("GET", "/static/vendor"), 404),
        (request("GET", "/static/" + "a" * 5000), 404),
        (request("TRACE", PORTS, TYPE, body=b"x"), 405),
        (request("TRACE", PORTS, body=b"x"), 405),
        (request("CONNECT", "localhost:80"), 404),
        (request("OPTIONS", "*"), 404),
        (request("GET", "/metrics", "Accept: application/openmetrics-text; version=x"), 200),
        (request("GET", PORTS, "Expect: \xff"), 417),
        (request("GET", f"{PORTS}/desk/console", "Upgrade: \xff", "Connection: Upgrade"), 426),
        (request("GET", f"{PORTS}/desk/tail?bytes=%ff"), 400),
        (request("GET", f"{PORTS}/desk/tail?" + "bytes=1&" * 900), 200),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_earlier_findings_stay_mended(tmp_path: Path, case: HttpCase, status: int) -> None:
    async with http_fuzz_world(tmp_path, TOKEN if status == 401 else None) as world:
        await world.play(case)
        assert world.statuses == {status: 1}


async def test_a_reader_of_an_event_stream_that_leaves_is_not_an_error(tmp_path: Path) -> None:
    async with http_fuzz_world(tmp_path, None) as world:
        for _ in range(5):
            await world.play(request("GET", "/api/v1/events"))
            await asyncio.sleep(0.3)  # the next look at the ports finds it gone
