"""Resets by intent: streams of real clients, a network, and boards that each need their own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.line_controller import (
    Controller,
    IntentController,
    PassThrough,
    controller_for,
    controller_of_returned,
)
from gateway.protocol.reset import (
    BOTH,
    IDLE,
    RESET,
    STRAP,
    Baudrate,
    HardReset,
    Lines,
    Reset,
    ResetChoice,
    ResetStrategy,
    parse_sequence,
)
from tests.support import client_sequences as clients
from tests.support.client_sequences import Sent
from tests.support.line_bench import (
    ArduinoCdc,
    Bench,
    Board,
    Boot,
    CircuitBoard,
    IdfConsole,
    MicroPython,
    TouchOnly,
    UsbSerialJtag,
    request,
)


def strategy(reset: Reset, hard_reset: HardReset = HardReset.AUTO) -> ResetStrategy:
    return ResetChoice(reset, hard_reset).strategy(None)


USB_JTAG = strategy(Reset.USB_JTAG)
USB_OTG = strategy(Reset.USB_OTG)
TOUCH = strategy(Reset.TOUCH_1200)
NONE = strategy(Reset.NONE)
#: The classic circuit, but played: as a custom sequence is.
PLAYED = ResetChoice(parse_sequence("D0|R1|W0.1|U1,0|W0.05|D0")).strategy(None)
FLOW_CONTROL = ResetChoice().strategy((0x10C4, 0xEA64))

#: Each strategy with a board that needs it, and whether that can be reset into its app at all.
BOARDS: dict[str, tuple[ResetStrategy, Callable[[], Board], bool]] = {
    "usb-jtag": (USB_JTAG, UsbSerialJtag, True),
    "usb-otg, ESP-IDF": (USB_OTG, IdfConsole, True),
    "usb-otg, MicroPython": (USB_OTG, MicroPython, False),
    "usb-otg, Arduino": (USB_OTG, ArduinoCdc, False),
    "usb-otg, touch": (USB_OTG, TouchOnly, False),
    "touch-1200, Arduino": (TOUCH, ArduinoCdc, False),
    "touch-1200, touch": (TOUCH, TouchOnly, False),
    "custom": (PLAYED, lambda: CircuitBoard(0.001), True),
    "custom, slow board": (PLAYED, lambda: CircuitBoard(0.01), True),
    "flow control": (FLOW_CONTROL, lambda: CircuitBoard(0.001), True),
}

DOWNLOAD_RESETS = {
    **clients.DOWNLOAD_RESETS,
    "esptool --before usb-reset": (*clients.OPEN, *clients.ESPTOOL_USB_JTAG),
    "usb-reset after other use": (*clients.MONITOR_ATTACH, *clients.ESPTOOL_USB_JTAG),
}


def delays(seed: int) -> list[Callable[[], float]]:
    """Networks: a steady one, a jittery one, and one that now and then delivers in a bunch."""
    rng = random.Random(seed)
    steady_s = rng.choice([0.0, 0.0005, 0.05, 0.25, 0.5])
    return [
        lambda: steady_s,
        lambda: rng.uniform(0.0, 0.5),
        lambda: 0.5 if rng.random() < 0.3 else 0.001,
    ]


def benches(board: Callable[[], Board], strategy: ResetStrategy) -> Iterable[Bench]:
    """One bench per network and per way of waiting for acknowledgements."""
    for seed in range(12):
        for ignores_answers in (False, True):
            for delay_s in delays(seed):
                yield Bench(
                    board(),
                    delay_s,
                    ignores_answers=ignores_answers,
                    controller=controller_for(strategy),
                )


def leave(bench: Bench) -> None:
    bench.leave()
    assert not bench.controller.busy
    assert bench.controller.next_deadline() is None
    assert bench.controller.wanted == IDLE


@pytest.mark.parametrize("name", DOWNLOAD_RESETS)
@pytest.mark.parametrize("kind", BOARDS)
def test_reset_into_the_bootloader_succeeds_at_the_first_attempt(kind: str, name: str) -> None:
    needed, board, _ = BOARDS[kind]
    for bench in benches(board, needed):
        bench.play(DOWNLOAD_RESETS[name])
        leave(bench)
        assert bench.board.boots == [Boot.DOWNLOAD]
        assert bench.board.resets == 1
        assert bench.controller.applied == needed.rest


@pytest.mark.parametrize("name", clients.APP_RESETS)
@pytest.mark.parametrize("kind", BOARDS)
def test_hard_reset_boots_the_app_once_where_a_board_has_one(kind: str, name: str) -> None:
    needed, board, can_reset = BOARDS[kind]
    for bench in benches(board, needed):
        bench.play(clients.APP_RESETS[name])
        leave(bench)
        assert bench.board.boots == ([Boot.APP] if can_reset else [])


@pytest.mark.parametrize("name", clients.NO_RESETS)
@pytest.mark.parametrize("kind", BOARDS)
def test_attach_and_detach_move_no_line(kind: str, name: str) -> None:
    needed, board, _ = BOARDS[kind]
    for bench in benches(board, needed):
        bench.play(clients.NO_RESETS[name])
        leave(bench)
        assert bench.shown == []
        assert bench.board.resets == 0


@pytest.mark.parametrize("kind", BOARDS)
@pytest.mark.parametrize("sent_before_death", range(len(clients.ESPTOOL_CLASSIC)))
@pytest.mark.parametrize("dies_after_s", [0.0, 0.04, 0.3, 5.0])
def test_client_death_during_the_classic_reset_leaves_the_app_running(
    kind: str, sent_before_death: int, dies_after_s: float
) -> None:
    needed, board, can_reset = BOARDS[kind]
    if not can_reset:  # once it is in its bootloader nothing brings it back
        return
    for bench in benches(board, needed):
        if isinstance(bench.board, IdfConsole):
            continue  # it leaves the bus: what follows is another device
        bench.play((*clients.OPEN, *clients.ESPTOOL_CLASSIC[:sent_before_death]))
        bench.run_until(bench.now + dies_after_s)
        leave(bench)
        assert bench.board.boots[-1:] in ([], [Boot.APP])
        assert bench.controller.applied == needed.rest


def test_clients_one_after_another_find_the_same_board() -> None:
    for bench in benches(UsbSerialJtag, USB_JTAG):
        for _ in range(3):
            bench.play((*clients.OPEN, *clients.ESPTOOL_CLASSIC, *clients.ESPTOOL_HARD_DTR_OFF))
            leave(bench)
            bench.client_now = bench.now
        assert bench.board.boots == [Boot.DOWNLOAD, Boot.APP] * 3


# --- a client that knows USB-Serial/JTAG ---------------------------------------------------


def test_usb_reset_is_followed_line_by_line() -> None:
    for bench in benches(UsbSerialJtag, USB_JTAG):
        bench.play((*clients.OPEN, *clients.ESPTOOL_USB_JTAG))
        leave(bench)
        assert bench.shown == [STRAP, BOTH, RESET, IDLE]
        assert bench.board.boots == [Boot.DOWNLOAD]


def test_lines_of_a_usb_reset_are_shown_before_the_client_has_sent_all_of_it() -> None:
    for bench in benches(UsbSerialJtag, USB_JTAG):
        bench.play((*clients.OPEN, *clients.ESPTOOL_USB_JTAG[:7]))
        assert bench.shown == [STRAP, BOTH]
        leave(bench)


def test_a_usb_reset_is_known_by_both_lines_of_its_first_step_in_one_command() -> None:
    bench = Bench(UsbSerialJtag(), controller=controller_for(USB_JTAG))
    bench.controller.request(0.0, dtr=True, rts=False)
    bench.show()
    assert bench.shown == [STRAP]
    bench.controller.request(0.1, rts=True)
    bench.show()
    assert bench.shown == [STRAP, BOTH]
    leave(bench)


def test_usb_reset_is_understood_after_anything_that_went_before() -> None:
    before = (*clients.MONITOR_ATTACH, *clients.MONITOR_HARD, *clients.ESPTOOL_CLASSIC)
    for bench in benches(UsbSerialJtag, USB_JTAG):
        bench.play((*before, *clients.ESPTOOL_USB_JTAG, *clients.ESPTOOL_HARD_USB_DTR_OFF))
        leave(bench)
        assert bench.board.boots == [Boot.APP, Boot.DOWNLOAD, Boot.DOWNLOAD, Boot.APP]


@pytest.mark.parametrize("sent_before_death", range(len(clients.ESPTOOL_USB_JTAG)))
def test_client_death_during_the_usb_reset_leaves_the_app_running(sent_before_death: int) -> None:
    is_complete = sent_before_death >= len(clients.ESPTOOL_USB_JTAG) - 1  # `12` has been sent
    for bench in benches(UsbSerialJtag, USB_JTAG):
        bench.play((*clients.OPEN, *clients.ESPTOOL_USB_JTAG[:sent_before_death]))
        leave(bench)
        assert bench.board.boots[-1:] in ([[Boot.DOWNLOAD]] if is_complete else [[], [Boot.APP]])
        assert bench.controller.applied == IDLE


@pytest.mark.parametrize("sent_before_death", range(len(clients.ESPTOOL_USB_JTAG)))
@pytest.mark.parametrize("kind", BOARDS)
def test_a_usb_reset_that_is_not_sent_to_its_end_enters_no_bootloader(
    kind: str, sent_before_death: int
) -> None:
    needed, board, _ = BOARDS[kind]
    if needed.follows_usb_jtag:
        return
    is_complete = sent_before_death >= len(clients.ESPTOOL_USB_JTAG) - 1  # `12` has been sent
    for bench in benches(board, needed):
        bench.play((*clients.OPEN, *clients.ESPTOOL_USB_JTAG[:sent_before_death]))
        leave(bench)
        assert bench.board.boots == ([Boot.DOWNLOAD] if is_complete else [])
        assert bench.controller.applied == needed.rest


def test_a_hard_reset_behind_a_usb_reset_that_was_broken_off_is_one() -> None:
    for bench in benches(IdfConsole, USB_OTG):
        # Up to where both lines are on, then off: a monitor that has thought better of it.
        bench.play((*clients.OPEN, *clients.ESPTOOL_USB_JTAG[:7], *clients.SCRIPT_LINES_OFF))
        bench.play(clients.ESPTOOL_HARD_DTR_OFF)
        leave(bench)
        assert bench.board.boots == [Boot.APP]


def test_open_leaves_no_download_flag_for_a_later_hard_reset() -> None:
    for bench in benches(UsbSerialJtag, USB_JTAG):
        bench.play((*clients.OPEN, *clients.ESPTOOL_HARD_DTR_ON))
        bench.play((*clients.MONITOR_ATTACH, *clients.MONITOR_HARD))
        leave(bench)
        assert bench.board.boots == [Boot.APP, Boot.APP]


# --- exact times ---------------------------------------------------------------------------


def shown_at(bench: Bench) -> list[tuple[float, Lines]]:
    start = bench.shown_at[0]
    return [
        (round(at - start, 6), lines) for at, lines in zip(bench.shown_at, bench.shown, strict=True)
    ]


def test_the_board_s_own_times_are_kept_whatever_the_client_s() -> None:
    for bench in benches(UsbSerialJtag, USB_JTAG):
        bench.play((*clients.OPEN, *clients.ESPTOOL_CLASSIC))
        assert shown_at(bench) == [(0.0, STRAP), (0.1, BOTH), (0.1, RESET), (0.2, IDLE)]


def test_the_client_s_next_command_waits_until_the_sequence_is_over() -> None:
    controller = controller_for(USB_JTAG)
    for control in clients.CUSTOM_CLASSIC[:4]:
        assert control.control is not None
        controller.handle_timer(10.0)
        request(controller, 10.0, control.control)
    assert controller.busy
    controller.handle_timer(10.05)  # the reset's minimum is over: the bootloader is meant
    assert controller.busy
    for at in (10.15, 10.25, 10.34):
        controller.handle_timer(at)
        assert controller.busy
    controller.handle_timer(10.36)
    assert not controller.busy


# --- the gateway's own resets --------------------------------------------------------------


@pytest.mark.parametrize("kind", BOARDS)
@pytest.mark.parametrize("before", [IDLE, BOTH, RESET, STRAP])
def test_an_action_of_the_gateway_needs_no_client(kind: str, before: Lines) -> None:
    needed, board, can_reset = BOARDS[kind]
    for action, boot in (("enter_bootloader", Boot.DOWNLOAD), ("reset", Boot.APP)):
        bench = Bench(board(), controller=controller_for(needed))
        bench.controller.request(0.0, dtr=before.dtr, rts=before.rts)
        bench.show()
        bench.run_until(1.0)
        getattr(bench.controller, action)(bench.now)
        bench.show()
        bench.settle()
        assert bench.board.boots == ([boot] if can_reset or boot is Boot.DOWNLOAD else [])
        assert bench.controller.applied == needed.rest
        assert bench.controller.wanted == IDLE
        assert not bench.controller.busy


def test_an_action_breaks_off_another() -> None:
    controller = controller_for(TOUCH)
    controller.enter_bootloader(0.0)
    assert controller.lines_to_set() == [Baudrate(1200)]
    controller.reset(0.02)
    assert controller.lines_to_set() == [Baudrate(None), RESET]


# --- boards that leave the bus -------------------------------------------------------------


def enter(controller: Controller, now: float) -> list[Lines | Baudrate]:
    """What a client's classic reset, given in steps that need no hold, shows until it is over."""
    for at, lines in ((0.0, RESET), (0.1, STRAP), (0.15, IDLE)):
        controller.handle_timer(now + at)
        controller.request(now + at, dtr=lines.dtr, rts=lines.rts)
    shown = list(controller.lines_to_set())
    while (deadline := controller.next_deadline()) is not None:
        controller.handle_timer(deadline)
        shown += controller.lines_to_set()
    return shown


def test_a_late_step_makes_no_pause_shorter() -> None:
    controller = controller_for(
        ResetChoice(parse_sequence("D1|W0.1|D0|W0.1|R1|W0.1|R0|W0.5")).strategy(None)
    )
    controller.enter_bootloader(0.0)
    assert (controller.lines_to_set(), controller.next_deadline()) == ([STRAP], 0.1)
    controller.handle_timer(0.15)
    assert (controller.lines_to_set(), controller.next_deadline()) == ([IDLE], 0.25)
    controller.handle_timer(9.0)
    assert (controller.lines_to_set(), controller.next_deadline()) == ([RESET], 9.1)
    controller.handle_timer(9.1)
    assert controller.lines_to_set() == [IDLE]
    assert controller.busy, "the pause at the end is part of the sequence"
    controller.handle_timer(9.6)
    assert (controller.lines_to_set(), controller.busy) == ([], False)


def test_a_board_that_has_left_gets_nothing_more() -> None:
    controller = controller_for(USB_OTG)
    controller.enter_bootloader(0.0)
    controller.lines_to_set()
    controller.board_away(0.2)
    assert controller.lines_to_set() == []
    assert controller.next_deadline() is None
    assert (controller.applied, controller.busy) == (BOTH, False)


def test_a_board_that_has_left_at_1200_baud_comes_back_at_the_client_s_rate() -> None:
    controller = controller_for(TOUCH)
    controller.enter_bootloader(0.0)
    controller.board_away(0.1)
    assert controller.lines_to_set()[-1] == Baudrate(None)


def test_tries_of_a_client_while_its_board_comes_back_do_not_send_it_away_again() -> None:
    controller = controller_for(USB_OTG)
    assert enter(controller, 0.0)
    controller.board_away(2.0)
    assert enter(controller, 2.3) == []
    controller = controller_of_returned(controller, USB_OTG, 1.5, 4.0)
    assert enter(controller, 4.6) == []
    assert enter(controller, 6.9) != []


def test_an_entry_is_no_retry_long_after_the_board_is_back_or_if_it_had_left_by_itself() -> None:
    controller = controller_for(USB_OTG)
    enter(controller, 0.0)
    controller.board_away(2.0)
    controller = controller_of_returned(controller, USB_OTG, 1.5, 4.0)
    assert enter(controller, 7.1) != []
    controller.board_away(60.0)
    controller = controller_of_returned(controller, USB_OTG, 1.5, 61.0)
    assert enter(controller, 61.5) != []


def test_a_board_may_come_back_as_another_device() -> None:
    controller = controller_for(USB_OTG)
    controller.request(0.0, dtr=True, rts=True)
    controller.board_away(1.0)
    controller = controller_of_returned(controller, USB_JTAG, 1.5, 2.0)
    assert (controller.applied, controller.wanted) == (IDLE, BOTH)
    controller.reset(10.0)
    assert controller.lines_to_set() == [RESET]


def test_a_client_in_the_middle_of_a_reset_does_not_reset_the_board_that_comes_back() -> None:
    controller = controller_for(USB_JTAG)
    controller.request(0.0, rts=True)
    controller.board_away(1.0)
    controller = controller_of_returned(controller, USB_JTAG, 1.5, 2.0)
    controller.request(2.1, rts=False)
    assert controller.lines_to_set() == []


def test_what_plays_another_method_starts_where_the_client_is() -> None:
    before = controller_for(USB_OTG)
    before.request(0.0, dtr=True, rts=True)
    for needed in (NONE, ResetChoice().strategy(None)):
        after = controller_of_returned(before, needed, 1.5, 1.0)
        assert not isinstance(after, IntentController)
        assert (after.wanted, after.lines_to_set()) == (BOTH, [BOTH])


# --- lines as they come --------------------------------------------------------------------


def test_lines_pass_one_by_one() -> None:
    for bench in benches(lambda: CircuitBoard(0.001), NONE):
        bench.play((*clients.OPEN, *clients.ESPTOOL_CLASSIC))
        bench.leave()
        assert bench.shown == [STRAP, BOTH, RESET, BOTH, STRAP, IDLE]


def test_a_client_that_leaves_leaves_passed_lines_off() -> None:
    controller = PassThrough(NONE)
    controller.request(0.0, dtr=True, rts=True)
    controller.release(1.0)
    assert controller.lines_to_set() == [BOTH, IDLE]
    assert (controller.wanted, controller.busy) == (IDLE, False)


# --- any commands at any time --------------------------------------------------------------

LINE = st.sampled_from([None, False, True])
COMMANDS = st.lists(
    st.tuples(st.floats(0.0, 2.0) | st.sampled_from([0.0, 0.05, 1.0]), LINE, LINE), max_size=20
)


@given(COMMANDS, st.sampled_from(sorted(BOARDS)), st.sampled_from(["release", "reset"]))
def test_whatever_came_before_the_wire_rests_in_the_end(
    commands: list[tuple[float, bool | None, bool | None]], kind: str, end: str
) -> None:
    needed, board, _ = BOARDS[kind]
    bench = Bench(board(), controller=controller_for(needed))
    for pause_s, dtr, rts in commands:
        bench.run_until(bench.now + pause_s)
        bench.controller.request(bench.now, dtr=dtr, rts=rts)
        bench.show()
    getattr(bench.controller, end)(bench.now)
    bench.show()
    bench.run_until(bench.now + needed.bootloader.duration_s * (len(commands) + 1) + 5.0)
    assert bench.controller.applied == needed.rest
    assert not bench.controller.busy
    assert bench.controller.next_deadline() is None
    assert all(a != b for a, b in zip(bench.shown, bench.shown[1:], strict=False))


@given(COMMANDS)
def test_the_download_flag_is_only_set_by_an_entry(
    commands: list[tuple[float, bool | None, bool | None]],
) -> None:
    """Without one that the client means, a USB-Serial/JTAG chip never boots its loader."""
    bench = Bench(UsbSerialJtag(), controller=controller_for(USB_JTAG))
    controller = bench.controller
    assert isinstance(controller, IntentController)
    for pause_s, dtr, rts in commands:
        bench.run_until(bench.now + pause_s)
        says_strap = rts is False and (dtr or controller.wanted.dtr)
        if dtr is not None and rts is not None:
            continue
        bench.controller.request(bench.now, dtr=dtr, rts=None if says_strap else rts)
        bench.show()
    bench.leave()
    assert Boot.DOWNLOAD not in bench.board.boots


# --- what is told of it --------------------------------------------------------------------


def told(needed: ResetStrategy, sequence: tuple[Sent, ...]) -> list[str]:
    bench = Bench(UsbSerialJtag(), controller=controller_for(needed))
    bench.play(sequence)
    leave(bench)
    return [starts.value for starts in bench.controller.resets()]


def test_each_reset_is_told_by_what_the_board_starts() -> None:
    stream = (*clients.OPEN, *clients.ESPTOOL_CLASSIC, *clients.ESPTOOL_HARD_DTR_OFF)
    tight = (*stream[: len(clients.OPEN)], Sent(None))
    for needed in (USB_JTAG, USB_OTG, ResetChoice().strategy(None)):
        assert told(needed, stream) == ["bootloader", "app"]
        assert told(needed, tight) == []
    assert told(USB_JTAG, (*clients.OPEN, *clients.ESPTOOL_USB_JTAG)) == ["bootloader"]


def test_passed_lines_are_told_as_the_circuit_sees_them() -> None:
    controller = PassThrough(NONE)
    for lines in (RESET, STRAP, RESET, BOTH, RESET, IDLE):
        controller.request(0.0, dtr=lines.dtr, rts=lines.rts)
    assert [starts.value for starts in controller.resets()] == ["bootloader", "app", "app"]
