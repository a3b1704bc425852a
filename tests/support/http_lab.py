"""The HTTP server over ports of the test, and a client that holds every answer to openapi.yaml."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import aiohttp
import jsonschema

from gateway.config.document import HttpConfig
from gateway.net.access import AcceptOptions, Admission
from gateway.net.tls_context import TlsContext
from gateway.running_port import RunningPort
from gateway.web import http_answers
from gateway.web.http_access import Policy
from gateway.web.page import interface
from gateway.web.server import HttpServer
from tests.support.pty_board import PtyBoard, Served

INTERFACE = interface()

#: Test clients come from there.
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Answered:
    """What was answered; `content` is JSON read, or None if it is none."""

    status: int
    headers: dict[str, str]
    body: bytes
    content: Any = field(default=None)

    @property
    def error(self) -> str:
        """Why it was not done."""
        assert self.status >= 400
        return cast("str", self.content["error"])


class HttpClient:
    """Asks a server; each answer must be as the description of the interface says."""

    def __init__(self, session: aiohttp.ClientSession, tcp_port: int) -> None:
        self.tcp_port = tcp_port
        self.url = f"http://{LOOPBACK}:{tcp_port}"
        self.session = session

    async def get(self, path: str, **options: Any) -> Answered:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, content: object = None, **options: Any) -> Answered:
        """Post JSON, unless `options` say `data`."""
        if content is not None:
            options["json"] = content
        return await self.ask("POST", path, **options)

    async def ask(self, method: str, path: str, **options: Any) -> Answered:
        async with self.session.request(method, self.url + path, **options) as response:
            body = await response.read()
            headers = {name.lower(): value for name, value in response.headers.items()}
        is_json = headers.get("content-type", "").startswith("application/json")
        answered = Answered(response.status, headers, body, json.loads(body) if is_json else None)
        check(method, path.partition("?")[0], answered)
        return answered


@dataclass(frozen=True)
class Lab:
    """A port with its board, and a client of the HTTP server that serves it."""

    board: PtyBoard
    served: Served
    client: HttpClient


def check(method: str, path: str, answered: Answered) -> None:
    """Assert that an answer is one that the description names, with the content it names."""
    operation = operation_at(method, path)
    responses = operation["responses"] if operation else {}
    described = resolved(responses.get(str(answered.status)) or responses.get("default"))
    if described is None:
        # Not one of the interface's paths and methods.
        assert answered.status >= 400, f"{method} {path} is not described"
        described = INTERFACE["components"]["responses"]["error"]
    if answered.status in {204, 304} or method == "HEAD":
        return
    content_type = answered.headers["content-type"].partition(";")[0]
    content = described["content"]
    assert content_type in content or "*/*" in content, f"{method} {path}: {content_type}"
    schema = content.get(content_type, {}).get("schema")
    if schema is not None and content_type == "application/json":
        check_schema(answered.content, schema)


def check_schema(content: object, schema: dict[str, Any]) -> None:
    """Assert that content is what a schema of the description says."""
    whole = {**schema, "components": INTERFACE["components"]}
    jsonschema.Draft202012Validator(whole).validate(content)


def operation_at(method: str, path: str) -> dict[str, Any] | None:
    """What the description says of a method at a path."""
    for template, item in INTERFACE["paths"].items():
        wanted, found = template.split("/"), path.split("/")
        if template == "/static/{filename}":
            found = [*found[:2], "/".join(found[2:])] if len(found) > 2 else found
        if len(wanted) == len(found) and all(
            part == is_ or part.startswith("{") for part, is_ in zip(wanted, found, strict=True)
        ):
            operation: dict[str, Any] | None = item.get(method.lower())
            return operation
    return None


def resolved(part: Any) -> Any:
    """A part of the description, or what it refers to."""
    while part is not None and "$ref" in part:
        found: Any = INTERFACE
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        part = found
    return part


def running(*served: Served) -> list[RunningPort]:
    """The ports as the service has them."""
    return [RunningPort(each.listener._config, each.port, each.listener, None) for each in served]


@asynccontextmanager
async def http_server(
    ports: Sequence[RunningPort],
    token: str | None = None,
    config: HttpConfig | None = None,
    tls: TlsContext | None = None,
    admission: Admission | None = None,
    *,
    not_served: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[HttpServer]:
    """A server on a free port of loopback."""
    config = config or HttpConfig(LOOPBACK, 0)
    lab = http_answers.Lab(
        "1.2.3", lambda: ports, lambda: not_served, Policy(token, config.host_names)
    )
    server = HttpServer(config, lab, AcceptOptions(admission or Admission(), tls))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def http_client(
    ports: Sequence[RunningPort],
    token: str | None = None,
    not_served: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[HttpClient]:
    """A server on a free port of loopback and its client, who shows no token by itself."""
    async with (
        http_server(ports, token, not_served=not_served) as server,
        client_of(server) as client,
    ):
        yield client


@asynccontextmanager
async def client_of(server: HttpServer) -> AsyncIterator[HttpClient]:
    """A client of a server that runs."""
    assert server.tcp_port is not None
    async with aiohttp.ClientSession() as session:
        yield HttpClient(session, server.tcp_port)


async def exchange(tcp_port: int, data: bytes, *, to_end: bool = False) -> bytes:
    """Send bytes on a connection of their own; returns the first line of the answer, or all."""
    reader, writer = await asyncio.open_connection(LOOPBACK, tcp_port)
    try:
        writer.write(data)
        return await (reader.read() if to_end else reader.readuntil(b"\r\n"))
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def from_address(source: str, client: HttpClient) -> AsyncIterator[HttpClient]:
    """A client of the same server on another address of loopback."""
    connector = aiohttp.TCPConnector(local_addr=(source, 0))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield HttpClient(session, client.tcp_port)
