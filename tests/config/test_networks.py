from __future__ import annotations

import pytest

from gateway.config.document import EVERYBODY, Networks, PortConfig, peer_holder, peer_network
from gateway.config.reader import parse_config
from gateway.errors import ConfigError


def port(allow: str, defaults: str = "") -> PortConfig:
    text = f"defaults: {{{defaults}}}\nports:\n  - name: a\n    tcp: 1\n    device: /dev/a\n"
    return parse_config(text + (f"    allow: {allow}\n" if allow else ""), "f.yaml").ports[0]


def networks(allow: str) -> Networks:
    return port(allow).access.allow


@pytest.mark.parametrize(
    ("host", "is_in"),
    [
        ("10.1.2.3", True),
        ("11.0.0.0", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:11.0.0.0", False),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
        ("fe80::1%eth0", True),
        ("fe80::1", True),
        ("::a01:203", False),  # 10.1.2.3 in a notation that IPv6 has given up
        ("", False),
        ("somebody", False),
    ],
)
def test_a_peer_is_allowed_by_its_address(host: str, is_in: bool) -> None:
    allowed = networks('[10.0.0.0/8, 192.0.2.7, "2001:db8::/32", "fe80::/10"]')
    assert allowed.have(host) is is_in


@pytest.mark.parametrize("mapped", ["::ffff:10.0.0.0/104", "::ffff:10.1.2.3"])
def test_mapped_networks_mean_ipv4(mapped: str) -> None:
    assert networks(f'["{mapped}"]').have("10.1.2.3")
    assert not networks(f'["{mapped}"]').have("11.1.2.3")


def test_everything_may_be_written_out() -> None:
    everything = networks('[0.0.0.0/0, "::/0"]')
    assert everything.have("192.0.2.1")
    assert everything.have("2001:db8::1")
    assert not networks('["::/0"]').have("192.0.2.1")


def test_all_is_everybody_even_a_peer_without_an_address() -> None:
    assert networks("all") == EVERYBODY
    assert networks("") == EVERYBODY
    assert EVERYBODY.have("")


def test_a_port_may_open_what_the_defaults_restrict() -> None:
    assert port("", "allow: [10.0.0.0/8]").access.allow.have("192.0.2.1") is False
    assert port("all", "allow: [10.0.0.0/8]").access.allow == EVERYBODY


@pytest.mark.parametrize(
    ("allow", "wrong"),
    [
        ("[]", "(an empty list)"),
        ("10.0.0.0/8", "'10.0.0.0/8' (not a list)"),
        ("{a: b}", "(a mapping)"),
        ("[10.0.0.5/8]", "(a list: 10.0.0.5/8 in line 6: did you mean 10.0.0.0/8?)"),
        ("[10.0.0.0/33]", "(a list: 10.0.0.0/33 in line 6)"),
        ("[10.0.0]", "(a list: 10.0.0 in line 6)"),
        ("[lab.example]", "(a list: lab.example in line 6)"),
        ("[10.0.0.0/8, ~]", "(a list)"),
        ('["fe80::1%eth0/64"]', "(a list: fe80::1%eth0/64 in line 6: did you mean fe80::/64?)"),
        ("[0x7f000001]", "(a list: 0x7f000001 in line 6)"),
    ],
)
def test_what_is_no_network_is_told_with_its_line(allow: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        networks(allow)
    assert str(caught.value) == (
        f"f.yaml:6: ports[0]: invalid allow {wrong}: "
        "expected all or a list of IP addresses and networks (10.0.0.0/8)"
    )


@pytest.mark.parametrize("key", ["allow: all", "max_sessions: 2"])
def test_who_dials_out_lets_nobody_in(key: str) -> None:
    text = f"ports:\n  - name: a\n    connect: lab:1\n    device: /dev/a\n    {key}\n"
    name = key.partition(":")[0]
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f.yaml")
    assert str(caught.value) == (
        f"f.yaml:5: ports[0]: {name} with connect (line 3): expected connect without {name}, or tcp"
    )
    by_default = parse_config(f"defaults: {{{key}}}\n" + text.replace(f"    {key}\n", ""), "f.yaml")
    assert len(by_default.ports) == 1


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "unknown"),
    ],
)
def test_peers_are_counted_by_their_network(host: str, network: str) -> None:
    assert peer_network(host) == network


@pytest.mark.parametrize(
    ("host", "holder"),
    [
        ("192.0.2.7", "192.0.2.7/32"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::1/128"),
        ("", "unknown"),
    ],
)
def test_connections_are_limited_by_what_one_host_has_at_least(host: str, holder: str) -> None:
    assert peer_holder(host) == holder
