import pytest

from gateway.simulator.usb import BRIDGE_IDS, JTAG_IDS, OTG_APP_IDS, OTG_ROM_IDS, UsbIds


def test_ids_are_written_as_lsusb_does_and_read_back() -> None:
    assert str(OTG_ROM_IDS) == "303a:0002"
    assert UsbIds.parse("10c4:ea60") == BRIDGE_IDS == (0x10C4, 0xEA60)


@pytest.mark.parametrize("text", ["", "303a", "303a:0002:1", "303a:lots"])
def test_other_text_is_no_ids(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        UsbIds.parse(text)


def test_each_kind_of_device_can_be_told_by_its_ids() -> None:
    assert len({BRIDGE_IDS, JTAG_IDS, OTG_APP_IDS, OTG_ROM_IDS}) == 4
