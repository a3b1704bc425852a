"""Part of `make fuzz`: requests that no client should send, to the whole HTTP server.

`--seed` starts elsewhere: the same seed sends the same. A case that fails is printed with
its seed; `--seed SEED --cases 1` sends it again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from gateway import runtime
from tests.support.http_fuzz import TOKEN, http_fuzz_world, make_http_case

_REPORT_CASES = 5000


async def _fuzz(seed: int, cases: int, token: str | None) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        async with http_fuzz_world(Path(folder), token) as world:
            for number in range(seed, seed + cases):
                try:
                    await world.play(make_http_case(number))
                except AssertionError as failure:
                    print(f"seed {number}: {failure}", flush=True)
                    return False
                if (number + 1) % _REPORT_CASES == 0:
                    print(f"seed {number + 1}: {dict(sorted(world.statuses.items()))}", flush=True)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the arguments say; 0 when nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.http_fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the first case's seed")
    options = parser.parse_args(arguments)
    structlog.configure(processors=[_drop])
    started = time.monotonic()
    found = []

    async def fuzz(token: str | None) -> None:
        found.append(await _fuzz(options.seed, options.cases, token))

    # With a token on asyncio's loop, without on uvloop's, if that is installed.
    asyncio.run(fuzz(TOKEN))
    runtime.run(fuzz(None))
    print(f"2 x {options.cases} cases in {time.monotonic() - started:.0f} s: {found}")
    return 0 if all(found) else 1


def _drop(*_: object) -> str:
    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main())
