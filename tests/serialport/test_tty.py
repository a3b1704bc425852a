import contextlib
import errno
import fcntl
import os
import subprocess
import termios
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.errors import DeviceAbsentError, DeviceError
from gateway.protocol.reset import BOTH, IDLE, RESET, STRAP, Lines
from gateway.protocol.rfc2217 import Modemstate
from gateway.protocol.serial_settings import SerialSettings
from gateway.serialport.tty import Tty, TtyLocation
from tests.serialport.conftest import opened
from tests.support.bare_pty import BarePty

SETTINGS = SerialSettings()
NOBODY = 65534
#: N_TTY_BUF_SIZE in linux/drivers/tty/n_tty.c, less one.
N_TTY_READ_BUFFER_BYTES = 4095


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """As a user to whom the kernel refuses what is not allowed."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def reason_for_not_opening(path: str | Path) -> DeviceError:
    """Opens what can't be opened; that no descriptor stays is seen after the test."""
    tty = Tty(TtyLocation(str(path)), SETTINGS)
    with pytest.raises(DeviceError) as caught:
        tty.open()
    assert not tty.is_open
    tty.close()  # harmless
    return caught.value


# --- opening


def test_a_tty_that_does_not_exist_is_absent(tmp_path: Path) -> None:
    error = reason_for_not_opening(tmp_path / "tty")
    assert isinstance(error, DeviceAbsentError)
    assert str(error) == "not plugged in"


def test_a_link_to_a_vanished_tty_is_absent(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "tty")
    assert isinstance(reason_for_not_opening(tmp_path / "link"), DeviceAbsentError)


def test_a_tty_without_permission_says_what_to_look_at(board: BarePty) -> None:
    Path(board.path).chmod(0)
    with unprivileged():
        error = reason_for_not_opening(board.path)
    assert not isinstance(error, DeviceAbsentError)
    assert str(error) == "no permission (is the user in group dialout?)"


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "a file"])
def test_what_is_no_tty_is_called_so(path: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("content")
    error = reason_for_not_opening(tmp_path / path)
    assert not isinstance(error, DeviceAbsentError)
    assert str(error) == "not a serial port"
    assert (tmp_path / "a file").read_text() == "content"


def test_a_folder_is_refused_with_the_kernels_reason(tmp_path: Path) -> None:
    assert str(reason_for_not_opening(tmp_path)) == os.strerror(errno.EISDIR)


def test_a_tty_that_another_program_has_locked_is_in_use_and_is_not_touched(board: BarePty) -> None:
    flags = board.flags()
    with open(board.path, "rb+", buffering=0) as other:  # noqa: PTH123 - a tty can't be sought in
        fcntl.flock(other, fcntl.LOCK_EX)
        board.send(b"for the other program\n")
        assert str(reason_for_not_opening(board.path)) == "in use by another program"
        assert board.flags() == flags
        assert os.read(other.fileno(), 100) == b"for the other program\n"


def test_what_we_have_open_is_refused_to_a_second_tty_and_stays_usable(board: BarePty) -> None:
    with opened(board) as tty:
        assert str(reason_for_not_opening(board.path)) == "in use by another program"
        os.write(tty.descriptor, b"still ours")
        assert board.received(10) == b"still ours"


def test_other_users_programs_are_kept_out_while_it_is_open(board: BarePty) -> None:
    Path(board.path).chmod(0o666)
    with opened(board), unprivileged():
        assert str(reason_for_not_opening(board.path)) == "in use by another program"


def test_it_can_be_opened_again_without_privileges(board: BarePty) -> None:
    Path(board.path).chmod(0o666)
    with unprivileged():
        for _ in range(2):
            with opened(board) as tty:
                assert tty.is_open


def test_settings_that_overflow_are_refused_at_open_and_no_descriptor_stays(board: BarePty) -> None:
    tty = Tty(TtyLocation(board.path), replace(SETTINGS, baudrate=3_000_000_000))
    with pytest.raises(DeviceError):
        tty.open()
    assert tty.descriptor == -1


def test_what_came_before_open_is_kept(board: BarePty) -> None:
    os.write(board.master, b"boot log without an end of line")
    board.received(31)  # the fresh tty has echoed it
    with opened(board) as tty:
        assert os.read(tty.descriptor, 100) == b"boot log without an end of line"


def test_echo_that_the_board_has_not_read_is_dropped_at_open(board: BarePty) -> None:
    # Echoed as ^A: more than the far end's read buffer, out of which nothing can be taken back.
    board.send(b"\x01" * 3000 + b"\n")
    with opened(board):
        assert len(board.received_so_far()) == N_TTY_READ_BUFFER_BYTES


def test_what_was_sent_before_a_tty_is_opened_again_reaches_its_board(board: BarePty) -> None:
    sent = b"x" * 6000
    with opened(board) as tty:
        os.write(tty.descriptor, sent)
    with opened(board):
        assert board.received(len(sent)) == sent


def test_nothing_is_echoed_or_edited_once_it_is_open(board: BarePty) -> None:
    everything = bytes(range(256))
    with opened(board) as tty:
        board.send(everything)
        received = b""
        while len(received) < len(everything):
            with contextlib.suppress(BlockingIOError):
                received += os.read(tty.descriptor, 1000)
        assert received == everything
        os.write(tty.descriptor, everything)
        assert board.received(len(everything)) == everything
        assert not board.has_received_more()


def test_the_descriptor_does_not_block_and_is_not_inherited(board: BarePty) -> None:
    with opened(board) as tty:
        assert not os.get_inheritable(tty.descriptor)
        with pytest.raises(BlockingIOError):
            os.read(tty.descriptor, 1)


def test_the_lines_are_to_stay_as_they_are_at_close(board: BarePty) -> None:
    flags = board.flags()
    flags[2] |= termios.HUPCL
    termios.tcsetattr(board.slave, termios.TCSANOW, flags)
    with opened(board):
        assert not board.flags()[2] & termios.HUPCL
        assert board.flags()[2] & termios.CLOCAL


# --- closing


def test_a_child_that_still_has_the_descriptor_keeps_neither_the_lock_nor_the_mark(
    board: BarePty,
) -> None:
    Path(board.path).chmod(0o666)
    with opened(board) as tty:
        # As between fork and exec, when a descriptor that is closed on exec is open still.
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[tty.descriptor])
    try:
        with unprivileged(), opened(board) as again:
            assert again.is_open
    finally:
        child.communicate()


def test_closing_twice_closes_once(board: BarePty) -> None:
    with opened(board) as tty:
        tty.close()
        # Takes the number that the tty has had.
        reused = os.open("/dev/null", os.O_RDONLY)
        tty.close()
        os.fstat(reused)
        os.close(reused)


def test_a_closed_tty_does_not_touch_who_has_its_number_now(board: BarePty) -> None:
    with opened(board) as tty:
        tty.close()
        with pytest.raises((OSError, ValueError, termios.error)):
            tty.purge(receive=True, transmit=True)
        with pytest.raises((OSError, ValueError)):
            tty.set_break(True)


def test_a_vanished_tty_is_closed_without_an_error(board: BarePty) -> None:
    with opened(board) as tty:
        board.hang_up()
        tty.close()
        assert not tty.is_open


# --- lines


def test_a_tty_without_lines_has_none_and_says_so(board: BarePty) -> None:
    with opened(board) as tty:
        assert not tty.has_lines
        tty.set_lines(BOTH)
        assert tty.modemstate() == Modemstate(0)


def test_the_boards_lines_are_told_without_deltas(
    board: BarePty, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(board) as tty:
        tty.has_lines = True
        bits = termios.TIOCM_CTS | termios.TIOCM_CD | termios.TIOCM_DTR
        monkeypatch.setattr(tty, "_modem_get", lambda: bits)
        assert tty.modemstate() == Modemstate.CTS | Modemstate.CD
        bits = termios.TIOCM_DSR | termios.TIOCM_RI
        assert tty.modemstate() == Modemstate.DSR | Modemstate.RI


class SimulatedLines:
    """Lines of a simulated board; `fails` is the call, counted from 1, that fails."""

    def __init__(self, *, fails: int = 0, fails_at_close: bool = False) -> None:
        self.set: list[Lines] = []
        self.closed = 0
        self._fails = fails
        self._fails_at_close = fails_at_close

    def set_lines(self, dtr: bool, rts: bool) -> None:
        self.set.append(Lines(dtr, rts))
        if len(self.set) == self._fails:
            raise BrokenPipeError(errno.EPIPE, "the board is gone")

    def close(self) -> None:
        self.closed += 1
        if self._fails_at_close:
            raise BrokenPipeError(errno.EPIPE, "the board is gone")


def test_a_simulated_boards_lines_go_up_and_down_together_at_open(board: BarePty) -> None:
    lines = SimulatedLines()
    tty = Tty(TtyLocation(board.path, lambda: lines), SETTINGS)
    tty.open()
    assert lines.set == [BOTH, IDLE]
    tty.set_lines(RESET)
    tty.set_lines(STRAP)
    assert lines.set == [BOTH, IDLE, RESET, STRAP]
    assert tty.has_lines
    assert tty.modemstate() == Modemstate(0)
    tty.close()
    assert lines.set == [BOTH, IDLE, RESET, STRAP]
    assert lines.closed == 1


def test_a_simulated_board_whose_lines_fail_is_not_opened(board: BarePty) -> None:
    lines = SimulatedLines(fails=2)
    with pytest.raises(DeviceError, match=os.strerror(errno.EPIPE)):
        Tty(TtyLocation(board.path, lambda: lines), SETTINGS).open()
    assert lines.closed == 1


def test_lines_that_can_not_be_closed_do_not_keep_the_tty_open(board: BarePty) -> None:
    lines = SimulatedLines(fails_at_close=True)
    tty = Tty(TtyLocation(board.path, lambda: lines), SETTINGS)
    tty.open()
    tty.close()
    assert lines.closed == 1
    assert tty.descriptor == -1
