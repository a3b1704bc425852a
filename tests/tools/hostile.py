"""`make hostile`: attackers on every port and on HTTP, while esptool flashes and a console types.

Each attacker is a thread that makes one bad client after the other, drawn from its own seeded
random numbers and connected from an address of its own in 127.1.0.0/16. All run in a process of
their own. The honest clients come from 127.0.0.1: esptool writes and verifies on `flash`, whose
`allow` keeps the attackers out as an operator would, and a console on `console` presses Enter and
waits for the prompt, again and again, beside attackers that want the same port. At the end every
image must be written and every prompt received, `quiet` not have been reset, no traceback logged,
and as many descriptors be open as before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.support.lab import Lab, LabBoard
from tests.support.processes import Figures
from tests.support.telnet_wire import (
    AYT,
    COM_PORT,
    NOP,
    RFC2217_CLIENT,
    SB,
    command,
    subnegotiation,
    will,
)

ATTACKERS = 100
IMAGE_BYTES = 65536

#: Far above what anything takes on a busy machine.
_LIMIT_S = 120.0
#: How long an attacker keeps at one thing at most, so that each run has them all.
_ATTACK_S = 5.0
#: Between two looks at the service's memory and descriptors.
_SAMPLE_S = 1.0

_BLOB_BYTES = 65536

_HELLOS = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n" + subnegotiation(b"\x2c\x05\x08"),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"SSH-2.0-OpenSSH_9.9\r\n",
    b"\x00\x00\x00\x54\xffSMB\x72" + bytes(80),
    b"*1\r\n$4\r\nPING\r\n",
    b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
)


def com_port(*octets: int) -> bytes:
    """A COM-PORT-OPTION command."""
    return subnegotiation(bytes([COM_PORT, *octets]))


_FLOODS = (
    b"x" + com_port(12, 2),
    com_port(12, 3),
    command(AYT),
    command(SB, 44) + command(240),
    com_port(8) + com_port(9),
    com_port(7),
    com_port(0),
    com_port(5, 7),
    command(NOP),
    will(31),
)

_HTTP_REQUESTS = (
    b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /api/v1/ports HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"TRACE / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\n\r\nabc",
    b"GET /api/v1/ports HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer \xff\r\n\r\n",
    b"POST /api/v1/ports/quiet/reset HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /" + b"a" * 9000,
)


class Attacker:
    """One bad client after the other; `targets` are TCP ports, `http` that of the HTTP server."""

    def __init__(self, number: int, seed: int, targets: Sequence[int], http: int) -> None:
        self._address = f"127.1.{number // 250}.{number % 250 + 1}"
        self._rng = random.Random(seed + number)
        self._targets = targets
        self._http = http
        self.attacks: Counter[str] = Counter()

    def run(self, ends_at: float) -> None:
        """Attack until then (time.monotonic)."""
        kinds: list[Callable[[socket.socket, float], None]] = [
            self._flood,
            self._greet,
            self._say_nothing,
            self._stop_amid_command,
            self._never_read,
            self._send_garbage,
            self._reset,
        ]
        while time.monotonic() < ends_at:
            attack = self._rng.choice([*kinds, self._ask_http, self._ask_http])
            port = self._http if attack == self._ask_http else self._rng.choice(self._targets)
            until = min(ends_at, time.monotonic() + self._rng.uniform(0.1, _ATTACK_S))
            with contextlib.suppress(OSError), self._connect(port) as client:
                self.attacks[attack.__name__.strip("_")] += 1
                attack(client, until)

    def _connect(self, port: int) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), 5.0, (self._address, 0))

    def _send_until(self, client: socket.socket, blob: bytes, until: float) -> None:
        client.settimeout(0.5)
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                client.sendall(blob)
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.recv(_BLOB_BYTES)
            client.settimeout(0.5)

    def _flood(self, client: socket.socket, until: float) -> None:
        units = self._rng.choices(_FLOODS, k=self._rng.choice([1, 1, 4]))
        unit = b"".join(units)
        client.sendall(RFC2217_CLIENT)
        self._send_until(client, unit * (_BLOB_BYTES // len(unit)), until)

    def _greet(self, client: socket.socket, until: float) -> None:
        client.sendall(self._rng.choice(_HELLOS))
        self._wait(client, until)

    def _say_nothing(self, client: socket.socket, until: float) -> None:
        self._wait(client, until)

    def _stop_amid_command(self, client: socket.socket, until: float) -> None:
        client.sendall(RFC2217_CLIENT + command(SB, COM_PORT, 1))
        self._wait(client, until)

    def _never_read(self, client: socket.socket, until: float) -> None:
        client.sendall(RFC2217_CLIENT + b"burst 100000\r" + command(AYT) * 1000)
        time.sleep(max(0.0, until - time.monotonic()))

    def _send_garbage(self, client: socket.socket, until: float) -> None:
        self._send_until(client, self._rng.randbytes(4096), until)

    def _reset(self, client: socket.socket, until: float) -> None:
        del until
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _ask_http(self, client: socket.socket, until: float) -> None:
        self._send_until(client, self._rng.choice(_HTTP_REQUESTS), until)

    def _wait(self, client: socket.socket, until: float) -> None:
        client.settimeout(max(0.1, until - time.monotonic()))
        with contextlib.suppress(TimeoutError):
            while client.recv(_BLOB_BYTES):
                pass


def attack(targets: Sequence[int], http: int, seconds: float, seed: int, count: int) -> None:
    """Be all attackers; prints how often each kind of attack was made, as JSON."""
    attackers = [Attacker(number, seed, targets, http) for number in range(count)]
    ends_at = time.monotonic() + seconds
    threads = [threading.Thread(target=each.run, args=(ends_at,)) for each in attackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total: Counter[str] = Counter()
    for each in attackers:
        total += each.attacks
    say(json.dumps(total))


class Console:
    """An honest client: Enter, the prompt, Enter again; on a thread."""

    def __init__(self, board: LabBoard) -> None:
        self._board = board
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="console")
        self.round_trips_s: list[float] = []
        self.error = ""

    def __enter__(self) -> Console:
        # Connected before the first attacker: it has the port, and keeps it.
        self._client = socket.create_connection(("127.0.0.1", self._board.tcp_port), _LIMIT_S)
        self._client.settimeout(_LIMIT_S)
        self._client.sendall(RFC2217_CLIENT + b"\r")
        self._read_until(b"esp> ")
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.02):
                begin_s = time.monotonic()
                self._client.sendall(b"\r")
                self._read_until(b"esp> ")
                self.round_trips_s.append(time.monotonic() - begin_s)
        except (OSError, EOFError) as error:
            self.error = repr(error)

    def _read_until(self, text: bytes) -> None:
        received = b""
        while text not in received:
            data = self._client.recv(4096)
            if not data:
                raise EOFError(f"the gateway has closed the console, after {received!r}")
            received += data


class Watch:
    """The most memory and descriptors of the service, sampled on a thread, and its CPU."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")
        self.most_kib = 0
        self.most_descriptors = 0

    def __enter__(self) -> Watch:
        self._begin_s, self._begin_cpu_s = time.monotonic(), self._figures.cpu_s()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        used_s = self._figures.cpu_s() - self._begin_cpu_s
        self.cpu_share = used_s / (time.monotonic() - self._begin_s)

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self.most_kib = max(self.most_kib, self._figures.resident_kib())
            n_open = len(self._figures.open_files())
            self.most_descriptors = max(self.most_descriptors, n_open)


def flash(board: LabBoard, rng: random.Random) -> str:
    """Write and verify an image with esptool; what went wrong, or nothing."""
    image = board.folder.with_suffix(".bin")
    image.write_bytes(rng.randbytes(IMAGE_BYTES))
    args = [sys.executable, "-m", "esptool", "--port", board.url, "write-flash", "0x10000"]
    done = subprocess.run(
        [*args, str(image)], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode or "Hash of data verified" not in done.stdout:
        return f"esptool: {done.stdout[-300:]}{done.stderr[-300:]}"
    return ""


def run(folder: Path, seconds: float, seed: int, count: int = ATTACKERS) -> int:
    """Attack for so long; prints what was measured, returns how many things are wrong."""
    load = os.getloadavg()[0]
    say(f"hostile: {count} attackers, {seconds:.0f} s, seed {seed}, load before {load:.2f}")
    wrong: list[str] = []
    boards = dict.fromkeys(("flash", "console", "victim", "quiet"), "heartbeat_s=0")
    lab = Lab(folder, boards, http=True, keys={"client_buffer_kib": "64"})
    only_honest(folder / "gateway.yaml", "flash")
    with lab:
        for each in lab.boards.values():
            each.wait_for_app()
        lab.service.wait_for_line(r"status_(not_)?served")  # the last that is opened
        figures = lab.service.figures
        watch = Watch(figures)
        idle, idle_kib = len(figures.open_files()), figures.resident_kib()
        with Console(lab.boards["console"]) as console, watch:
            made, failures = flash_under_attack(lab, seconds, seed, count)
        wrong += [failure for failure in failures if failure]
        deadline = time.monotonic() + _LIMIT_S
        while len(files := figures.open_files()) > idle and time.monotonic() < deadline:
            time.sleep(0.5)
        left = len(files)
        if left > idle:
            wrong.append(f"{left} descriptors are open after the attack, {idle} before: {files}")
        if (boots := lab.boards["quiet"].boots()) != ["app"]:
            wrong.append(f"the board `quiet` has booted {boots}")
        if console.error:
            wrong.append(f"console: {console.error}")
        if tracebacks := sum("Traceback" in line for line in lab.service.log):
            wrong.append(f"{tracebacks} tracebacks in the service's log")
    trips_ms = sorted(1000 * trip_s for trip_s in console.round_trips_s)
    n = len(trips_ms)
    say(f"  attacks: {', '.join(f'{kind} {n}' for kind, n in sorted(made.items()))}")
    say(
        f"  esptool: {failures.count('')} of {len(failures)} images of {IMAGE_BYTES} bytes verified"
    )
    say(
        f"  console: {n} prompts, median {trips_ms[n // 2]:.1f} ms,"
        f" p99 {trips_ms[n * 99 // 100]:.1f}, longest {trips_ms[-1]:.0f}"
    )
    say(f"  memory: {idle_kib / 1024:.1f} MiB before, at most {watch.most_kib / 1024:.1f}")
    say(f"  descriptors: {idle} before, at most {watch.most_descriptors}, {left} after")
    say(f"  CPU: {100 * watch.cpu_share:.0f} % of a core")
    for failure in wrong:
        say(f"  WRONG {failure}")
    say(f"hostile: {len(wrong)} wrong")
    return len(wrong)


def flash_under_attack(
    lab: Lab, seconds: float, seed: int, count: int
) -> tuple[dict[str, int], list[str]]:
    """Flash image after image meanwhile; the attacks made, and why each flash failed, or ''."""
    args = [sys.executable, "-m", "tests.tools.hostile", "--attack", lab.http.rpartition(":")[2]]
    options = ["--seconds", str(seconds), "--seed", str(seed), "--attackers", str(count)]
    ports = [str(each.tcp_port) for each in lab.boards.values()]
    rng = random.Random(seed)
    failures: list[str] = []
    with subprocess.Popen(
        [*args, *options, *ports], stdout=subprocess.PIPE, text=True
    ) as attackers:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            failures.append(flash(lab.boards["flash"], rng))
        assert attackers.stdout is not None
        made: dict[str, int] = json.loads(attackers.stdout.read())
    return made, failures


say = partial(print, flush=True)  # now, also into a pipe


def only_honest(config: Path, name: str) -> None:
    """Let only 127.0.0.1 connect to a port."""
    text = config.read_text()
    entry = f"  - name: {name}\n"
    assert entry in text
    config.write_text(text.replace(entry, f"{entry}    allow: [127.0.0.1]\n"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the arguments say; 0 when nothing is wrong."""
    parser = argparse.ArgumentParser(prog="make hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--attackers", type=int, default=ATTACKERS)
    parser.add_argument("--attack", type=int, metavar="HTTP_PORT", help=argparse.SUPPRESS)
    parser.add_argument("targets", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.attack is not None:
        http, targets = options.attack, options.targets
        attack(targets, http, options.seconds, options.seed, options.attackers)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), options.seconds, options.seed, options.attackers)


if __name__ == "__main__":
    sys.exit(main())
