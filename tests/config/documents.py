"""Texts of configuration files, read by the reader and checked by the JSON Schema."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
import yaml

from gateway.config.document import GatewayConfig, PortConfig
from gateway.config.reader import parse_config
from gateway.config.schema import json_schema
from gateway.errors import ConfigError


def port(**changes: str | None) -> str:
    """A valid entry of `ports`, with keys added, changed or (None) left out."""
    keys = {"name": "desk", "tcp": "4001", "device": "/dev/serial/a"} | changes
    lines = [f"{key}: {value}\n" for key, value in keys.items() if value is not None]
    return "  - " + "    ".join(lines)


def connecting(**changes: str | None) -> str:
    """A valid entry of `ports` that connects to its client."""
    return port(**({"tcp": None, "connect": "lab.example:7000"} | changes))


def ports(*entries: str) -> str:
    return "ports:\n" + "".join(entries or [port()])


def parsed(text: str, *, with_files: bool = True) -> GatewayConfig:
    """The configuration, which the schema must accept too."""
    config = parse_config(text, "f.yaml", with_files=with_files)
    assert schema_errors(text) == []
    return config


def parsed_port(**changes: str | None) -> PortConfig:
    (config,) = parsed(ports(port(**changes)), with_files=False).ports
    return config


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f.yaml")
    return str(caught.value).splitlines()


def problem_at(text: str, place: str) -> str:
    """The only problem of a file, checked to be at `place` (`LINE: SECTION`)."""
    (line,) = problems(text)
    start = f"f.yaml:{place}: "
    assert line.startswith(start), line
    return line.removeprefix(start)


class _Yaml12Loader(yaml.SafeLoader):
    """Loads documents as editors do: YAML 1.2's core schema, in which `on` is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as in the base class


for _tag, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
}.items():
    _Yaml12Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None
    )

# PyYAML's own reads 08 as octal.
_Yaml12Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda _, node: int(node.value, 0 if node.value[:2] in ("0x", "0o") else 10),
)

_VALIDATOR = jsonschema.Draft7Validator(json_schema())


def schema_errors(text: str) -> list[str]:
    """What an editor with the JSON Schema would underline."""
    document = yaml.load(text, _Yaml12Loader)  # noqa: S506 - a SafeLoader
    return [error.message for error in _VALIDATOR.iter_errors(document)]
