"""What a board has said, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.config.document import ConnectionLimits, Recording
from gateway.web import http_answers, output_api
from tests.support.http_lab import (
    Answered,
    HttpClient,
    Lab,
    from_address,
    http_client,
    http_server,
    running,
)
from tests.support.pty_board import PtyBoard, Served, serving, until


async def say(board: PtyBoard, served: Served, data: bytes) -> None:
    end = served.port.recorder.end + len(data)
    await board.write(data)
    await until(lambda: served.port.recorder.end >= end)


async def test_the_last_output_is_shown_with_times(lab: Lab) -> None:
    before = datetime.now(UTC)
    await say(lab.board, lab.served, b"boot\r\n\xff")
    shown = (await lab.client.get("/api/v1/ports/desk/tail")).content
    assert shown["next"] == 7
    assert "".join(entry["data"] for entry in shown["entries"]) == "boot\r\n\ufffd"
    whole = b"".join(base64.b64decode(entry["base64"]) for entry in shown["entries"])
    assert whole == b"boot\r\n\xff"
    [first, *_] = shown["entries"]
    assert first["seq"] == 0
    age_s = (datetime.fromisoformat(first["time"]) - before).total_seconds()
    assert -1 < age_s < 60


async def test_only_the_last_bytes_are_shown_if_asked(lab: Lab) -> None:
    await say(lab.board, lab.served, b"0123456789")
    shown = (await lab.client.get("/api/v1/ports/desk/tail?bytes=3")).content
    assert [entry["data"] for entry in shown["entries"]] == ["789"]
    assert (shown["entries"][0]["seq"], shown["next"]) == (7, 10)
    none = (await lab.client.get("/api/v1/ports/desk/tail?bytes=0")).content
    assert none == {"entries": [], "next": 10}


async def test_it_is_followed_from_position_to_position(lab: Lab) -> None:
    await say(lab.board, lab.served, b"0123456789")
    seen, next_seq = "", 0
    while next_seq < 10:
        path = f"/api/v1/ports/desk/tail?since={next_seq}&bytes=4"
        shown = (await lab.client.get(path)).content
        seen += "".join(entry["data"] for entry in shown["entries"])
        next_seq = shown["next"]
    assert seen == "0123456789"
    ahead = (await lab.client.get("/api/v1/ports/desk/tail?since=99")).content
    assert ahead == {"entries": [], "next": 10}


async def test_output_that_is_no_longer_kept_is_missing(board: PtyBoard) -> None:
    async with (
        serving(board, recording=Recording(record_kib=1)) as served,
        http_client(running(served)) as client,
    ):
        await say(board, served, b"x" * 2000)
        shown = (await client.get("/api/v1/ports/desk/tail?since=0")).content
        assert shown["entries"][0]["seq"] == 2000 - 1024
        assert shown["next"] == 2000


@pytest.mark.parametrize(
    "query", ["bytes=-1", "bytes=1048577", "bytes=x", "since=1.5", "since=", "since=%D9%A3"]
)
async def test_anything_but_a_number_is_an_error(query: str, lab: Lab) -> None:
    answered = await lab.client.get(f"/api/v1/ports/desk/tail?{query}")
    assert answered.status == 400
    assert "must be a number from 0 to" in answered.error


async def test_the_log_is_a_file(lab: Lab) -> None:
    await say(lab.board, lab.served, b"boot\r\n\xff")
    log = await lab.client.get("/api/v1/ports/desk/log")
    assert log.body == b"boot\r\n\xff"
    assert log.headers["content-disposition"] == 'attachment; filename="desk.log"'
    assert log.headers["content-type"] == "text/plain; charset=utf-8"


async def test_a_large_tail_and_log_are_sent_a_part_at_a_time(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_api, "_PART_BYTES", 1000)
    data = bytes(range(256)) * 40
    for at in range(0, len(data), 500):
        await say(lab.board, lab.served, data[at : at + 500])
    shown = (await lab.client.get("/api/v1/ports/desk/tail?bytes=100000")).content
    entries = shown["entries"]
    assert b"".join(base64.b64decode(entry["base64"]) for entry in entries) == data
    assert [entry["seq"] for entry in entries] == [
        sum(len(base64.b64decode(each["base64"])) for each in entries[:number])
        for number in range(len(entries))
    ]
    assert shown["next"] == len(data)
    assert (await lab.client.get("/api/v1/ports/desk/log")).body == data


async def test_a_log_that_the_board_overtakes_breaks_off_instead_of_having_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_api, "_PART_BYTES", 100_000)
    with PtyBoard(tmp_path) as board:
        recording = Recording(record_kib=4096)
        async with (
            serving(board, recording=recording) as served,
            http_client(running(served)) as client,
        ):
            recorder = served.port.recorder
            recorder.record(0.0, b"x" * (4096 << 10))
            reader, writer = await asyncio.open_connection("127.0.0.1", client.tcp_port, limit=1024)
            writer.write(b"GET /api/v1/ports/desk/log HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            recorder.record(1.0, b"y" * (4096 << 10))
            got = b""
            with contextlib.suppress(ConnectionError):
                while chunk := await reader.read(65536):
                    got += chunk
            assert len(got) < 4096 << 10
            assert b"y" not in got
            writer.close()


async def test_a_client_that_does_not_read_a_long_answer_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_answers, "_WRITE_LIMIT_S", 0.05)
    with PtyBoard(tmp_path) as board:
        async with (
            serving(board, recording=Recording(record_kib=16384)) as served,
            http_server(running(served)) as server,
        ):
            served.port.recorder.record(0.0, b"x" * (16384 << 10))
            with (
                capture_logs() as logs,
                socket.create_connection(("127.0.0.1", server.tcp_port or 0)) as client,
            ):
                client.sendall(b"GET /api/v1/ports/desk/log HTTP/1.1\r\nHost: localhost\r\n\r\n")
                aiohttp_server = server._runner.server
                assert aiohttp_server is not None
                await until(lambda: aiohttp_server.connections)
                await until(lambda: not aiohttp_server.connections)
            assert [each["event"] for each in logs] == []


async def wait(client: HttpClient, pattern: str, **options: object) -> Answered:
    return await client.post("/api/v1/ports/desk/wait", {"pattern": pattern, **options})


async def test_a_wait_ends_with_a_match_in_later_output(lab: Lab) -> None:
    await say(lab.board, lab.served, b"ready 1\r\n")
    waiting = asyncio.create_task(wait(lab.client, r"ready (\d)\r"))
    await until(lambda: lab.served.port.recorder._followers)
    assert not waiting.done()
    await say(lab.board, lab.served, b"rea")
    await say(lab.board, lab.served, b"dy 2\r\n")
    found = (await waiting).content
    assert found == {"match": "ready 2\r", "groups": ["2"], "seq": 9, "next": 17}
    assert not lab.served.port.recorder._followers


async def test_output_since_a_position_counts_as_well(lab: Lab) -> None:
    await say(lab.board, lab.served, b"one\r\ntwo\r\n")
    assert (await wait(lab.client, r"\w+\r", since=0)).content["match"] == "one\r"
    assert (await wait(lab.client, r"\w+\r", since=4)).content["match"] == "two\r"


async def test_no_match_in_time_is_a_408(lab: Lab) -> None:
    answered = await wait(lab.client, "ready", timeout_s=0.01)
    assert answered.status == 408
    assert answered.error == "desk: no match within 0.01 s"
    assert not lab.served.port.recorder._followers


async def test_an_expression_without_end_delays_no_other_request(lab: Lab) -> None:
    await say(lab.board, lab.served, b"a" * 60)
    waiting = asyncio.create_task(wait(lab.client, "(a+)+b", since=0, timeout_s=3))
    await until(lambda: lab.served.port.recorder._followers)
    while not waiting.done():
        assert (await lab.client.get("/api/v1/ports")).status == 200
    assert (await waiting).status == 408


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({}, "pattern must be a regular expression of 1 to 1000 characters"),
        ({"pattern": ""}, "pattern must be a regular expression of 1 to 1000 characters"),
        ({"pattern": 7}, "pattern must be a regular expression of 1 to 1000 characters"),
        ({"pattern": "x" * 1001}, "pattern must be a regular expression of 1 to 1000 characters"),
        ({"pattern": "("}, "not a regular expression: missing ), unterminated subpattern"),
        ({"pattern": "x", "timeout_s": 601}, "timeout_s must be a number from 0 to 600"),
        ({"pattern": "x", "timeout_s": True}, "timeout_s must be a number from 0 to 600"),
        ({"pattern": "x", "since": "1"}, "since must be a number from 0 to"),
        ({"pattern": "x", "sinse": 1}, "unknown key 'sinse'"),
    ],
)
async def test_a_wrong_wait_is_an_error(content: dict[str, Any], error: str, lab: Lab) -> None:
    answered = await lab.client.post("/api/v1/ports/desk/wait", content)
    assert answered.status == 400
    assert answered.error.startswith(error)


async def test_waits_are_bounded_over_all_and_for_each_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_api, "WAIT_LIMITS", ConnectionLimits(2, 1))
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            waiting = asyncio.create_task(wait(client, "ready"))
            await until(lambda: served.port.recorder._followers)
            assert (await wait(client, "ready")).status == 429
            async with (
                from_address("127.0.0.2", client) as other,
                from_address("127.0.0.3", client) as third,
            ):
                second = asyncio.create_task(wait(other, "ready"))
                await until(lambda: len(served.port.recorder._followers) == 2)
                assert (await wait(third, "ready")).status == 503
                await say(board, served, b"ready")
                assert (await second).status == 200
            assert (await waiting).status == 200
            assert (await wait(client, "ready", since=0)).status == 200


async def test_a_wait_does_not_keep_the_server_from_stopping(board: PtyBoard) -> None:
    async with serving(board) as served:
        async with http_client(running(served)) as client:
            waiting = asyncio.create_task(wait(client, "ready"))
            await until(lambda: served.port.recorder._followers)
        await asyncio.wait({waiting})
        answered = waiting.exception() or waiting.result().error
        assert isinstance(answered, Exception) or answered == "the gateway is shutting down"
        assert not served.port.recorder._followers


async def test_a_wait_ends_when_its_client_disconnects(lab: Lab) -> None:
    waiting = asyncio.create_task(wait(lab.client, "ready"))
    await until(lambda: lab.served.port.recorder._followers)
    waiting.cancel()
    await until(lambda: not lab.served.port.recorder._followers)
