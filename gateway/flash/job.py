"""Flash one board on the gateway: claim its port, run esptool on its tty, give the port back.

The plan comes checked and its images stored. How far a job has got is reported as events, dicts
that go to the client as they are (docs/http-api.md).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from gateway.config.document import PortConfig
from gateway.flash.esptool import (
    Esptool,
    EsptoolOutput,
    Phase,
    SilentEsptoolError,
    find_esptool,
    run_esptool,
    write_command,
)
from gateway.flash.plan import FlashPlan, Outcome
from gateway.flash.store import ImageStore
from gateway.flash.user import FlashUser, NoBoardError
from gateway.port.port import Port
from gateway.protocol.reset import Reset, Starts

#: esptool takes 40 MB of memory, and all the CPU of a small computer while it starts.
_AT_ONCE: Final = 8

#: Where udev keeps names that a device keeps when it is plugged in again in the same socket.
_STABLE_NAMES: Final = Path("/dev/serial/by-path")

#: Lines of esptool that wait for a client; a whole run into 4 MB has 300.
MAX_WAITING_LINES: Final = 1000
#: Other events that wait; a run has two for each image and three more, besides progress.
MAX_WAITING_OTHERS: Final = 500


class FlashEvents:
    """Events of one job that wait for its client: a client that is slow must not stop the job.

    Of consecutive progress only the last is kept, of esptool's lines the last MAX_WAITING_LINES.
    """

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque()
        self._n_lines = 0
        self._arrived = asyncio.Event()

    def add(self, event: dict[str, Any]) -> None:
        """Keep an event for the client."""
        kind = event["event"]
        if kind == "line":
            if self._n_lines == MAX_WAITING_LINES:
                self._waiting.remove(next(each for each in self._waiting if _is_line(each)))
                self._n_lines -= 1
            self._n_lines += 1
        elif kind == "progress" and self._waiting and self._waiting[-1]["event"] == "progress":
            self._waiting.pop()
        elif len(self._waiting) - self._n_lines >= MAX_WAITING_OTHERS:
            return
        self._waiting.append(event)
        self._arrived.set()

    async def arrived(self) -> None:
        """Wait until there is an event."""
        await self._arrived.wait()

    def take(self) -> list[dict[str, Any]]:
        """Return and forget all events, oldest first."""
        taken = list(self._waiting)
        self._waiting.clear()
        self._n_lines = 0
        self._arrived.clear()
        return taken


def _is_line(event: dict[str, Any]) -> bool:
    return bool(event["event"] == "line")


@dataclass(frozen=True, slots=True)
class FlashRequest:
    """What is to be written to the board of which port; `report` gets the events.

    With `disconnect` the port's clients are disconnected, whatever its sharing rule.
    """

    config: PortConfig
    port: Port
    plan: FlashPlan
    store: ImageStore
    report: Callable[[dict[str, object]], None]
    label: str
    disconnect: bool = False


@dataclass(frozen=True, slots=True)
class FlashResult:
    """What came of a request; `message` is one line, empty if there is nothing to add."""

    outcome: Outcome
    message: str = ""
    verified: int = 0  # images


class Flasher:
    """Flashes boards, each for one client at a time; made and used on the loop."""

    def __init__(self, stable_names: Path = _STABLE_NAMES) -> None:
        self._stable_names = stable_names
        self._esptool: Esptool | None = None
        self._reserved: dict[str, str] = {}  # by port: for which client, since when
        self._writing: set[str] = set()  # ports whose boards a job has
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def flashed_by(self, name: str) -> str:
        """Return for which client a board is being written, since when; "" if it is not."""
        return self._reserved.get(name, "") if name in self._writing else ""

    async def esptool(self) -> Esptool:
        """Return the esptool that is run. Raises NoEsptoolError when there is none that works."""
        if self._esptool is None:
            self._esptool = await find_esptool()
        return self._esptool

    @contextmanager
    def reserved(self, name: str, label: str) -> Iterator[None]:
        """Keep a port for one client, from before its images come; NoBoardError if it is taken."""
        if (other := self._reserved.get(name)) is not None:
            raise NoBoardError(Outcome.BUSY, f"{name}: being flashed by {other}")
        self._reserved[name] = f"{label} since {datetime.now():%H:%M:%S}"
        try:
            yield
        finally:
            del self._reserved[name]

    async def flash(self, request: FlashRequest) -> FlashResult:
        """Carry out a request. However this ends, by cancellation for instance, the port is free.

        Raises NoBoardError when the port is not granted; nothing was done to the board then.
        """
        esptool = await self.esptool()
        name = request.config.name
        user = FlashUser(request.port, f"esptool for {request.label}")
        if self._slots.locked():
            request.report({"event": "waiting", "for": f"one of {_AT_ONCE} that are being flashed"})
        async with self._slots:
            try:
                before = request.port.arbiter.controller_names
                await user.take(disconnect=request.disconnect)
                self._writing.add(name)
                request.report({"event": "port", "name": name, "had": before})
                return await _write(request, user, esptool, self._stable_names)
            finally:
                self._writing.discard(name)
                user.leave()


async def _write(
    request: FlashRequest, user: FlashUser, esptool: Esptool, stable_names: Path
) -> FlashResult:
    """Write the images to a board whose port is claimed; wait until the board is back."""
    # esptool knows its boards and tries again; but not the reset that the operator has configured,
    # and it can't move the lines of a simulated board.
    options = request.plan.options
    resets = request.config.device.simulated is not None
    resets = resets or request.config.resets.reset not in {Reset.AUTO, Reset.NONE}
    enters_bootloader = resets and options.before == "default-reset"
    starts_app = resets and options.after == "hard-reset"
    if enters_bootloader:
        options = replace(options, before="no-reset")
    if starts_app:
        options = replace(options, after="no-reset")
    plan = replace(request.plan, options=options)
    output = EsptoolOutput(plan)
    try:
        if enters_bootloader:
            await user.start(Starts.BOOTLOADER)
        tty = await asyncio.to_thread(_stable_name, await user.lend(), stable_names)
        files = [request.store.file(number) for number in range(len(plan.images))]
        version = "{}.{}".format(*esptool.version)
        request.report({"event": "started", "esptool": version, "tty": tty})
        command = write_command(esptool, tty, plan, files)
        outcome, message = await _run(command, request, user, output)
    except NoBoardError as error:
        was_writing = error.outcome is Outcome.ABSENT and output.phase >= Phase.WRITING
        outcome = Outcome.INCOMPLETE if was_writing else error.outcome
        return FlashResult(outcome, str(error), output.verified)
    try:
        await user.take_back()
        if starts_app:
            await user.start(Starts.APP)
        await user.settle()
    except NoBoardError as error:
        if outcome is Outcome.WRITTEN:
            outcome, message = Outcome.NOT_RESET, str(error)
    return FlashResult(outcome, message, output.verified)


async def _run(
    command: Sequence[str], request: FlashRequest, user: FlashUser, output: EsptoolOutput
) -> tuple[Outcome, str]:
    """Run esptool to its end, or end it and raise NoBoardError when the port is lost."""

    def on_line(line: str) -> None:
        if (event := output.read(line)) is not None:
            request.report(event)
        request.report({"event": "line", "text": line})

    running = asyncio.ensure_future(run_esptool(command, request.store.folder, on_line))
    try:
        either: set[asyncio.Future[Any]] = {running, user.lost}
        await asyncio.wait(either, return_when="FIRST_COMPLETED")
        if not running.done():
            raise NoBoardError(Outcome.ABSENT, user.lost.result())
        return output.outcome(running.result())
    except (OSError, SilentEsptoolError) as error:
        return output.outcome(1)[0], str(error)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError, SilentEsptoolError):
            await running


def _stable_name(tty: str, stable_names: Path) -> str:
    """Return a name that the tty keeps when the board leaves the bus and returns, if it has one."""
    with contextlib.suppress(OSError):
        real = Path(tty).resolve()
        for link in sorted(stable_names.iterdir()):
            if link.resolve() == real:
                return str(link)
    return tty
