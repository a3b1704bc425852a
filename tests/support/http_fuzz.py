"""Requests that no client should send, and a server in the test's loop that they are judged by.

A case is what one client writes to its connection, in pieces. Whatever it is, the server answers
less than 500 (but 501, 503 and 507 name what is missing on the gateway), logs no error, lets no
exception reach the event loop, and still answers the next client.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
import re
import struct
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import structlog

from gateway.config.document import Sharing
from gateway.flash.esptool import COMMAND_VARIABLE
from tests.support.fake_esptool import WRITES, FakeEsptool
from tests.support.http_lab import LOOPBACK, http_server, running
from tests.support.pty_board import PtyBoard, Served, serving

TOKEN: Final = "0123456789abcdef"  # noqa: S105 - nobody's

#: A request that the server can answer has been by then, however busy the machine; and how long a
#: broken one, for which it may wait, is kept open.
_WHOLE_S: Final = 120.0
_BROKEN_S: Final = 0.02

_MAX_ANSWER_BYTES: Final = 1 << 16

_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d\d\d) ")
_ACCEPTED_5XX: Final = frozenset({501, 503, 507})

PATHS: Final = (
    "/",
    "/static/app.js",
    "/static/{any}",
    "/openapi.json",
    "/metrics",
    "/api/v1/ports",
    "/api/v1/ports/desk",
    "/api/v1/ports/{any}",
    "/api/v1/ports/desk/{any}",
    "/api/v1/ports/desk/reset",
    "/api/v1/ports/desk/bootloader",
    "/api/v1/ports/desk/disconnect",
    "/api/v1/ports/desk/release",
    "/api/v1/ports/desk/resume",
    "/api/v1/ports/desk/write",
    "/api/v1/ports/desk/tail",
    "/api/v1/ports/desk/log",
    "/api/v1/ports/desk/wait",
    "/api/v1/ports/desk/flash",
    "/api/v1/ports/desk/console",
    "/api/v1/events",
)
#: What a client asks for that means well: method, target, content type and what its body is of.
_MEANT_WELL: Final = (
    *(("GET", path, "", "") for path in PATHS if "{" not in path),
    *(
        ("POST", f"/api/v1/ports/desk/{name}", "application/json", "json")
        for name in ("reset", "bootloader", "disconnect", "release", "resume", "wait", "wait")
    ),
    ("POST", "/api/v1/ports/desk/write?force=true", "application/octet-stream", "bytes"),
    *(("POST", "/api/v1/ports/desk/flash", "application/octet-stream", "flash"),) * 2,
)
METHODS: Final = (
    *("GET", "POST") * 6,
    *("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "PRI", "BREW"),
)
_QUERIES: Final = ("bytes", "since", "force", "disconnect", "x")

_ODD_TEXTS: Final = (
    *("", "0", "-1", "1.5", "1e999", "9" * 5000, "true", "null", "\x00", "%00", "%ff", "%"),
    *("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "a" * 4000, "\u20ac", "\udcff", "{}", "'\";"),
)
_KEYS: Final = (
    *("force", "reason", "pattern", "timeout_s", "since", "type", "on", "dtr", "rts", "baudrate"),
    *("format", "images", "offset", "size", "sha256", "name", "options", "label", "chip", "x"),
)
_RAW_VALUES: Final = (
    *("true", "false", "null", "0", "-0", "1.5", "1e999", "-1e999", "NaN", "Infinity", "9" * 4000),
    *("9" * 5000, '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\ud83d\\ude00"', '"("', '"a+"'),
    *('"(a+)+b"', '"' + "x" * 2000 + '"', "[" * 100000, "[]", "{}", '{"a":' * 5000, '"', "", "tru"),
    *("[" * 500 + "]" * 500, '"\xff"', '"for openocd"', "115200", '"lines"', '"settings"', "1"),
)
_VALID_VALUES: Final = (
    *(
        "true",
        "false",
        "true",
        "0",
        "1.5",
        "115200",
        '"\\u0000"',
        '"\\ud83d\\ude00"',
        '"("',
        '"a+"',
    ),
    *('"(a+)+b"', '"for openocd"', '"lines"', '"settings"', '"break"', "-1", "[]", "null", '"x"'),
)
_CONTENT_TYPES: Final = (
    *("application/json", "application/octet-stream", "multipart/form-data; boundary=x") * 4,
    *("text/plain", "multipart/form-data", "application/json; charset=\xff", "\xff", ""),
    *("multipart/form-data; boundary=" + "b" * 500, "multipart/mixed; boundary=x"),
)


@dataclass(frozen=True)
class HttpCase:
    """What a client sends; `is_whole` when the server owes an answer and closes behind it."""

    pieces: tuple[bytes, ...]
    is_whole: bool

    def __str__(self) -> str:
        return f"whole={self.is_whole} {b'|'.join(self.pieces)[:3000]!r}"


def make_http_case(seed: int) -> HttpCase:
    """The case of a seed: always the same."""
    return _Maker(random.Random(seed)).case()


class _Maker:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def case(self) -> HttpCase:
        roll = self._rng.random()
        if roll < 0.05:
            return self._cut(HttpCase((self._rng.randbytes(self._rng.randrange(1, 3000)),), False))
        if roll < 0.20:
            return self._cut(HttpCase((self._upgrade() + self._frames(),), is_whole=False))
        if roll < 0.70:
            return self._cut(HttpCase((self._request(),), is_whole=True))
        return self._cut(HttpCase((self._broken(self._request()),), is_whole=False))

    def _cut(self, case: HttpCase) -> HttpCase:
        """The same in several segments."""
        (data,) = case.pieces
        if self._rng.random() < 0.7 or len(data) < 2:
            return case
        at = sorted(self._rng.randrange(len(data)) for _ in range(self._rng.randrange(1, 4)))
        ends = [0, *at, len(data)]
        pieces = tuple(data[a:b] for a, b in pairwise(ends))
        return replace(case, pieces=pieces)

    def _one_of(self, choices: tuple[str, ...]) -> str:
        return self._rng.choice(choices)

    def _text(self) -> str:
        if self._rng.random() < 0.5:
            return self._one_of(_ODD_TEXTS)
        return "".join(chr(self._rng.randrange(1, 256)) for _ in range(self._rng.randrange(1, 30)))

    def _target(self) -> str:
        text = self._text()
        any_ = "".join(c if c.isascii() and c.isalnum() else f"%{ord(c) % 256:02x}" for c in text)
        path = self._one_of(PATHS).replace("{any}", any_)
        if self._rng.random() < 0.3:
            path += "?" + "&".join(
                f"{self._one_of(_QUERIES)}={self._rng.choice(['1', 'true', '%ff', '1e9', '', '5'])}"
                for _ in range(self._rng.choice([1, 1, 2, 300]))
            )
        if self._rng.random() < 0.05:
            path = self._one_of(("http://evil.example", "http://localhost", "*", "//")) + path
        return path[:6000]

    def _json(self) -> bytes:
        rng = self._rng
        if rng.random() < 0.1:
            return self._one_of(_RAW_VALUES).encode("latin-1")
        if rng.random() < 0.2:
            return rng.choice([b"", b"{}", b'{"force": true}'])
        values = _RAW_VALUES if rng.random() < 0.4 else _VALID_VALUES
        pairs = [
            f'"{self._one_of(_KEYS)}": {self._one_of(values)}'
            for _ in range(rng.choice([0, 1, 1, 2, 3, 200]))
        ]
        if rng.random() < 0.4:
            pairs = [f'"pattern": {self._one_of(values)}', '"timeout_s": 0.02']
        return ("{" + ", ".join(pairs) + "}").encode("latin-1")

    def _flash_body(self) -> bytes:
        rng = self._rng
        data = rng.randbytes(rng.choice([0, 1, 4096]))
        image = {
            "offset": rng.choice([65536, 0, 4096, 4097, -1, 1 << 70]),
            "size": rng.choice([len(data), len(data), len(data), 5, 1 << 62]),
            "sha256": rng.choice([hashlib.sha256(data).hexdigest(), "0" * 64]),
        }
        images = [image] * rng.choice([0, 1, 1, 1, 1, 2, 70])
        plan = json.dumps({"format": 1, "images": images}).encode()
        if rng.random() < 0.2:
            plan = self._json()
        return plan + rng.choice([b"\n", b"\n", b"\r\n", b""]) + data

    def _form(self) -> bytes:
        head = f'Content-Disposition: form-data; name="{self._text()}"\r\n'.encode(
            "latin-1", "replace"
        )
        heads = head * self._rng.choice([1, 1, 400]) + b"X: " + b"y" * self._rng.choice([1, 20000])
        part = b"--x\r\n" + heads + b"\r\n\r\n" + self._json() + b"\r\n"
        preamble = b"\n" * self._rng.choice([0, 0, 100000])
        return preamble + part * self._rng.choice([1, 1, 300]) + b"--x--\r\n"

    def _body(self) -> bytes:
        roll = self._rng.random()
        if roll < 0.2:
            return b""
        if roll < 0.7:
            return self._json()
        if roll < 0.8:
            return self._flash_body()
        if roll < 0.9:
            return self._form()
        return self._rng.randbytes(self._rng.choice([1, 100, 70000, 300000]))

    def _headers(self) -> list[bytes]:
        headers: list[bytes] = []
        for name, values in _HEADERS.items():
            if self._rng.random() < 0.06:
                headers.append(f"{name}: ".encode() + self._rng.choice(values))
        if self._rng.random() < 0.1:
            value = bytes(b for b in self._rng.randbytes(60) if b not in b"\r\n\0")
            headers.append(
                b"X-" + self._one_of(("A", "Cookie", "Forwarded")).encode() + b": " + value
            )
        if self._rng.random() < 0.03:
            headers += [b"X-%d: y" % number for number in range(300)]
        return headers

    def _request(self) -> bytes:
        """A request that the server can answer, some of it with what it can't carry out."""
        rng = self._rng
        method, target, content_type, body_kind = rng.choice(_MEANT_WELL)
        body = self._body_of(body_kind)
        headers: list[bytes] = []
        if rng.random() < 0.12:
            method = self._one_of(METHODS)
        if rng.random() < 0.12:
            target = self._target()
        if rng.random() < 0.12:
            body = self._body()
        if rng.random() < 0.12:
            content_type = self._one_of(_CONTENT_TYPES)
        if rng.random() < 0.4:
            headers = self._headers()
        version = rng.choice(["HTTP/1.1"] * 8 + ["HTTP/1.0"])
        host = rng.choice([b"localhost"] * 16 + [b"127.0.0.1:1", b"evil.example", b"[::1", b""])
        head = f"{method} {target} {version}\r\nHost: ".encode() + host
        headers.append(b"Connection: close")
        if content_type:
            headers.append(b"Content-Type: " + content_type.encode("latin-1"))
        if rng.random() < 0.9:
            headers.append(b"Authorization: Bearer " + TOKEN.encode())
        if rng.random() < 0.8:
            headers.append(b"Content-Length: %d" % len(body))
        else:
            headers.append(b"Transfer-Encoding: chunked")
            size = rng.choice([1, 7, 1000, 100000])
            parts = [body[at : at + size] for at in range(0, len(body), size)][:5000]
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        rng.shuffle(headers)
        return b"\r\n".join([head, *headers, b"", body])

    def _body_of(self, kind: str) -> bytes:
        match kind:
            case "json":
                return self._json()
            case "flash":
                return self._flash_body()
            case "bytes":
                return self._rng.randbytes(self._rng.choice([0, 1, 100, 70000]))
            case _:
                return b""

    def _broken(self, request: bytes) -> bytes:
        """A few bytes of it changed, left out or said twice."""
        data = bytearray(request)
        for _ in range(self._rng.choice([1, 1, 2, 8])):
            at = (
                self._rng.randrange(len(data))
                if self._rng.random() < 0.5
                else self._rng.randrange(min(len(data), 300))
            )
            match self._rng.randrange(5):
                case 0:
                    data[at] = self._rng.randrange(256)
                case 1:
                    del data[at : at + self._rng.randrange(1, 20)]
                case 2:
                    data[at:at] = self._rng.randbytes(self._rng.randrange(1, 20))
                case 3:
                    del data[at:]
                case 4:
                    data[at:at] = data[at : at + self._rng.randrange(1, 2000)]
            if not data:
                return b"\0"
        return bytes(data)

    def _upgrade(self) -> bytes:
        offers = self._rng.choice([f"esp-gateway, bearer.{TOKEN}", "", "x", "bearer.\xff"])
        head = (
            "GET /api/v1/ports/desk/console HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        )
        if offers:
            head += f"Sec-WebSocket-Protocol: {offers}\r\n"
        return (head + "\r\n").encode("latin-1")

    def _frames(self) -> bytes:
        return b"".join(self._frame() for _ in range(self._rng.choice([0, 1, 2, 5, 200])))

    def _frame(self) -> bytes:
        first = self._rng.choice([0x81, 0x82, 0x82, 0x88, 0x89, 0x8A, 0x01, 0x80, 0xF1, 0x83, 0xFF])
        payload = self._rng.choice([self._json()[:3000], b"", b"x" * 200, b"\x03\xe8", b"\xff\xfe"])
        return ws_frame(first, payload, masked=self._rng.random() < 0.95)


def ws_frame(first: int, payload: bytes, *, masked: bool = True) -> bytes:
    """A frame of a WebSocket, RFC 6455 section 5.2; `first` is its first byte: flags and opcode."""
    mask = 0x80 if masked else 0
    if len(payload) < 126:
        head = bytes([first, mask | len(payload)])
    elif len(payload) < 65536:
        head = bytes([first, mask | 126]) + struct.pack("!H", len(payload))
    else:
        head = bytes([first, mask | 127]) + struct.pack("!Q", len(payload))
    return head + (b"\0\0\0\0" if masked else b"") + payload


_HEADERS: Final[dict[str, tuple[bytes, ...]]] = {
    "Authorization": (b"Bearer \xff", b"Bearer", b"Basic !", b"Bearer " + b"a" * 7000),
    "Origin": (b"null", b"http://localhost", b"http://[", b"\xff", b"http://a:99999999"),
    "Sec-Fetch-Site": (b"same-origin", b"cross-site", b"\xff"),
    "Accept": (
        *(b"*/*", b"application/openmetrics-text; version=x", b"\xff", b"text/html;q=9999"),
        b"application/openmetrics-text; version=1.0.0; escaping=\xff",
    ),
    "Accept-Encoding": (b"gzip, br, \xff", b"identity;q=0"),
    "Content-Encoding": (b"gzip", b"deflate", b"br", b"zstd", b"identity", b"\xff"),
    "Expect": (b"100-continue", b"200-ok"),
    "Range": (
        b"bytes=0-1",
        b"bytes=5-1",
        b"bytes=-5",
        b"bytes=" + b"9" * 40 + b"-",
        b"x=1",
        b"\xff",
    ),
    "If-Range": (b"x", b"\xff"),
    "If-None-Match": (b"*", b'"\xff"', b","),
    "If-Modified-Since": (
        b"Thu, 01 Jan 1970 00:00:00 GMT",
        b"Thu, 99 Foo 99999 99:99:99 GMT",
        b"\xff",
    ),
    "Cookie": (b"a=b", b"\xff=\xfe;;==", b"a" * 7000),
    "Upgrade": (b"websocket", b"h2c", b"\xff"),
    "Sec-WebSocket-Protocol": (b"esp-gateway", b"bearer.\xff", b",,,"),
    "Sec-WebSocket-Extensions": (b"permessage-deflate; server_max_window_bits=99", b"\xff"),
    "X-Forwarded-For": (b"evil", b"\xff"),
    "Keep-Alive": (b"timeout=99999999999",),
    "TE": (b"trailers",),
}


class HttpFuzzWorld:
    """A server with a port `desk`; what it should not have done is in `problems`."""

    def __init__(self, tcp_port: int, served: Served) -> None:
        self.problems: list[str] = []
        self.statuses: dict[int, int] = {}
        self.tcp_port = tcp_port
        self._served = served

    async def play(self, case: HttpCase) -> None:
        """Send a case and judge what comes of it: AssertionError names what is wrong."""
        answer = await self.send(case)
        self.resume()
        for status in map(int, _STATUS.findall(answer)):
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status >= 500 and status not in _ACCEPTED_5XX:
                self.problems.append(f"answered {status}")
        if case.is_whole and not _STATUS.match(answer):
            self.problems.append(f"no answer: {answer[:80]!r}")
        assert not self.problems, f"{self.problems}\nto: {case}"

    def resume(self) -> None:
        """Have the port served again, if a request has released it."""
        self._served.port.resume()

    async def send(self, case: HttpCase) -> bytes:
        """What is answered, the first of it where it does not end."""
        reader, writer = await asyncio.open_connection(LOOPBACK, self.tcp_port)
        answer = b""
        try:
            async with asyncio.timeout(_WHOLE_S if case.is_whole else _BROKEN_S):
                for piece in case.pieces:
                    writer.write(piece)
                    await asyncio.sleep(0)
                while len(answer) < _MAX_ANSWER_BYTES and (chunk := await reader.read(65536)):
                    answer += chunk
                    if b"event-stream" in answer or b"\r\nUpgrade" in answer:
                        break
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writer.transport.abort()
        return answer


@asynccontextmanager
async def http_fuzz_world(folder: Path, token: str | None) -> AsyncIterator[HttpFuzzWorld]:
    """A world for cases, played one after the other."""
    fake = FakeEsptool(folder, WRITES)
    os.environ[COMMAND_VARIABLE] = fake.command
    loop = asyncio.get_running_loop()
    before = structlog.get_config()
    handler = _Noted(logging.WARNING)
    try:
        with PtyBoard(folder) as board:
            board.start_reading()
            async with (
                serving(board, sharing=Sharing.PREEMPT) as served,
                http_server(running(served), token) as server,
            ):
                assert server.tcp_port is not None
                world = HttpFuzzWorld(server.tcp_port, served)
                handler.problems = world.problems
                logging.getLogger().addHandler(handler)
                structlog.configure(processors=[_note_in(world.problems)])
                loop.set_exception_handler(
                    lambda _, context: world.problems.append(f"event loop: {context}")
                )
                yield world
                await served.until_idle()
                assert not world.problems, world.problems
    finally:
        loop.set_exception_handler(None)
        logging.getLogger().removeHandler(handler)
        structlog.configure(**before)
        del os.environ[COMMAND_VARIABLE]


def _note_in(problems: list[str]) -> structlog.types.Processor:
    def note(_: Any, method: str, event: MutableMapping[str, Any]) -> str:
        if event.get("exc_info") or method in {"error", "critical", "exception"}:
            problems.append(f"logged: {event!r}")
        raise structlog.DropEvent

    return note


class _Noted(logging.Handler):
    problems: list[str]

    def emit(self, record: logging.LogRecord) -> None:
        self.problems.append(f"{record.name}: {record.getMessage()} {record.exc_info}")
