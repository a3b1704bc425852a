import pytest

from gateway.simulator.attachment import Attachment
from gateway.simulator.chips import ResetCause
from gateway.simulator.circuit import DELIVERY_NS, Boot, ChipReset, Restart
from gateway.simulator.url import parse_url
from gateway.simulator.usb_otg import TOUCH_BAUDRATE, Firmware

MS = 1_000_000

CORE = {ResetCause.SOFTWARE, ResetCause.USB}
WHOLE = {ResetCause.POWER_ON, ResetCause.WATCHDOG}


def attachment(url: str, firmware: Firmware = Firmware.APP) -> Attachment:
    """A board's host side once the board runs."""
    attached = Attachment(parse_url(url), lambda: firmware, powered_ns=0)
    attached.handle_timer(1000 * MS)
    return attached


@pytest.mark.parametrize(
    ("url", "survived"),
    [
        ("sim://esp8266", CORE | WHOLE),
        ("sim://esp32c3?usb=bridge", CORE | WHOLE),
        ("sim://esp32c3", CORE),
        ("sim://esp32c3?reenumerates=0", CORE | WHOLE),
        ("sim://esp32c3?reenumerates=1", set()),
        ("sim://esp32s2", set()),
        ("sim://esp32s2?reenumerates=0", CORE | WHOLE),
    ],
)
def test_usb_device_goes_at_the_resets_that_it_does_not_survive(
    url: str, survived: set[ResetCause]
) -> None:
    attached = attachment(url)
    assert {cause for cause in ResetCause if not attached.leave(cause)} == survived
    assert attached.enumeration == 1 + len(ResetCause) - len(survived)


@pytest.mark.parametrize("chip", ["esp32c3?reenumerates=1", "esp32s2"])
def test_new_device_knows_nothing_of_the_old_ones_lines(chip: str) -> None:
    attached = attachment(f"sim://{chip}")
    attached.set_lines(2000 * MS, dtr=True, rts=False)
    assert attached.leave(ResetCause.SOFTWARE)
    assert not attached.dtr
    assert not attached.enters_download(ResetCause.SOFTWARE)
    assert attached.next_deadline() is None


def test_bridge_has_the_circuit() -> None:
    attached = attachment("sim://esp32c3?usb=bridge")
    attached.set_lines(2000 * MS, dtr=False, rts=True)
    attached.set_lines(2100 * MS, dtr=True, rts=False)
    events = attached.handle_timer(2200 * MS)
    assert Boot(2101 * MS, download=True) in events
    assert (attached.dtr, attached.rts) == (True, False)
    attached.set_lines(2300 * MS, dtr=False, rts=False)
    assert attached.next_deadline() == 2300 * MS + DELIVERY_NS


def test_c3_has_the_flag_logic() -> None:
    attached = attachment("sim://esp32c3")
    attached.set_lines(2000 * MS, dtr=False, rts=True)
    assert ChipReset(2000 * MS, download=False) in attached.handle_timer(2000 * MS)


@pytest.mark.parametrize(("chip", "n_restarts"), [("esp32s2", 1), ("esp32c3", 0), ("esp32", 0)])
def test_only_a_device_of_software_is_told_the_rate(chip: str, n_restarts: int) -> None:
    attached = attachment(f"sim://{chip}")
    attached.set_baudrate(2000 * MS, TOUCH_BAUDRATE)
    events = attached.handle_timer(2000 * MS)
    assert events == [Restart(2000 * MS, download=True)] * n_restarts


@pytest.mark.parametrize(
    ("url", "app", "download"),
    [
        ("sim://esp32", "10c4:ea60", "10c4:ea60"),
        ("sim://esp32c3", "303a:1001", "303a:1001"),
        ("sim://esp32c3?usb=bridge", "10c4:ea60", "10c4:ea60"),
        ("sim://esp32s2", "303a:80c2", "303a:0002"),
        ("sim://esp32s2?reenumerates=0", "303a:0002", "303a:0002"),
    ],
)
def test_ids_tell_the_kind_and_of_software_the_mode(url: str, app: str, download: str) -> None:
    attached = attachment(url)
    assert str(attached.usb_ids(download=False)) == app
    assert str(attached.usb_ids(download=True)) == download
