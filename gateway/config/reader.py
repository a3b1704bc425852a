"""Read the YAML file: every check and each message.

One table, PORT_KEYS, says which keys a port has: the reader, the messages, the documentation's
test and the example's test all go by it, so a new key is a row there and a field of PortConfig.
How YAML is read with line numbers is yaml_lines.py's matter, what no two ports may have in common
unique.py's. Nothing here looks at hardware: an absent device is no mistake in the file.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import yaml

from gateway.config.device import DEVICE, TCP
from gateway.config.document import (
    Access,
    ClientLimits,
    ConnectionLimits,
    GatewayConfig,
    OnAbsent,
    OnConnect,
    OnDisconnect,
    Opening,
    PoolConfig,
    PortConfig,
    Protocol,
    Recording,
    Sharing,
    SlowClient,
)
from gateway.config.doubtful import warnings_of
from gateway.config.foreign import explained, program_of
from gateway.config.http import check_http_files, http_section, read_http
from gateway.config.log_files import check_log_files
from gateway.config.mdns import read_mdns
from gateway.config.networks import NETWORKS
from gateway.config.sections import REQUIRED, TCP_OR_CONNECT, Key, overlaid, read_keys, read_section
from gateway.config.tls import TLS, check_tls_files, check_tls_fits
from gateway.config.unique import Section, check_unique
from gateway.config.values import ADDRESS, HARD_RESET, HOST, LOG_FILE, NAME, RESET, REST
from gateway.config.wording import clipped, quoted
from gateway.config.yaml_lines import (
    Problems,
    compose,
    is_nothing,
    is_refused,
    known_entries,
    line_of,
    one_of,
    read_text,
    refuse,
    seconds,
    true_or_false,
    whole_number,
)
from gateway.errors import ConfigError
from gateway.net.tls_context import Tls
from gateway.protocol.reset import (
    AUTO_REST,
    DEFAULT_HOLD_S,
    HardReset,
    Method,
    Reset,
    ResetChoice,
    ResetSequence,
)
from gateway.protocol.serial_settings import FlowControl, Parity, SerialSettings, StopBits

_ACCESS = Access()
_CONNECTIONS = ConnectionLimits()
_LIMITS = ClientLimits()
_RECORDING = Recording()


def load_config(path: Path, *, with_files: bool = True) -> GatewayConfig:
    """Read and check a file, with the files that it names if `with_files`.

    Raises ConfigError with every problem of them, nothing else.
    """
    return parse_config(read_text(path), str(path), with_files=with_files)


def parse_config(text: str, file: str, *, with_files: bool = True) -> GatewayConfig:
    """Check the text of a file, `file` being its name in messages.

    Raises ConfigError with every problem, nothing else whatever the text is.
    """
    try:
        return _parsed(text, Problems(file), with_files=with_files)
    except ConfigError:
        if program := program_of(text):
            raise Problems(file).stop(0, *explained(program)) from None
        raise


def _parsed(text: str, problems: Problems, *, with_files: bool) -> GatewayConfig:
    root = compose(text, problems)
    ports, defaults = _read_file(root, problems)
    http = read_section(root, "http", read_http, problems)
    mdns = read_section(root, "mdns", read_mdns, problems)
    connections = read_section(root, "connections", _read_connections, problems)
    others = [http_section(http)] if http is not None else []
    sections = [*defaults, *ports, *others]
    check_unique(ports, problems, others)
    check_log_files(ports, problems, _other_files(problems.file, sections), with_files=with_files)
    warnings = warnings_of(sections, problems.file)
    if with_files:
        check_http_files(http, problems)
        warnings += check_tls_files(sections, problems)
    problems.raise_if_any()
    return replace(
        _built(ports),
        http=http,
        mdns=mdns,
        connections=connections or _CONNECTIONS,
        warnings=tuple(sorted(warnings, key=lambda warning: warning.line)),
    )


def _other_files(config: str, sections: list[Section]) -> dict[str, str]:
    """Map the files that the gateway reads to descriptions."""
    files = {config: "the configuration"}
    for section in sections:
        tls = section.values.get("tls")
        for path in (tls.cert, tls.key, tls.client_ca, tls.ca) if isinstance(tls, Tls) else ():
            if path is not None:
                files[path] = "a file for TLS"
        if (token_file := section.values.get("token_file")) is not None:
            files[token_file] = "the token"
    return files


_SERIAL = SerialSettings()

PORT_KEYS: Final = (
    Key("name", NAME, REQUIRED),
    Key("tcp", TCP, TCP_OR_CONNECT),
    Key("host", HOST, "127.0.0.1"),
    Key("connect", ADDRESS, TCP_OR_CONNECT),
    Key("allow", NETWORKS, _ACCESS.allow),
    Key("max_sessions", whole_number(1, 1000), _ACCESS.max_sessions),
    Key("tls", TLS, None),
    Key("device", DEVICE, REQUIRED),
    Key("baudrate", whole_number(1, 2**32 - 1), _SERIAL.baudrate),
    Key("bytesize", whole_number(5, 8), _SERIAL.bytesize),
    Key("parity", one_of(Parity), _SERIAL.parity),
    Key("stopbits", one_of(StopBits), _SERIAL.stopbits),
    Key("flow_control", one_of(FlowControl), _SERIAL.flow_control),
    Key("protocol", one_of(Protocol), Protocol.RFC2217),
    Key("accept_any_protocol", true_or_false(), _ACCESS.accept_any_protocol),
    Key("on_connect", one_of(OnConnect), OnConnect.NOTHING),
    Key("on_disconnect", one_of(OnDisconnect), OnDisconnect.NOTHING),
    # Below 0.05 s the next command of a client on the same host comes too late (pyserial polls
    # every 50 ms); above 5 s a client that really wants both lines on would take it for a hang.
    Key("hold_s", seconds(0.05, 5), DEFAULT_HOLD_S),
    # Boards come back from a reset within 2.5 s, over a slow hub within 5.
    Key("grace_s", seconds(0, 300), 10.0),
    Key("reset", RESET, Reset.AUTO),
    Key("hard_reset", HARD_RESET, HardReset.AUTO),
    Key("rest", REST, AUTO_REST),
    Key("open", one_of(Opening), Opening.ALWAYS),
    Key("sharing", one_of(Sharing), Sharing.EXCLUSIVE),
    Key("idle_timeout_s", seconds(0, 604800), _LIMITS.idle_timeout_s),
    Key("slow_client", one_of(SlowClient), _LIMITS.slow_client),
    Key("client_buffer_kib", whole_number(0, 65536), _LIMITS.client_buffer_kib),
    Key("replay", true_or_false(), _LIMITS.replay),
    Key("record_kib", whole_number(0, 65536), _RECORDING.record_kib),
    Key("log_file", LOG_FILE, _RECORDING.log_file),
    Key("log_max_kib", whole_number(16, 2**20), _RECORDING.log_max_kib),
    Key("log_keep", whole_number(0, 99), _RECORDING.log_keep),
    Key("on_absent", one_of(OnAbsent), OnAbsent.REFUSE),
)

#: The keys of `connections`.
CONNECTION_KEYS: Final = (
    Key("max", whole_number(1, 65536), _CONNECTIONS.max),
    Key("max_per_address", whole_number(1, 65536), _CONNECTIONS.max_per_address),
)

_PORT_NAMES: Final = frozenset(key.name for key in PORT_KEYS)
_DEFAULTS_KEYS: Final = tuple(key for key in PORT_KEYS if key.has_default)
_KEYS_OF_EACH: Final = tuple(key.name for key in PORT_KEYS if not key.has_default)
#: For ports that clients connect to; one that connects does so when its device is open.
_LISTENING_KEYS: Final = ("tcp", "host", "allow", "max_sessions", "open")
_FILE_KEYS: Final = ("defaults", "ports", "http", "mdns", "connections")
_ACCEPTED_TCP: Final = next(key.kind.accepted for key in PORT_KEYS if key.name == "tcp")
_ACCEPTED_FILE: Final = "a mapping with the key 'ports'"
_ACCEPTED_PORTS: Final = "a list of one port or more"


def _read_file(root: yaml.Node | None, problems: Problems) -> tuple[list[Section], list[Section]]:
    """The ports, and the defaults if there are any."""
    if root is None or is_nothing(root):
        problems.add(1, "", "empty file", _ACCEPTED_FILE)
        return [], []
    if not isinstance(root, yaml.MappingNode) or is_refused(root):
        refuse(root, "", _ACCEPTED_FILE, problems)
        return [], []
    found = known_entries(root, "", _FILE_KEYS, problems)
    defaults = {key.name: key.default for key in _DEFAULTS_KEYS}
    given = []
    if "defaults" in found and not is_nothing(found["defaults"].value):
        section = read_keys(
            found["defaults"].value, "defaults", _DEFAULTS_KEYS, problems, _KEYS_OF_EACH
        )
        defaults = overlaid(defaults, section)
        given = [section]
        if "{name}" not in (log_file := str(section.values.get("log_file") or "{name}")):
            problem = f"invalid log_file {quoted(log_file)}"
            expected = "a path with {name} in it, which stands for the name of each port"
            problems.add(section.lines["log_file"], "defaults", problem, expected)
            del defaults["log_file"]  # which is wrong for each port then
    if "ports" not in found:
        problems.add(line_of(root), "", "missing ports", _ACCEPTED_PORTS)
        return [], given
    return _read_ports(found["ports"].value, defaults, problems), given


def _read_connections(_line: int, node: yaml.Node, problems: Problems) -> ConnectionLimits:
    given = read_keys(node, "connections", CONNECTION_KEYS, problems)
    return ConnectionLimits(**given.values)


def _read_ports(node: yaml.Node, defaults: dict[str, Any], problems: Problems) -> list[Section]:
    if not isinstance(node, yaml.SequenceNode) or not node.value or is_refused(node):
        refuse(node, "ports", _ACCEPTED_PORTS, problems, reason=_without_dashes(node))
        return []
    ports = []
    for index, item in enumerate(node.value):
        port = read_keys(item, f"ports[{index}]", PORT_KEYS, problems)
        ports.append(Section(port.path, overlaid(defaults, port), port.lines))
        if isinstance(item, yaml.MappingNode) and not is_refused(item):
            _check_fit(ports[-1], line_of(item), problems)
            check_tls_fits(ports[-1], line_of(item), problems)
    return ports


def _without_dashes(node: yaml.Node) -> str:
    """The likely reason for which there is a mapping where ports should be listed."""
    if not isinstance(node, yaml.MappingNode) or not node.value:
        return ""
    key, value = node.value[0]
    if str(key.value).removeprefix("-") in _PORT_NAMES and str(key.value).startswith("-"):
        return f"no space after '-' in line {line_of(key)}"
    if str(key.value) in _PORT_NAMES:
        return f"no '-' before {quoted(str(key.value))} in line {line_of(key)}"
    if isinstance(value, yaml.MappingNode):
        return f"write '- name: {clipped(str(key.value))}' for '{clipped(str(key.value))}:'"
    return ""


def _check_fit(port: Section, line: int, problems: Problems) -> None:
    """Refuse keys of one port that do not go together; a default that does not fit is not used."""

    def refuse_key(key: str, problem: str, expected: str) -> None:
        problems.add(port.lines.get(key, line), port.path, problem, expected)

    if "connect" not in port.lines:
        if "tcp" not in port.lines:
            expected = f"tcp ({_ACCEPTED_TCP}) or connect ({ADDRESS.accepted})"
            refuse_key("tcp", "missing tcp", expected)
    else:
        for key in _LISTENING_KEYS:
            if key in port.lines:
                problem = f"{key} with connect (line {port.lines['connect']})"
                refuse_key(key, problem, f"connect without {key}, or tcp")
    is_for_flashers = port.values.get("on_connect") is OnConnect.BOOTLOADER
    if is_for_flashers and "replay" in port.lines and port.values.get("replay"):
        refuse_key("replay", "replay with on_connect: bootloader", "one of them")
    rest, reset = port.values.get("rest", AUTO_REST), port.values.get("reset")
    if "rest" in port.lines and reset not in (None, Reset.AUTO) and not rest.suits(_method(reset)):
        written = reset.value if isinstance(reset, Reset) else str(reset)
        problem = f"rest with one line on alone with reset {quoted(written)}"
        refuse_key("rest", problem, "both lines on or both off, or reset: none")


def _method(reset: Reset | ResetSequence) -> Method:
    """What becomes of the client's lines, whatever the board is."""
    return ResetChoice(reset).strategy(None).method


#: The fields of PortConfig that hold the keys of their own fields' names.
_GROUPS: Final[dict[str, Any]] = {
    "serial": SerialSettings,
    "resets": ResetChoice,
    "access": Access,
    "limits": ClientLimits,
    "recording": Recording,
}


def _built(ports: list[Section]) -> GatewayConfig:
    built: list[PortConfig] = []
    pools: list[PoolConfig] = []
    for port in ports:
        tcp = port.values.get("tcp")
        if isinstance(tcp, range):
            pools.append(PoolConfig(tcp, _built_port(port, tcp.start)))
        else:
            built.append(_built_port(port, tcp).named(port.values["name"]))
    return GatewayConfig(tuple(built), tuple(pools))


def _built_port(port: Section, tcp_port: int | None) -> PortConfig:
    """The checked values as a PortConfig; `{name}` still stands where it was written."""
    values = {"connect": None} | port.values | {"tcp_port": tcp_port}
    values.pop("tcp", None)
    if values["connect"] is not None:
        values["open"] = Opening.ALWAYS
    if values["on_connect"] is OnConnect.BOOTLOADER:
        values["replay"] = False  # who comes is a flasher, even before it says so
    grouped = {
        name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        for name, kind in _GROUPS.items()
    }
    return PortConfig(**grouped, **values)
