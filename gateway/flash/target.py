"""Which boards of which gateway a person means: `lab:4001`, `lab:4001,4002`, `lab/desk`.

TCP ports are what people know of their boards, so that is what they name; the gateway's HTTP
address is worked out from it, and the name of the port asked for there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gateway.errors import GatewayError

#: Where a gateway's HTTP server listens if nobody says otherwise.
DEFAULT_HTTP_PORT = 8080

#: An error is a line or two, whatever a gateway answers.
_MAX_ERROR_CHARS = 500
_MAX_HINTS = 3

_ACCEPTED = (
    "accepted: HOST:PORT[,PORT...] or HOST/NAME[,NAME...], lab:4001 or lab/desk for instance"
)

_TARGET = re.compile(r"(?P<host>\[[^\]]+\]|[^:/\[\]]+)(?P<kind>[:/])(?P<ports>.+)")


class TargetError(GatewayError):
    """For whoever types the command: what is wrong with the board's address."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the gateway's HTTP server is; `host` as URLs write it, without brackets."""

    host: str
    tcp_port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.tcp_port}"


@dataclass(frozen=True, slots=True)
class Target:
    """Boards of one gateway, by their TCP ports or by the names of their ports."""

    host: str
    boards: tuple[int | str, ...]


def read_target(text: str) -> Target:
    """What is said on the command line; TargetError if it is not one."""
    text = text.removeprefix("rfc2217://").removeprefix("gateway://").partition("?")[0]
    found = _TARGET.fullmatch(text)
    if found is None:
        raise TargetError(f"found {text!r}, {_ACCEPTED}")
    words = [word.strip() for word in found["ports"].split(",")]
    if not all(words) or len(set(words)) < len(words):
        raise TargetError(f"found {text!r}, {_ACCEPTED}, each once")
    boards: list[int | str] = []
    for word in words:
        if found["kind"] == "/":
            boards.append(word)
        elif word.isascii() and word.isdigit() and 0 < int(word) < 65536:
            boards.append(int(word))
        else:
            raise TargetError(f"{word!r} is no TCP port; {_ACCEPTED}")
    return Target(found["host"].strip("[]"), tuple(boards))


def read_address(text: str | None, host: str) -> Address:
    """Where the HTTP server is: what was said of it, else the target's host; TargetError."""
    if not text:
        return Address(host, DEFAULT_HTTP_PORT, tls=False)
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        tcp_port = parts.port
    except ValueError as error:
        raise TargetError(f"{text!r} is no HTTP address: {error}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/"):
        raise TargetError(f"{text!r} is no HTTP address; accepted: lab:8080 or https://lab:8443")
    tls = parts.scheme == "https"
    return Address(parts.hostname, tcp_port or (443 if tls else DEFAULT_HTTP_PORT), tls)


def find_names(target: Target, ports: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """The names of the ports that are meant among those that the gateway has (`GET /api/ports`).

    `where` is the address at which it was asked. Raises TargetError when one is not there.
    """
    by_tcp_port: dict[int | None, str] = {_tcp_port(port): str(port.get("name")) for port in ports}

    names = {str(port.get("name")) for port in ports}
    found = []
    for board in target.boards:
        name = by_tcp_port.get(board) if isinstance(board, int) else board
        if name is None or name not in names:
            there = ", ".join(
                f"{port.get('name')} ({_tcp_port(port) or 'no TCP port'})" for port in ports
            )
            hint = _hint(target, board, ports)
            text = f"{where} has no port {board}; it has: {there or 'none'}"
            raise TargetError(text[: _MAX_ERROR_CHARS - len(hint)] + hint)
        found.append(name)
    if len(set(found)) < len(found):
        raise TargetError(f"the same port is named twice: {', '.join(found)}")
    return found


def _hint(target: Target, board: int | str, ports: Sequence[Mapping[str, Any]]) -> str:
    """How a port is named that does not listen; empty where that is not what went wrong."""
    if isinstance(board, str):
        return ""
    # `address` of such a port is where it connects to.
    dialing = [port for port in ports if port.get("host", "") is None]
    meant = [port for port in dialing if str(port.get("address", "")).endswith(f":{board}")]
    host = f"[{target.host}]" if ":" in target.host else target.host
    commands = [f"{host}/{port.get('name')}" for port in meant or dialing][:_MAX_HINTS]
    if not commands:
        return ""
    return f". A port that connects to its client is meant by its name: {' or '.join(commands)}"


def _tcp_port(port: Mapping[str, Any]) -> int | None:
    """The one that clients connect to, if there is one."""
    tcp_port = port.get("tcp_port")
    return tcp_port if isinstance(tcp_port, int) else None
