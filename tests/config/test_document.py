import re
from pathlib import Path

import pytest

from gateway.config.document import (
    Address,
    ClientLimits,
    ConnectionLimits,
    GatewayConfig,
    OnAbsent,
    OnConnect,
    OnDisconnect,
    Opening,
    PortConfig,
    Protocol,
    Recording,
    Sharing,
)
from gateway.config.reader import PORT_KEYS, load_config, parse_config
from gateway.config.usb_match import DeviceChoice
from gateway.errors import ConfigError
from gateway.protocol.reset import (
    AUTO_REST,
    BOTH,
    DEFAULT_HOLD_S,
    IDLE,
    STRAP,
    HardReset,
    LinesAtRest,
    Reset,
    ResetChoice,
    parse_sequence,
)
from gateway.protocol.serial_settings import FlowControl, Parity, SerialSettings, StopBits


def port(**changes: str | None) -> str:
    """A valid entry of `ports`, with keys added, changed or (None) left out."""
    keys = {"name": "desk", "tcp": "4001", "device": "/dev/ttyUSB0"} | changes
    lines = [f"{key}: {value}\n" for key, value in keys.items() if value is not None]
    return "  - " + "    ".join(lines)


def ports(*entries: str) -> str:
    return "ports:\n" + "".join(entries)


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f.yaml")
    return str(caught.value).splitlines()


def problem_at(text: str, place: str) -> str:
    """The only problem of a file, checked to be at `place` (`LINE: SECTION`)."""
    (line,) = problems(text)
    start = f"f.yaml:{place}: "
    assert line.startswith(start), line
    return line.removeprefix(start)


def test_the_smallest_file_gets_the_defaults() -> None:
    assert parse_config(ports(port()), "f.yaml") == GatewayConfig(
        ports=(
            PortConfig(
                name="desk",
                host="127.0.0.1",
                tcp_port=4001,
                connect=None,
                device=DeviceChoice(("/dev/ttyUSB0",)),
                serial=SerialSettings(),
                resets=ResetChoice(Reset.AUTO, HardReset.AUTO, DEFAULT_HOLD_S),
                grace_s=10.0,
                on_absent=OnAbsent.REFUSE,
                protocol=Protocol.RFC2217,
                on_connect=OnConnect.NOTHING,
                on_disconnect=OnDisconnect.NOTHING,
            ),
        )
    )


def test_every_key_reaches_its_field() -> None:
    text = port(
        host="lab-pi.example",
        baudrate="921600",
        bytesize="7",
        parity="even",
        stopbits="1.5",
        flow_control="rtscts",
        protocol="raw",
        on_connect="reset",
        on_disconnect="reset",
        hold_s="0.5",
        grace_s="0",
        reset="usb-jtag",
        hard_reset="U0,1|W0.2|U0,0",
        rest="{dtr: on, rts: on}",
        open="on_connect",
        sharing="preempt",
        replay="true",
        record_kib="1",
        log_file="/var/log/{name}.log",
        log_max_kib="16",
        log_keep="0",
        on_absent="wait",
    )
    assert parse_config(ports(text), "f.yaml").ports == (
        PortConfig(
            name="desk",
            host="lab-pi.example",
            tcp_port=4001,
            connect=None,
            device=DeviceChoice(("/dev/ttyUSB0",)),
            serial=SerialSettings(
                baudrate=921600,
                bytesize=7,
                parity=Parity.EVEN,
                stopbits=StopBits.ONE_POINT_FIVE,
                flow_control=FlowControl.RTSCTS,
            ),
            resets=ResetChoice(
                Reset.USB_JTAG, parse_sequence("U0,1|W0.2|U0,0"), 0.5, LinesAtRest(BOTH)
            ),
            grace_s=0.0,
            on_absent=OnAbsent.WAIT,
            protocol=Protocol.RAW,
            on_connect=OnConnect.RESET,
            on_disconnect=OnDisconnect.RESET,
            open=Opening.ON_CONNECT,
            sharing=Sharing.PREEMPT,
            limits=ClientLimits(replay=True),
            recording=Recording(1, "/var/log/desk.log", 16, 0),
        ),
    )


def test_defaults_apply_to_ports_that_do_not_give_their_own() -> None:
    own = port(name="own", tcp="4002", device="/dev/ttyUSB1", baudrate="9600")
    config = parse_config("defaults:\n  baudrate: 74880\n" + ports(port(), own), "f.yaml")
    assert [each.serial.baudrate for each in config.ports] == [74880, 9600]


@pytest.mark.parametrize("on_connect", ["nothing", "reset"])
def test_output_from_before_is_for_ports_that_are_not_for_flashers(on_connect: str) -> None:
    text = "defaults:\n  replay: true\n" + ports(
        port(),
        port(name="raw", tcp="1", device="/dev/a", protocol="raw", on_connect=on_connect),
        port(name="f", tcp="2", device="/dev/b", protocol="raw", on_connect="bootloader"),
    )
    config = parse_config(text, "f.yaml")
    assert [each.limits.replay for each in config.ports] == [True, True, False]


def test_a_port_that_connects_has_its_tty_open_whatever_the_default_is() -> None:
    connecting = port(name="cabin", tcp=None, connect="lab:7000", device="/dev/ttyUSB1")
    config = parse_config("defaults:\n  open: on_connect\n" + ports(port(), connecting), "f.yaml")
    assert [each.open for each in config.ports] == [Opening.ON_CONNECT, Opening.ALWAYS]


def test_a_defaults_section_without_content_is_as_good_as_none() -> None:
    text = "defaults:\n  # host: 0.0.0.0\n" + ports(port())
    assert parse_config(text, "f.yaml") == parse_config(ports(port()), "f.yaml")


def test_ports_do_not_share_a_log_file() -> None:
    one = port(log_file="/log/{name}")
    other = port(name="own", tcp="4002", device="/dev/ttyUSB1", log_file="/log/desk")
    (line,) = problems(ports(one, other))
    assert "log_file '/log/desk' is that of line 5" in line


def test_a_log_file_for_all_ports_has_their_names_in_it() -> None:
    own = port(name="own", tcp="4002", device="/dev/ttyUSB1")
    config = parse_config("defaults:\n  log_file: /log/{name}\n" + ports(port(), own), "f.yaml")
    assert [each.recording.log_file for each in config.ports] == ["/log/desk", "/log/own"]
    (line,) = problems("defaults:\n  log_file: /log/all\n" + ports(port(), own))
    assert "defaults: invalid log_file '/log/all': expected a path with {name} in it" in line


def value_of(config: PortConfig, key: str) -> object:
    if key == "tcp":
        return config.tcp_port
    parts = (config.serial, config.resets, config.recording, config.limits, config)
    return next(getattr(part, key) for part in parts if hasattr(part, key))


BY_PATH = "/dev/serial/by-path/platform-fd500000.pcie-pci-0000:01:00.0-usb-0:1.1:1.0"


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("name", "a", "a"),
        ("name", "_-.09azAZ", "_-.09azAZ"),
        ("name", "a..", "a.."),
        ("name", "x" * 32, "x" * 32),
        ("name", "007", "007"),
        ("name", '"no"', "no"),
        ("tcp", "0", 0),
        ("tcp", "65535", 65535),
        ("host", "0.0.0.0", "0.0.0.0"),
        ("host", '"::"', "::"),
        ("host", "fe80::1%eth0", "fe80::1%eth0"),
        ("host", "my_pi.lab-2.example.", "my_pi.lab-2.example."),
        ("device", BY_PATH, DeviceChoice((BY_PATH,))),
        ("device", "sim://esp32", DeviceChoice(("sim://esp32",))),
        ("baudrate", "1", 1),
        ("baudrate", "4294967295", 4294967295),
        ("bytesize", "5", 5),
        ("parity", "space", Parity.SPACE),
        ("stopbits", '"2"', StopBits.TWO),
        ("flow_control", "xonxoff", FlowControl.XONXOFF),
        ("protocol", "raw", Protocol.RAW),
        ("hold_s", "0.05", 0.05),
        ("hold_s", "5", 5.0),
        ("grace_s", "0", 0.0),
        ("grace_s", "300", 300.0),
        ("reset", "auto", Reset.AUTO),
        ("reset", "touch-1200", Reset.TOUCH_1200),
        ("reset", "none", Reset.NONE),
        ("reset", "D0|R1|W0.1|D1|R0|W0.05|D0", parse_sequence("D0|R1|W0.1|D1|R0|W0.05|D0")),
        ("reset", '"U0,0"', parse_sequence("U0,0")),
        ("hard_reset", "classic", HardReset.CLASSIC),
        ("replay", "false", False),
        ("record_kib", "0", 0),
        ("log_file", "none", None),
        ("log_file", "/log", "/log"),
        ("hard_reset", "R1|W0.1|R0", parse_sequence("R1|W0.1|R0")),
    ],
)
def test_values_up_to_their_limits_are_accepted(key: str, written: str, value: object) -> None:
    (config,) = parse_config(ports(port(**{key: written})), "f.yaml").ports
    assert value_of(config, key) == value


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("name", '""'),
        ("name", "x" * 33),
        ("name", "."),
        ("name", ".."),
        ("name", ".hidden"),
        ("name", "-x"),
        ("name", "a/b"),
        ("name", "a b"),
        ("name", '"a\\n"'),
        ("name", "Tür"),
        ("name", "[a]"),
        ("tcp", "-1"),
        ("tcp", "65536"),
        ("tcp", "1" * 5000),
        ("tcp", "0x10"),
        ("tcp", "010"),
        ("tcp", "1_000"),
        ("tcp", "22:22"),
        ("tcp", "4001.0"),
        ("tcp", "٤٠٠١"),
        ("tcp", "{a: 1}"),
        ("host", "300.1.1.1"),
        ("host", "127.1"),
        ("host", '"*"'),
        ("host", '""'),
        ("host", "a..b"),
        ("host", "-a"),
        ("host", "x" * 64),
        ("host", "a." * 127 + "bc"),
        ("host", "desk:4001"),
        ("device", "ttyUSB0"),
        ("device", "/"),
        ("device", "/dev/"),
        ("device", '"/dev/tty\\0"'),
        ("device", '"sim://esp32\\n"'),
        ("device", "SIM://esp32"),
        ("device", "sim://" + "x" * 5000),
        ("baudrate", "0"),
        ("baudrate", "4294967296"),
        ("bytesize", "4"),
        ("bytesize", "9"),
        ("parity", "None"),
        ("stopbits", "1.50"),
        ("flow_control", "both"),
        ("protocol", "telnet"),
        ("on_connect", "none"),
        ("on_disconnect", "bootloader"),
        ("reset", "usb_jtag"),
        ("reset", "D0|R2"),
        ("reset", "D0|W11"),
        ("hard_reset", "none"),
        ("rest", "on"),
        ("rest", "none"),
        ("rest", "[on, off]"),
        ("sharing", "mute"),
        ("replay", "yes"),
        ("replay", "True"),
        ("replay", '"true"'),
        ("replay", "1"),
        ("record_kib", "65537"),
        ("log_file", "desk.log"),
        ("log_file", "/var/log/"),
        ("log_max_kib", "15"),
        ("log_keep", "100"),
        ("hold_s", "0.049"),
        ("hold_s", "5.01"),
        ("grace_s", "301"),
        ("hold_s", ".nan"),
        ("hold_s", "-1"),
        ("hold_s", "1e0"),
    ],
)
def test_values_past_their_limits_are_refused_with_what_is_accepted(key: str, written: str) -> None:
    (line,) = problems(ports(port(**{key: written})))
    accepted = next(row.kind.accepted for row in PORT_KEYS if row.name == key)
    assert f": ports[0]: invalid {key} " in line
    assert line.endswith(f": expected {accepted}")
    assert line.isprintable()
    assert len(line) < 600


@pytest.mark.parametrize(
    ("written", "rest"),
    [
        ("auto", AUTO_REST),
        ("{dtr: on, rts: off}", LinesAtRest(STRAP)),
        ("{rts: false, dtr: true}", LinesAtRest(STRAP)),
        ('{dtr: "on", rts: "off"}', LinesAtRest(STRAP)),
        ("{dtr: on}", LinesAtRest(BOTH)),
        ("{rts: off}", LinesAtRest(IDLE)),
    ],
)
def test_lines_at_rest_are_written_as_on_and_off(written: str, rest: LinesAtRest) -> None:
    config = parse_config(ports(port(rest=written)), "f.yaml")
    assert config.ports[0].resets.rest == rest


@pytest.mark.parametrize(
    ("rest", "problem"),
    [
        ("{dtr: high}", "ports[0].rest: invalid dtr 'high': expected on, off"),
        ("{dtr: yes}", "ports[0].rest: invalid dtr 'yes'"),
        ("{dtr: 1, rts: on}", "ports[0].rest: invalid dtr '1': expected on, off"),
        ("{cts: on}", "ports[0].rest: unknown key 'cts'"),
        ("{}", "ports[0]: invalid rest (an empty mapping): expected auto or a mapping of dtr, rts"),
    ],
)
def test_a_mistake_in_the_lines_at_rest_is_explained(rest: str, problem: str) -> None:
    (line,) = problems(ports(port(rest=rest)))
    assert line.startswith(f"f.yaml:5: {problem}")


@pytest.mark.parametrize("reset", ["classic", "usb-jtag", "usb-otg", "touch-1200", "D0|R1|R0"])
def test_one_line_alone_may_not_rest_at_on_where_it_holds_a_board_in_reset(reset: str) -> None:
    for rest in ("{dtr: on, rts: off}", "{dtr: off, rts: on}"):
        (line,) = problems(ports(port(reset=reset, rest=rest)))
        assert line == (
            f"f.yaml:6: ports[0]: rest with one line on alone with reset '{reset}':"
            " expected both lines on or both off, or reset: none"
        )
    for reset_that_suits in ("auto", "none"):
        parse_config(ports(port(reset=reset_that_suits, rest="{dtr: on, rts: off}")), "f.yaml")


def test_a_wrong_value_is_not_compared_with_those_of_other_ports() -> None:
    second = port(name="b", device="/dev/b", host="1.2")
    problem = problem_at(ports(port(), second), "8: ports[1]")
    assert problem == "invalid host '1.2': expected an IP address or a host name"


def dialled(**changes: str | None) -> str:
    return port(**({"tcp": None, "connect": "lab.example:7000"} | changes))


def test_a_port_may_connect_to_its_client() -> None:
    (config,) = parse_config(ports(dialled()), "f.yaml").ports
    assert (config.tcp_port, config.connect) == (None, Address("lab.example", 7000))


def test_a_default_host_is_for_the_ports_that_listen() -> None:
    text = "defaults: {host: 0.0.0.0}\n" + ports(
        port(),
        dialled(name="b", device="/dev/b"),
        dialled(name="c", device="/dev/c", connect="a:1"),
    )
    assert [each.tcp_port for each in parse_config(text, "f.yaml").ports] == [4001, None, None]


@pytest.mark.parametrize("protocol", ["raw", "rfc2217"])
def test_resets_at_connect_and_disconnect_are_for_ports_of_both_protocols(protocol: str) -> None:
    text = "defaults: {on_connect: bootloader, on_disconnect: reset}\n" + ports(
        port(protocol=protocol),
        port(name="b", tcp="4002", device="/dev/b", protocol=protocol, on_connect="reset"),
    )
    assert [
        (each.on_connect, each.on_disconnect) for each in parse_config(text, "f.yaml").ports
    ] == [
        (OnConnect.BOOTLOADER, OnDisconnect.RESET),
        (OnConnect.RESET, OnDisconnect.RESET),
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [("lab:1", "LAB.:1"), ("192.0.2.1:1", '"[::ffff:192.0.2.1]:1"')],
)
def test_two_ports_with_one_far_end_are_refused(first: str, second: str) -> None:
    text = ports(dialled(connect=first), dialled(name="b", device="/dev/b", connect=second))
    assert problem_at(text, "7: ports[1]").startswith("duplicate connect ")


def test_paths_are_compared_whatever_their_spelling() -> None:
    second = port(name="b", tcp="4002", device="//dev/./ttyUSB0")
    problem = problem_at(ports(port(), second), "7: ports[1]")
    assert problem.startswith("duplicate device '//dev/./ttyUSB0' (first in line 4)")


def test_simulated_boards_are_told_apart_by_what_their_urls_mean() -> None:
    boards = ["sim://esp32", "sim://esp32?name=two", "sim://esp32?name=board"]
    text = ports(*(port(name=f"n{i}", tcp="0", device=board) for i, board in enumerate(boards)))
    problem = problem_at(text, "10: ports[2]")
    assert problem.startswith("duplicate device 'sim://esp32?name=board' (first in line 4)")


def two_hosts(first: str, second: str) -> str:
    return ports(port(host=f'"{first}"'), port(name="b", device="/dev/b", host=f'"{second}"'))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "192.0.2.1"),
        ("192.0.2.1", "0.0.0.0"),
        ("0.0.0.0", "::"),
        ("::", "::1"),
        ("pi.example", "::"),
        ("::1", "0:0:0:0:0:0:0:1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("::1", "LOCALHOST."),
        ("Pi.example", "pi.example."),
    ],
)
def test_two_ports_at_one_address_are_refused(first: str, second: str) -> None:
    problem = problem_at(two_hosts(first, second), "7: ports[1]")
    assert problem.startswith("duplicate tcp '4001' (first in line 3)")


@pytest.mark.parametrize(
    ("first", "second"),
    [("127.0.0.1", "127.0.0.2"), ("127.0.0.1", "::1"), ("a.example", "b.example")],
)
def test_one_tcp_port_may_be_served_at_several_addresses(first: str, second: str) -> None:
    config = parse_config(two_hosts(first, second), "f.yaml")
    assert [(each.host, each.tcp_port) for each in config.ports] == [(first, 4001), (second, 4001)]


def test_any_free_port_may_be_asked_for_several_times() -> None:
    text = ports(port(tcp="0"), port(name="b", tcp="0", device="/dev/b"))
    assert [each.tcp_port for each in parse_config(text, "f.yaml").ports] == [0, 0]


def test_an_alias_in_place_of_a_value_is_one_problem_not_two() -> None:
    for text, place in (
        (ports(port(parity="*p")), "5"),
        ("ports: *p\n", "1"),
        ("*p", "1"),
        ("*p : 1\n" + ports(port()), "1"),
        ("ports: [*p]\n", "1"),
        (ports(port(device="!env TTY")), "4"),
        ("defaults: *p\n" + ports(port()), "1"),
    ):
        (line,) = problems(text)
        assert line.startswith(f"f.yaml:{place}: "), line
        assert "are not supported" in line


def test_a_file_is_loaded_and_named_in_its_problems(tmp_path: Path) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(ports(port()))
    assert load_config(file) == parse_config(ports(port()), "")
    file.write_text(ports(port(tcp="x")))
    with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}:3: "):
        load_config(file)


def test_limits_of_connections_have_defaults_one_by_one() -> None:
    ports = "ports:\n  - {name: a, tcp: 1, device: /dev/a}\n"
    assert parse_config(ports, "f").connections == ConnectionLimits(4096, 1024)
    few = ports + "connections:\n  max_per_address: 2\n"
    assert parse_config(few, "f").connections == ConnectionLimits(4096, 2)
    few += "  max: 3\n"
    assert parse_config(few, "f").connections == ConnectionLimits(3, 2)
