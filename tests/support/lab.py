"""A gateway with simulated boards, as its users see it: URLs for clients, each board's own log."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest
import serial

from gateway.simulator.board import pattern
from tests.support.processes import START_LIMIT_S, Service

#: Between two looks at a board's log, which can't be waited for.
_POLL_S = 0.02

#: Each board is a Python of its own, and all start at once.
_START_LIMIT_PER_BOARD_S = 3.0


@dataclass(frozen=True)
class LabBoard:
    """One board behind the gateway."""

    name: str
    tcp_port: int
    folder: Path
    lab: Lab | None = field(default=None, repr=False, compare=False)

    @property
    def url(self) -> str:
        """The URL that pyserial's clients take."""
        return self.url_for("rfc2217")

    @property
    def socket_url(self) -> str:
        """The URL that pyserial's clients take for a raw port."""
        return self.url_for("socket")

    def url_for(self, scheme: str) -> str:
        """The URL for one of pyserial's schemes: `rfc2217`, `gateway` or `socket`."""
        return f"{scheme}://127.0.0.1:{self.tcp_port}"

    @property
    def service(self) -> Service:
        """The gateway that serves it."""
        assert self.lab is not None
        return self.lab.service

    @property
    def http(self) -> str:
        """HOST:PORT of the gateway's HTTP server."""
        assert self.lab is not None
        return self.lab.http

    def warnings(self) -> list[str]:
        """Lines of the service's log that an operator would look at."""
        return [line for line in self.service.log if '"level": "warning"' in line]

    def log(self) -> list[dict[str, object]]:
        """What has happened to the board, oldest first."""
        lines = (self.folder / "log.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def state(self) -> dict[str, object]:
        """What runs on the board and what the gateway has set: see `simulator.process`."""
        state: dict[str, object] = json.loads(self.ask("state?"))
        return state

    def ask(self, request: str) -> str:
        """What the board's control socket answers: see `simulator.process`."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(START_LIMIT_S)
            control.connect(str(self.folder / "control"))
            control.sendall(request.encode() + b"\n")
            with control.makefile() as answers:
                return answers.readline().strip()

    def wait_for_state(self, **wanted: object) -> None:
        """Wait until the board's state has these values."""
        deadline = time.monotonic() + START_LIMIT_S
        while not wanted.items() <= (state := self.state()).items():
            if time.monotonic() > deadline:
                pytest.fail(f"{wanted} did not come; the board's state: {state}")
            time.sleep(_POLL_S)

    def wait_for_app(self) -> None:
        """Wait until the app runs: what is typed while the ROM boots is lost, as on hardware."""
        self.wait_for(lambda log: any(entry["event"] == "app_started" for entry in log))

    def boots(self) -> list[object]:
        """What each boot since power-up led to: "app" or "download"."""
        return [entry["mode"] for entry in self.log() if entry["event"] == "boot"]

    def wait_for(
        self,
        is_there: Callable[[list[dict[str, object]]], bool],
        limit_s: float = START_LIMIT_S,
    ) -> None:
        """Wait until the board's log satisfies a condition."""
        deadline = time.monotonic() + limit_s
        while not is_there(self.log()):
            if time.monotonic() > deadline:
                pytest.fail(f"the board did not do it; its log: {self.log()}")
            time.sleep(_POLL_S)

    def wait_for_boots(self, count: int, limit_s: float = START_LIMIT_S) -> list[object]:
        """Wait until the board has booted `count` times; return how."""
        self.wait_for(lambda log: sum(entry["event"] == "boot" for entry in log) >= count, limit_s)
        return self.boots()


#: What the simulated app echoes as it comes: all but its own keys.
ECHOED = bytes(set(range(256)) - set(b"\r\n\b\x7f"))


def exchange(client: serial.SerialBase, n_bytes: int = 20_000) -> None:
    """Assert that bytes of all values pass both ways unchanged, from the app's prompt on."""
    client.write(b"bytes %d\r" % n_bytes)
    wanted = b"bytes %d\r\n" % n_bytes + pattern(n_bytes) + b"\r\nesp> "
    assert client.read(len(wanted)) == wanted
    client.write(ECHOED)
    assert client.read(len(ECHOED)) == ECHOED


class Lab:
    """`gateway run` with simulated boards, one per name; a context manager.

    `boards` gives each board's URL parameters by its name, `keys` what else the YAML says of each
    port. With `http`, that is the address of the HTTP server; it wants the token in `token_file`.
    """

    def __init__(
        self,
        folder: Path,
        boards: Mapping[str, str],
        *,
        chip: str = "esp32",
        env: Mapping[str, str] | None = None,
        keys: Mapping[str, str] | None = None,
        http: bool = False,
        token_file: Path | None = None,
    ) -> None:
        self.boards: dict[str, LabBoard] = {}
        self._names = list(boards)
        self._folder = folder
        self._http = http
        self.http = ""
        lines = ["http:", "  listen: 127.0.0.1:0"] if http else []
        if token_file is not None:
            lines.append(f"  token_file: {token_file}")
        lines.append("ports:")
        for name, parameters in boards.items():
            url = f"sim://{chip}?name={name}&dir={folder / name}&{parameters}".rstrip("&")
            lines += [f"  - name: {name}", "    tcp: 0", f"    device: {url}"]
            lines += [f"    {key}: {value}" for key, value in (keys or {}).items()]
        config = folder / "gateway.yaml"
        config.write_text("\n".join(lines) + "\n")
        self.service = Service(config, env)

    def __enter__(self) -> Self:
        self.service.__enter__()
        limit_s = START_LIMIT_S + _START_LIMIT_PER_BOARD_S * len(self._names)
        try:
            for name in self._names:
                found = self.service.wait_for_line(
                    rf'"device": "{name}".*"tcp_port": (\d+), "event": "listen_started"', limit_s
                )
                self.service.wait_for_line(
                    rf'"device": "{name}".*"event": "device_opened"', limit_s
                )
                self.boards[name] = LabBoard(name, int(found[1]), self._folder / name, self)
            if self._http:
                found = self.service.wait_for_line(r'"tcp_port": (\d+), "event": "http_started"')
                self.http = f"127.0.0.1:{found[1]}"
        except BaseException:
            self.service.kill()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.service.__exit__(*exc_info)  # type: ignore[arg-type]
