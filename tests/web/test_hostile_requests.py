"""Whatever a client sends is answered, and is no fault in the log or of the event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.web import output_api
from tests.support.http_fuzz import TOKEN, HttpCase, http_fuzz_world, make_http_case

#: Of the cases of `make fuzz`, enough for each kind to be among them.
CASES = 400


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
    case = request("GET", "/api/v1/ports/desk/tail")
    with pytest.raises(AssertionError, match="planted"):
        async with http_fuzz_world(tmp_path, None) as world:
            await world.play(case)


def request(method: str, target: str, *headers: str, body: bytes = b"") -> HttpCase:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return HttpCase((head + body,), is_whole=True)


JSON = "Content-Type: application/json"
WAIT = "/api/v1/ports/desk/wait"
FLASH = "/api/v1/ports/desk/flash"


@pytest.mark.parametrize(
    ("case", "status"),
    [
        (request("POST", "/api/v1/ports/desk/reset", "Authorization: Bearer \xff"), 401),
        (request("POST", WAIT, JSON, body=b'{"pattern": "\\ud800"}'), 400),
        (request("POST", WAIT, JSON, body=b'{"pattern": "\\u0000", "timeout_s": 0}'), 408),
        (request("POST", WAIT, JSON, body=b'{"pattern": "(", "timeout_s": 0}'), 408),
        (request("POST", WAIT, JSON, body=b'{"pattern": "x", "timeout_s": 1e999}'), 400),
        (request("POST", WAIT, JSON, body=b'{"pattern": "x", "since": ' + b"9" * 4000 + b"}"), 400),
        (request("POST", WAIT, JSON, body=b'{"pattern": "x", "since": ' + b"9" * 5000 + b"}"), 400),
        (request("POST", FLASH, "Content-Type: multipart/form-data; boundary=x", body=b"x"), 415),
        (request("POST", FLASH, "Content-Encoding: gzip", body=b"x"), 415),
        (
            request("POST", FLASH, "Content-Type: application/octet-stream", body=b"\n" * 500000),
            400,
        ),
        (request("GET", "/static/0"), 404),
        (request("GET", "/static/%00"), 404),
        (request("GET", "/static/vendor"), 404),
        (request("GET", "/static/" + "a" * 5000), 404),
        (request("TRACE", "/api/v1/ports", JSON, body=b"x"), 405),
        (request("TRACE", "/api/v1/ports", body=b"x"), 405),
        (request("CONNECT", "localhost:80"), 404),
        (request("OPTIONS", "*"), 404),
        (request("GET", "/metrics", "Accept: application/openmetrics-text; version=x"), 200),
        (request("GET", "/api/v1/ports", "Expect: \xff"), 417),
        (request("GET", "/api/v1/ports/desk/console", "Upgrade: \xff", "Connection: Upgrade"), 426),
        (request("GET", "/api/v1/ports/desk/tail?bytes=%ff"), 400),
        (request("GET", "/api/v1/ports/desk/tail?" + "bytes=1&" * 900), 200),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_what_was_found_once_stays_mended(
    tmp_path: Path, case: HttpCase, status: int
) -> None:
    async with http_fuzz_world(tmp_path, TOKEN if status == 401 else None) as world:
        await world.play(case)
        assert world.statuses == {status: 1}


async def test_a_reader_of_an_event_stream_that_leaves_is_not_an_error(tmp_path: Path) -> None:
    async with http_fuzz_world(tmp_path, None) as world:
        for _ in range(5):
            await world.play(request("GET", "/api/v1/events"))
            await asyncio.sleep(0.3)  # the next look at the ports finds it gone
