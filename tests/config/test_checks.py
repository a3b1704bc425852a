"""Cross-checks: values that exclude each other, and the files that they name.

Messages that need no files are in mistakes.txt.
"""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.checks import HTTP_PACKAGES, TokenFileError, overlapping, read_token
from gateway.config.document import EVERYBODY, OnConnect, OnDisconnect, Opening, is_loopback
from gateway.config.reader import load_config
from gateway.config.usb_match import DeviceChoice, UsbMatch, UsbTty
from gateway.errors import ConfigError
from gateway.net.tls_context import Tls
from tests.config.documents import connecting, parsed, port, ports, problem_at, problems
from tests.support.certificates import Authority

FOR_LISTENING = "{cert: /c, key: /k, client_ca: /ca}"


# Keys of one port


@pytest.mark.parametrize("on_connect", ["nothing", "reset"])
def test_output_from_before_is_for_ports_that_are_not_for_flashers(on_connect: str) -> None:
    text = "defaults:\n  replay: true\n" + ports(
        port(on_connect=on_connect),
        port(name="f", tcp="2000", device="/dev/b", on_connect="bootloader"),
    )
    assert [each.limits.replay for each in parsed(text).ports] == [True, False]


@pytest.mark.parametrize("key", ["allow", "max_sessions", "host", "open"])
def test_default_keys_for_listening_are_not_used_by_a_port_that_connects(key: str) -> None:
    value = {"allow": "[10.0.0.0/8]", "max_sessions": "2", "host": "::1", "open": "on_connect"}[key]
    text = f"defaults:\n  {key}: {value}\n" + ports(connecting())
    assert parsed(text).ports[0].open is Opening.ALWAYS
    (line,) = problems(ports(connecting(**{key: value})))
    assert line.startswith(f"f.yaml:5: ports[0]: {key} with connect (line 4): expected connect ")


@pytest.mark.parametrize("protocol", ["raw", "rfc2217"])
def test_resets_at_connect_and_disconnect_are_for_both_protocols(protocol: str) -> None:
    text = "defaults: {on_connect: bootloader, on_disconnect: reset}\n" + ports(
        port(protocol=protocol),
        port(name="b", tcp="4002", device="/dev/b", protocol=protocol, on_connect="reset"),
    )
    assert [(each.on_connect, each.on_disconnect) for each in parsed(text).ports] == [
        (OnConnect.BOOTLOADER, OnDisconnect.RESET),
        (OnConnect.RESET, OnDisconnect.RESET),
    ]


# Names, addresses and devices of several ports


def test_a_wrong_value_is_not_compared_with_those_of_other_ports() -> None:
    second = port(name="b", device="/dev/b", host="1.2")
    problem = problem_at(ports(port(), second), "8: ports[1]")
    assert problem == "invalid host '1.2': expected an IP address or a host name"


@pytest.mark.parametrize(
    ("first", "second"), [("lab:1", "LAB.:1"), ("192.0.2.1:1", '"[::ffff:192.0.2.1]:1"')]
)
def test_two_ports_with_one_server_are_rejected(first: str, second: str) -> None:
    text = ports(connecting(connect=first), connecting(name="b", device="/dev/b", connect=second))
    assert problem_at(text, "7: ports[1]").startswith("duplicate connect ")


def two_hosts(first: str, second: str) -> str:
    return ports(port(host=f'"{first}"'), port(name="b", device="/dev/b", host=f'"{second}"'))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "192.0.2.1"),
        ("192.0.2.1", "0.0.0.0"),
        ("0.0.0.0", "::"),
        ("::", "::1"),
        ("pi.example", "::"),
        ("::1", "0:0:0:0:0:0:0:1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("::1", "LOCALHOST."),
        ("Pi.example", "pi.example."),
    ],
)
def test_two_ports_at_one_address_are_rejected(first: str, second: str) -> None:
    problem = problem_at(two_hosts(first, second), "7: ports[1]")
    assert problem.startswith("duplicate tcp '4001' (first in line 3)")


@pytest.mark.parametrize(
    ("first", "second"),
    [("127.0.0.1", "127.0.0.2"), ("127.0.0.1", "::1"), ("a.example", "b.example")],
)
def test_one_tcp_port_may_be_served_at_several_addresses(first: str, second: str) -> None:
    config = parsed(two_hosts(first, second))
    assert [(each.host, each.tcp_port) for each in config.ports] == [(first, 4001), (second, 4001)]


def test_port_0_is_another_one_each_time() -> None:
    text = ports(port(tcp="0"), port(name="b", tcp="0", device="/dev/b"))
    assert [each.tcp_port for each in parsed(text).ports] == [0, 0]


def flow(*entries: str) -> str:
    return ports(*(f"  - {{{entry}}}\n" for entry in entries))


SHELF = "name: shelf, tcp: 4100-4199, device: {usb: '10c4:*'}"


def test_a_pool_and_ports_beside_it_are_accepted() -> None:
    config = parsed(
        flow(
            "name: a, tcp: 4001, device: {usb: '10c4:ea60', serial: x}",
            "name: b, tcp: 4100, host: 127.0.0.2, device: {location: 1-1}",
            f"{SHELF}, log_file: '/l/{{name}}'",
            f"name: other, tcp: 4200-4299, device: {{usb: '1a86:*'}}, tls: {FOR_LISTENING}",
        ),
        with_files=False,
    )
    assert [each.name for each in config.ports] == ["a", "b"]
    assert [(pool.name, pool.tcp_ports) for pool in config.pools] == [
        ("shelf", range(4100, 4200)),
        ("other", range(4200, 4300)),
    ]
    member = config.pools[0].port(4107)
    assert (member.name, member.tcp_port, member.host) == ("shelf-4107", 4107, "127.0.0.1")
    assert member.recording.log_file == "/l/shelf-4107"
    assert config.pools[1].port(4201).tls == Tls("/c", "/k", "/ca")
    assert parsed(flow(SHELF)).ports == ()


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (UsbMatch(serial="a"), UsbMatch(serial="a")),
        (UsbMatch(vendor_id=1), UsbMatch(vendor_id=1, product_id=2, serial="a")),
        (UsbMatch(vendor_id=1, location="1-1"), UsbMatch(location="1-1")),
        (UsbMatch(any_usb=True), UsbMatch(serial="a")),
        (UsbMatch(location="1-1"), UsbMatch(location="1-1", configuration=1, interface=0)),
    ],
    ids=str,
)
def test_a_match_that_another_includes_is_found(earlier: UsbMatch, later: UsbMatch) -> None:
    alternatives = UsbMatch(serial="z", location="7-7"), later
    pairs = overlapping([DeviceChoice((earlier,)), DeviceChoice(alternatives)])
    assert [places[:2] for places in pairs] == [(1, 0)]


MATCHES = st.builds(
    UsbMatch,
    vendor_id=st.none() | st.integers(1, 2),
    product_id=st.none() | st.integers(1, 2),
    serial=st.none() | st.sampled_from("ab"),
    location=st.none() | st.sampled_from(["1-1", "1-2"]),
    interface=st.none() | st.integers(0, 1),
)
TTYS = st.builds(
    UsbTty,
    path=st.just("/dev/ttyUSB0"),
    vendor_id=st.integers(1, 2),
    product_id=st.integers(1, 2),
    serial=st.sampled_from("ab"),
    location=st.sampled_from(["1-1", "1-2"]),
    socket=st.just("socket"),
    interface=st.integers(0, 1),
)


@given(MATCHES, MATCHES, st.lists(TTYS, max_size=30))
def test_overlapping_matches_fit_the_same_devices(
    one: UsbMatch, two: UsbMatch, ttys: list[UsbTty]
) -> None:
    found = list(overlapping([DeviceChoice((one,)), DeviceChoice((two,))]))
    if found:
        ((_, _, narrow),) = found
        wide = two if narrow == one else one
        assert all(wide.fits(tty) for tty in ttys if narrow.fits(tty))
    else:  # they fit the same device by chance only
        assert set(one.criteria) - set(two.criteria)
        assert set(two.criteria) - set(one.criteria)


# TLS and its files


def test_tls_of_the_defaults_is_for_ports_without_their_own() -> None:
    """A connection in the clear, where TLS was wanted, must not remain."""
    every = "{cert: /c, key: /k, ca: /ca, server_name: gateway.lab}"
    text = f"defaults:\n  tls: {FOR_LISTENING}\n" + ports(
        port(),
        port(name="b", tcp="4002", device="/dev/b", tls="none"),
        port(name="c", tcp="4003", device="/dev/c", tls="{cert: /a, key: /b}"),
        connecting(name="d", device="/dev/d"),
        connecting(name="e", device="/dev/e", connect="lab:1", tls=every),
        # Any authority that the machine trusts, and the host's own name.
        connecting(name="f", device="/dev/f", connect="lab:2", tls="{}"),
    )
    assert [each.tls for each in parsed(text, with_files=False).ports] == [
        Tls("/c", "/k", "/ca"),
        None,
        Tls("/a", "/b"),
        Tls("/c", "/k", "/ca"),
        Tls("/c", "/k", ca="/ca", server_name="gateway.lab"),
        Tls(),
    ]


def test_wrong_files_are_reported_once_where_they_are_named(tmp_path: Path) -> None:
    tls = Authority(tmp_path).server()
    text = f"defaults:\n  tls:\n    cert: {tls.cert}\n    key: {tmp_path}/none\n" + ports(
        port(), port(name="other", tcp="4002", device="/dev/b")
    )
    assert problems(text) == [
        f"f.yaml:4: defaults.tls: invalid key '{tmp_path}/none' (cannot be read: No such file or"
        " directory): expected the PEM file with the certificate's private key, without a"
        " passphrase"
    ]
    parsed(text, with_files=False)


def test_a_certificate_that_has_expired_is_a_warning(tmp_path: Path) -> None:
    cert, key = Authority(tmp_path).issue(
        "old", "localhost", not_after=datetime.now(UTC) - timedelta(days=1)
    )
    file = tmp_path / "gateway.yaml"
    file.write_text(ports(port(tls=f"{{cert: {cert}, key: {key}}}")))
    (warning,) = load_config(file).warnings
    doubtful = f"invalid cert '{cert}' (a certificate in it expired on "
    assert str(warning).startswith(f"{file}:5: warning: ports[0].tls: {doubtful}")
    assert load_config(file, with_files=False).warnings == ()


# The HTTP server


def test_the_files_of_http_are_checked_as_those_of_a_port(tmp_path: Path) -> None:
    files = Authority(tmp_path).server_for_all()
    tls = f"tls: {{cert: {files.cert}, key: {files.key}}}"
    http = parsed(f"{ports()}http: {{listen: '127.0.0.1:1', {tls}}}").http
    assert http is not None
    assert http.tls == files
    (line,) = problems(
        f"http: {{listen: '127.0.0.1:1', tls: {{cert: /no, key: {files.key}}}}}\n{ports()}"
    )
    assert line.startswith("f.yaml:1: http.tls: invalid cert '/no' (cannot be read: No such file")
    lines = problems(f"http: {{listen: '127.0.0.1:1', tls: {{ca: {tmp_path}/ca.pem}}}}\n{ports()}")
    assert any("http: tls without cert and key" in line for line in lines)


@pytest.mark.parametrize("package", HTTP_PACKAGES)
def test_http_without_a_package_is_rejected_with_the_way_to_install_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else "")
    assert problems(f"http: 127.0.0.1:8080\n{ports()}") == [
        f"f.yaml:1: http needs the Python package {package}, which is not installed:"
        " expected pip install 'esp-serial-gateway[web]'"
    ]
    assert parsed(ports()).http is None


def test_http_that_others_reach_needs_a_token(tmp_path: Path) -> None:
    (line,) = problems(f"http:\n  allow: all\n  listen: lab.example:80\n{ports()}")
    assert line.startswith("f.yaml:3: http: listen 'lab.example:80' without token_file")
    file = tmp_path / "token"
    file.touch(mode=0o640)
    file.write_text("0123456789abcdef\r\n")
    assert read_token(str(file)) == "0123456789abcdef"
    http = parsed(f"http: {{listen: '0.0.0.0:8080', token_file: {file}}}\n{ports()}").http
    assert http is not None
    assert (http.token_file, http.allow, http.is_loopback) == (str(file), EVERYBODY, False)
    file.write_text("A" * 256)
    assert read_token(str(file)) == "A" * 256


@pytest.mark.parametrize(
    "content", ["", "short\n", "0123456789abcdef\n0", "0123456789abc=ef", "\0"]
)
def test_a_file_without_a_token_is_rejected_without_showing_it(
    tmp_path: Path, content: str
) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(content)
    with pytest.raises(TokenFileError) as caught:
        read_token(str(file))
    assert str(caught.value).startswith(f"invalid token_file '{file}' (no token in it): expected")


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602])
def test_a_token_that_others_may_read_or_write_is_rejected(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    file.chmod(mode)
    assert problems(f"http:\n  listen: 127.0.0.1:1\n  token_file: {file}\n{ports()}") == [
        f"f.yaml:3: http: invalid token_file '{file}' (all users of this host may read or write"
        " it): expected a file for its owner and group only (chmod o= FILE)"
    ]


def test_a_token_file_that_can_t_be_read_is_rejected_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="No such file"):
        read_token(str(tmp_path / "none"))
    with pytest.raises(TokenFileError, match="it is a character device"):
        read_token("/dev/zero")


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("127.8.9.1", True),
        ("::1", True),
        ("LocalHost.", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("lab.example", False),
    ],
)
def test_loopback_is_for_this_machine_only(host: str, is_it: bool) -> None:
    assert is_loopback(host) is is_it


# Log files


def with_log_files(folder: Path, *log_files: Path) -> Path:
    entries = (
        port(name=f"p{n}", tcp="0", device=f"/dev/{n}", log_file=str(log_file))
        for n, log_file in enumerate(log_files)
    )
    path = folder / "gateway.yaml"
    path.write_text(ports(*entries))
    return path


def test_log_files_are_compared_after_following_links(tmp_path: Path) -> None:
    logs, link = tmp_path / "logs", tmp_path / "link"
    logs.mkdir()
    link.symlink_to(logs)
    (logs / "other.log").symlink_to(logs / "desk.log.2")
    message = r"gateway\.yaml:9: ports\[1\]: log_file .* of line 5"
    for other in (link / "desk.log", link / "desk.log.1", logs / "other.log"):
        path = with_log_files(tmp_path, logs / "desk.log", other)
        with pytest.raises(ConfigError, match=message):
            load_config(path)
    # Without its files the configuration can be read by users who may not read the folder.
    assert len(load_config(path, with_files=False).ports) == 2
    assert len(load_config(with_log_files(tmp_path, logs / "a.log", logs / "b.log")).ports) == 2


def test_the_configuration_is_not_overwritten_by_a_board_s_output(tmp_path: Path) -> None:
    path = with_log_files(tmp_path, tmp_path / "link.yaml")
    (tmp_path / "link.yaml").symlink_to(path)
    with pytest.raises(ConfigError, match="is the configuration: expected another log_file"):
        load_config(path)
