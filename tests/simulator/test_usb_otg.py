import pytest

from gateway.simulator.chips import ResetCause
from gateway.simulator.circuit import Boot, EnHigh, Event, LinesSet, Restart
from gateway.simulator.usb_otg import TOUCH_BAUDRATE, Firmware, UsbOtg
from tests.support import client_sequences
from tests.support.client_sequences import forwarded

OFF = (False, False)
BOTH = (True, True)
RTS = (False, True)
DTR = (True, False)

CLASSIC = (RTS, BOTH, DTR, OFF)


def restarts(firmware: Firmware, *states: tuple[bool, bool]) -> list[str]:
    return _restarts(play(UsbOtg(lambda: firmware), *states))


def play(device: UsbOtg, *states: tuple[bool, bool]) -> list[Event]:
    """What the states lead to; each is set at its place in the row, from 1 on."""
    for t_ns, (dtr, rts) in enumerate(states, 1):
        device.set_lines(t_ns, dtr, rts)
    return device.handle_timer(len(states))


def _restarts(events: list[Event]) -> list[str]:
    return ["download" if each.download else "app" for each in events if isinstance(each, Restart)]


def test_chip_starts_its_app_at_power_up() -> None:
    device = UsbOtg(lambda: Firmware.NONE, boots_ns=100)
    assert device.next_deadline() == 100
    assert device.handle_timer(99) == []
    assert device.handle_timer(100) == [EnHigh(100), Boot(100, download=False)]
    assert device.next_deadline() is None


def test_lines_are_reported_and_due_at_once() -> None:
    device = UsbOtg(lambda: Firmware.ROM)
    device.set_lines(7, *DTR)
    assert device.next_deadline() == 7
    assert device.handle_timer(7) == [LinesSet(7, *DTR)]


def test_app_goes_to_download_mode_by_the_classic_sequence_line_by_line() -> None:
    device = UsbOtg(lambda: Firmware.APP)
    assert play(device, *CLASSIC)[-1] == Restart(4, download=True)


@pytest.mark.parametrize("opened", [[], [BOTH], [DTR, BOTH]])
def test_it_does_not_matter_how_the_tty_was_opened(opened: list[tuple[bool, bool]]) -> None:
    assert restarts(Firmware.APP, *opened, *CLASSIC) == ["download"]


def test_lines_set_again_to_what_they_are_do_not_count() -> None:
    assert restarts(Firmware.APP, RTS, RTS, BOTH, DTR, DTR, OFF) == ["download"]


@pytest.mark.parametrize(
    "states",
    [
        (RTS, DTR, OFF),  # esptool's "tight" reset and what a line controller makes of the classic
        (RTS, BOTH, OFF),
        (RTS, BOTH, DTR, RTS, OFF),
        (RTS, BOTH, RTS, BOTH, OFF),
        (RTS, OFF),
        (BOTH, OFF),
        (RTS, BOTH, DTR),
    ],
)
def test_nothing_else_moves_the_app(states: list[tuple[bool, bool]]) -> None:
    assert restarts(Firmware.APP, *states) == []


def test_sequence_that_was_broken_off_starts_anew() -> None:
    assert restarts(Firmware.APP, RTS, BOTH, OFF, *CLASSIC) == ["download"]


def test_what_esptool_sends_over_a_network_enters_download_mode_if_forwarded() -> None:
    states = forwarded(client_sequences.OPEN, client_sequences.ESPTOOL_CLASSIC)
    assert restarts(Firmware.APP, *states) == ["download"]


def test_hard_reset_does_not_move_the_app() -> None:
    states = forwarded(client_sequences.OPEN, client_sequences.ESPTOOL_HARD_DTR_ON)
    assert restarts(Firmware.APP, *states) == []


def test_1200_baud_bring_the_app_to_download_mode() -> None:
    device = UsbOtg(lambda: Firmware.APP)
    device.set_baudrate(5, 9600)
    device.set_baudrate(6, TOUCH_BAUDRATE)
    assert device.handle_timer(6) == [Restart(6, download=True)]


@pytest.mark.parametrize("firmware", [Firmware.NONE, Firmware.ROM, Firmware.STUB])
def test_1200_baud_mean_nothing_to_others(firmware: Firmware) -> None:
    device = UsbOtg(lambda: firmware)
    device.set_baudrate(5, TOUCH_BAUDRATE)
    assert device.handle_timer(5) == []


def test_rom_does_not_look_at_the_lines() -> None:
    assert restarts(Firmware.ROM, BOTH, *CLASSIC, RTS, OFF) == []


def test_stub_starts_the_app_when_rts_goes_off() -> None:
    assert restarts(Firmware.STUB, DTR, BOTH) == []
    assert restarts(Firmware.STUB, RTS, OFF) == ["app"]
    assert restarts(Firmware.STUB, BOTH, DTR) == ["app"]
    states = forwarded(client_sequences.ESPTOOL_HARD_DTR_OFF)
    assert restarts(Firmware.STUB, *states) == ["app"]


def test_loader_survives_a_software_reset_and_nothing_else() -> None:
    for firmware in (Firmware.ROM, Firmware.STUB):
        device = UsbOtg(lambda firmware=firmware: firmware)  # type: ignore[misc]
        download = {cause for cause in ResetCause if device.enters_download(cause)}
        assert download == {ResetCause.SOFTWARE}
    assert not UsbOtg(lambda: Firmware.APP).enters_download(ResetCause.SOFTWARE)
