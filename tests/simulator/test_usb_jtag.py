import pytest

from gateway.simulator.chips import ResetCause
from gateway.simulator.circuit import Boot, ChipReset, DownloadFlag, EnHigh, Event, LinesSet
from gateway.simulator.usb_jtag import UsbJtag
from tests.support import client_sequences
from tests.support.client_sequences import forwarded

OFF = (False, False)
BOTH = (True, True)
RTS = (False, True)
DTR = (True, False)


def play(*states: tuple[bool, bool], controller: UsbJtag | None = None) -> list[Event]:
    """What the states lead to; each is set at its place in the row, from 1 on."""
    controller = controller or UsbJtag()
    for t_ns, (dtr, rts) in enumerate(states, 1):
        controller.set_lines(t_ns, dtr, rts)
    return controller.handle_timer(len(states))


def boots(events: list[Event]) -> list[str]:
    return ["download" if each.download else "app" for each in events if isinstance(each, Boot)]


def test_chip_starts_its_app_at_power_up() -> None:
    controller = UsbJtag(boots_ns=100)
    assert controller.next_deadline() == 100
    assert controller.handle_timer(99) == []
    assert controller.handle_timer(100) == [EnHigh(100), Boot(100, download=False)]
    assert controller.next_deadline() is None


def test_each_pair_of_lines_does_what_the_manual_says() -> None:
    assert play(BOTH, DTR, BOTH, RTS, OFF) == [
        LinesSet(1, *BOTH),
        LinesSet(2, *DTR),
        DownloadFlag(2, on=True),
        LinesSet(3, *BOTH),
        LinesSet(4, *RTS),
        ChipReset(4, download=True),
        LinesSet(5, *OFF),
        DownloadFlag(5, on=False),
        Boot(5, download=True, cause=ResetCause.USB),
    ]


def test_a_change_is_due_at_once() -> None:
    controller = UsbJtag()
    controller.set_lines(7, *BOTH)
    assert controller.next_deadline() == 7


def test_chip_is_in_reset_until_the_pair_of_lines_changes() -> None:
    assert boots(play(RTS, RTS, RTS)) == []
    assert boots(play(RTS, RTS, BOTH)) == ["app"]


def test_flag_counts_when_the_reset_begins() -> None:
    assert boots(play(DTR, RTS, OFF)) == ["download"]
    assert boots(play(RTS, DTR, OFF)) == ["app"]


def test_both_lines_off_clear_the_flag() -> None:
    assert boots(play(DTR, OFF, RTS, OFF)) == ["app"]


def test_both_lines_on_leave_the_flag_as_it_is() -> None:
    assert boots(play(DTR, BOTH, RTS, OFF)) == ["download"]
    assert boots(play(OFF, BOTH, RTS, OFF)) == ["app"]


def test_reset_before_the_chip_has_started_comes_first() -> None:
    controller = UsbJtag(boots_ns=100)
    assert boots(play(DTR, RTS, OFF, controller=controller)) == ["download"]
    assert controller.handle_timer(1000) == []


def test_only_a_software_reset_finds_the_flag() -> None:
    controller = UsbJtag()
    play(DTR, controller=controller)
    download = {cause for cause in ResetCause if controller.enters_download(cause)}
    assert download == {ResetCause.SOFTWARE}
    play(OFF, controller=controller)
    assert not controller.enters_download(ResetCause.SOFTWARE)


# What clients send, forwarded as it comes


@pytest.mark.parametrize(
    "sequence", [client_sequences.ESPTOOL_CLASSIC, client_sequences.MONITOR_BOOTLOADER]
)
def test_classic_reset_from_idle_does_not_enter_download_mode(
    sequence: tuple[client_sequences.Sent, ...],
) -> None:
    assert boots(play(*forwarded(sequence))) == ["app"]


def test_classic_reset_of_a_local_client_does_not_enter_download_mode() -> None:
    # esptool's "tight" one, each pair of lines in one step.
    assert boots(play(BOTH, OFF, BOTH, RTS, DTR, OFF)) == ["app"]


def test_opening_one_line_after_the_other_sets_the_flag_for_whatever_resets_the_chip() -> None:
    # DTR alone for a moment: hard resets and classic ones then end up in download mode.
    opening = client_sequences.OPEN
    assert boots(play(*forwarded(opening, client_sequences.SCRIPT_LINES_OFF))) == ["download"]
    assert boots(play(*forwarded(opening, client_sequences.ESPTOOL_CLASSIC))) == ["download"]


def test_opening_both_lines_at_once_leaves_the_app_alone() -> None:
    # As cdc_acm does when the tty is opened.
    assert boots(play(BOTH, OFF)) == []
    assert boots(play(BOTH, *forwarded(client_sequences.ESPTOOL_HARD_DTR_OFF))) == ["app"]


def test_the_controllers_own_sequence_enters_download_mode_from_everywhere() -> None:
    own = client_sequences.ESPTOOL_USB_JTAG
    assert boots(play(*forwarded(own))) == ["download"]
    assert boots(play(*forwarded(client_sequences.OPEN, own))) == ["download"]
    hard = client_sequences.ESPTOOL_HARD_DTR_OFF
    assert boots(play(*forwarded(own, hard))) == ["download", "app"]
