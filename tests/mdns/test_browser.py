"""What is shown of the ports that were found; that they are found is in test_mdns_announcer."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from gateway.mdns.browser import discover, to_json, to_table
from gateway.mdns.network import MISSING, MdnsError
from gateway.mdns.records import FoundPort

DESK = FoundPort(
    gateway="lab",
    gateway_id="a1b2c3",
    name="desk",
    url="rfc2217://192.0.2.7:4001",
    protocol="rfc2217",
    host="lab-esp.local",
    addresses=("192.0.2.7",),
    tcp_port=4001,
    kind="UART bridge",
    chip="CP2102N",
    usb="10c4:ea60",
    serial="8a2f1c",
    has_tls=False,
    is_present=True,
)


def test_the_table_has_a_line_for_each_port_with_what_to_paste() -> None:
    shelf = replace(
        DESK, name="shelf-4100", url="socket://192.0.2.7:4100", chip="", serial="", is_present=False
    )
    head, first, second = to_table([DESK, shelf]).splitlines()
    assert head.split() == ["GATEWAY", "PORT", "URL", "BOARD", "SERIAL"]
    assert first.split() == ["lab", "desk", "rfc2217://192.0.2.7:4001", "CP2102N", "8a2f1c"]
    assert "socket://192.0.2.7:4100   UART bridge, absent  -" in second


def test_gateways_of_one_name_are_told_apart_in_the_table() -> None:
    second = replace(DESK, gateway_id="d4e5f6", url="rfc2217://192.0.2.8:4001")
    older = replace(DESK, gateway_id="", url="rfc2217://192.0.2.9:4001")
    _, *rows = to_table([DESK, second, older]).splitlines()
    assert [row.split("  ")[0] for row in rows] == ["lab (a1b2c3)", "lab (d4e5f6)", "lab (no id)"]


def test_nobody_is_a_sentence_for_a_person_and_an_empty_list_for_a_program() -> None:
    assert to_table([]) == "no gateway has answered"
    assert json.loads(to_json([])) == []


def test_a_program_gets_all_that_is_known() -> None:
    (found,) = json.loads(to_json([DESK]))
    assert found == {
        "gateway": "lab",
        "gateway_id": "a1b2c3",
        "name": "desk",
        "url": "rfc2217://192.0.2.7:4001",
        "protocol": "rfc2217",
        "host": "lab-esp.local",
        "addresses": ["192.0.2.7"],
        "tcp_port": 4001,
        "kind": "UART bridge",
        "chip": "CP2102N",
        "usb": "10c4:ea60",
        "serial": "8a2f1c",
        "has_tls": False,
        "is_present": True,
    }


async def test_an_interface_that_is_not_there_is_an_error() -> None:
    with pytest.raises(MdnsError, match="no network interface nosuch0"):
        await discover(0.1, ["nosuch0"])


async def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with pytest.raises(MdnsError) as error:
        await discover(0.1)
    assert str(error.value) == MISSING
