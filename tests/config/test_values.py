import pytest
import yaml

from gateway.config.document import Address
from gateway.config.values import ADDRESS


def node(text: str) -> yaml.Node:
    composed = yaml.compose(text, Loader=yaml.SafeLoader)
    assert composed is not None
    return composed


@pytest.mark.parametrize(
    ("written", "host", "tcp_port"),
    [
        ("lab.example:7000", "lab.example", 7000),
        ("lab:1", "lab", 1),
        ("192.0.2.1:65535", "192.0.2.1", 65535),
        ('"[::1]:7000"', "::1", 7000),
        ('"[fe80::1%eth0]:7000"', "fe80::1%eth0", 7000),
    ],
)
def test_an_address_is_a_host_and_a_tcp_port(written: str, host: str, tcp_port: int) -> None:
    address = ADDRESS.read(node(written))
    assert address == Address(host, tcp_port)
    assert str(address) == written.strip('"')


@pytest.mark.parametrize(
    "written",
    [
        "lab.example",
        "7000",
        ":7000",
        "lab:",
        "lab:0",
        "lab:65536",
        "lab:" + "9" * 5000,
        "lab:\N{ARABIC-INDIC DIGIT SEVEN}",
        "lab: 7000",
        "lab:http",
        "::1:7000",
        '"[lab]:7000"',
        '"[192.0.2.1]:7000"',
        '"[]:7000"',
        '"[::1:7000"',
        "tcp://lab:7000",
        "300.1.1.1:7000",
        '"lab\\n:7000"',
        "",
    ],
)
def test_what_is_no_address_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        ADDRESS.read(node(written or "''"))
