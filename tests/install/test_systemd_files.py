"""What systemd and udev say to the files in systemd/, where their tools are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import run_tool

FOLDER = Path(__file__).parents[2] / "systemd"
UNIT = FOLDER / "esp-gateway.service"
RULES = FOLDER / "99-esp-gateway.rules"

#: Out of 10; what is left is that it serves the network and opens devices.
MAX_EXPOSURE = 1.5

TOOL_LIMIT_S = 60.0

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def udevadm_can_verify() -> bool:
    if shutil.which("udevadm") is None:
        return False
    # Since systemd 254; older ones don't know the word.
    asked = subprocess.run(["udevadm", "verify", "--help"], check=False, capture_output=True)
    return asked.returncode == 0


@needs_systemd_analyze
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # Nothing is installed here, and that is the only thing it may complain about.
    text, count = re.subn(
        "/opt/esp-gateway/bin/esp-gateway ", f"{sys.executable} ", UNIT.read_text()
    )
    assert count == 2
    unit.write_text(text)
    verified = run_tool(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit], TOOL_LIMIT_S
    )
    assert verified.stderr.strip() == ""
    assert verified.returncode == 0


@needs_systemd_analyze
def test_systemd_does_not_understand_what_is_wrong(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("ProtectHome=yes", "ProtectHom=yes"))
    verified = run_tool(["systemd-analyze", "verify", "--man=no", unit], TOOL_LIMIT_S)
    assert "ProtectHom" in verified.stderr


@needs_systemd_analyze
def test_the_unit_is_exposed_to_little() -> None:
    judged = run_tool(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", UNIT], TOOL_LIMIT_S
    )
    if "unrecognized option" in judged.stderr:
        pytest.skip("systemd-analyze is older than 250: it judges running services only")
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", judged.stdout)
    assert exposure is not None, judged.stdout + judged.stderr
    assert float(exposure[1]) <= MAX_EXPOSURE, judged.stdout


def test_the_modules_give_their_names_to_the_devices_that_the_unit_allows() -> None:
    # linux/drivers/usb/serial/usb-serial.c and linux/drivers/usb/class/cdc-acm.c
    class_of = {"usbserial": "char-ttyUSB", "cdc-acm": "char-ttyACM"}
    lines = (FOLDER / "esp-gateway.conf").read_text().splitlines()
    modules = [line for line in lines if line and not line.startswith("#")]
    allowed = re.findall(r"(?m)^DeviceAllow=(\S+) rw$", UNIT.read_text())
    assert sorted(class_of[module] for module in modules) == sorted(allowed)


@pytest.mark.skipif(not udevadm_can_verify(), reason="there is no udevadm that can verify rules")
def test_udev_understands_every_line_of_the_rules() -> None:
    verified = run_tool(["udevadm", "verify", RULES], TOOL_LIMIT_S)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_every_jump_of_the_rules_has_a_place_below_to_land() -> None:
    text = RULES.read_text()
    jumps = [(match[1], match.start()) for match in re.finditer('GOTO="(\\w+)"', text)]
    labels = {match[1]: match.start() for match in re.finditer('LABEL="(\\w+)"', text)}
    assert jumps
    assert all(labels[name] > place for name, place in jumps)
    assert set(labels) == {name for name, _ in jumps}


@pytest.mark.parametrize(
    ("vendor_id", "product_id", "is_ours"),
    [
        ("10c4", "ea60", True),
        ("1a86", "7523", True),
        ("1a86", "55d4", True),
        ("0403", "6010", True),
        ("067b", "23a3", True),
        ("303a", "1001", True),
        ("303a", "4001", True),
        ("2c7c", "0125", False),  # a modem, which ModemManager shall have
        ("1a86", "8010", False),
        ("10c4", "8a2a", False),  # a ZigBee and Z-Wave stick
    ],
)
def test_the_rules_are_for_boards_only(vendor_id: str, product_id: str, is_ours: bool) -> None:
    found = any(
        re.fullmatch(vendors, vendor_id) and (not products or re.fullmatch(products, product_id))
        for vendors, products in re.findall(
            r'ATTR\{idVendor\}=="([^"]+)",(?: ATTR\{idProduct\}=="([^"]+)",)? '
            r'GOTO="esp_gateway_board"',
            RULES.read_text(),
        )
    )
    assert found == is_ours
