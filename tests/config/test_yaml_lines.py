from pathlib import Path

import pytest
import yaml

from gateway.config.yaml_lines import (
    MAX_DEPTH,
    MAX_FILE_BYTES,
    MAX_PROBLEMS,
    Problems,
    compose,
    entries,
    invalid,
    line_of,
    read_text,
    scalar_text,
)
from gateway.errors import ConfigError


def composed(text: str) -> yaml.Node:
    problems = Problems("f.yaml")
    root = compose(text, problems)
    problems.raise_if_any()
    assert root is not None
    return root


def problem_lines(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        composed(text)
    return str(caught.value).splitlines()


def test_nodes_know_their_line_and_what_was_written() -> None:
    root = composed("a: 1\nb:\n  - no\n  - 0x10\n")
    assert isinstance(root, yaml.MappingNode)
    found = entries(root, "", Problems("f.yaml"))
    assert {name: entry.line for name, entry in found.items()} == {"a": 1, "b": 2}
    no, number = found["b"].value.value
    meaning = "YAML reads it as false; quote it if text is meant"
    assert (line_of(no), invalid("b", no)) == (3, f"invalid b 'no' ({meaning})")
    assert (line_of(number), scalar_text(number)) == (4, "0x10")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", "f.yaml:1: '[' without its end"),
        ("a: 'b\n\n", "f.yaml:1: quote without its end"),
        ("a:\n\t- b\n", "f.yaml:2: tab in the indentation: expected spaces"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: second document (---): expected one document"),
        ("a: 1\nb: \x07", "f.yaml:2: invalid character U+0007: expected printable characters"),
        ("a: \ud800", "f.yaml:1: invalid character U+D800: expected printable characters"),
        ('a: 1\nb: "\\UFFFFFFFF"', "f.yaml:2: invalid YAML ("),
        ("%YAML " + "9" * 5000 + ".1\n--- a", "f.yaml:1: invalid YAML ("),
    ],
)
def test_broken_syntax_is_one_problem_with_its_line(text: str, message: str) -> None:
    (line,) = problem_lines(text)
    assert line.startswith(message)


def test_anchors_aliases_and_tags_are_refused_each_in_its_line() -> None:
    lines = problem_lines("a: &x 1\nb: *x\nc: !!str 2\nd: &x 3\n")
    assert [line.partition(": expected ")[0] for line in lines] == [
        "f.yaml:1: anchors (&x) are not supported",
        "f.yaml:2: aliases (*x) are not supported",
        "f.yaml:3: tags (tag:yaml.org,2002:str) are not supported",
        "f.yaml:4: anchors (&x) are not supported",
    ]


def test_what_was_refused_before_a_syntax_error_is_told_too() -> None:
    refused, broken = problem_lines("a: *x\nb: ]\n")
    assert refused.startswith("f.yaml:1: aliases (*x) are not supported")
    assert broken.startswith("f.yaml:2: value of 'b' begins with ']'")


def test_a_merge_key_is_refused_as_such() -> None:
    root = composed("<<: {a: 1}\nb: 2\n")
    assert isinstance(root, yaml.MappingNode)
    problems = Problems("f.yaml")
    assert set(entries(root, "ports[0]", problems)) == {"b"}
    with pytest.raises(ConfigError, match=r"^f.yaml:1: ports\[0\]: merge keys \(<<\)"):
        problems.raise_if_any()


def test_of_duplicate_keys_the_first_is_kept_and_the_others_told() -> None:
    root = composed("a: 1\na: 2\n'a': 3\n")
    assert isinstance(root, yaml.MappingNode)
    problems = Problems("f.yaml")
    assert scalar_text(entries(root, "", problems)["a"].value) == "1"
    with pytest.raises(ConfigError) as caught:
        problems.raise_if_any()
    assert [(p.line, p.problem) for p in caught.value.problems] == [
        (2, "duplicate key 'a' (first in line 1)"),
        (3, "duplicate key 'a' (first in line 1)"),
    ]


def test_depth_is_accepted_up_to_the_bound_only() -> None:
    composed("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    for text in ("[" * 100_000, "- " * 100_000, "? " * 100_000, "{a: " * 100_000):
        (line,) = problem_lines(text)
        assert line.startswith(f"f.yaml:1: more than {MAX_DEPTH} lists and mappings")


def test_an_alias_bomb_is_refused_without_being_expanded() -> None:
    levels = [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 9)]
    lines = problem_lines("\n".join(["x0: &x0 boom", *levels]))
    assert lines[0].startswith("f.yaml:1: anchors (&x0) are not supported")
    assert len(lines) == 9 + 8 * 9


def test_the_list_of_problems_ends_at_a_bound_and_says_so() -> None:
    lines = problem_lines("- *x\n" * 100_000)
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1].startswith(f"f.yaml: {MAX_PROBLEMS} problems, the rest of the file")


def test_problems_come_in_the_order_of_their_lines() -> None:
    problems = Problems("f.yaml")
    for line in (3, 1, 2):
        problems.add(line, "key", "x", "y")
    with pytest.raises(ConfigError) as caught:
        problems.raise_if_any()
    assert [problem.line for problem in caught.value.problems] == [1, 2, 3]


def test_size_is_accepted_up_to_the_bound_only(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(b"a" + b"\n" * (MAX_FILE_BYTES - 1))
    assert len(read_text(file)) == MAX_FILE_BYTES
    file.write_bytes(b"a" + b"\n" * MAX_FILE_BYTES)
    message = f"{file}: larger than 1 MB: expected a file of at most 1 MB"
    with pytest.raises(ConfigError) as caught:
        read_text(file)
    assert str(caught.value) == message
    # Counted in bytes for text that did not come from a file as well.
    assert problem_lines("é" * (MAX_FILE_BYTES // 2 + 1)) == [
        "f.yaml: larger than 1 MB: expected a file of at most 1 MB"
    ]


def test_a_file_that_is_absent_or_a_folder_is_one_problem_without_a_line(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "absent", "No such file or directory"),
        (tmp_path, "it is a directory"),
        (Path("nul\0"), "embedded null byte"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_text(path)
        message = f"{path}: cannot read the file ({reason}): expected a YAML file"
        assert str(caught.value) == message


def test_bytes_that_are_no_utf8_are_told_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes("a: 1\nb: Tür\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_text(file)
    message = f"{file}:2: invalid byte 0xfc: expected UTF-8 text"
    assert str(caught.value) == message


@pytest.mark.parametrize("text", [r'"\e[31m\n"', r'"\ud800"', "a" * 5000, '"' + "b" * 5000 + '"'])
def test_what_is_shown_of_the_file_is_short_and_safe_to_print(text: str) -> None:
    message = invalid("a", composed(text))
    assert message.isprintable()
    assert 0 < len(message) < 300
