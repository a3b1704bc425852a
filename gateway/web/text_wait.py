"""Waits for a regular expression in what a board says, in a process of its own.

Some expressions take years (`(a+)+b`), and nothing in Python can stop one: the process can be
killed, and every other board goes on meanwhile. What it runs is text_matcher.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any, Final

from gateway.errors import GatewayError
from gateway.runtime import start_process

MAX_PATTERN_CHARS: Final = 1000

#: So much may wait for the process: an expression that is slower than the board is given up.
MAX_UNREAD_BYTES: Final = 1 << 22

#: The longest line of JSON that the process writes (_MOST_FOUND_BYTES in text_matcher.py).
MAX_ANSWER_BYTES: Final = 1 << 21

_PROGRAM: Final = Path(__file__).with_name("text_matcher.py")


class PatternError(GatewayError):
    """For the client: why its expression can't be waited for."""


class TextWait:
    """See the module; made and used on the loop. `close` must be called in the end."""

    def __init__(self, pattern: str) -> None:
        self._reason = "the expression takes more time or memory than there is"
        # Not an argument of the process, which no NUL could be in.
        self._early: list[bytes] = [_frame(0, pattern.encode())]
        self._process: asyncio.subprocess.Process | None = None

    def add(self, seq: int, data: bytes) -> None:
        """The board has said `data`, whose first byte has the position `seq`."""
        frame = _frame(seq, data)
        process = self._process
        if process is None:  # being started, which takes no longer than the board's next lines
            self._early.append(frame)
            return
        assert process.stdin is not None  # noqa: S101 - for the type checker
        if process.stdin.is_closing():
            return  # it has found it
        process.stdin.write(frame)
        if process.stdin.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.give_up(self._reason)

    def give_up(self, reason: str) -> None:
        """End it; `found` raises PatternError with the reason."""
        self._reason = reason
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def found(self) -> dict[str, Any]:
        """What has been found, as the interface has it; waits indefinitely.

        Raises PatternError when the expression can't be used or is too slow for the board, OSError
        when no process can be started.
        """
        # Isolated: neither the environment nor the folder it is started in have a say.
        process = await start_process(
            sys.executable,
            "-I",
            "-S",
            str(_PROGRAM),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=MAX_ANSWER_BYTES,
        )
        self._process = process
        assert process.stdin is not None  # noqa: S101 - for the type checker
        assert process.stdout is not None  # noqa: S101
        process.stdin.writelines(self._early)
        self._early.clear()
        line = await process.stdout.readline()
        if not line:
            raise PatternError(self._reason)
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise PatternError(str(told["error"]))
        return told

    async def close(self) -> None:
        """End the process."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        # Not only `wait`: the pipes are closed, too.
        with contextlib.suppress(ConnectionError):
            await process.communicate()


def _frame(seq: int, data: bytes) -> bytes:
    return b"%d %d\n%b" % (seq, len(data), data)
