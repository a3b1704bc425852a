"""A program that searches bytes for a regular expression; `output_api.TextWait` runs it.

It runs without the package: `python text_matcher.py`. It reads frames, each a line with a position
and a number of bytes and then these bytes: first the expression (its position is not used), then
output of the board. It writes one line of JSON at the first match, or `{"error": ...}` when the
expression can't be used.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import sys
from collections.abc import Iterator
from typing import BinaryIO

#: The longest match over several frames.
_WINDOW_BYTES = 8192

#: A match with its groups. In JSON this is at most MAX_ANSWER_BYTES of output_api.py, at six
#: characters a byte.
_MOST_FOUND_BYTES = 262144

#: Of memory, and seconds of CPU; an expression that needs more is given up.
_MOST_MEMORY_BYTES = 256 << 20
_MOST_CPU_S = 20


def main() -> int:
    """Search; 0 after a match or an invalid expression, 1 without a match."""
    limit(resource.RLIMIT_AS, _MOST_MEMORY_BYTES)
    limit(resource.RLIMIT_CPU, _MOST_CPU_S)
    stream = sys.stdin.buffer
    _, expression = next(frames(stream))
    try:
        pattern = re.compile(expression)
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        found: dict[str, object] | None = {"error": f"not a regular expression: {reason}"}
    else:
        found = look(pattern, stream)
    if found is None:
        return 1
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def limit(what: int, most: int) -> None:
    """Set a limit of the kernel's, where the service's sandbox permits it."""
    with contextlib.suppress(OSError, ValueError):  # the service gives up too, after its own limits
        resource.setrlimit(what, (most, most))


def look(pattern: re.Pattern[bytes], stream: BinaryIO) -> dict[str, object] | None:
    """The first match in the frames; None if the stream ends without one."""
    window = b""
    for seq, data in frames(stream):
        window += data
        match = pattern.search(window)
        if match is not None:
            found_bytes = sum(len(each or b"") for each in (match[0], *match.groups()))
            if found_bytes > _MOST_FOUND_BYTES:
                reason = f"the match and its groups have {found_bytes} bytes"
                return {"error": f"{reason}: at most {_MOST_FOUND_BYTES} are answered"}
            begin = seq + len(data) - len(window)
            return {
                "match": match[0].decode(errors="replace"),
                "groups": [
                    None if group is None else group.decode(errors="replace")
                    for group in match.groups()
                ],
                "seq": begin + match.start(),
                "next": begin + match.end(),
            }
        window = window[-_WINDOW_BYTES:]
    return None


def frames(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Positions and bytes, until the stream ends."""
    while line := stream.readline():
        seq, size = map(int, line.split())
        data = stream.read(size)
        if len(data) < size:
            return
        yield seq, data


if __name__ == "__main__":
    sys.exit(main())
