"""Makes fuzz cases: streams of real clients, cut, spliced, repeated and broken, and clean ones.

Each case follows from its seed and the corpus alone. tests/corpus says what the corpus is.
"""

from __future__ import annotations

import random
from pathlib import Path

from gateway.protocol.rfc2217 import Control
from tests.support.fuzz_case import Action, Case, Step
from tests.support.fuzz_world import MAX_SEGMENT_BYTES
from tests.support.tcp_client import com_port
from tests.support.telnet_wire import (
    AYT,
    BINARY,
    BRK,
    NOP,
    RFC2217_CLIENT,
    SB,
    command,
    do,
    dont,
    will,
    wont,
)

CORPUS = Path(__file__).parent.parent / "corpus"

#: One case in so many is clean: what went in must come out.
_CLEAN_ONE_IN = 4

#: And one in so many is dense: some commands, again and again.
_DENSE_ONE_IN = 6
_DENSE_BYTES = 65_000  # one read

#: Streams longer than this are not cut into single bytes: each costs a turn of the loop.
_CUT_FINE_BYTES = 1500

#: Case size that mutation aims at; with it one case takes some milliseconds.
_LONGEST_BYTES = 12_000

#: Breaks and purges drop bytes that were sent before, by what they mean.
_KEEPING_CONTROLS = sorted({*range(22)} - {Control.BREAK_ON, Control.BREAK_OFF})


def load_corpus() -> dict[str, bytes]:
    """What real clients have sent, by name."""
    streams = {path.stem: path.read_bytes() for path in sorted(CORPUS.glob("*.bin"))}
    assert streams, f"no corpus in {CORPUS}"
    return streams


def floods() -> dict[str, Case]:
    """Much of one kind, by name: what would fill the memory of a session without bounds."""
    slow_client, slow_board = Step(Action.STALL), Step(Action.DEAF)
    rfc2217 = Step(Action.SEND, RFC2217_CLIENT)
    rates = com_port(1, (9600).to_bytes(4)) + com_port(1, (115200).to_bytes(4))
    # In small pieces: what the board has not got rid of yet is no memory of the session.
    said = [Step(Action.BOARD, b"\xff" * MAX_SEGMENT_BYTES), Step(Action.WAIT, number=0.002)] * 150
    return {
        "data for a board that takes none": [slow_board, rfc2217, *_flood(b"x", 1_200_000)],
        "data": _flood(b"data\r\n", 600_000),
        "CR": _flood(b"\r", 600_000),
        "IAC": _flood(b"\xff", 600_000),
        "output for a client that does not read": [slow_client, *said, Step(Action.WAIT, number=9)],
        "AYT and no reading": [slow_client, *_flood(command(AYT), 100_000)],
        "polls and no reading": [slow_client, rfc2217, *_flood(com_port(7), 40_000)],
        "signatures and no reading": [slow_client, rfc2217, *_flood(com_port(0), 60_000)],
        "options": _flood(do(31) + will(31), 40_000),
        "subnegotiation without an end": _flood(command(SB), 2) + _flood(b"x", 600_000),
        "IACs in a subnegotiation": _flood(command(SB), 2) + _flood(b"\xff", 600_000),
        "subnegotiations without ends": _flood(command(SB) + b"\x2c\x01", 60_000),
        "baud rates": [rfc2217, *_flood(rates, 30_000), Step(Action.WAIT, number=60)],
        "lines": [rfc2217, *_flood(com_port(5, b"\x08") + com_port(5, b"\x0c"), 30_000)],
        "breaks": _flood(command(BRK), 20_000),
        "purges": [slow_board, rfc2217, *_flood(b"x" * 500 + com_port(12, b"\x02"), 400_000)],
    }


def _flood(piece: bytes, size_bytes: int) -> Case:
    stream = (piece * (size_bytes // len(piece) + 1))[:size_bytes]
    starts = range(0, size_bytes, MAX_SEGMENT_BYTES)
    sends = [Step(Action.SEND, stream[start : start + MAX_SEGMENT_BYTES]) for start in starts]
    # A look at what is kept now and then.
    return [step for send in sends for step in (send, Step(Action.WAIT, number=0.002))]


def make_case(seed: int, corpus: list[bytes]) -> Case:
    """The case of this seed."""
    rng = random.Random(seed)
    if rng.randrange(_CLEAN_ONE_IN) == 0:
        return _clean_case(rng)
    if rng.randrange(_DENSE_ONE_IN) == 0:
        return _dense_case(rng)
    stream = rng.choice(corpus) if rng.random() < 0.7 else _invented(rng)
    for _ in range(rng.choice((0, 1, 2, 4, 8, 16))):
        stream = _mutated(rng, stream, corpus)[:_LONGEST_BYTES]
    case: Case = []
    for segment in _segments(rng, stream):
        case.append(Step(Action.SEND, segment))
        if rng.random() < 0.15:
            case.append(_disturbance(rng))
    if rng.random() < 0.3:
        case.append(Step(Action.RESET if rng.random() < 0.5 else Action.LEAVE))
    return case


def _dense_case(rng: random.Random) -> Case:
    unit = b"".join(_piece(rng)[:20] for _ in range(rng.choice((0, 0, 1, 3))))
    unit += rng.choice((b"x", command(rng.randrange(241, 250)), com_port(12, b"\x02"), com_port(0)))
    stream = (unit * (_DENSE_BYTES // len(unit) + 1))[: rng.choice((8_000, _DENSE_BYTES))]
    greeting = [Step(Action.SEND, RFC2217_CLIENT)] if rng.random() < 0.8 else []
    case = [*greeting, Step(Action.SEND, stream)]
    if rng.random() < 0.3:
        case.insert(rng.randrange(len(case)), _disturbance(rng))
    return [*case, Step(Action.WAIT, number=rng.choice((0.0, 0.3, 20.0)))]


def _invented(rng: random.Random) -> bytes:
    return b"".join(_piece(rng) for _ in range(rng.randrange(1, 120)))


def _piece(rng: random.Random) -> bytes:
    match rng.randrange(8):
        case 0:
            return rng.choice((do, dont, will, wont))(rng.choice((0, 1, 3, 6, 44, 44, 255, 31)))
        case 1 | 2:
            code = rng.choice((*range(14), 100, 255))
            return com_port(code, rng.randbytes(rng.choice((0, 1, 1, 1, 4, 4, 5, 40))))
        case 3:
            return com_port(5, bytes([rng.randrange(22)]))
        case 4:
            return command(rng.randrange(256))
        case 5:
            return command(SB) + rng.randbytes(rng.choice((1, 3, 100, 300)))
    return rng.randbytes(rng.choice((1, 2, 30, 500)))


def _mutated(rng: random.Random, stream: bytes, corpus: list[bytes]) -> bytes:
    start = rng.randrange(len(stream) + 1)
    end = min(len(stream), start + rng.choice((1, 2, 7, 30, 1000)))
    head, middle, tail = stream[:start], stream[start:end], stream[end:]
    match rng.randrange(7):
        case 0:
            return head + tail
        case 1:
            other = rng.choice(corpus)
            at = rng.randrange(len(other) + 1)
            return head + other[at : at + rng.choice((3, 20, 300))] + middle + tail
        case 2:
            return head + middle * rng.choice((2, 3, 30)) + tail
        case 3:
            flipped = bytes(byte ^ (1 << rng.randrange(8)) for byte in middle)
            return head + flipped + tail
        case 4:
            return head + b"\xff" * rng.choice((1, 2, 3, 40)) + middle + tail
        case 5:
            return head + _piece(rng) + middle + tail
    return tail + middle + head


def _segments(rng: random.Random, stream: bytes) -> list[bytes]:
    longest = rng.choice((1, 3, 20) if len(stream) < _CUT_FINE_BYTES else (200, 1460))
    if rng.random() < 0.4:
        longest = MAX_SEGMENT_BYTES
    segments = []
    position = 0
    while position < len(stream):
        size = rng.randrange(1, longest + 1)
        segments.append(stream[position : position + size])
        position += size
    return segments


def _disturbance(rng: random.Random) -> Step:
    match rng.randrange(12):
        case 0:
            return Step(Action.STALL)
        case 1 | 2:
            return Step(Action.READ)
        case 3:
            return Step(Action.DEAF)
        case 4 | 5:
            return Step(Action.LISTEN)
        case 6:
            return Step(Action.MODEM, number=rng.randrange(256))
        case 7 | 8:
            return Step(Action.BOARD, rng.randbytes(rng.choice((1, 10, 300, 5000))))
    return Step(Action.WAIT, number=rng.choice((0.0, 0.001, 0.01, 0.06, 0.3, 2.0)))


def _clean_case(rng: random.Random) -> Case:
    """A client that breaks no rule and drops nothing: its bytes arrive, and so do its board's."""
    binary = rng.random() < 0.7
    wire = rng.choice((b"", do(BINARY) + will(BINARY))) if binary else b""
    to_board, to_client = b"", b""
    # What the board says before its client is known would be sent as to a terminal, and a client
    # that sends nothing has its port after a moment.
    case = [Step(Action.SEND, RFC2217_CLIENT if binary else command(NOP))]
    case.append(Step(Action.WAIT, number=0.06))
    for _ in range(rng.randrange(1, 30)):
        data = rng.randbytes(rng.choice((0, 1, 20, 400)))
        escaped = data.replace(b"\xff", b"\xff\xff")
        to_board += data
        wire += (escaped if binary else escaped.replace(b"\r", b"\r\0")) + _harmless(rng, binary)
        if rng.random() < 0.5:
            case += [Step(Action.SEND, segment) for segment in _segments(rng, wire)]
            wire = b""
        if rng.random() < 0.3:
            said = rng.randbytes(rng.choice((1, 200, 3000)))
            if not binary:
                said = said.replace(b"\r", b"")
            to_client += said
            case.append(Step(Action.BOARD, said))
        if rng.random() < 0.3:
            quiet = rng.choice((Action.STALL, Action.READ, Action.DEAF, Action.LISTEN))
            case.append(Step(quiet))
        if rng.random() < 0.3:
            case.append(Step(Action.WAIT, number=rng.choice((0.001, 0.06, 1.0))))
    resume = com_port(9) if binary else b""
    case += [Step(Action.SEND, segment) for segment in _segments(rng, wire + resume)]
    # Whoever leaves while its board takes nothing loses what is left after some time.
    case += [Step(Action.LISTEN), Step(Action.READ), Step(Action.WAIT, number=30.0)]
    return [*case, Step(Action.EXPECT_BOARD, to_board), Step(Action.EXPECT_CLIENT, to_client)]


def _harmless(rng: random.Random, binary: bool) -> bytes:
    """Commands that neither add nor drop bytes of either direction."""
    if not binary or rng.random() < 0.3:
        return rng.choice((b"", command(241), do(6), dont(31), will(31), do(3), wont(24), do(255)))
    code = rng.choice((0, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9, 10, 11))
    match code:
        case 0:
            return com_port(0, rng.choice((b"", b"fuzzer")))
        case 1:
            return com_port(1, rng.choice((0, 9600, 115200, 921600, 2**32 - 1)).to_bytes(4))
        case 5:
            return com_port(5, bytes([rng.choice(_KEEPING_CONTROLS)]))
        case 8 | 9:
            return com_port(code)
    return com_port(code, bytes([rng.randrange(256)]))
