"""What reaches a tty's modem lines: tests/shim gives a pty some, and tells of each call."""

import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bare_pty import LIMIT_S, BarePty
from tests.support.processes import run_tool
from tests.support.shim import Shim, TtyCall, build_shim

PROGRAM = """
import asyncio, os, sys
from gateway import runtime
from gateway.serialport import transport as transport_module
from gateway.errors import DeviceError
from gateway.protocol.reset import (BOTH, IDLE, RESET, STRAP)
from gateway.protocol.serial_settings import SerialSettings
from gateway.serialport.tty import Tty, TtyLocation
from dataclasses import replace

tty = Tty(TtyLocation(sys.argv[1]), SerialSettings())
"""


@pytest.fixture
def board() -> Iterator[BarePty]:
    with BarePty() as board:
        yield board


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(built: Shim, tmp_path: Path) -> Shim:
    return Shim(built.library, tmp_path)


def calls_of(shim: Shim, board: BarePty, program: str) -> list[TtyCall]:
    command = [sys.executable, "-c", PROGRAM + program, board.path]
    result = run_tool(command, LIMIT_S, shim.env())
    assert result.returncode == 0, result.stderr
    return shim.calls()


def line_changes(calls: list[TtyCall]) -> list[tuple[str, bool, bool]]:
    """What has moved a line, or may have; with the lines after it."""
    names = {"open", "TIOCMSET", "TIOCMBIS", "TIOCMBIC", "close"}
    return [(call.name, call.dtr, call.rts) for call in calls if call.name in names]


def test_opening_takes_both_lines_off_in_one_step_and_closing_moves_none(
    shim: Shim, board: BarePty
) -> None:
    calls = calls_of(shim, board, "tty.open(); tty.apply(SerialSettings(9600)); tty.close()")
    assert line_changes(calls) == [
        ("open", True, True),
        ("TIOCMSET", False, False),
        ("close", False, False),
    ]


def queue_drops(calls: list[TtyCall]) -> list[tuple[str, str]]:
    """The calls that drop what a queue of the tty holds."""
    names = {"tcflush", "TCFLSH", "TCSETSF", "TCSETSF2"}
    drops = [call for call in calls if call.name in names or call.args.startswith("TCSAFLUSH")]
    return [(call.name, call.args) for call in drops]


def test_a_fresh_tty_is_raw_then_rid_of_its_echo_before_the_lines_move(
    shim: Shim, board: BarePty
) -> None:
    calls = calls_of(shim, board, "tty.open()")
    names = [call.name for call in calls]
    order = [names.index(name) for name in ("open", "tcsetattr", "tcflush", "TIOCMSET")]
    assert order == sorted(order)
    assert queue_drops(calls) == [("tcflush", "TCOFLUSH")]  # and nothing of what the board said


def test_a_tty_that_was_raw_keeps_what_is_queued_for_its_board(shim: Shim, board: BarePty) -> None:
    calls = calls_of(shim, board, "tty.open(); tty.close(); tty.open()")
    assert [call.name for call in calls].count("open") == 2
    assert queue_drops(calls) == [("tcflush", "TCOFLUSH")]  # by the first


def test_each_change_of_the_lines_is_one_step(shim: Shim, board: BarePty) -> None:
    program = """
tty.open()
for lines in (RESET, STRAP, BOTH, IDLE):
    tty.set_lines(lines)
assert tty.has_lines
tty.close()
"""
    assert line_changes(calls_of(shim, board, program)) == [
        ("open", True, True),
        ("TIOCMSET", False, False),
        ("TIOCMSET", False, True),
        ("TIOCMSET", True, False),
        ("TIOCMSET", True, True),
        ("TIOCMSET", False, False),
        ("close", False, False),
    ]


def test_settings_move_no_line(shim: Shim, board: BarePty) -> None:
    program = """
tty.open()
tty.set_lines(STRAP)
for baudrate in (9600, 74880, 3_000_000_000, 921600):
    tty.apply(replace(SerialSettings(), baudrate=baudrate))
tty.close()
"""
    changes = line_changes(calls_of(shim, board, program))
    assert changes[2:] == [("TIOCMSET", True, False), ("close", True, False)]


def test_a_locked_tty_is_opened_and_closed_and_nothing_else(shim: Shim, board: BarePty) -> None:
    program = """
try:
    tty.open()
except DeviceError as error:
    assert str(error) == "in use by another program", error
else:
    raise AssertionError("opened what is locked")
"""
    fcntl.flock(board.slave, fcntl.LOCK_EX)
    assert [call.name for call in calls_of(shim, board, program)] == ["open", "close"]


PORT_PROGRAM = """
class Owner(asyncio.Protocol):
    def __init__(self):
        self.opened = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def failed(self, error):
        raise AssertionError(error)

    def data_received(self, data):
        pass

    def pause_writing(self):
        pass

    def resume_writing(self):
        pass

    def connection_lost(self, exc):
        self.lost.set_result(str(exc))

async def main():
    owner = Owner()
    transport_module.Opening(owner, lambda _: None).begin(
        tty, owner.opened.set_result, owner.failed
    )
    await use(await owner.opened, owner)
    while tty.is_open:
        await asyncio.sleep(0.001)

def print_nothing(_):
    pass

async def made(ask, *args):
    done = asyncio.Event()
    ask(*args, lambda *_: done.set())
    await done.wait()
"""


def test_a_ports_lines_move_as_it_is_asked_and_not_by_settings_break_purge_or_close(
    shim: Shim, board: BarePty
) -> None:
    program = """
async def use(port, owner):
    assert tty.has_lines
    port.write(b"bytes")
    await made(port.call_in_order, lambda: tty.set_lines(RESET))
    port.call_in_order(lambda: tty.set_lines(STRAP), print_nothing)
    port.call_in_order(lambda: tty.set_lines(IDLE), print_nothing)
    await made(port.call_in_order, lambda: tty.set_lines(STRAP))
    await made(port.call_in_order, lambda: tty.apply(SerialSettings(74880)))
    await made(port.call_in_order, lambda: tty.set_break(True))
    await made(port.call_in_order, lambda: tty.set_break(False))
    await made(lambda done: port.purge(receive=True, transmit=True, done=done))
    await made(port.read_states)
    port.close()

runtime.run(main())
"""
    assert line_changes(calls_of(shim, board, PORT_PROGRAM + program)) == [
        ("open", True, True),
        ("TIOCMSET", False, False),
        ("TIOCMSET", False, True),
        ("TIOCMSET", True, False),
        ("TIOCMSET", False, False),
        ("TIOCMSET", True, False),
        ("close", True, False),
    ]


def test_a_port_whose_ioctl_blocks_is_lost_and_closed_when_the_kernel_lets_go(
    shim: Shim, board: BarePty
) -> None:
    program = """
transport_module._CALL_LIMIT_S = 0.05

def set_delay_ms(delay_ms):
    with open(os.environ["MODEM_SHIM_DELAY_FILE"], "w") as file:
        file.write(f"{delay_ms}\\n")

async def use(port, owner):
    set_delay_ms(60_000)
    port.call_in_order(lambda: tty.set_lines(RESET), lambda _: print("set"))
    print(await owner.lost, tty.is_open)
    set_delay_ms(0)

runtime.run(main())
"""
    command = [sys.executable, "-c", PROGRAM + PORT_PROGRAM + program, board.path]
    result = run_tool(command, LIMIT_S, shim.env())
    assert result.stderr == ""
    assert result.stdout == "the kernel did not answer for 0.05 s True\n"
    # A TIOCMSET can't be called back once the kernel has it.
    assert line_changes(shim.calls())[1:] == [
        ("TIOCMSET", False, False),
        ("TIOCMSET", False, True),
        ("close", False, True),
    ]
