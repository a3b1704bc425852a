"""The client's side of flashing over HTTP: which boards are named, and sending images to them.

Blocking; a thread for each board. The gateway's side is `web.flash`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import select
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from gateway.flash.display import Display
from gateway.flash.files import Images
from gateway.flash.plan import FlashError, Outcome, WrongInputError
from gateway.port_document import API

#: How long a gateway may take to accept a connection, and to send anything: while it flashes it
#: sends an event at least every 10 s.
_CONNECT_LIMIT_S: Final = 10.0
_SILENCE_LIMIT_S: Final = 90.0

#: Of an upload, this much is sent at once; progress is reported in between.
_SEND_BYTES: Final = 65536

#: Answers are JSON of a few hundred bytes a port; an event is shorter than a line of esptool.
_MAX_ANSWER_BYTES: Final = 4 << 20
_MAX_LINE_BYTES: Final = 65536

#: An error is a line or two, whatever a gateway answers.
_MAX_ERROR_CHARS: Final = 500

#: Where a gateway's HTTP server listens if nothing else is given.
DEFAULT_HTTP_PORT: Final = 8080

INTERRUPTED: Final = 128 + signal.SIGINT

_TARGET: Final = re.compile(r"(?P<host>\[[^\]]+\]|[^:/\[\]]+)(?P<kind>[:/])(?P<ports>.+)")
_EXPECTED_TARGET: Final = (
    "expected HOST:PORT[,PORT...] or HOST/NAME[,NAME...], for instance lab:4001 or lab/desk"
)

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Address:
    """Where the gateway's HTTP server is; `host` as in URLs, without brackets."""

    host: str
    tcp_port: int
    tls: bool

    def __str__(self) -> str:
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{_in_brackets(self.host)}:{self.tcp_port}"


@dataclass(frozen=True, slots=True)
class Target:
    """Boards of one gateway, by their TCP ports or by the names of their ports."""

    host: str
    boards: tuple[int | str, ...]


def read_target(text: str) -> Target:
    """Read `lab:4001`, `lab:4001,4002` or `lab/desk`. Raises WrongInputError."""
    wrong = WrongInputError(f"invalid board address {text!r}: {_EXPECTED_TARGET}")
    text = text.removeprefix("rfc2217://").removeprefix("gateway://").partition("?")[0]
    found = _TARGET.fullmatch(text)
    if found is None:
        raise wrong
    words = [word.strip() for word in found["ports"].split(",")]
    if not all(words) or len(set(words)) < len(words):
        raise wrong
    boards: tuple[int | str, ...] = tuple(words)
    if found["kind"] == ":":
        if not all(re.fullmatch("[0-9]{1,5}", word) and 0 < int(word) < 65536 for word in words):
            raise wrong
        boards = tuple(int(word) for word in words)
    return Target(found["host"].strip("[]"), boards)


def read_address(text: str | None, host: str) -> Address:
    """Read the HTTP address; without one, it is at the target's host. Raises WrongInputError."""
    if not text:
        return Address(host, DEFAULT_HTTP_PORT, tls=False)
    wrong = WrongInputError(
        f"invalid HTTP address {text!r}: expected for instance lab:8080 or https://lab:8443"
    )
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        tcp_port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/"):
        raise wrong
    tls = parts.scheme == "https"
    return Address(parts.hostname, tcp_port or (443 if tls else DEFAULT_HTTP_PORT), tls)


def find_names(target: Target, ports: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Find the names of the target's ports among the gateway's (`GET /api/v1/ports`).

    `where` is the address at which it was asked. Raises FlashError when a port is not there.
    """
    names = {str(port.get("name")): _tcp_port(port) for port in ports}
    by_tcp_port = {tcp_port: name for name, tcp_port in names.items()}
    found = []
    for board in target.boards:
        name = by_tcp_port.get(board) if isinstance(board, int) else board
        if name is None or name not in names:
            # First those that are found by name only, as ports that connect to their client.
            listed = sorted(names.items(), key=lambda item: item[1] is not None)
            host = _in_brackets(target.host)
            there = ", ".join(f"{name} ({number or f'{host}/{name}'})" for name, number in listed)
            message = f"{where} has no port {board}; it has: {there or 'none'}"
            raise FlashError(Outcome.UNREACHABLE, message[:_MAX_ERROR_CHARS])
        found.append(name)
    if len(set(found)) < len(found):
        raise FlashError(Outcome.UNREACHABLE, f"same port twice: {', '.join(found)}")
    return found


def _tcp_port(port: Mapping[str, Any]) -> int | None:
    tcp_port = port.get("tcp_port")
    return tcp_port if isinstance(tcp_port, int) else None


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host else host


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
        """End the calls of other threads, which can't be interrupted."""
        for each in tuple(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def ports(self) -> list[dict[str, Any]]:
        """`GET /api/v1/ports`. Raises FlashError when there is no such answer."""
        with self._connection() as connection:
            connection.request("GET", f"{API}/ports", headers=self._headers())
            answer = connection.getresponse()
            body = answer.read(_MAX_ANSWER_BYTES)
        if answer.status != http.HTTPStatus.OK:
            raise self._rejection(answer.status, body)
        try:
            return [dict(port) for port in json.loads(body)["ports"]]
        except (ValueError, KeyError, TypeError):
            raise FlashError(
                Outcome.UNREACHABLE, f"{self.address} is not an esp-gateway: no list of ports there"
            ) from None

    def flash(
        self, name: str, images: Images, report: Report, *, disconnect: bool = False
    ) -> Outcome:
        """Send the images to a port; each event goes to `report` until the last, `done`.

        With `disconnect` the port's other clients are disconnected. Raises FlashError without a
        last event: the request was rejected, or the gateway is gone.
        """
        plan = images.plan.to_json().encode() + b"\n"
        headers = {
            **self._headers(),
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(plan) + images.plan.total_bytes),
        }
        query = "?disconnect=true" if disconnect else ""
        path = f"{API}/ports/{quote(name, safe='')}/flash{query}"
        with self._connection() as connection:
            # A gateway that rejects the request before its end closes the connection.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                body = _slices(plan, images, report, connection.sock)
                connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            if answer.status != http.HTTPStatus.OK:
                raise self._rejection(answer.status, answer.read(_MAX_ANSWER_BYTES))
            return self._follow(answer, report)

    def _follow(self, answer: http.client.HTTPResponse, report: Report) -> Outcome:
        while line := answer.readline(_MAX_LINE_BYTES):
            try:
                event = json.loads(line)
                if not isinstance(event, dict):
                    raise TypeError
                outcome = Outcome(event["outcome"]) if event.get("event") == "done" else None
            except (ValueError, KeyError, TypeError):
                raise FlashError(
                    Outcome.FAILED, f"{self.address} sends something else than events"
                ) from None
            report(event)
            if outcome is not None:
                return outcome
        raise FlashError(Outcome.UNREACHABLE, f"{self.address} hung up before the end")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        """Connect; errors of the connection are raised as FlashError."""
        host, tcp_port = self.address.host, self.address.tcp_port
        connection: http.client.HTTPConnection
        if self._tls is None:
            connection = http.client.HTTPConnection(host, tcp_port, timeout=_CONNECT_LIMIT_S)
        else:
            connection = http.client.HTTPSConnection(
                host, tcp_port, timeout=_CONNECT_LIMIT_S, context=self._tls
            )
        opened: socket.socket | None = None
        try:
            connection.connect()
            opened = connection.sock
            self._sockets.add(opened)
            opened.settimeout(_SILENCE_LIMIT_S)
            yield connection
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            shown = " ".join(str(reason).split())[:200]
            if not isinstance(error, http.client.HTTPException):
                shown += " (another address: --http)"
            raise FlashError(Outcome.UNREACHABLE, f"{self.address}: {shown}") from None
        finally:
            if opened is not None:
                self._sockets.discard(opened)
            connection.close()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _rejection(self, status: int, body: bytes) -> FlashError:
        """Return the error of an answer that is not 200; a gateway gives its outcome."""
        content: object = None
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(body)
        fields = content if isinstance(content, dict) else {}
        message = str(fields.get("error") or f"HTTP status {status}")[:_MAX_ERROR_CHARS]
        try:
            outcome = Outcome(fields.get("outcome"))
        except ValueError:
            outcome = _OUTCOMES.get(status, Outcome.FAILED)
        return FlashError(outcome, f"{self.address}: {message}")


_OUTCOMES: Final = {
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
        raise WrongInputError(f"{ca}: {error.strerror or error}") from None


def _slices(
    plan: bytes, images: Images, report: Report, connection: socket.socket
) -> Iterator[bytes]:
    """Return the body: the plan in a line, the images in its order; report each slice before.

    Ends early when the gateway has answered already, which it does only to reject the request.
    Within TLS that can't be seen: then the answer is read after all of it was sent.
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


#: State of a board at a Ctrl-C, by the last event that tells how far it has got.
_UNTOUCHED: Final = "interrupted before anything was done to the board"
_RESET: Final = (
    "interrupted before anything was written: the board may be in its bootloader until a reset"
)
_HALF_WRITTEN: Final = (
    "interrupted while it was written: the board does not start until it is flashed again,"
    " which the same command does"
)
_WRITTEN: Final = "interrupted when all was written and verified: the board may not have been reset"


class Boards:
    """Flashes several boards of one gateway at once, a thread each.

    `disconnect` disconnects the other clients of the ports.
    """

    def __init__(
        self, client: GatewayClient, images: Images, display: Display, *, disconnect: bool
    ) -> None:
        self._client = client
        self._images = images
        self._display = display
        self._disconnect = disconnect
        self._lock = threading.Lock()
        self._interrupted = False
        self._states: dict[str, str] = {}  # of the boards that are not done

    def flash(self, names: list[str]) -> int:
        """Flash the boards of these ports; return the exit code of the first that has failed, or 0.

        After a Ctrl-C each board's state is shown, all connections are closed, which ends the
        flashing, and a second one ends the process at once.
        """
        self._states = dict.fromkeys(names, _UNTOUCHED)
        # No daemon threads: each notices that its connection is closed.
        pool = ThreadPoolExecutor(len(names))
        before = signal.getsignal(signal.SIGINT)
        try:
            try:
                if before is not signal.SIG_IGN:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                running = [pool.submit(self._flash_one, name) for name in names]
                outcomes = [each.result() for each in running]
            except KeyboardInterrupt:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                self._interrupt()
                return INTERRUPTED
        finally:
            pool.shutdown(cancel_futures=True)
            signal.signal(signal.SIGINT, before)
        self._display.close()
        return next((each.exit_code for each in outcomes if each is not Outcome.WRITTEN), 0)

    def _interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            for name, state in self._states.items():
                is_half = state == _HALF_WRITTEN
                self._display.ended(name, Outcome.INCOMPLETE if is_half else Outcome.FAILED, state)
        self._display.close()
        self._client.hang_up()

    def _flash_one(self, name: str) -> Outcome:
        message = ""

        def report(event: dict[str, Any]) -> None:
            nonlocal message
            message = str(event.get("message", ""))
            with self._lock:
                self._note(name, event)
                if not self._interrupted:
                    self._display.event(name, event)

        try:
            outcome = self._client.flash(name, self._images, report, disconnect=self._disconnect)
        except FlashError as error:
            outcome, message = error.outcome, str(error)
        with self._lock:
            self._states.pop(name, None)
            if not self._interrupted:
                self._display.ended(name, outcome, message)
        return outcome

    def _note(self, name: str, event: dict[str, Any]) -> None:
        """Note how far a board has got; once its chip has answered, its flash may be erased."""
        match event.get("event"):
            case "started":
                self._states[name] = _RESET
            case "chip":
                self._states[name] = _HALF_WRITTEN
            case "verified" if event.get("image") == len(self._images.plan.images) - 1:
                self._states[name] = _WRITTEN
