"""Which strategy a device and the operator's keys come to."""

import pytest

from gateway.protocol import reset_sequence as sequences
from gateway.protocol.reset import BOTH, IDLE, LineController
from gateway.protocol.reset_intent import IntentController, PassThrough, controller_for
from gateway.protocol.reset_sequence import parse_sequence
from gateway.protocol.reset_strategy import HardReset, Method, Reset, ResetChoice

CP2102 = (0x10C4, 0xEA60)
CP2102C = (0x10C4, 0xEA64)
USB_JTAG = (0x303A, 0x1001)
USB_OTG = (0x303A, 0x0002)


@pytest.mark.parametrize(
    ("usb_ids", "name"),
    [
        (None, "classic"),
        (CP2102, "classic"),
        (CP2102C, "classic with flow control"),
        (USB_JTAG, "usb-jtag"),
        (USB_OTG, "usb-otg"),
    ],
)
def test_auto_goes_by_the_usb_ids(usb_ids: tuple[int, int] | None, name: str) -> None:
    assert ResetChoice().strategy(usb_ids).name == name


@pytest.mark.parametrize("reset", [each for each in Reset if each is not Reset.AUTO])
def test_a_name_goes_before_the_usb_ids(reset: Reset) -> None:
    for usb_ids in (None, CP2102, USB_JTAG):
        assert ResetChoice(reset).strategy(usb_ids).name == reset.value


def test_a_sequence_of_the_operator_s_is_played_at_the_intent() -> None:
    sequence = parse_sequence("R1|W0.2|D1|R0|W0.1|D0")
    strategy = ResetChoice(sequence).strategy(USB_JTAG)
    assert (strategy.method, strategy.bootloader) == (Method.INTENT, sequence)
    assert (strategy.hard, strategy.rest) == (sequences.HARD, IDLE)


@pytest.mark.parametrize(
    ("hard_reset", "sequence"),
    [
        (HardReset.CLASSIC, sequences.HARD),
        (HardReset.USB_JTAG, sequences.HARD_USB),
        (parse_sequence("R1|W1|R0"), parse_sequence("R1|W1|R0")),
    ],
)
def test_the_hard_reset_is_chosen_by_itself(
    hard_reset: HardReset, sequence: sequences.ResetSequence
) -> None:
    for usb_ids in (CP2102, CP2102C, USB_JTAG, USB_OTG):
        strategy = ResetChoice(hard_reset=hard_reset).strategy(usb_ids)
        automatic = ResetChoice().strategy(usb_ids)
        assert strategy.hard == sequence
        assert (strategy.name, strategy.rest) == (automatic.name, automatic.rest)
        assert strategy.follows_usb_jtag == automatic.follows_usb_jtag


def test_the_client_s_lines_reset_a_bridge_s_board_unless_another_reset_is_asked_for() -> None:
    assert isinstance(controller_for(ResetChoice().strategy(CP2102)), LineController)
    same = ResetChoice(Reset.CLASSIC, HardReset.CLASSIC).strategy(None)
    assert isinstance(controller_for(same), LineController)
    other = ResetChoice(hard_reset=parse_sequence("R1|W1|R0")).strategy(CP2102)
    assert isinstance(controller_for(other), IntentController)


def test_lines_that_pass_keep_passing_whatever_the_hard_reset() -> None:
    choice = ResetChoice(Reset.NONE, HardReset.USB_JTAG)
    assert isinstance(controller_for(choice.strategy(USB_JTAG)), PassThrough)


def test_firmware_that_watches_the_lines_sees_both_on_at_rest() -> None:
    for choice in (ResetChoice(), ResetChoice(Reset.TOUCH_1200), ResetChoice(Reset.USB_OTG)):
        assert choice.strategy(USB_OTG).rest == BOTH
