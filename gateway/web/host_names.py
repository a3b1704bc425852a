"""The names by which a browser may address this gateway, against DNS rebinding.

A page of evil.example whose name is made to resolve to this gateway is of the gateway's origin for
the browser and could read every answer. Its requests carry that name in `Host`, so only names that
no other party controls are served: IP addresses, localhost, the host's own names and those of
`http.host_names`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Final

#: Where the resolver's search domains and the host's own entry are; no name server is asked.
_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_HOSTS: Final = Path("/etc/hosts")

#: Both are of a few lines; more of them is not read.
_MAX_BYTES: Final = 65536


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
