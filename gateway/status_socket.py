"""The unix socket on which the running service reports its status, and the client's end of it.

A client connects, gets one line of JSON (`status`) and is disconnected: nothing can be asked for
or changed, so that every user of the host may look.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

import structlog

from gateway import clock
from gateway.errors import GatewayError
from gateway.net.acceptor import AcceptLoop
from gateway.net.access import OncePerPeriod
from gateway.turns import Turns

#: How long the service may take to answer, and a client to read the answer.
_ANSWER_LIMIT_S: Final = 5.0

#: A snapshot has about 300 bytes a port.
_LONGEST_ANSWER_BYTES: Final = 1 << 20

#: Clients at a time that have not read their answer. One more takes the place of the oldest. They
#: may have the descriptors that other connections leave alone, so that there is a status when it
#: is needed most.
MAX_CLIENTS: Final = 16

#: Every user may connect, which takes the right to write.
SOCKET_MODE: Final = 0o666

_FOLDER_MODE: Final = 0o755
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH

#: As the kernel's own limit.
_MOST_LINKS: Final = 40


class StatusError(GatewayError):
    """For the user who asks for the status: why there is none."""


class SocketInUseError(StatusError):
    """Another gateway of this user serves its status at the same path."""


class FolderError(StatusError):
    """Another user could put a file of theirs in the place of ours."""


def default_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the service listens: systemd's runtime directory, or the user's own."""
    if folder := environment.get("RUNTIME_DIRECTORY"):
        return Path(folder.split(":")[0]) / "status.sock"
    if folder := environment.get("XDG_RUNTIME_DIR"):
        return Path(folder) / "esp-gateway" / "status.sock"
    return Path(f"/tmp/esp-gateway-{os.getuid()}/status.sock")  # noqa: S108 - the folder is checked


#: Where the unit in systemd/ has its runtime directory, which only root can make.
_SYSTEM_PATH: Final = Path("/run/esp-gateway/status.sock")


def find_path(environment: Mapping[str, str] = os.environ, *, system: Path = _SYSTEM_PATH) -> Path:
    """Return where to ask: the system's service if there is one, else the user's own.

    Raises StatusError if another user may be the one who answers there.
    """
    if system.exists():
        return system
    path = default_path(environment)
    try:
        checked_folder(path.parent)
    except FileNotFoundError:
        pass  # so there is no service either, which `ask` says
    except OSError as error:
        raise StatusError(f"{path}: {error.strerror}") from error
    return path


def checked_folder(folder: Path, *, create: bool = False) -> Path:
    """Return a folder without symbolic links in its path, after making sure that it is safe.

    Only root and the user of this process may be able to change what the path leads to. In a
    sticky folder such as /tmp others can add names, but not replace ours. Each step is looked at
    before it is taken, and what has been looked at can't be changed by others: no race is left.
    Missing folders are made if `create`. Raises FolderError where another user could interfere,
    OSError where the path does not lead to a folder.
    """
    here = Path("/")
    _check_owner(here, here.lstat())
    ahead = deque(Path(os.path.abspath(folder)).parts[1:])  # noqa: PTH100 - resolve follows links
    n_links = 0
    while ahead:
        name = ahead.popleft()
        if name == "..":  # of a link: `here` has none in it
            here = here.parent
            continue
        step = here / name
        status = _status_of(step, create=create)
        _check_owner(step, status)
        if stat.S_ISLNK(status.st_mode):
            n_links += 1
            if n_links > _MOST_LINKS:
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


def _status_of(step: Path, *, create: bool) -> os.stat_result:
    if create:
        with contextlib.suppress(FileExistsError):
            step.mkdir(mode=_FOLDER_MODE)
    return step.lstat()


def _check_owner(step: Path, status: os.stat_result) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise FolderError(f"{step} belongs to another user (uid {status.st_uid})")
    is_sticky = bool(status.st_mode & stat.S_ISVTX)
    if stat.S_ISDIR(status.st_mode) and status.st_mode & _WRITABLE_BY_OTHERS and not is_sticky:
        raise FolderError(f"{step} can be changed by other users: chmod go-w {step}")


class StatusServer:
    """Sends each client what `snapshot` returns; made and used on the loop."""

    def __init__(self, path: Path, snapshot: Callable[[], str]) -> None:
        self.path = path
        self._snapshot = snapshot
        self._accept_loop: AcceptLoop | None = None
        self._clients: dict[_Client, None] = {}  # the oldest first
        self._failures = OncePerPeriod()

    async def start(self) -> None:
        """Listen. Raises StatusError or OSError if the socket can't be made."""
        path = checked_folder(self.path.parent, create=True) / self.path.name
        if _is_served(path):
            raise SocketInUseError(f"{self.path} belongs to a service that runs")
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
        self._accept_loop.connect(connection, _Client(self._connected, self._left))

    def _connected(self, client: _Client) -> None:
        if self._accept_loop is None:
            client.abort()
            return
        if len(self._clients) >= MAX_CLIENTS:
            next(iter(self._clients)).abort()
        self._clients[client] = None
        client.answer(self._snapshot().encode() + b"\n")

    def _left(self, client: _Client) -> None:
        self._clients.pop(client, None)

    def _failed(self, reason: str) -> None:
        if self._failures.is_due():
            structlog.get_logger().warning("accept_failed", server="status", reason=reason)


class _Client(asyncio.Protocol):
    def __init__(
        self, connected: Callable[[_Client], None], left: Callable[[_Client], None]
    ) -> None:
        self._connected = connected
        self._left = left
        self._timer: clock.Timer | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by their class
        self._connected(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._timer is not None:
            self._timer.cancel()
        self._left(self)

    def answer(self, line: bytes) -> None:
        """Send it; the connection is closed when the client has read all, or after a time."""
        self._timer = clock.call_later(_ANSWER_LIMIT_S, self.abort)
        self._transport.write(line)
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


def ask(path: Path) -> str:
    """Return the status of the service that listens at `path`.

    Raises StatusError with the reason why there is none.
    """
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_ANSWER_LIMIT_S)
            client.connect(str(path))
            while chunk := client.recv(65536):
                answer += chunk
                if len(answer) > _LONGEST_ANSWER_BYTES:
                    raise StatusError(f"{path}: the answer has no end")
    except (FileNotFoundError, ConnectionRefusedError):  # one that was killed leaves its socket
        raise StatusError(f"{path}: no service runs here (another one: --socket)") from None
    except OSError as error:
        raise StatusError(f"{path}: {error.strerror or error}") from error
    return answer.decode(errors="replace").strip()


def _listening_socket(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.setblocking(False)
        listening.bind(str(path))
        _let_everybody_connect(path)
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def _let_everybody_connect(path: Path) -> None:
    """Give the socket that was just bound its mode.

    By descriptor, so that nothing else can be meant. umask would give it at once, but belongs to
    the process: files that other threads make in that moment would be open to every user.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise FolderError(f"{path} is not the socket that was made there")
        # The kernel refuses fchmod for O_PATH; this is how it is done all the same (open(2)).
        Path(f"/proc/self/fd/{descriptor}").chmod(SOCKET_MODE)
    finally:
        os.close(descriptor)


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(str(path))
        except BlockingIOError:  # as many as it takes wait already
            return True
        except OSError:
            return False
    return True
