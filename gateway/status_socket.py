"""The unix socket on which the running service tells its status, and who asks there.

A client connects, gets one line of JSON (`status`) and is disconnected: nothing can be asked for
or changed, so that everybody on the host may look.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from gateway import clock
from gateway.errors import GatewayError

#: How long the service may take to answer.
_ANSWER_LIMIT_S = 5.0

#: A snapshot has about 300 bytes a port.
_LONGEST_ANSWER_BYTES = 1 << 20


class StatusError(GatewayError):
    """For whoever asks for the status: why there is none."""


def default_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the service listens: systemd's runtime directory, or the user's own."""
    if folder := environment.get("RUNTIME_DIRECTORY"):
        return Path(folder.split(":")[0]) / "status.sock"
    if folder := environment.get("XDG_RUNTIME_DIR"):
        return Path(folder) / "esp-gateway" / "status.sock"
    return Path(f"/tmp/esp-gateway-{os.getuid()}/status.sock")  # noqa: S108 - a folder of our own


#: Where the unit in systemd/ has its runtime directory.
_SYSTEM_PATH = Path("/run/esp-gateway/status.sock")


def find_path(environment: Mapping[str, str] = os.environ, *, system: Path = _SYSTEM_PATH) -> Path:
    """Where to ask: the system's service if there is one, else the user's own."""
    return system if system.exists() else default_path(environment)


class StatusServer:
    """Tells everybody who connects what `snapshot` gives; made and used on the loop."""

    def __init__(self, path: Path, snapshot: Callable[[], str]) -> None:
        self.path = path
        self._snapshot = snapshot
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises OSError when the socket can't be made or another service has it."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if _is_served(self.path):
            raise OSError(f"{self.path} belongs to a service that runs")
        if self.path.is_socket():
            self.path.unlink()  # of a service that was killed
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Answer(self._snapshot), str(self.path)
        )
        self.path.chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)

    def stop(self) -> None:
        """Listen no more, remove the socket."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


class _Answer(asyncio.Protocol):
    def __init__(self, snapshot: Callable[[], str]) -> None:
        self._snapshot = snapshot

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say it all; asyncio closes when the last byte has been taken."""
        connection = cast("asyncio.Transport", transport)  # uvloop's are none by their class
        connection.write(self._snapshot().encode() + b"\n")
        connection.close()
        # A client that does not read is not waited for.
        clock.call_later(_ANSWER_LIMIT_S, connection.abort)


def ask(path: Path) -> str:
    """The status of the service that listens at `path`; StatusError says why there is none."""
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


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True
