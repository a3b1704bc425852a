"""The ports as JSON, and the stream of their changes and output."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.config.document import ConnectionLimits
from gateway.running_port import RunningPort
from gateway.web import ports_api as events
from tests.support.http_lab import (
    HttpClient,
    Lab,
    check_schema,
    client_of,
    from_address,
    http_client,
    http_server,
    running,
)
from tests.support.pty_board import PtyBoard, serving, until
from tests.support.tcp_client import GREETING, TcpClient


async def test_all_ports_are_shown_in_their_order(lab: Lab) -> None:
    shown = (await lab.client.get("/api/v1/ports")).content
    assert (shown["version"], shown["not_served"]) == ("1.2.3", [])
    [desk] = shown["ports"]
    assert (desk["name"], desk["state"]) == ("desk", "idle")
    assert desk["tcp_port"] == lab.served.tcp_port
    assert (await lab.client.get("/api/v1/ports/desk")).content == desk


async def test_usb_devices_without_a_port_are_shown() -> None:
    note = {"10c4:ea60 CP2102 at 1-1": "no tty: claimed by brltty"}
    async with http_client([], not_served=note) as client:
        shown = (await client.get("/api/v1/ports")).content
    assert shown["not_served"] == [
        {"device": "10c4:ea60 CP2102 at 1-1", "reason": "no tty: claimed by brltty"}
    ]


async def test_a_port_that_is_not_there_is_a_404_with_one_line(tmp_path: Path) -> None:
    async with http_client([]) as client:
        assert (await client.get("/api/v1/ports")).content["ports"] == []
        answered = await client.get("/api/v1/ports/desk")
        assert answered.status == 404
        assert answered.error == "there is no port 'desk'"


# --- events


class Stream:
    """A client of the stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.ports: list[dict[str, Any]] = []  # as sent last

    async def block(self) -> str:
        """The next event or comment."""
        return (await self.response.content.readuntil(b"\n\n")).decode()

    async def next(self, wanted: str) -> Any:
        """The content of the next event of that name; others are read over."""
        while True:
            name, _, data = (await self.block()).partition("\n")
            if name.startswith(":"):
                continue
            name = name.removeprefix("event: ")
            content = json.loads(data.strip().removeprefix("data: "))
            check_schema(content, {"$ref": f"#/components/schemas/{name}"})
            self.ports = content.get("ports", self.ports)
            if name == wanted:
                return content


@asynccontextmanager
async def listening(client: HttpClient) -> AsyncIterator[Stream]:
    async with client.session.get(f"{client.url}/api/v1/events") as response:
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream"
        yield Stream(response)


async def test_the_ports_are_sent_at_once_and_when_they_change(lab: Lab) -> None:
    async with listening(lab.client) as stream:
        [desk] = (await stream.next("ports"))["ports"]
        assert (desk["name"], desk["state"]) == ("desk", "idle")
        with await TcpClient.connect(lab.served.tcp_port) as user:
            await user.receive_wire(GREETING)
            [desk] = (await stream.next("ports"))["ports"]
            assert (desk["state"], desk["clients"][0]["address"]) == ("in use", user.name)
        while desk["state"] != "idle":
            [desk] = (await stream.next("ports"))["ports"]


async def test_output_is_sent_and_then_the_counters(lab: Lab) -> None:
    async with listening(lab.client) as stream:
        await stream.next("ports")
        await lab.board.write(b"boot\xff\r\n")
        said = ""
        while not said.endswith("\n"):
            output = await stream.next("output")
            assert output["name"] == "desk"
            assert output["seq"] == len(said)
            said += output["data"]
        assert said == "boot\ufffd\r\n"
        while stream.ports[0]["received_bytes"] != 7:
            await stream.next("ports")


async def test_earlier_output_is_not_sent(lab: Lab) -> None:
    await lab.board.write(b"before")
    await until(lambda: lab.served.port.recorder.end == 6)
    async with listening(lab.client) as stream:
        await stream.next("ports")
        await lab.board.write(b"after")
        assert (await stream.next("output"))["seq"] == 6


async def test_the_end_of_a_flood_is_sent(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_OUTPUT_BYTES", 10)
    async with listening(lab.client) as stream:
        await stream.next("ports")
        await lab.board.write(b"x" * 5000 + b"0123456789")
        await until(lambda: lab.served.port.recorder.end == 5010)
        output = await stream.next("output")
        while output["seq"] + len(output["data"]) < 5010:
            output = await stream.next("output")
        assert output["data"] == "0123456789"


async def test_a_comment_is_sent_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_SILENCE_S", 0.01)
    async with http_client([]) as client, listening(client) as stream:
        await stream.next("ports")
        assert await stream.block() == ": nothing new\n\n"


async def test_ports_are_described_only_for_a_client() -> None:
    async with http_server([]) as server, client_of(server) as client:
        [shared] = [
            value for value in server._runner.app.values() if isinstance(value, events.Events)
        ]
        async with listening(client) as stream, listening(client) as other:
            await stream.next("ports")
            await other.next("ports")
            assert shared._task is not None
        await until(lambda: shared._task is None)
        async with listening(client) as stream:
            await stream.next("ports")


async def test_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "STREAM_LIMITS", ConnectionLimits(2, 1))
    async with http_client([]) as client, listening(client) as stream:
        await stream.next("ports")
        answered = await client.get("/api/v1/events")
        assert (answered.status, answered.error) == (
            429,
            "1 streams of events of this address are open already",
        )
        async with from_address("127.0.0.2", client) as other, listening(other) as second:
            await second.next("ports")
            async with from_address("127.0.0.3", client) as third:
                answered = await third.get("/api/v1/events")
                assert (answered.status, answered.error) == (
                    503,
                    "2 streams of events are open already",
                )
        async with from_address("127.0.0.3", client) as third:
            await until_listening(third)


async def until_listening(client: HttpClient) -> None:
    """Listen, as soon as the one before has been noticed to be gone."""
    while True:
        async with client.session.get(f"{client.url}/api/v1/events") as response:
            if response.status == 200:
                return


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_UNSENT_BYTES", 10_000)
    async with http_server([]) as server, client_of(server) as client:
        [shared] = [
            value for value in server._runner.app.values() if isinstance(value, events.Events)
        ]
        reader, writer = await asyncio.open_connection("127.0.0.1", client.tcp_port, limit=1024)
        writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        [listener] = shared._clients
        while shared._clients:
            listener.add(b"x" * 9000)
            await asyncio.sleep(0)
        writer.close()


async def test_streams_do_not_keep_the_server_from_stopping() -> None:
    async with (
        http_server([]) as server,
        client_of(server) as client,
        listening(client) as stream,
    ):
        await stream.next("ports")
        await server.stop()
        assert await stream.response.content.read() == b""


async def test_ports_that_are_added_and_removed_are_followed(tmp_path: Path) -> None:
    ports: list[RunningPort] = []
    with PtyBoard(tmp_path) as board:
        async with (
            serving(board) as served,
            http_client(ports) as client,
            listening(client) as stream,
        ):
            assert (await stream.next("ports"))["ports"] == []
            ports += running(served)
            assert len((await stream.next("ports"))["ports"]) == 1
            await board.write(b"hello")
            assert (await stream.next("output"))["data"].startswith("h")
            ports.clear()
            while (await stream.next("ports"))["ports"]:
                pass
