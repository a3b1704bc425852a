import re

import pytest

from gateway.simulator.chips import CHIPS, ResetCause

#: How esptool looks for the boot mode in a boot log.
_BOOT_MODE = re.compile(rb"boot:(0x[0-9a-fA-F]+)(.*waiting for download)?", re.DOTALL)


def test_esp32_comes_first() -> None:
    assert next(iter(CHIPS)) == "esp32"


@pytest.mark.parametrize("cause", ResetCause)
def test_esptool_reads_the_boot_mode_from_the_log(cause: ResetCause) -> None:
    chip = CHIPS["esp32"]
    app = _BOOT_MODE.search(chip.boot_messages(cause, download=False))
    download = _BOOT_MODE.search(chip.boot_messages(cause, download=True))
    assert app is not None
    assert app.groups() == (b"0x13", None)
    assert download is not None
    assert download[1] == b"0x3"
    assert download[2] is not None


@pytest.mark.parametrize("name", CHIPS)
def test_boot_logs_tell_why_the_chip_was_reset(name: str) -> None:
    logs = {CHIPS[name].boot_messages(cause, download=False) for cause in ResetCause}
    assert len(logs) == len(ResetCause)
    assert all(b"{" not in log and log.endswith(b"\r\n") for log in logs)


@pytest.mark.parametrize("name", CHIPS)
def test_no_sync_looks_like_a_running_stubs(name: str) -> None:
    assert CHIPS[name].sync_value != 0
