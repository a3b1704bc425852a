"""The line controller against the streams of real clients, a network and a board's circuit."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol.line_controller import MIN_RESET_S, MIN_STRAP_S, LineController
from gateway.protocol.reset import BOTH, DEFAULT_HOLD_S, IDLE, RESET, STRAP, Lines
from gateway.protocol.rfc2217 import Control
from tests.support import client_sequences as clients
from tests.support.line_bench import (
    TOLERANCE_S,
    Bench,
    Boot,
    CircuitBoard,
    UsbSerialJtag,
    request,
)

#: From 0 to the RTT that DEFAULT_HOLD_S is said to serve.
ROUND_TRIPS_S = (0.0, 0.001, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0)
EN_RC_S = (0.0001, 0.001, 0.01)


def steady(round_trip_s: float) -> Callable[[], float]:
    return lambda: round_trip_s / 2


def jittery(seed: int, most_s: float, least_s: float = 0.0) -> Callable[[], float]:
    rng = random.Random(seed)
    return lambda: rng.uniform(least_s, most_s)


def stalling(seed: int) -> Callable[[], float]:
    """Mostly fast, now and then half a second late: what follows arrives in a bunch."""
    rng = random.Random(seed)
    return lambda: 0.5 if rng.random() < 0.3 else 0.001


def benches(board: Callable[[], CircuitBoard | UsbSerialJtag]) -> Iterable[Bench]:
    """One bench per network and per way of waiting for acknowledgements."""
    for round_trip_s in ROUND_TRIPS_S:
        yield Bench(board(), steady(round_trip_s))
        yield Bench(board(), steady(round_trip_s), ignores_answers=True)
    for seed in range(40):
        yield Bench(board(), jittery(seed, 0.5))
        yield Bench(board(), jittery(seed, 0.6, least_s=0.5))
        yield Bench(board(), stalling(seed), ignores_answers=True)
        yield Bench(board(), jittery(seed, 0.5), ignores_answers=True)


def circuits(en_rc_s: float) -> Iterable[Bench]:
    return benches(lambda: CircuitBoard(en_rc_s))


APP_RESETS = {
    **clients.APP_RESETS,
    # Its UART-bridge effect: EN falls once, IO0 is high when it rises.
    "usb-reset on a UART bridge": (*clients.OPEN, *clients.ESPTOOL_USB_JTAG),
}


@pytest.mark.parametrize("en_rc_s", EN_RC_S)
@pytest.mark.parametrize("name", clients.DOWNLOAD_RESETS)
def test_reset_into_the_bootloader_succeeds_at_the_first_attempt(name: str, en_rc_s: float) -> None:
    for bench in circuits(en_rc_s):
        bench.play(clients.DOWNLOAD_RESETS[name])
        bench.leave()
        assert bench.board.boots == [Boot.DOWNLOAD]
        assert bench.board.resets == 1
        assert bench.controller.applied == IDLE


@pytest.mark.parametrize("en_rc_s", EN_RC_S)
@pytest.mark.parametrize("name", APP_RESETS)
def test_hard_reset_boots_the_app_once(name: str, en_rc_s: float) -> None:
    for bench in circuits(en_rc_s):
        bench.play(APP_RESETS[name])
        bench.leave()
        assert bench.board.boots == [Boot.APP]
        assert bench.board.resets == 1


@pytest.mark.parametrize("name", clients.NO_RESETS)
def test_attach_and_detach_reset_no_board(name: str) -> None:
    for bench in circuits(0.0001):
        bench.play(clients.NO_RESETS[name])
        bench.leave()
        assert bench.board.resets == 0
        assert bench.shown[-1:] in ([IDLE], [])


@pytest.mark.parametrize("en_rc_s", EN_RC_S)
def test_each_attempt_of_esptool_is_one_bootloader_entry_and_hard_reset_ends_it(
    en_rc_s: float,
) -> None:
    for bench in circuits(en_rc_s):
        bench.play((*clients.ESPTOOL_TWO_ATTEMPTS, *clients.ESPTOOL_HARD_DTR_OFF))
        bench.leave()
        assert bench.board.boots == [Boot.DOWNLOAD, Boot.DOWNLOAD, Boot.APP]


def test_clients_one_after_another_find_the_same_board() -> None:
    for bench in circuits(0.001):
        for _ in range(3):
            bench.play((*clients.OPEN, *clients.ESPTOOL_CLASSIC, *clients.ESPTOOL_HARD_DTR_OFF))
            bench.leave()
            bench.client_now = bench.now
        assert bench.board.boots == [Boot.DOWNLOAD, Boot.APP] * 3


def test_usb_reset_sets_the_download_flag_of_usb_serial_jtag() -> None:
    for bench in benches(UsbSerialJtag):
        bench.play((*clients.OPEN, *clients.ESPTOOL_USB_JTAG))
        bench.leave()
        assert bench.board.boots == [Boot.DOWNLOAD]


@pytest.mark.parametrize("en_rc_s", EN_RC_S)
@pytest.mark.parametrize("sent_before_death", range(len(clients.ESPTOOL_CLASSIC)))
@pytest.mark.parametrize("dies_after_s", [0.0, 0.005, 0.04, 0.3, 5.0])
def test_client_death_during_the_classic_reset_leaves_the_app_running(
    sent_before_death: int, dies_after_s: float, en_rc_s: float
) -> None:
    for bench in circuits(en_rc_s):
        bench.play((*clients.OPEN, *clients.ESPTOOL_CLASSIC[:sent_before_death]))
        bench.run_until(bench.now + dies_after_s)
        bench.leave()
        assert bench.board.boots[-1:] in ([], [Boot.APP])
        assert len(bench.board.boots) == bench.board.resets, "the board isn't left in reset"
        assert bench.controller.applied == IDLE
        assert not bench.controller.busy


@pytest.mark.parametrize("sent_before_death", range(len(clients.ESPTOOL_USB_JTAG)))
def test_client_death_during_the_usb_reset_leaves_lines_idle(sent_before_death: int) -> None:
    for bench in circuits(0.001):
        bench.play((*clients.OPEN, *clients.ESPTOOL_USB_JTAG[:sent_before_death]))
        bench.leave()
        assert Boot.DOWNLOAD not in bench.board.boots
        assert bench.controller.applied == IDLE


def test_whole_classic_reset_in_one_segment_keeps_its_minimum_times() -> None:
    controller = LineController()
    for control in (9, 11, 9, 8, 12, 8, 9):
        request(controller, 0.0, Control(control))
    assert controller.busy
    at: list[tuple[float, Lines]] = [(0.0, lines) for lines in controller.lines_to_set()]
    while (deadline := controller.next_deadline()) is not None:
        controller.handle_timer(deadline)
        at += [(deadline, lines) for lines in controller.lines_to_set()]
    assert at == [(0.0, RESET), (MIN_RESET_S, STRAP), (MIN_RESET_S + MIN_STRAP_S, IDLE)]


def test_held_edge_is_let_through_when_its_time_is_over() -> None:
    controller = LineController(hold_s=0.5)
    controller.request(0.0, rts=True)
    controller.request(1.0, dtr=True)
    assert controller.lines_to_set() == [RESET]
    assert (controller.applied, controller.wanted) == (RESET, BOTH)
    assert not controller.busy
    assert controller.next_deadline() == 1.5
    controller.handle_timer(1.4)
    assert controller.lines_to_set() == []
    controller.handle_timer(1.5)
    assert controller.lines_to_set() == [BOTH]
    assert controller.next_deadline() is None


def test_both_lines_off_after_open_is_one_step() -> None:
    controller = LineController()
    controller.request(0.0, dtr=True, rts=True)
    controller.request(1.0, dtr=False)
    controller.request(1.05, rts=False)
    assert controller.lines_to_set() == [BOTH, IDLE]


def test_dtr_off_sent_twice_is_still_half_of_both_off() -> None:
    controller = LineController()
    controller.request(0.0, dtr=True, rts=True)
    controller.request(1.0, dtr=False)
    controller.request(1.05, dtr=False)
    controller.request(1.1, rts=False)
    assert controller.lines_to_set() == [BOTH, IDLE]


def test_dtr_pulse_with_rts_on_is_a_reset() -> None:
    bench = Bench(CircuitBoard(0.001))
    bench.controller.request(0.0, dtr=True, rts=True)
    bench.controller.request(1.0, dtr=False)
    bench.controller.request(1.1, dtr=True)
    bench.now = 1.1
    bench.show()
    bench.settle()
    assert bench.board.boots == [Boot.APP]
    assert bench.controller.applied == BOTH


@pytest.mark.parametrize("before", [IDLE, BOTH, RESET, STRAP])
def test_release_goes_to_idle_in_one_step(before: Lines) -> None:
    controller = LineController()
    controller.request(0.0, dtr=before.dtr, rts=before.rts)
    controller.lines_to_set()
    controller.release(1.0)
    assert controller.lines_to_set() == ([] if before == IDLE else [IDLE])
    assert controller.next_deadline() is None


@pytest.mark.parametrize("en_rc_s", EN_RC_S)
@pytest.mark.parametrize("before", [IDLE, BOTH, RESET, STRAP])
@pytest.mark.parametrize("action", ["enter_bootloader", "reset"])
def test_an_action_of_the_gateway_needs_no_client(
    action: str, before: Lines, en_rc_s: float
) -> None:
    bench = Bench(CircuitBoard(en_rc_s))
    bench.controller.request(0.0, dtr=before.dtr, rts=before.rts)
    bench.show()
    bench.run_until(1.0)
    getattr(bench.controller, action)(bench.now)
    bench.show()
    bench.settle()
    assert bench.board.boots == [Boot.DOWNLOAD if action == "enter_bootloader" else Boot.APP]
    assert bench.controller.applied == bench.controller.wanted == IDLE
    assert not bench.controller.busy


def test_an_action_replaces_an_edge_that_is_held_back() -> None:
    controller = LineController()
    controller.request(0.0, dtr=True, rts=True)
    controller.request(1.0, dtr=False)
    controller.reset(1.1)
    assert controller.lines_to_set() == [BOTH, RESET]
    controller.handle_timer(1.1 + MIN_RESET_S)
    assert controller.lines_to_set() == [IDLE]
    assert controller.next_deadline() is None


# --- any commands at any time --------------------------------------------------------------

LINE = st.sampled_from([None, False, True])
COMMANDS = st.lists(
    st.tuples(st.floats(0.0, 2.0) | st.sampled_from([0.0, 0.05, 1.0]), LINE, LINE), max_size=30
)
HOLDS_S = st.sampled_from([0.0, 0.01, 0.3, DEFAULT_HOLD_S])
HELD_EDGES = {(RESET, BOTH), (BOTH, RESET)}


@dataclass
class Timeline:
    """A controller driven with any commands; keeps what it showed and when."""

    controller: LineController
    now: float = 0.0
    shown: list[tuple[float, Lines]] = field(default_factory=list)

    def run_until(self, then: float) -> None:
        calls = 0
        while (deadline := self.controller.next_deadline()) is not None and deadline <= then:
            assert math.isfinite(deadline)
            calls += 1
            assert calls <= 100, "timers must make progress"
            self.now = max(self.now, deadline)
            self.controller.handle_timer(self.now)
            self.show()
        self.now = then

    def show(self) -> None:
        self.shown += [(self.now, lines) for lines in self.controller.lines_to_set()]


def drive(
    commands: list[tuple[float, bool | None, bool | None]], hold_s: float
) -> tuple[Timeline, list[Lines]]:
    """Play any commands; return the timeline and the edges that no rule may hold back."""
    timeline = Timeline(LineController(hold_s))
    wanted, unheld = IDLE, []
    for pause_s, dtr, rts in commands:
        timeline.run_until(timeline.now + pause_s)
        timeline.controller.request(timeline.now, dtr=dtr, rts=rts)
        timeline.show()
        before = wanted
        wanted = Lines(
            wanted.dtr if dtr is None else dtr,
            wanted.rts if rts is None else rts,
        )
        assert timeline.controller.wanted == wanted
        if wanted != before and (before, wanted) not in HELD_EDGES:
            unheld.append(wanted)
    return timeline, unheld


def is_subsequence(part: list[Lines], whole: list[Lines]) -> bool:
    rest = iter(whole)
    return all(lines in rest for lines in part)


@given(COMMANDS, HOLDS_S)
def test_what_the_client_wants_is_applied_within_bounded_time(
    commands: list[tuple[float, bool | None, bool | None]], hold_s: float
) -> None:
    timeline, _ = drive(commands, hold_s)
    longest = max(MIN_RESET_S, MIN_STRAP_S) * 2 * (len(commands) + 1) + 2 * hold_s
    timeline.run_until(timeline.now + longest)
    assert timeline.controller.applied == timeline.controller.wanted
    assert not timeline.controller.busy
    assert timeline.controller.next_deadline() is None


@given(COMMANDS, HOLDS_S)
def test_every_other_edge_is_shown_in_order(
    commands: list[tuple[float, bool | None, bool | None]], hold_s: float
) -> None:
    timeline, unheld = drive(commands, hold_s)
    timeline.run_until(timeline.now + 100.0)
    shown = [lines for _, lines in timeline.shown]
    assert is_subsequence(unheld, shown)
    assert all(before != after for before, after in zip([IDLE, *shown], shown, strict=False))


@given(COMMANDS, HOLDS_S)
def test_reset_and_strap_are_shown_for_their_minimum_time(
    commands: list[tuple[float, bool | None, bool | None]], hold_s: float
) -> None:
    timeline, _ = drive(commands, hold_s)
    timeline.run_until(timeline.now + 100.0)
    before = IDLE
    for (start, lines), (end, _) in zip(timeline.shown, timeline.shown[1:], strict=False):
        if lines == RESET:
            assert end - start >= MIN_RESET_S - TOLERANCE_S
        if lines == STRAP and before == RESET:
            assert end - start >= MIN_STRAP_S - TOLERANCE_S
        before = lines


@given(COMMANDS, st.floats(0.0, 2.0))
@settings(max_examples=200)
def test_release_ends_idle_within_bounded_time_and_never_boots_the_bootloader(
    commands: list[tuple[float, bool | None, bool | None]], pause_s: float
) -> None:
    timeline, _ = drive(commands, DEFAULT_HOLD_S)
    timeline.run_until(timeline.now + pause_s)
    shown_before = len(timeline.shown)
    timeline.controller.release(timeline.now)
    timeline.show()
    timeline.run_until(timeline.now + MIN_STRAP_S + 2 * MIN_RESET_S)
    assert timeline.controller.applied == timeline.controller.wanted == IDLE
    assert not timeline.controller.busy
    assert timeline.controller.next_deadline() is None
    assert {lines for _, lines in timeline.shown[shown_before:]} <= {RESET, IDLE}


def test_reset_commanded_whole_is_not_held_back() -> None:
    controller = LineController()
    controller.request(0.0, dtr=True, rts=True)
    controller.request(1.0, dtr=False, rts=True)
    assert controller.lines_to_set() == [BOTH, RESET]


def test_end_of_a_reset_commanded_whole_is_not_held_back() -> None:
    controller = LineController()
    controller.request(0.0, rts=True)
    controller.request(1.0, dtr=True, rts=True)
    assert controller.lines_to_set() == [RESET, BOTH]
