"""Access rules of HTTP requests: host names, the token, pages of other sites.

A browser sends requests for any page that a person looks at, with the rights of that person's
machine. So every request is checked for the host name that it was sent to (DNS rebinding), and a
request that changes something for the origin that it comes from (cross-site request forgery).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from gateway.errors import GatewayError

#: The WebSocket protocol of a console, and how a browser, which can't set headers there, offers its
#: token beside it.
CONSOLE_PROTOCOL: Final = "esp-gateway"
_TOKEN_PROTOCOL: Final = "bearer."  # noqa: S105 - no token

#: Methods that change nothing.
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

#: The resolver's search domains and the host's own entry; no name server is asked.
_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_HOSTS: Final = Path("/etc/hosts")

#: Both have a few lines; the rest is not read.
_MAX_BYTES: Final = 65536

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"


class AccessError(GatewayError):
    """A request is not carried out: the status of the answer and one line for its sender."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules. Without a `token` none is needed.

    `host_names` are those of the configuration, `own_names` those that the host has.
    """

    token: str | None
    host_names: frozenset[str] = frozenset()
    own_names: frozenset[str] = frozenset()

    def check(self, request: web.Request, content_types: Collection[str] | None = (JSON,)) -> None:
        """Raise AccessError for a request that is not permitted.

        `content_types` are those that its resource accepts, None if there is no such resource.
        """
        headers = request.headers
        hosts = [headers.get(hdrs.HOST, "")]
        if request.raw_path[:1] not in {"/", "*"}:  # the absolute form (RFC 9112, section 3.2.2)
            hosts.append(request.host)
        for host in hosts:
            if host and not is_served(split_host(host)[0], self.host_names | self.own_names):
                reason = (
                    f"{_shown(host)} is not a name of this gateway: use its IP address, or add the"
                    " name to http.host_names in its configuration"
                )
                raise AccessError(HTTPStatus.MISDIRECTED_REQUEST, reason)
        is_websocket = "websocket" in headers.get(hdrs.UPGRADE, "").lower()
        if request.method in SAFE_METHODS and not is_websocket:
            return
        _check_page(request)
        if self.token is not None:
            _check_token(request, self.token)
        if not is_websocket and content_types is not None:
            _check_content(request, content_types)


def _check_page(request: web.Request) -> None:
    origin = request.headers.get(hdrs.ORIGIN, "")
    if origin and not is_same_origin(origin, request.headers.get(hdrs.HOST, "")):
        reason = f"a page of {_shown(origin)} may not ask for this"
        raise AccessError(HTTPStatus.FORBIDDEN, reason)
    if request.headers.get("Sec-Fetch-Site", "") not in {"", "same-origin", "none"}:
        raise AccessError(HTTPStatus.FORBIDDEN, "a page of another site may not ask for this")


def _check_token(request: web.Request, token: str) -> None:
    scheme, _, shown = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    tokens = [shown.strip()] if scheme.lower() == "bearer" and shown else []
    tokens += [
        each.removeprefix(_TOKEN_PROTOCOL)
        for each in offered_protocols(request)
        if each.startswith(_TOKEN_PROTOCOL)
    ]
    # A header may have any bytes; those that are not UTF-8 arrive as surrogates.
    offered = [each.encode(errors="surrogateescape") for each in tokens]
    if not any(hmac.compare_digest(each, token.encode()) for each in offered):
        cause = "the token is not this gateway's" if tokens else "a token is needed"
        reason = f"{cause} (Authorization: Bearer TOKEN)"
        raise AccessError(HTTPStatus.UNAUTHORIZED, reason)


def _check_content(request: web.Request, content_types: Collection[str]) -> None:
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
    # A page's form can be empty, too, but always has a type of its own.
    is_empty = not request.body_exists and content_type in {"", BYTES}
    if not is_empty and content_type not in content_types:
        reason = f"Content-Type must be {' or '.join(sorted(content_types))}"
        raise AccessError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, reason)


def offered_protocols(request: web.Request) -> list[str]:
    """The protocols that a WebSocket's client offers."""
    offered = request.headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])
    return [each.strip() for line in offered for each in line.split(",")]


def is_same_origin(origin: str, host: str) -> bool:
    """Whether a page comes from the server that was asked at `host` (the Host header).

    The scheme is not compared: a proxy in front may speak TLS where we do not.
    """
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return False  # "null": a page without an origin, a sandboxed frame for instance
    default = 443 if parts.scheme == "https" else 80
    asked_name, asked_port = split_host(host)
    return parts.hostname == asked_name and (port or default) == (asked_port or default)


def split_host(host: str) -> tuple[str, int | None]:
    """Name and port of a Host header; an IPv6 address without its brackets."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "", parts.port
    except ValueError:
        return "", None


def _shown(text: str) -> str:
    return repr(text[:60]) if not text.isprintable() or len(text) > 60 else text


def is_served(name: str, names: Collection[str]) -> bool:
    """Whether a request for the host `name` (no port, lower case) is served; `names` are our own.

    A page of evil.example whose name is made to resolve to this gateway is of the gateway's origin
    for the browser, and could read every answer. Its requests have that name in `Host`, so only
    names that no other party controls are served. An IP address is such a name, for no DNS is asked
    for it; nor is it for localhost (RFC 6761, section 6.3).
    """
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        pass
    else:
        return True
    name = name.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost") or name in names:
        return True
    # Multicast DNS appends a number to a name that is taken, and mdns/ a suffix of its own.
    label, _, rest = name.partition(".")
    return rest == "local" and any(label.startswith(f"{own}-") for own in names if "." not in own)


def own_names(resolv_conf: Path = _RESOLV_CONF, hosts: Path = _HOSTS) -> frozenset[str]:
    """The host's name, alone and with each of its domains; blocks on two small files."""
    full = socket.gethostname().lower().rstrip(".")
    if not full or full == "localhost":
        return frozenset()
    label = full.partition(".")[0]
    names = {full, label, f"{label}.local"}
    found = re.findall(r"^(?:search|domain)\s+(.*)$", _text(resolv_conf), re.MULTILINE)
    domains = {domain.strip(".") for line in found for domain in line.split()} - {""}
    names |= {f"{label}.{domain}" for domain in domains}
    for line in _text(hosts).splitlines():
        words = line.partition("#")[0].split()[1:]
        if full in words or label in words:
            names |= {word.rstrip(".") for word in words}
    return frozenset(names - {"localhost"})


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace").lower()
    except OSError:
        return ""
