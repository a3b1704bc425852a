import re

import pytest

from gateway.simulator.chips import CHIPS, ResetCause

#: How esptool looks for the boot mode in a boot log.
_BOOT_MODE = re.compile(rb"boot:(0x[0-9a-fA-F]+)(.*waiting for download)?", re.DOTALL)


def test_esp32_comes_first() -> None:
    assert next(iter(CHIPS)) == "esp32"


@pytest.mark.parametrize(
    ("name", "app_mode", "download_mode"),
    [("esp32", b"0x13", b"0x3"), ("esp32c3", b"0xc", b"0x4"), ("esp32s2", b"0x8", b"0x0")],
)
@pytest.mark.parametrize("cause", sorted(set(ResetCause) - {ResetCause.USB}, key=str))
def test_esptool_reads_the_boot_mode_from_the_log(
    cause: ResetCause, name: str, app_mode: bytes, download_mode: bytes
) -> None:
    app = _BOOT_MODE.search(CHIPS[name].boot_messages(cause, download=False))
    download = _BOOT_MODE.search(CHIPS[name].boot_messages(cause, download=True))
    assert app is not None
    assert app.groups() == (app_mode, None)
    assert download is not None
    assert download[1] == download_mode
    assert download[2] is not None


@pytest.mark.parametrize("name", CHIPS)
def test_boot_logs_tell_why_the_chip_was_reset(name: str) -> None:
    logs = {
        CHIPS[name].boot_messages(cause, download=False) for cause in CHIPS[name].boot_log.causes
    }
    assert len(logs) == len(CHIPS[name].boot_log.causes) >= 3
    assert all(b"{" not in log and log.endswith(b"\r\n") for log in logs)


@pytest.mark.parametrize("name", CHIPS)
def test_no_sync_looks_like_a_running_stubs(name: str) -> None:
    assert CHIPS[name].sync_value != 0


def test_esp8266_boot_log_comes_at_its_odd_rate() -> None:
    chip = CHIPS["esp8266"]
    assert chip.boot_log.baudrate == 74880
    assert b"boot mode:(1,6)" in chip.boot_messages(ResetCause.POWER_ON, download=True)
    assert b"boot mode:(3,6)" in chip.boot_messages(ResetCause.POWER_ON, download=False)


def test_security_info_has_the_chip_id_where_there_is_room() -> None:
    assert CHIPS["esp32c3"].security_info() == bytes(12) + b"\x05" + bytes(7)
    assert CHIPS["esp32s2"].security_info() == bytes(12)
    assert CHIPS["esp32"].security_info() == b""
