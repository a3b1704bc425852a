"""What no two ports may have in common (names, addresses and devices are in test_config.py)."""

from __future__ import annotations

import pytest

from gateway.config import GatewayConfig, parse_config
from gateway.errors import ConfigError


def config(*ports: str) -> GatewayConfig:
    return parse_config("ports:\n" + "".join(f"  - {{{port}}}\n" for port in ports), "f.yaml")


def test_a_log_file_that_another_port_writes_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        config(
            "name: a, tcp: 4001, device: /dev/a, log_file: /l/a",
            "name: b, tcp: 4002, device: /dev/b, log_file: '/l/{name}'",
            "name: c, tcp: 4003, device: /dev/c, log_file: /l/b",
        )
    assert str(caught.value) == (
        "f.yaml:4: ports[2].log_file: found /l/b again (first in line 3), "
        "accepted: a file of its own"
    )


def test_port_0_is_another_one_each_time() -> None:
    read = config("name: a, tcp: 0, device: /dev/a", "name: b, tcp: 0, device: /dev/b")
    assert [port.tcp_port for port in read.ports] == [0, 0]
