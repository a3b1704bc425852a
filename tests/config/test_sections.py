"""Mappings of the YAML that are read by a table of their keys."""

from __future__ import annotations

import yaml

from gateway.config.sections import REQUIRED, Key, overlaid, read_keys, read_section
from gateway.config.yaml_lines import Problems, compose, whole_number

KEYS = (Key("one", whole_number(0, 9), REQUIRED), Key("two", whole_number(0, 9), 2))


def node_of(text: str) -> yaml.Node:
    node = compose(text, Problems("f"))
    assert node is not None
    return node


def test_values_that_are_right_are_read_and_the_lines_of_all_keys() -> None:
    problems = Problems("f")
    section = read_keys(node_of("one: 1\ntwo: many"), "here", KEYS, problems)
    assert (section.path, section.values, section.lines) == (
        "here",
        {"one": 1},
        {"one": 1, "two": 2},
    )
    assert [(each.line, each.key) for each in problems.found] == [(2, "here")]


def test_a_key_that_is_missing_unknown_or_elsewhere_is_told() -> None:
    problems = Problems("f")
    read_keys(node_of("three: 3\nname: x"), "here", KEYS, problems, ("name",))
    assert [(each.key, each.problem) for each in problems.found] == [
        ("here", "unknown key 'three'"),
        ("here", "'name' cannot have a default"),
        ("here", "missing one"),
    ]


def test_a_wrong_value_does_not_leave_the_default_in_its_place() -> None:
    section = read_keys(node_of("one: 1\ntwo: many"), "here", KEYS, Problems("f"))
    assert overlaid({"two": 2, "three": 3}, section) == {"three": 3, "one": 1}


def test_a_section_is_read_where_it_is_and_none_where_it_is_not() -> None:
    root = node_of("ports: []\nhttp: x")
    assert read_section(root, "http", lambda line, *_: line, Problems("f")) == 2
    assert read_section(root, "mdns", lambda line, *_: line, Problems("f")) is None
    assert read_section(None, "http", lambda line, *_: line, Problems("f")) is None
