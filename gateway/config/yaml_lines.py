"""YAML read so that every mistake keeps its line, and all mistakes are reported at once.

Text becomes PyYAML nodes, never Python objects: a node knows where it stands and what was written
there (`no`, not False). The file is bounded in size and depth, and what makes YAML surprising
(anchors, aliases, merge keys, tags, several documents, duplicate keys) is refused by name. Kinds
of values that are not about serial ports are here too; which keys there are is left to document.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from gateway.config.wording import MAX_REASON_CHARS, clipped, did_you_mean, meant_key, quoted
from gateway.config.yaml_causes import likely_cause
from gateway.errors import ConfigError, ConfigProblem
from gateway.inputs import read_regular_file

#: A port takes some 100 bytes: room for thousands. PyYAML reads that in about 4 s (measured on a
#: PC), the worst text of this size that it reads at all in 13 s.
MAX_FILE_BYTES = 1_000_000

#: Lists and mappings inside each other; our own keys need 3. Keeps PyYAML, which recurses and
#: slows down with each open bracket, far from Python's recursion limit.
MAX_DEPTH = 20

#: After that many the rest is not looked for: nobody reads more, and a hostile file could hold
#: hundreds of thousands.
MAX_PROBLEMS = 100

_TAG = "tag:yaml.org,2002:"
_BOOL, _NULL, _MERGE = _TAG + "bool", _TAG + "null", _TAG + "merge"

#: The first words of every description of a value that may be true or false.
_SWITCH = "true, false"

#: The usual first key of a port: where it comes twice, a dash was forgotten.
_FIRST_KEY = "name"

#: Marks a node that was refused already, so that nobody complains about its value as well.
_REFUSED = "!refused"


class Problems:
    """The problems of one file, collected."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[ConfigProblem] = []

    def add(self, line: int, key: str, problem: str, expected: str = "") -> None:
        """Note a problem (arguments as ConfigProblem's).

        Raises ConfigError when there are too many to go on.
        """
        self.found.append(ConfigProblem(self.file, line, key, problem, expected))
        if len(self.found) >= MAX_PROBLEMS:
            stopped = f"{MAX_PROBLEMS} problems, the rest of the file was not checked"
            raise ConfigError([*self._by_line(), ConfigProblem(self.file, 0, "", stopped)])

    def add_parts(self, path: str, parts: WrongPartsError) -> None:
        """Note the problems inside a value, `path` being the value's own path of keys."""
        for part in parts.problems:
            dot = "." if part.key and not part.key.startswith("[") else ""
            self.add(part.line, f"{path}{dot}{part.key}", part.problem, part.expected)

    def raise_if_any(self) -> None:
        """Raise ConfigError with all problems in the order of their lines, if there are any."""
        if self.found:
            raise ConfigError(self._by_line())

    def stop(self, line: int, problem: str, expected: str = "") -> ConfigError:
        """The error to raise for a problem of the whole file, behind which nothing can be read."""
        # An alias or tag noted further up may be what spoilt the syntax: it is reported too.
        stopper = ConfigProblem(self.file, line, "", problem, expected)
        return ConfigError([*self._by_line(), stopper])

    def _by_line(self) -> list[ConfigProblem]:
        return sorted(self.found, key=lambda problem: problem.line)


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key: value` of a mapping; `line` is the key's, counted from 1."""

    line: int
    value: yaml.Node


def read_text(path: Path) -> str:
    """The text of a file; ConfigError if it can't be read, is too large or is not UTF-8."""
    problems = Problems(str(path))
    try:
        data = read_regular_file(path, MAX_FILE_BYTES).data
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
        raise problems.stop(0, f"cannot read the file ({reason})", "a YAML file") from exc
    _check_size(len(data), problems)
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise problems.stop(line, f"invalid byte 0x{data[exc.start]:02x}", "UTF-8 text") from exc


def compose(text: str, problems: Problems) -> yaml.Node | None:
    """The root node of the only document; None if there is none.

    Anchors, aliases and tags are added to `problems`. Raises ConfigError where nothing more can
    be read: wrong syntax, a second document, too large, nested too deeply.
    """
    _check_size(len(text.encode(errors="surrogatepass")), problems)
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        problem = f"invalid character U+{ord(text[exc.position]):04X}"
        raise problems.stop(line, problem, "printable characters") from exc
    loader.problems = problems
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as exc:
        raise problems.stop(*likely_cause(text, exc)) from exc
    except (ValueError, OverflowError) as exc:
        # PyYAML hands the digits of "\UFFFFFFFF" to chr() and of %YAML to int() as they are.
        problem = f"invalid YAML ({clipped(str(exc), MAX_REASON_CHARS)})"
        raise problems.stop(loader.line + 1, problem) from exc


def line_of(node: yaml.Node) -> int:
    """Where a node begins, counted from 1."""
    return int(node.start_mark.line) + 1


def is_refused(node: yaml.Node) -> bool:
    """Whether the node's problem was noted while it was composed."""
    return str(node.tag) == _REFUSED


def is_nothing(node: yaml.Node) -> bool:
    """Whether no value is given: `key:` alone, `~` or `null`."""
    return str(node.tag) == _NULL


def is_quoted(node: yaml.Node) -> bool:
    """Whether a scalar stands in quotes or is a block of text: text, whatever it looks like."""
    return isinstance(node, yaml.ScalarNode) and node.style is not None


def scalar_text(node: yaml.Node) -> str:
    """What is written, for a value that may be text; numbers and dates are text as written.

    Raises ValueError for lists, mappings, nothing, and for the words that YAML reads as true or
    false: a file that other YAML tools read differently would mislead.
    """
    if not isinstance(node, yaml.ScalarNode) or node.tag in (_BOOL, _NULL):
        raise ValueError
    return str(node.value)


def invalid(name: str, node: yaml.Node, reason: str = "", *, is_switch: bool = False) -> str:
    """`invalid NAME 'what is written' (reason)`: one line, bounded, safe to print.

    A switch is true or false anyway, however YAML reads other words.
    """
    if not isinstance(node, yaml.ScalarNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "mapping"
        kind = f"a {kind}" if node.value else f"an empty {kind}"
        return f"invalid {name} ({kind}{': ' + reason if reason else ''})"
    if is_nothing(node):
        return f"empty {name}"
    if node.tag == _BOOL and not is_switch:
        meaning = "true" if node.value.lower() in ("yes", "true", "on") else "false"
        reason = f"YAML reads it as {meaning}; quote it if text is meant"
    return f"invalid {name} {quoted(node.value)}" + (f" ({reason})" if reason else "")


def entries(node: yaml.MappingNode, path: str, problems: Problems) -> dict[str, Entry]:
    """The mapping's entries by key, in order; of duplicate keys the first.

    Duplicate keys, merge keys and keys that are no words are added to `problems`; `path` is the
    mapping's own path of keys, empty for the file's.
    """
    found: dict[str, Entry] = {}
    for key, value in node.value:
        line = line_of(key)
        if is_refused(key):
            continue
        if not isinstance(key, yaml.ScalarNode):
            problems.add(line, path, invalid("key", key), "a word")
        elif key.tag == _MERGE:
            problem = "merge keys (<<) are not supported"
            problems.add(line, path, problem, "values for all ports under 'defaults'")
        elif key.value in found:
            first = f"duplicate key {quoted(key.value)} (first in line {found[key.value].line})"
            expected = "each key once"
            begins_port = key.value == _FIRST_KEY and path.startswith("ports[")
            if begins_port:
                expected += f", or '- {_FIRST_KEY}:' to begin another port"
            problems.add(line, path, first, expected)
            if begins_port:
                break  # the keys behind it are that port's
        else:
            found[key.value] = Entry(line, value)
    return found


def known_entries(
    node: yaml.MappingNode,
    path: str,
    names: tuple[str, ...],
    problems: Problems,
    elsewhere: tuple[str, ...] = (),
) -> dict[str, Entry]:
    """The entries whose keys are in `names`; others are added to `problems`.

    `elsewhere` are keys that are known, but belong to each port itself. A known key that an unknown
    one most likely stands for is among the entries, with a value that was refused: it is not
    reported as missing.
    """
    found = entries(node, path, problems)
    known = {name: entry for name, entry in found.items() if name in names}
    for name in found:
        if name in names:
            continue
        if name in elsewhere:
            problem, expected = f"{quoted(name)} cannot have a default", "it in each port"
        elif meant := meant_key(name, found[name].value, names):
            problem, expected = f"unknown key {quoted(name)}: did you mean '{meant}'?", ""
            key = meant.removeprefix("- ").partition(":")[0]
            known.setdefault(key, Entry(found[name].line, _refused_node(node)))
        else:
            problem, expected = f"unknown key {quoted(name)}", "one of " + ", ".join(names)
        problems.add(found[name].line, path, problem, expected)
    return known


def refuse(
    node: yaml.Node, path: str, accepted: str, problems: Problems, *, reason: str = ""
) -> None:
    """Note that a value is wrong, unless it was refused before."""
    if not is_refused(node):
        section, _, name = path.rpartition(".")
        if name.startswith("["):
            name = f"item {name}"
        is_switch = accepted.startswith(_SWITCH)
        problem = invalid(name or "configuration", node, reason, is_switch=is_switch)
        problems.add(line_of(node), section, problem, accepted)


def join(path: str, key: str) -> str:
    """The path of a key in the mapping at `path`, safe to print."""
    return f"{path}.{clipped(key)}" if path else clipped(key)


class WrongPartsError(ValueError):
    """A value of several parts has problems inside, each with a path relative to the value."""

    def __init__(self, problems: list[ConfigProblem]) -> None:
        super().__init__()
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: what the operator may write, and how it is read.

    `read` raises ValueError for everything else; its text is part of the message. WrongPartsError
    is raised instead where the problems are inside.
    """

    accepted: str
    read: Callable[[yaml.Node], object]


def whole_number(low: int, high: int) -> Kind:
    """A number in decimal digits; YAML 1.1's other spellings (010, 1_000, 1:30) surprise people."""

    def read(node: yaml.Node) -> int:
        text = scalar_text(node)
        if is_quoted(node):
            raise ValueError("text, because of the quotes")
        if not re.fullmatch(r"0|[1-9][0-9]{0,17}", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return Kind(f"a whole number from {low} to {high}", read)


def seconds(low: float, high: float) -> Kind:
    """A time, with or without a decimal fraction."""

    def read(node: yaml.Node) -> float:
        text = scalar_text(node)
        if is_quoted(node):
            raise ValueError("text, because of the quotes")
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not low <= float(text) <= high:
            raise ValueError
        return float(text)

    return Kind(f"{low:g} to {high:g} seconds", read)


def one_of(words: type[Enum]) -> Kind:
    """One of the values of an enum of strings; 1.5 needs no quotes, for it is taken as written."""
    by_word = {str(member.value): member for member in words}

    def read(node: yaml.Node) -> Enum:
        text = scalar_text(node)
        if text not in by_word:
            raise ValueError(did_you_mean(text, by_word))
        return by_word[text]

    return Kind(", ".join(by_word), read)


def true_or_false() -> Kind:
    """A switch. YAML's other words for the two (yes, off, ...) are refused: one way is enough."""

    def read(node: yaml.Node) -> bool:
        if node.tag != _BOOL or str(node.value) not in ("true", "false"):
            raise ValueError
        return bool(node.value == "true")

    return Kind(_SWITCH, read)


def _refused_node(place: Any) -> yaml.ScalarNode:
    return yaml.ScalarNode(_REFUSED, "", place.start_mark, place.end_mark)


class _Loader(yaml.SafeLoader):
    """Composes nodes and notes what this project does without; it never constructs anything."""

    problems: Problems

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        is_alias = isinstance(event, yaml.AliasEvent)
        if is_alias:
            self.get_event()  # type: ignore[no-untyped-call]
            alias = f"aliases (*{clipped(event.anchor)}) are not supported"
            self._refuse(event, alias, "the value itself, in quotes if it begins with *")
            return _refused_node(event)
        if event.anchor is not None:
            anchor = f"anchors (&{clipped(event.anchor)}) are not supported"
            self._refuse(event, anchor, "the value itself, in quotes if it begins with &")
            event.anchor = None
        if event.tag is not None:
            tag = f"tags ({clipped(event.tag)}) are not supported"
            self._refuse(event, tag, "the value itself, in quotes if it begins with !")
            event.tag = _REFUSED
        self._depth += 1
        if self._depth > MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} lists and mappings inside each other"
            raise self.problems.stop(event.start_mark.line + 1, problem)
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        self._depth -= 1
        return node

    def _refuse(self, event: Any, problem: str, expected: str) -> None:
        self.problems.add(event.start_mark.line + 1, "", problem, expected)


def _check_size(size_bytes: int, problems: Problems) -> None:
    if size_bytes > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES // 1_000_000} MB"
        raise problems.stop(0, f"larger than {limit}", f"a file of at most {limit}")
