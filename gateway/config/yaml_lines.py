"""YAML read so that every mistake keeps its line, and all mistakes are told at once.

Text becomes PyYAML nodes, never Python objects: a node knows where it stands and what was written
there (`no`, not False). The file is bounded in size and depth, and what makes YAML surprising
(anchors, aliases, merge keys, tags, several documents, duplicate keys) is refused by name. Kinds
of values that are not about serial ports are here too; which keys there are is left to document.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from gateway.errors import ConfigError, ConfigProblem
from gateway.regular_file import read_regular_file

#: A port takes some 100 bytes: room for thousands. PyYAML reads that in about 4 s (measured on a
#: PC), the worst text of this size that it reads at all in 13 s.
MAX_FILE_BYTES = 1_000_000

#: Lists and mappings inside each other; our own keys need 3. Keeps PyYAML, which recurses and
#: slows down with each open bracket, far from Python's recursion limit.
MAX_DEPTH = 20

#: After that many the rest is not looked for: nobody reads more, and a hostile file could hold
#: hundreds of thousands.
MAX_PROBLEMS = 100

#: Longest piece of the file that a message repeats.
_MAX_SHOWN_CHARS = 60

#: Longest explanation by others (PyYAML, the simulator); they may quote the file.
MAX_REASON_CHARS = 200

_TAG = "tag:yaml.org,2002:"
_BOOL, _NULL, _MERGE = _TAG + "bool", _TAG + "null", _TAG + "merge"

#: Marks a node that was refused already, so that nobody complains about its value as well.
_REFUSED = "!refused"


class Problems:
    """The problems of one file, collected."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[ConfigProblem] = []

    def add(self, line: int, key: str, found: str, accepted: str) -> None:
        """Note a problem (arguments as ConfigProblem's).

        Raises ConfigError when there are too many to go on.
        """
        self.found.append(ConfigProblem(self.file, line, key, found, accepted))
        if len(self.found) >= MAX_PROBLEMS:
            found = f"{MAX_PROBLEMS} problems, the rest of the file was not checked"
            last = ConfigProblem(self.file, 0, "", found, "a file without problems")
            raise ConfigError([*self._by_line(), last])

    def add_parts(self, path: str, parts: WrongPartsError) -> None:
        """Note the problems inside a value, `path` being the value's own path of keys."""
        for part in parts.problems:
            dot = "." if part.key and not part.key.startswith("[") else ""
            self.add(part.line, f"{path}{dot}{part.key}", part.found, part.accepted)

    def raise_if_any(self) -> None:
        """Raise ConfigError with all problems in the order of their lines, if there are any."""
        if self.found:
            raise ConfigError(self._by_line())

    def stop(self, line: int, found: str, accepted: str) -> ConfigError:
        """The error to raise for a problem of the whole file, behind which nothing can be read."""
        # An alias or tag noted further up may be what spoilt the syntax: it is told too.
        stopper = ConfigProblem(self.file, line, "", found, accepted)
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
        raise problems.stop(0, f"no readable file ({reason})", "a YAML file") from exc
    _check_size(len(data), problems)
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        found = f"the byte 0x{data[exc.start]:02x}, which is not UTF-8"
        raise problems.stop(line, found, "UTF-8 text") from exc


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
        found = f"the character U+{ord(text[exc.position]):04X}"
        raise problems.stop(line, found, "printable characters") from exc
    loader.problems = problems
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as exc:
        line, found, accepted = _explained(exc)
        raise problems.stop(line, found, accepted) from exc
    except (ValueError, OverflowError) as exc:
        # PyYAML hands the digits of "\UFFFFFFFF" to chr() and of %YAML to int() as they are.
        found = f"invalid YAML ({clipped(str(exc), MAX_REASON_CHARS)})"
        raise problems.stop(loader.line + 1, found, "valid YAML") from exc


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


def shown(node: yaml.Node) -> str:
    """What is written, for a message: one line, bounded, safe to print."""
    if isinstance(node, yaml.SequenceNode):
        return "a list" if node.value else "an empty list"
    if not isinstance(node, yaml.ScalarNode):
        return "a mapping"
    if is_nothing(node):
        return "nothing"
    if node.tag == _BOOL:
        meaning = "true" if node.value.lower() in ("yes", "true", "on") else "false"
        return f"{node.value} (which YAML reads as {meaning}; text if put in quotes)"
    text = clipped(node.value)
    return f'"{text}"' if is_quoted(node) else text


def clipped(text: str, max_chars: int = _MAX_SHOWN_CHARS) -> str:
    """Text of the file for a message: one line, bounded, without control characters."""
    if len(text) > max_chars:
        text = text[: max_chars - 3] + "..."
    return text if text.isprintable() else repr(text)[1:-1]


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`did you mean ...?` with the nearest of `words`; empty if none is near."""
    # Nothing near a known word is much longer, and difflib takes quadratic time.
    near = difflib.get_close_matches(word[:_MAX_SHOWN_CHARS].lower(), words, n=1)
    return f"did you mean {near[0]}?" if near else ""


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
            problems.add(line, path, f"{shown(key)} as a key", "a word as a key")
        elif key.tag == _MERGE:
            problems.add(line, path, "a merge key (<<)", "values for all ports under `defaults`")
        elif key.value in found:
            first = f"the same key again (first in line {found[key.value].line})"
            problems.add(line, join(path, key.value), first, "each key once")
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

    `elsewhere` are keys that are known, but belong to each port itself.
    """
    found = entries(node, path, problems)
    for name in found:
        if name in names:
            continue
        if name in elsewhere:
            what = "a key that each port has for itself"
        else:
            hint = did_you_mean(name, names)
            what = f"an unknown key ({hint})" if hint else "an unknown key"
        problems.add(found[name].line, join(path, name), what, "the keys " + ", ".join(names))
    return {name: entry for name, entry in found.items() if name in names}


def refuse(
    node: yaml.Node, path: str, accepted: str, problems: Problems, *, reason: str = ""
) -> None:
    """Note that a value is wrong, unless it was refused before."""
    if not is_refused(node):
        found = f"{shown(node)} ({reason})" if reason else shown(node)
        problems.add(line_of(node), path, found, accepted)


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

    `read` raises ValueError for everything else; a text in it is told in addition. WrongPartsError
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

    return Kind("true, false", read)


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
            self._refuse(event, f"an alias (*{clipped(event.anchor)})", "the value itself")
            return yaml.ScalarNode(_REFUSED, "", event.start_mark, event.end_mark)
        if event.anchor is not None:
            self._refuse(event, f"an anchor (&{clipped(event.anchor)})", "values without anchors")
            event.anchor = None
        if event.tag is not None:
            self._refuse(event, f"a tag ({clipped(event.tag)})", "values without tags")
            event.tag = _REFUSED
        self._depth += 1
        if self._depth > MAX_DEPTH:
            found = f"more than {MAX_DEPTH} lists and mappings inside each other"
            raise self.problems.stop(event.start_mark.line + 1, found, "the keys that are known")
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        self._depth -= 1
        return node

    def _refuse(self, event: Any, found: str, accepted: str) -> None:
        self.problems.add(event.start_mark.line + 1, "", found, accepted)


def _check_size(size_bytes: int, problems: Problems) -> None:
    if size_bytes > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES // 1_000_000} MB"
        raise problems.stop(0, f"more than {limit}", f"a file of up to {limit}")


def _explained(exc: yaml.MarkedYAMLError) -> tuple[int, str, str]:
    """PyYAML's complaint as line, found and accepted."""
    mark = exc.problem_mark or exc.context_mark
    line = mark.line + 1 if mark is not None else 0
    problem = exc.problem or ""
    if "found another document" in problem:
        return line, "a second document (---)", "one document"
    if r"'\t'" in problem:
        return line, "a tab where a value or its indentation begins", "spaces"
    context = exc.context or ""
    if context and exc.context_mark is not None and exc.context_mark.line + 1 != line:
        context += f" that begins in line {exc.context_mark.line + 1}"
    complaint = ": ".join(part for part in (context, problem) if part)
    return line, f"invalid YAML ({clipped(complaint, MAX_REASON_CHARS)})", "valid YAML"
