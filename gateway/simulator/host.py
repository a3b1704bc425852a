"""Simulated boards as the gateway and the tests use them: start, set lines, read the log.

Each board is a process of its own (`python -m gateway.simulator`), so that it neither takes time
from the gateway's event loop nor shares its fate.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import gateway
from gateway.errors import DeviceError
from gateway.runtime import start_process
from gateway.simulator.attachment import UsbIds
from gateway.simulator.url import BoardUrl

# Files in a board's folder.
CONTROL_NAME = "control"
LOG_NAME = "log.jsonl"
TTY_NAME = "tty"
BY_PATH_NAME = "by-path"
USB_NAME = "usb.json"

#: The process ends when its standard input does: how it notices that its starter has died.
EXIT_WITH_STDIN = "--exit-with-stdin"

#: First word of the one line on standard output; the tty's path or the reason follows.
READY = "ready"
FAILED = "failed"

#: No request over the control socket is longer; bounds what a broken client can make us collect.
MAX_REQUEST_BYTES = 200

#: Importing takes 2 s on a slow Raspberry Pi.
START_LIMIT_S = 10.0
#: The process has only a few files to remove.
STOP_LIMIT_S = 5.0

#: The process runs the code that runs here, wherever it was imported from.
_IMPORT_ROOT = str(Path(gateway.__file__).absolute().parents[1])

#: A board's process answers within milliseconds; a control thread must not hang on a stopped one.
_LINES_LIMIT_S = 2.0

#: sizeof(sockaddr_un.sun_path), with the NUL at its end (unix(7)).
_MAX_SOCKET_PATH_BYTES = 108


@dataclass(frozen=True, slots=True)
class UsbDevice:
    """The USB device that a board is at the moment.

    `number` is 1 for the first device since the board's process started; `tty_name` is the
    kernel's name, in the board's folder.
    """

    number: int
    ids: UsbIds
    tty_name: str


def read_usb_device(folder: Path) -> UsbDevice | None:
    """The device of the board in `folder`; None while there is none."""
    try:
        entry = json.loads((folder / USB_NAME).read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    return UsbDevice(entry["number"], UsbIds.parse(entry["ids"]), entry["tty"])


class SimulatedBoard:
    """A board whose process runs; made by `start_board`, ended by `stop`.

    `tty_path` is the tty's name at first, `by_path` a name that stays when the kernel's changes.
    """

    def __init__(
        self, url: BoardUrl, folder: Path, process: asyncio.subprocess.Process, owns_folder: bool
    ) -> None:
        self.url = url
        self.tty_path = folder / TTY_NAME
        self.by_path = folder / BY_PATH_NAME
        self.control_path = folder / CONTROL_NAME
        self.log_path = folder / LOG_NAME
        self.folder = folder
        self._process = process
        self._private_folder = folder if owns_folder else None

    @property
    def is_running(self) -> bool:
        """Whether the process still runs."""
        return self._process.returncode is None

    @property
    def usb_device(self) -> UsbDevice | None:
        """The USB device that the board is at the moment; None while it is gone."""
        return read_usb_device(self.folder)

    @property
    def usb_ids(self) -> UsbIds | None:
        """Vendor and product id of that device."""
        device = self.usb_device
        return None if device is None else device.ids

    async def stop(self) -> None:
        """End the process and remove the private folder; does nothing the second time."""
        await _end(self._process)
        if self._private_folder is not None:
            shutil.rmtree(self._private_folder, ignore_errors=True)


async def start_board(url: BoardUrl) -> SimulatedBoard:
    """Start the process of a board; its tty can be opened then.

    Raises DeviceError with the reason when it can't start or takes longer than START_LIMIT_S.
    """
    folder = None if url.folder is None else url.folder.absolute()
    owns_folder = folder is None
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="simulated-board-"))
    process = None
    try:
        process = await _spawn(replace(url, folder=folder))
        await _wait_until_ready(process)
    except BaseException as error:
        if process is not None:
            if isinstance(error, asyncio.CancelledError):
                # While it imports it does not notice the end of its standard input.
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
            await _end(process)
        if owns_folder:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError | DeviceError):
            raise DeviceError(f"{url} can't be started: {error}") from error
        raise
    return SimulatedBoard(url, folder, process, owns_folder)


async def _spawn(url: BoardUrl) -> asyncio.subprocess.Process:
    search_path = [_IMPORT_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    return await start_process(
        sys.executable,
        *("-m", "gateway.simulator", EXIT_WITH_STDIN, str(url)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path)},
        # A Ctrl-C is for the starter, which ends its boards in its own order.
        start_new_session=True,
    )


async def _wait_until_ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None  # noqa: S101 - asked for in _spawn
    try:
        async with asyncio.timeout(START_LIMIT_S):
            line = (await process.stdout.readline()).decode(errors="replace").strip()
    except TimeoutError:
        raise DeviceError(f"not ready within {START_LIMIT_S:g} s") from None
    word, _, rest = line.partition(" ")
    if word == FAILED:
        raise DeviceError(rest)
    if word != READY:
        raise DeviceError("its process ended; the traceback is on standard error")


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process and wait for it; kill it if it takes longer than STOP_LIMIT_S."""
    assert process.stdin is not None  # noqa: S101 - asked for in _spawn
    assert process.stdout is not None  # noqa: S101 - asked for in _spawn
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_LIMIT_S):
            # Both pipes at their end, so that asyncio has nothing left to close.
            await process.stdout.read()
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


class SimulatedLines:
    """DTR and RTS of a simulated board, which its pty lacks; one connection to its control socket.

    Calls may block, for up to 2 s. Raises OSError when the board is gone, like an ioctl on a
    serial port that was unplugged; only a new object works again then.
    """

    def __init__(self, control_path: Path | str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_LINES_LIMIT_S)
        try:
            _connect(self._socket, Path(control_path))
        except OSError:
            self._socket.close()
            raise

    def set_lines(self, dtr: bool, rts: bool) -> None:
        """Set both lines at once, as one TIOCMSET does; True is asserted."""
        stamp_ns = time.monotonic_ns()
        self._check_alive()
        self._socket.sendall(f"lines {dtr:d} {rts:d} {stamp_ns}\n".encode())

    def close(self) -> None:
        """Leave the lines as they are; nothing else may be called then."""
        self._socket.close()

    def _check_alive(self) -> None:
        """Raise what the board has said against earlier calls, or that it has hung up."""
        self._socket.setblocking(False)
        try:
            answer = self._socket.recv(4096)
        except BlockingIOError:
            return
        finally:
            self._socket.settimeout(_LINES_LIMIT_S)
        raise OSError(answer.decode(errors="replace").strip() or "the simulated board is gone")


def _connect(control: socket.socket, path: Path) -> None:
    if len(os.fsencode(path)) < _MAX_SOCKET_PATH_BYTES:
        control.connect(str(path))
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        control.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def read_log(path: Path) -> list[dict[str, object]]:
    """The board's log so far, oldest first; a line that is only half written is left out.

    Each entry has `t_ns` (CLOCK_MONOTONIC) and `event`. What the circuit does is logged
    circuit.DELIVERY_NS late, with its true time.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
