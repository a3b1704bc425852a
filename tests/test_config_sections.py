from __future__ import annotations

import pytest
import yaml

from gateway.config_sections import read_section
from gateway.yaml_lines import Problems, compose


def read(text: str, name: str) -> tuple[int, str] | None:
    def as_written(line: int, node: yaml.Node, problems: Problems) -> tuple[int, str]:
        return line, str(node.value)

    problems = Problems("f.yaml")
    return read_section(compose(text, problems), name, as_written, problems)


def test_a_section_is_read_with_its_line() -> None:
    assert read("a: 1\nmdns: true\n", "mdns") == (2, "true")


@pytest.mark.parametrize("text", ["", "a: 1", "[mdns]", "mdns"])
def test_a_file_without_it_has_none(text: str) -> None:
    assert read(text, "mdns") is None
