"""The client's side of flashing over HTTP: asks a gateway for its ports, sends images to one.

Blocking, for a thread per board. What is shown of it is `display`'s matter, the other side
`web.flash`'s.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway.errors import GatewayError
from gateway.flash.files import Images
from gateway.flash.outcome import Outcome
from gateway.flash.target import Address

#: How long a gateway may take to accept a connection, and to say anything: while it flashes it
#: says that it lives every 10 s.
_CONNECT_LIMIT_S = 10.0
_SILENCE_LIMIT_S = 90.0

#: Of an upload, so much is sent at once; progress is told in between.
_SEND_BYTES = 65536

#: Answers are JSON of a few hundred bytes a port; one line of progress is shorter than a line.
_MAX_ANSWER_BYTES = 4 << 20
_MAX_LINE_BYTES = 65536

Report = Callable[[dict[str, Any]], None]


class RequestError(GatewayError):
    """For whoever flashes: what the gateway answered, or why there is no answer."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class GatewayClient:
    """One gateway; every call opens a connection of its own, so threads can share it.

    `ca` is a file of certificates that are trusted instead of the system's.
    """

    def __init__(self, address: Address, token: str = "", ca: Path | None = None) -> None:
        self.address = address
        self._token = token
        self._tls = _tls_context(ca) if address.tls else None
        self._sockets: set[socket.socket] = set()

    def hang_up(self) -> None:
        """End what is under way in other threads, for they can't be interrupted."""
        for each in tuple(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def ports(self) -> list[dict[str, Any]]:
        """`GET /api/ports`; RequestError when there is no such answer."""
        connection = self._connection()
        try:
            connection.request("GET", "/api/ports", headers=self._headers())
            answer = connection.getresponse()
            body = answer.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise self._refused(answer.status, body)
        try:
            return [dict(port) for port in json.loads(body)["ports"]]
        except (ValueError, KeyError, TypeError):
            raise RequestError(
                Outcome.UNREACHABLE, f"{self.address} is no esp-gateway: it has no list of ports"
            ) from None

    def flash(self, name: str, images: Images, report: Report, *, force: bool = False) -> Outcome:
        """Send the images to a port; each event goes to `report` until the last, `done`.

        Raises RequestError when it comes to no end: refused, or the gateway is gone.
        """
        boundary = secrets.token_hex(16)
        parts = list(_multipart(images, boundary))
        headers = {
            **self._headers(),
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(sum(len(part) for part in parts)),
        }
        path = f"/api/ports/{quote(name, safe='')}/flash{'?force=true' if force else ''}"
        connection = self._connection()
        opened: socket.socket = connection.sock
        self._sockets.add(opened)
        try:
            try:
                body = _slices(parts, images.plan.total_bytes, report)
                connection.request("POST", path, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may have said why before it hung up
            answer = connection.getresponse()
            if answer.status != http.HTTPStatus.OK:
                raise self._refused(answer.status, answer.read(_MAX_ANSWER_BYTES))
            return self._follow(answer, report)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            self._sockets.discard(opened)
            connection.close()

    def _follow(self, answer: http.client.HTTPResponse, report: Report) -> Outcome:
        while line := answer.readline(_MAX_LINE_BYTES):
            try:
                event = json.loads(line)
                if not isinstance(event, dict):
                    raise TypeError
                if event.get("event") == "done":
                    outcome = Outcome(event["outcome"])
                    report(event)
                    return outcome
            except (ValueError, KeyError, TypeError):
                raise RequestError(
                    Outcome.FAILED, f"{self.address} tells something else than progress"
                ) from None
            report(event)
        raise RequestError(Outcome.UNREACHABLE, f"{self.address} hung up before the end")

    def _connection(self) -> http.client.HTTPConnection:
        host, tcp_port = self.address.host, self.address.tcp_port
        connection: http.client.HTTPConnection
        if self._tls is None:
            connection = http.client.HTTPConnection(host, tcp_port, timeout=_CONNECT_LIMIT_S)
        else:
            connection = http.client.HTTPSConnection(
                host, tcp_port, timeout=_CONNECT_LIMIT_S, context=self._tls
            )
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from None
        connection.sock.settimeout(_SILENCE_LIMIT_S)
        return connection

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _unreachable(self, error: Exception) -> RequestError:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = " ".join(str(said).split())[:200]
        hint = "" if isinstance(error, http.client.HTTPException) else " (another address: --http)"
        return RequestError(Outcome.UNREACHABLE, f"{self.address}: {reason}{hint}")

    def _refused(self, status: int, body: bytes) -> RequestError:
        """What an answer that is not 200 means; the gateway says it itself where it is ours."""
        content: object = None
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(body)
        said = content if isinstance(content, dict) else {}
        message = str(said.get("error") or f"HTTP status {status}")[:500]
        try:
            outcome = Outcome(said.get("outcome"))
        except ValueError:
            outcome = _OUTCOMES.get(status, Outcome.FAILED)
        return RequestError(outcome, f"{self.address}: {message}")


_OUTCOMES = {
    401: Outcome.NOT_ALLOWED,
    403: Outcome.NOT_ALLOWED,
    404: Outcome.UNREACHABLE,
    409: Outcome.BUSY,
    413: Outcome.NOT_STORED,
    507: Outcome.NOT_STORED,
}


def _tls_context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise RequestError(Outcome.WRONG_INPUT, f"{ca}: {error.strerror or error}") from None


def _multipart(images: Images, boundary: str) -> Iterator[bytes]:
    """The body of the request, the plan first: RFC 7578."""
    plan = images.plan.to_json().encode()
    yield _head(boundary, "plan", "application/json", len(plan)) + plan
    for image, data in zip(images.plan.images, images.data, strict=True):
        name = f"{image.offset:#x}"
        yield b"\r\n" + _head(boundary, name, "application/octet-stream", len(data))
        yield data
    yield f"\r\n--{boundary}--\r\n".encode()


def _head(boundary: str, name: str, kind: str, size: int) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="{name}"'
    content = f"Content-Type: {kind}\r\nContent-Length: {size}"
    return f"--{boundary}\r\n{disposition}\r\n{content}\r\n\r\n".encode()


def _slices(parts: list[bytes], total: int, report: Report) -> Iterator[bytes]:
    """The body in pieces, each reported before it is sent."""
    sent = 0
    whole = sum(len(part) for part in parts)
    for part in parts:
        for start in range(0, len(part), _SEND_BYTES):
            report({"event": "upload", "sent": min(total, sent * total // whole), "total": total})
            piece = part[start : start + _SEND_BYTES]
            sent += len(piece)
            yield piece
    report({"event": "upload", "sent": total, "total": total})
