"""`python -m tests.tools.counted_service ...` is `esp-gateway ...` whose tasks can be counted.

Nothing tells of them from outside: at SIGUSR1 it says how many there are in its output.
"""

from __future__ import annotations

import asyncio
import os
import signal
from types import FrameType

from gateway.cli.main import main


def _tell_tasks(number: int, frame: FrameType | None) -> None:
    # Not by print: the service may be in the midst of a line.
    os.write(2, f'{{"tasks": {len(asyncio.all_tasks())}}}\n'.encode())


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _tell_tasks)
    raise SystemExit(main())
