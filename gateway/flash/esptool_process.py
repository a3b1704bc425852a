"""esptool as a process of its own: which one there is, its lines as they come, and its end.

esptool is under the GPL and the gateway is not, so it is run and never imported. What it is told
is `esptool_command`'s matter, what it says `esptool_output`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway import clock
from gateway.errors import GatewayError
from gateway.runtime import start_process

#: Names a command to run instead of the esptool that would be found.
COMMAND_VARIABLE = "ESP_GATEWAY_ESPTOOL"

#: esptool imports for 4 s on a Raspberry Pi Zero, and longer while others start too.
_VERSION_LIMIT_S = 60.0

#: The longest silence of one that works is that in which a flash chip is erased, about 100 s for
#: 32 MB; its own time limits for what does not answer are below that.
SILENCE_LIMIT_S = 300.0

#: How long it may take to end after SIGTERM.
_END_LIMIT_S = 2.0

_READ_BYTES = 4096
#: esptool's longest line, a progress bar in UTF-8, has 200.
_MAX_LINE_BYTES = 2000

_VERSION = re.compile(rb"esptool(?:\.py)? v(\d+)\.(\d+)[^\s]*")
_LINE_END = re.compile(rb"[\r\n]")


class NoEsptoolError(GatewayError):
    """For the gateway's operator: why there is no esptool to run."""


class SilentEsptoolError(GatewayError):
    """esptool was ended since nothing came of it."""


@dataclass(frozen=True, slots=True)
class Esptool:
    """An esptool that has told its version: how it is run, and that version as (5, 6)."""

    command: tuple[str, ...]
    version: tuple[int, int]


async def find_esptool(environment: Mapping[str, str] = os.environ) -> Esptool:
    """The one that $ESP_GATEWAY_ESPTOOL names, else that of this Python, else that of $PATH.

    Raises NoEsptoolError when there is none or when it does not work.
    """
    if not environment.get(COMMAND_VARIABLE) and importlib.util.find_spec("esptool") is not None:
        return _of_this_python()
    command = _command(environment)
    said = bytearray()
    try:
        async with clock.timeout(_VERSION_LIMIT_S):
            code = await _run([*command, "version"], None, said.extend, _VERSION_LIMIT_S)
    except (OSError, TimeoutError) as error:
        raise NoEsptoolError(f"{shlex.join(command)}: {error or 'it does not answer'}") from None
    found = _VERSION.search(said)
    if code != 0 or found is None:
        last = said.decode(errors="replace").strip().rpartition("\n")[2][:200]
        raise NoEsptoolError(f"{shlex.join(command)} does not tell its version: {last}")
    return Esptool(tuple(command), (int(found[1]), int(found[2])))


def _of_this_python() -> Esptool:
    """Its version is in its metadata: starting it to ask takes seconds."""
    try:
        major, minor = importlib.metadata.version("esptool").split(".")[:2]
        version = (int(major), int(minor))
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        raise NoEsptoolError(f"esptool of {sys.executable} has no version: {error}") from None
    return Esptool((sys.executable, "-m", "esptool"), version)


def _command(environment: Mapping[str, str]) -> list[str]:
    if named := environment.get(COMMAND_VARIABLE):
        return shlex.split(named)
    for name in ("esptool", "esptool.py"):
        if (path := shutil.which(name, path=environment.get("PATH"))) is not None:
            return [path]
    raise NoEsptoolError(
        "esptool is not installed on the gateway: pip install 'esp-serial-gateway[flash]' there"
    )


async def run_esptool(
    command: Sequence[str],
    folder: Path,
    said: Callable[[str], None],
    silence_limit_s: float = SILENCE_LIMIT_S,
) -> int:
    """Run it to its end in `folder`; `said` gets each line. Returns its exit code.

    However this ends, cancelled for instance, no process of its group is left. Raises OSError when
    it can't be started, SilentEsptoolError when it says nothing for `silence_limit_s`.
    """
    lines = _Lines(said)
    code = await _run(command, folder, lines.feed, silence_limit_s)
    lines.end()
    return code


async def _run(
    command: Sequence[str],
    folder: Path | None,
    said: Callable[[bytes], object],
    silence_limit_s: float,
) -> int:
    process = await start_process(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        # Lines as they come, in one encoding, whatever the service's environment says.
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"},
        # A group of its own, for it may start others; and a Ctrl-C is the gateway's.
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101 - asked for above
    try:
        while True:
            async with clock.timeout(silence_limit_s):
                data = await process.stdout.read(_READ_BYTES)
            if not data:
                break
            said(data)
        async with clock.timeout(silence_limit_s):
            return await process.wait()
    except TimeoutError:
        raise SilentEsptoolError(f"esptool has said nothing for {silence_limit_s:g} s") from None
    finally:
        await _end_group(process)


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """End all of it, and wait until its pipe has been closed."""
    # The whole of it even if this is cancelled again: nobody else would.
    ending = asyncio.ensure_future(_terminate(process))
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await ending
        raise


async def _terminate(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None  # noqa: S101 - asked for in _run
    for number in (signal.SIGTERM, signal.SIGKILL):
        # What has left its pipes open is of its group, whose number is not free then.
        if process.returncode is not None and process.stdout.at_eof():
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_END_LIMIT_S):
                while await process.stdout.read(_READ_BYTES):
                    pass
                await process.wait()


class _Lines:
    """Cuts bytes into lines of text; what is too long for one is cut off."""

    def __init__(self, said: Callable[[str], None]) -> None:
        self._said = said
        self._begun = bytearray()

    def feed(self, data: bytes) -> None:
        """Bytes as they come."""
        *whole, rest = _LINE_END.split(data)
        for part in whole:
            self._begun += part
            self.end()
        self._begun += rest
        del self._begun[_MAX_LINE_BYTES:]

    def end(self) -> None:
        """A line has ended, if one had begun."""
        if line := bytes(self._begun[:_MAX_LINE_BYTES]):
            self._said(line.decode(errors="replace").rstrip())
        self._begun.clear()
