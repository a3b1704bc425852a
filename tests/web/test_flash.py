"""`POST /api/v1/ports/{name}/flash`: what is taken and refused, and how it is told how it goes."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.config.document import Sharing
from gateway.flash.esptool import COMMAND_VARIABLE
from gateway.flash.plan import MAX_BYTES, FlashImage, FlashOptions, FlashPlan
from tests.support.fake_esptool import HANGS, WRITES, FakeEsptool
from tests.support.http_lab import (
    Answered,
    HttpClient,
    Lab,
    check_schema,
    client_of,
    http_client,
    http_server,
    running,
)
from tests.support.images import ESP32, image_of
from tests.support.pty_board import PtyBoard, serving, until
from tests.support.tcp_client import GREETING, TcpClient

PATH = "/api/v1/ports/desk/flash"
DATA = image_of(ESP32, 32768)
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


def body(plan: str | None = None, *images: bytes) -> bytes:
    return b"".join(((plan or PLAN.to_json()).encode(), b"\n", *images))


RIGHT = body(None, DATA)
KIND = {"Content-Type": "application/octet-stream"}


async def post(
    client: HttpClient, data: bytes = RIGHT, query: str = "", **headers: str
) -> Answered:
    return await client.post(PATH + query, data=data, headers={**KIND, **headers})


def events_of(answered: Answered) -> list[dict[str, Any]]:
    assert answered.status == 200
    assert answered.headers["content-type"] == "application/x-ndjson"
    events = [json.loads(line) for line in answered.body.splitlines()]
    for event in events:
        check_schema(event, EVENT)
    return events


async def test_images_are_written_and_each_event_is_a_line(lab: Lab, fake: FakeEsptool) -> None:
    other = FlashImage(0x20000, 5, hashlib.sha256(b"other").hexdigest(), "other.bin")
    data = body(FlashPlan((IMAGE, other), label="ann@desk").to_json(), DATA, b"other")
    events = events_of(await post(lab.client, data))
    kinds = [event["event"] for event in events if event["event"] != "line"]
    assert kinds[:3] == ["port", "started", "chip"]
    assert kinds[-2:] == ["verified", "done"]
    done = {"event": "done", "outcome": "written", "exit_code": 0, "message": "", "verified": 1}
    assert events[-1] == done  # the fake verifies the first only
    assert fake.arguments[-4:] == ["0x1000", "0x1000.bin", "0x20000", "0x20000.bin"]
    assert fake.arguments[fake.arguments.index("--chip") + 1] == "esp32"
    await lab.served.until_idle()


async def test_what_can_t_be_meant_is_refused_unless_it_is_forced(
    lab: Lab, fake: FakeEsptool
) -> None:
    data = b"This is no image."
    image = FlashImage(0x0, len(data), hashlib.sha256(data).hexdigest(), "text.txt")
    answered = await post(lab.client, body(FlashPlan((image,)).to_json(), data))
    assert (answered.status, answered.content["outcome"]) == (422, "refused")
    assert answered.error.startswith("text.txt at 0x0 is not an image: ")
    assert answered.error.endswith("Use --force to flash anyway.")
    assert lab.served.port.sessions == 0
    forced = FlashPlan((image,), FlashOptions(force=True))
    assert events_of(await post(lab.client, body(forced.to_json(), data)))[-1]["verified"] == 1
    assert "--force" in fake.arguments


@pytest.mark.parametrize("fake", [HANGS], indirect=True)
async def test_nothing_is_done_to_a_board_that_is_being_flashed(
    board: PtyBoard, fake: FakeEsptool
) -> None:
    async with (
        serving(board, sharing=Sharing.SHARED) as served,
        http_client(running(served)) as client,
    ):
        flashing = asyncio.ensure_future(post(client))
        await until(lambda: fake.has_begun)
        before = len(board.lines)
        for name in ("reset", "bootloader", "disconnect", "release"):
            for content in ({}, {"force": True}):
                refused = await client.post(f"/api/v1/ports/desk/{name}", content)
                assert refused.status == 409
                assert refused.error.startswith("desk: being flashed by ann@desk at 127.0.0.1:")
        refused = await client.post("/api/v1/ports/desk/write?force=true", data=b"x", headers=KIND)
        assert refused.status == 409
        url = f"{client.url}/api/v1/ports/desk/console"
        async with client.session.ws_connect(url) as console:
            assert (await console.receive_json())["type"] == "granted"
            for command in (
                {"type": "reset"},
                {"type": "bootloader"},
                {"type": "break", "on": True},
                {"type": "lines", "dtr": True, "rts": True},
            ):
                await console.send_json(command)
                notice = await console.receive_json()
                assert notice["type"] == "refused"
                assert "the board is being flashed by ann@desk at" in notice["notice"]
        assert board.lines[before:] == []
        assert fake.runs
        await end(flashing, served)


async def test_a_board_whose_images_are_still_coming_can_be_reset(
    tmp_path: Path, fake: FakeEsptool
) -> None:
    with PtyBoard(tmp_path) as board:
        async with (
            serving(board) as served,
            http_server(running(served)) as server,
            client_of(server) as client,
        ):
            _, writer = await asyncio.open_connection("127.0.0.1", client.tcp_port)
            head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(RIGHT)}\r\n"
            writer.write(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode())
            writer.write(RIGHT[:-1])
            await until(lambda: list((tmp_path / "images").iterdir()))
            assert (await post(client)).status == 409
            assert (await client.post("/api/v1/ports/desk/reset", {})).status == 200
            writer.close()
            await writer.wait_closed()


async def in_pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize("size", [1000, 65536])
async def test_the_body_may_come_in_pieces_of_any_size_and_without_its_length(
    lab: Lab, fake: FakeEsptool, size: int
) -> None:
    pieces = in_pieces(RIGHT, size)
    events = events_of(await lab.client.post(PATH, data=pieces, headers=KIND))
    assert events[-1]["outcome"] == "written"
    for wrong in (RIGHT[:-1], RIGHT + b"!"):
        answered = await lab.client.post(PATH, data=in_pieces(wrong, size), headers=KIND)
        assert (answered.status, answered.content["outcome"]) == (400, "not-stored")


@pytest.mark.parametrize(
    ("data", "outcome", "reason"),
    [
        (b"", "wrong-input", "the first line has to be the plan: no line ends in the body"),
        (b"{}", "wrong-input", "the first line has to be the plan: no line ends in the body"),
        (b"\n", "wrong-input", "the plan is not JSON"),
        (b"\xff\n", "wrong-input", "the plan is not JSON: not UTF-8"),
        (b"--x\r\nContent-Disposition: form-data", "wrong-input", "the plan is not JSON"),
        (body("{}"), "wrong-input", "invalid plan: expected a JSON object"),
        (b"\n" * 100_000, "wrong-input", "the plan is not JSON"),
        (b"x" * 70000, "wrong-input", "the plan, which is the first line, has more than 65536"),
        (
            body("x" * 70000),
            "wrong-input",
            "the plan, which is the first line, has more than 65536",
        ),
        (
            body(FlashPlan((replace(IMAGE, size=MAX_BYTES + 1),)).to_json()),
            "wrong-input",
            f"expected at most {MAX_BYTES}",
        ),
        (
            body(FlashPlan((replace(IMAGE, offset=0x20000), IMAGE)).to_json(), DATA, DATA),
            "wrong-input",
            "images in wrong order",
        ),
        (body(None, DATA[:-1] + b"!"), "not-stored", "damaged on its way"),
        (
            body(None, DATA + b"!"),
            "not-stored",
            "32769 bytes follow the plan, whose images have 32768",
        ),
        (body(None, DATA[:5]), "not-stored", "5 bytes follow the plan, whose images have 32768"),
        (body(None), "not-stored", "0 bytes follow the plan, whose images have 32768"),
    ],
)
async def test_what_is_not_right_is_refused_before_the_port_is_touched(
    lab: Lab, fake: FakeEsptool, data: bytes, outcome: str, reason: str
) -> None:
    answered = await post(lab.client, data)
    assert (answered.status, answered.content["outcome"]) == (400, outcome)
    assert reason in answered.error
    assert lab.served.port.sessions == 0


@pytest.mark.parametrize(
    "kind",
    ["application/json", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"],
)
async def test_what_a_form_of_a_page_can_send_is_refused(fake: FakeEsptool, kind: str) -> None:
    async with http_client([]) as client:
        assert (await client.post(PATH, data=RIGHT, headers={"Content-Type": kind})).status == 415
        assert (await post(client)).status == 404
        assert (await post(client, query="?disconnect=1")).status == 404


async def test_disconnect_is_true_or_false(lab: Lab, fake: FakeEsptool) -> None:
    answered = await post(lab.client, query="?disconnect=1")
    assert (answered.status, answered.error) == (400, "disconnect must be true or false")


async def test_a_port_that_is_in_use_stays_with_its_client(lab: Lab, fake: FakeEsptool) -> None:
    with await TcpClient.connect(lab.served.tcp_port) as tcp_client:
        await tcp_client.receive_wire(GREETING)
        answered = await post(lab.client)
        assert (answered.status, answered.content["outcome"]) == (409, "busy")
        assert answered.error.startswith(f"desk: in use by {tcp_client.name} since")
        assert not fake.has_begun
        events = events_of(await post(lab.client, query="?disconnect=true"))
        assert events[-1]["outcome"] == "written"
    await lab.served.until_idle()


async def test_a_monitor_of_a_preempt_port_is_told_and_goes_on(
    board: PtyBoard, fake: FakeEsptool
) -> None:
    async with (
        serving(board, sharing=Sharing.PREEMPT) as served,
        http_client(running(served)) as client,
    ):
        with await TcpClient.connect(served.tcp_port) as monitor:
            await monitor.receive_wire(GREETING)
            assert events_of(await post(client))[-1]["outcome"] == "written"
            await monitor.receive(lambda: b"control returned to you" in monitor.data)
            assert b"esptool for ann@desk at 127.0.0.1:" in monitor.data
            await board.write(b"the new app")
            await monitor.receive(lambda: b"the new app" in monitor.data)
        await served.until_idle()


@pytest.mark.parametrize("fake", [HANGS], indirect=True)
async def test_a_second_flasher_is_told_who_the_first_is(
    board: PtyBoard, fake: FakeEsptool
) -> None:
    async with (
        serving(board, sharing=Sharing.TAKEOVER) as served,
        http_client(running(served)) as client,
    ):
        first = asyncio.ensure_future(post(client))
        await until(lambda: fake.has_begun)
        second = await post(client, query="?disconnect=true")
        assert (second.status, second.content["outcome"]) == (409, "busy")
        assert second.error.startswith("desk: being flashed by ann@desk at 127.0.0.1:")
        assert fake.runs
        await end(first, served)


@pytest.mark.parametrize("fake", [HANGS], indirect=True)
async def test_when_the_client_goes_esptool_ends_and_the_port_is_free(
    lab: Lab, fake: FakeEsptool
) -> None:
    flashing = asyncio.ensure_future(post(lab.client))
    await until(lambda: fake.has_begun)
    await end(flashing, lab.served)
    assert not fake.runs


@pytest.mark.parametrize("fake", [HANGS], indirect=True)
async def test_when_the_gateway_stops_esptool_ends(board: PtyBoard, fake: FakeEsptool) -> None:
    async with (
        serving(board) as served,
        http_server(running(served)) as server,
        client_of(server) as client,
    ):
        flashing = asyncio.ensure_future(post(client))
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
    lab: Lab, fake: FakeEsptool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.web.flash._ALIVE_S", 0.01)
    events = events_of(await post(lab.client))
    assert {"event": "alive"} in events
    assert events[-1]["outcome"] == "written"


async def test_a_full_disk_is_told(
    lab: Lab, fake: FakeEsptool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gateway.flash.store._write", full)
    answered = await post(lab.client)
    assert (answered.status, answered.content["outcome"]) == (507, "not-stored")
    assert "No space left on device" in answered.error
    assert lab.served.port.sessions == 0


async def test_without_esptool_it_is_said_before_the_images_come(
    lab: Lab, tmp_path: Path, fake: FakeEsptool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMAND_VARIABLE, str(tmp_path / "nothing"))
    answered = await post(lab.client)
    assert (answered.status, answered.content["outcome"]) == (501, "no-esptool")


async def test_images_that_do_not_come_are_not_waited_for(
    lab: Lab, fake: FakeEsptool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.web.flash._CHUNK_LIMIT_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.client.tcp_port)
    try:
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(RIGHT)}\r\n"
        writer.write(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode())
        writer.write(RIGHT[:1000])
        answer = await reader.readuntil(b"}\n")
        assert b" 400 " in answer.partition(b"\r\n")[0]
        assert b"did not arrive in time" in answer
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_token_is_needed_where_there_is_one(board: PtyBoard, fake: FakeEsptool) -> None:
    async with serving(board) as served, http_client(running(served), "a" * 20) as client:
        assert (await post(client)).status == 401
        events_of(await post(client, Authorization="Bearer " + "a" * 20))
