"""How boards and their gateway are named."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.flash.target import (
    Address,
    Target,
    TargetError,
    find_names,
    read_address,
    read_target,
)

PORTS: list[dict[str, Any]] = [
    {"name": "desk", "tcp_port": 4001},
    {"name": "4002", "tcp_port": 4003},
    {"name": "nat", "tcp_port": None},
]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("lab:4001", Target("lab", (4001,))),
        ("lab:4001,4002", Target("lab", (4001, 4002))),
        ("10.0.0.5:4001", Target("10.0.0.5", (4001,))),
        ("[fe80::1]:4001", Target("fe80::1", (4001,))),
        ("lab/desk,4002", Target("lab", ("desk", "4002"))),
        ("rfc2217://lab:4001?ign_set_control", Target("lab", (4001,))),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert read_target(text) == target


@pytest.mark.parametrize(
    "text", ["", "lab", "lab:", "lab:x", "lab:0", "lab:70000", "lab:4001,", "lab:4001,4001", ":1"]
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(TargetError):
        read_target(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (None, "http://lab:8080"),
        ("", "http://lab:8080"),
        ("other", "http://other:8080"),
        ("other:81", "http://other:81"),
        ("https://other", "https://other:443"),
        ("https://other:8443/", "https://other:8443"),
        ("[::1]:81", "http://[::1]:81"),
    ],
)
def test_addresses(text: str | None, address: str) -> None:
    assert str(read_address(text, "lab")) == address


@pytest.mark.parametrize(
    "text", ["ftp://lab", "http://", "http://lab:x", "lab/api", "http://[::1", "http://lab:99999"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(TargetError):
        read_address(text, "lab")


def test_ports_are_found_by_tcp_port_and_by_name() -> None:
    assert find_names(Target("lab", (4001, 4003)), PORTS, "lab") == ["desk", "4002"]
    assert find_names(Target("lab", ("nat", "4002")), PORTS, "lab") == ["nat", "4002"]


def test_what_is_not_there_is_told_with_what_is() -> None:
    with pytest.raises(TargetError) as refused:
        find_names(Target("lab", (4002,)), PORTS, "http://lab:8080")
    assert str(refused.value) == (
        "http://lab:8080 has no port 4002; it has: desk (4001), 4002 (4003), nat (no TCP port)"
    )
    with pytest.raises(TargetError, match="it has: none"):
        find_names(Target("lab", ("desk",)), [], "lab")


def test_a_port_that_connects_to_its_client_is_suggested_by_its_name() -> None:
    dialing: list[dict[str, Any]] = [
        {"name": name, "tcp_port": None, "host": None, "address": f"to far.example:{tcp_port}"}
        for name, tcp_port in (("cabin", 7001), ("barn", 7002))
    ]
    # Not bound at the moment: its number is right.
    unbound = {"name": "shelf", "tcp_port": None, "host": "0.0.0.0", "address": ""}
    ports = [*PORTS, unbound, *dialing]
    hint = ". A port that connects to its client is meant by its name: "
    for host, board, names in (
        ("lab", 7001, "lab/cabin"),
        ("fd00::1", 7002, "[fd00::1]/barn"),
        ("lab", 9, "lab/cabin or lab/barn"),
    ):
        with pytest.raises(TargetError) as refused:
            find_names(Target(host, (board,)), ports, "http://lab:8080")
        assert str(refused.value).endswith(hint + names)
    assert find_names(Target("lab", ("cabin",)), ports, "lab") == ["cabin"]
    with pytest.raises(TargetError) as refused:
        find_names(Target("lab", ("attic",)), ports, "lab")
    assert hint not in str(refused.value)


def test_one_port_by_two_names_is_refused() -> None:
    with pytest.raises(TargetError, match="named twice"):
        find_names(Target("lab", (4001, "desk")), PORTS, "lab")


def test_an_address_knows_tls() -> None:
    assert read_address("https://lab:8443", "x") == Address("lab", 8443, tls=True)
