from __future__ import annotations

import sys

import pytest

from gateway.config.document import parse_config
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
