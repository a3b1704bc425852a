"""The ways to a board that remote_flashing.py compares: commands, servers and networks.

The same simulated board, its UART at its real speed, is behind every server; its lines are those of
a circuit whose EN rises in 10 ms, so that servers that pass each line on by itself have their
chance.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.boards import RunningBoard
from tests.support.delay_proxy import DelayProxy
from tests.support.gateway_client import ROOT, client_env
from tests.support.processes import Service
from tests.support.shim import Shim
from tests.tools.benchmarks.servers import (
    ESP_SERVER,
    OURS,
    PYSERIAL,
    SER2NET_TUNED,
    RunningServer,
    Server,
)

#: Commands, in the order in which one board gets them: each needs what the one before did.
COMMANDS = ("flash-id", "write", "read")

SIZE_BYTES = 1024 * 1024
_OFFSET = "0x10000"

#: What docs/remote-flashing.md recommends for the plain client on slow links.
ESPTOOL_CFG = ROOT / "tests" / "tools" / "esptool-slow-link.cfg"

#: On a machine that measures several cells at once.
_START_LIMIT_S = 120.0


@dataclass(frozen=True)
class Way:
    """How what flashes comes to the board: through which server, by which URL.

    No server and not `is_on_gateway`: esptool on the tty itself. `is_on_gateway`: `esp-gateway
    flash`, with the network between it and the gateway's HTTP server. `is_only_near`: a peer more,
    of which far networks would tell nothing new. `rounds` is how often a cell is measured.
    """

    name: str
    server: Server | None = None
    scheme: str = ""
    query: str = ""
    env: tuple[tuple[str, str], ...] = ()
    is_for_slow_links: bool = False
    is_only_near: bool = False
    is_on_gateway: bool = False
    rounds: int = 1

    @property
    def is_local(self) -> bool:
        """Whether there is no network that could be slow."""
        return self.server is None and not self.is_on_gateway

    @property
    def commands(self) -> tuple[str, ...]:
        """Which of COMMANDS there are."""
        return ("write",) if self.is_on_gateway else COMMANDS

    def missing(self) -> str:
        """What there is not, or ""."""
        return self.server.missing() if self.server else ""


LOCAL = Way("local", rounds=3)
ON_GATEWAY = Way("on this gateway", is_on_gateway=True, rounds=3)

WAYS = (
    LOCAL,
    ON_GATEWAY,
    Way("`gateway://`, this gateway", OURS, "gateway"),
    Way("`rfc2217://`, this gateway", OURS, "rfc2217"),
    Way("the same with esptool.cfg", OURS, "rfc2217", "?timeout=10", (
        ("ESPTOOL_CFGFILE", str(ESPTOOL_CFG)),
    ), is_for_slow_links=True),
    Way("`rfc2217://`, esp_rfc2217_server", ESP_SERVER, "rfc2217", "?ign_set_control"),
    Way("`rfc2217://`, ser2net tuned", SER2NET_TUNED, "rfc2217"),
    Way("`rfc2217://`, pyserial's example", PYSERIAL, "rfc2217", is_only_near=True),
    Way("`gateway://`, esp_rfc2217_server", ESP_SERVER, "gateway"),
    Way("`gateway://`, ser2net tuned", SER2NET_TUNED, "gateway"),
)  # fmt: skip


@dataclass(frozen=True)
class Reached:
    """A board at the end of a way: `address` is an URL, a tty or, on the gateway, HOST:PORT of its
    HTTP server; `env` is added to the environment of what is run."""

    way: Way
    address: str
    env: dict[str, str]

    def commands(self, baudrate: int, image: Path, back: Path) -> dict[str, list[str]]:
        """The command lines for the way's commands; `read` writes what it reads to `back`."""
        baud = ["--baud", str(baudrate)]
        if self.way.is_on_gateway:
            flash = [sys.executable, "-m", "gateway", "flash", "--json", "--http", self.address]
            return {"write": [*flash, *baud, "127.0.0.1/board", _OFFSET, str(image)]}
        esptool = [sys.executable, "-m", "esptool", "--port", self.address]
        return {
            "flash-id": [*esptool, "flash-id"],
            "write": [*esptool, *baud, "write-flash", _OFFSET, str(image)],
            "read": [*esptool, *baud, "read-flash", _OFFSET, str(SIZE_BYTES), str(back)],
        }


@contextmanager
def reached(way: Way, delay_ms: int, folder: Path, shim: Shim) -> Iterator[Reached]:
    """A board and all that is in front of it, `delay_ms` each way from who flashes it.

    `shim` must be nobody else's meanwhile.
    """
    with RunningBoard(f"sim://esp32?dir={folder / 'board'}&en_rise_ms=10") as board:
        board.wait_for("app_started")
        tty = str(board.tty_path)
        shim.set_controls({tty: board.control_path})
        if way.is_local:
            yield Reached(way, tty, shim.env())
            return
        with _served(way, tty, folder, shim) as tcp_port, _network(tcp_port, delay_ms) as near_port:
            if way.is_on_gateway:
                yield Reached(way, f"http://127.0.0.1:{near_port}", {})
            else:
                url = f"{way.scheme}://127.0.0.1:{near_port}{way.query}"
                yield Reached(way, url, {**client_env(folder), **dict(way.env)})


@contextmanager
def _served(way: Way, tty: str, folder: Path, shim: Shim) -> Iterator[int]:
    """The TCP port of the server: the board's, or that of HTTP."""
    if way.server is not None:
        with RunningServer(way.server, [tty], folder, shim.env()) as server:
            yield server.tcp_ports[0]
        return
    config = folder / "gateway.yaml"
    port = f"{{name: board, host: 127.0.0.1, tcp: 0, device: {tty}}}"
    config.write_text(f"http: 127.0.0.1:0\nports:\n  - {port}\n")
    # The environment is esptool's too, which the gateway starts: it moves the board's lines.
    with Service(config, shim.env()) as service:
        service.wait_for_line(r'"event": "device_opened"', _START_LIMIT_S)
        found = service.wait_for_line(r'"tcp_port": (\d+), "event": "http_started"', _START_LIMIT_S)
        yield int(found[1])


@contextmanager
def _network(tcp_port: int, delay_ms: int) -> Iterator[int]:
    """The TCP port at the near end of a network that is so slow each way."""
    if not delay_ms:
        yield tcp_port
        return
    with DelayProxy(tcp_port, delay_ms / 1000) as proxy:
        yield proxy.port
