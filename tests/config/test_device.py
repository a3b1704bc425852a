"""How the YAML names a device, what is wrong with it, and which matches take in others."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.device import DEVICE, MAX_ALTERNATIVES, TCP, overlapping, same_path
from gateway.config.usb_match import DeviceChoice, UsbMatch, UsbTty
from gateway.config.yaml_lines import WrongPartsError


def node(text: str) -> yaml.Node:
    composed: Any = yaml.compose(text)
    assert isinstance(composed, yaml.Node)
    return composed


def choice(text: str) -> DeviceChoice:
    read = DEVICE.read(node(text))
    assert isinstance(read, DeviceChoice)
    return read


def wrong_parts(text: str) -> list[str]:
    with pytest.raises(WrongPartsError) as caught:
        DEVICE.read(node(text))
    return [f"{each.line} {each.key}: {each.problem}" for each in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{usb: '10c4:ea60'}", UsbMatch(vendor_id=0x10C4, product_id=0xEA60)),
        ("{usb: 10C4:EA60}", UsbMatch(vendor_id=0x10C4, product_id=0xEA60)),
        ("{usb: 10c4:*}", UsbMatch(vendor_id=0x10C4)),
        ("{usb: '*:*'}", UsbMatch(any_usb=True)),
        # Other readers of YAML would take these for numbers; what is written counts.
        ("{serial: 0001}", UsbMatch(serial="0001")),
        ("{serial: 12:30}", UsbMatch(serial="12:30")),
        ("{usb: 1234:5678}", UsbMatch(vendor_id=0x1234, product_id=0x5678)),
        ("{location: 1-1.3}", UsbMatch(location="1-1.3")),
        ("{location: 2-10}", UsbMatch(location="2-10")),
        (
            "{location: '1-1.3:1.2'}",
            UsbMatch(location="1-1.3", configuration=1, interface=2),
        ),
        ("{serial: x, interface: 1}", UsbMatch(serial="x", interface=1)),
    ],
)
def test_a_match_is_read(text: str, match: UsbMatch) -> None:
    assert choice(text) == DeviceChoice((match,))


def test_a_list_gives_alternatives_in_their_order() -> None:
    text = "[{serial: a}, /dev/serial/by-id/b, {location: 1-1}]"
    assert choice(text) == DeviceChoice(
        (UsbMatch(serial="a"), "/dev/serial/by-id/b", UsbMatch(location="1-1"))
    )


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{}", ["1 : empty match"]),
        ("{interface: 0}", ["1 : interface alone"]),
        ("{sreial: a}", ["1 : unknown key 'sreial': did you mean 'serial'?"]),
        ("{usb: 10c4}", ["1 : invalid usb '10c4'"]),
        ("{usb: 10c4:ea6}", ["1 : invalid usb '10c4:ea6'"]),
        ("{usb: '*:ea60'}", ["1 : invalid usb '*:ea60'"]),
        ("{serial: ' x'}", ["1 : invalid serial ' x'"]),
        ("{serial: ''}", ["1 : invalid serial ''"]),
        ("{serial: }", ["1 : empty serial"]),
        ("{serial: [a]}", ["1 : invalid serial (a list)"]),
        ("{location: 1.3}", ["1 : invalid location '1.3'"]),
        ("{location: 1-1.}", ["1 : invalid location '1-1.'"]),
        ("{location: 1-1:1}", ["1 : invalid location '1-1:1'"]),
        ("{location: 1-1, interface: 256}", ["1 : invalid interface '256'"]),
        (
            "{location: 1-1, interface: '0'}",
            ["1 : invalid interface '0' (text, because of the quotes)"],
        ),
        (
            "{location: '1-1:1.0', interface: 0}",
            ["1 : interface with a location that has the interface in it"],
        ),
        ("- {usb: x}\n- {serial: ''}\n", ["1 [0]: invalid usb 'x'", "2 [1]: invalid serial ''"]),
        ("- /dev/a\n- ttyUSB0\n", ["2 : invalid item [1] 'ttyUSB0'"]),
        (
            "- sim://esp32\n",
            ["1 : invalid item [0] 'sim://esp32' (a simulated board has no alternatives)"],
        ),
        ("- [/dev/a]\n", ["1 : invalid item [0] (a list)"]),
        ("- serial: a\n  serial: b\n", ["2 [0]: duplicate key 'serial' (first in line 1)"]),
    ],
)
def test_everything_that_is_wrong_is_told_with_its_place(text: str, wrong: list[str]) -> None:
    assert wrong_parts(text) == wrong


@pytest.mark.parametrize("count", [0, MAX_ALTERNATIVES + 1])
def test_there_are_some_alternatives_and_not_too_many(count: int) -> None:
    text = "[" + ", ".join(f"/dev/tty{number}" for number in range(count)) + "]"
    with pytest.raises(ValueError, match="alternatives"):
        DEVICE.read(node(text))


@pytest.mark.parametrize(
    ("text", "tcp"),
    [("4001", 4001), ("0", 0), ("4100-4199", range(4100, 4200)), ("7-7", range(7, 8))],
)
def test_tcp_is_a_port_or_a_range(text: str, tcp: int | range) -> None:
    assert TCP.read(node(text)) == tcp


@pytest.mark.parametrize(
    "text",
    [
        "4199-4100",
        "0-10",
        "1-1001",
        "65000-65536",
        "4100-",
        "-4100",
        "4100 - 4110",
        "'1-2'",
        "1-2-3",
    ],
)
def test_other_ranges_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what it says is for the reader of the file
        TCP.read(node(text))


def test_a_path_and_a_simulated_board_have_one_spelling() -> None:
    assert same_path("//dev/./ttyUSB0") == same_path("/dev/ttyUSB0")
    assert same_path("sim://esp32?name=board") == same_path("sim://esp32")


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (UsbMatch(serial="a"), UsbMatch(serial="a")),
        (UsbMatch(vendor_id=1), UsbMatch(vendor_id=1, product_id=2, serial="a")),
        (UsbMatch(vendor_id=1, location="1-1"), UsbMatch(location="1-1")),
        (UsbMatch(any_usb=True), UsbMatch(serial="a")),
        (UsbMatch(location="1-1"), UsbMatch(location="1-1", configuration=1, interface=0)),
    ],
    ids=str,
)
def test_a_match_that_another_takes_in_is_found(earlier: UsbMatch, later: UsbMatch) -> None:
    choices = [
        DeviceChoice((earlier,)),
        DeviceChoice((UsbMatch(serial="z", location="7-7"), later)),
    ]
    assert [places[:2] for places in overlapping(choices)] == [(1, 0)]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (UsbMatch(serial="a"), UsbMatch(serial="b")),
        (UsbMatch(vendor_id=1), UsbMatch(location="1-1")),
        (UsbMatch(vendor_id=1, product_id=2), UsbMatch(vendor_id=1, product_id=3)),
        (UsbMatch(serial="a", interface=0), UsbMatch(serial="a", interface=1)),
    ],
    ids=str,
)
def test_matches_that_meet_by_chance_only_are_left_to_the_run(one: UsbMatch, two: UsbMatch) -> None:
    assert not list(overlapping([DeviceChoice((one,)), DeviceChoice((two,))]))


MATCHES = st.builds(
    UsbMatch,
    vendor_id=st.none() | st.integers(1, 2),
    product_id=st.none() | st.integers(1, 2),
    serial=st.none() | st.sampled_from("ab"),
    location=st.none() | st.sampled_from(["1-1", "1-2"]),
    interface=st.none() | st.integers(0, 1),
)
TTYS = st.builds(
    UsbTty,
    path=st.just("/dev/ttyUSB0"),
    vendor_id=st.integers(1, 2),
    product_id=st.integers(1, 2),
    serial=st.sampled_from("ab"),
    location=st.sampled_from(["1-1", "1-2"]),
    socket=st.just("socket"),
    interface=st.integers(0, 1),
)


@given(MATCHES, MATCHES, st.lists(TTYS, max_size=30))
def test_what_is_called_overlapping_fits_the_same_devices(
    one: UsbMatch, two: UsbMatch, ttys: list[UsbTty]
) -> None:
    found = list(overlapping([DeviceChoice((one,)), DeviceChoice((two,))]))
    if found:
        ((_, _, narrow),) = found
        wide = two if narrow == one else one
        assert all(wide.fits(tty) for tty in ttys if narrow.fits(tty))
    else:
        assert set(one.criteria) - set(two.criteria)
        assert set(two.criteria) - set(one.criteria)
