"""Cross-checks: problems and warnings that no value has alone, and the files that values name.

Each value has been read by its type before; a default that does not fit a port is not used there.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import combinations
from typing import Final

from gateway.config.document import OnConnect, is_loopback, pool_member_name, tcp_text
from gateway.config.problems import Section, quoted
from gateway.config.schema import ADDRESS, LISTENING_KEYS, TCP, TLS_FILES, same_path
from gateway.config.usb_match import DeviceChoice, UsbMatch
from gateway.errors import GatewayError
from gateway.inputs import OPEN_TO_OTHERS, PRIVATE, read_regular_file
from gateway.net.tls_context import Tls, TlsFileError, doubtful_files, wrong_files
from gateway.protocol.reset import AUTO_REST, Reset, ResetChoice
from gateway.protocol.serial_settings import FlowControl

#: The Python packages of the HTTP server.
HTTP_PACKAGES: Final = ("aiohttp", "prometheus_client")

#: All that can be offered as a WebSocket protocol, which is how a browser sends it (RFC 6455,
#: section 4.1), and that needs no quoting in a shell.
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~-]{16,256}")
_TOKEN_FILE: Final = "a file with one line of 16 to 256 of a-z A-Z 0-9 . _ ~ -"  # noqa: S105
_TOKEN_FILE_BYTES: Final = 4096

#: Numbers that the kernel gives in the order in which it detects devices.
_NUMBERED: Final = re.compile(r"/dev/tty(USB|ACM)\d+")

#: Below, a process needs a capability that the service does without.
_FIRST_UNPRIVILEGED: Final = 1024

_WITH_NAME: Final = "a path with {name} in it, which stands for the name of each port"


class TokenFileError(GatewayError):
    """For the operator: why the token in a file can't be used."""

    def __init__(self, path: str, reason: str, expected: str = _TOKEN_FILE) -> None:
        super().__init__(f"invalid token_file '{path}' ({reason}): expected {expected}")
        self.path = path
        self.reason = reason
        self.expected = expected


def read_token(path: str) -> str:
    """The token in a file; blocks. Raises TokenFileError, whose text never has the content."""
    try:
        content = read_regular_file(path, _TOKEN_FILE_BYTES)
    except OSError as error:
        raise TokenFileError(path, f"cannot be read: {error.strerror or error}") from error
    if content.is_open_to_others:
        raise TokenFileError(path, OPEN_TO_OTHERS, PRIVATE)
    token = content.data.decode("latin-1").removesuffix("\n").removesuffix("\r")
    if not _TOKEN.fullmatch(token):
        raise TokenFileError(path, "no token in it")
    return token


def check(
    ports: list[Section], defaults: Section | None, http: Section | None, *, with_files: bool
) -> None:
    """Add all problems and warnings of the sections; with `with_files` blocks.

    `ports` have the values of `defaults` for the keys that they do not give.
    """
    others = [section for section in (defaults, http) if section is not None]
    for port in ports:
        _check_port(port)
    if http is not None:
        _check_http(http)
    _check_unique(ports, http)
    for section in (*others, *ports):
        _check_tls(section, with_files=with_files)
        _warn(section)
    if with_files and http is not None and (path := http.get("token_file")) is not None:
        try:
            read_token(path)
        except TokenFileError as error:
            problem = f"invalid token_file {quoted(path)} ({error.reason})"
            http.reject("token_file", problem, error.expected)
    _check_log_files(ports, others, with_files=with_files)


def check_defaults(defaults: Section) -> None:
    """Reject a log file that all ports would share; it is not used as their default."""
    log_file = defaults.get("log_file")
    if log_file is not None and "{name}" not in log_file:
        defaults.reject("log_file", f"invalid log_file {quoted(log_file)}", _WITH_NAME)
        del defaults.values["log_file"]


def check_http_packages(file: Section) -> None:
    """Reject `http` without the packages that it needs."""
    missing = [name for name in HTTP_PACKAGES if importlib.util.find_spec(name) is None]
    if "http" in file.lines and missing:
        problem = f"http needs the Python package {missing[0]}, which is not installed"
        file.reject("http", problem, "pip install 'esp-serial-gateway[web]'")


def _check_port(port: Section) -> None:
    """Reject keys of one port that do not fit each other."""
    connects = "connect" in port.lines
    if not connects and "tcp" not in port.lines:
        expected = f"tcp ({TCP.expected}) or connect ({ADDRESS.expected})"
        port.reject("tcp", "missing tcp", expected)
    for key in LISTENING_KEYS if connects else ():
        if key in port.lines:
            problem = f"{key} with connect (line {port.lines['connect']})"
            port.reject(key, problem, f"connect without {key}, or tcp")
    _check_tls_direction(port, connects=connects)
    is_for_flashers = port.get("on_connect") is OnConnect.BOOTLOADER
    if is_for_flashers and "replay" in port.lines and port.get("replay"):
        port.reject("replay", "replay with on_connect: bootloader", "one of them")
    rest, reset = port.get("rest", AUTO_REST), port.get("reset", Reset.AUTO)
    is_passed_on = reset is Reset.AUTO or rest.suits(ResetChoice(reset).strategy(None).method)
    if "rest" in port.lines and not is_passed_on:
        written = reset.value if isinstance(reset, Reset) else str(reset)
        problem = f"rest with one line on alone with reset {quoted(written)}"
        port.reject("rest", problem, "both lines on or both off, or reset: none")


def _check_http(http: Section) -> None:
    _check_tls_direction(http, connects=False)
    listen = http.get("listen")
    if listen is not None and "token_file" not in http.lines and not is_loopback(listen.host):
        expected = "token_file, or an address that only this machine reaches (127.0.0.1:8080)"
        http.reject("listen", f"listen '{listen}' without token_file", expected)


def _check_tls_direction(section: Section, *, connects: bool) -> None:
    """Reject keys that are not used in the port's direction, and a missing certificate."""
    tls = section.get("tls")
    if tls is None:
        return
    is_own = "tls" in section.lines
    beside, other = ("connect", "listen") if connects else ("tcp", "connect")
    for key in ("client_ca",) if connects else ("ca", "server_name"):
        if is_own and key in tls.lines:
            tls.reject(key, f"{key} with {beside}", f"it in ports that {other} only")
    if not connects and not tls.lines.keys() & {"cert", "key"}:
        problem = f"tls {'' if is_own else 'of the defaults '}without cert and key"
        section.reject("tls", problem, "both for a port that listens")


def _check_tls(section: Section, *, with_files: bool) -> None:
    """Check the section's own `tls`, and with `with_files` the files that it names."""
    tls = section.get("tls")
    if tls is None or "tls" not in section.lines:
        return
    for name, other in (("cert", "key"), ("key", "cert")):
        if name in tls.lines and other not in tls.lines:
            tls.reject(name, f"{name} without {other}", "both or neither")
    is_valid = tls.values.keys() == tls.lines.keys() and ("cert" in tls.lines) == (
        "key" in tls.lines
    )
    if with_files and is_valid:
        files = Tls(**tls.values)
        for error in wrong_files(files):
            tls.reject(error.key, _problem_of(error), error.expected)
        for error in doubtful_files(files, datetime.now(UTC)):
            tls.warn(error.key, _problem_of(error), error.expected)


def _problem_of(error: TlsFileError) -> str:
    return f"invalid {error.key} {quoted(error.path)} ({error.reason})"


def _check_unique(ports: list[Section], http: Section | None) -> None:
    """Reject names, addresses and devices of earlier ports, and the address of `http`."""
    names: dict[str, Section] = {}
    servers: dict[tuple[str | int, ...], Section] = {}
    addresses: dict[int, dict[str, Section]] = {}
    if http is not None and "tcp" in http.values:
        _check_address(http, addresses)
    for port in ports:
        if (name := port.get("name")) is not None:
            _reject_second(port, names.setdefault(name, port), "name")
        if (server := port.get("connect")) is not None:
            key = (*sorted(_addresses(server.host)), server.tcp_port)
            _reject_second(port, servers.setdefault(key, port), "connect")
        if "tcp" in port.values and "host" in port.values:
            _check_address(port, addresses)
    for port in ports:
        if isinstance(port.get("tcp"), range):
            _check_pool(port, names)
    _check_devices([port for port in ports if "device" in port.values])


def _reject_second(port: Section, first: Section, key: str) -> None:
    if port is not first:
        value = quoted(str(port.values[key]))
        problem = f"duplicate {key} {value} (first in line {first.lines[key]})"
        port.reject(key, problem, f"another {key} for each port")


def _check_address(port: Section, addresses: dict[int, dict[str, Section]]) -> None:
    """Reject a port that listens where another does; `addresses` gets its own."""
    tcp = port.values["tcp"]
    # Port 0 is another free one each time.
    for number in tcp if isinstance(tcp, range) else [tcp] if tcp else []:
        first = _first_at_address(port, addresses.setdefault(number, {}))
        if first is not port:
            problem = f"duplicate tcp '{number}' (first in line {first.lines['tcp']})"
            if isinstance(tcp, range):
                problem += f" in the range '{tcp_text(tcp)}'"
            port.reject("tcp", problem, "another tcp or host for each port")
            return


#: Stands for 0.0.0.0 and ::; no host is written so.
_EVERYWHERE: Final = "*"


def _first_at_address(port: Section, at_port: dict[str, Section]) -> Section:
    """The earlier port that listens where this one does, or the port itself.

    `at_port` has the ports of one TCP port number by address and gets this one's.
    """
    addresses = _addresses(port.values["host"])
    for address in addresses:
        # A port that listens everywhere meets each other one.
        first = at_port.get(address) or at_port.get(_EVERYWHERE)
        if first is None and address == _EVERYWHERE:
            first = next(iter(at_port.values()), None)
        if first is not None:
            return first
    at_port.update(dict.fromkeys(addresses, port))
    return port


def _addresses(host: str) -> set[str]:
    """The addresses of a host, as far as they are known without asking DNS.

    0.0.0.0 and :: are taken to overlap, although the kernel could keep them apart: the board that a
    client reaches must not depend on its address family.
    """
    if host.lower().rstrip(".") == "localhost":
        return {"127.0.0.1", "::1"}
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return {host.lower().rstrip(".")}
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return {_EVERYWHERE if address.is_unspecified else str(address)}


def _check_pool(pool: Section, names: dict[str, Section]) -> None:
    device, log_file = pool.get("device"), pool.get("log_file")
    if device is not None and not device.is_match:
        pool.reject("device", f"invalid device {quoted(str(device))} of a pool", "matches only")
    if "log_file" in pool.lines and log_file is not None and "{name}" not in log_file:
        pool.reject("log_file", f"invalid log_file {quoted(log_file)} of a pool", _WITH_NAME)
    for number in pool.values["tcp"] if "name" in pool.values else ():
        member = names.get(pool_member_name(pool.values["name"], number))
        if member is not None:
            of_pool = f"(first of a port of the pool in line {pool.lines['name']})"
            problem = f"duplicate name {quoted(member.values['name'])} {of_pool}"
            member.reject("name", problem, "another name")


def _check_devices(ports: list[Section]) -> None:
    paths: dict[str, Section] = {}
    for port in ports:
        for path in port.values["device"].paths:
            _reject_second(port, paths.setdefault(same_path(path), port), "device")
    # A pool takes the devices that the other ports leave, so these two are not compared.
    for is_pool in (False, True):
        alike = [port for port in ports if isinstance(port.get("tcp"), range) is is_pool]
        for later, first, match in overlapping(port.values["device"] for port in alike):
            line = alike[first].lines["device"]
            problem = f"device {quoted(str(match))} fits the match in line {line} too"
            alike[later].reject("device", problem, "matches of which no device fits two")


def overlapping(choices: Iterable[DeviceChoice]) -> Iterator[tuple[int, int, UsbMatch]]:
    """Pairs of choices of which one includes a match of the other.

    Yields the place of the later one, of the earlier one, and the narrower match. Matches that fit
    the same device only by chance are not known before it is plugged in.
    """
    matches = [
        (len(match.criteria), place, match)
        for place, choice in enumerate(choices)
        for match in choice.matches
    ]
    wider: dict[tuple[tuple[str, object], ...], int] = {}
    found = set()
    for _, place, match in sorted(matches, key=lambda each: each[:2]):
        criteria = match.criteria
        for size in range(len(criteria) + 1):
            for subset in combinations(criteria, size):
                other = wider.get(subset, place)
                pair = max(place, other), min(place, other)
                if other != place and pair not in found:
                    found.add(pair)
                    yield *pair, match
        wider.setdefault(criteria, place)


def _check_log_files(ports: list[Section], others: list[Section], *, with_files: bool) -> None:
    """Reject log files that are the same, a rotated file of another, or a file of the gateway's.

    With `with_files` paths are compared after following links, else as they are written.
    """
    resolve = os.path.realpath if with_files else os.path.normpath
    taken: dict[str, str] = {}
    for section in (*ports, *others):
        tls = {} if section.get("tls") is None else section.values["tls"].values
        files = dict.fromkeys((tls.get(key) for key in TLS_FILES), "a file for TLS")
        files |= {
            section.problems.file: "the configuration",
            section.get("token_file"): "the token",
        }
        taken |= {str(resolve(path)): text for path, text in files.items() if path is not None}
    owners: dict[str, Section] = {}
    for port in ports:
        for path in (str(resolve(path)) for path in _log_files(port)):
            owner = owners.setdefault(path, port)
            if path in taken:
                _reject_log_file(port, path, f"is {taken[path]}")
            elif owner is not port:
                _reject_log_file(port, path, f"is that of line {_log_file_line(owner)}")
    rejected: list[Section] = []
    for path, port in owners.items():
        base, _, number = path.rpartition(".")
        rotated = owners.get(base)
        # PATH.1, PATH.2 and so on are rotated files; one port of a pool is enough.
        if rotated is None or port in rejected:
            continue
        if number in map(str, range(1, rotated.get("log_keep", 0) + 1)):
            line = _log_file_line(rotated)
            _reject_log_file(port, path, f"is a rotated file of that of line {line}")
            rejected.append(port)


def _log_files(port: Section) -> list[str]:
    path, name, tcp = port.get("log_file"), port.get("name"), port.get("tcp")
    if path is None or name is None:
        return []
    is_pool = isinstance(tcp, range) and "{name}" in path
    names = [pool_member_name(name, number) for number in tcp] if is_pool else [name]
    return [path.replace("{name}", each) for each in names]


def _log_file_line(port: Section) -> int:
    """The line of the key; the line of the port's name if the value is the default."""
    return port.lines.get("log_file") or port.lines["name"]


def _reject_log_file(port: Section, path: str, reason: str) -> None:
    problem = f"log_file {quoted(path)} {reason}"
    expected = "another log_file for each port"
    port.problems.add(_log_file_line(port), port.path, problem, expected)


def _warn(section: Section) -> None:
    """Warn of values that can be served and are seldom meant."""
    device = section.get("device")
    for path in device.paths if device is not None else ():
        if _NUMBERED.fullmatch(same_path(path)):
            problem = f"device {quoted(path)} may be another board after a restart or a replug"
            remedy = "a match or a name in /dev/serial (esp-gateway devices --yaml)"
            section.warn("device", problem, remedy)
    tcp = section.get("tcp", 0)
    if 0 < (tcp.start if isinstance(tcp, range) else tcp) < _FIRST_UNPRIVILEGED:
        name = "listen" if "listen" in section.lines else "tcp"
        problem = f"{name} '{tcp_text(tcp)}' is privileged, the service can't listen there"
        remedy = f"{_FIRST_UNPRIVILEGED} or higher, or CAP_NET_BIND_SERVICE"
        section.warn("tcp", problem, remedy)
    rtscts = section.get("flow_control") is FlowControl.RTSCTS
    if rtscts and section.get("reset", Reset.AUTO) is not Reset.NONE:
        problem = "flow_control 'rtscts' takes RTS, which resets ESP boards"
        remedy = "none, or reset: none for a board with RTS and CTS"
        section.warn("flow_control", problem, remedy)
