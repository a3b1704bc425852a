"""The section `http` of the YAML."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from gateway.config.document import HttpConfig, is_loopback
from gateway.config.http import PACKAGES, TokenFileError, read_token
from gateway.config.reader import parse_config
from gateway.errors import ConfigError
from tests.support.certificates import Authority

PORTS = "ports:\n  - {name: desk, tcp: 4001, device: /dev/ttyUSB0}\n"


def http_of(text: str) -> HttpConfig | None:
    return parse_config(PORTS + text, "f.yaml").http


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse_config(PORTS + text, "f.yaml")
    return [str(problem) for problem in raised.value.problems]


def test_there_is_no_http_server_unless_one_is_asked_for() -> None:
    assert http_of("") is None


def test_an_address_is_enough_on_loopback() -> None:
    assert http_of("http: 127.0.0.1:8080") == HttpConfig("127.0.0.1", 8080)
    assert http_of('http: "[::1]:8080"') == HttpConfig("::1", 8080)
    assert http_of("http: localhost:0") == HttpConfig("localhost", 0)


def test_a_mapping_says_who_may_ask_and_with_which_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text("0123456789abcdef\n")
    http = http_of(f"http:\n  listen: 0.0.0.0:8080\n  allow: [10.0.0.0/8]\n  token_file: {file}\n")
    assert http is not None
    assert (http.host, http.tcp_port, http.token_file) == ("0.0.0.0", 8080, str(file))
    assert str(http.allow) == "10.0.0.0/8"
    assert str(http) == "0.0.0.0:8080"


@pytest.mark.parametrize(
    ("text", "names"),
    [("Lab.Example.", {"lab.example"}), ("[lab.example, pi]", {"lab.example", "pi"})],
)
def test_names_by_which_it_may_be_addressed(text: str, names: set[str]) -> None:
    http = http_of(f"http: {{listen: 127.0.0.1:8080, host_names: {text}}}")
    assert http is not None
    assert http.host_names == names


def test_who_is_reached_from_elsewhere_needs_a_token() -> None:
    [told] = problems_of("http: 0.0.0.0:8080")
    assert told.startswith("f.yaml:3: http: listen '0.0.0.0:8080' without token_file")
    [told] = problems_of("http:\n  allow: all\n  listen: lab.example:80\n")
    assert told.startswith("f.yaml:5: http: listen 'lab.example:80' without token_file")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("http: 8080", "invalid http '8080': expected HOST:PORT, an IPv6 address in brackets, or"),
        ("http: off", "invalid http 'off' (YAML reads it as false"),
        ("http:", "empty http: expected"),
        ("http: 127.0.0.1:70000", "invalid http '127.0.0.1:70000'"),
        ("http: []", "invalid http (an empty list)"),
        ("http: {allow: all}", "http: missing listen: expected HOST:PORT"),
        ("http: {listen: 127.0.0.1:1, port: 2}", "http: unknown key 'port'"),
        ("http: {listen: 127.0.0.1:1, allow: 7}", "http: invalid allow '7'"),
        (
            "http: {listen: 127.0.0.1:1, token_file: secret}",
            "http: invalid token_file 'secret': expected an absolute path",
        ),
        (
            "http: {listen: 127.0.0.1:1, host_names: [lab, 'lab.example:8080']}",
            "http: invalid host_names (a list: lab.example:8080 in line 3): expected a host name",
        ),
        ("http: {listen: 127.0.0.1:1, host_names: []}", "http: invalid host_names (an empty list)"),
        ("http: *other", "aliases (*other) are not supported"),
    ],
)
def test_mistakes_are_told(text: str, problem: str) -> None:
    [told] = problems_of(text)
    assert told.startswith("f.yaml:3:")
    assert problem in told


def test_its_files_for_tls_are_checked_as_a_port_s(tmp_path: Path) -> None:
    files = Authority(tmp_path).server_for_all()
    http = http_of(
        f"http: {{listen: '127.0.0.1:1', tls: {{cert: {files.cert}, key: {files.key}}}}}"
    )
    assert http is not None
    assert http.tls == files
    assert problems_of("http: {listen: 127.0.0.1:1, tls: {cert: /none}}") == [
        "f.yaml:3: http.tls: cert without key: expected both or neither"
    ]
    [told] = problems_of(f"http: {{listen: 127.0.0.1:1, tls: {{cert: /no, key: {files.key}}}}}")
    assert told.startswith("f.yaml:3: http.tls: invalid cert '/no' (cannot be read: No such file")
    told = "".join(problems_of(f"http: {{listen: 127.0.0.1:1, tls: {{ca: {tmp_path}/ca.pem}}}}"))
    assert "http: tls without cert and key" in told


def test_no_port_may_have_its_address(tmp_path: Path) -> None:
    [told] = problems_of("http: 127.0.0.1:4001")
    assert told.startswith("f.yaml:2: ports[0]: duplicate tcp '4001' (first in line 3)")


@pytest.mark.parametrize("package", PACKAGES)
def test_without_a_package_it_is_said_what_to_install(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else "")
    assert problems_of("http: 127.0.0.1:8080") == [
        f"f.yaml:3: http needs the Python package {package}, which is not installed:"
        " expected what pip install 'esp-serial-gateway[web]' installs"
    ]
    assert http_of("") is None


def test_a_token_is_the_line_in_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o640)
    file.write_text("0123456789abcdef\r\n")
    assert read_token(str(file)) == "0123456789abcdef"
    file.write_text("A" * 256)
    assert read_token(str(file)) == "A" * 256


@pytest.mark.parametrize(
    "content", ["", "short\n", "0123456789abcdef\n0", "0123456789abc=ef", "\0"]
)
def test_a_file_without_a_token_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(content)
    with pytest.raises(TokenFileError) as raised:
        read_token(str(file))
    assert str(raised.value).startswith(f"invalid token_file '{file}' (no token in it): expected")


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602])
def test_a_token_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    file.chmod(mode)
    [told] = problems_of(f"http:\n  listen: 127.0.0.1:1\n  token_file: {file}\n")
    assert told == (
        f"f.yaml:5: http: invalid token_file '{file}' (all users of this host may read or write"
        " it): expected a file for its owner and group only (chmod o= FILE)"
    )


def test_a_token_file_that_can_t_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="No such file"):
        read_token(str(tmp_path / "none"))
    with pytest.raises(TokenFileError, match="it is a character device"):
        read_token("/dev/zero")
    [told] = problems_of(f"http:\n  listen: 127.0.0.1:1\n  token_file: {tmp_path}/none\n")
    wrong = f"invalid token_file '{tmp_path}/none' (cannot be read: No such file or directory)"
    assert told.startswith(f"f.yaml:5: http: {wrong}: expected a file with one line of 16 to 256")


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("LocalHost.", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("lab.example", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, is_it: bool) -> None:
    assert is_loopback(host) is is_it
