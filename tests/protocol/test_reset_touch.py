"""The 1200 baud touch of a client, and boards that are not ESPs, against models of the boards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.line_controller import PassThrough, controller_for
from gateway.protocol.reset import (
    BOTH,
    IDLE,
    RESET,
    STRAP,
    Lines,
    LinesAtRest,
    Reset,
    ResetChoice,
    ResetStrategy,
    parse_sequence,
)
from gateway.protocol.rfc2217 import Control
from tests.support import client_sequences as clients
from tests.support.line_bench import (
    ArduinoCdc,
    ArduinoPico,
    Bench,
    Board,
    Boot,
    CircuitBoard,
    NativeUsb,
    Nrf52,
    PicoSdk,
    Samd,
    TouchOnly,
    request,
)

PICO = (0x2E8A, 0x000A)
FEATHER_NRF52 = (0x239A, 0x8029)
FEATHER_M0 = (0x239A, 0x800B)
NUCLEO = (0x0483, 0x374B)
UNO = (0x2341, 0x0043)
CP2102N = (0x10C4, 0xEA60)

NATIVE = ResetChoice().strategy(PICO)
PASSED_ON = ResetChoice(Reset.NONE, rest=LinesAtRest(BOTH)).strategy(None)
BOARDS: dict[str, tuple[ResetStrategy, Callable[[], Board]]] = {
    "usb-otg, Arduino": (ResetChoice(Reset.USB_OTG).strategy(None), ArduinoCdc),
    "usb-otg, TinyUSB": (ResetChoice(Reset.USB_OTG).strategy(None), TouchOnly),
    "touch-1200, Arduino": (ResetChoice(Reset.TOUCH_1200).strategy(None), ArduinoCdc),
    "touch-1200, TinyUSB": (ResetChoice(Reset.TOUCH_1200).strategy(None), TouchOnly),
    "custom": (
        ResetChoice(parse_sequence("U1,1|B1200|W0.1|U0,0|W0.4")).strategy(None),
        TouchOnly,
    ),
    "pico-sdk": (ResetChoice().strategy(PICO), PicoSdk),
    "arduino-pico": (ResetChoice().strategy(PICO), ArduinoPico),
    "nRF52": (ResetChoice().strategy(FEATHER_NRF52), Nrf52),
    "SAMD": (ResetChoice().strategy(FEATHER_M0), Samd),
    "none, both on at rest, SAMD": (PASSED_ON, Samd),
    "none, SAMD": (ResetChoice(Reset.NONE).strategy(None), Samd),
}


def open_at(bench: Bench, bps: int) -> None:
    """pyserial's open(): settings first, then the lines."""
    bench.set_baudrate(bps)
    bench.play(clients.OPEN)


def send(bench: Bench, *codes: int) -> None:
    bench.play(clients.Sent(Control(code)) for code in codes)


def touch_by_open_and_close(bench: Bench) -> None:
    open_at(bench, 1200)
    bench.leave()


def touch_by_dtr(bench: Bench) -> None:
    open_at(bench, 1200)
    send(bench, 9)
    bench.run_until(bench.now + 0.4)
    bench.leave()


def touch_in_the_middle(bench: Bench) -> None:
    open_at(bench, 115200)
    bench.set_baudrate(1200)
    bench.leave()


def touch_by_both_lines(bench: Bench) -> None:
    open_at(bench, 1200)
    send(bench, 9, 12)
    bench.run_until(bench.now + 0.4)
    bench.leave()


TOUCHES = [touch_by_open_and_close, touch_by_dtr, touch_in_the_middle, touch_by_both_lines]


@pytest.mark.parametrize("kind", BOARDS)
@pytest.mark.parametrize("touch", TOUCHES)
def test_a_client_s_touch_reaches_the_board(kind: str, touch: Callable[[Bench], None]) -> None:
    strategy, board = BOARDS[kind]
    for delay_s in (0.0, 0.05, 0.25):
        bench = Bench(board(), partial(float, delay_s), controller=controller_for(strategy))
        if strategy.rest != BOTH:
            bench.board.set(strategy.rest, 0.0)
        touch(bench)
        assert bench.board.boots == [Boot.DOWNLOAD]
        assert bench.controller.applied == strategy.rest
        assert not bench.controller.busy


def stay_at_9600(bench: Bench) -> None:
    open_at(bench, 9600)
    send(bench, 9, 8, 9, 12)
    bench.leave()


def leave_with_dtr_off(bench: Bench) -> None:
    bench.set_baudrate(9600)
    bench.play(clients.OPEN_LINES_OFF)
    bench.leave()


def raise_and_lower_rts_at_1200(bench: Bench) -> None:
    open_at(bench, 1200)
    send(bench, 12, 11)
    bench.set_baudrate(115200)
    bench.leave()


NO_TOUCHES = [stay_at_9600, leave_with_dtr_off, raise_and_lower_rts_at_1200]


@pytest.mark.parametrize("kind", [kind for kind in BOARDS if kind != "pico-sdk"])
@pytest.mark.parametrize("use", NO_TOUCHES)
def test_other_uses_of_dtr_and_of_1200_baud_are_no_touch(
    kind: str, use: Callable[[Bench], None]
) -> None:
    strategy, board = BOARDS[kind]
    if board is ArduinoCdc and use is raise_and_lower_rts_at_1200:
        return  # it takes the rate alone for a touch, as at a local port
    bench = Bench(board(), controller=controller_for(strategy))
    use(bench)
    assert bench.board.boots == []


@pytest.mark.parametrize("kind", BOARDS)
def test_a_client_that_has_to_stop_and_has_not_left_touches_nothing(kind: str) -> None:
    strategy, board = BOARDS[kind]
    if board in {ArduinoCdc, PicoSdk} or strategy.rest != BOTH:
        return  # the rate alone, or lines that rest at off, are a touch
    bench = Bench(board(), controller=controller_for(strategy))
    open_at(bench, 1200)
    bench.controller.release(bench.now)
    bench.show()
    bench.settle()
    assert bench.board.boots == []


def test_lines_and_rate_stay_as_they_are_for_a_moment_after_a_touch() -> None:
    controller = PassThrough(NATIVE)
    controller.request(1.0, dtr=False, at_1200=True)
    assert controller.lines_to_set() == [RESET]
    assert controller.busy
    controller.request(1.1, dtr=True)  # of a client that does not wait
    controller.release(1.2)
    assert controller.lines_to_set() == []
    assert controller.next_deadline() == pytest.approx(1.35)
    controller.handle_timer(1.36)
    assert controller.lines_to_set() == [BOTH]
    assert not controller.busy


def test_a_board_that_left_at_its_touch_is_not_touched_again_when_it_is_back() -> None:
    controller = PassThrough(NATIVE)
    controller.release(1.0, at_1200=True)
    controller.lines_to_set()
    controller.board_away(1.1)
    assert not controller.busy
    assert (controller.applied, controller.lines_to_set()) == (BOTH, [])


# --- boards that are not ESPs --------------------------------------------------------------


@pytest.mark.parametrize("usb_ids", [PICO, FEATHER_NRF52, FEATHER_M0, NUCLEO])
def test_boards_that_wait_for_dtr_have_it_on_after_any_client(
    usb_ids: tuple[int, int],
) -> None:
    bench = Bench(CircuitBoard(0.001), controller=controller_for(ResetChoice().strategy(usb_ids)))
    assert bench.controller.applied == BOTH
    for sequence in (clients.OPEN, clients.OPEN_LINES_OFF, clients.MPREMOTE_CLOSE):
        bench.play(sequence)
        bench.leave()
        assert bench.controller.applied == BOTH


def test_a_client_that_opens_an_uno_resets_it_as_at_a_local_port() -> None:
    bench = Bench(CircuitBoard(0.001), controller=controller_for(ResetChoice().strategy(UNO)))
    bench.play(clients.OPEN)
    assert [lines.dtr for lines in bench.shown] == [True, True]
    bench.leave()
    assert bench.controller.applied == IDLE


def test_lines_of_a_board_without_a_reset_circuit_are_told_as_no_reset() -> None:
    for usb_ids in (PICO, UNO, NUCLEO):
        controller = controller_for(ResetChoice().strategy(usb_ids))
        for lines in (RESET, IDLE, RESET, STRAP, IDLE):
            controller.request(0.0, dtr=lines.dtr, rts=lines.rts)
        assert controller.resets() == []


@dataclass(frozen=True)
class Entry:
    """What a radio stick's reset line and boot line do, by the state of DTR and RTS."""

    codes: tuple[int, ...]
    is_boot: Callable[[Lines], bool]
    is_reset: Callable[[Lines], bool]


#: cc2538-bsl.py, invoke_bootloader: (DTR) boot and (RTS) reset, active low; with
#: --bootloader-invert-lines; with --bootloader-active-high.
CC2538_BSL = {
    "default": Entry((8, 12, 11, 12, 9), lambda at: at.dtr, lambda at: at.rts),
    "inverted": Entry((11, 9, 8, 9, 12), lambda at: at.rts, lambda at: at.dtr),
    "active high": Entry((9, 12, 11, 12, 8), lambda at: not at.dtr, lambda at: at.rts),
}


@pytest.mark.parametrize("name", CC2538_BSL)
@pytest.mark.parametrize("rest", [IDLE, BOTH])
def test_the_entry_of_cc2538_bsl_reaches_the_lines(name: str, rest: Lines) -> None:
    entry = CC2538_BSL[name]
    choice = ResetChoice(Reset.NONE, rest=LinesAtRest(rest))
    for delay_s in (0.0, 0.05, 0.25):
        bench = Bench(
            CircuitBoard(0.001),
            partial(float, delay_s),
            controller=controller_for(choice.strategy(CP2102N)),
        )
        bench.play(clients.OPEN)
        send(bench, *entry.codes)
        states = bench.shown
        ends = [
            after
            for before, after in pairwise(states)
            if entry.is_reset(before) and not entry.is_reset(after)
        ]
        assert entry.is_boot(ends[-1])  # when reset ends, boot is still selected
        assert not entry.is_boot(states[-1])


def test_the_entry_of_a_sonoff_stick_is_that_of_an_esp() -> None:
    bench = Bench(CircuitBoard(0.001), controller=controller_for(ResetChoice().strategy(CP2102N)))
    bench.play(clients.OPEN)
    send(bench, 9, 11, 8, 12)  # cc2538-bsl.py --bootloader-sonoff-usb, without a pause
    bench.run_until(bench.now + 1.0)
    assert bench.board.boots == [Boot.DOWNLOAD]


# --- any commands at any time --------------------------------------------------------------

LINE = st.sampled_from([None, False, True])
STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.05, 0.3, 1.0]),
        LINE,
        LINE,
        st.sampled_from([None, None, 1200, 9600]),
    ),
    max_size=15,
)
Step = tuple[float, bool | None, bool | None, int | None]


def local_port(board: NativeUsb, steps: list[Step]) -> bool:
    """The same at a port without a gateway; returns whether DTR was off at 1200 baud."""
    was_touched, now, lines = False, 0.0, BOTH
    for pause_s, dtr, rts, bps in [*steps, (1.0, False, False, None)]:
        now += pause_s
        board.run_until(now)
        if bps is not None:
            board.set_baudrate(bps)
            was_touched |= bps == 1200 and not lines.dtr
        lines = lines.with_changes(dtr, rts)
        if lines != board.lines:
            board.set(lines, now)
        was_touched |= board.bps == 1200 and not lines.dtr
    board.run_until(now + 10.0)
    return was_touched


@pytest.mark.parametrize("strategy", [NATIVE, PASSED_ON], ids=["by its ids", "none"])
@pytest.mark.parametrize("board", [Samd, Nrf52, ArduinoPico])
@given(steps=STEPS)
def test_a_board_is_reset_exactly_if_a_client_touches_it_and_dtr_is_on_in_the_end(
    strategy: ResetStrategy, board: type[NativeUsb], steps: list[Step]
) -> None:
    local = board()
    was_touched = local_port(local, steps)
    bench = Bench(board(), controller=controller_for(strategy))
    for pause_s, dtr, rts, bps in steps:
        bench.run_until(bench.now + pause_s)
        if bps is not None:
            bench.set_baudrate(bps)
        bench.controller.request(bench.now, dtr=dtr, rts=rts, at_1200=bench.bps == 1200)
        bench.show()
    bench.run_until(bench.now + 1.0)
    bench.leave()
    assert was_touched or not bench.board.boots
    assert bench.board.boots or not local.boots
    assert bench.controller.applied == BOTH
    assert not bench.controller.busy


@given(steps=STEPS)
def test_a_board_behind_lines_that_rest_on_is_reset_by_no_client_that_comes_or_leaves(
    steps: list[Step],
) -> None:
    """A classic circuit whose lines rest at on: only a reset that is meant is one."""
    choice = ResetChoice(Reset.CLASSIC, rest=LinesAtRest(BOTH))
    board = CircuitBoard(0.001)
    bench = Bench(board, controller=controller_for(choice.strategy(None)))
    meant = 0
    for pause_s, dtr, rts, _ in steps:
        bench.run_until(bench.now + pause_s)
        bench.controller.request(bench.now, dtr=dtr, rts=rts)
        bench.show()
        meant += len(bench.controller.resets())
    bench.leave()
    meant += len(bench.controller.resets())
    assert board.resets == meant
    assert board.boots[-1:] != [Boot.UNCERTAIN]
    assert bench.controller.applied == BOTH


def test_the_request_helper_says_the_rate() -> None:
    controller = controller_for(ResetChoice(Reset.TOUCH_1200).strategy(None))
    request(controller, 0.0, Control.DTR_ON, at_1200=True)
    request(controller, 0.1, Control.DTR_OFF, at_1200=True)
    assert [starts.value for starts in controller.resets()] == ["bootloader"]
