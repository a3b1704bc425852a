"""What is said of a port by multicast DNS, and what is made of what others say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.mdns.records import (
    Announcement,
    FoundPort,
    Host,
    PortFacts,
    announced,
    label_key,
    suffixed,
    understood,
)

OWN = ("192.0.2.7", "198.51.100.7", "fd00::7", "fe80::7")

DESK = PortFacts(
    name="desk",
    listens_at=("0.0.0.0",),
    tcp_port=4001,
    protocol="rfc2217",
    kind="UART bridge",
    chip="CP2102N",
    usb="10c4:ea60",
    serial="8a2f1c",
)


def announcement(facts: PortFacts, gateway: str = "lab") -> Announcement:
    found = announced(Host(gateway, "a1b2c3", OWN), facts)
    assert found is not None
    return found


def heard(said: Announcement, own_networks: tuple[str, ...] = ()) -> FoundPort | None:
    """What who hears it makes of it."""
    txt: dict[bytes, bytes | None] = {key.encode(): value.encode() for key, value in said.txt}
    return understood(txt, said.server, said.addresses, said.tcp_port, own_networks)


def test_what_is_announced_is_understood() -> None:
    said = announcement(DESK)
    assert said.type == "_rfc2217._tcp.local."
    assert said.instance == "desk on lab._rfc2217._tcp.local."
    assert heard(said) == FoundPort(
        gateway="lab",
        gateway_id="a1b2c3",
        name="desk",
        url="rfc2217://192.0.2.7:4001",
        protocol="rfc2217",
        host=said.server.rstrip("."),
        addresses=("192.0.2.7", "198.51.100.7"),
        tcp_port=4001,
        kind="UART bridge",
        chip="CP2102N",
        usb="10c4:ea60",
        serial="8a2f1c",
        has_tls=False,
        is_present=True,
    )


def test_a_raw_port_is_a_byte_stream_with_a_socket_url() -> None:
    said = announcement(replace(DESK, protocol="raw"))
    assert said.type == "_iostream._tcp.local."
    port = heard(said)
    assert port is not None
    assert port.url == "socket://192.0.2.7:4001"


@pytest.mark.parametrize(
    ("protocol", "stack"), [("rfc2217", "telnet(rfc2217),tcp"), ("raw", "tcp")]
)
def test_gensios_clients_are_told_what_is_spoken(protocol: str, stack: str) -> None:
    assert dict(announcement(replace(DESK, protocol=protocol)).txt)["gensiostack"] == stack


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
def test_a_port_is_announced_where_it_can_be_reached(
    listens_at: tuple[str, ...], addresses: tuple[str, ...]
) -> None:
    assert announcement(replace(DESK, listens_at=listens_at)).addresses == addresses


@pytest.mark.parametrize("listens_at", [(), ("127.0.0.1",), ("127.0.0.1", "::1"), ("203.0.113.1",)])
def test_a_port_that_nobody_can_reach_there_is_not_announced(listens_at: tuple[str, ...]) -> None:
    assert announced(Host("lab", "a1b2c3", OWN), replace(DESK, listens_at=listens_at)) is None


def test_ports_at_other_addresses_are_on_a_host_of_another_name() -> None:
    ways = [
        ("0.0.0.0",),
        ("::",),
        ("0.0.0.0", "::"),
        ("192.0.2.7",),
        ("198.51.100.7",),
        ("fd00::7",),
    ]
    servers = {announcement(replace(DESK, listens_at=way)).server for way in ways}
    assert len(servers) == len(ways)
    assert all(server.startswith("lab-esp-a1b2c3") for server in servers)
    assert announcement(DESK).server == "lab-esp-a1b2c3.local."


def test_gateways_of_one_name_are_hosts_of_two() -> None:
    first, second = (announced(Host("lab", each, OWN), DESK) for each in ("a1b2c3", "d4e5f6"))
    assert first is not None
    assert second is not None
    assert first.server != second.server
    assert first.instance == second.instance
    assert suffixed(first, "a1b2c3").instance == "desk on lab-a1b2c3._rfc2217._tcp.local."
    found = heard(first), heard(second)
    assert [port and (port.gateway, port.gateway_id) for port in found] == [
        ("lab", "a1b2c3"),
        ("lab", "d4e5f6"),
    ]


@pytest.mark.parametrize("names", [("rack-1", "rack.1"), ("Desk", "desk", "DESK")])
def test_names_that_dns_takes_for_one_get_numbers(names: tuple[str, ...]) -> None:
    assert len({label_key(name) for name in names}) == 1
    found = [
        announced(Host("lab", "a1b2c3", OWN), replace(DESK, name=name), number)
        for number, name in enumerate(names, 1)
    ]
    labels = {each.instance.casefold() for each in found if each is not None}
    assert len(labels) == len(names)
    assert [dict(each.txt)["name"] for each in found if each is not None] == list(names)


def test_names_fit_the_labels_of_dns() -> None:
    said = announcement(
        replace(DESK, name="n.1" + 29 * "x"), "The lab of 2nd floor, room 203, left"
    )
    for each in (said, suffixed(said, "a1b2c3")):
        label = each.instance.removesuffix("._rfc2217._tcp.local.")
        assert len(label.encode()) <= 63
        assert "." not in label
    assert len(said.server.partition(".")[0]) <= 63


def test_host_names_of_long_addresses_fit_and_differ() -> None:
    ways = [f"2001:db8:1111:2222:3333:4444:5555:{last:x}" for last in (0x6666, 0x6667)]
    host = Host(40 * "g", "a1b2c3", tuple(ways))
    found = [announced(host, replace(DESK, listens_at=(way,))) for way in ways]
    labels = {each.server.partition(".")[0] for each in found if each is not None}
    assert len(labels) == 2
    assert all(len(label) <= 63 for label in labels)


def test_texts_fit_the_strings_of_a_txt_record() -> None:
    said = announcement(replace(DESK, serial=126 * "€"))
    assert all(len(f"{key}={value}".encode()) <= 255 for key, value in said.txt)
    assert dict(said.txt)["serial"].strip("€") == ""


def test_what_is_not_known_is_left_out() -> None:
    said = announcement(replace(DESK, kind="", chip="", usb="", serial=""))
    assert not {"kind", "chip", "usb", "serial"} & dict(said.txt).keys()


@pytest.mark.parametrize("protocol", ["rfc2217", "raw"])
def test_a_port_with_tls_has_a_url_that_no_tool_takes_for_one_without(protocol: str) -> None:
    said = announcement(replace(DESK, protocol=protocol, has_tls=True))
    assert "ssl,tcp" in dict(said.txt)["gensiostack"]
    port = heard(said)
    assert port is not None
    assert (port.url, port.has_tls) == ("tls://192.0.2.7:4001", True)


def test_an_absent_board_is_announced_as_such() -> None:
    port = heard(announcement(replace(DESK, is_present=False)))
    assert port is not None
    assert not port.is_present


@pytest.mark.parametrize(
    "txt",
    [
        {},
        {b"provider": b"ser2net", b"protocol": b"rfc2217"},
        {b"provider": b"esp-serial-gateway"},
        {b"provider": b"esp-serial-gateway", b"protocol": b"gopher"},
        {b"provider": None, b"protocol": b"\xff"},
    ],
)
def test_what_others_announce_is_no_port_of_a_gateway(txt: dict[bytes, bytes | None]) -> None:
    assert understood(txt, "lab.local.", ["192.0.2.7"], 4001) is None


def test_a_port_without_an_address_is_none() -> None:
    txt: dict[bytes, bytes | None] = {b"provider": b"esp-serial-gateway", b"protocol": b"raw"}
    assert understood(txt, "lab.local.", [], 4001) is None


def test_texts_from_the_network_do_not_control_a_terminal() -> None:
    txt: dict[bytes, bytes | None] = {
        b"provider": b"esp-serial-gateway",
        b"Protocol": b"rfc2217",
        b"name": b"\x1b[2Jdesk\n\xff" + 500 * b"x",
    }
    port = understood(txt, "l\x1bab.local.", ["192.0.2.7"], 4001)
    assert port is not None
    assert port.name.startswith("?[2Jdesk?\N{REPLACEMENT CHARACTER}xx")
    assert len(port.name) == 120
    assert port.host == "l?ab.local"


def test_of_several_addresses_the_url_has_that_of_a_network_of_ours() -> None:
    said = announcement(DESK)
    port = heard(said, ("127.0.0.0/8", "198.51.100.0/24", "fd00::/64"))
    assert port is not None
    assert port.url == "rfc2217://198.51.100.7:4001"
    ours = heard(announcement(replace(DESK, listens_at=("fd00::7",))))
    assert ours is not None
    assert ours.url == "rfc2217://[fd00::7]:4001"
