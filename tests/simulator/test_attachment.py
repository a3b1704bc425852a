"""What DTR, RTS and the baud rate do, for each kind of connection to USB."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.attachment import (
    BRIDGE_IDS,
    DELIVERY_NS,
    JTAG_IDS,
    OTG_APP_IDS,
    OTG_ROM_IDS,
    SHORTEST_RESET_NS,
    TOUCH_BAUDRATE,
    Attachment,
    Boot,
    Event,
    Firmware,
    Happened,
    Restart,
    UsbIds,
)
from gateway.simulator.chips import ResetCause
from gateway.simulator.url import parse_url
from tests.support import client_sequences
from tests.support.client_sequences import forwarded

MS = 1_000_000
RISE_NS = 1 * MS
LATER_NS = 10_000 * MS

OFF = (False, False)
BOTH = (True, True)
RTS = RESET = (False, True)
DTR = STRAP = (True, False)

CORE = {ResetCause.SOFTWARE, ResetCause.USB}
WHOLE = {ResetCause.POWER_ON, ResetCause.WATCHDOG}

Lines = tuple[bool, bool]


def attachment(
    url: str, firmware: Firmware = Firmware.APP, powered_ns: int = -LATER_NS
) -> Attachment:
    """The host's side of a board; its first boot, at power-up, is over unless `powered_ns` is 0."""
    attached = Attachment(parse_url(url), lambda: firmware, powered_ns)
    assert boots(attached.logic.handle_timer(0)) == ([] if powered_ns == 0 else ["app"])
    return attached


def play(attached: Attachment, *changes: tuple[int, Lines]) -> list[Event]:
    """What lines that are set at these times lead to."""
    for stamp_ns, (dtr, rts) in changes:
        attached.logic.set_lines(stamp_ns, dtr, rts)
    return attached.logic.handle_timer(LATER_NS)


def in_a_row(attached: Attachment, *states: Lines) -> list[Event]:
    """What the states lead to; each is set at its place in the row, from 1 on."""
    return play(attached, *enumerate(states, 1))


def boots(events: list[Event]) -> list[str]:
    return ["download" if each.download else "app" for each in events if isinstance(each, Boot)]


def set_to(t_ns: int, lines: Lines) -> Event:
    return Happened(t_ns, "lines", {"dtr": lines[0], "rts": lines[1]})


def low(t_ns: int) -> Event:
    return Happened(t_ns, "en_low")


def high(t_ns: int) -> Event:
    return Happened(t_ns, "en_high")


@pytest.mark.parametrize("chip", ["esp32", "esp32c3", "esp32s2"])
def test_power_up_boots_the_app_once_en_has_risen(chip: str) -> None:
    logic = attachment(f"sim://{chip}", powered_ns=0).logic
    due_ns = logic.next_deadline()
    assert due_ns == RISE_NS + (DELIVERY_NS if chip == "esp32" else 0)
    assert logic.handle_timer(due_ns - 1) == []
    assert logic.handle_timer(due_ns) == [high(RISE_NS), Boot(RISE_NS, download=False)]
    assert logic.next_deadline() is None


# A device that goes and comes back.


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
    attached.logic.set_lines(2000 * MS, dtr=True, rts=False)
    assert attached.leave(ResetCause.SOFTWARE)
    assert not attached.logic.dtr
    assert not attached.logic.enters_download(ResetCause.SOFTWARE)
    assert attached.logic.next_deadline() is None


@pytest.mark.parametrize(("chip", "n_restarts"), [("esp32s2", 1), ("esp32c3", 0), ("esp32", 0)])
def test_only_a_port_of_software_is_told_the_rate(chip: str, n_restarts: int) -> None:
    attached = attachment(f"sim://{chip}")
    attached.set_baudrate(2000 * MS, TOUCH_BAUDRATE)
    events = attached.logic.handle_timer(2000 * MS)
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


def test_ids_are_written_as_lsusb_does_and_read_back() -> None:
    assert str(OTG_ROM_IDS) == "303a:0002"
    assert UsbIds.parse("10c4:ea60") == BRIDGE_IDS == (0x10C4, 0xEA60)
    assert len({BRIDGE_IDS, JTAG_IDS, OTG_APP_IDS, OTG_ROM_IDS}) == 4
    for text in ("", "303a", "303a:0002:1", "303a:lots"):
        with pytest.raises(ValueError, match=r"."):
            UsbIds.parse(text)


# The circuit of two transistors.


def circuit(en_rise_ns: int = RISE_NS) -> Attachment:
    return attachment(f"sim://esp32?en_rise_ms={en_rise_ns / MS}")


def pin_events(events: list[Event]) -> list[Event]:
    return [each for each in events if not (isinstance(each, Happened) and each.event == "lines")]


def test_only_a_software_reset_finds_the_strap_as_it_was() -> None:
    board = circuit()
    play(board, (1 * MS, RESET), (100 * MS, STRAP), (200 * MS, OFF))
    assert board.logic.enters_download(ResetCause.SOFTWARE)
    assert not board.logic.enters_download(ResetCause.WATCHDOG)
    board = circuit()
    play(board, (1 * MS, STRAP))
    assert not board.logic.enters_download(ResetCause.SOFTWARE)
    assert board.logic.enters_download(ResetCause.WATCHDOG)


def test_en_is_low_only_with_rts_on_and_dtr_off() -> None:
    events = play(circuit(), (1 * MS, BOTH), (2 * MS, STRAP), (3 * MS, OFF), (4 * MS, RESET))
    assert pin_events(events) == [low(4 * MS)]


def test_lines_are_reported_each_time_they_are_set() -> None:
    assert play(circuit(), (1 * MS, BOTH), (2 * MS, BOTH)) == [
        set_to(1 * MS, BOTH),
        set_to(2 * MS, BOTH),
    ]


@pytest.mark.parametrize("en_rise_ns", [MS // 10, 1 * MS, 10 * MS, 40 * MS])
def test_releasing_en_and_pulling_io0_in_one_step_enters_download_mode(en_rise_ns: int) -> None:
    events = play(circuit(en_rise_ns), (10 * MS, RESET), (110 * MS, STRAP), (160 * MS, OFF))
    up_ns = 110 * MS + en_rise_ns
    assert pin_events(events) == [low(10 * MS), high(up_ns), Boot(up_ns, download=True)]


@pytest.mark.parametrize("en_rise_ns", [MS // 10, 1 * MS, 10 * MS, 40 * MS])
def test_releasing_en_50_ms_before_pulling_io0_boots_the_app(en_rise_ns: int) -> None:
    events = play(
        circuit(en_rise_ns), (10 * MS, RESET), (110 * MS, BOTH), (160 * MS, STRAP), (210 * MS, OFF)
    )
    assert boots(events) == ["app"]


def test_io0_pulled_while_en_still_rises_enters_download_mode() -> None:
    events = play(circuit(RISE_NS), (10 * MS, RESET), (110 * MS, BOTH), (110 * MS + 900_000, STRAP))
    assert boots(events) == ["download"]


def test_io0_released_before_en_is_up_boots_the_app() -> None:
    events = play(circuit(10 * MS), (10 * MS, RESET), (110 * MS, STRAP), (119 * MS, OFF))
    assert boots(events) == ["app"]


def test_rise_starts_again_when_en_is_pulled_meanwhile() -> None:
    events = play(
        circuit(10 * MS), (1 * MS, RESET), (20 * MS, OFF), (25 * MS, RESET), (26 * MS, STRAP)
    )
    assert pin_events(events) == [
        low(1 * MS),
        high(36 * MS),
        Boot(36 * MS, download=True),
    ]


def test_dip_too_short_for_a_reset_is_ignored() -> None:
    events = play(circuit(), (5 * MS, RESET), (5 * MS + SHORTEST_RESET_NS - 1, OFF))
    assert pin_events(events) == []


def test_shortest_reset_counts_with_its_true_time() -> None:
    events = play(circuit(), (5 * MS, RESET), (5 * MS + SHORTEST_RESET_NS, OFF))
    assert pin_events(events)[0] == low(5 * MS)
    assert boots(events) == ["app"]


def test_change_that_arrives_after_the_rise_counts_by_its_stamp() -> None:
    board = circuit()
    board.logic.set_lines(10 * MS, *RESET)
    board.logic.set_lines(110 * MS, *BOTH)
    en_up_ns = 110 * MS + RISE_NS
    assert boots(board.logic.handle_timer(en_up_ns + DELIVERY_NS - 1)) == []
    board.logic.set_lines(en_up_ns - 1, *STRAP)
    assert boots(board.logic.handle_timer(LATER_NS)) == ["download"]


def test_change_later_than_the_allowance_does_not_undo_a_boot() -> None:
    board = circuit()
    board.logic.set_lines(10 * MS, *RESET)
    board.logic.set_lines(110 * MS, *BOTH)
    decided_ns = 110 * MS + RISE_NS + DELIVERY_NS
    assert boots(board.logic.handle_timer(decided_ns)) == ["app"]
    board.logic.set_lines(110 * MS, *STRAP)
    assert board.logic.handle_timer(LATER_NS) == [set_to(decided_ns - DELIVERY_NS, STRAP)]


def test_pins_follow_the_lines_once_replayed() -> None:
    board = circuit()
    board.logic.set_lines(10 * MS, *STRAP)
    assert (board.logic.dtr, board.logic.rts) == OFF
    board.logic.handle_timer(10 * MS + DELIVERY_NS)
    assert (board.logic.dtr, board.logic.rts) == STRAP


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 100 * MS), st.sampled_from([OFF, BOTH, RESET, STRAP])),
        max_size=12,
        unique_by=lambda change: change[0],
    )
)
def test_order_of_delivery_does_not_matter(
    changes: list[tuple[int, tuple[bool, bool]]],
) -> None:
    assert play(circuit(), *changes) == play(circuit(), *sorted(changes))


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 60 * MS), st.sampled_from([OFF, BOTH, RESET, STRAP])), max_size=12
    ),
    step_ns=st.integers(MS // 3, 30 * MS),
)
def test_events_do_not_depend_on_how_often_the_timer_runs(
    changes: list[tuple[int, tuple[bool, bool]]], step_ns: int
) -> None:
    at_once, stepwise = circuit(), circuit()
    expected = play(at_once, *changes)
    for stamp_ns, (dtr, rts) in changes:
        stepwise.logic.set_lines(stamp_ns, dtr, rts)
    events: list[Event] = []
    for now_ns in range(0, 200 * MS, step_ns):
        events += stepwise.logic.handle_timer(now_ns)
    assert events == expected


# USB-Serial/JTAG.


def jtag(*states: Lines) -> list[Event]:
    return in_a_row(attachment("sim://esp32c3"), *states)


def test_each_pair_of_lines_does_what_the_manual_says() -> None:
    assert jtag(BOTH, DTR, BOTH, RTS, OFF) == [
        set_to(1, BOTH),
        set_to(2, DTR),
        Happened(2, "download_flag", {"on": True}),
        set_to(3, BOTH),
        set_to(4, RTS),
        Happened(4, "chip_reset", {"download": True}),
        set_to(5, OFF),
        Happened(5, "download_flag", {"on": False}),
        Boot(5, download=True, cause=ResetCause.USB),
    ]


def test_chip_is_in_reset_until_the_pair_of_lines_changes() -> None:
    assert boots(jtag(RTS, RTS, RTS)) == []
    assert boots(jtag(RTS, RTS, BOTH)) == ["app"]


def test_flag_counts_when_the_reset_begins() -> None:
    assert boots(jtag(DTR, RTS, OFF)) == ["download"]
    assert boots(jtag(RTS, DTR, OFF)) == ["app"]


def test_both_lines_off_clear_the_flag() -> None:
    assert boots(jtag(DTR, OFF, RTS, OFF)) == ["app"]


def test_both_lines_on_leave_the_flag_as_it_is() -> None:
    assert boots(jtag(DTR, BOTH, RTS, OFF)) == ["download"]
    assert boots(jtag(OFF, BOTH, RTS, OFF)) == ["app"]


def test_reset_before_the_chip_has_started_comes_first() -> None:
    board = attachment("sim://esp32c3", powered_ns=0)
    assert boots(in_a_row(board, DTR, RTS, OFF)) == ["download"]
    assert board.logic.handle_timer(2 * LATER_NS) == []


def test_only_a_software_reset_finds_the_flag() -> None:
    board = attachment("sim://esp32c3")
    in_a_row(board, DTR)
    download = {cause for cause in ResetCause if board.logic.enters_download(cause)}
    assert download == {ResetCause.SOFTWARE}
    in_a_row(board, OFF)
    assert not board.logic.enters_download(ResetCause.SOFTWARE)


# What clients send, forwarded as it comes


@pytest.mark.parametrize(
    "sequence", [client_sequences.ESPTOOL_CLASSIC, client_sequences.MONITOR_BOOTLOADER]
)
def test_classic_reset_from_idle_does_not_enter_download_mode(
    sequence: tuple[client_sequences.Sent, ...],
) -> None:
    assert boots(jtag(*forwarded(sequence))) == ["app"]


def test_classic_reset_of_a_local_client_does_not_enter_download_mode() -> None:
    # esptool's "tight" one, each pair of lines in one step.
    assert boots(jtag(BOTH, OFF, BOTH, RTS, DTR, OFF)) == ["app"]


def test_opening_one_line_after_the_other_sets_the_flag_for_whatever_resets_the_chip() -> None:
    # DTR alone for a moment: hard resets and classic ones then end up in download mode.
    opening = client_sequences.OPEN
    assert boots(jtag(*forwarded(opening, client_sequences.SCRIPT_LINES_OFF))) == ["download"]
    assert boots(jtag(*forwarded(opening, client_sequences.ESPTOOL_CLASSIC))) == ["download"]


def test_opening_both_lines_at_once_leaves_the_app_alone() -> None:
    # As cdc_acm does when the tty is opened.
    assert boots(jtag(BOTH, OFF)) == []
    assert boots(jtag(BOTH, *forwarded(client_sequences.ESPTOOL_HARD_DTR_OFF))) == ["app"]


def test_the_controllers_own_sequence_enters_download_mode_from_everywhere() -> None:
    own = client_sequences.ESPTOOL_USB_JTAG
    assert boots(jtag(*forwarded(own))) == ["download"]
    assert boots(jtag(*forwarded(client_sequences.OPEN, own))) == ["download"]
    hard = client_sequences.ESPTOOL_HARD_DTR_OFF
    assert boots(jtag(*forwarded(own, hard))) == ["download", "app"]


# USB-OTG.

CLASSIC = (RTS, BOTH, DTR, OFF)


def restarts(firmware: Firmware, *states: Lines) -> list[str]:
    events = in_a_row(attachment("sim://esp32s2", firmware), *states)
    return ["download" if each.download else "app" for each in events if isinstance(each, Restart)]


def test_app_goes_to_download_mode_by_the_classic_sequence_line_by_line() -> None:
    assert in_a_row(attachment("sim://esp32s2"), *CLASSIC)[-1] == Restart(4, download=True)


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
    device = attachment("sim://esp32s2", Firmware.APP)
    device.set_baudrate(5, 9600)
    device.set_baudrate(6, TOUCH_BAUDRATE)
    assert device.logic.handle_timer(6) == [Restart(6, download=True)]


@pytest.mark.parametrize("firmware", [Firmware.NONE, Firmware.ROM, Firmware.STUB])
def test_1200_baud_mean_nothing_to_others(firmware: Firmware) -> None:
    device = attachment("sim://esp32s2", firmware)
    device.set_baudrate(5, TOUCH_BAUDRATE)
    assert device.logic.handle_timer(5) == []


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
        device = attachment("sim://esp32s2", firmware)
        download = {cause for cause in ResetCause if device.logic.enters_download(cause)}
        assert download == {ResetCause.SOFTWARE}
    assert not attachment("sim://esp32s2").logic.enters_download(ResetCause.SOFTWARE)
