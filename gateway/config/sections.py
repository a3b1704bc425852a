"""Sections of the YAML file: mappings whose keys are in a table, and others beside them.

Which keys there are is document.py's matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import yaml

from gateway.config.unique import Section
from gateway.config.yaml_lines import (
    Kind,
    Problems,
    WrongPartsError,
    entries,
    is_refused,
    join,
    known_entries,
    line_of,
    refuse,
)

#: The default of a key that every port must have; such a key makes no sense under `defaults`.
REQUIRED: Final = object()
#: The same for the two keys of which a port must have one.
TCP_OR_CONNECT: Final = object()


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a port: its name in the file, the kind of its value, the value if left out."""

    name: str
    kind: Kind
    default: object

    @property
    def has_default(self) -> bool:
        """Whether a port may leave it out."""
        return self.default not in (REQUIRED, TCP_OR_CONNECT)


def overlaid(values: dict[str, Any], section: Section) -> dict[str, Any]:
    """The section's values over others; a key whose value in the section is wrong has none."""
    kept = {name: value for name, value in values.items() if name not in section.lines}
    return kept | section.values


def read_keys(
    node: yaml.Node,
    path: str,
    keys: tuple[Key, ...],
    problems: Problems,
    elsewhere: tuple[str, ...] = (),
) -> Section:
    """The values given in one mapping; required ones that are missing are problems.

    `elsewhere` are keys that are known, but belong to each port itself.
    """
    values: dict[str, Any] = {}
    if not isinstance(node, yaml.MappingNode) or is_refused(node):
        refuse(node, path, "a mapping (key: value)", problems)
        return Section(path, values, {})
    names = tuple(key.name for key in keys)
    found = known_entries(node, path, names, problems, elsewhere)
    for key in keys:
        key_path = join(path, key.name)
        entry = found.get(key.name)
        if entry is None:
            if key.default is REQUIRED:
                problems.add(line_of(node), path, f"missing {key.name}", key.kind.accepted)
        else:
            try:
                values[key.name] = key.kind.read(entry.value)
            except WrongPartsError as parts:
                problems.add_parts(key_path, parts)
            except ValueError as exc:
                refuse(entry.value, key_path, key.kind.accepted, problems, reason=str(exc))
    return Section(path, values, {name: entry.line for name, entry in found.items()})


_Read = TypeVar("_Read")


def read_section(
    root: yaml.Node | None,
    name: str,
    read: Callable[[int, yaml.Node, Problems], _Read | None],
    problems: Problems,
) -> _Read | None:
    """A section beside `ports`, None without; the file itself has been looked at before."""
    if isinstance(root, yaml.MappingNode):
        entry = entries(root, "", Problems("")).get(name)
        if entry is not None:
            return read(entry.line, entry.value, problems)
    return None
