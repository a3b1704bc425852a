"""How each value is written: accepted up to its limits, rejected beyond them."""

from __future__ import annotations

import ipaddress
import re
from enum import Enum
from typing import Any

import pytest

from gateway.config.document import (
    EVERYBODY,
    Address,
    HttpConfig,
    MdnsConfig,
    Networks,
    PortConfig,
    peer_holder,
    peer_network,
)
from gateway.config.schema import MAX_ALTERNATIVES, PORT_KEYS, Key, NoDefault
from gateway.config.usb_match import DeviceChoice, UsbMatch
from gateway.net.tls_context import Tls
from gateway.protocol.reset import (
    AUTO_REST,
    BOTH,
    IDLE,
    STRAP,
    LinesAtRest,
    parse_sequence,
)
from tests.config.documents import (
    connecting,
    parsed,
    parsed_port,
    port,
    ports,
    problems,
    schema_errors,
)


def value_of(config: PortConfig, key: str) -> object:
    parts: tuple[Any, ...] = (
        config.serial,
        config.resets,
        config.recording,
        config.limits,
        config.access,
        config,
    )
    return next(getattr(part, key) for part in parts if hasattr(part, key))


BY_PATH = "/dev/serial/by-path/platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1.1:1.0"


def match(**criteria: Any) -> DeviceChoice:
    return DeviceChoice((UsbMatch(**criteria),))


def rows(table: str) -> list[tuple[str, str]]:
    """Key and value of each case: a row is a key and its values, two spaces apart."""
    split = (re.split("  +", row) for row in table.strip().splitlines())
    return [(key, written) for key, *values in split for written in values]


@pytest.mark.parametrize(
    ("key", "text"),
    rows(
        f"""
name      a  _-.09azAZ  a..  {"x" * 32}  007  08
host      0.0.0.0  ::  fe80::1%eth0  my_pi.lab-2.example.
log_file  /log  /l{"o" * 300}g/.a
"""
    ),
)
def test_text_is_read_as_written(key: str, text: str) -> None:
    assert value_of(parsed_port(**{key: f'"{text}"'}), key) == text
    assert ":" in text or value_of(parsed_port(**{key: text}), key) == text


@pytest.mark.parametrize(
    ("key", "written"),
    rows(
        """
baudrate           1  4294967295
bytesize           5  8
max_sessions       1  1000
hold_s             0.05  5
grace_s            0  300
idle_timeout_s     0  604800
client_buffer_kib  0  65536
record_kib         0  65536
log_max_kib        16  1048576
log_keep           0  99
"""
    ),
)
def test_numbers_are_accepted_up_to_their_limits(key: str, written: str) -> None:
    assert value_of(parsed_port(**{key: written}), key) == float(written)


@pytest.mark.parametrize(
    "key",
    [
        key
        for key in PORT_KEYS
        if isinstance(key.default, Enum) and not isinstance(key.default, NoDefault)
    ],
    ids=lambda key: key.name,
)
def test_each_word_of_an_enum_is_accepted(key: Key) -> None:
    assert isinstance(key.default, Enum)
    for word in key.type.expected.removesuffix(" or a reset sequence").split(", "):
        for written in (word, f'"{word}"'):
            assert value_of(parsed_port(**{key.name: written}), key.name) == type(key.default)(word)


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("device", BY_PATH, DeviceChoice((BY_PATH,))),
        ("device", "sim://esp32", DeviceChoice(("sim://esp32",))),
        ("device", "{usb: '10c4:ea60'}", match(vendor_id=0x10C4, product_id=0xEA60)),
        ("device", "{usb: 10C4:EA60}", match(vendor_id=0x10C4, product_id=0xEA60)),
        ("device", "{usb: 10c4:*}", match(vendor_id=0x10C4)),
        ("device", "{usb: '*:*'}", match(any_usb=True)),
        # YAML takes these for numbers.
        ("device", "{serial: 0001}", match(serial="0001")),
        ("device", "{serial: 12:30}", match(serial="12:30")),
        ("device", "{usb: 1234:5678}", match(vendor_id=0x1234, product_id=0x5678)),
        ("device", "{location: 1-1.3}", match(location="1-1.3")),
        ("device", "{location: 2-10}", match(location="2-10")),
        (
            "device",
            "{location: '1-1.3:1.2'}",
            match(location="1-1.3", configuration=1, interface=2),
        ),
        ("device", "{serial: x, interface: 1}", match(serial="x", interface=1)),
        (
            "device",
            "[{serial: a}, /dev/serial/by-id/b, {location: 1-1}]",
            DeviceChoice((UsbMatch(serial="a"), "/dev/serial/by-id/b", UsbMatch(location="1-1"))),
        ),
        ("accept_any_protocol", "true", True),
        ("reset", "D0|R1|W0.1|D1|R0|W0.05|D0", parse_sequence("D0|R1|W0.1|D1|R0|W0.05|D0")),
        ("reset", '"U0,0"', parse_sequence("U0,0")),
        ("hard_reset", "R1|W0.1|R0", parse_sequence("R1|W0.1|R0")),
        ("rest", "auto", AUTO_REST),
        ("rest", "{dtr: on, rts: off}", LinesAtRest(STRAP)),
        ("rest", "{rts: false, dtr: true}", LinesAtRest(STRAP)),
        ("rest", '{dtr: "on", rts: "off"}', LinesAtRest(STRAP)),
        ("rest", "{dtr: on}", LinesAtRest(BOTH)),
        ("rest", "{rts: off}", LinesAtRest(IDLE)),
        ("replay", "false", False),
        ("log_file", "none", None),
        ("log_file", "/log/{name}/{name}", "/log/desk/desk"),
        ("allow", "all", EVERYBODY),
        ("allow", "[192.0.2.7]", Networks((ipaddress.ip_network("192.0.2.7"),))),
        ("tls", "none", None),
        ("tls", "{cert: /c, key: /k, client_ca: /ca}", Tls("/c", "/k", "/ca")),
    ],
)
def test_values_of_several_forms_are_accepted(key: str, written: str, value: object) -> None:
    assert value_of(parsed_port(**{key: written}), key) == value


@pytest.mark.parametrize(("written", "tcp_port"), [("0", 0), ("65535", 65535)])
def test_tcp_is_a_port(written: str, tcp_port: int) -> None:
    assert parsed_port(tcp=written).tcp_port == tcp_port


@pytest.mark.parametrize(
    ("written", "numbers"), [("4100-4199", range(4100, 4200)), ("7-7", range(7, 8))]
)
def test_tcp_is_the_range_of_a_pool(written: str, numbers: range) -> None:
    (pool,) = parsed(ports(port(tcp=written, device="{usb: '*:*'}"))).pools
    assert pool.tcp_ports == numbers


ADDRESSES = [
    ("lab.example:7000", Address("lab.example", 7000)),
    ("lab:1", Address("lab", 1)),
    ("192.0.2.1:65535", Address("192.0.2.1", 65535)),
    ('"[::1]:7000"', Address("::1", 7000)),
    ('"[fe80::1%eth0]:7000"', Address("fe80::1%eth0", 7000)),
]


@pytest.mark.parametrize(("written", "address"), ADDRESSES)
def test_connect_is_an_address(written: str, address: Address) -> None:
    (config,) = parsed(ports(connecting(connect=written))).ports
    assert (config.tcp_port, config.connect) == (None, address)
    assert str(address) == written.strip('"')


REJECTED = rows(
    rf"""
name           ""  {"x" * 33}  [a]  ~  a/b
tcp            -1  65536  {"1" * 1000}  1_000  22:22  ٤٠٠١  {{a: 1}}  0-10  4100-  -4100
tcp            4100 - 4110  1-2-3
host           127.1  "*"  ""  {"a." * 127}bc
connect        lab.example  7000  :7000  'lab:'  lab:{"9" * 5000}  lab:٤  lab:http  ::1:7000  ''
connect        "[lab]:7000"  "[192.0.2.1]:7000"  "[]:7000"  "[::1:7000"  tcp://lab:7000
max_sessions   0
device         /  /dev/  SIM://esp32
baudrate       0  4294967296
bytesize       4  9
parity         None
stopbits       3
flow_control   both
protocol       telnet
on_connect     none
on_disconnect  bootloader
reset          usb_jtag
hard_reset     none
rest           on  none  [on, off]  {{}}
sharing        mute
replay         "true"  1
record_kib     65537
log_file       desk.log  /var/log/
log_max_kib    15
log_keep       100
hold_s         0.049  5.01  .nan  -1  '1'
grace_s        301
allow          []  {{a: b}}
tls            /c  yes  []
"""
)

#: The schema accepts these: text that looks right, numbers that YAML does not tell apart, and rules
#: between the parts of a value.
REJECTED_BY_THE_READER_ONLY = rows(
    rf"""
tcp       010  4001.0  4199-4100  1-1001  65000-65536  '1-2'
host      300.1.1.1  a..b  -a  {"x" * 64}  desk:4001
connect   lab:0  lab:65536  300.1.1.1:7000  "lab\n:7000"  "[lab:]:7000"
device    "/dev/tty\0"  "sim://esp32\n"  sim://{"x" * 5000}
stopbits  1.50
replay    True
reset     D0|R2  D0|W11
"""
)


@pytest.mark.parametrize(("key", "written"), REJECTED + REJECTED_BY_THE_READER_ONLY)
def test_other_values_are_rejected_with_the_expected_ones(key: str, written: str) -> None:
    text = ports((connecting if key == "connect" else port)(**{key: written}))
    (line,) = problems(text)
    expected = next(row.type.expected for row in PORT_KEYS if row.name == key)
    problem = f"empty {key}" if written == "~" else f"invalid {key} "
    assert f": ports[0]: {problem}" in line
    assert line.endswith(f": expected {expected}")
    assert line.isprintable()
    assert len(line) < 600
    assert (schema_errors(text) == []) is ((key, written) in REJECTED_BY_THE_READER_ONLY)


@pytest.mark.parametrize(
    ("device", "problem"),
    [
        ("{}", "empty match"),
        ("{interface: 0}", "interface alone"),
        ("{usb: 10c4:ea6}", "invalid usb '10c4:ea6'"),
        ("{usb: '*:ea60'}", "invalid usb '*:ea60'"),
        ("{serial: ' x'}", "invalid serial ' x'"),
        ("{serial: ''}", "invalid serial ''"),
        (f"{{serial: {'x' * 127}}}", "invalid serial 'xxx"),
        ("{serial: }", "empty serial"),
        ("{serial: [a]}", "invalid serial (a list)"),
        ("{location: 1.3}", "invalid location '1.3'"),
        ("{location: 1-1.}", "invalid location '1-1.'"),
        ("{location: 1-1:1}", "invalid location '1-1:1'"),
        ("{location: 1-1, interface: 256}", "invalid interface '256'"),
        ("{location: 1-1, interface: '0'}", "invalid interface '0' (text, because it is quoted)"),
        ("[[/dev/a]]", "invalid item [0] (a list)"),
    ],
)
def test_a_mistake_in_a_match_is_reported_with_its_key(device: str, problem: str) -> None:
    text = ports(port(device=device))
    (line,) = problems(text)
    assert line.startswith(f"f.yaml:4: ports[0].device: {problem}")
    assert schema_errors(text)


@pytest.mark.parametrize("count", [0, MAX_ALTERNATIVES + 1])
def test_the_number_of_alternatives_is_bounded(count: int) -> None:
    text = ports(port(device=f"[{', '.join(f'/dev/{n}' for n in range(count))}]"))
    (line,) = problems(text)
    assert line.startswith("f.yaml:4: ports[0]: invalid device (a")
    assert "list: 1 to 16 items)" in line
    assert schema_errors(text)


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        ("{dtr: high}", "ports[0].rest: invalid dtr 'high': expected on, off"),
        ("{dtr: yes}", "ports[0].rest: invalid dtr 'yes'"),
        ("{dtr: 1, rts: on}", "ports[0].rest: invalid dtr '1': expected on, off"),
        ("{cts: on}", "ports[0].rest: unknown key 'cts'"),
    ],
)
def test_a_mistake_in_the_lines_at_rest_is_reported_with_its_key(rest: str, problem: str) -> None:
    (line,) = problems(ports(port(rest=rest)))
    assert line.startswith(f"f.yaml:5: {problem}")


@pytest.mark.parametrize(
    ("allow", "wrong"),
    [
        ("10.0.0.5/8", " (did you mean 10.0.0.0/8?)"),
        ("10.0.0.0/33", ""),
        ("10.0.0", ""),
        ("lab.example", ""),
        ("fe80::1%eth0/64", " (did you mean fe80::/64?)"),
        ("0x7f000001", ""),
    ],
)
def test_an_item_that_is_no_network_is_reported_with_its_place(allow: str, wrong: str) -> None:
    text = ports(port(allow=f'[10.0.0.0/8, "{allow}"]'))
    assert problems(text) == [
        f"f.yaml:5: ports[0].allow: invalid item [1] '{allow}'{wrong}: "
        "expected an IP address or a network (10.0.0.0/8)"
    ]


@pytest.mark.parametrize(
    ("host", "is_in"),
    [
        ("10.1.2.3", True),
        ("11.0.0.0", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:11.0.0.0", False),
        ("2001:db8::1", True),
        ("2001:db9::1", False),
        ("fe80::1%eth0", True),
        ("::a01:203", False),  # 10.1.2.3 in a notation that IPv6 has given up
        ("", False),
        ("somebody", False),
    ],
)
def test_a_peer_is_allowed_by_its_address(host: str, is_in: bool) -> None:
    allowed = parsed_port(allow='[10.0.0.0/8, 192.0.2.7, "2001:db8::/32", "fe80::/10"]')
    assert allowed.access.allow.have(host) is is_in
    assert EVERYBODY.have(host)


@pytest.mark.parametrize("mapped", ["::ffff:10.0.0.0/104", "::ffff:10.1.2.3"])
def test_mapped_networks_mean_ipv4(mapped: str) -> None:
    allow = parsed_port(allow=f'["{mapped}"]').access.allow
    assert allow.have("10.1.2.3")
    assert not allow.have("11.1.2.3")
    assert not parsed_port(allow='["::/0"]').access.allow.have("192.0.2.1")


@pytest.mark.parametrize(
    ("host", "network", "holder"),
    [
        ("192.0.2.7", "192.0.2.0/24", "192.0.2.7/32"),
        ("::ffff:192.0.2.7", "192.0.2.0/24", "192.0.2.7/32"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64", "fe80::1/128"),
        ("", "unknown", "unknown"),
    ],
)
def test_peers_are_logged_by_network_and_counted_by_host(
    host: str, network: str, holder: str
) -> None:
    assert (peer_network(host), peer_holder(host)) == (network, holder)


@pytest.mark.parametrize(
    ("section", "config"),
    [
        ("", None),
        ("mdns: false", None),
        ("mdns: true", MdnsConfig()),
        ("mdns: {}", MdnsConfig()),
        ('mdns: {instance_name: "lab (2nd floor)"}', MdnsConfig("lab (2nd floor)")),
        ("mdns: {interfaces: [eth0, wlan0.1]}", MdnsConfig(None, ("eth0", "wlan0.1"))),
        (
            'mdns: {interfaces: [192.0.2.7, "FD00:0::1"]}',
            MdnsConfig(None, ("192.0.2.7", "fd00::1")),
        ),
    ],
)
def test_mdns_is_off_unless_it_is_set(section: str, config: MdnsConfig | None) -> None:
    assert parsed(f"{section}\n{ports()}").mdns == config


@pytest.mark.parametrize(
    ("section", "config"),
    [
        ("", None),
        ("http: 127.0.0.1:8080", HttpConfig("127.0.0.1", 8080)),
        ('http: "[::1]:8080"', HttpConfig("::1", 8080)),
        ("http: localhost:0", HttpConfig("localhost", 0)),
        (
            "http: {listen: localhost:1, host_names: Lab.Example.}",
            HttpConfig("localhost", 1, host_names=frozenset({"lab.example"})),
        ),
        (
            "http: {listen: localhost:1, host_names: [lab.example, pi]}",
            HttpConfig("localhost", 1, host_names=frozenset({"lab.example", "pi"})),
        ),
        (
            "http: {listen: 0.0.0.0:1, token_file: /t, allow: [192.0.2.0/24]}",
            HttpConfig("0.0.0.0", 1, Networks((ipaddress.ip_network("192.0.2.0/24"),)), None, "/t"),
        ),
    ],
)
def test_http_is_off_unless_it_is_set(section: str, config: HttpConfig | None) -> None:
    http = parsed(ports() + section, with_files=False).http
    assert http == config
    assert http is None or str(http) == f"{Address(http.host, http.tcp_port)}"


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ('mdns: "true"', "invalid mdns 'true'"),
        ("mdns:", "empty mdns"),
        ("mdns: [eth0]", "invalid mdns (a list)"),
        ("mdns: {instance_name: }", "mdns: empty instance_name"),
        (f"mdns: {{instance_name: {'x' * 28}}}", "mdns: invalid instance_name 'xxx"),
        ('mdns: {instance_name: "läb"}', "mdns: invalid instance_name"),
        ('mdns: {instance_name: "lab "}', "mdns: invalid instance_name"),
        ("mdns: {interfaces: []}", "mdns: invalid interfaces (an empty list"),
        ("mdns: {interfaces: [eth0/1]}", "mdns.interfaces: invalid item [0] 'eth0/1'"),
        ("mdns: {interfaces: [[eth0]]}", "mdns.interfaces: invalid item [0] (a list)"),
        ('mdns: {interfaces: ["fd00::1::2"]}', "mdns.interfaces: invalid item [0] 'fd00"),
        ("mdns: &a true", "anchors (&a) are not supported"),
        ("http: 8080", "invalid http '8080': expected HOST:PORT, an IPv6 address in brackets, or"),
        ("http: off", "invalid http 'off' (YAML reads it as false"),
        ("http: 127.0.0.1:70000", "invalid http '127.0.0.1:70000'"),
        ("http: []", "invalid http (an empty list)"),
        ("http: {allow: all}", "http: missing listen: expected HOST:PORT"),
        ("http: {listen: 127.0.0.1:1, host_names: []}", "http: invalid host_names (an empty list)"),
        ("http: *other", "aliases (*other) are not supported"),
        ("connections: {max: 65537}", "connections: invalid max '65537'"),
    ],
)
def test_a_mistake_in_a_section_is_reported_with_its_place(section: str, problem: str) -> None:
    (line,) = problems(f"{section}\n{ports()}")
    assert line.startswith(f"f.yaml:1: {problem}")
