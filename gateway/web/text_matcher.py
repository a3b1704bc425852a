"""The program that looks for a regular expression in bytes: see text_wait.py.

Run by itself, without the package: `python text_matcher.py PATTERN`. Reads frames, each a line
with the position and the number of its bytes and then these; writes one line of JSON when it has
found something, or when PATTERN is no expression.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import sys
from collections.abc import Iterator
from typing import BinaryIO

#: A match may be so long, unless more has come at once.
_WINDOW_BYTES = 8192

#: Of memory for all of it, and seconds of a processor: an expression that needs more has none.
_MOST_MEMORY_BYTES = 256 << 20
_MOST_CPU_S = 20


def main() -> int:
    """Look for it; 0 when it was found or is none."""
    limit(resource.RLIMIT_AS, _MOST_MEMORY_BYTES)
    limit(resource.RLIMIT_CPU, _MOST_CPU_S)
    try:
        pattern = re.compile(sys.argv[1].encode())
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        found: dict[str, object] | None = {"error": str(error).splitlines()[0]}
    else:
        found = look(pattern, sys.stdin.buffer)
    if found is None:
        return 1
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def limit(what: int, most: int) -> None:
    """Set a limit of the kernel's; who waits has one of its own where that may not be done."""
    with contextlib.suppress(OSError, ValueError):  # the service's sandbox may forbid it
        resource.setrlimit(what, (most, most))


def look(pattern: re.Pattern[bytes], stream: BinaryIO) -> dict[str, object] | None:
    """The first match in what comes; None if the stream ends without one."""
    window = b""
    for seq, data in frames(stream):
        window += data
        match = pattern.search(window)
        if match is not None:
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
