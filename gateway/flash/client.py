"""The client's side of flashing over HTTP: asks a gateway for its ports, sends images to one.

Blocking, for a thread per board. What is shown of it is `display`'s matter, the other side
`web.flash`'s.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import select
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

#: Of an upload, so much is sent at once; progress is reported in between.
_SEND_BYTES = 65536

#: Answers are JSON of a few hundred bytes a port; one line of progress is shorter than a line.
_MAX_ANSWER_BYTES = 4 << 20
_MAX_LINE_BYTES = 65536

Report = Callable[[dict[str, Any]], None]


class RequestError(GatewayError):
    """For the person who flashes: what the gateway answered, or why there is no answer."""

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

    def flash(
        self, name: str, images: Images, report: Report, *, disconnect: bool = False
    ) -> Outcome:
        """Send the images to a port; each event goes to `report` until the last, `done`.

        With `disconnect` the port's other clients are disconnected. Raises RequestError without a
        last event: the request was refused, or the gateway is gone.
        """
        plan = images.plan.to_json().encode() + b"\n"
        headers = {
            **self._headers(),
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(plan) + images.plan.total_bytes),
        }
        query = "?disconnect=true" if disconnect else ""
        path = f"/api/ports/{quote(name, safe='')}/flash{query}"
        connection = self._connection()
        opened: socket.socket = connection.sock
        self._sockets.add(opened)
        try:
            try:
                body = _slices(plan, images, report, opened)
                connection.request("POST", path, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the reason may have come before the end
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


def _slices(
    plan: bytes, images: Images, report: Report, connection: socket.socket
) -> Iterator[bytes]:
    """The body: the plan in a line, the images in its order; each slice is reported before.

    Ends early when the gateway has answered already, which it does only to refuse. Within TLS that
    can't be seen: then the answer is read behind all of it.
    """
    total_bytes = images.plan.total_bytes
    is_plain = not isinstance(connection, ssl.SSLSocket)
    sent_bytes = 0
    yield plan
    for data in images.data:
        for start in range(0, len(data), _SEND_BYTES):
            if is_plain and select.select([connection], [], [], 0)[0]:
                return
            report({"event": "upload", "sent": sent_bytes, "total": total_bytes})
            piece = data[start : start + _SEND_BYTES]
            sent_bytes += len(piece)
            yield piece
    report({"event": "upload", "sent": total_bytes, "total": total_bytes})
