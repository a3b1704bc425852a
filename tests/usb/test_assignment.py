"""Rules of the assignment of devices to ports that no plugging shows; see test_inventory."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.config.usb_match import DeviceChoice, UsbMatch, UsbTty
from gateway.usb.inventory import Assignment, assign


def tty(number: int, location: str, usb: str = "10c4:ea60", serial: str = "") -> UsbTty:
    vendor, _, product = usb.partition(":")
    return UsbTty(
        path=f"/dev/ttyUSB{number}",
        vendor_id=int(vendor, 16),
        product_id=int(product, 16),
        location=location,
        socket=f"c-usbv2-{location.partition('-')[2]}",
        serial=serial,
    )


def given_to(
    ports: dict[str, DeviceChoice], ttys: list[UsbTty], links: dict[str, str] | None = None
) -> Assignment:
    return assign(ports, ttys, {each.path: each.path for each in ttys} | (links or {}))


def match(**criteria: object) -> DeviceChoice:
    return DeviceChoice((UsbMatch(**criteria),))  # type: ignore[arg-type]


A = tty(0, "1-1.1", serial="a")
B = tty(1, "1-1.2", serial="b")
LINK = "/dev/serial/by-id/usb-a"


def test_links_are_followed() -> None:
    ports = {"x": DeviceChoice((LINK,)), "y": match(serial="a")}
    result = given_to(ports, [A], {LINK: A.path})
    assert result.paths == {}
    assert result.problems == {
        "x": f"{LINK} fits y as well",
        "y": "/dev/ttyUSB0 (10c4:ea60 at 1-1.1:1.0) fits x as well",
    }


def test_a_path_takes_its_device_from_the_pools() -> None:
    result = given_to({"x": DeviceChoice((LINK,))}, [A, B], {LINK: A.path})
    assert (result.paths, result.free) == ({"x": LINK}, (B,))


def test_the_first_alternative_that_fits_counts_a_path_that_is_no_usb_device_too() -> None:
    ports = {"x": DeviceChoice((UsbMatch(serial="a"), "/dev/x", UsbMatch(serial="b")))}
    assert given_to(ports, [A, B]).paths == {"x": A.path}
    assert given_to(ports, [B], {"/dev/x": "/dev/x"}).paths == {"x": "/dev/x"}
    assert given_to(ports, [B]).paths == {"x": B.path}
    assert given_to(ports, []).paths == {}


def test_a_tty_without_a_node_fits_no_port_and_is_not_free() -> None:
    result = assign({"x": match(serial="a")}, [A, B], {B.path: B.path})
    assert (result.paths, result.problems, result.free) == ({}, {}, (B,))


def test_a_message_names_some_of_many_devices() -> None:
    many = [tty(number, f"1-{number + 1}") for number in range(20)]
    text = given_to({"x": match(vendor_id=0x10C4)}, many).problems["x"]
    assert text.startswith("20 devices fit: ")
    assert text.endswith(" and 16 more")


CHOICES = st.lists(
    st.builds(
        UsbMatch,
        vendor_id=st.sampled_from([None, 0x10C4, 0x1A86]),
        serial=st.sampled_from([None, "a", "b"]),
        location=st.sampled_from([None, "1-1", "1-2", "1-3"]),
    ),
    min_size=1,
    max_size=3,
).map(lambda matches: DeviceChoice(tuple(matches)))


@given(
    st.dictionaries(st.sampled_from("uvwxyz"), CHOICES, max_size=5),
    st.lists(
        st.tuples(st.sampled_from(["10c4:ea60", "1a86:7523"]), st.sampled_from(["", "a", "b"])),
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
def test_no_device_goes_to_a_port_if_another_wants_it_in_any_order(
    ports: dict[str, DeviceChoice], devices: list[tuple[str, str]], chance: random.Random
) -> None:
    ttys = [tty(n, f"1-{n + 1}", usb, serial) for n, (usb, serial) in enumerate(devices)]
    result = given_to(ports, ttys)
    assert len(set(result.paths.values())) == len(result.paths)
    assert not result.paths.keys() & result.problems.keys()
    assert not set(result.paths.values()) & {each.path for each in result.free}
    wanted = [choice.matches[0] for choice in ports.values()]
    assert not any(first.fits(each) for first in wanted for each in result.free)
    names = list(ports)
    chance.shuffle(names)
    again = given_to({name: ports[name] for name in names}, ttys)
    assert (again.paths, again.problems) == (result.paths, result.problems)
