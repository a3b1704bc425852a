"""How TLS is written in the YAML: its keys, where they fit, and the files that they name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.config.document import GatewayConfig
from gateway.config.reader import load_config, parse_config
from gateway.net.tls_context import Tls
from tests.config.test_document import port, ports, problems
from tests.support.certificates import Authority

LISTENS = Tls("/c", "/k", "/ca")
FOR_LISTENING = "{cert: /c, key: /k, client_ca: /ca}"


def parsed(text: str) -> GatewayConfig:
    """Without a look at the files."""
    return parse_config(text, "f.yaml", with_files=False)


def test_tls_is_the_same_wherever_it_is_written() -> None:
    own = parsed(ports(port(tls=FOR_LISTENING)))
    of_all = parsed(f"defaults:\n  tls: {FOR_LISTENING}\n" + ports(port()))
    assert own == of_all
    assert own.ports[0].tls == LISTENS
    assert parsed(ports(port())).ports[0].tls is None


def test_a_port_may_have_none_or_its_own() -> None:
    defaults = f"defaults:\n  tls: {FOR_LISTENING}\n"
    assert parsed(defaults + ports(port(tls="none"))).ports[0].tls is None
    assert parsed(defaults + ports(port(tls="{cert: /a, key: /b}"))).ports[0].tls == Tls("/a", "/b")


def test_a_port_that_connects_has_tls_by_default_too() -> None:
    """A connection in the clear, where TLS was asked for, must not be what is left."""
    defaults = f"defaults:\n  tls: {FOR_LISTENING}\n"
    assert parsed(defaults + ports(port(tcp=None, connect="lab:1"))).ports[0].tls == LISTENS
    every = "{cert: /c, key: /k, ca: /ca, server_name: gateway.lab}"
    config = parsed(ports(port(tcp=None, connect="lab:1", tls=every)))
    assert config.ports[0].tls == Tls("/c", "/k", ca="/ca", server_name="gateway.lab")
    # All that the machine trusts, and the host's own name.
    assert parsed(ports(port(tcp=None, connect="lab:1", tls="{}"))).ports[0].tls == Tls()


def test_each_port_of_a_pool_has_it() -> None:
    entry = port(tcp="4000-4001", device="{usb: '10c4:*'}", tls=FOR_LISTENING)
    assert parsed(ports(entry)).pools[0].port(4001).tls == LISTENS


@pytest.mark.parametrize(
    ("tls", "place", "problem"),
    [
        ("/c", "", "invalid tls '/c'"),
        ("yes", "", "invalid tls 'yes' (YAML reads it as true"),
        ("[]", "", "invalid tls (an empty list)"),
        ("{cert: c, key: /k}", ".tls", "invalid cert 'c'"),
        ("{cert: /c}", ".tls", "cert without key"),
        ("{key: /k}", ".tls", "key without cert"),
        ("{cert: /c, key: }", ".tls", "empty key"),
        ("{cert: /c, key: /k, server_name: a b, ca: /x}", ".tls", "invalid server_name 'a b'"),
        (
            "{cert: /c, key: /k, clientca: /x}",
            ".tls",
            "unknown key 'clientca': did you mean 'client_ca'?",
        ),
        ("{client_ca: /ca}", "", "tls without cert and key"),
        ("{}", "", "tls without cert and key"),
        ("{cert: /c, key: /k, ca: /x}", ".tls", "ca with tcp"),
        ("{cert: /c, key: /k, server_name: x}", ".tls", "server_name with tcp"),
    ],
)
def test_mistakes_are_told_with_their_key(tls: str, place: str, problem: str) -> None:
    (line, *_) = problems(ports(port(tls=tls)))
    assert line.startswith(f"f.yaml:5: ports[0]{place}: {problem}"), line


def test_what_is_for_listening_is_refused_beside_connect() -> None:
    (line, *_) = problems(ports(port(tcp=None, connect="lab:1", tls="{client_ca: /ca}")))
    assert "ports[0].tls: client_ca with connect" in line


def test_defaults_without_a_certificate_do_not_do_for_a_port_that_listens() -> None:
    text = "defaults:\n  tls: {server_name: x}\n" + ports(port())
    assert problems(text) == [
        "f.yaml:4: ports[0]: tls of the defaults without cert and key:"
        " expected both for a port that listens"
    ]


def test_wrong_files_are_told_once_where_they_are_named(tmp_path: Path) -> None:
    tls = Authority(tmp_path).server()
    text = f"defaults:\n  tls:\n    cert: {tls.cert}\n    key: {tmp_path}/none\n" + ports(
        port(), port(name="other", tcp="4002", device="/dev/b")
    )
    assert problems(text) == [
        f"f.yaml:4: defaults.tls: invalid key '{tmp_path}/none' (cannot be read: No such file or"
        " directory): expected the PEM file with the certificate's private key, without a"
        " passphrase"
    ]
    parsed(text)


def test_a_certificate_that_has_expired_is_a_warning(tmp_path: Path) -> None:
    cert, key = Authority(tmp_path).issue(
        "old", "localhost", not_after=datetime.now(UTC) - timedelta(days=1)
    )
    file = tmp_path / "gateway.yaml"
    file.write_text(ports(port(tls=f"{{cert: {cert}, key: {key}}}")))
    _, warning = load_config(file).warnings
    doubtful = f"invalid cert '{cert}' (a certificate in it expired on "
    assert str(warning).startswith(f"{file}:5: warning: ports[0].tls: {doubtful}")
    assert warning not in load_config(file, with_files=False).warnings
