"""The status of the service: a unix socket that reports it, and the table of `status`.

Each client of the socket gets one line of JSON (`port_document.service_json`) and is disconnected.
It cannot change anything, so every user of the host may connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

import structlog

from gateway import clock
from gateway.errors import GatewayError
from gateway.net.acceptor import AcceptLoop
from gateway.net.access import OncePerPeriod
from gateway.port_document import ClientState, PortDocument
from gateway.turns import Turns

#: How long the service may take to answer, and a client to read the answer.
_ANSWER_LIMIT_S: Final = 5.0

#: A document has about 1 KiB, and 0.1 KiB for each client of the port.
_MAX_ANSWER_BYTES: Final = 1 << 23

#: Clients at a time that have not read their answer; one more replaces the oldest. They may use
#: the descriptors that other connections must leave free, so that status works during a shortage.
MAX_CLIENTS: Final = 16

#: Connecting requires write permission.
SOCKET_MODE: Final = 0o666

_FOLDER_MODE: Final = 0o755
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH

#: The kernel's own limit.
_MAX_LINKS: Final = 40

#: Where the unit in systemd/ has its runtime directory, which only root can create.
_SYSTEM_PATH: Final = Path("/run/esp-gateway/status.sock")


class StatusError(GatewayError):
    """The status cannot be served or read, for the reason given."""


class SocketInUseError(StatusError):
    """Another gateway of this user serves its status at the same path."""


class FolderError(StatusError):
    """Another user could replace the socket."""


def default_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the service listens: systemd's runtime directory, or the user's own."""
    if folder := environment.get("RUNTIME_DIRECTORY"):
        return Path(folder.split(":")[0]) / "status.sock"
    if folder := environment.get("XDG_RUNTIME_DIR"):
        return Path(folder) / "esp-gateway" / "status.sock"
    return Path(f"/tmp/esp-gateway-{os.getuid()}/status.sock")  # noqa: S108 - the folder is checked


def find_path(environment: Mapping[str, str] = os.environ, *, system: Path = _SYSTEM_PATH) -> Path:
    """Return where to ask: the system's service if there is one, else the user's own.

    Raises StatusError if another user could answer there.
    """
    if system.exists():
        return system
    path = default_path(environment)
    try:
        checked_folder(path.parent)
    except FileNotFoundError:
        pass  # `ask` reports that no service runs
    except OSError as error:
        raise StatusError(f"{path}: {error.strerror}") from error
    return path


def checked_folder(folder: Path, *, create: bool = False) -> Path:
    """Return the folder without symbolic links in its path if only root and this user control it.

    In a sticky folder such as /tmp others can add names, but not replace existing ones. Each step
    is checked before it is taken, and a checked step can't be changed by others, so there is no
    race. Missing folders are created if `create`. Raises FolderError where another user could
    interfere, OSError where the path does not lead to a folder.
    """
    here = Path("/")
    _check_owner(here, here.lstat())
    ahead = deque(Path(os.path.abspath(folder)).parts[1:])  # noqa: PTH100 - resolve follows links
    n_links = 0
    while ahead:
        name = ahead.popleft()
        if name == "..":  # in a link's target: `here` contains no link
            here = here.parent
            continue
        step = here / name
        if create:
            with contextlib.suppress(FileExistsError):
                step.mkdir(mode=_FOLDER_MODE)
        status = step.lstat()
        _check_owner(step, status)
        if stat.S_ISLNK(status.st_mode):
            n_links += 1
            if n_links > _MAX_LINKS:
                raise FolderError(f"{folder}: too many symbolic links")
            target = step.readlink()
            if target.is_absolute():
                here = Path("/")
            ahead.extendleft(reversed(target.parts[target.is_absolute() :]))
            continue
        if not stat.S_ISDIR(status.st_mode):
            raise FolderError(f"{step} is not a directory")
        here = step
    return here


def _check_owner(step: Path, status: os.stat_result) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise FolderError(f"{step} belongs to another user (uid {status.st_uid})")
    is_sticky = bool(status.st_mode & stat.S_ISVTX)
    if stat.S_ISDIR(status.st_mode) and status.st_mode & _WRITABLE_BY_OTHERS and not is_sticky:
        raise FolderError(f"{step} can be changed by other users: chmod go-w {step}")


class StatusServer:
    """Sends each client what `snapshot` returns; used on the event loop."""

    def __init__(self, path: Path, snapshot: Callable[[], str]) -> None:
        self.path = path
        self._snapshot = snapshot
        self._accept_loop: AcceptLoop | None = None
        self._clients: dict[_Client, None] = {}  # the oldest first
        self._failures = OncePerPeriod()

    async def start(self) -> None:
        """Listen. Raises StatusError or OSError if the socket can't be created."""
        path = checked_folder(self.path.parent, create=True) / self.path.name
        if _is_served(path):
            raise SocketInUseError(f"{self.path} belongs to a running service")
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()  # of a service that was killed
        self._bound_path = path
        self._accept_loop = AcceptLoop(
            [_listening_socket(path)], Turns(), self._accepted, self._failed
        )

    def stop(self) -> None:
        """Stop listening and remove the socket."""
        if self._accept_loop is None:
            return
        self._accept_loop.close()
        self._accept_loop = None
        for client in tuple(self._clients):
            client.abort()
        with contextlib.suppress(OSError):
            self._bound_path.unlink(missing_ok=True)

    def _accepted(self, connection: socket.socket, _address: Any) -> None:
        assert self._accept_loop is not None  # noqa: S101 - it is the caller
        self._accept_loop.connect(connection, _Client(self))

    def connected(self, client: _Client) -> None:
        """Answer a client."""
        if self._accept_loop is None:
            client.abort()
            return
        if len(self._clients) >= MAX_CLIENTS:
            next(iter(self._clients)).abort()
        self._clients[client] = None
        client.answer(self._snapshot().encode() + b"\n")

    def disconnected(self, client: _Client) -> None:
        """Forget a client."""
        self._clients.pop(client, None)

    def _failed(self, reason: str) -> None:
        if self._failures.is_due():
            structlog.get_logger().warning("accept_failed", server="status", reason=reason)


class _Client(asyncio.Protocol):
    def __init__(self, server: StatusServer) -> None:
        self._server = server
        self._timer: clock.Timer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not of that class
        self._server.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._timer is not None:
            self._timer.cancel()
        self._server.disconnected(self)

    def answer(self, line: bytes) -> None:
        """Send it; the connection is closed when the client has read all, or after a time."""
        self._timer = clock.call_later(_ANSWER_LIMIT_S, self.abort)
        self._transport.write(line)
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


def ask(path: Path) -> str:
    """Return the line of JSON of the service that listens at `path`. Raises StatusError."""
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_ANSWER_LIMIT_S)
            client.connect(str(path))
            while chunk := client.recv(65536):
                answer += chunk
                if len(answer) > _MAX_ANSWER_BYTES:
                    raise StatusError(f"{path}: the answer exceeds {_MAX_ANSWER_BYTES} bytes")
    except (FileNotFoundError, ConnectionRefusedError):  # a killed service leaves its socket
        raise StatusError(f"{path}: no service runs here (another path: --socket)") from None
    except OSError as error:
        raise StatusError(f"{path}: {error.strerror or error}") from error
    return answer.decode(errors="replace").strip()


def _listening_socket(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.setblocking(False)
        listening.bind(str(path))
        _set_mode(path)
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def _set_mode(path: Path) -> None:
    """Give the socket that was just bound its mode, by descriptor so that it can be no other file.

    umask would do so at once, but is process-wide: files that other threads create at that moment
    would be open to every user.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise FolderError(f"{path} is not the socket that was created there")
        # The kernel rejects fchmod for O_PATH; open(2) recommends this instead.
        Path(f"/proc/self/fd/{descriptor}").chmod(SOCKET_MODE)
    finally:
        os.close(descriptor)


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except BlockingIOError:  # its backlog is full
            return True
        except OSError:
            return False
    return True


def parse(line: str) -> tuple[list[PortDocument], dict[str, str]]:
    """Read a service's line: its ports, and USB devices that no port serves with the reasons.

    Unknown keys are ignored, the service may be newer. Raises StatusError.
    """
    try:
        content = json.loads(line)
        not_served = {each["device"]: each["reason"] for each in content["not_served"]}
        return [PortDocument.from_json(port) for port in content["ports"]], not_served
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StatusError(f"not the status of an esp-gateway of this version: {error}") from error


_HEAD: Final = (
    "PORT",
    "ADDRESS",
    "STATE",
    "CLIENT",
    "SINCE",
    "SETTINGS",
    "LINES",
    "FROM BOARD",
    "TO BOARD",
    "DROPPED",
    "REJECTED",
)


def to_table(ports: Iterable[PortDocument]) -> str:
    """The ports for a person, one line each, columns aligned.

    CLIENT has the controlling clients, then `<` and the suspended ones; SINCE is local time.
    DROPPED are bytes of both directions, REJECTED are clients that were not served.
    """
    rows = [_HEAD, *(_row(port) for port in ports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(port: PortDocument) -> tuple[str, ...]:
    clients = [", ".join(port.addresses_of(state)) for state in ClientState]
    return (
        port.name,
        port.address or "not bound",
        f"{port.state}: {port.reason}" if port.reason else port.state,
        " < ".join(filter(None, clients)) or "-",
        _local_time(port.clients[0].connected_at) if port.clients else "-",
        "-" if port.settings is None else str(port.settings),
        "-" if port.lines is None else str(port.lines),
        _amount(port.received_bytes),
        _amount(port.sent_bytes),
        _amount(port.output_dropped_bytes + port.input_dropped_bytes),
        str(sum(port.rejected.values())),
    )


def _local_time(utc: str) -> str:
    """A time of day on this machine, with the date if that is not today's."""
    at = datetime.fromisoformat(utc).astimezone()
    is_today = at.date() == datetime.now(at.tzinfo).date()
    return at.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S")


def _amount(n_bytes: int) -> str:
    """A number of bytes with a unit, at most ten characters."""
    amount = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
