"""Run esptool as a process: find it, build its command line, follow its output to an outcome.

esptool is under the GPL and the gateway is not, so it is run and never imported. Versions 4 and 5
are understood; of others, the lines are passed on all the same.
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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from gateway import clock
from gateway.flash.plan import FlashError, FlashPlan, Outcome
from gateway.runtime import start_process, uncancelled

#: Environment variable with a command to run instead of the esptool that would be found.
COMMAND_VARIABLE: Final = "ESP_GATEWAY_ESPTOOL"

#: esptool imports for 4 s on a Raspberry Pi Zero, and longer while others start too.
_VERSION_LIMIT_S: Final = 60.0

#: The longest silence of an esptool that works: erasing a flash chip takes about 100 s for 32 MB;
#: its own limits for a chip that does not answer are below that.
SILENCE_LIMIT_S: Final = 300.0

#: How long it may take to end after SIGTERM.
_END_LIMIT_S: Final = 2.0

_READ_BYTES: Final = 4096
#: esptool's longest line, a progress bar in UTF-8, has 200.
_MAX_LINE_BYTES: Final = 2000
_MAX_REASON_CHARACTERS: Final = 300
#: Lines of `esptool version` that are kept; it prints 2.
_MAX_VERSION_LINES: Final = 100

_VERSION: Final = re.compile(r"esptool(?:\.py)? v(\d+)\.(\d+)")
_LINE_END: Final = re.compile(rb"[\r\n]")


class NoEsptoolError(FlashError):
    """Why there is no esptool to run; for the gateway's operator as well."""

    def __init__(self, message: str) -> None:
        super().__init__(Outcome.NO_ESPTOOL, message)


class SilentEsptoolError(Exception):
    """esptool was ended because it printed nothing for too long."""


@dataclass(frozen=True, slots=True)
class Esptool:
    """An esptool that works: how it is run, and its version as (5, 6)."""

    command: tuple[str, ...]
    version: tuple[int, int]


async def find_esptool(environment: Mapping[str, str] = os.environ) -> Esptool:
    """Find the esptool that $ESP_GATEWAY_ESPTOOL names, else this Python's, else that of $PATH.

    Raises NoEsptoolError when there is none or it does not work.
    """
    if not environment.get(COMMAND_VARIABLE) and importlib.util.find_spec("esptool") is not None:
        return _of_this_python()
    command = _command(environment)
    lines: deque[str] = deque(maxlen=_MAX_VERSION_LINES)
    try:
        async with clock.timeout(_VERSION_LIMIT_S):
            code = await run_esptool([*command, "version"], None, lines.append)
    except (OSError, TimeoutError) as error:
        raise NoEsptoolError(f"{shlex.join(command)}: {str(error) or 'no answer'}") from None
    found = _VERSION.search("\n".join(lines))
    if code != 0 or found is None:
        last = lines[-1][:200] if lines else ""
        raise NoEsptoolError(f"{shlex.join(command)} does not print its version: {last}")
    return Esptool(tuple(command), (int(found[1]), int(found[2])))


def _of_this_python() -> Esptool:
    try:
        # Starting it to ask for its version would take seconds.
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


def write_command(esptool: Esptool, tty: str, plan: FlashPlan, files: Sequence[str]) -> list[str]:
    """Return the command that writes `files`, the images in the order of the plan, to a board."""
    options = plan.options
    words = ["--chip", options.chip, "--baud", str(options.baudrate)]
    words += ["--before", options.before, "--after", options.after]
    words += [] if options.stub else ["--no-stub"]
    words += ["write-flash", "--flash-mode", options.flash_mode]
    words += ["--flash-freq", options.flash_freq, "--flash-size", options.flash_size]
    flags = {
        "--erase-all": options.erase_all,
        "--force": options.force,
        "--compress": options.compress is True,
        "--no-compress": options.compress is False,
    }
    words += [flag for flag, wanted in flags.items() if wanted]
    if esptool.version < (5, 0):
        words = [_word_of_4(word) for word in words]
    command = [*esptool.command, "--port", tty, *words]
    for image, file in zip(plan.images, files, strict=True):
        command += [f"{image.offset:#x}", file]
    return command


#: Where esptool 4 has dashes already.
_SAME_IN_4: Final = {"--no-stub", "--erase-all", "--no-compress"}


def _word_of_4(word: str) -> str:
    """Return the word of esptool 4, which has underscores between the parts of a name."""
    if word in _SAME_IN_4 or not re.fullmatch("(--)?[a-z-]+", word):
        return word
    return word[:2] + word[2:].replace("-", "_")


async def run_esptool(
    command: Sequence[str],
    folder: Path | None,
    on_line: Callable[[str], object],
    silence_limit_s: float = SILENCE_LIMIT_S,
) -> int:
    """Run a command in `folder`, pass on each line that it prints, and return its exit code.

    Lines are cut to _MAX_LINE_BYTES. However this ends, by cancellation for instance, no process of
    the command's group is left. Raises OSError when it can't be started, SilentEsptoolError when it
    prints nothing for `silence_limit_s`.
    """
    process = await start_process(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        # Unbuffered and in one encoding, whatever the service's environment says.
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"},
        # A group of its own, since it may start others and a Ctrl-C is the gateway's.
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101 - asked for above
    begun = b""
    try:
        while True:
            async with clock.timeout(silence_limit_s):
                data = await process.stdout.read(_READ_BYTES)
            *lines, begun = _LINE_END.split(begun + (data or b"\n"))
            for line in lines:
                if line:
                    on_line(line[:_MAX_LINE_BYTES].decode(errors="replace").rstrip())
            begun = begun[:_MAX_LINE_BYTES]
            if not data:
                break
        async with clock.timeout(silence_limit_s):
            return await process.wait()
    except TimeoutError:
        raise SilentEsptoolError(f"esptool printed nothing for {silence_limit_s:g} s") from None
    finally:
        await uncancelled(_end_group(process))


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """End all processes of the group, and wait until its pipe has been closed."""
    assert process.stdout is not None  # noqa: S101 - asked for in run_esptool
    for number in (signal.SIGTERM, signal.SIGKILL):
        # A process that has left the pipe open is of the group, whose number is then not free.
        if process.returncode is not None and process.stdout.at_eof():
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_END_LIMIT_S):
                while await process.stdout.read(_READ_BYTES):
                    pass
                await process.wait()


class Phase(IntEnum):
    """How far a run of esptool has got; only forward."""

    CONNECTING = 0  # the chip has not answered
    CONNECTED = 1  # the chip has answered, its flash is as it was
    WRITING = 2  # flash is being erased or written, or is about to be
    VERIFYING = 3  # the first image that is not verified is written


_CHIP: Final = re.compile(r"(?:Chip is|Chip type:)\s+(\S.*)")
_WRITING: Final = re.compile(r"Writing at 0x[0-9a-fA-F]+\b.*?(\d+(?:\.\d+)?) ?%")
#: esptool 4 prints the second before it compresses the first image. From there on the flash may
#: have changed.
_STARTS_WRITING: Final = ("Erasing flash", "Flash will be erased", "Writing ", "Compressed ")
_WROTE: Final = re.compile(r"Wrote \d+ bytes")
_VERIFIED: Final = "Hash of data verified."
_MISMATCH: Final = "MD5 of file does not match"
_ERROR: Final = re.compile(r"(?:ERROR: )?A (?:fatal|serial exception) error occurred: (.+)")
_ERROR_5: Final = re.compile(r"ERROR: (.+)")
_WRONG_CHIP: Final = "This chip is "

_OUTCOMES: Final = {
    Phase.CONNECTING: Outcome.NO_CONTACT,
    Phase.CONNECTED: Outcome.REFUSED,
    Phase.WRITING: Outcome.INCOMPLETE,
    Phase.VERIFYING: Outcome.INCOMPLETE,
}


class EsptoolOutput:
    """Follows the lines of one run of write-flash; no I/O."""

    def __init__(self, plan: FlashPlan) -> None:
        self.phase = Phase.CONNECTING
        self.verified = 0  # images
        self._plan = plan
        self._wrote = 0  # images
        self._reason = ""
        self._last_line = ""
        self._mismatch = False

    def read(self, line: str) -> dict[str, object] | None:
        """Return the event of a line (docs/http-api.md), None for most."""
        line = line.strip()
        self._last_line = line or self._last_line
        if found := _CHIP.match(line):
            self._reach(Phase.CONNECTED)
            return {"event": "chip", "chip": found[1]}
        if line.startswith(_STARTS_WRITING):
            self._reach(Phase.WRITING)
        if found := _WRITING.match(line):
            return self._progress(self._wrote, min(1.0, float(found[1]) / 100))
        if _WROTE.match(line):
            self._wrote += 1
            self._reach(Phase.VERIFYING)
            return self._progress(self._wrote - 1, 1.0)
        if line == _VERIFIED:
            self.verified = min(self.verified + 1, len(self._plan.images))
            return {"event": "verified", "image": self.verified - 1}
        self._mismatch = self._mismatch or _MISMATCH in line
        if found := _ERROR.match(line) or _ERROR_5.match(line):
            self._reason = found[1]
        return None

    def outcome(self, exit_code: int) -> tuple[Outcome, str]:
        """Return the outcome of a run that has ended, and esptool's reason if it failed.

        A negative code is the signal that has ended it.
        """
        if exit_code == 0:
            return Outcome.WRITTEN, ""
        reason = (self._reason or self._last_line)[:_MAX_REASON_CHARACTERS]
        if exit_code < 0:
            reason = f"esptool was ended by signal {-exit_code}"
        reason = reason or f"esptool has failed with exit code {exit_code}"
        if self._mismatch:
            return Outcome.NOT_VERIFIED, reason
        if self.verified == len(self._plan.images):
            return Outcome.NOT_RESET, reason
        if reason.startswith(_WRONG_CHIP):
            return Outcome.REFUSED, reason
        return _OUTCOMES[self.phase], reason

    def _progress(self, image: int, done: float) -> dict[str, object]:
        sizes = [each.size for each in self._plan.images]
        image = min(image, len(sizes) - 1)
        written = sum(sizes[:image]) + round(sizes[image] * done)
        return {"event": "progress", "image": image, "written": written, "total": sum(sizes)}

    def _reach(self, phase: Phase) -> None:
        self.phase = max(self.phase, phase)
