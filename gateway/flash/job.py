"""Flashing one board on the gateway: takes the port, runs esptool on its tty, gives the port back.

What it is told comes checked and its images stored (`plan`, `store`); how far it has
got is reported as dicts that go to the client as they are. HTTP is the matter of `web.flash`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from gateway.config.document import PortConfig
from gateway.devices.device import Device
from gateway.devices.sharing import local_now
from gateway.flash.esptool_command import write_command
from gateway.flash.esptool_output import ChipFound, EsptoolOutput, Event, Phase, Verified, Writing
from gateway.flash.esptool_process import Esptool, SilentEsptoolError, find_esptool, run_esptool
from gateway.flash.outcome import Outcome
from gateway.flash.plan import FlashPlan
from gateway.flash.store import ImageStore
from gateway.flash.user import FlashUser, NoBoardError
from gateway.protocol.reset import Reset

#: esptool takes 40 MB of memory, and all the CPU of a small computer while it starts.
_AT_ONCE = 8

#: Where udev keeps names that a device keeps when it is plugged in again in the same socket.
_STABLE_NAMES = Path("/dev/serial/by-path")

Report = Callable[[dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class FlashRequest:
    """Which board is to be flashed with what, stored where, and who is told of it.

    With `disconnect` the port's clients are disconnected for it, whatever its sharing rule.
    """

    config: PortConfig
    device: Device
    plan: FlashPlan
    store: ImageStore
    report: Report
    label: str
    disconnect: bool = False


@dataclass(frozen=True, slots=True)
class FlashResult:
    """What has come of it; `message` is one line, empty if there is nothing to add."""

    outcome: Outcome
    message: str = ""
    verified: int = 0  # images


class Flasher:
    """Flashes boards, each for one client at a time; made and used on the loop."""

    def __init__(
        self,
        log: structlog.typing.FilteringBoundLogger,
        stable_names: Path = _STABLE_NAMES,
    ) -> None:
        self._log = log
        self._stable_names = stable_names
        self._esptool: Esptool | None = None
        self._under_way: dict[str, str] = {}  # who flashes a port since when
        self._writing: set[str] = set()  # ports whose boards are in the flasher's hands
        self._slots = asyncio.Semaphore(_AT_ONCE)

    @property
    def under_way(self) -> Mapping[str, str]:
        """By whom and since when each port is flashed that is."""
        return self._under_way

    def flashed_by(self, name: str) -> str:
        """By whom and since when the board of a port is flashed; "" while it is not touched."""
        return self._under_way.get(name, "") if name in self._writing else ""

    async def esptool(self) -> Esptool:
        """The esptool that is run. Raises NoEsptoolError when there is none that works."""
        if self._esptool is None:
            self._esptool = await find_esptool()
        return self._esptool

    @contextmanager
    def reserved(self, name: str, label: str) -> Iterator[None]:
        """Keep a port for one flasher, from before its images come; NoBoardError if another has."""
        if (other := self._under_way.get(name)) is not None:
            raise NoBoardError(Outcome.BUSY, f"{name}: being flashed by {other}")
        self._under_way[name] = f"{label} since {local_now():%H:%M:%S}"
        try:
            yield
        finally:
            del self._under_way[name]

    async def flash(self, request: FlashRequest) -> FlashResult:
        """Carry it out. However it ends, cancelled for instance, the port is free afterwards.

        Raises NoBoardError when the port can't be had, before anything was done to the board.
        """
        esptool = await self.esptool()
        name = request.config.name
        user = FlashUser(request.device, f"esptool for {request.label}")
        if self._slots.locked():
            request.report({"event": "waiting", "for": f"one of {_AT_ONCE} that are being flashed"})
        async with self._slots:
            try:
                before = request.device.users.names
                await user.take(disconnect=request.disconnect)
                self._writing.add(name)
                request.report({"event": "port", "name": name, "had": before})
                result = await _Job(request, user, esptool, self._stable_names).run()
            finally:
                self._writing.discard(name)
                user.leave()
        return result


class _Job:
    """One run of esptool with all that is around it."""

    def __init__(
        self, request: FlashRequest, user: FlashUser, esptool: Esptool, stable_names: Path
    ) -> None:
        self._user = user
        self._plan = request.plan
        self._esptool = esptool
        self._store = request.store
        self._report = request.report
        self._stable_names = stable_names
        self._output = EsptoolOutput(len(request.plan.images))
        options = request.plan.options
        # esptool knows its boards, and tries again; but not what the operator has said of this
        # one, and a simulated one has no modem lines that it could move.
        own = request.config.device.simulated is not None
        own = own or request.config.resets.reset not in {Reset.AUTO, Reset.NONE}
        self._enters = own and options.before == "default-reset"
        self._resets = own and options.after == "hard-reset"

    async def run(self) -> FlashResult:
        """From the board that is ours to the board that is back."""
        try:
            if self._enters:
                await self._user.enter_bootloader()
            tty = await self._user.lend()
            outcome, message = await self._write(await asyncio.to_thread(self._stable, tty))
        except NoBoardError as error:
            return FlashResult(self._outcome_without(error), str(error), self._output.verified)
        try:
            await self._user.take_back()
            if self._resets:
                await self._user.reset()
            await self._user.settle()
        except NoBoardError as error:
            if outcome is Outcome.WRITTEN:
                outcome, message = Outcome.NOT_RESET, str(error)
        return FlashResult(outcome, message, self._output.verified)

    async def _write(self, tty: str) -> tuple[Outcome, str]:
        command = write_command(
            self._esptool.command, self._esptool.version[0], tty, self._commanded(), self._files()
        )
        self._report(
            {"event": "started", "esptool": "{}.{}".format(*self._esptool.version), "tty": tty}
        )
        running = asyncio.ensure_future(run_esptool(command, self._store.folder, self._said))
        try:
            either: set[asyncio.Future[Any]] = {running, self._user.lost}
            await asyncio.wait(either, return_when="FIRST_COMPLETED")
            if not running.done():
                raise NoBoardError(Outcome.ABSENT, self._user.lost.result())
            return self._output.outcome(running.result())
        except (OSError, SilentEsptoolError) as error:
            return self._output.outcome(1)[0], str(error)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, SilentEsptoolError):
                await running

    def _commanded(self) -> FlashPlan:
        options = self._plan.options
        if self._enters:
            options = replace(options, before="no-reset")
        if self._resets:
            options = replace(options, after="no-reset")
        return replace(self._plan, options=options)

    def _files(self) -> list[str]:
        return [self._store.file(number) for number in range(len(self._plan.images))]

    def _stable(self, tty: str) -> str:
        """Another name for it that it keeps when the board leaves the bus and comes back."""
        with contextlib.suppress(OSError):
            real = Path(tty).resolve()
            for link in sorted(self._stable_names.iterdir()):
                if link.resolve() == real:
                    return str(link)
        return tty

    def _said(self, line: str) -> None:
        for event in self._output.read(line):
            self._report(self._described(event))
        self._report({"event": "line", "text": line})

    def _described(self, event: Event) -> dict[str, object]:
        match event:
            case ChipFound(chip):
                return {"event": "chip", "chip": chip}
            case Verified(image):
                return {"event": "verified", "image": image}
            case Writing(image, percent):
                before = sum(each.size for each in self._plan.images[:image])
                written = before + round(self._plan.images[image].size * percent / 100)
                return {
                    "event": "progress",
                    "image": image,
                    "written": written,
                    "total": self._plan.total_bytes,
                }

    def _outcome_without(self, error: NoBoardError) -> Outcome:
        """What a board that was lost has come to: esptool was ended in the midst of it."""
        if error.outcome is Outcome.ABSENT and self._output.phase >= Phase.WRITING:
            return Outcome.INCOMPLETE
        return error.outcome
