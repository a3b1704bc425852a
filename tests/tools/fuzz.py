"""`make fuzz`: broken and clean client streams on the whole session, until so many bytes are taken.

A failure is written as a file, with the command that plays it again and makes it smaller.
`--seed` starts elsewhere: every run with the same seed and corpus plays the same cases.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.fuzz_case import Case, from_text, shrink, to_text
from tests.support.fuzz_generator import CORPUS, load_corpus, make_case
from tests.support.fuzz_world import FuzzFailure, FuzzWorld, fuzz_world
from tests.support.processes import Figures
from tests.support.virtual_loop import VirtualLoop

FAILURES = Path("fuzz-failures")

#: Behind the first part of a run, everything that is kept for good has been made.
_WARM_UP_PART = 0.2
#: The whole run may grow by this, garbage that waits to be collected included.
MAX_GROWTH_KIB = 16 * 1024

_REPORT_BYTES = 1_000_000


class FoundError(Exception):
    """A case has failed; its file has been written."""


def play_once(case: Case) -> str | None:
    """Play one case in a world of its own; what failed, or None."""

    async def play() -> None:
        async with fuzz_world() as world:
            await world.play(case)

    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(play())
    except Exception as failure:  # whatever the session may raise
        return _told(failure)
    return None


def fuzz(seed: int, total_bytes: int, limit_s: float, folder: Path = FAILURES) -> int:
    """Play cases from `seed` on; the bytes that were taken. Raises FoundError."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_fuzz(seed, total_bytes, limit_s, folder))


async def _fuzz(seed: int, total_bytes: int, limit_s: float, folder: Path) -> int:
    corpus = list(load_corpus().values())
    taken_bytes = 0
    reported_bytes = 0
    started = time.monotonic()
    async with fuzz_world() as world:
        while taken_bytes < total_bytes and time.monotonic() - started < limit_s:
            case = make_case(seed, corpus)
            taken_bytes += await _play(world, case, seed, folder)
            seed += 1
            if taken_bytes - reported_bytes >= _REPORT_BYTES:
                reported_bytes = taken_bytes
                _say(f"{taken_bytes / 1e6:.0f} MB, {time.monotonic() - started:.0f} s, seed {seed}")
    return taken_bytes


async def _play(world: FuzzWorld, case: Case, seed: int, folder: Path) -> int:
    try:
        return await world.play(case)
    except Exception as failure:  # whatever the session may raise
        reason = f"seed {seed}: {_told(failure)}"
        raise FoundError(_keep(case, reason, folder)) from failure


def _told(failure: Exception) -> str:
    """A property says itself what does not hold; of other exceptions the kind tells more."""
    return str(failure) if isinstance(failure, FuzzFailure) else repr(failure)


def _keep(case: Case, reason: str, folder: Path) -> str:
    """Write the case as a file; what to tell a person."""
    folder.mkdir(exist_ok=True)
    name = hashlib.sha256(to_text(case, "").encode()).hexdigest()[:12]
    path = folder / f"{name}.case"
    command = f"python -m tests.tools.fuzz --replay {path}"
    path.write_text(to_text(case, f"{reason}\nplay again: {command}"))
    return f"{reason}\nkept in {path}; play again: {command}"


def replay(path: Path) -> int:
    """Play a kept case; 1 if it still fails, its smallest form is written beside it then."""
    case = from_text(path.read_text())
    reason = play_once(case)
    if reason is None:
        _say(f"{path}: passes")
        return 0
    smaller = shrink(case, lambda candidate: play_once(candidate) is not None)
    shrunk = path.with_suffix(".small.case")
    reason = play_once(smaller) or reason
    shrunk.write_text(to_text(smaller, reason))
    _say(f"{path}: {reason}\nsmaller: {shrunk}\n{to_text(smaller, '')}")
    return 1


def _say(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the arguments say; 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.fuzz", description=__doc__)
    parser.add_argument("--bytes", type=int, default=10_000_000, help="stop after so many bytes")
    parser.add_argument("--seconds", type=float, default=1200.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0, help="the first case's seed")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="play a kept case instead")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        return replay(options.replay)
    for path in sorted(CORPUS.glob("*.case")):
        if (reason := play_once(from_text(path.read_text()))) is not None:
            _say(f"{path}: {reason}")
            return 1
    started = time.monotonic()
    warm_up_bytes = int(options.bytes * _WARM_UP_PART)
    try:
        taken = fuzz(options.seed, warm_up_bytes, options.seconds * _WARM_UP_PART)
        before_kib = Figures(os.getpid()).resident_kib()
        left_s = options.seconds - (time.monotonic() - started)
        # Other seeds than before: the first part has not come so far.
        taken += fuzz(options.seed + options.bytes, options.bytes - taken, left_s)
    except FoundError as found:
        _say(str(found))
        return 1
    grown_kib = Figures(os.getpid()).resident_kib() - before_kib
    seconds = time.monotonic() - started
    _say(f"{taken} bytes in {seconds:.0f} s, nothing found; memory grew by {grown_kib} KiB")
    if grown_kib > MAX_GROWTH_KIB:
        _say(f"more than {MAX_GROWTH_KIB} KiB: something is kept")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
