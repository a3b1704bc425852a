"""The servers that are measured: ours and its peers, each started the same way on the same ttys.

A peer that is not installed is reported with what to install, and never guessed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.processes import BackgroundProcess

Command = list[str]
#: The ttys, a TCP port for each and a folder for files -> one command line, or one for each tty.
Commands = Callable[[Sequence[str], Sequence[int], Path], list[Command]]

_SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_HOST = "127.0.0.1"
_BAUDRATE = 115200

#: Python that has uvloop installed and does not know of it.
_WITHOUT_UVLOOP = (
    "import sys; sys.modules['uvloop'] = None; from gateway.cli.main import main; sys.exit(main())"
)


@dataclass(frozen=True)
class Server:
    """How one kind of server is started; `missing` says what is not installed, or ""."""

    name: str
    commands: Commands
    missing: Callable[[], str] = lambda: ""
    is_telnet: bool = True
    #: What its documentation tells esptool's users to append to the URL; None: no URL to give.
    url_query: str | None = ""


class RunningServer:
    """A server on some ttys, from its start until it is killed; a context manager."""

    def __init__(
        self, server: Server, ttys: Sequence[str], folder: Path, env: Mapping[str, str]
    ) -> None:
        self.server = server
        self.tcp_ports = _free_tcp_ports(len(ttys))
        commands = server.commands(ttys, self.tcp_ports, folder)
        self._processes = [BackgroundProcess(command, env) for command in commands]
        self._stack = ExitStack()

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return [process.pid for process in self._processes]

    def _start(self) -> None:
        for process in self._processes:
            process.start()
            self._stack.callback(process.kill)

    def start_timed(self) -> float:
        """Start it; seconds until the first port accepts a connection."""
        begin = time.monotonic()
        self._start()
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((_HOST, self.tcp_ports[0])) == 0:
                    return time.monotonic() - begin
            if time.monotonic() - begin > 60:
                raise TimeoutError(f"{self.server.name} does not listen")
            time.sleep(0.002)

    def __enter__(self) -> Self:
        try:
            self._start()
            self._processes[0].wait_until_listening(*self.tcp_ports, limit_s=120)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _free_tcp_ports(count: int) -> list[int]:
    """All different: each is held until all are known."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((_HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


def _gateway(*interpreter: str) -> Commands:
    """The gateway, started by these arguments of Python."""

    def commands(ttys: Sequence[str], tcp_ports: Sequence[int], folder: Path) -> list[Command]:
        config = folder / "gateway.yaml"
        ports = (
            f"  - {{name: port{number}, host: {_HOST}, tcp: {tcp_port}, device: {tty}}}\n"
            for number, (tty, tcp_port) in enumerate(zip(ttys, tcp_ports, strict=True))
        )
        config.write_text("ports:\n" + "".join(ports))
        return [[sys.executable, *interpreter, "run", "--config", str(config)]]

    return commands


def ser2net_config(ttys: Sequence[str], tcp_ports: Sequence[int], *, tuned: bool) -> str:
    """Debian's /etc/ser2net.yaml with RFC 2217 in place of its raw TCP, or tuned for bulk data.

    Debian's options stay as they are but for the banner, which would come among the data.
    """
    if tuned:
        accepter = "telnet(rfc2217,readbuf=16384,writebuf=16384),tcp(nodelay,readbuf=16384)"
        connector = "serialdev(nouucplock,readbuf=16384)"
        options = ["chardelay: false", "dev-to-net-bufsize: 16384", "net-to-dev-bufsize: 16384"]
    else:
        accepter = "telnet(rfc2217),tcp"
        connector = "serialdev(nouucplock)"
        options = ["kickolduser: true", "telnet-brk-on-sync: true"]
    lines = ["%YAML 1.1", "---"]
    for number, (tty, tcp_port) in enumerate(zip(ttys, tcp_ports, strict=True)):
        lines += [
            f"connection: &con{number}",
            f"    accepter: {accepter},{_HOST},{tcp_port}",
            "    enable: on",
            "    options:",
            *(f"      {option}" for option in options),
            f"    connector: {connector},{tty},{_BAUDRATE}n81,local",
        ]
    return "\n".join(lines) + "\n"


def _ser2net(*, tuned: bool) -> Commands:
    def commands(ttys: Sequence[str], tcp_ports: Sequence[int], folder: Path) -> list[Command]:
        config = folder / "ser2net.yaml"
        config.write_text(ser2net_config(ttys, tcp_ports, tuned=tuned))
        found = shutil.which("ser2net", path=_SEARCH_PATH) or "ser2net"
        return [[found, "-n", "-d", "-c", str(config), "-P", str(folder / "ser2net.pid")]]

    return commands


def _each(command: Callable[[str, int], Command]) -> Commands:
    """One process for each port."""

    def commands(ttys: Sequence[str], tcp_ports: Sequence[int], folder: Path) -> list[Command]:
        return [command(tty, tcp_port) for tty, tcp_port in zip(ttys, tcp_ports, strict=True)]

    return commands


def _esp_server(tty: str, tcp_port: int) -> Command:
    return [sys.executable, "-m", "esp_rfc2217_server", "-p", str(tcp_port), tty]


def _pyserial_server(tty: str, tcp_port: int) -> Command:
    return [sys.executable, "-m", "tests.tools.benchmarks.pyserial_server", tty, str(tcp_port)]


def _socat(tty: str, tcp_port: int) -> Command:
    listen = f"TCP-LISTEN:{tcp_port},bind={_HOST},reuseaddr,nodelay,fork"
    return ["socat", "-b", "65536", listen, f"OPEN:{tty},raw,echo=0,b{_BAUDRATE}"]


def _needs_program(name: str) -> Callable[[], str]:
    def missing() -> str:
        found = shutil.which(name, path=_SEARCH_PATH)
        return "" if found else f"not installed (Debian package {name})"

    return missing


def _needs_module(name: str, package: str) -> Callable[[], str]:
    return lambda: (
        "" if importlib.util.find_spec(name) else f"not installed (Python package {package})"
    )


OURS = Server("esp-serial-gateway", _gateway("-c", _WITHOUT_UVLOOP))
OURS_WITH_UVLOOP = Server(
    "esp-serial-gateway, uvloop", _gateway("-m", "gateway"), _needs_module("uvloop", "uvloop")
)
SER2NET = Server("ser2net, Debian's settings", _ser2net(tuned=False), _needs_program("ser2net"))
SER2NET_TUNED = Server("ser2net, tuned", _ser2net(tuned=True), _needs_program("ser2net"))
ESP_SERVER = Server(
    "esp_rfc2217_server",
    _each(_esp_server),
    _needs_module("esp_rfc2217_server", "esptool"),
    url_query="?ign_set_control",
)
PYSERIAL = Server("pyserial's example", _each(_pyserial_server))
SOCAT = Server(
    "socat, no telnet", _each(_socat), _needs_program("socat"), is_telnet=False, url_query=None
)

SERVERS = (OURS, OURS_WITH_UVLOOP, SER2NET_TUNED, SER2NET, ESP_SERVER, PYSERIAL, SOCAT)
