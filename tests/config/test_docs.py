"""docs/config.md and config/gateway.yaml say what the code does."""

import re
from enum import Enum
from pathlib import Path

import pytest
import yaml

from gateway.cli.main import main
from gateway.config.device import MATCH_KEYS
from gateway.config.reader import CONNECTION_KEYS, PORT_KEYS, load_config, parse_config
from gateway.config.sections import REQUIRED, Key
from gateway.config.tls import TLS_KEYS

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config" / "gateway.yaml"
DOCS = (ROOT / "docs" / "config.md").read_text()


def yaml_text(value: object) -> str:
    """How a value is written in the file."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)


def described(key: Key) -> tuple[str, str, str]:
    if key.has_default:
        default = yaml_text(key.default)
    else:
        default = "required" if key.default is REQUIRED else "`tcp` or `connect`"
    return key.name, key.kind.accepted, default


def test_the_documentation_lists_every_key_with_what_is_accepted_and_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| \S.*\|$", DOCS, re.MULTILINE)
    assert rows == [described(key) for key in PORT_KEYS]


def doc_blocks() -> list[tuple[str, str]]:
    """Each file of the section on `check` (the first is the complete example) and the output."""
    files = re.findall(r"^```yaml\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    outputs = re.findall(r"^```text\n(gateway.yaml:.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    return list(zip(files, outputs, strict=True))


def check(text: str) -> int:
    Path("gateway.yaml").write_text(text)
    return main(["check", "gateway.yaml"])


def test_the_documentation_shows_what_check_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (right, summary), (wrong, problems) = doc_blocks()
    assert check(right) == 0
    assert capsys.readouterr() == (summary, "")
    assert check(wrong) == 2
    assert capsys.readouterr() == ("", problems)


def test_the_documentation_lists_every_key_of_a_match() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| [^|]+ \|$", DOCS, re.MULTILINE)
    assert rows == [(name, kind.accepted) for name, kind in MATCH_KEYS.items()]


def test_the_documentation_lists_every_key_of_tls() -> None:
    rows = re.findall(r"^\| `tls\.(\w+)` \| ([^|]+) \|", DOCS, re.MULTILINE)
    assert rows == [(name, kind.accepted) for name, kind in TLS_KEYS.items()]


def test_the_documentation_lists_every_key_of_connections() -> None:
    rows = re.findall(r"^\| `connections\.(\w+)` \| (.+?) \| (.+?) \| \S.*\|$", DOCS, re.MULTILINE)
    assert rows == [described(key) for key in CONNECTION_KEYS]


def test_the_examples_of_naming_devices_and_of_migrating_are_valid() -> None:
    text = DOCS + (ROOT / "docs" / "migrating.md").read_text()
    examples = re.findall(r"^~~~yaml\n(.*?)^~~~$", text, re.MULTILINE | re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        parse_config(example, "docs")


def test_the_example_loads_without_hardware_and_shows_every_key_with_its_default() -> None:
    config = load_config(EXAMPLE)
    assert len(config.ports) >= 2
    assert all(each.device.simulated is None for each in (*config.ports, config.pools[0].pattern))
    shown = yaml.safe_load(EXAMPLE.read_text())
    assert {name: yaml_text(value) for name, value in shown["defaults"].items()} == {
        key.name: yaml_text(key.default) for key in PORT_KEYS if key.has_default
    }
    required = {key.name for key in PORT_KEYS if key.default is REQUIRED}
    assert all(required <= entry.keys() for entry in shown["ports"])


def test_the_example_s_commented_port_is_valid_too() -> None:
    start, words, commented = EXAMPLE.read_text().partition("# No board at hand?")
    text = start + words + commented.replace("\n  # ", "\n  ")
    assert load_config(EXAMPLE).ports == parse_config(text, "f.yaml").ports[:-1]
    assert parse_config(text, "f.yaml").ports[-1].device.simulated == "sim://esp32"
