"""`POST /api/ports/{name}/flash`: what is taken and refused, and how it is told how it goes."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import gateway.flash.store
from gateway.config.choices import Sharing
from gateway.flash.esptool_process import COMMAND_VARIABLE
from gateway.flash.plan import MAX_BYTES, FlashImage, FlashPlan
from tests.support.fake_esptool import HANGS, WRITES, FakeEsptool
from tests.support.http_lab import (
    Answered,
    check_schema,
    client_of,
    http_client,
    http_server,
    running,
)
from tests.support.pty_board import PtyBoard, serving, until
from tests.support.tcp_client import GREETING, TcpClient

PATH = "/api/ports/desk/flash"
DATA = bytes(range(256)) * 128
IMAGE = FlashImage(0x1000, len(DATA), hashlib.sha256(DATA).hexdigest(), "app.bin")
PLAN = FlashPlan((IMAGE,), label="ann@desk")
EVENT = {"$ref": "#/components/schemas/flash_event"}


@pytest.fixture
def fake(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeEsptool]:
    fake = FakeEsptool(tmp_path, getattr(request, "param", WRITES))
    monkeypatch.setenv(COMMAND_VARIABLE, fake.command)
    images = tmp_path / "images"
    images.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(images))
    yield fake
    assert not list(images.iterdir())


def form(plan: str | None = None, *parts: tuple[str, bytes]) -> aiohttp.MultipartWriter:
    writer = aiohttp.MultipartWriter("form-data")
    for name, data in (("plan", (plan or PLAN.to_json()).encode()), *parts):
        writer.append(data).set_content_disposition("form-data", name=name)
    return writer


def right() -> aiohttp.MultipartWriter:
    return form(None, ("0x1000", DATA))


def events_of(answered: Answered) -> list[dict[str, Any]]:
    assert answered.status == 200
    assert answered.headers["content-type"] == "application/x-ndjson"
    events = [json.loads(line) for line in answered.body.splitlines()]
    for event in events:
        check_schema(event, EVENT)
    return events


async def test_images_are_written_and_each_event_is_a_line(
    tmp_path: Path, fake: FakeEsptool
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            events = events_of(await client.post(PATH, data=right()))
            kinds = [event["event"] for event in events if event["event"] != "line"]
            assert kinds[:3] == ["port", "started", "chip"]
            assert kinds[-2:] == ["verified", "done"]
            assert events[-1] == {
                "event": "done",
                "outcome": "written",
                "exit_code": 0,
                "message": "",
                "verified": 1,
            }
            await served.until_idle()


async def test_images_may_come_in_any_order(tmp_path: Path, fake: FakeEsptool) -> None:
    other = replace(IMAGE, offset=0x20000)
    plan = FlashPlan((other, IMAGE))
    body = form(plan.to_json(), ("0x20000", DATA), ("4096", DATA))
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            events_of(await client.post(PATH, data=body))
            assert fake.arguments[-4:] == ["0x1000", "0x1000.bin", "0x20000", "0x20000.bin"]


@pytest.mark.parametrize(
    ("body", "outcome", "reason"),
    [
        (form("{}"), "wrong-input", "the plan has to be a JSON object"),
        (form("x" * 70000), "wrong-input", "the plan has more than 65536 bytes"),
        (
            form(FlashPlan((replace(IMAGE, size=MAX_BYTES + 1),)).to_json()),
            "wrong-input",
            f"at most {MAX_BYTES} are accepted",
        ),
        (form(None, ("0x1000", DATA[:-1] + b"!")), "not-stored", "damaged on its way"),
        (form(None, ("0x1000", DATA + b"!")), "not-stored", "more than its 32768 bytes"),
        (form(None, ("0x1000", DATA[:5])), "not-stored", "5 of its 32768 bytes came"),
        (form(None, ("0x2000", DATA)), "not-stored", "part '0x2000' is none of the plan's"),
        (form(None), "not-stored", "there is no part 0x1000"),
    ],
)
async def test_what_is_not_right_is_refused_before_the_port_is_touched(
    tmp_path: Path, fake: FakeEsptool, body: aiohttp.MultipartWriter, outcome: str, reason: str
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            answered = await client.post(PATH, data=body)
            assert (answered.status, answered.content["outcome"]) == (400, outcome)
            assert reason in answered.error
            assert served.device.sessions == 0


@pytest.mark.parametrize("body", [b"", b"nonsense", b"--x\r\n\r\n", b"--x--\r\n", b"\r\n" * 100])
async def test_any_body_is_refused_in_one_line(
    tmp_path: Path, fake: FakeEsptool, body: bytes
) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            answered = await client.post(PATH, data=body, headers=headers)
            assert answered.status == 400
            assert "\n" not in answered.error


async def test_what_is_no_form_is_refused(tmp_path: Path, fake: FakeEsptool) -> None:
    async with http_client([]) as client:
        assert (await client.post(PATH, {"force": True})).status == 415
        assert (await client.post(PATH, data=right())).status == 404


async def test_a_port_that_is_in_use_stays_with_its_client(
    tmp_path: Path, fake: FakeEsptool
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            with await TcpClient.connect(served.tcp_port) as tcp_client:
                await tcp_client.receive_wire(GREETING)
                answered = await client.post(PATH, data=right())
                assert (answered.status, answered.content["outcome"]) == (409, "busy")
                assert answered.error.startswith(f"desk: in use by {tcp_client.name} since")
                assert not fake.has_begun
                events = events_of(await client.post(f"{PATH}?force=1", data=right()))
                assert events[-1]["outcome"] == "written"
            await served.until_idle()


async def test_a_monitor_of_a_preempt_port_is_told_and_goes_on(
    tmp_path: Path, fake: FakeEsptool
) -> None:
    with PtyBoard(tmp_path) as board:
        async with (
            serving(board, sharing=Sharing.PREEMPT) as served,
            http_client(running(served)) as client,
        ):
            with await TcpClient.connect(served.tcp_port) as monitor:
                await monitor.receive_wire(GREETING)
                assert events_of(await client.post(PATH, data=right()))[-1]["outcome"] == "written"
                await monitor.receive(lambda: b"yours again" in monitor.data)
                assert b"esptool for ann@desk at 127.0.0.1:" in monitor.data
                await board.write(b"the new app")
                await monitor.receive(lambda: b"the new app" in monitor.data)
            await served.until_idle()


@pytest.mark.parametrize("fake", [HANGS], indirect=True)
async def test_a_second_flasher_is_told_who_the_first_is(tmp_path: Path, fake: FakeEsptool) -> None:
    with PtyBoard(tmp_path) as board:
        async with (
            serving(board, sharing=Sharing.TAKEOVER) as served,
            http_client(running(served)) as client,
        ):
            first = asyncio.ensure_future(client.post(PATH, data=right()))
            await until(lambda: fake.has_begun)
            second = await client.post(f"{PATH}?force=1", data=right())
            assert (second.status, second.content["outcome"]) == (409, "busy")
            assert second.error.startswith("desk: being flashed by ann@desk at 127.0.0.1:")
            assert fake.runs
            await end(first, served)


@pytest.mark.parametrize("fake", [HANGS], indirect=True)
async def test_when_the_client_goes_esptool_ends_and_the_port_is_free(
    tmp_path: Path, fake: FakeEsptool
) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            flashing = asyncio.ensure_future(client.post(PATH, data=right()))
            await until(lambda: fake.has_begun)
            await end(flashing, served)
            assert not fake.runs


@pytest.mark.parametrize("fake", [HANGS], indirect=True)
async def test_when_the_gateway_stops_esptool_ends(tmp_path: Path, fake: FakeEsptool) -> None:
    with PtyBoard(tmp_path) as board:
        async with (
            serving(board) as served,
            http_server(running(served)) as server,
            client_of(server) as client,
        ):
            flashing = asyncio.ensure_future(client.post(PATH, data=right()))
            await until(lambda: fake.has_begun)
            await server.stop()
            assert not fake.runs
            await served.until_idle()
            last = events_of(await flashing)[-1]
            assert last["outcome"] == "incomplete"
            assert "shutting down" in last["message"]


async def end(flashing: asyncio.Future[Answered], served: Any) -> None:
    """Hang up."""
    flashing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flashing
    await served.until_idle()


async def test_a_client_is_told_that_the_gateway_lives(
    tmp_path: Path, fake: FakeEsptool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.web.flash._ALIVE_S", 0.01)
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            events = events_of(await client.post(PATH, data=right()))
            assert {"event": "alive"} in events
            assert events[-1]["outcome"] == "written"


async def test_a_full_disk_is_told(
    tmp_path: Path, fake: FakeEsptool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(gateway.flash.store._Writer, "write", full)
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            answered = await client.post(PATH, data=right())
            assert (answered.status, answered.content["outcome"]) == (507, "not-stored")
            assert "No space left on device" in answered.error
            assert served.device.sessions == 0


async def test_without_esptool_it_is_said_before_the_images_come(
    tmp_path: Path, fake: FakeEsptool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMAND_VARIABLE, str(tmp_path / "nothing"))
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            answered = await client.post(PATH, data=right())
            assert (answered.status, answered.content["outcome"]) == (501, "no-esptool")


async def test_images_that_do_not_come_are_not_waited_for(
    tmp_path: Path, fake: FakeEsptool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.web.flash._CHUNK_LIMIT_S", 0.2)
    body = right()
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served)) as client:
            reader, writer = await asyncio.open_connection("127.0.0.1", client.tcp_port)
            try:
                head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000\r\n"
                kind = f"Content-Type: multipart/form-data; boundary={body.boundary}\r\n\r\n"
                plan = "Content-Disposition: form-data; name=plan\r\n\r\n" + PLAN.to_json()
                writer.write(f"{head}{kind}--{body.boundary}\r\n{plan}\r\n".encode())
                answer = await reader.readuntil(b"}\n")
                assert b" 400 " in answer.partition(b"\r\n")[0]
                assert b"did not come in time" in answer
            finally:
                writer.close()
                await writer.wait_closed()


async def test_a_token_is_needed_where_there_is_one(tmp_path: Path, fake: FakeEsptool) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served, http_client(running(served), "a" * 20) as client:
            assert (await client.post(PATH, data=right())).status == 401
            headers = {"Authorization": "Bearer " + "a" * 20}
            events_of(await client.post(PATH, data=right(), headers=headers))
