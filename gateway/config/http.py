"""How the HTTP server is written in the YAML: where it listens, who may ask, by which token.

An address alone is enough for this machine; whoever lets others in must name a file with a token.
What is served there is the package `web`'s matter.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any, Final

import yaml

from gateway.config.document import Address, HttpConfig
from gateway.config.networks import NETWORKS
from gateway.config.tls import TLS, check_tls_fits
from gateway.config.unique import Section
from gateway.config.values import ABSOLUTE_PATH, HOST, read_address
from gateway.config.wording import clipped, quoted
from gateway.config.yaml_lines import (
    Kind,
    Problems,
    WrongPartsError,
    is_refused,
    known_entries,
    line_of,
    refuse,
    scalar_text,
)
from gateway.errors import GatewayError
from gateway.inputs import OPEN_TO_OTHERS, PRIVATE, read_regular_file

#: The Python packages that the server is made with, and how they are installed.
PACKAGES: Final = ("aiohttp", "prometheus_client")
_INSTALLED: Final = "what pip install 'esp-serial-gateway[web]' installs"

#: What may be in a token: all that can be offered as a WebSocket protocol, which is how a browser
#: sends it (RFC 6455, 4.1), and that needs no quoting in a shell.
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~-]{16,256}")
_TOKEN_FILE: Final = "a file with one line of 16 to 256 of a-z A-Z 0-9 . _ ~ -"  # noqa: S105
_TOKEN_FILE_BYTES: Final = 4096


class TokenFileError(GatewayError):
    """For the operator: why the token in a file can't be used."""

    def __init__(self, path: str, reason: str, expected: str = _TOKEN_FILE) -> None:
        super().__init__(f"invalid token_file '{path}' ({reason}): expected {expected}")
        self.path = path
        self.reason = reason
        self.expected = expected


def read_token(path: str) -> str:
    """The token in a file; blocks. Raises TokenFileError with the reason why there is none."""
    try:
        content = read_regular_file(path, _TOKEN_FILE_BYTES)
    except OSError as error:
        raise TokenFileError(path, f"cannot be read: {error.strerror or error}") from error
    if content.is_open_to_others:
        raise TokenFileError(path, OPEN_TO_OTHERS, PRIVATE)
    token = content.data.decode("latin-1").removesuffix("\n").removesuffix("\r")
    if not _TOKEN.fullmatch(token):
        raise TokenFileError(path, "no token in it")  # never what is in it
    return token


def _read_listen(node: yaml.Node) -> Address:
    return read_address(scalar_text(node), first_port=0)


def _read_host_names(node: yaml.Node) -> frozenset[str]:
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not items:
        raise ValueError
    names = []
    for item in items:
        text = scalar_text(item)
        try:
            names.append(HOST.read(item))
        except ValueError:
            raise ValueError(f"{clipped(text)} in line {line_of(item)}") from None
    return frozenset(str(name).lower().rstrip(".") for name in names)


LISTEN: Final = Kind("HOST:PORT, an IPv6 address in brackets", _read_listen)
HOST_NAMES: Final = Kind("a host name or a list of them, without a port", _read_host_names)

#: The keys of `http`.
HTTP_KEYS: Final = {
    "listen": LISTEN,
    "allow": NETWORKS,
    "tls": TLS,
    "token_file": ABSOLUTE_PATH,
    "host_names": HOST_NAMES,
}
_ACCEPTED: Final = f"{LISTEN.accepted}, or a mapping of {', '.join(HTTP_KEYS)}"


def read_http(line: int, node: yaml.Node, problems: Problems) -> HttpConfig | None:
    """The section `http`, whose key is in `line`; None if it has problems, which are added."""
    before = len(problems.found)
    values: dict[str, Any] = {}
    lines = {"listen": line}
    if isinstance(node, yaml.MappingNode) and not is_refused(node):
        found = known_entries(node, "http", tuple(HTTP_KEYS), problems)
        lines = {name: entry.line for name, entry in found.items()}
        for name, entry in found.items():
            _read_into(values, name, f"http.{name}", entry.value, problems)
        if "listen" not in found:
            problems.add(line_of(node), "http", "missing listen", LISTEN.accepted)
    else:
        _read_into(values, "listen", "http", node, problems)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        problem = f"http needs the Python package {missing[0]}, which is not installed"
        problems.add(line, "", problem, _INSTALLED)
    if len(problems.found) > before or "listen" not in values:
        return None
    listen = values.pop("listen")
    http = HttpConfig(listen.host, listen.tcp_port, **values, lines=tuple(lines.items()))
    check_tls_fits(http_section(http), line, problems)
    if http.token_file is None and not http.is_loopback:
        problem = f"listen '{listen}' without token_file"
        expected = "token_file, or an address that only this machine reaches (127.0.0.1:8080)"
        problems.add(lines["listen"], "http", problem, expected)
    return http


def check_http_files(http: HttpConfig | None, problems: Problems) -> None:
    """Refuse files that can't be used; blocks."""
    if http is None or http.token_file is None:
        return
    try:
        read_token(http.token_file)
    except TokenFileError as error:
        line = dict(http.lines)["token_file"]
        problem = f"invalid token_file {quoted(error.path)} ({error.reason})"
        problems.add(line, "http", problem, error.expected)


def http_section(http: HttpConfig) -> Section:
    """What it has in common with a port, for the checks of addresses and of files for TLS."""
    values = {
        "tcp": http.tcp_port,
        "host": http.host,
        "tls": http.tls,
        "token_file": http.token_file,
    }
    lines = dict(http.lines)
    return Section("http", values, lines | {"tcp": lines["listen"]})


def _read_into(
    values: dict[str, Any], name: str, path: str, node: yaml.Node, problems: Problems
) -> None:
    try:
        values[name] = HTTP_KEYS[name].read(node)
    except WrongPartsError as parts:
        problems.add_parts(path, parts)
    except ValueError as exc:
        accepted = _ACCEPTED if path == "http" else HTTP_KEYS[name].accepted
        refuse(node, path, accepted, problems, reason=str(exc))
