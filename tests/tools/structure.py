"""Measure the structure of gateway/: calls on the way of a command, objects, files and lines.

    python -m tests.tools.structure [--paths] [--save FILE] [--before FILE]

Runs the service in a process of its own, with one simulated board and `sharing: preempt`, and a
client over TCP in a thread of it. `sys.setprofile` counts the calls of Python functions of gateway/
in the event loop's thread, from the first byte of a command until its answer has come and no more
functions are called. Of three runs, the one with the fewest calls counts: in the others a periodic
timer was due. Only sockets are used to drive the service and to wait for it, so the figures of two
commits can be compared. `--paths` prints each call, `--before` adds a column of figures that
`--save` has kept.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from tests.support.processes import free_tcp_port
from tests.support.tcp_client import SPEAKS_TELNET, com_port, data_so_far
from tests.support.telnet_wire import RFC2217_CLIENT

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gateway"
_BELOW = f"{PACKAGE}/"

#: For a service that hangs.
_LIMIT_S = 60.0
#: A command has been carried out when no function of the gateway was called for so long: longer
#: than the pauses within a reset, shorter than the periods of timers.
_QUIET_S = 0.3

#: Files that a package needs, however short.
_SHORT_BY_NATURE = {"__init__.py", "__main__.py"}
_SHORT_LINES = 60

_CONFIG = """\
ports:
  - name: first
    tcp: {ports[0]}
    device: sim://esp32?name=first&heartbeat_s=0
    sharing: preempt
"""
_SECOND = "  - {{name: second, tcp: {ports[1]}, device: 'sim://esp32?name=second&heartbeat_s=0'}}\n"

SET_BAUDRATE, SET_CONTROL = 1, 5
_MASKS = com_port(10, b"\0") + com_port(11, b"\0")  # no reports of states by themselves

Call = tuple[str, str]  # file below gateway/, qualified name


@dataclass
class Measured:
    """Calls of each step in their order, and instances by class."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    objects: dict[str, dict[str, int]] = field(default_factory=dict)


#: Runs of the whole measurement.
_RUNS = 3

#: The steps in their order, with the most calls that are wanted (docs/architecture.md).
CALLS = {
    "one byte to the board and its echo": 14,
    "SET-BAUDRATE": 45,
    "SET-CONTROL (DTR)": 50,
    "four SET-CONTROL (a reset)": None,
    "a second client preempts": 150,
    "it leaves, the first resumes": None,
}
OBJECTS = {"an idle port": 15, "a client": 7}


# --- in the service's process


class Recorder:
    """Records calls in the thread that it is started in."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._records = False

    def start(self) -> None:
        """Watch this thread from now on."""
        sys.setprofile(self._note)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if self._records and event == "call":
            head, found, file = frame.f_code.co_filename.partition(_BELOW)
            if found and not head:
                self.calls.append((file, frame.f_code.co_qualname))

    def record(self, act: Callable[[], None]) -> list[Call]:
        """Return the calls that an action leads to; it returns when its answer has come."""
        self.calls.clear()
        self._records = True
        act()
        count = -1
        while count != len(self.calls):
            count = len(self.calls)
            time.sleep(_QUIET_S)
        self._records = False
        return list(self.calls)


class Client:
    """A client on a blocking socket."""

    def __init__(self, tcp_port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", tcp_port), _LIMIT_S)
        self.received = b""

    def receive(self, is_enough: Callable[[], object]) -> None:
        """Read until a condition holds."""
        while not is_enough():
            chunk = self._socket.recv(65536)
            if not chunk:
                raise ConnectionError(f"closed after {self.received!r}")
            self.received += chunk

    def ask(self, code: int, value: bytes) -> None:
        """Send a command; return when it is answered."""
        answer = com_port(code + 100, value)
        count = self.received.count(answer)
        self._socket.sendall(com_port(code, value))
        self.receive(lambda: self.received.count(answer) > count)

    def send_data(self, data: bytes, echo: bytes) -> None:
        """Send data; return when the board has sent `echo`."""
        before = len(data_so_far(self.received))
        self._socket.sendall(data)
        self.receive(lambda: echo in data_so_far(self.received)[before:])

    def control(self, *values: int) -> None:
        """Set lines, one after the other."""
        for value in values:
            self.ask(SET_CONTROL, bytes([value]))

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()


def controlling_client(tcp_port: int) -> Client:
    """A client that speaks RFC 2217 and controls the port; tries until the port can be had."""
    deadline = time.monotonic() + _LIMIT_S
    while True:
        try:
            client = Client(tcp_port)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
        else:
            try:
                client._socket.sendall(RFC2217_CLIENT + _MASKS)
                client.ask(SET_BAUDRATE, (115200).to_bytes(4, "big"))
            except ConnectionError:
                client.close()
                if time.monotonic() > deadline:
                    raise
            else:
                return client
        time.sleep(0.1)


def measure(recorder: Recorder, folder: Path, tcp_ports: Sequence[int]) -> Measured:
    """Play all steps on the running service."""
    measured = Measured()
    client = controlling_client(tcp_ports[0])
    with contextlib.suppress(TimeoutError):
        client._socket.settimeout(5.0)
        client.send_data(b"\r", b"esp> ")
    client._socket.settimeout(_LIMIT_S)
    newcomer: list[Client] = []

    def preempt() -> None:
        before = len(data_so_far(client.received))
        newcomer.append(Client(tcp_ports[0]))
        newcomer[0]._socket.sendall(SPEAKS_TELNET)
        client.receive(lambda: len(data_so_far(client.received)) > before)

    def leave() -> None:
        before = len(data_so_far(client.received))
        newcomer[0].close()
        client.receive(lambda: len(data_so_far(client.received)) > before)

    steps: list[Callable[[], None]] = [
        lambda: client.send_data(b"v", b"v"),
        lambda: client.ask(SET_BAUDRATE, (57600).to_bytes(4, "big")),
        lambda: client.control(8),
        lambda: client.control(12, 9, 11, 8),
        preempt,
        leave,
    ]
    for name, step in zip(CALLS, steps, strict=True):
        measured.calls[name] = recorder.record(step)
    client.close()
    status = folder / "status.sock"
    rest = settled(status)
    before = instances()
    config = folder / "gateway.yaml"
    config.write_text(config.read_text() + _SECOND.format(ports=tcp_ports))
    os.kill(os.getpid(), signal.SIGHUP)
    wait_until(lambda: settled(status) == rest * 2)
    with_second = instances()
    measured.objects["an idle port"] = dict(with_second - before)
    client = controlling_client(tcp_ports[0])
    recorder.record(lambda: None)
    measured.objects["a client"] = dict(instances() - with_second)
    client.close()
    return measured


def settled(status: Path) -> list[object]:
    """The states of all ports, when they have not changed for a while."""
    said: list[list[object]] = [[]]

    def is_settled() -> bool:
        time.sleep(2 * _QUIET_S)
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(status))
            with asking.makefile() as answer:
                said.append([port["state"] for port in json.loads(answer.read())["ports"]])
        return said[-1] == said[-2]

    wait_until(is_settled)
    return said[-1]


def instances() -> Counter[str]:
    """How many there are of each class of the gateway, but for the configuration's."""
    gc.collect()
    names = (
        f"{type(each).__module__.removeprefix('gateway.')}.{type(each).__name__}"
        for each in gc.get_objects()
        if str(type(each).__module__).startswith("gateway.")
    )
    return Counter(name for name in names if not name.startswith("config"))


def wait_until(holds: Callable[[], bool]) -> None:
    """Look until a condition holds."""
    deadline = time.monotonic() + _LIMIT_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("what is measured has not happened")
        time.sleep(0.05)


def serve(folder: Path, tcp_ports: Sequence[int]) -> None:
    """Be the service, and measure it from a thread; writes measured.json."""
    recorder = Recorder()

    def drive() -> None:
        try:
            measured = measure(recorder, folder, tcp_ports)
            (folder / "measured.json").write_text(json.dumps(asdict(measured)))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    # The process ends with the service, whether or not it has been measured.
    driver = threading.Thread(target=drive, daemon=True)
    config = folder / "gateway.yaml"
    config.write_text(_CONFIG.format(ports=tcp_ports))
    sys.argv = ["esp-gateway", "run", "--config", str(config), "--socket", f"{folder}/status.sock"]
    driver.start()
    recorder.start()
    runpy.run_module("gateway", run_name="__main__")


# --- the report


def measured_services(runs: int = _RUNS) -> Measured:
    """Measure services in processes of their own; of each figure, the smallest one."""
    all_runs = [_measured_service() for _ in range(runs)]
    return Measured(
        {step: min((each.calls[step] for each in all_runs), key=len) for step in CALLS},
        {
            what: min((each.objects[what] for each in all_runs), key=lambda n: sum(n.values()))
            for what in OBJECTS
        },
    )


def _measured_service() -> Measured:
    with tempfile.TemporaryDirectory() as name:
        ports = map(str, (free_tcp_port(), free_tcp_port()))
        command = [sys.executable, "-m", "tests.tools.structure", "--serve", name, *ports]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        result = Path(name) / "measured.json"
        if not result.exists():
            sys.exit(f"not measured: {done.stderr}")
        content = json.loads(result.read_text())
    calls = {step: [(file, name) for file, name in each] for step, each in content["calls"].items()}
    return Measured(calls, content["objects"])


def line_counts(folder: Path) -> dict[str, int]:
    """The lines of each Python file below a folder."""
    return {
        str(path.relative_to(folder)): len(path.read_text().splitlines())
        for path in sorted(folder.rglob("*.py"))
    }


def figures(measured: Measured, gateway: dict[str, int], tests: dict[str, int]) -> dict[str, str]:
    """Each figure as text."""
    found = {}
    for step, calls in measured.calls.items():
        files = len({file for file, _ in calls})
        classes = len({(file, name.partition(".")[0]) for file, name in calls})
        found[f"calls: {step}"] = f"{len(calls)} in {files} files, {classes} classes or functions"
    for what, counts in measured.objects.items():
        found[f"objects of {what}"] = f"{sum(counts.values())} of {len(counts)} classes"
    short = sum(
        lines < _SHORT_LINES and Path(name).name not in _SHORT_BY_NATURE
        for name, lines in gateway.items()
    )
    found["gateway/: files, lines"] = f"{len(gateway)}, {sum(gateway.values())}"
    found[f"gateway/: files under {_SHORT_LINES} lines"] = str(short)
    found["tests/: files, lines"] = f"{len(tests)}, {sum(tests.values())}"
    return found


def table(now: dict[str, str], before: dict[str, str] | None) -> str:
    """The figures as a table, beside those of before if there are any."""
    goals = {
        **{f"calls: {step}": most for step, most in CALLS.items()},
        **{f"objects of {what}": most for what, most in OBJECTS.items()},
    }
    columns = ["", *(["before"] if before else []), "now", "goal"]
    rows = [columns, ["---"] * len(columns)]
    for name, figure in now.items():
        goal = goals.get(name)
        was = [before.get(name, "-")] if before else []
        rows.append([name, *was, figure, f"at most {goal}" if goal else ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.structure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--paths", action="store_true", help="print each call and each class")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the figures as JSON")
    parser.add_argument("--before", type=Path, metavar="FILE", help="figures that --save has kept")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        folder, *ports = options.serve
        serve(Path(folder), list(map(int, ports)))
        return 0
    measured = measured_services()
    found = figures(measured, line_counts(PACKAGE), line_counts(ROOT / "tests"))
    before = json.loads(options.before.read_text()) if options.before else None
    print(table(found, before))
    if options.save:
        options.save.write_text(json.dumps(found, indent=1) + "\n")
    if options.paths:
        for step, calls in measured.calls.items():
            print(f"\n{step}:", *(f"  {file}: {name}" for file, name in calls), sep="\n")
        for what, counts in measured.objects.items():
            print(f"\n{what}:", *(f"  {n} {name}" for name, n in counts.items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
