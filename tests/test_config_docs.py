"""docs/config.md and config/gateway.yaml say what the code does."""

import re
from enum import Enum
from pathlib import Path

import pytest
import yaml

from gateway.config import PORT_KEYS, REQUIRED, Key, load_config, parse_config
from gateway.errors import ConfigError

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "config" / "gateway.yaml"
DOCS = (ROOT / "docs" / "config.md").read_text()


def yaml_text(value: object) -> str:
    return str(value.value if isinstance(value, Enum) else value)


def described(key: Key) -> tuple[str, str, str]:
    default = "required" if key.default is REQUIRED else yaml_text(key.default)
    return key.name, key.kind.accepted, default


def test_the_documentation_lists_every_key_with_what_is_accepted_and_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| \S.*\|$", DOCS, re.MULTILINE)
    assert rows == [described(key) for key in PORT_KEYS]


def doc_blocks() -> list[tuple[str, str]]:
    return re.findall(r"^```(yaml|text)\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)


def test_the_documentation_s_example_is_a_valid_file() -> None:
    kind, text = doc_blocks()[0]
    assert kind == "yaml"
    config = parse_config(text, "f.yaml")
    assert [(each.name, each.host) for each in config.ports] == [
        ("desk", "0.0.0.0"),
        ("bench", "127.0.0.1"),
        ("simulated", "0.0.0.0"),
    ]


def test_the_documentation_shows_the_messages_as_they_are() -> None:
    (_, wrong), (kind, messages) = doc_blocks()[1:3]
    assert kind == "text"
    with pytest.raises(ConfigError) as caught:
        parse_config(wrong, "gateway.yaml")
    assert messages == f"{caught.value}\n"


def test_the_example_loads_without_hardware_and_shows_every_key_with_its_default() -> None:
    config = load_config(EXAMPLE)
    assert len(config.ports) >= 2
    assert all(each.device.startswith("/dev/serial/by-path/") for each in config.ports)
    shown = yaml.safe_load(EXAMPLE.read_text())
    assert {name: str(value) for name, value in shown["defaults"].items()} == {
        key.name: yaml_text(key.default) for key in PORT_KEYS if key.default is not REQUIRED
    }
    required = {key.name for key in PORT_KEYS if key.default is REQUIRED}
    assert all(required <= entry.keys() for entry in shown["ports"])


def test_the_example_s_commented_port_is_valid_too() -> None:
    start, words, commented = EXAMPLE.read_text().partition("# No board at hand?")
    text = start + words + commented.replace("\n  # ", "\n  ")
    assert load_config(EXAMPLE).ports == parse_config(text, "f.yaml").ports[:-1]
    assert parse_config(text, "f.yaml").ports[-1].device == "sim://esp32"
