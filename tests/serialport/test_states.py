"""What is read of a tty's states: from a pty, which tells little, and with tests/shim, all."""

import os
import sys
import termios
from pathlib import Path

import pytest

from gateway.protocol.rfc2217 import Linestate, Modemstate
from gateway.serialport.states import (
    EventCounts,
    PortStates,
    modemstate_of,
    read_counts,
    read_linestate,
)
from tests.support.bare_pty import LIMIT_S, BarePty
from tests.support.processes import run_tool
from tests.support.shim import Shim, build_shim

EMPTY = Linestate.TRANSMIT_HOLDING_EMPTY | Linestate.TRANSMIT_SHIFT_EMPTY
PROGRAM = """
import sys
from dataclasses import astuple
from gateway.protocol.serial_settings import SerialSettings
from gateway.serialport.tty import Tty, TtyLocation

tty = Tty(TtyLocation(sys.argv[1]), SerialSettings())
tty.open()
states = tty.states()
print(int(states.modemstate), int(states.linestate), *astuple(states.counts))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(built: Shim, tmp_path: Path) -> Shim:
    return Shim(built.library, tmp_path)


def states_of(shim: Shim, board: BarePty) -> PortStates:
    result = run_tool([sys.executable, "-c", PROGRAM, board.path], LIMIT_S, shim.env())
    assert result.returncode == 0, result.stderr
    modemstate, linestate, *counts = map(int, result.stdout.split())
    return PortStates(Modemstate(modemstate), Linestate(linestate), EventCounts(*counts))


@pytest.mark.parametrize(
    ("bits", "state"),
    [
        (0, Modemstate(0)),
        (termios.TIOCM_CTS, Modemstate.CTS),
        (termios.TIOCM_DSR, Modemstate.DSR),
        (termios.TIOCM_RI, Modemstate.RI),
        (termios.TIOCM_CD, Modemstate.CD),
        (termios.TIOCM_DTR | termios.TIOCM_RTS, Modemstate(0)),
        (0xFFFF, Modemstate.CTS | Modemstate.DSR | Modemstate.RI | Modemstate.CD),
    ],
)
def test_the_boards_side_of_the_modem_lines(bits: int, state: Modemstate) -> None:
    assert modemstate_of(bits) == state


def test_a_driver_without_counters_counts_nothing(board: BarePty) -> None:
    assert read_counts(board.slave) is None


def test_data_ready_is_told_until_it_is_read(board: BarePty) -> None:
    assert read_linestate(board.slave) == EMPTY
    board.send(b"said\n")
    assert read_linestate(board.slave) == EMPTY | Linestate.DATA_READY
    assert os.read(board.slave, 100) == b"said\n"
    assert read_linestate(board.slave) == EMPTY


def test_a_tty_that_is_gone_is_an_error_and_no_state(board: BarePty) -> None:
    board.hang_up()
    with pytest.raises(OSError, match=r"Input/output error"):
        read_linestate(board.slave)
    with pytest.raises(OSError, match=r"Input/output error"):
        read_counts(board.slave)


@pytest.mark.parametrize(
    ("unsent", "line_status", "linestate"),
    [
        (0, None, EMPTY),
        (0, 1, EMPTY),
        (0, 0, Linestate.TRANSMIT_HOLDING_EMPTY),
        (5, None, Linestate(0)),
        (5, 1, Linestate(0)),
    ],
)
def test_what_has_left_is_told_as_far_as_the_driver_tells(
    shim: Shim, board: BarePty, unsent: int, line_status: int | None, linestate: Linestate
) -> None:
    shim.set_unsent_bytes(unsent)
    if line_status is not None:
        shim.set_line_status(line_status)
    assert states_of(shim, board).linestate == linestate


def test_all_states_come_with_one_reading(shim: Shim, board: BarePty) -> None:
    shim.set_counters(1, 2, 3, 4, 500, 600, 7, 8, 9, 10, 11)
    shim.set_modem_bits(termios.TIOCM_CTS | termios.TIOCM_RI)
    assert states_of(shim, board) == PortStates(
        Modemstate.CTS | Modemstate.RI,
        EMPTY,
        EventCounts(cts=1, dsr=2, ri=3, cd=4, frame=7, overrun=8 + 11, parity=9, brk=10),
    )
