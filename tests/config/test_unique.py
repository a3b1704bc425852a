"""What no two ports may have in common: pools and matches (the rest is in test_document.py)."""

from __future__ import annotations

import pytest

from gateway.config.document import GatewayConfig
from gateway.config.reader import parse_config
from gateway.errors import ConfigError


def config(*ports: str) -> GatewayConfig:
    return parse_config("ports:\n" + "".join(f"  - {{{port}}}\n" for port in ports), "f.yaml")


def problems(*ports: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(*ports)
    return str(caught.value).splitlines()


def test_a_pool_and_ports_beside_it_are_right() -> None:
    read = config(
        "name: a, tcp: 4001, device: {usb: '10c4:ea60', serial: x}",
        "name: b, tcp: 4100, host: 127.0.0.2, device: {location: 1-1}",
        "name: shelf, tcp: 4100-4199, device: {usb: '10c4:*'}",
        "name: other, tcp: 4200-4299, device: {usb: '1a86:*'}",
    )
    assert [port.name for port in read.ports] == ["a", "b"]
    assert [(pool.name, pool.tcp_ports) for pool in read.pools] == [
        ("shelf", range(4100, 4200)),
        ("other", range(4200, 4300)),
    ]
    member = read.pools[0].port(4107)
    assert (member.name, member.tcp_port, member.host) == ("shelf-4107", 4107, "127.0.0.1")


def test_a_pool_alone_is_a_file() -> None:
    assert config("name: shelf, tcp: 4100-4199, device: {usb: '*:*'}").ports == ()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_inside_a_pool_s_range_is_refused(host: str) -> None:
    (line,) = problems(
        "name: shelf, tcp: 4100-4199, device: {usb: '10c4:*'}",
        f"name: a, tcp: 4150, host: {host}, device: /dev/a",
    )
    assert line.startswith("f.yaml:3: ports[1]: duplicate tcp '4150' (first in line 2)")


@pytest.mark.parametrize("device", ["/dev/ttyUSB0", "sim://esp32", "[/dev/a, {serial: a}]"])
def test_a_pool_takes_matches_only(device: str) -> None:
    (line,) = problems(f"name: shelf, tcp: 4100-4199, device: {device}")
    assert line.startswith("f.yaml:2: ports[0]: invalid device ")
    assert line.endswith(" of a pool: expected matches only")


def test_a_match_that_takes_in_another_port_s_is_refused() -> None:
    (line,) = problems(
        "name: a, tcp: 4001, device: {usb: '10c4:ea60'}",
        "name: b, tcp: 4002, device: [{serial: y}, {usb: '10c4:ea60', serial: x}]",
    )
    fits = "device 'usb 10c4:ea60, serial x' fits the match in line 2 too"
    assert line.startswith(f"f.yaml:3: ports[1]: {fits}")


def test_pools_are_compared_with_pools_only() -> None:
    (line,) = problems(
        "name: a, tcp: 4001, device: {usb: '10c4:ea60'}",
        "name: one, tcp: 4100-4199, device: {usb: '10c4:*'}",
        "name: two, tcp: 4200-4299, device: {usb: '10c4:ea60'}",
    )
    assert line.startswith("f.yaml:4: ports[2]: device 'usb 10c4:ea60' fits the match in line 3")


def test_a_path_in_a_list_is_a_device_too() -> None:
    (line,) = problems(
        "name: a, tcp: 4001, device: /dev/ttyUSB0",
        "name: b, tcp: 4002, device: [{serial: x}, //dev/ttyUSB0]",
    )
    assert line.startswith("f.yaml:3: ports[1]: duplicate device 'serial x or //dev/ttyUSB0'")


def test_port_0_is_another_one_each_time() -> None:
    read = config("name: a, tcp: 0, device: /dev/a", "name: b, tcp: 0, device: /dev/b")
    assert [port.tcp_port for port in read.ports] == [0, 0]


def test_a_pool_s_ports_need_log_files_of_their_own() -> None:
    pool = "name: shelf, tcp: 4100-4199, device: {usb: '10c4:*'}"
    (line,) = problems(f"{pool}, log_file: /l/shelf")
    assert line.startswith("f.yaml:2: ports[0]: invalid log_file '/l/shelf' of a pool: expected ")
    read = config(f"{pool}, log_file: '/l/{{name}}'")
    assert read.pools[0].port(4107).recording.log_file == "/l/shelf-4107"
