"""What is done to an open tty: settings, break, purge, drain."""

import contextlib
import fcntl
import os
import select
import termios
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from gateway.protocol.serial_settings import FlowControl, Parity, SerialSettings, StopBits
from gateway.serialport import tty as serial_tty
from gateway.serialport.tty import Tty, TtyLocation
from tests.serialport.conftest import opened
from tests.support.bare_pty import LIMIT_S, BarePty

SETTINGS = SerialSettings()
TWO_STOP_BITS = replace(SETTINGS, stopbits=StopBits.TWO)
RTSCTS = replace(SETTINGS, flow_control=FlowControl.RTSCTS)
XONXOFF = replace(SETTINGS, flow_control=FlowControl.XONXOFF)


class NoLines:
    """The lines of a simulated board, of which nothing is to be seen here."""

    def set_lines(self, dtr: bool, rts: bool) -> None:
        pass

    def close(self) -> None:
        pass


# --- settings


@pytest.mark.parametrize("baudrate", [300, 9600, 74880, 115200, 250000, 921600, 2000000, 12000000])
def test_any_rate_is_set_and_read_back_from_the_kernel(board: BarePty, baudrate: int) -> None:
    with opened(board) as tty:
        wanted = replace(SETTINGS, baudrate=baudrate)
        assert tty.apply(wanted) == wanted
        assert tty.in_force == wanted
        assert serial_tty._output_speed(board.slave) == baudrate


def test_the_settings_in_force_after_open_are_those_asked_for(board: BarePty) -> None:
    wanted = replace(SETTINGS, baudrate=74880)
    with opened(board, wanted) as tty:
        assert tty.in_force == wanted
        assert serial_tty._output_speed(board.slave) == 74880


@pytest.mark.parametrize(
    ("wanted", "in_force"),
    [
        (replace(SETTINGS, bytesize=7, parity=Parity.EVEN), SETTINGS),
        (replace(SETTINGS, parity=Parity.MARK), SETTINGS),
        (replace(SETTINGS, stopbits=StopBits.ONE_POINT_FIVE), TWO_STOP_BITS),
        (TWO_STOP_BITS, TWO_STOP_BITS),
        (replace(TWO_STOP_BITS, baudrate=9600, bytesize=5), replace(TWO_STOP_BITS, baudrate=9600)),
        (RTSCTS, RTSCTS),
        (XONXOFF, XONXOFF),
    ],
)
def test_a_pty_has_what_the_kernel_can_set_on_it(
    board: BarePty, wanted: SerialSettings, in_force: SerialSettings
) -> None:
    with opened(board) as tty:
        assert tty.apply(wanted) == tty.in_force == in_force
        # What the far end, QEMU or socat for instance, can read of it.
        iflag, _, cflag, *_ = termios.tcgetattr(board.master)
        assert bool(cflag & termios.CSTOPB) == (in_force.stopbits is StopBits.TWO)
        assert bool(cflag & termios.CRTSCTS) == (in_force == RTSCTS)
        assert iflag & (termios.IXON | termios.IXOFF) in (0, termios.IXON | termios.IXOFF)
        assert bool(iflag & termios.IXON) == (in_force == XONXOFF)
        assert tty.apply(SETTINGS) == SETTINGS


@pytest.mark.parametrize("flow_control", [SETTINGS, RTSCTS])
def test_a_pty_is_transparent_without_software_flow_control(
    board: BarePty, flow_control: SerialSettings
) -> None:
    with opened(board) as tty:
        tty.apply(flow_control)
        os.write(tty.descriptor, b"\x11\x13\xff")
        assert board.received(3) == b"\x11\x13\xff"
        board.send(b"\x11\x13\xff")
        assert os.read(tty.descriptor, 10) == b"\x11\x13\xff"


@pytest.mark.parametrize("ends", ["with XON", "with flow control"])
def test_xoff_on_a_pty_stops_what_is_sent(board: BarePty, ends: str) -> None:
    with opened(board) as tty:
        tty.apply(XONXOFF)
        board.send(b"\x13.")
        assert os.read(tty.descriptor, 10) == b"."  # XOFF is not the board's output
        with pytest.raises(BlockingIOError):
            os.write(tty.descriptor, b"held")
        assert not board.has_received_more()
        if ends == "with XON":
            board.send(b"\x11.")
        else:
            tty.apply(SETTINGS)
        os.write(tty.descriptor, b"sent")
        assert board.received(4) == b"sent"


def test_a_simulated_board_has_any_framing_like_the_bridge_that_it_stands_for(
    board: BarePty,
) -> None:
    tty = Tty(TtyLocation(board.path, NoLines), SETTINGS)
    tty.open()
    for wanted in (
        replace(SETTINGS, bytesize=7, parity=Parity.EVEN),
        replace(SETTINGS, bytesize=5, parity=Parity.MARK, stopbits=StopBits.ONE_POINT_FIVE),
        replace(XONXOFF, parity=Parity.ODD, stopbits=StopBits.TWO),
    ):
        assert tty.apply(wanted) == wanted
    tty.close()


def test_refused_settings_leave_the_old_in_force(board: BarePty) -> None:
    old = replace(SETTINGS, baudrate=74880)
    with opened(board, old) as tty:
        assert tty.apply(replace(SETTINGS, baudrate=3_000_000_000)) == old
        assert tty.in_force == old
        assert serial_tty._output_speed(board.slave) == 74880
        assert tty.apply(SETTINGS) == SETTINGS


@pytest.mark.parametrize(
    ("driver_makes", "reported"), [(117647, 115200), (111111, 111111), (9600, 9600)]
)
def test_a_rate_within_what_uarts_tolerate_counts_as_the_one_asked_for(
    board: BarePty, monkeypatch: pytest.MonkeyPatch, driver_makes: int, reported: int
) -> None:
    with opened(board) as tty:
        monkeypatch.setattr(serial_tty, "_output_speed", lambda _: driver_makes)
        assert tty.apply(SETTINGS).baudrate == reported


def test_framing_is_read_back_from_the_driver(
    board: BarePty, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(board) as tty:
        tty._is_pty = False
        attributes = board.flags()
        attributes[0] |= termios.IXON
        attributes[2] = termios.CS5 | termios.PARENB | termios.PARODD | termios.CSTOPB
        monkeypatch.setattr(termios, "tcgetattr", lambda _: attributes)
        assert tty._read_back(SETTINGS) == SerialSettings(
            SETTINGS.baudrate, 5, Parity.ODD, StopBits.ONE_POINT_FIVE, FlowControl.XONXOFF
        )
        attributes[2] = termios.CS8 | termios.CSTOPB | termios.CRTSCTS
        assert tty._read_back(SETTINGS) == SerialSettings(
            SETTINGS.baudrate, 8, Parity.NONE, StopBits.TWO, FlowControl.RTSCTS
        )


@pytest.mark.parametrize(
    ("flags", "parity"),
    [
        (0, Parity.NONE),
        (termios.PARODD, Parity.NONE),
        (termios.PARENB, Parity.EVEN),
        (termios.PARENB | termios.PARODD, Parity.ODD),
        (termios.PARENB | termios.PARODD | serial_tty._CMSPAR, Parity.MARK),
        (termios.PARENB | serial_tty._CMSPAR, Parity.SPACE),
    ],
)
def test_each_parity_is_told_by_its_flags(flags: int, parity: Parity) -> None:
    assert serial_tty._parity_of(flags) is parity


@pytest.mark.parametrize(
    "call",
    [
        lambda tty: tty.apply(replace(SETTINGS, baudrate=9600)),
        lambda tty: tty.apply(replace(SETTINGS, baudrate=74880)),
        lambda tty: tty.set_break(True),
        lambda tty: tty.purge(receive=True, transmit=True),
        lambda tty: tty.drain(1.0),
    ],
    ids=["apply", "apply special", "break", "purge", "drain"],
)
def test_calls_on_a_vanished_tty_fail(board: BarePty, call: Callable[[Tty], object]) -> None:
    with opened(board) as tty:
        board.hang_up()
        with pytest.raises((OSError, termios.error)):
            call(tty)


# --- break, purge, drain


def test_a_device_that_can_send_no_break_is_not_broken_by_one(
    board: BarePty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serial_tty, "_TIOCSBRK", 0x54FF)  # no such ioctl: ENOTTY
    with opened(board) as tty:
        tty.set_break(True)
        tty.set_break(False)
        os.write(tty.descriptor, b"works")
        assert board.received(5) == b"works"


def test_a_break_does_not_wait_for_bytes_that_the_board_does_not_take(
    board: BarePty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would: TIOCSBRK has no limit, and the port would be given up as stuck."""
    calls: list[object] = []
    with opened(board) as tty:
        monkeypatch.setattr(termios, "tcflush", lambda _, queue: calls.append(queue))
        monkeypatch.setattr(fcntl, "ioctl", lambda _, request: calls.append(request))
        for unsent_bytes in (0, 5):
            monkeypatch.setattr(tty, "_unsent_in_kernel", lambda: unsent_bytes)  # noqa: B023
            tty.set_break(True)
            tty.set_break(False)
        monkeypatch.undo()
    on_off = [serial_tty._TIOCSBRK, serial_tty._TIOCCBRK]
    assert calls == [*on_off, termios.TCOFLUSH, *on_off]


@pytest.mark.parametrize("transmit", [False, True])
@pytest.mark.parametrize("receive", [False, True])
def test_a_purge_discards_what_it_names_and_nothing_else(
    board: BarePty, *, receive: bool, transmit: bool
) -> None:
    with opened(board) as tty:
        board.send(b"in")
        written = fill(tty.descriptor)
        tty.purge(receive=receive, transmit=transmit)
        os.write(board.master, b".")
        assert read_to_dot(tty.descriptor) == (b"." if receive else b"in.")
        if transmit:
            os.write(tty.descriptor, b".")
            # A pty keeps what its far end could already read.
            assert len(read_to_dot(board.master)) < written
        else:
            assert board.received(written) == bytes(written)


def fill(fd: int) -> int:
    """Write until the kernel takes no more; returns how much it took."""
    written = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            written += os.write(fd, bytes(4096))
    return written


def read_to_dot(fd: int) -> bytes:
    data = b""
    while not data.endswith(b"."):
        assert select.select([fd], [], [], LIMIT_S)[0]
        data += os.read(fd, 4096)
    return data


def test_a_drain_ends_when_the_kernel_has_sent_all(
    board: BarePty, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [30, 20, 10, 0]
    with opened(board) as tty:
        monkeypatch.setattr(tty, "_unsent_in_kernel", lambda: left.pop(0))
        assert tty.drain(LIMIT_S)
        assert left == []


def test_a_drain_gives_up_on_a_board_that_takes_nothing(
    board: BarePty, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(board) as tty:
        monkeypatch.setattr(tty, "_unsent_in_kernel", lambda: 10)
        assert not tty.drain(0.01)


def test_a_drain_is_stopped_for_a_purge_and_later_ones_are_not(
    board: BarePty, monkeypatch: pytest.MonkeyPatch
) -> None:
    draining = threading.Event()
    results: list[bool] = []

    def unsent() -> int:
        draining.set()
        return 10

    with opened(board) as tty:
        monkeypatch.setattr(tty, "_unsent_in_kernel", unsent)
        thread = threading.Thread(target=lambda: results.append(tty.drain(LIMIT_S)))
        thread.start()
        assert draining.wait(LIMIT_S)
        tty.stop_draining()
        thread.join(LIMIT_S)
        assert results == [False]
        assert not tty.drain(LIMIT_S)
        tty.purge(receive=False, transmit=True)
        left = [10, 0]
        monkeypatch.setattr(tty, "_unsent_in_kernel", lambda: left.pop(0))
        assert tty.drain(LIMIT_S)


@pytest.mark.parametrize(
    ("flow_control", "waits"),
    [(FlowControl.NONE, True), (FlowControl.RTSCTS, False), (FlowControl.XONXOFF, False)],
)
def test_the_chips_fifo_is_waited_for_unless_the_board_may_stop_it(
    board: BarePty, monkeypatch: pytest.MonkeyPatch, flow_control: FlowControl, *, waits: bool
) -> None:
    waited: list[int] = []
    with opened(board, replace(SETTINGS, flow_control=flow_control)) as tty:
        monkeypatch.setattr(termios, "tcdrain", waited.append)
        assert tty.drain(LIMIT_S)
        assert waited == [tty.descriptor] * waits
