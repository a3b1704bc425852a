from __future__ import annotations

import sys

import pytest

from gateway.config.reader import parse_config
from gateway.mdns import network
from gateway.mdns.network import MISSING, MdnsError, OwnAddresses, own_addresses

PORTS = """
ports:
  - {name: desk, tcp: 4001, host: 0.0.0.0, device: /dev/a}
  - {name: own, tcp: 4002, device: /dev/b}
  - {name: cabin, connect: "lab.example:7001", device: /dev/c}
  - {name: shelf, tcp: 4100-4199, host: localhost, device: {usb: "10c4:*"}}
"""


@pytest.fixture
def no_zeroconf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)


def warnings(mdns: str) -> list[str]:
    return list(network.warnings(parse_config(mdns + PORTS, "f.yaml")))


def test_ports_that_only_this_machine_reaches_are_warned_of() -> None:
    assert warnings("mdns: true") == [
        "own: not announced, it listens at 127.0.0.1 for this machine only",
        "shelf: not announced, it listens at localhost for this machine only",
    ]


def test_names_that_dns_takes_for_one_are_warned_of() -> None:
    text = """
mdns: {interfaces: [lo]}
ports:
  - {name: rack-1, tcp: 4001, device: /dev/a}
  - {name: rack.1, tcp: 4002, device: /dev/b}
  - {name: Shelf-4100, tcp: 4003, device: /dev/c}
  - {name: shelf, tcp: 4100-4109, device: {usb: "10c4:*"}}
"""
    behind = (
        "and it is announced with a number behind it: rename one of them",
        "multicast DNS takes its name for that of",
    )
    assert list(network.warnings(parse_config(text, "f.yaml"))) == [
        f"rack.1: {behind[1]} rack-1, {behind[0]}",
        f"shelf-4100: {behind[1]} Shelf-4100, {behind[0]}",
    ]


@pytest.mark.parametrize("mdns", ["", "mdns: false", "mdns: {interfaces: [lo]}"])
def test_who_does_not_announce_or_means_this_machine_is_not_warned(mdns: str) -> None:
    assert warnings(mdns) == []


def test_a_missing_package_is_an_error_with_what_to_do(no_zeroconf: None) -> None:
    assert not network.is_installed()
    with pytest.raises(MdnsError) as error:
        network.load()
    assert str(error.value) == MISSING
    assert warnings("mdns: {interfaces: [lo]}") == [f"mdns: nothing is announced, {MISSING}"]


def test_the_installed_package_is_loaded() -> None:
    assert network.is_installed()
    network.load()


@pytest.mark.parametrize("interface", ["lo", "127.0.0.1"])
def test_an_interface_is_known_by_name_and_by_address(interface: str) -> None:
    own = own_addresses([interface])
    assert "127.0.0.1" in own.addresses
    assert "127.0.0.0/8" in own.networks
    assert own.to_speak_at == ["127.0.0.1"]


def test_loopback_is_only_meant_when_it_is_named() -> None:
    assert not {"127.0.0.1", "::1"} & set(own_addresses([]).addresses)


def test_an_interface_that_is_not_there_has_no_address() -> None:
    assert own_addresses(["nosuch0", "203.0.113.1"]) == OwnAddresses((), ())


def test_without_ipv4_it_is_spoken_over_ipv6() -> None:
    assert OwnAddresses(("fd00::7", "192.0.2.7"), ()).to_speak_at == ["192.0.2.7"]
    assert OwnAddresses(("fd00::7",), ()).to_speak_at == ["fd00::7"]


def test_hosts_are_set_apart_by_their_network_interface() -> None:
    first, second = (
        network.host_id(OwnAddresses(("192.0.2.7",), (), hardware))
        for hardware in ("dc:a6:32:a1:b2:c3", "dc:a6:32:a1:b2:c4")
    )
    assert (first, second) == ("a1b2c3", "a1b2c4")
    # Loopback has no hardware; nobody else is there.
    assert own_addresses(["lo"]).hardware == ""
    alone = network.host_id(own_addresses(["lo"]))
    assert len(alone) == 6
    assert alone == network.host_id(own_addresses(["127.0.0.1"]))
