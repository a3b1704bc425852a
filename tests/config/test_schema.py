"""What is made from the table of keys: JSON Schema, documentation, and the example file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from gateway.cli.main import main
from gateway.config.reader import load_config
from gateway.config.schema import DEFAULTS, PORT_KEYS, NoDefault, default_text, json_schema
from tests.config.documents import parsed, schema_errors
from tests.config.test_mistakes import CASES
from tests.tools import config_docs

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config" / "gateway.yaml"
DOCS = config_docs.DOCS.read_text()

#: Cases of mistakes.txt that the schema accepts: cross-checks, files, and YAML's duplicate keys.
NOT_IN_THE_SCHEMA = r"""
no dash before the second port, as deep as the first
key twice
name "a\n"
simulated board that is none
log file of all ports
the same port twice
the same address by another host
the same simulated board
pool
range of a pool the wrong way round
matches that overlap
http for others without a token
http at the address of a port
tls without a certificate
tls of a port that connects
tls of the defaults without a certificate
files for TLS that do not exist
token file that does not exist
replay for flashers
replay of a port whose default is for flashers
one log file for two ports
log file that is a rotated one of another port
log file that is a rotated one, found in the other order
log files of the defaults, by names
log files of a pool
log file that is another file
ports that exclude each other
one line alone where a board has a reset circuit
"""


def is_yaml(text: str) -> bool:
    try:
        return yaml.safe_load(text) is not None
    except (yaml.YAMLError, ValueError):
        return False


def test_the_schema_rejects_mistakes_but_cross_checks() -> None:
    jsonschema.Draft7Validator.check_schema(json_schema())
    accepted = [
        title
        for title, (text, messages) in CASES.items()
        if is_yaml(text)
        and not schema_errors(text)
        and re.search(r"^f.yaml:\d+: (?!w)", messages, re.MULTILINE)
    ]
    assert accepted == NOT_IN_THE_SCHEMA.strip().splitlines()


@pytest.mark.parametrize("title", CASES)
def test_the_schema_accepts_files_without_mistakes(title: str) -> None:
    text, messages = CASES[title]
    if all(": warning: " in line for line in messages.splitlines()):
        assert schema_errors(text) == []


def test_files_made_from_the_table_are_up_to_date() -> None:
    remedy = "run make config-docs"
    assert config_docs.SCHEMA.read_text() == config_docs.schema_text(), remedy
    assert config_docs.docs(DOCS) == DOCS, remedy


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_the_example_names_the_schema_for_editors() -> None:
    first, *_ = EXAMPLE.read_text().splitlines()
    named = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert named is not None
    # Editors resolve it relative to the YAML file.
    assert EXAMPLE.parent / named[1] == config_docs.SCHEMA


def test_the_example_is_valid_and_shows_every_key_with_its_default() -> None:
    config = load_config(EXAMPLE)
    assert len(config.ports) >= 2
    assert all(each.device.simulated is None for each in (*config.ports, config.pools[0].pattern))
    assert schema_errors(EXAMPLE.read_text()) == []
    shown = yaml.load(EXAMPLE.read_text(), yaml.BaseLoader)  # noqa: S506 - text only
    assert shown["defaults"] == {key.name: default_text(key) for key in DEFAULTS.keys}
    required = {key.name for key in PORT_KEYS if key.default is NoDefault.REQUIRED}
    assert all(required <= entry.keys() for entry in shown["ports"])


def test_the_example_s_commented_port_is_valid_too() -> None:
    start, words, commented = EXAMPLE.read_text().partition("# No board at hand?")
    config = parsed(start + words + commented.replace("\n  # ", "\n  "))
    assert load_config(EXAMPLE).ports == config.ports[:-1]
    assert config.ports[-1].device.simulated == "sim://esp32"


def test_the_examples_of_the_documentation_are_valid() -> None:
    text = DOCS + (ROOT / "docs" / "migrating.md").read_text()
    examples = re.findall(r"^~~~yaml\n(.*?)^~~~$", text, re.MULTILINE | re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        parsed(example)


def test_the_documentation_shows_what_check_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # The first file is the complete example.
    right, wrong = re.findall(r"^```yaml\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    summary, listed = re.findall(
        r"^```text\n(gateway.yaml:.*?)^```$", DOCS, re.MULTILINE | re.DOTALL
    )
    for text, code, out, err in ((right, 0, summary, ""), (wrong, 2, "", listed)):
        Path("gateway.yaml").write_text(text)
        assert main(["check", "gateway.yaml"]) == code
        assert capsys.readouterr() == (out, err)
