"""The keys of the configuration file: one table for the reader, the documentation and JSON Schema.

First the field types: how each kind of value is written, read and described in JSON Schema. Then
the tables: a new key is a row there and a field of the section's dataclass in `document`. The
tables of docs/config.md and config/gateway.schema.json are made from them (`make config-docs`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final

from gateway.config.document import (
    EVERYBODY,
    MAX_INSTANCE_CHARS,
    Access,
    Address,
    ClientLimits,
    ConnectionLimits,
    MdnsConfig,
    Networks,
    OnAbsent,
    OnConnect,
    OnDisconnect,
    Opening,
    PortConfig,
    Protocol,
    Recording,
    Sharing,
    SlowClient,
)
from gateway.config.problems import Section, did_you_mean
from gateway.config.usb_match import SIMULATED, DeviceChoice, UsbMatch
from gateway.protocol.reset import (
    AUTO_REST,
    HardReset,
    Lines,
    LinesAtRest,
    Reset,
    ResetChoice,
    parse_sequence,
)
from gateway.protocol.serial_settings import FlowControl, Parity, SerialSettings, StopBits

#: Every port of a pool that was ever used is listened on and remembered.
MAX_POOL_PORTS: Final = 1000

#: Each costs a comparison with every device.
MAX_ALTERNATIVES: Final = 16

Schema = Mapping[str, Any]


class NoDefault(Enum):
    """What a key without a default has in its place, as the documentation shows it."""

    REQUIRED = "required"
    TCP_OR_CONNECT = "`tcp` or `connect`"  # one of the two is required
    UNSET = "not set"


REQUIRED, TCP_OR_CONNECT = NoDefault.REQUIRED, NoDefault.TCP_OR_CONNECT


def _no_scalar(_text: str) -> object:
    raise ValueError


@dataclass(frozen=True, slots=True)
class FieldType:
    """The values of a key: a scalar, a list, a mapping, or any of these.

    `expected` describes them in messages and documentation. `parse` reads the text of a scalar,
    `gather` the items of a list, `build` a mapping without problems; each raises ValueError for a
    value that is not valid, with a reason if that helps. A mapping without `build` stays a Section.
    `schema` is the JSON Schema of the scalar, `rules` what the mapping's keys do not say of it.
    """

    expected: str
    parse: Callable[[str], Any] = _no_scalar
    schema: Schema = field(default_factory=dict)
    is_number: bool = False  # in quotes it is not valid
    is_switch: bool = False  # true and false are valid
    item: FieldType | None = None
    gather: Callable[[list[Any]], object] = tuple
    max_items: int | None = None
    keys: tuple[Key, ...] = ()
    build: Callable[[Section], object] | None = None
    rules: Schema = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a mapping; `description` is one line of Markdown."""

    name: str
    type: FieldType
    description: str
    default: object = NoDefault.UNSET


def _with_defaults(classes: Iterable[Any], *keys: Key) -> tuple[Key, ...]:
    """The keys with the defaults of the fields of these names."""
    defaults = {each.name: each.default for kind in classes for each in fields(kind)}
    return tuple(
        replace(key, default=defaults[key.name]) if key.default is NoDefault.UNSET else key
        for key in keys
    )


def text_schema(pattern: str) -> Schema:
    """The JSON Schema of a text that matches a pattern."""
    return {"type": "string", "pattern": pattern}


def text(
    expected: str, pattern: str, convert: Callable[[str], Any] = str, *, may_be_number: bool = False
) -> FieldType:
    """A printable text that matches `pattern`, `^...$` in the notation of JSON Schema.

    `convert` makes the value of it, or raises ValueError. YAML may take it for a number.
    """

    def parse(text: str) -> object:
        if not text.isprintable() or not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError
        return convert(text)

    schema = {**text_schema(pattern), "patternErrorMessage": f"expected {expected}"}  # in editors
    if may_be_number:
        schema["type"] = ["string", "number"]
    return FieldType(expected, parse, schema)


def number(kind: type[int] | type[float], low: float, high: float, unit: str = "") -> FieldType:
    """A number in decimal digits; YAML 1.1's other notations (010, 1_000, 1:30) surprise people."""
    name, fraction = ("integer", "") if kind is int else ("number", r"(\.[0-9]{1,9})?")

    def parse(text: str) -> float:
        if not re.fullmatch(f"-?(0|[1-9][0-9]{{0,17}}){fraction}", text):
            raise ValueError(f"not a decimal {name}")
        if not low <= kind(text) <= high:
            raise ValueError
        return kind(text)

    schema = {"type": name, "minimum": low, "maximum": high}
    return FieldType(f"{low} to {high}{unit}", parse, schema, is_number=True)


integer = partial(number, int)
seconds = partial(number, float, unit=" seconds")


def words(values: Mapping[str, object], expected: str = "", **others: Any) -> FieldType:
    """One of some words; 1.5 needs no quotes, it is read as written."""

    def parse(text: str) -> object:
        if text not in values:
            raise ValueError(did_you_mean(text, values))
        return values[text]

    numbers = [float(word) if "." in word else int(word) for word in values if word[0].isdigit()]
    others.setdefault("schema", {"enum": [*numbers, *values]})
    return FieldType(expected or ", ".join(values), parse, **others)


def one_of(members: type[Enum]) -> FieldType:
    """One of the values of an enum of strings."""
    return words({str(member.value): member for member in members})


#: YAML has other words for these (yes, off, ...), which are not valid.
SWITCH: Final = words(
    {"true": True, "false": False}, schema={"type": "boolean"}, is_number=True, is_switch=True
)


def name_or_sequence(names: type[Enum]) -> FieldType:
    """One of some names, or a reset sequence."""
    named = one_of(names)

    def parse(text: str) -> Any:
        if "|" not in text and not re.fullmatch("[DRUWB][0-9.,]+", text, re.IGNORECASE):
            return named.parse(text)
        return parse_sequence(text)

    schema = {"anyOf": [named.schema, text_schema(r"^[DRUWBdruwb0-9.,|\s]+$")]}
    return FieldType(f"{named.expected} or a reset sequence", parse, schema)


#: It becomes part of paths, URLs and command lines, where `..`, `.x` and `-x` have a meaning.
NAME: Final = text(
    "1 to 32 characters a-z A-Z 0-9 _ . -, no . or - first",
    "^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,31}$",
    may_be_number=True,
)
PATH: Final = text("an absolute path", "^/.*[^/]$")
LOG_FILE: Final = text(
    "an absolute path or none", "^(none|/.*[^/])$", lambda text: None if text == "none" else text
)

#: Underscores are not allowed in host names by the RFCs, but are in use.
_HOST_LABEL: Final = r"[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?"
#: A name that ends in a number is a mistyped IPv4 address (RFC 1123, section 2.1).
_HOST_NAME: Final = re.compile(rf"({_HOST_LABEL}\.)*(?![0-9]+\.?$){_HOST_LABEL}\.?")


def _checked_host(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if not _HOST_NAME.fullmatch(text):
            raise ValueError from None
    return text


HOST: Final = text("an IP address or a host name", "^[a-zA-Z0-9_.:%-]{1,253}$", _checked_host)


def _address(first_port: int) -> FieldType:
    def convert(text: str) -> Address:
        host, _, port = text.rpartition(":")
        if not first_port <= int(port) <= 65535:
            raise ValueError
        return Address(HOST.parse(host.strip("[]")), int(port))

    # Where an IPv6 address ends is unknown without brackets; a host name has none.
    pattern = r"^(\[[^\[\]]*:[^\[\]]*\]|[^:\[\]]+):(0|[1-9][0-9]{0,4})$"
    return text("HOST:PORT, an IPv6 address in brackets", pattern, convert)


ADDRESS: Final = _address(first_port=1)
LISTEN: Final = _address(first_port=0)  # any free port

_TCP_PORT: Final = integer(0, 65535)


def _parse_tcp(text: str) -> int | range:
    first, dash, last = text.partition("-")
    port: int = _TCP_PORT.parse(first if dash and first else text)
    if not dash:
        return port
    numbers = range(port, _TCP_PORT.parse(last) + 1)
    if port == 0 or not 1 <= len(numbers) <= MAX_POOL_PORTS:
        raise ValueError(f"1 to {MAX_POOL_PORTS} ports, the lower number first")
    return numbers


TCP: Final = FieldType(
    f"{_TCP_PORT.expected}, or the range of a pool as in 4100-4199",
    _parse_tcp,
    {"anyOf": [_TCP_PORT.schema, text_schema("^[1-9][0-9]{0,4}-[1-9][0-9]{0,4}$")]},
    is_number=True,
)

#: The IPv4 addresses as IPv6 has them, on sockets that listen for both (RFC 4291, 2.5.5.2).
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError from None
    if network.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise ValueError(f"did you mean {network}?")
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        mapped = int(network.network_address) & 0xFFFFFFFF
        return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED.prefixlen))
    return network


NETWORKS: Final = words(
    {"all": EVERYBODY},
    "all or a list of IP addresses and networks (10.0.0.0/8)",
    item=text(
        "an IP address or a network (10.0.0.0/8)", "^[0-9a-fA-F.:]+(%.*)?(/[0-9]{1,3})?$", _network
    ),
    gather=lambda members: Networks(tuple(members)),
)


def _usb_ids(text: str) -> dict[str, int | bool]:
    vendor, _, product = text.partition(":")
    if vendor == "*":
        return {"any_usb": True}
    ids = {"vendor_id": int(vendor, 16)}
    return ids if product == "*" else ids | {"product_id": int(product, 16)}


def _usb_location(text: str) -> dict[str, int | str]:
    location, colon, unit = text.partition(":")
    configuration, _, interface = unit.partition(".")
    numbers = {"configuration": int(configuration), "interface": int(interface)} if colon else {}
    return {"location": location} | numbers


USB_IDS: Final = text(
    "vendor:product in hex (10c4:ea60, 10c4:*, or *:* for any)",
    r"^([0-9a-fA-F]{4}:([0-9a-fA-F]{4}|\*)|\*:\*)$",
    _usb_ids,
)
#: A USB string has 126 characters at most.
SERIAL: Final = text(
    "the serial number, 1 to 126 characters", r"^\S(.{0,124}\S)?$", may_be_number=True
)
LOCATION: Final = text(
    "a USB location as in 1-1.3 or 1-1.3:1.0",
    r"^[0-9]{1,3}-[0-9]{1,3}(\.[0-9]{1,3}){0,6}(:[0-9]{1,3}\.[0-9]{1,3})?$",
    _usb_location,
)

MATCH_KEYS: Final = (
    Key("usb", USB_IDS, "vendor and product id"),
    Key("serial", SERIAL, "serial number, exactly"),
    Key("location", LOCATION, "USB bus and sockets; after the colon its interface"),
    Key("interface", integer(0, 255), "interface of a device that has several ttys"),
)
_MATCH_RULES: Final = {"anyOf": [{"required": [name]} for name in ("usb", "serial", "location")]}


def _build_match(match: Section) -> UsbMatch:
    interface, location = match.get("interface"), match.get("location", {})
    if not match.lines.keys() - {"interface"}:
        expected = "one or more of usb, serial, location; interface with one of them"
        match.reject("", "interface alone" if match.lines else "empty match", expected)
    elif interface is not None and "interface" in location:
        problem = "interface with a location that has the interface in it"
        match.reject("interface", problem, "the interface once")
    fields = {"serial": match.get("serial"), "interface": interface}
    return UsbMatch(**fields | match.get("usb", {}) | location)


def same_path(path: str) -> str:
    """One text for all spellings of a device; links, which hotplug changes, are not followed.

    Raises ValueError for the URL of a simulated board that is not valid.
    """
    if path.startswith("/"):
        return str(PurePosixPath("/" + path.lstrip("/")))
    # The simulator is imported for simulated boards only.
    from gateway.simulator.url import parse_url  # noqa: PLC0415

    return str(parse_url(path))


def _parse_device(text: str) -> DeviceChoice:
    if text.startswith(SIMULATED) and text.isprintable():
        same_path(text)
        return DeviceChoice((text,))
    return DeviceChoice((PATH.parse(text),))


def _parse_alternative(text: str) -> object:
    if text.startswith(SIMULATED):
        raise ValueError("a simulated board has no alternatives")
    return PATH.parse(text)


DEVICE: Final = FieldType(
    "an absolute path, sim://..., a match or a list of paths and matches",
    _parse_device,
    text_schema("^(/.*[^/]|sim://.+)$"),
    keys=MATCH_KEYS,
    build=lambda match: DeviceChoice((_build_match(match),)),
    rules=_MATCH_RULES,
    item=replace(
        PATH,
        expected="an absolute path or a match",
        parse=_parse_alternative,
        keys=MATCH_KEYS,
        build=_build_match,
        rules=_MATCH_RULES,
    ),
    gather=lambda alternatives: DeviceChoice(tuple(alternatives)),
    max_items=MAX_ALTERNATIVES,
)

TLS_KEYS: Final = (
    Key("cert", PATH, "PEM file with the gateway's certificate, then those of its issuers"),
    Key("key", PATH, "PEM file with the private key of `cert`, without a passphrase"),
    Key("client_ca", PATH, "authorities of client certificates, with `tcp`"),
    Key("ca", PATH, "authorities of the server's certificate, with `connect`"),
    Key("server_name", HOST, "name in the server's certificate, with `connect`"),
)
#: Those that name files.
TLS_FILES: Final = ("cert", "key", "client_ca", "ca")
TLS: Final = words(
    {"none": None},
    "none or a mapping of cert, key, client_ca, ca, server_name",
    keys=TLS_KEYS,
    rules={"dependencies": {"cert": ["key"], "key": ["cert"]}},
)

#: YAML 1.1 reads `on` as true, in quotes as text, and YAML 1.2 as text: all mean the same here.
_LINE: Final = words(
    {"on": True, "true": True, "off": False, "false": False},
    "on, off",
    schema={"enum": ["on", "off", True, False]},
    is_switch=True,
)


def _build_rest(given: Section) -> LinesAtRest:
    """A line that is not given is as the other, which is harmless for most boards."""
    if not given.values:
        raise ValueError
    dtr, rts = given.get("dtr"), given.get("rts")
    return LinesAtRest(Lines(dtr=rts if dtr is None else dtr, rts=dtr if rts is None else rts))


REST: Final = words(
    {"auto": AUTO_REST},
    "auto or a mapping of dtr, rts (on, off)",
    keys=(Key("dtr", _LINE, "state of DTR"), Key("rts", _LINE, "state of RTS")),
    build=_build_rest,
    rules={"minProperties": 1},
)


PORT_KEYS: Final = _with_defaults(
    (PortConfig, SerialSettings, ResetChoice, Access, ClientLimits, Recording),
    Key("name", NAME, "name in logs, URLs and file names", REQUIRED),
    Key("tcp", TCP, "TCP port where clients connect; a range makes a pool", TCP_OR_CONNECT),
    Key("host", HOST, "address to listen at, with `tcp`"),
    Key("connect", ADDRESS, "client that the gateway connects to", TCP_OR_CONNECT),
    Key("allow", NETWORKS, "clients that may connect, with `tcp`"),
    Key("max_sessions", integer(1, 1000), "connections at a time, with `tcp`"),
    Key("tls", TLS, "TLS on the port's connections"),
    Key("device", DEVICE, "serial device by path or identity, or a simulated board", REQUIRED),
    Key("baudrate", integer(1, 2**32 - 1), "bits per second until a client sets its own"),
    Key("bytesize", integer(5, 8), "data bits of a character"),
    Key("parity", one_of(Parity), "parity bit of a character"),
    Key("stopbits", one_of(StopBits), "stop bits of a character"),
    Key("flow_control", one_of(FlowControl), "how a receiver stops its sender"),
    Key("protocol", one_of(Protocol), "protocol of the clients"),
    Key("accept_any_protocol", SWITCH, "whether greetings of other protocols go to the board"),
    Key("on_connect", one_of(OnConnect), "reset when a client gets control of the board"),
    Key("on_disconnect", one_of(OnDisconnect), "reset after the last client has disconnected"),
    # Below 0.05 s the next command of a client on the same host is too late (pyserial polls every
    # 50 ms); above 5 s a client that really wants both lines on would look hung.
    Key("hold_s", seconds(0.05, 5), "how long half of a change of DTR and RTS is held back"),
    # Boards return from a reset within 2.5 s, behind a slow hub within 5.
    Key("grace_s", seconds(0, 300), "how long a client waits for a board that has vanished"),
    Key("reset", name_or_sequence(Reset), "how the board enters its bootloader"),
    Key("hard_reset", name_or_sequence(HardReset), "how the board restarts its app"),
    Key("rest", REST, "DTR and RTS while no client sets them"),
    Key("open", one_of(Opening), "when the gateway has the tty open, with `tcp`"),
    Key("sharing", one_of(Sharing), "what happens when a second client connects"),
    Key("idle_timeout_s", seconds(0, 604800), "time without a byte that ends a session; 0: none"),
    Key("slow_client", one_of(SlowClient), "what happens to output that a client does not read"),
    Key("client_buffer_kib", integer(0, 65536), "KiB of such output kept for the client"),
    Key("replay", SWITCH, "whether a client that connects gets the output from before"),
    Key("record_kib", integer(0, 65536), "KiB of output kept in memory"),
    Key("log_file", LOG_FILE, "file for the output, with times"),
    Key("log_max_kib", integer(16, 2**20), "KiB at which the file is rotated"),
    Key("log_keep", integer(0, 99), "number of rotated files kept"),
    Key("on_absent", one_of(OnAbsent), "what a client gets while the device is not plugged in"),
)

#: For ports that clients connect to; a port that connects does so when its device is open.
LISTENING_KEYS: Final = ("tcp", "host", "allow", "max_sessions", "open")

PORT: Final = FieldType(
    "a mapping (key: value)",
    keys=PORT_KEYS,
    rules={
        "if": {"required": ["connect"]},
        "then": {"properties": dict.fromkeys(LISTENING_KEYS, False)},
        "else": {"required": ["tcp"]},
    },
)

DEFAULTS: Final = FieldType(
    PORT.expected,
    keys=tuple(key for key in PORT_KEYS if not isinstance(key.default, NoDefault)),
)


def _lower_names(names: list[str]) -> frozenset[str]:
    return frozenset(name.lower().rstrip(".") for name in names)


HOST_NAMES: Final = replace(
    HOST,
    expected="a host name or a list of them, without a port",
    parse=lambda text: _lower_names([HOST.parse(text)]),
    item=HOST,
    gather=_lower_names,
)

HTTP_KEYS: Final = (
    Key("listen", LISTEN, "address of the server", REQUIRED),
    Key("allow", NETWORKS, "clients that may connect", EVERYBODY),
    Key("tls", TLS, "TLS on its connections", None),
    Key("token_file", PATH, "file with the token of requests that change something"),
    Key("host_names", HOST_NAMES, "names of the server besides those of its host"),
)
HTTP: Final = replace(
    LISTEN,
    expected=f"{LISTEN.expected}, or a mapping of listen, allow, tls, token_file, host_names",
    keys=HTTP_KEYS,
)

_INSTANCE_NAME: Final = text(
    f"1 to {MAX_INSTANCE_CHARS} printable ASCII characters",
    f"^[!-~]([ -~]{{0,{MAX_INSTANCE_CHARS - 2}}}[!-~])?$",
    may_be_number=True,
)


def _interface(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        # The kernel's bound for a name; a colon would be of a mistyped address.
        if len(text) > 15 or ":" in text:
            raise ValueError from None
        return text


_INTERFACES: Final = FieldType(
    "a list of network interfaces, by name or IP address (eth0)",
    item=text(
        "a network interface by name or IP address (eth0)",
        "^[!-.0-9:-~]{1,45}$",
        _interface,
        may_be_number=True,
    ),
    max_items=32,
)

MDNS_KEYS: Final = (
    Key("instance_name", _INSTANCE_NAME, "name of the gateway instead of its host's"),
    Key("interfaces", _INTERFACES, "interfaces to announce at instead of all but loopback"),
)
MDNS: Final = words(
    {"true": MdnsConfig(), "false": None},
    "true, false or a mapping of instance_name, interfaces",
    schema=SWITCH.schema,
    is_number=True,
    is_switch=True,
    keys=MDNS_KEYS,
    build=lambda section: MdnsConfig(**section.values),
)

CONNECTION_KEYS: Final = _with_defaults(
    (ConnectionLimits,),
    Key("max", integer(1, 65536), "connections of all clients"),
    Key("max_per_address", integer(1, 65536), "connections of an IP address, or a /64 of IPv6"),
)
CONNECTIONS: Final = FieldType(
    PORT.expected,
    keys=CONNECTION_KEYS,
    build=lambda section: ConnectionLimits(**section.values),
)

PORTS: Final = FieldType("a list of one or more ports", item=PORT, gather=list)

FILE_KEYS: Final = (
    Key("defaults", DEFAULTS, "values for all ports that do not have their own"),
    Key("ports", PORTS, "the ports", REQUIRED),
    Key("http", HTTP, "HTTP server for programs and browsers"),
    Key("mdns", MDNS, "whether the ports are announced by multicast DNS"),
    Key("connections", CONNECTIONS, "limits over all ports and HTTP together"),
)
FILE: Final = FieldType("a mapping with the key 'ports'", keys=FILE_KEYS)


def default_text(key: Key) -> str:
    """A key's default as it is written in the YAML; `NoDefault`'s text without one."""
    if key.default is None:
        return "none"
    if isinstance(key.default, bool):
        return str(key.default).lower()
    return str(key.default.value if isinstance(key.default, Enum) else key.default)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the file, of draft 7, which editors support.

    It rejects the keys and values that the reader rejects, except for cross-checks and notations of
    numbers, which a parser of YAML does not tell apart.
    """
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Configuration of esp-gateway",
        # Keys of a port and of the defaults alike.
        "definitions": {key.name: _key_schema(key) for key in PORT_KEYS},
        **_type_schema(FILE),
    }


def _type_schema(kind: FieldType) -> dict[str, Any]:
    alternatives: list[dict[str, Any]] = []
    if kind.schema:
        alternatives.append(dict(kind.schema))
    if kind.item is not None:
        items = {"type": "array", "items": _type_schema(kind.item), "minItems": 1}
        alternatives.append(items | ({"maxItems": kind.max_items} if kind.max_items else {}))
    if kind.keys:
        mapping = {
            "type": "object",
            "properties": {key.name: _property(key) for key in kind.keys},
            "additionalProperties": False,
            "required": [key.name for key in kind.keys if key.default is REQUIRED],
        }
        alternatives.append(mapping | dict(kind.rules))
    if kind is DEFAULTS:  # which may be empty
        alternatives.append({"type": "null"})
    return alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}


def _property(key: Key) -> dict[str, Any]:
    if any(key is each for each in PORT_KEYS):
        return {"$ref": f"#/definitions/{key.name}"}
    return _key_schema(key)


def _key_schema(key: Key) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": key.description}
    if not isinstance(key.default, NoDefault):
        is_plain = isinstance(key.default, bool | int | float)
        schema["default"] = key.default if is_plain else default_text(key)
    return schema | _type_schema(key.type)
