"""One case of the session's fuzzer: what a client, its network and its board do, as a list.

A case is a file of lines, so that a failure can be kept and played again. How cases come about is
`fuzz_generator`'s matter, what they are played on `fuzz_world`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum


class Action(Enum):
    """What a step does; `bytes` or a number goes with those that say so."""

    SEND = "send"  # bytes: the client sends one segment
    BOARD = "board"  # bytes: the board prints
    WAIT = "wait"  # seconds
    STALL = "stall"  # the client stops reading
    READ = "read"  # it reads again
    DEAF = "deaf"  # the board stops reading
    LISTEN = "listen"  # it reads again
    MODEM = "modem"  # number: FuzzBoard.change_states
    LEAVE = "leave"  # the client ends its connection
    RESET = "reset"  # the client's machine resets it
    EXPECT_BOARD = "expect-board"  # bytes: all that the board has got in the end
    EXPECT_CLIENT = "expect-client"  # bytes: all that the board has said to the client


_WITH_BYTES = {Action.SEND, Action.BOARD, Action.EXPECT_BOARD, Action.EXPECT_CLIENT}
_WITH_NUMBER = {Action.WAIT, Action.MODEM}


@dataclass(frozen=True, slots=True)
class Step:
    """One step."""

    action: Action
    data: bytes = b""
    number: float = 0.0

    def __str__(self) -> str:
        if self.action in _WITH_BYTES:
            return f"{self.action.value} {self.data.hex()}"
        if self.action in _WITH_NUMBER:
            return f"{self.action.value} {self.number:g}"
        return self.action.value


Case = list[Step]


def to_text(case: Case, comment: str) -> str:
    """The case as a file's text."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + "".join(f"{step}\n" for step in case)


def from_text(text: str) -> Case:
    """Read a case; ValueError names what is wrong."""
    return [_step(line) for line in text.splitlines() if line and not line.startswith("#")]


def _step(line: str) -> Step:
    word, _, rest = line.partition(" ")
    action = Action(word)
    if action in _WITH_BYTES:
        return Step(action, data=bytes.fromhex(rest))
    if action in _WITH_NUMBER:
        return Step(action, number=float(rest))
    return Step(action)


def sent_bytes(case: Case) -> int:
    """How much the client sends."""
    return sum(len(step.data) for step in case if step.action is Action.SEND)


def shrink(case: Case, fails: Callable[[Case], bool], tries: int = 300) -> Case:
    """A smaller case that still fails: steps left out, segments cut to a half, while it helps."""
    changed = True
    while changed:
        changed = False
        for smaller in _smaller(case):
            if tries == 0:
                return case
            tries -= 1
            if fails(smaller):
                case, changed = smaller, True
                break
    return case


def _smaller(case: Case) -> list[Case]:
    size = len(case) // 2
    candidates: list[Case] = []
    while size:
        candidates += [
            case[:start] + case[start + size :] for start in range(0, len(case), max(size, 1))
        ]
        size //= 2
    for index, step in enumerate(case):
        if step.action in {Action.SEND, Action.BOARD} and len(step.data) > 1:
            half = len(step.data) // 2
            for data in (step.data[:half], step.data[half:]):
                candidates.append([*case[:index], replace(step, data=data), *case[index + 1 :]])
    return candidates
