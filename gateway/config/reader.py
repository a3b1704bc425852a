"""Read a configuration file by the table in `schema`; every problem keeps its line.

Text becomes PyYAML nodes, never Python objects: a node has its line and its text as written (`no`,
not False). The file is bounded in size and depth, and YAML's surprises (anchors, aliases, merge
keys, tags, several documents, duplicate keys) are rejected.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import yaml

from gateway.config.checks import check, check_defaults, check_http_packages
from gateway.config.document import (
    Access,
    Address,
    ClientLimits,
    ConnectionLimits,
    GatewayConfig,
    HttpConfig,
    OnConnect,
    Opening,
    PoolConfig,
    PortConfig,
    Recording,
)
from gateway.config.problems import (
    Problems,
    Section,
    clipped,
    likely_cause,
    meant_key,
    other_program,
    quoted,
    reason_of,
)
from gateway.config.schema import DEFAULTS, FILE, PORT, PORTS, FieldType, NoDefault
from gateway.errors import ConfigError
from gateway.inputs import read_regular_file
from gateway.net.tls_context import Tls
from gateway.protocol.reset import ResetChoice
from gateway.protocol.serial_settings import SerialSettings

#: A port takes some 100 bytes: room for thousands. PyYAML reads that in about 4 s (measured on a
#: PC), the worst text of this size that it reads at all in 13 s.
MAX_FILE_BYTES: Final = 1_000_000

#: Lists and mappings inside each other; the keys need 5. Keeps PyYAML, which recurses and slows
#: down with each open bracket, far from Python's recursion limit.
MAX_DEPTH: Final = 20

_TAG: Final = "tag:yaml.org,2002:"
_BOOL, _NULL, _MERGE = _TAG + "bool", _TAG + "null", _TAG + "merge"

#: Marks a node that was rejected while it was composed, so that its value is not reported as well.
_REJECTED: Final = "!rejected"


def load_config(path: Path, *, with_files: bool = True) -> GatewayConfig:
    """Read and check a file, with the files that it names if `with_files`; blocks.

    Raises ConfigError with every problem of them, nothing else.
    """
    return parse_config(read_text(path), str(path), with_files=with_files)


def parse_config(text: str, file: str, *, with_files: bool = True) -> GatewayConfig:
    """Check the text of a file, `file` being its name in messages.

    Raises ConfigError with every problem, nothing else whatever the text is.
    """
    problems = Problems(file)
    try:
        root = _read_file(compose(text, problems), problems)
        values = {key.name: key.default for key in DEFAULTS.keys}
        if (defaults := root.get("defaults")) is not None:
            check_defaults(defaults)
            values = defaults.over(values).values
        ports = [port.over(values) for port in root.get("ports", ())]
        http = root.get("http")
        if isinstance(http, Address):  # written alone
            line = root.lines["http"]
            http = Section("http", line, {"listen": http}, {"listen": line}, problems)
        if http is not None and (listen := http.get("listen")) is not None:
            http.values.update(tcp=listen.tcp_port, host=listen.host)
            http.lines["tcp"] = http.lines["listen"]
        check_http_packages(root)
        check(ports, defaults, http, with_files=with_files)
        problems.raise_if_any()
    except ConfigError:
        if program := other_program(text):
            remedy = "one of esp-gateway (docs/migrating.md maps the keys)"
            raise Problems(file).stop(0, f"configuration of {program}", remedy) from None
        raise
    return _built(root, ports, http)


def read_text(path: Path) -> str:
    """The text of a file; ConfigError if it can't be read, is too large or is not UTF-8."""
    problems = Problems(str(path))
    try:
        data = read_regular_file(path, MAX_FILE_BYTES).data
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise problems.stop(0, f"cannot read the file ({reason})", "a YAML file") from error
    _check_size(len(data), problems)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"invalid byte 0x{data[error.start]:02x}"
        raise problems.stop(line, problem, "UTF-8 text") from error


def compose(text: str, problems: Problems) -> yaml.Node | None:
    """The root node of the only document; None if there is none.

    Anchors, aliases and tags are added to `problems`. Raises ConfigError where nothing more can
    be read: wrong syntax, a second document, too large, nested too deeply.
    """
    _check_size(len(text.encode(errors="surrogatepass")), problems)
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"invalid character U+{ord(text[error.position]):04X}"
        raise problems.stop(line, problem, "printable characters") from error
    loader.problems = problems
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise problems.stop(*likely_cause(text, error)) from error
    except (ValueError, OverflowError) as error:
        # PyYAML hands the digits of "\UFFFFFFFF" to chr() and of %YAML to int() as they are.
        raise problems.stop(loader.line + 1, f"invalid YAML ({reason_of(error)})") from error


def _check_size(size_bytes: int, problems: Problems) -> None:
    if size_bytes > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES // 1_000_000} MB"
        raise problems.stop(0, f"larger than {limit}", f"a file of at most {limit}")


class _Loader(yaml.SafeLoader):
    """Composes nodes and reports the parts of YAML that are not supported; constructs nothing."""

    problems: Problems

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias:
            self.get_event()  # type: ignore[no-untyped-call]
            self._reject(event, f"aliases (*{clipped(event.anchor)})", "*")
            return yaml.ScalarNode(_REJECTED, "", event.start_mark, event.end_mark)
        if event.anchor is not None:
            self._reject(event, f"anchors (&{clipped(event.anchor)})", "&")
            event.anchor = None
        if event.tag is not None:
            self._reject(event, f"tags ({clipped(event.tag)})", "!")
            event.tag = _REJECTED
        self._depth += 1
        if self._depth > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} lists and mappings inside each other"
            raise self.problems.stop(event.start_mark.line + 1, problem)
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        self._depth -= 1
        return node

    def _reject(self, event: Any, construct: str, character: str) -> None:
        remedy = f"the value itself, in quotes if it begins with {character}"
        self.problems.add(event.start_mark.line + 1, "", f"{construct} are not supported", remedy)


class _RejectedError(Exception):
    """A value is not valid; its problems have been added."""


def _read_file(root: yaml.Node | None, problems: Problems) -> Section:
    """The file's section, without values if it can't be read."""
    section: object = None
    if root is None or root.tag == _NULL:
        problems.add(1, "", "empty file", FILE.expected)
    else:
        with suppress(_RejectedError):
            section = read_value(FILE, root, "", problems)
    return section if isinstance(section, Section) else Section("", 1, {}, {}, problems)


def read_value(kind: FieldType, node: yaml.Node, path: str, problems: Problems) -> object:
    """The value of a node; `path` is its path of keys.

    Raises _RejectedError after adding the problems of a value that is not valid.
    """
    if node.tag == _REJECTED:
        raise _RejectedError
    reason = ""
    try:
        if isinstance(node, yaml.MappingNode) and kind.keys:
            return _read_mapping(kind, node, path, problems)
        if isinstance(node, yaml.SequenceNode) and kind.item is not None:
            return _read_list(kind, kind.item, node, path, problems)
        if isinstance(node, yaml.ScalarNode):
            if kind is DEFAULTS and node.tag == _NULL:
                return Section(path, _line(node), {}, {}, problems)
            return _read_scalar(kind, node)
        if isinstance(node, yaml.MappingNode) and kind.item is not None:
            reason = _missing_dash(node, kind.item)
    except ValueError as error:
        reason = reason_of(error)
    if path.endswith("]"):
        section, _, index = path.rpartition("[")
        name = f"item [{index}"
    else:
        section, _, name = path.rpartition(".")
    problem = _invalid(name or "configuration", node, reason, is_switch=kind.is_switch)
    problems.add(_line(node), section, problem, kind.expected)
    raise _RejectedError


def _read_scalar(kind: FieldType, node: yaml.ScalarNode) -> object:
    if node.tag == _NULL or (node.tag == _BOOL and not kind.is_switch):
        raise ValueError
    if kind.is_number and node.style is not None:
        raise ValueError("text, because it is quoted")
    value: object = kind.parse(node.value)
    return value


def _read_list(
    kind: FieldType, item: FieldType, node: yaml.SequenceNode, path: str, problems: Problems
) -> object:
    if kind.max_items is not None and not 1 <= len(node.value) <= kind.max_items:
        raise ValueError(f"1 to {kind.max_items} items")
    if not node.value:
        raise ValueError
    items = []
    for index, each in enumerate(node.value):
        with suppress(_RejectedError):
            items.append(read_value(item, each, f"{path}[{index}]", problems))
    # Sections are checked against each other, whether all of them can be read or not.
    if len(items) < len(node.value) and kind is not PORTS:
        raise _RejectedError
    return kind.gather(items)


def _read_mapping(kind: FieldType, node: yaml.MappingNode, path: str, problems: Problems) -> object:
    before = len(problems.found)
    section = Section(path, _line(node), {}, {}, problems)
    nodes = _entries(kind, node, section)
    for key in kind.keys:
        if key.name in nodes:
            key_path = f"{path}.{key.name}" if path else key.name
            with suppress(_RejectedError):
                section.values[key.name] = read_value(key.type, nodes[key.name], key_path, problems)
        elif key.default is NoDefault.REQUIRED and key.name not in section.lines:
            section.reject("", f"missing {key.name}", key.type.expected)
    if kind.build is None:
        return section
    if len(problems.found) == before:
        value = kind.build(section)
        if len(problems.found) == before:
            return value
    raise _RejectedError


def _entries(kind: FieldType, node: yaml.MappingNode, section: Section) -> dict[str, yaml.Node]:
    """The nodes of the known keys, whose lines `section` gets; other keys are problems.

    A known key that an unknown key most likely stands for gets a line as well: it is not missing.
    """
    add, names = section.problems.add, tuple(key.name for key in kind.keys)
    nodes: dict[str, yaml.Node] = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = key.value, _line(key)
        if key.tag == _REJECTED:
            continue
        if not isinstance(key, yaml.ScalarNode):
            add(line, section.path, _invalid("key", key), "a word")
        elif key.tag == _MERGE:
            remedy = "values for all ports under 'defaults'"
            add(line, section.path, "merge keys (<<) are not supported", remedy)
        elif name in lines:
            problem = f"duplicate key {quoted(name)} (first in line {lines[name]})"
            if kind is PORT and name == names[0]:
                remedy = f"each key once, or '- {name}:' to begin another port"
                add(line, section.path, problem, remedy)
                break  # the other keys are that port's
            add(line, section.path, problem, "each key once")
        else:
            lines[name] = line
            nodes[name] = value
    known = {name: nodes.pop(name) for name in list(nodes) if name in names}
    section.lines.update((name, lines[name]) for name in known)
    for name, value in nodes.items():
        problem, expected = f"unknown key {quoted(name)}", "one of " + ", ".join(names)
        if kind is DEFAULTS and any(name == key.name for key in PORT.keys):
            problem, expected = f"{quoted(name)} cannot have a default", "it in each port"
        elif near := meant_key(name, value, names):
            problem, expected = f"{problem}: did you mean '{near}'?", ""
            section.lines.setdefault(near.removeprefix("- ").partition(":")[0], lines[name])
        add(lines[name], section.path, problem, expected)
    return known


def _line(node: yaml.Node) -> int:
    """The line where a node begins, counted from 1."""
    return int(node.start_mark.line) + 1


def _invalid(name: str, node: yaml.Node, reason: str = "", *, is_switch: bool = False) -> str:
    """`invalid NAME 'text as written' (reason)`: one line, bounded, safe to print."""
    if not isinstance(node, yaml.ScalarNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "mapping"
        kind = f"a {kind}" if node.value else f"an empty {kind}"
        return f"invalid {name} ({kind}{': ' + reason if reason else ''})"
    if node.tag == _NULL:
        return f"empty {name}"
    if node.tag == _BOOL and not is_switch:
        meaning = "true" if node.value.lower() in ("yes", "true", "on") else "false"
        reason = f"YAML reads it as {meaning}; quote it if text is meant"
    return f"invalid {name} {quoted(node.value)}" + (f" ({reason})" if reason else "")


def _missing_dash(node: yaml.MappingNode, item: FieldType) -> str:
    """The likely reason for a mapping in place of a list of mappings."""
    if not item.keys or not node.value:
        return ""
    key, value = node.value[0]
    first, names = str(key.value), {each.name for each in item.keys}
    if first.startswith("-") and first.removeprefix("-") in names:
        return f"no space after '-' in line {_line(key)}"
    if first in names:
        return f"no '-' before {quoted(first)} in line {_line(key)}"
    if isinstance(value, yaml.MappingNode):
        return f"write '- name: {clipped(first)}' for '{clipped(first)}:'"
    return ""


#: The fields of PortConfig whose dataclasses have the keys as fields.
_GROUPS: Final[dict[str, Any]] = {
    "serial": SerialSettings,
    "resets": ResetChoice,
    "access": Access,
    "limits": ClientLimits,
    "recording": Recording,
}


def _built(root: Section, ports: list[Section], http: Section | None) -> GatewayConfig:
    single = [port for port in ports if not isinstance(port.get("tcp"), range)]
    pools = [port for port in ports if isinstance(port.get("tcp"), range)]
    warnings = sorted(root.problems.warnings, key=lambda warning: warning.line)
    return GatewayConfig(
        tuple(_built_port(port, port.get("tcp")).named(port.values["name"]) for port in single),
        tuple(
            PoolConfig(pool.get("tcp"), _built_port(pool, pool.get("tcp").start)) for pool in pools
        ),
        None if http is None else _built_http(http),
        root.get("mdns"),
        root.get("connections", ConnectionLimits()),
        tuple(warnings),
    )


def _built_port(port: Section, tcp_port: int | None) -> PortConfig:
    """The checked values as a PortConfig; `{name}` still stands where it was written."""
    values = {"connect": None} | port.values | {"tcp_port": tcp_port, "tls": _built_tls(port)}
    values.pop("tcp", None)
    if values["connect"] is not None:
        values["open"] = Opening.ALWAYS
    if values["on_connect"] is OnConnect.BOOTLOADER:
        values["replay"] = False  # the client is a flasher, even before its first command
    grouped = {
        name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        for name, kind in _GROUPS.items()
    }
    return PortConfig(**grouped, **values)


def _built_http(http: Section) -> HttpConfig:
    values = http.values | {"tls": _built_tls(http), "tcp_port": http.values["tcp"]}
    del values["tcp"], values["listen"]
    return HttpConfig(**values)


def _built_tls(section: Section) -> Tls | None:
    tls = section.get("tls")
    return None if tls is None else Tls(**tls.values)
