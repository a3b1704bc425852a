"""YAML with lines: bounds, unsupported parts, defaults, and errors of the file itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config.document import ConnectionLimits, GatewayConfig, PortConfig
from gateway.config.problems import MAX_PROBLEMS
from gateway.config.reader import MAX_DEPTH, MAX_FILE_BYTES, load_config, parse_config
from gateway.config.usb_match import DeviceChoice
from gateway.errors import ConfigError
from tests.config.documents import connecting, parsed, port, ports, problems


def test_the_smallest_file_gets_the_defaults() -> None:
    config = PortConfig("desk", DeviceChoice(("/dev/serial/a",)), 4001)
    assert parsed(ports()) == GatewayConfig((config,))


def test_defaults_are_for_ports_that_do_not_give_their_own() -> None:
    own = port(name="own", tcp="4002", device="/dev/b", baudrate="9600", log_file="/own")
    text = "defaults:\n  baudrate: 74880\n  log_file: /log/{name}\n" + ports(port(), own)
    desk, second = parsed(text).ports
    assert (desk.serial.baudrate, desk.recording.log_file) == (74880, "/log/desk")
    assert (second.serial.baudrate, second.recording.log_file) == (9600, "/own")


@pytest.mark.parametrize("empty", ["", " {}", " ~", "\n  # host: 0.0.0.0"])
def test_an_empty_defaults_section_is_as_good_as_none(empty: str) -> None:
    assert parsed(f"defaults:{empty}\n" + ports()) == parsed(ports())


def test_a_default_host_is_for_the_ports_that_listen() -> None:
    text = "defaults: {host: 0.0.0.0}\n" + ports(
        port(),
        connecting(name="b", device="/dev/b"),
        connecting(name="c", device="/dev/c", connect="a:1"),
    )
    assert [each.tcp_port for each in parsed(text).ports] == [4001, None, None]


def test_limits_of_connections_have_defaults_one_by_one() -> None:
    assert parsed(ports()).connections == ConnectionLimits(4096, 1024)
    few = ports() + "connections:\n  max_per_address: 2\n"
    assert parsed(few).connections == ConnectionLimits(4096, 2)
    assert parsed(few + "  max: 3\n").connections == ConnectionLimits(3, 2)


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
        ("a: %b\n", "f.yaml:1: value of 'a' begins with '%': expected it in double quotes"),
        ("%YAML 1.1\n", "f.yaml:2: invalid YAML (expected '<document start>'"),
        ("é" * (MAX_FILE_BYTES // 2 + 1), "f.yaml: larger than 1 MB: expected a file of at most"),
        *(
            (bracket * 100_000, f"f.yaml:1: more than {MAX_DEPTH} lists and mappings")
            for bracket in ("[", "- ", "? ", "{a: ")
        ),
    ],
)
def test_broken_syntax_is_one_problem_with_its_line(text: str, message: str) -> None:
    (line,) = problems(text)
    assert line.startswith(message)


def test_anchors_aliases_and_tags_are_rejected_each_in_its_line() -> None:
    lines = problems("a: &x 1\nb: *x\nc: !!str 2\nd: &x 3\ne: ]\n")
    assert [line.partition(": expected ")[0] for line in lines] == [
        "f.yaml:1: anchors (&x) are not supported",
        "f.yaml:2: aliases (*x) are not supported",
        "f.yaml:3: tags (tag:yaml.org,2002:str) are not supported",
        "f.yaml:4: anchors (&x) are not supported",
        "f.yaml:5: value of 'e' begins with ']'",
    ]


def test_an_alias_in_place_of_a_value_is_one_problem_not_two() -> None:
    for text, place in (
        (ports(port(parity="*p")), "5"),
        ("ports: *p\n", "1"),
        ("*p", "1"),
        ("*p : 1\n" + ports(), "1"),
        ("ports: [*p]\n", "1"),
        (ports(port(device="!env TTY")), "4"),
        ("defaults: *p\n" + ports(), "1"),
    ):
        (line,) = problems(text)
        assert line.startswith(f"f.yaml:{place}: "), line
        assert "are not supported" in line


def test_an_alias_bomb_is_rejected_without_being_expanded() -> None:
    levels = [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 9)]
    lines = problems("\n".join(["x0: &x0 boom", *levels]))
    assert lines[0].startswith("f.yaml:1: anchors (&x0) are not supported")
    assert sum("are not supported" in line for line in lines) == 9 + 8 * 9


def test_the_list_of_problems_is_in_order_and_ends_at_a_bound() -> None:
    lines = problems(ports(*(port(tcp="x", name="a b", device="y") for _ in range(100))))
    numbers = [int(line.split(":")[1]) for line in lines[:-1]]
    assert numbers == sorted(numbers)
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == f"f.yaml: {MAX_PROBLEMS} problems, the rest of the file was not checked"


def test_a_file_is_loaded_and_named_in_its_problems(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(ports())
    assert load_config(file) == parse_config(ports(), "")
    file.write_text(ports(port(tcp="x")))
    with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}:3: "):
        load_config(file)


def test_the_size_of_a_file_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    text = ports().encode()
    file.write_bytes(text + b"\n" * (MAX_FILE_BYTES - len(text)))
    assert len(load_config(file).ports) == 1
    file.write_bytes(text + b"\n" * (MAX_FILE_BYTES - len(text) + 1))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == f"{file}: larger than 1 MB: expected a file of at most 1 MB"


def test_a_file_that_can_t_be_read_is_one_problem_with_the_reason(tmp_path: Path) -> None:
    latin_1 = tmp_path / "latin-1"
    latin_1.write_bytes("a: 1\nb: Tür\n".encode("latin-1"))
    for path, problem in (
        (tmp_path / "absent", ": cannot read the file (No such file or directory): expected a"),
        (tmp_path, ": cannot read the file (it is a directory): expected a YAML file"),
        (Path("nul\0"), ": cannot read the file (embedded null byte): expected a YAML file"),
        (latin_1, ":2: invalid byte 0xfc: expected UTF-8 text"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert str(caught.value).startswith(f"{path}{problem}")


@pytest.mark.parametrize("text", [r'"\e[31m\n"', r'"\ud800"', "a" * 5000, '"' + "b" * 5000 + '"'])
def test_quotations_of_the_file_are_short_and_safe_to_print(text: str) -> None:
    for line in problems(ports(port(name=text, parity=text)) + f"{text}: 1\n"):
        assert line.isprintable()
        assert len(line) < 600
