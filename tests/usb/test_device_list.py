"""`esp-gateway devices`, with boards that a test plugs in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import gateway.usb.sysfs
from gateway.cli.main import main
from gateway.config.document import GatewayConfig
from gateway.config.reader import parse_config
from gateway.usb.device_list import Listing, listing, to_json, to_table, to_yaml
from gateway.usb.pools import FILE_NAME, PoolTable, write_table
from gateway.usb.sysfs import Sysfs
from tests.support.fake_sysfs import (
    CH340,
    CP2102,
    CP2102N,
    ESP_PROG_2,
    FT2232,
    MULTIPORT,
    USB_JTAG,
    FakeUsb,
    Product,
)

OTG = Product("303a:4001", driver="ttyACM", serial="123ABC", product="TinyUSB CDC")
NOTHING = GatewayConfig(())


def config(*ports: str) -> GatewayConfig:
    return parse_config("ports:\n" + "".join(f"  - {{{port}}}\n" for port in ports), "f.yaml")


def listed(usb: FakeUsb, served: GatewayConfig = NOTHING) -> Listing:
    return listing(Sysfs(usb.sysfs, usb.dev), served, PoolTable())


def printed(usb: FakeUsb, served: GatewayConfig = NOTHING) -> GatewayConfig:
    """The configuration that the printed YAML is."""
    return parse_config(to_yaml(listed(usb, served), served), "printed")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell]


def test_the_table_has_a_line_per_device_with_its_port(usb: FakeUsb) -> None:
    usb.plug(CP2102N, "1-1.3")
    usb.plug(USB_JTAG, "1-1.10")
    usb.plug(Product("1234:5678"), "1-1.11")
    served = config("name: desk, tcp: 4001, device: {location: 1-1.3}")
    head, first, second, third = to_table(listed(usb, served)).splitlines()
    assert head.split() == ["PATH", "USB", "CHIP", "LOCATION", "SERIAL", "PRODUCT", "PORT"]
    assert cells(first) == [
        f"{usb.dev}/ttyUSB0",
        "10c4:ea60",
        "CP2102, CP2102N, CP2104",
        "1-1.3",
        CP2102N.serial,
        CP2102N.product,
        "desk",
    ]
    assert "USB-Serial/JTAG" in second
    assert second.endswith(" -")
    assert third.split()[1:] == ["1234:5678", "-", "1-1.11", "-", "-", "-"]


def test_without_devices_the_output_says_so(usb: FakeUsb) -> None:
    served = config("name: desk, tcp: 4001, device: {location: 1-1.3}")
    assert to_table(listed(usb, served)).splitlines() == [
        "no USB serial device is plugged in",
        "desk: not plugged in (location 1-1.3)",
    ]
    assert to_json(listed(usb)) == "[]"
    assert to_yaml(listed(usb), NOTHING).startswith("ports: []")


def test_notes_say_why_a_device_is_not_served(usb: FakeUsb) -> None:
    usb.plug(CP2102, "1-1")
    usb.plug(CP2102, "1-2")
    usb.plug(CH340, "1-3")
    usb.plug(CH340, "1-4")
    served = config(
        "name: desk, tcp: 4001, device: {usb: '10c4:ea60'}",
        "name: sim, tcp: 4002, device: 'sim://esp32'",
        "name: one, tcp: 4100-4100, device: {usb: '1a86:*'}",
    )
    lines = to_table(listed(usb, served)).splitlines()[5:]
    assert lines[0].startswith("desk: 2 devices fit: ")
    assert lines[1].endswith(" at 1-4:1.0): the pool one is full")
    assert len(lines) == 2


def test_json_has_all_attributes(usb: FakeUsb) -> None:
    (path,) = usb.plug(CH340, "1-1.3")
    (device,) = json.loads(to_json(listed(usb)))
    assert device == {
        "path": path,
        "usb": "1a86:7523",
        "location": "1-1.3",
        "interface": 0,
        "serial": "",
        "manufacturer": "",
        "product": "USB Serial",
        "chip": "CH340",
        "kind": "UART bridge",
        "channel": None,
        "same_board": [],
        "port": None,
    }


def test_the_yaml_matches_each_device_by_a_lasting_attribute(usb: FakeUsb) -> None:
    for product, location in (
        (CP2102N, "1-1.1"),
        (CH340, "1-1.2"),
        (FT2232, "1-1.3"),
        (OTG, "1-1.4"),
        (MULTIPORT, "1-2"),
    ):
        usb.plug(product, location)
    text = to_yaml(listed(usb), NOTHING)
    read = printed(usb)
    assert [(port.name, port.tcp_port, str(port.device)) for port in read.ports] == [
        ("cp2102-1-1-1", 4001, f"serial {CP2102N.serial}"),
        ("ch340-1-1-2", 4002, "location 1-1.2"),
        ("ft2232-1-1-3-1-1", 4003, "serial FT7ABC12, interface 1"),
        ("usb-otg-1-1-4", 4004, "location 1-1.4"),
        *(
            (f"wch-bridge-1-2{(number and f'-{number}') or ''}", 4005 + number, path)
            for number, path in enumerate(usb.tty_paths("1-2"))
        ),
    ]
    assert "# " + usb.tty_paths("1-1.1")[0] + " now: Silicon Labs CP2102N" in text
    # What is printed serves all that is there.
    assert len(listed(usb, read).ports) == len(read.ports)


@pytest.mark.parametrize("ids", ["303a:4001", "2e8a:000a", "239a:8029", "2341:804d", "2341:8036"])
def test_a_board_whose_bootloader_is_another_device_is_named_by_its_socket(
    usb: FakeUsb, ids: str
) -> None:
    usb.plug(Product(ids, driver="ttyACM", serial="E6614103E7", product="Board"), "1-1.2")
    (port,) = printed(usb).ports
    (match,) = port.device.matches
    assert (match.location, match.serial) == ("1-1.2", None)


def test_a_jtag_channel_is_named_as_such_and_served_only_if_asked_for(usb: FakeUsb) -> None:
    jtag, uart = usb.plug(FT2232, "1-1")
    note = f"{jtag} (0403:6010 at 1-1:1.0): JTAG channel; to serve it all the same, give a port "
    table = to_table(listed(usb)).splitlines()
    assert "FT2232 (ESP-Prog, ESP-WROVER-KIT), JTAG channel" in table[1]
    assert "JTAG" not in table[2]
    assert table[3] == f"{note}`interface: 0`"
    channels = {each["path"]: each["channel"] for each in json.loads(to_json(listed(usb)))}
    assert channels == {jtag: "JTAG", uart: None}
    text = to_yaml(listed(usb), NOTHING)
    read = printed(usb)
    assert listed(usb, read).ports == {uart: "ft2232-1-1-1-1"}
    assert f"  # {note}" in text
    # A match of the whole device means its UART; one with the interface means that one.
    for match in ("serial: FT7ABC12", "location: 1-1", "usb: '0403:6010'", "usb: '*:*'"):
        served = config(f"name: desk, tcp: 4001, device: {{{match}}}")
        assert listed(usb, served).ports == {uart: "desk"}
        pool = config(f"name: pool, tcp: 4100-4109, device: {{{match}}}")
        assert listed(usb, pool).ports == {uart: "pool-4100"}
    for asked in ("serial: FT7ABC12, interface: 0", "location: '1-1:1.0'"):
        served = config(f"name: desk, tcp: 4001, device: {{{asked}}}")
        assert listed(usb, served).ports == {jtag: "desk"}
        assert note not in to_table(listed(usb, served))
    assert listed(usb, config(f"name: desk, tcp: 4001, device: {jtag}")).ports == {jtag: "desk"}


def test_which_channel_is_for_jtag_is_known_by_the_ids_and_the_product(usb: FakeUsb) -> None:
    quad = replace(FT2232, usb="0403:6011", product="Quad RS232-HS", interfaces=(0, 1, 2, 3))
    usb.plug(quad, "1-1")
    usb.plug(replace(FT2232, product="Tigard V1.1"), "1-2")
    usb.plug(replace(FT2232, usb="10c4:ea70"), "1-3")
    found = {(tty.location, tty.interface): tty.is_jtag for tty in listed(usb).ttys}
    assert {place for place, is_jtag in found.items() if is_jtag} == {("1-1", 0), ("1-2", 1)}


def test_a_device_without_a_tty_is_listed_with_the_reason(usb: FakeUsb) -> None:
    usb.plug(CP2102N, "1-1", bound_to="usbfs")
    usb.plug(Product("1d6b:0104"), "1-2", bound_to="")
    head, row, *notes = to_table(listed(usb)).splitlines()
    assert head.startswith("PATH")
    assert cells(row) == [
        "no tty",
        "10c4:ea60",
        "CP2102, CP2102N, CP2104",
        "1-1",
        CP2102N.serial,
        CP2102N.product,
        "-",
    ]
    (note,) = notes
    assert note.startswith("10c4:ea60 CP2102, CP2102N, CP2104 at 1-1: no tty: claimed by ")
    (device,) = json.loads(to_json(listed(usb)))
    assert (device["path"], device["location"]) == (None, "1-1")
    assert device["no_tty"].startswith("claimed by another program over libusb")
    text = to_yaml(listed(usb), NOTHING)
    assert text.startswith("ports: []")
    assert f"  # {note}" in text


BRIDGE_AND_CHIP = ((CP2102N, "1-1.1"), (USB_JTAG, "1-1.2"))


def notes_on_boards(usb: FakeUsb) -> list[str]:
    return [note for note in listed(usb).notes if "board" in note]


def test_a_board_with_a_hub_of_its_own_is_one_board(usb: FakeUsb) -> None:
    for product, location in BRIDGE_AND_CHIP:
        usb.plug(product, location, is_fixed=True)
    usb.plug(CH340, "1-1.3")  # a hub may have a free socket besides
    (bridge,), (chip,) = usb.tty_paths("1-1.1"), usb.tty_paths("1-1.2")
    assert notes_on_boards(usb) == [f"{bridge} and {chip}: one board, with a hub of its own at 1-1"]
    same = {each["path"]: each["same_board"] for each in json.loads(to_json(listed(usb)))}
    assert (same[bridge], same[chip]) == ([chip], [bridge])
    text = to_yaml(listed(usb), NOTHING)
    assert f"  # the same board as {chip}\n" in text
    read = printed(usb)
    assert len(read.ports) == 3


def test_two_boards_on_a_hub_of_the_lab_are_not_one(usb: FakeUsb) -> None:
    for product, location in BRIDGE_AND_CHIP:
        usb.plug(product, location)
    # Nothing tells these from one board: a person has to look.
    (note,) = notes_on_boards(usb)
    assert note.endswith("alone on the hub at 1-1, either two boards or one that has both")
    assert not any(each["same_board"] for each in json.loads(to_json(listed(usb))))
    assert "the same board" not in to_yaml(listed(usb), NOTHING)
    usb.plug(Product("0781:5567"), "1-1.4", bound_to="usb-storage")
    assert notes_on_boards(usb) == []


@pytest.mark.parametrize(
    "plugged",
    [
        [(CP2102N, "1-1.1"), (CH340, "1-1.2")],  # two bridges
        [(USB_JTAG, "1-1.1"), (USB_JTAG, "1-1.2")],  # two chips
        [*BRIDGE_AND_CHIP, (CH340, "1-1.3"), (USB_JTAG, "1-1.4")],  # two of both
        [(CP2102N, "1-1"), (USB_JTAG, "1-2")],  # on the host's own sockets
        [(CP2102N, "1-1.1"), (USB_JTAG, "1-2.1")],  # on two hubs
        [(CP2102N, "1-1.1"), (USB_JTAG, "1-1.2.1")],  # one on a hub of its own
        [(ESP_PROG_2, "1-1.1")],
    ],
)
def test_other_devices_are_no_pair(usb: FakeUsb, plugged: list[tuple[Product, str]]) -> None:
    for product, location in plugged:
        usb.plug(product, location, is_fixed=True)
    assert notes_on_boards(usb) == []


def test_a_serial_number_that_two_have_is_not_used(usb: FakeUsb) -> None:
    usb.plug(CP2102N, "1-1")
    usb.plug(CP2102N, "1-2")
    read = printed(usb)
    assert [str(port.device) for port in read.ports] == ["location 1-1", "location 1-2"]


def test_with_a_configuration_the_yaml_has_the_missing_entries(usb: FakeUsb) -> None:
    usb.plug(CP2102N, "1-1")
    usb.plug(CH340, "1-2")
    usb.plug(USB_JTAG, "1-3")
    served = config(
        "name: desk, tcp: 4001, device: {location: 1-2}",
        "name: shelf, tcp: 4002-4009, device: {usb: '303a:*'}",
    )
    read = printed(usb, served)
    assert [(port.tcp_port, str(port.device)) for port in read.ports] == [
        (4010, f"serial {CP2102N.serial}")
    ]


def test_the_command_shows_the_ports_that_the_pools_remember(
    usb: FakeUsb,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gateway.usb.sysfs, "Sysfs", lambda: Sysfs(usb.sysfs, usb.dev))
    usb.plug(CH340, "1-1")
    table = PoolTable()
    ttys = Sysfs(usb.sysfs, usb.dev).usb_ttys()
    table.update({"shelf": range(4107, 4108)}, {"shelf": ttys}, ttys, 20_000)
    write_table(tmp_path / "state", table.to_json())
    file = tmp_path / "gateway.yaml"
    file.write_text("ports: [{name: shelf, tcp: 4100-4199, device: {usb: '1a86:*'}}]")
    options = ["--config", str(file), "--state-dir", str(tmp_path / "state")]
    assert main(["devices", *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["port"] == "shelf-4107"
    assert main(["devices", *options]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("shelf-4107")
    (tmp_path / "state" / FILE_NAME).write_text("damaged")
    assert main(["devices", *options]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("shelf-4100")
    assert main(["devices", "--yaml"]) == 0
    assert 'location: "1-1"' in capsys.readouterr().out
    file.write_text("ports: []")
    assert main(["devices", "--config", str(file)]) == 2
