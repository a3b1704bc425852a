"""The file for labgrid-exporter: which ports are in it, where they are said to be, and why not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from gateway.config.document import GatewayConfig
from gateway.config.reader import parse_config
from gateway.labgrid_export import Export, from_config, from_service, to_yaml
from gateway.usb.pools import PoolTable, Record
from tests.support.documents import DESK

PORTS = """\
ports:
  - {name: desk, tcp: 4001, host: 0.0.0.0, device: /dev/a, baudrate: 74880}
  - {name: pipe, tcp: 4002, host: "::", device: /dev/b, protocol: raw}
  - {name: wing, tcp: 4003, host: 192.0.2.7, device: /dev/c}
  - {name: own, tcp: 4004, device: /dev/d}
  - {name: cabin, connect: "lab.example:7001", device: /dev/e}
  - {name: test, tcp: 0, host: 0.0.0.0, device: /dev/f}
  - {name: shelf, tcp: 4100-4199, host: 0.0.0.0, device: {usb: "10c4:*"}}
  - {name: attic, tcp: 4200-4299, host: 0.0.0.0, device: {usb: "1a86:*"}}
"""


TLS = """\
  - {name: safe, tcp: 4300, host: 0.0.0.0, device: /dev/g, tls: {cert: /c, key: /k}}
  - {name: vault, tcp: 4310-4320, host: 0.0.0.0, device: {usb: "0403:*"}, tls: {cert: /c, key: /k}}
"""


def config(more: str = "") -> GatewayConfig:
    return parse_config(PORTS + more, "gateway.yaml", with_files=False)


def table() -> PoolTable:
    return PoolTable([Record("shelf", 4101, "", "1-1.4", 20000)])


def addresses(export: Export) -> dict[str, tuple[str, int]]:
    return {name: (str(each["host"]), int(each["port"])) for name, each in export.resources.items()}


def test_ports_and_known_members_of_pools_are_exported_at_the_name_of_this_machine() -> None:
    export = from_config(config(), table(), "lab", is_given=False)
    assert addresses(export) == {
        "desk": ("lab", 4001),
        "pipe": ("lab", 4002),
        "wing": ("192.0.2.7", 4003),
        "shelf-4101": ("lab", 4101),
    }
    desk, pipe = export.resources["desk"], export.resources["pipe"]
    assert (desk["speed"], desk["protocol"]) == (74880, "rfc2217")
    assert (pipe["speed"], pipe["protocol"]) == (115200, "raw")


def test_each_port_that_is_left_out_is_named_with_the_reason() -> None:
    left_out = from_config(config(), table(), "lab", is_given=False).left_out
    names = [line.partition(":")[0] for line in left_out]
    assert names == ["own", "cabin", "test", "attic"]
    for line, reason in zip(
        left_out,
        ["listens at 127.0.0.1", "connects to lab.example:7001", "tcp: 0", "no board"],
        strict=True,
    ):
        assert reason in line


def test_ports_with_tls_are_left_out() -> None:
    export = from_config(config(TLS), PoolTable(), "lab", is_given=True)
    assert not {"safe", "vault"} & addresses(export).keys()
    assert [line for line in export.left_out if "TLS" in line] == [
        "safe: has TLS, which labgrid does not support",
        "vault: has TLS, which labgrid does not support",
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_for_this_machine_its_own_ports_are_exported_too(host: str) -> None:
    export = from_config(config(), table(), host, is_given=True)
    assert addresses(export)["own"] == (host, 4004)


def test_a_name_that_was_given_goes_before_the_address_of_a_port() -> None:
    export = from_config(config(), table(), "lab.example", is_given=True)
    assert addresses(export)["wing"] == ("lab.example", 4003)


def test_the_running_service_knows_its_random_ports_too() -> None:
    desk = replace(DESK, host="0.0.0.0", tcp_port=38417)
    ports = [
        desk,
        replace(desk, name="six", host="::", tcp_port=4002, protocol="raw"),
        replace(desk, name="unbound", tcp_port=None),
        replace(desk, name="cabin", connect="lab.example:7001"),
        replace(desk, name="own", host="127.0.0.1"),
        replace(desk, name="safe", tls=True),
    ]
    export = from_service(ports, "lab", is_given=False)
    assert export.resources == {
        "desk": {"host": "lab", "port": 38417, "speed": 74880, "protocol": "rfc2217"},
        "six": {"host": "lab", "port": 4002, "speed": 74880, "protocol": "raw"},
    }
    names = [line.partition(":")[0] for line in export.left_out]
    assert names == ["unbound", "cabin", "own", "safe"]


def test_the_file_has_a_group_with_one_resource_for_each_port() -> None:
    export = Export("lab", left_out=["own: far away"])
    export.add("desk", "0.0.0.0", 4001, 115200, "rfc2217")
    export.add("on", "0.0.0.0", 4002, 115200, "rfc2217")
    text = to_yaml(export)
    shown = {"host": "lab", "port": 4001, "speed": 115200, "protocol": "rfc2217"}
    assert yaml.safe_load(text) == {
        "desk": {"NetworkSerialPort": shown},
        "on": {"NetworkSerialPort": shown | {"port": 4002}},
    }
    assert "## Left out: own: far away\n" in text
    # labgrid takes a line that begins with one # for a statement of its template.
    assert all(not line.startswith("#") or line.startswith("## ") for line in text.splitlines())
