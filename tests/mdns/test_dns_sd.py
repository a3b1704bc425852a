"""Records of ports in DNS service discovery: made, understood, and shown."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

import pytest

from gateway.config.reader import parse_config
from gateway.mdns import dns_sd
from gateway.mdns.dns_sd import (
    MISSING,
    Announcement,
    FoundPort,
    Host,
    MdnsError,
    OwnAddresses,
    PortFacts,
    announced,
    discover,
    label_key,
    own_addresses,
    suffixed,
    to_json,
    to_table,
    understood,
)
from gateway.port_document import PortState, UsbDocument
from tests.support import documents

OWN = ("192.0.2.7", "198.51.100.7", "fd00::7", "fe80::7")
HOST = Host("lab", "a1b2c3", OWN)
DESK = PortFacts(
    name="desk",
    addresses=("0.0.0.0",),
    tcp_port=4001,
    protocol="rfc2217",
    usb=UsbDocument("10c4:ea60", "UART bridge", "CP2102N", "8a2f1c"),
)
FOUND = FoundPort(
    gateway="lab",
    gateway_id="a1b2c3",
    name="desk",
    url="rfc2217://192.0.2.7:4001",
    protocol="rfc2217",
    host="lab-esp-a1b2c3.local",
    addresses=("192.0.2.7", "198.51.100.7"),
    tcp_port=4001,
    tls=False,
    usb=UsbDocument("10c4:ea60", "UART bridge", "CP2102N", "8a2f1c"),
    is_present=True,
)


def test_the_announced_part_of_a_document() -> None:
    facts = PortFacts.of(documents.DESK)
    assert facts == replace(DESK, addresses=("127.0.0.1",))
    assert PortFacts.of(replace(documents.DESK, tcp_port=None)) is None
    absent = PortFacts.of(replace(documents.DESK, state=PortState.ABSENT, usb=None))
    assert absent is not None
    assert (absent.is_present, absent.usb) == (False, UsbDocument(""))


def announcement(host: Host = HOST, number: int = 1, **changes: object) -> Announcement:
    made = announced(host, replace(DESK, **changes), number)  # type: ignore[arg-type]
    assert made is not None
    return made


def heard(sent: Announcement, own_networks: tuple[str, ...] = ()) -> FoundPort:
    """The port that a receiver makes of an announcement."""
    txt: dict[bytes, bytes | None] = {key.encode(): value.encode() for key, value in sent.txt}
    port = understood(txt, sent.server, sent.addresses, sent.tcp_port, own_networks)
    assert port is not None
    return port


def label(sent: Announcement) -> str:
    return sent.instance.removesuffix(f".{sent.type}")


def test_an_announcement_is_understood() -> None:
    sent = announcement()
    assert (sent.type, label(sent)) == ("_rfc2217._tcp.local.", "desk on lab")
    assert sent.server == "lab-esp-a1b2c3.local."
    assert heard(sent) == FOUND
    assert not heard(announcement(is_present=False)).is_present


@pytest.mark.parametrize(
    ("protocol", "tls", "service", "stack", "scheme"),
    [
        ("rfc2217", False, "_rfc2217", "telnet(rfc2217),tcp", "rfc2217"),
        ("rfc2217", True, "_rfc2217", "telnet(rfc2217),ssl,tcp", "tls"),
        ("raw", False, "_iostream", "tcp", "socket"),
        ("raw", True, "_iostream", "ssl,tcp", "tls"),
    ],
)
def test_type_gensio_stack_and_url_name_the_protocol(
    protocol: str, tls: bool, service: str, stack: str, scheme: str
) -> None:
    sent = announcement(protocol=protocol, tls=tls)
    assert sent.type == f"{service}._tcp.local."
    assert dict(sent.txt)["gensiostack"] == stack
    port = heard(sent)
    assert (port.url, port.tls) == (f"{scheme}://192.0.2.7:4001", tls)


@pytest.mark.parametrize(
    ("listens_at", "addresses"),
    [
        (("0.0.0.0",), ("192.0.2.7", "198.51.100.7")),
        (("::",), ("fd00::7", "fe80::7")),
        (("0.0.0.0", "::"), ("192.0.2.7", "198.51.100.7", "fd00::7", "fe80::7")),
        (("198.51.100.7",), ("198.51.100.7",)),
        (("fe80::7%eth0",), ("fe80::7",)),
    ],
)
def test_a_port_is_announced_at_the_addresses_that_reach_it(
    listens_at: tuple[str, ...], addresses: tuple[str, ...]
) -> None:
    assert announcement(addresses=listens_at).addresses == addresses


@pytest.mark.parametrize("listens_at", [(), ("127.0.0.1",), ("127.0.0.1", "::1"), ("203.0.113.1",)])
def test_an_unreachable_port_is_not_announced(listens_at: tuple[str, ...]) -> None:
    assert announced(HOST, replace(DESK, addresses=listens_at)) is None


def test_ports_at_other_addresses_and_gateways_of_one_name_have_other_host_names() -> None:
    ways = [("0.0.0.0",), ("::",), ("0.0.0.0", "::"), ("192.0.2.7",), ("fd00::7",)]
    servers = {announcement(addresses=way).server for way in ways}
    assert len(servers) == len(ways)
    other = announcement(replace(HOST, id="d4e5f6"))
    assert other.server not in servers
    assert (heard(other).gateway, heard(other).gateway_id) == ("lab", "d4e5f6")
    assert other.instance == announcement().instance
    assert label(suffixed(other, "d4e5f6")) == "desk on lab-d4e5f6"


@pytest.mark.parametrize("names", [("rack-1", "rack.1"), ("Desk", "desk", "DESK")])
def test_names_that_are_equal_in_dns_get_numbers(names: tuple[str, ...]) -> None:
    assert len({label_key(name) for name in names}) == 1
    sent = [announcement(number=number, name=name) for number, name in enumerate(names, 1)]
    assert len({each.instance.casefold() for each in sent}) == len(names)
    assert [dict(each.txt)["name"] for each in sent] == list(names)


def test_names_and_texts_fit_into_dns() -> None:
    host = replace(HOST, gateway="The lab of 2nd floor, room 203, left")
    sent = announcement(host, name="n.1" + 29 * "x", usb=UsbDocument("", serial=126 * "€"))
    for each in (sent, suffixed(sent, "a1b2c3")):
        assert len(label(each).encode()) <= 63
        assert "." not in label(each)
    assert len(sent.server.partition(".")[0]) <= 63
    assert all(len(f"{key}={value}".encode()) <= 255 for key, value in sent.txt)
    assert dict(sent.txt)["serial"].strip("€") == ""


def test_host_names_of_long_addresses_fit_and_differ() -> None:
    ways = [f"2001:db8:1111:2222:3333:4444:5555:{last:x}" for last in (0x6666, 0x6667)]
    host = Host(40 * "g", "a1b2c3", tuple(ways))
    labels = {announcement(host, addresses=(way,)).server.partition(".")[0] for way in ways}
    assert len(labels) == 2
    assert all(len(each) <= 63 for each in labels)


def test_unknown_texts_are_left_out() -> None:
    sent = announcement(usb=UsbDocument(""))
    assert not {"kind", "chip", "usb", "serial"} & dict(sent.txt).keys()


OURS: dict[bytes, bytes | None] = {b"provider": b"esp-serial-gateway", b"protocol": b"raw"}


@pytest.mark.parametrize(
    ("txt", "addresses"),
    [
        ({}, ["192.0.2.7"]),
        (OURS | {b"provider": b"ser2net"}, ["192.0.2.7"]),
        (OURS | {b"protocol": b"gopher"}, ["192.0.2.7"]),
        ({b"provider": OURS[b"provider"]}, ["192.0.2.7"]),
        ({b"provider": None, b"protocol": b"\xff"}, ["192.0.2.7"]),
        (OURS, []),
    ],
)
def test_other_announcements_are_no_port_of_a_gateway(
    txt: dict[bytes, bytes | None], addresses: list[str]
) -> None:
    assert understood(OURS, "lab.local.", ["192.0.2.7"], 4001) is not None
    assert understood(txt, "lab.local.", addresses, 4001) is None


def test_texts_from_the_network_do_not_control_a_terminal() -> None:
    txt = OURS | {b"Name": b"\x1b[2Jdesk\n\xff" + 500 * b"x"}
    port = understood(txt, "l\x1bab.local.", ["192.0.2.7"], 4001)
    assert port is not None
    assert port.name.startswith("?[2Jdesk?\N{REPLACEMENT CHARACTER}xx")
    assert len(port.name) == 120
    assert port.host == "l?ab.local"


def test_the_url_has_the_address_of_a_network_of_ours() -> None:
    port = heard(announcement(), ("127.0.0.0/8", "198.51.100.0/24", "fd00::/64"))
    assert port.url == "rfc2217://198.51.100.7:4001"
    assert heard(announcement(addresses=("fd00::7",))).url == "rfc2217://[fd00::7]:4001"


# --- for a person and a program


def test_the_table_has_a_line_per_port_with_its_url() -> None:
    shelf = replace(FOUND, name="shelf-4100", usb=UsbDocument("", "UART bridge"), is_present=False)
    head, first, second = to_table([FOUND, shelf]).splitlines()
    assert head.split() == ["GATEWAY", "PORT", "URL", "BOARD", "SERIAL"]
    assert first.split() == ["lab", "desk", "rfc2217://192.0.2.7:4001", "CP2102N", "8a2f1c"]
    assert "rfc2217://192.0.2.7:4001  UART bridge, absent  -" in second
    assert to_table([]) == "no gateway has answered"


def test_the_table_distinguishes_gateways_of_one_name() -> None:
    gateways = [replace(FOUND, gateway_id=each) for each in ("a1b2c3", "d4e5f6", "")]
    _, *rows = to_table(gateways).splitlines()
    assert [row.split("  ")[0] for row in rows] == ["lab (a1b2c3)", "lab (d4e5f6)", "lab (no id)"]


def test_json_has_all_fields() -> None:
    assert json.loads(to_json([])) == []
    assert json.loads(to_json([FOUND])) == [asdict(FOUND) | {"addresses": list(FOUND.addresses)}]


# --- this host


@pytest.mark.parametrize("interface", ["lo", "127.0.0.1"])
def test_an_interface_is_given_by_name_or_address(interface: str) -> None:
    own = own_addresses([interface])
    assert "127.0.0.1" in own.addresses
    assert "127.0.0.0/8" in own.networks
    assert own.to_speak_at == ["127.0.0.1"]


def test_loopback_and_missing_interfaces_have_no_address() -> None:
    assert not {"127.0.0.1", "::1"} & set(own_addresses([]).addresses)
    assert own_addresses(["nosuch0", "203.0.113.1"]) == OwnAddresses((), ())


def test_multicast_dns_is_spoken_over_ipv6_without_ipv4() -> None:
    assert OwnAddresses(("fd00::7", "192.0.2.7"), ()).to_speak_at == ["192.0.2.7"]
    assert OwnAddresses(("fd00::7",), ()).to_speak_at == ["fd00::7"]


def test_a_host_is_identified_by_its_network_interface() -> None:
    macs = ("dc:a6:32:a1:b2:c3", "dc:a6:32:a1:b2:c4")
    ids = [OwnAddresses(("192.0.2.7",), (), mac).host_id for mac in macs]
    assert ids == ["a1b2c3", "a1b2c4"]
    # Loopback has no hardware.
    alone = own_addresses(["lo"])
    assert (alone.hardware, len(alone.host_id)) == ("", 6)
    assert alone.host_id == own_addresses(["127.0.0.1"]).host_id


# --- the package, and warnings


PORTS = """
ports:
  - {name: desk, tcp: 4001, host: 0.0.0.0, device: /dev/a}
  - {name: own, tcp: 4002, device: /dev/b}
  - {name: cabin, connect: "lab.example:7001", device: /dev/c}
  - {name: shelf, tcp: 4100-4199, host: localhost, device: {usb: "10c4:*"}}
"""


def warnings(mdns: str, ports: str = PORTS) -> list[str]:
    return list(dns_sd.warnings(parse_config(mdns + ports, "f.yaml")))


def test_ports_for_this_machine_only_cause_a_warning() -> None:
    assert warnings("mdns: true") == [
        "own: not announced, it listens at 127.0.0.1 for this machine only",
        "shelf: not announced, it listens at localhost for this machine only",
    ]


@pytest.mark.parametrize("mdns", ["", "mdns: false", "mdns: {interfaces: [lo]}"])
def test_no_warning_without_announcements_or_for_this_machine_on_purpose(mdns: str) -> None:
    assert warnings(mdns) == []


def test_names_that_are_equal_in_dns_cause_a_warning() -> None:
    ports = """
ports:
  - {name: rack-1, tcp: 4001, device: /dev/a}
  - {name: rack.1, tcp: 4002, device: /dev/b}
  - {name: Shelf-4100, tcp: 4003, device: /dev/c}
  - {name: shelf, tcp: 4100-4109, device: {usb: "10c4:*"}}
"""
    pairs = [("rack.1", "rack-1"), ("shelf-4100", "Shelf-4100")]
    assert warnings("mdns: {interfaces: [lo]}", ports) == [
        f"{name}: multicast DNS takes its name for that of {other}, and it is announced with a"
        " number behind it: rename one of them"
        for name, other in pairs
    ]


async def test_a_missing_package_is_an_error_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert dns_sd.is_installed()
    dns_sd.load()
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    assert not dns_sd.is_installed()
    assert warnings("mdns: {interfaces: [lo]}") == [f"mdns: nothing is announced, {MISSING}"]
    with pytest.raises(MdnsError) as error:
        await discover(0.1)
    assert str(error.value) == MISSING


async def test_discovery_at_a_missing_interface_is_an_error() -> None:
    with pytest.raises(MdnsError, match="no network interface nosuch0"):
        await discover(0.1, ["nosuch0"])


async def test_discovery_without_a_network_asks_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    real = dns_sd.own_addresses
    monkeypatch.setattr(dns_sd, "own_addresses", lambda names: real(names or ("nosuch0",)))
    assert await discover(0.0) == []
