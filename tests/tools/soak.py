"""`make soak`: many boards in one service, clients at random, and nothing lost or left in the end.

A thread per board plays one client after the other, drawn from its own seeded random numbers: a
console that echoes, a monitor that reads a pattern, a client that is reset or killed in the middle
of one, esptool that flashes, a board that is unplugged and plugged. Each byte of the board's is
compared with what the board sends. In the end the service must have as many descriptors and
threads and tasks as before the first client, and have grown little.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

from gateway.simulator.board import PROMPT, pattern
from tests.support.lab import Lab, LabBoard
from tests.support.tcp_client import data_so_far
from tests.support.telnet_wire import RFC2217_CLIENT

BOARDS = 16
#: Far above what anything takes on a busy machine.
_LIMIT_S = 60.0
#: What the gateway keeps of each board's output, and what clients of each kind make for good, is
#: no growth: it is there before the memory is measured first.
_KEPT_BYTES = 65536
MAX_GROWTH = 0.05

_say = partial(print, flush=True)

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)

#: esptool waits longer than its 3 s for a board that gets no CPU on a busy machine; a block that
#: was not acknowledged is not sent again, which would hide a lost byte.
_PATIENT_ESPTOOL = """
[esptool]
timeout = 60
connect_attempts = 30
write_block_attempts = 1
"""

#: A client that is killed: it asks for output, says that it has done so, and never ends by itself.
_VICTIM = """
import socket, sys, time
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
client.sendall(bytes.fromhex(sys.argv[2]))
print(len(client.recv(1)), flush=True)
time.sleep(600)
"""


class WrongBytesError(Exception):
    """What a client has received is not what its board has sent."""


class Tally:
    """What all threads have done, and what was wrong with it."""

    def __init__(self) -> None:
        self.clients: Counter[str] = Counter()
        self.compared_bytes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def add(self, kind: str, compared_bytes: int) -> None:
        """A client of this kind has got what it should, so many bytes."""
        with self._lock:
            self.clients[kind] += 1
            self.compared_bytes[kind] += compared_bytes

    def add_wrong(self, what: str) -> None:
        """Something is not as it should be."""
        with self._lock:
            self.wrong.append(what)


class Console:
    """A client of a simulated board's console, at the board's prompt when it is made."""

    def __init__(self, board: LabBoard, rng: random.Random) -> None:
        self._received = bytearray()  # as it came, telnet commands included
        self._taken = 0
        deadline = time.monotonic() + _LIMIT_S
        while True:
            self._socket = socket.create_connection(("127.0.0.1", board.tcp_port), _LIMIT_S)
            try:
                self._reach_prompt(b"%08x" % rng.getrandbits(32), deadline)
            except (OSError, WrongBytesError):  # the last client is not gone, the board not back
                self._socket.close()
                if time.monotonic() > deadline:
                    raise
                self._received.clear()
                time.sleep(0.2)
            else:
                return

    def _reach_prompt(self, token: bytes, deadline: float) -> None:
        # What an earlier client has asked for comes first; what is typed while the ROM boots or
        # the app is busy may be lost, so it is typed again.
        self._socket.sendall(RFC2217_CLIENT)
        self._socket.settimeout(3.0)
        end = b"? " + token + b"\r\n" + PROMPT
        typed = 0
        while not data_so_far(bytes(self._received)).endswith(end):
            if time.monotonic() > deadline:
                raise WrongBytesError("no prompt")
            if not typed:
                self._socket.sendall(b"\r" + token + b"\r")
                typed += 1
            try:
                self._read()
            except TimeoutError:
                typed = 0
        self._socket.settimeout(_LIMIT_S)
        self._taken = len(data_so_far(bytes(self._received)))

    def _read(self) -> None:
        chunk = self._socket.recv(65536)
        if not chunk:
            raise WrongBytesError("the gateway hung up")
        self._received += chunk
        # Half of a doubled 0xFF is no data yet.
        if (len(self._received) - len(self._received.rstrip(b"\xff"))) % 2:
            self._read()

    def said(self) -> bytes:
        """What the board has said since the prompt."""
        return data_so_far(bytes(self._received))[self._taken :]

    def send(self, data: bytes) -> None:
        """Type."""
        self._socket.sendall(data.replace(b"\xff", b"\xff\xff"))

    def expect(self, wanted: bytes, n_bytes: int | None = None) -> int:
        """Read so many bytes of `wanted`, all unless told; how many were compared."""
        n_bytes = len(wanted) if n_bytes is None else n_bytes
        while len(said := self.said()) < n_bytes and wanted.startswith(said):
            self._read()
        self.compare(wanted)
        return len(said)

    def compare(self, wanted: bytes) -> int:
        """Raise unless what came is a beginning of `wanted`; how long it is."""
        said = self.said()
        if not wanted.startswith(said):
            at = next(i for i, byte in enumerate(said) if wanted[i : i + 1] != bytes([byte]))
            came, due = said[at : at + 20], wanted[at : at + 20]
            raise WrongBytesError(f"byte {at}: {came!r} instead of {due!r}")
        return len(said)

    def read_to_end(self) -> None:
        """Read until the gateway hangs up."""
        with contextlib.suppress(WrongBytesError):
            while True:
                self._read()

    def close(self, *, reset: bool = False) -> None:
        """Leave, with a TCP RST if told so."""
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        self._socket.close()


def output_of(n_bytes: int) -> tuple[bytes, bytes]:
    """What to type for so much output, and what the board says then."""
    typed = b"bytes %d" % n_bytes
    return typed + b"\r", typed + b"\r\n" + pattern(n_bytes) + b"\r\n" + PROMPT


def echo(board: LabBoard, rng: random.Random) -> int:
    """Lines of random characters come back."""
    console = Console(board, rng)
    try:
        wanted = b""
        for _ in range(rng.randrange(1, 10)):
            line = b"!" + bytes(rng.choices(range(33, 256), k=200)).replace(b"\x7f", b"~")
            wanted += line + b"\r\n? " + line + b"\r\n" + PROMPT
            console.send(line + b"\r")
            console.expect(wanted)
        return len(wanted)
    finally:
        console.close()


def monitor(board: LabBoard, rng: random.Random, n_bytes: int | None = None) -> int:
    """A long output arrives whole."""
    console = Console(board, rng)
    try:
        typed, wanted = output_of(rng.randrange(1, 20_000) if n_bytes is None else n_bytes)
        console.send(typed)
        return console.expect(wanted)
    finally:
        console.close()


def reset(board: LabBoard, rng: random.Random) -> int:
    """A client whose connection is reset in the middle of its output."""
    console = Console(board, rng)
    try:
        typed, wanted = output_of(20_000)
        console.send(typed)
        return console.expect(wanted, rng.randrange(5000))
    finally:
        console.close(reset=True)


def killed(board: LabBoard, rng: random.Random) -> int:
    """A client that dies with unread output; the next one has the board."""
    typed = RFC2217_CLIENT + output_of(rng.randrange(10_000))[0]
    args = [sys.executable, "-S", "-c", _VICTIM, str(board.tcp_port), typed.hex()]
    with subprocess.Popen(args, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        victim.stdout.readline()
        victim.send_signal(signal.SIGKILL)
    return echo(board, rng)


def replug(board: LabBoard, rng: random.Random) -> int:
    """The board is unplugged in the middle of its output; what came of it is right."""
    console = Console(board, rng)
    try:
        typed, wanted = output_of(50_000)
        console.send(typed)
        console.expect(wanted, rng.randrange(1, 5000))
        board.ask("unplug")
        console.read_to_end()
        compared_bytes = console.compare(wanted)
    finally:
        console.close()
    time.sleep(rng.random())
    board.ask("plug")
    return compared_bytes


def flash(board: LabBoard, rng: random.Random) -> int:
    """esptool writes and verifies; the board runs its app again."""
    data = rng.randbytes(8192)
    image = board.folder.with_suffix(".bin")
    image.write_bytes(data)
    echo(board, rng)  # the board is there: esptool does not try twice
    settings = image.with_suffix(".cfg")
    settings.write_text(_PATIENT_ESPTOOL)
    url = f"{board.url}?timeout=60"
    args = [sys.executable, "-m", "esptool", "--port", url, "write-flash", "0x10000", str(image)]
    env = {**os.environ, "ESPTOOL_CFGFILE": str(settings)}
    done = subprocess.run(args, env=env, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode or "Hash of data verified" not in done.stdout:
        raise WrongBytesError(f"esptool: {done.stdout[-300:]}{done.stderr[-300:]}")
    echo(board, rng)
    return len(data)


#: What clients do, and how often. esptool takes 2 s of CPU each time.
KINDS: dict[Callable[[LabBoard, random.Random], int], int] = {
    echo: 30,
    monitor: 30,
    reset: 15,
    killed: 10,
    replug: 10,
    flash: 3,
}


@dataclass(frozen=True)
class Player:
    """Who plays the clients of one board, on a thread."""

    board: LabBoard
    rng: random.Random
    tally: Tally
    first: Callable[[LabBoard, random.Random], int]
    pause_s: float  # the longest between two clients
    is_warm: threading.Event
    deadline: threading.Event

    def play(self) -> None:
        """One client after the other, until time is up or something is wrong."""
        is_right = self._play(self.first) and self._play(fill)
        self.is_warm.set()
        while is_right and not self.deadline.wait(self.rng.uniform(0, self.pause_s)):
            (kind,) = self.rng.choices(list(KINDS), list(KINDS.values()))
            is_right = self._play(kind)

    def _play(self, kind: Callable[[LabBoard, random.Random], int]) -> bool:
        try:
            self.tally.add(kind.__name__, kind(self.board, self.rng))
        except Exception as error:  # whatever it is, it is told with the rest
            self.tally.add_wrong(f"{self.board.name}, {kind.__name__}: {error!r}")
            return False
        return True


def fill(board: LabBoard, rng: random.Random) -> int:
    """The gateway has as much of the board's output as it keeps."""
    return monitor(board, rng, _KEPT_BYTES)


@dataclass(frozen=True)
class Counts:
    """What a service holds."""

    descriptors: int
    threads: int
    tasks: int


class Watch:
    """Counts what the service of a lab holds."""

    def __init__(self, lab: Lab) -> None:
        self._service = lab.service
        self._n_asked = 0

    def counts(self) -> Counts:
        """What it holds now."""
        self._n_asked += 1
        self._service.send_signal(signal.SIGUSR1)
        told = self._service.wait_for_line(r'"tasks": (\d+)', _LIMIT_S, self._n_asked)
        figures = self._service.figures
        return Counts(len(figures.open_files()), figures.threads(), int(told[1]))

    def settled_counts(self, idle: Counts) -> Counts:
        """The counts when they are as before, or after some waiting; a port may still come back."""
        deadline = time.monotonic() + _LIMIT_S / 2
        while (now := self.counts()) != idle and time.monotonic() < deadline:
            time.sleep(0.1)
        return now


@contextlib.contextmanager
def counted_lab(folder: Path, n_boards: int) -> Iterator[Lab]:
    """A lab whose service can be counted, when all that it holds without clients is there."""
    with tempfile.TemporaryDirectory() as runtime:  # a short path, for a socket's name
        boards = {f"board{i}": "heartbeat_s=0" for i in range(n_boards)}
        lab = Lab(folder, boards, env={"XDG_RUNTIME_DIR": runtime, "RUNTIME_DIRECTORY": ""})
        config = folder / "gateway.yaml"
        module = "tests.tools.counted_service"
        lab.service.args = [sys.executable, "-m", module, "run", "--config", config]
        with lab:
            deadline = time.monotonic() + _LIMIT_S
            while not (Path(runtime) / "esp-gateway" / "status.sock").is_socket():
                assert time.monotonic() < deadline, "the service is not complete"
                time.sleep(0.1)
            yield lab


def soak(
    folder: Path, seconds: float, seed: int, n_boards: int = BOARDS, pause_s: float = 0.0
) -> int:
    """Run for so long; prints a table, returns the number of things that are wrong."""
    _say(f"soak: {n_boards} boards, {seconds:.0f} s, seed {seed}")
    tally = Tally()
    with counted_lab(folder, n_boards) as lab:
        watch = Watch(lab)
        idle = watch.counts()
        deadline = threading.Event()
        players = [
            Player(
                board, random.Random(seed + i), tally, kind, pause_s, threading.Event(), deadline
            )
            for i, (board, kind) in enumerate(zip(lab.boards.values(), cycle(KINDS), strict=False))
        ]
        threads = [threading.Thread(target=player.play) for player in players]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for player in players:
            player.is_warm.wait()
        warm_kib = lab.service.figures.resident_kib()
        # However long it took to get warm, something has to happen after it.
        time.sleep(max(started + seconds - time.monotonic(), seconds / 4))
        deadline.set()
        for thread in threads:
            thread.join()
        left = watch.settled_counts(idle)
        end_kib = lab.service.figures.resident_kib()
        tracebacks = sum("Traceback" in line for line in lab.service.log)
    for kind_name, count in tally.clients.most_common():
        compared_bytes = tally.compared_bytes[kind_name]
        _say(f"  {kind_name:<10}{count:>7} clients {compared_bytes:>12} bytes right")
    _say(f"  before {idle}")
    _say(f"  after  {left}")
    growth = end_kib / warm_kib - 1
    _say(f"  memory {warm_kib} -> {end_kib} KiB, {growth:+.1%}")
    if left != idle:
        tally.add_wrong("descriptors, threads or tasks are left")
    if growth > MAX_GROWTH:
        tally.add_wrong("memory has grown")
    if tracebacks:
        tally.add_wrong(f"{tracebacks} tracebacks in the service's log")
    for what in tally.wrong:
        _say(f"  WRONG {what}")
    _say(f"soak: {len(tally.wrong)} wrong")
    return len(tally.wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the arguments say; 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--boards", type=int, default=BOARDS)
    parser.add_argument("--seed", type=int, default=None, help="random unless told")
    options = parser.parse_args(arguments)
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory() as folder:
        return int(soak(Path(folder), options.minutes * 60, seed, options.boards) > 0)


if __name__ == "__main__":
    sys.exit(main())
