import subprocess
import sys
from pathlib import Path

import pytest

from gateway.simulator.chips import UsbKind
from gateway.simulator.url import BoardUrl, parse_url


def test_everything_but_the_chip_has_a_default() -> None:
    assert parse_url("sim://esp32") == BoardUrl(
        chip="esp32", en_rise_ms=1.0, name="board", folder=None, heartbeat_s=1.0, flash_mb=4
    )


def test_every_parameter_is_read() -> None:
    url = "sim://esp32?en_rise_ms=0.1&name=desk&dir=/some/folder&heartbeat_s=0&flash_mb=16"
    assert parse_url(url) == BoardUrl("esp32", 0.1, "desk", Path("/some/folder"), 0.0, 16)


def test_folder_may_hold_any_character() -> None:
    assert parse_url("sim://esp32?dir=/a%20b%26c%3Dd").folder == Path("/a b&c=d")


def test_parameters_of_a_board_that_is_its_own_usb_device_are_read() -> None:
    url = "sim://esp32s2?usb=otg&reenumerates=0&reenumerate_s=2.5&renames=1"
    assert parse_url(url) == BoardUrl(
        "esp32s2", usb=UsbKind.OTG, reenumerates=False, reenumerate_s=2.5, renames=True
    )


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("sim://esp32", UsbKind.BRIDGE),
        ("sim://esp8266", UsbKind.BRIDGE),
        ("sim://esp32c3", UsbKind.JTAG),
        ("sim://esp32c3?usb=bridge", UsbKind.BRIDGE),
        ("sim://esp32s2", UsbKind.OTG),
        ("sim://esp32s2?usb=bridge", UsbKind.BRIDGE),
    ],
)
def test_each_chip_hangs_on_usb_as_its_boards_usually_do(url: str, kind: UsbKind) -> None:
    assert parse_url(url).usb_kind is kind


@pytest.mark.parametrize(
    "url",
    [
        "sim://esp32",
        "sim://esp32c3?reenumerates=1&renames=1&reenumerate_s=0.05",
        "sim://esp32s2?usb=bridge",
        "sim://esp32/?name=x.y-z_1&heartbeat_s=0.25",
        "sim://esp32?dir=relative/a%20b%26c%3Dd%3F%23%2B&en_rise_ms=100",
    ],
)
def test_text_of_a_board_url_parses_to_the_same(url: str) -> None:
    assert parse_url(str(parse_url(url))) == parse_url(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/dev/ttyUSB0", "sim://CHIP"),
        ("sim:esp32", "sim://CHIP"),
        ("sim://esp32/sub", "sim://CHIP"),
        ("sim://esp32#x", "sim://CHIP"),
        ("sim://", "esp32"),
        ("sim://esp99", "esp32"),
        (
            "sim://esp32?speed=1",
            "en_rise_ms, name, dir, heartbeat_s, flash_mb, "
            "usb, reenumerates, reenumerate_s, renames",
        ),
        ("sim://esp32?usb=serial", "bridge, jtag, otg"),
        ("sim://esp32?usb=jtag", "bridge"),
        ("sim://esp32c3?usb=otg", "jtag, bridge"),
        ("sim://esp32c3?reenumerates=yes", "0, 1"),
        ("sim://esp32c3?reenumerate_s=0", "0.01 to 60.0"),
        ("sim://esp32c3?renames=", "0, 1"),
        ("sim://esp32?renames=1", "usb=jtag, usb=otg"),
        ("sim://esp32c3?usb=bridge&reenumerates=1", "usb=jtag, usb=otg"),
        ("sim://esp32?name", "letters"),
        ("sim://esp32?name=a&name=b", "once"),
        ("sim://esp32?en_rise_ms=0.09", "0.1 to 100.0"),
        ("sim://esp32?en_rise_ms=101", "0.1 to 100.0"),
        ("sim://esp32?en_rise_ms=nan", "0.1 to 100.0"),
        ("sim://esp32?en_rise_ms=1_0", "0.1 to 100.0"),
        ("sim://esp32?heartbeat_s=-1", "0.01 to 86400.0"),
        ("sim://esp32?heartbeat_s=1e400", "0.01 to 86400.0"),
        ("sim://esp32?flash_mb=3", "1, 2, 4, 8, 16"),
        ("sim://esp32?name=..", "letters"),
        ("sim://esp32?name=a%0Ab", "letters"),
        ("sim://esp32?name=%C3%A9", "letters"),
        ("sim://esp32?dir=", "folder"),
        ("sim://esp32?dir=a%00b", "folder"),
        ("sim://esp32\n", "esp32"),
    ],
)
def test_a_mistake_is_one_line_with_what_is_expected(url: str, expected: str) -> None:
    with pytest.raises(ValueError, match=": expected ") as caught:
        parse_url(url)
    message = str(caught.value)
    assert expected in message.partition(": expected ")[2]
    assert message.isprintable()


def test_reading_urls_imports_nothing_heavy() -> None:
    code = "import sys, gateway.simulator.url; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"asyncio", "serial", "socket", "yaml"} & set(modules)
