"""Sections of the YAML file beside its ports: each is read by the module that knows its keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import yaml

from gateway.yaml_lines import Problems, entries

_Read = TypeVar("_Read")


def read_section(
    root: yaml.Node | None,
    name: str,
    read: Callable[[int, yaml.Node, Problems], _Read | None],
    problems: Problems,
) -> _Read | None:
    """What `read` makes of one key of the file, None without it.

    It is given the key's line. The file itself has been looked at before.
    """
    if isinstance(root, yaml.MappingNode):
        entry = entries(root, "", Problems("")).get(name)
        if entry is not None:
            return read(entry.line, entry.value, problems)
    return None
