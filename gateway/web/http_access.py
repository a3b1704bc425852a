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
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

#: The WebSocket protocol that is spoken on a console, and how a browser, which can't set headers
#: there, offers its token beside it.
CONSOLE_PROTOCOL: Final = "esp-gateway"
_TOKEN_PROTOCOL: Final = "bearer."  # noqa: S105 - no token

#: Methods that change nothing.
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

#: Where the resolver's search domains and the host's own entry are; no name server is asked.
_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_HOSTS: Final = Path("/etc/hosts")

#: Both are of a few lines; more of them is not read.
_MAX_BYTES: Final = 65536

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a request matters here, as it was sent; a header that is missing is empty.

    `target_host` is the host of a request line in absolute form (RFC 9112, section 3.2.2), empty in
    the usual form; `protocols` are the WebSocket protocols offered.
    """

    method: str
    host: str = ""
    target_host: str = ""
    origin: str = ""
    fetch_site: str = ""
    content_type: str = ""
    has_body: bool = False
    authorization: str = ""
    is_websocket: bool = False
    protocols: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether it may change something; what is typed on a console does."""
        return self.is_websocket or self.method not in SAFE_METHODS


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request is not carried out, in one line for its sender."""

    status: HTTPStatus
    reason: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What is checked; `token` None: none is needed.

    `host_names` are those of the configuration, `own_names` those that the host has.
    """

    token: str | None
    host_names: frozenset[str] = frozenset()
    own_names: frozenset[str] = frozenset()

    def refusal(
        self, asked: Asked, content_types: Collection[str] | None = (JSON,)
    ) -> Refused | None:
        """Why not; None if it may.

        `content_types` are those that its resource takes, None if there is no such resource.
        """
        for host in (asked.host, asked.target_host):
            if host and not is_served(split_host(host)[0], self.host_names | self.own_names):
                reason = (
                    f"{_shown(host)} is not a name of this gateway: use its IP address, or add the"
                    " name to http.host_names in its configuration"
                )
                return Refused(HTTPStatus.MISDIRECTED_REQUEST, reason)
        if not asked.changes:
            return None
        return (
            self._refused_page(asked)
            or self._refused_token(asked)
            or _refused_content(asked, content_types)
        )

    def _refused_page(self, asked: Asked) -> Refused | None:
        if asked.origin and not is_same_origin(asked.origin, asked.host):
            reason = f"a page of {_shown(asked.origin)} may not ask for this"
            return Refused(HTTPStatus.FORBIDDEN, reason)
        if asked.fetch_site not in {"", "same-origin", "none"}:
            return Refused(HTTPStatus.FORBIDDEN, "a page of another site may not ask for this")
        return None

    def _refused_token(self, asked: Asked) -> Refused | None:
        if self.token is None:
            return None
        shown = list(tokens_of(asked.authorization, asked.protocols))
        # A header may have any bytes; those that are not UTF-8 arrive as surrogates.
        offered = [each.encode(errors="surrogateescape") for each in shown]
        if any(hmac.compare_digest(each, self.token.encode()) for each in offered):
            return None
        found = "the token is not this gateway's" if shown else "a token is needed"
        reason = f"{found} (Authorization: Bearer TOKEN)"
        return Refused(HTTPStatus.UNAUTHORIZED, reason)


def _refused_content(asked: Asked, content_types: Collection[str] | None) -> Refused | None:
    if content_types is None:
        return None
    found = media_type(asked.content_type)
    # A form of a page can be empty, too, but always has a type of its own.
    is_nothing = not asked.has_body and found in {"", BYTES}
    if asked.is_websocket or is_nothing or found in content_types:
        return None
    reason = f"Content-Type must be {' or '.join(sorted(content_types))}"
    return Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, reason)


def tokens_of(authorization: str, protocols: Iterable[str]) -> Iterable[str]:
    """The tokens that a request shows, in its header or as a WebSocket protocol."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer" and token:
        yield token.strip()
    for protocol in protocols:
        if protocol.startswith(_TOKEN_PROTOCOL):
            yield protocol.removeprefix(_TOKEN_PROTOCOL)


def media_type(content_type: str) -> str:
    """A Content-Type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def is_same_origin(origin: str, host: str) -> bool:
    """Whether a page is one of the server that was asked at `host` (the Host header).

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

    Any IP address is: a browser connects to exactly that address, so no DNS can point it elsewhere.
    localhost is never looked up in DNS (RFC 6761, section 6.3).
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
    """The host's names: its host name, alone and with each domain; blocks on two small files."""
    full = socket.gethostname().lower().rstrip(".")
    if not full or full == "localhost":
        return frozenset()
    label = full.partition(".")[0]
    names = {full, label, f"{label}.local"}
    names |= {f"{label}.{domain}" for domain in _search_domains(_text(resolv_conf))}
    for line in _text(hosts).lower().splitlines():
        words = line.partition("#")[0].split()[1:]
        if full in words or label in words:
            names |= {word.rstrip(".") for word in words}
    return frozenset(names - {"localhost"})


def _search_domains(resolv_conf: str) -> set[str]:
    found = re.findall(r"^(?:search|domain)\s+(.*)$", resolv_conf.lower(), re.MULTILINE)
    return {domain.strip(".") for line in found for domain in line.split()} - {""}


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""
