"""Which strategy a device and the operator's keys come to."""

import pytest

from gateway.protocol import reset as sequences
from gateway.protocol.line_controller import (
    IntentController,
    LineController,
    PassThrough,
    controller_for,
)
from gateway.protocol.reset import (
    BOTH,
    IDLE,
    RESET,
    STRAP,
    HardReset,
    Lines,
    LinesAtRest,
    Method,
    Reset,
    ResetChoice,
    parse_sequence,
)

CP2102 = (0x10C4, 0xEA60)
CP2102C = (0x10C4, 0xEA64)
USB_JTAG = (0x303A, 0x1001)
USB_OTG = (0x303A, 0x0002)
PICO = (0x2E8A, 0x000A)
NUCLEO = (0x0483, 0x374B)
UNO = (0x2341, 0x0043)


@pytest.mark.parametrize(
    ("usb_ids", "name"),
    [
        (None, "classic"),
        (CP2102, "classic"),
        (CP2102C, "classic with flow control"),
        (USB_JTAG, "usb-jtag"),
        (USB_OTG, "usb-otg"),
        (PICO, "none, 1200 baud touch"),
        (NUCLEO, "none, no reset"),
        (UNO, "none, reset by DTR"),
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


@pytest.mark.parametrize("usb_ids", [PICO, NUCLEO, UNO])
def test_boards_that_are_no_esps_get_the_client_s_lines(usb_ids: tuple[int, int]) -> None:
    for choice in (ResetChoice(), ResetChoice(Reset.NONE)):
        strategy = choice.strategy(usb_ids)
        assert isinstance(controller_for(strategy), PassThrough)
        assert not strategy.has_circuit
        assert sequences.CLASSIC_TIGHT not in (strategy.bootloader, strategy.hard)


def test_an_operator_may_say_that_a_board_is_reset_like_an_esp_all_the_same() -> None:
    assert isinstance(controller_for(ResetChoice(Reset.CLASSIC).strategy(NUCLEO)), LineController)
    strategy = ResetChoice(hard_reset=parse_sequence("R1|W0.1|R0")).strategy(NUCLEO)
    assert (strategy.method, strategy.rest) == (Method.AS_THEY_COME, BOTH)
    assert strategy.hard.steps


def test_lines_that_pass_rest_where_the_board_s_kind_has_them() -> None:
    for usb_ids, rest in ((None, IDLE), (CP2102, IDLE), (USB_OTG, BOTH), (PICO, BOTH)):
        assert ResetChoice(Reset.NONE).strategy(usb_ids).rest == rest


@pytest.mark.parametrize("usb_ids", [None, CP2102, USB_JTAG, USB_OTG, PICO, UNO])
@pytest.mark.parametrize("lines", [IDLE, BOTH])
def test_lines_rest_where_the_operator_wants_them(
    usb_ids: tuple[int, int] | None, lines: Lines
) -> None:
    for reset in (Reset.AUTO, Reset.NONE, Reset.CLASSIC, Reset.TOUCH_1200):
        assert ResetChoice(reset, rest=LinesAtRest(lines)).strategy(usb_ids).rest == lines


def test_a_circuit_whose_lines_rest_at_on_is_reset_by_intent() -> None:
    strategy = ResetChoice(rest=LinesAtRest(BOTH)).strategy(CP2102)
    assert isinstance(controller_for(strategy), IntentController)
    assert isinstance(
        controller_for(ResetChoice(rest=LinesAtRest(IDLE)).strategy(CP2102)), LineController
    )


@pytest.mark.parametrize("lines", [RESET, STRAP])
def test_one_line_alone_rests_at_on_only_where_it_means_no_reset(lines: Lines) -> None:
    rest = LinesAtRest(lines)
    for usb_ids in (None, CP2102, USB_JTAG, USB_OTG):
        for reset in (Reset.AUTO, Reset.CLASSIC, Reset.USB_JTAG, Reset.USB_OTG):
            choice = ResetChoice(reset, rest=rest)
            assert choice.strategy(usb_ids) == ResetChoice(reset).strategy(usb_ids)
    for choice in (ResetChoice(Reset.NONE, rest=rest), ResetChoice(rest=rest)):
        assert choice.strategy(PICO).rest == lines
    assert ResetChoice(Reset.NONE, rest=rest).strategy(CP2102).rest == lines
