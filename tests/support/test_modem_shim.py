import os
import pty
import socket
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.processes import BackgroundProcess, run_tool
from tests.support.shim import Shim, build_shim

LIMIT_S = 30.0

PRELUDE = """
import array, ctypes, errno, fcntl, os, struct, subprocess, sys, termios, threading
import serial

def lines_of(fd):
    bits = array.array("I", [0])
    fcntl.ioctl(fd, termios.TIOCMGET, bits)
    return bool(bits[0] & termios.TIOCM_DTR), bool(bits[0] & termios.TIOCM_RTS)

def set_lines(fd, bits, request=termios.TIOCMSET):
    fcntl.ioctl(fd, request, struct.pack("I", bits))

DTR, RTS = termios.TIOCM_DTR, termios.TIOCM_RTS
tty = sys.argv[1]
flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(built: Shim, tmp_path: Path) -> Shim:
    return Shim(built.library, tmp_path)


@pytest.fixture
def tty() -> Iterator[str]:
    """The path of a pty's slave end; what is written to it is not read."""
    master, slave = pty.openpty()
    yield os.ttyname(slave)
    os.close(slave)
    os.close(master)


def command(script: str, *args: str | Path) -> list[str | Path]:
    return [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *args]


@pytest.fixture
def play(shim: Shim, tty: str) -> Callable[..., str]:
    """Runs a script on the tty, under the shim; returns what it prints."""

    def play(script: str, *args: str | Path, env: dict[str, str] | None = None) -> str:
        done = run_tool(command(script, tty, *args), LIMIT_S, {**shim.env(), **(env or {})})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return play


Play = Callable[..., str]


def line_changes(shim: Shim) -> list[tuple[str, str, bool, bool]]:
    names = ("open", "TIOCMSET", "TIOCMBIS", "TIOCMBIC", "close")
    return [(call.name, call.args, call.dtr, call.rts) for call in shim.calls(*names)]


def test_pyserial_sets_and_reads_back_lines_on_a_pty(shim: Shim, tty: str, play: Play) -> None:
    out = play(
        """
        port = serial.Serial(tty)
        print(lines_of(port.fd))
        port.dtr = False
        print(lines_of(port.fd))
        port.rts = False
        print(lines_of(port.fd), port.cts)
        port.close()
        """
    )
    assert out.splitlines() == ["(True, True)", "(False, True)", "(False, False) False"]
    assert line_changes(shim) == [
        ("open", "-", True, True),
        ("TIOCMBIS", "DTR", True, True),
        ("TIOCMBIS", "RTS", True, True),
        ("TIOCMBIC", "DTR", False, True),
        ("TIOCMBIC", "RTS", False, False),
        ("close", "-", False, False),
    ]
    calls = shim.calls()
    assert {call.path for call in calls} == {tty}
    assert [call.time_ns for call in calls] == sorted(call.time_ns for call in calls)


def test_tiocmset_changes_both_lines_in_one_step(shim: Shim, play: Play) -> None:
    out = play(
        """
        fd = os.open(tty, flags)
        for bits in (0, RTS, DTR, DTR | RTS):
            set_lines(fd, bits)
            print(*lines_of(fd))
        """
    )
    assert out.splitlines() == ["False False", "False True", "True False", "True True"]
    assert line_changes(shim) == [
        ("open", "-", True, True),
        ("TIOCMSET", "0x0", False, False),
        ("TIOCMSET", "RTS", False, True),
        ("TIOCMSET", "DTR", True, False),
        ("TIOCMSET", "DTR|RTS", True, True),
    ]


@pytest.mark.parametrize(
    "call",
    [
        "libc.open(path, flags)",
        "libc.open64(path, flags)",
        "libc.openat(-100, path, flags)",
        "libc.openat64(-100, path, flags)",
        "libc.__open_2(path, flags)",
        "libc.__open64_2(path, flags)",
    ],
)
def test_every_way_to_open_a_tty_is_seen(shim: Shim, play: Play, call: str) -> None:
    out = play(
        f"""
        libc, path = ctypes.CDLL(None), tty.encode()
        print(*lines_of({call}))
        """
    )
    assert out == "True True\n"
    assert line_changes(shim) == [("open", "-", True, True)]


def test_the_last_close_lowers_the_lines_only_with_hupcl(shim: Shim, play: Play) -> None:
    play(
        """
        fd, other = os.open(tty, flags), os.open(tty, flags)
        os.close(other)
        os.close(fd)
        fd = os.open(tty, flags)
        attributes = termios.tcgetattr(fd)
        assert attributes[2] & termios.HUPCL
        attributes[2] &= ~termios.HUPCL
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
        set_lines(fd, RTS)
        os.close(fd)
        os.close(os.open(tty, flags))
        """
    )
    assert line_changes(shim) == [
        ("open", "-", True, True),
        ("open", "-", True, True),
        ("close", "-", True, True),
        ("close", "-", False, False),
        ("open", "-", True, True),
        ("TIOCMSET", "RTS", False, True),
        ("close", "-", False, True),
        ("open", "-", True, True),
        ("close", "-", True, True),
    ]


def test_settings_flushes_and_breaks_are_logged_in_order(shim: Shim, play: Play) -> None:
    play(
        """
        fd = os.open(tty, flags)
        attributes = termios.tcgetattr(fd)
        attributes[3] = 0
        termios.tcsetattr(fd, termios.TCSADRAIN, attributes)
        termios.tcflush(fd, termios.TCIFLUSH)
        termios.tcsendbreak(fd, 0)
        fcntl.ioctl(fd, 0x5427)  # TIOCSBRK
        fcntl.ioctl(fd, 0x5428)  # TIOCCBRK
        settings = bytearray(44)
        fcntl.ioctl(fd, 0x802C542A, settings)  # TCGETS2
        struct.pack_into("I", settings, 8, termios.CS8 | 0x1000)  # BOTHER
        struct.pack_into("I", settings, 40, 250000)
        fcntl.ioctl(fd, 0x402C542B, bytes(settings))  # TCSETS2
        """
    )
    assert [call.name for call in shim.calls()] == [
        "open",
        "tcsetattr",
        "tcflush",
        "tcsendbreak",
        "TIOCSBRK",
        "TIOCCBRK",
        "TCSETS2",
    ]
    settings, flush = shim.calls("tcsetattr", "tcflush")
    assert settings.args.startswith("TCSADRAIN,")
    assert settings.args.endswith(",lflag=0x0")
    assert flush.args == "TCIFLUSH"
    assert shim.calls("TCSETS2")[0].args.endswith(",speed=250000")


def test_counters_are_zeros_or_what_the_file_says(shim: Shim, play: Play) -> None:
    script = """
        fd = os.open(tty, flags)
        counters = array.array("i", [-1] * 20)
        fcntl.ioctl(fd, 0x545D, counters)  # TIOCGICOUNT
        print(*counters)
        """
    assert play(script).split() == ["0"] * 20
    shim.set_counters(0, 0, 0, 0, 100, 200, 3, 4)
    assert play(script).split()[:9] == ["0", "0", "0", "0", "100", "200", "3", "4", "0"]


def test_waiting_for_a_line_and_other_descriptors_are_left_to_the_kernel(
    shim: Shim, play: Play, tmp_path: Path
) -> None:
    out = play(
        """
        def fails(fd, request):
            try:
                fcntl.ioctl(fd, request, struct.pack("I", 0))
            except OSError as error:
                return error.errno in (errno.ENOTTY, errno.EINVAL)
            return False

        print(fails(os.open(tty, flags), termios.TIOCMIWAIT))
        master, slave = os.openpty()  # opened inside of libc, not by name
        print(fails(slave, termios.TIOCMGET))
        file = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT, 0o640)
        print(fails(file, termios.TIOCMGET), oct(os.fstat(file).st_mode & 0o777))
        os.close(file)
        """,
        tmp_path / "file",
    )
    assert out.splitlines() == ["True", "True", "True 0o640"]
    assert [call.name for call in shim.calls()] == ["open"]


def test_a_child_that_closes_descriptors_leaves_its_parents_tty_alone(
    shim: Shim, play: Play
) -> None:
    out = play(
        """
        fd = os.open(tty, flags)
        set_lines(fd, DTR)
        if not (pid := os.fork()):
            os.close(fd)
            os._exit(0)
        os.waitpid(pid, 0)
        subprocess.run(["true"], check=True)
        print(*lines_of(fd))
        """,
    )
    assert out == "True False\n"
    assert [call.name for call in shim.calls()] == ["open", "TIOCMSET", "TIOCMGET"]


def test_line_changes_go_to_the_boards_control_socket(
    shim: Shim, tty: str, play: Play, tmp_path: Path
) -> None:
    link = tmp_path / "ttyUSB0"
    link.symlink_to(tty)
    shim.set_controls({"/dev/null": tmp_path / "other", link: tmp_path / "board"})
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(LIMIT_S)
        server.bind(str(tmp_path / "board"))
        server.listen()
        play(
            """
            fd = os.open(tty, flags)
            set_lines(fd, DTR | RTS)  # no change
            set_lines(fd, 0)
            set_lines(fd, RTS, termios.TIOCMBIS)
            set_lines(fd, DTR)
            os.close(fd)
            """
        )
        connection, _ = server.accept()
        with connection, connection.makefile() as stream:
            told = [line.split() for line in stream]
    assert [words[:3] for words in told] == [
        ["lines", "1", "1"],
        ["lines", "0", "0"],
        ["lines", "0", "1"],
        ["lines", "1", "0"],
        ["lines", "0", "0"],
    ]
    times = [int(words[3]) for words in told]
    assert times == sorted(times)
    assert shim.calls("open")[0].time_ns >= times[0] > 0


def test_a_control_socket_that_nobody_serves_is_logged_and_does_no_harm(
    shim: Shim, tty: str, play: Play, tmp_path: Path
) -> None:
    shim.set_controls({tty: tmp_path / "nobody"})
    assert play("print(*lines_of(os.open(tty, flags)))") == "True True\n"
    assert [call.name for call in shim.calls()] == ["control-failed", "open", "TIOCMGET"]


def test_a_stuck_tty_blocks_its_own_calls_until_it_is_let_go(shim: Shim, tty: str) -> None:
    master, slave = pty.openpty()
    other = os.ttyname(slave)
    script = """
        fd, other = os.open(tty, flags), os.open(sys.argv[2], flags)
        print("opened", flush=True)
        sys.stdin = open(sys.argv[3])
        sys.stdin.readline()
        stuck = threading.Thread(target=lambda: (set_lines(fd, 0), print("stuck", flush=True)))
        stuck.start()
        set_lines(other, 0)
        print("other", flush=True)
        stuck.join()
        """
    go = shim.log.with_name("go")
    os.mkfifo(go)
    process = BackgroundProcess(command(script, tty, other, go), shim.env())
    process.start()
    try:
        process.wait_for_line("^opened$")
        shim.set_delay_ms(3_600_000, tty)
        go.write_text("\n")
        shim.wait_for_call("blocked")
        process.wait_for_line("^other$")
        assert process.log == ["opened", "other"]
        assert [call.path for call in shim.calls("TIOCMSET")] == [other]
        shim.set_delay_ms(0)
        process.wait_for_line("^stuck$")
    finally:
        process.kill()
        os.close(slave)
        os.close(master)
    assert [(call.path, call.args) for call in shim.calls("blocked")] == [(tty, "TIOCMSET")]
    assert [call.path for call in shim.calls("TIOCMSET")] == [other, tty]


def test_a_delay_may_be_given_once_for_all(shim: Shim, tty: str, play: Play) -> None:
    play("lines_of(os.open(tty, flags))", env={"MODEM_SHIM_IOCTL_DELAY_MS": "1"})
    assert [(call.name, call.args) for call in shim.calls()] == [
        ("blocked", "open"),
        ("open", "-"),
        ("blocked", "TIOCMGET"),
        ("TIOCMGET", "-"),
    ]


def test_the_test_says_what_a_driver_would_tell_of_the_board(shim: Shim, play: Play) -> None:
    script = """
        fd = os.open(tty, flags)
        number = array.array("I", [0])
        for request in (termios.TIOCMGET, termios.TIOCOUTQ, 0x5459):  # TIOCSERGETLSR
            try:
                fcntl.ioctl(fd, request, number)
                print(number[0])
            except OSError as error:
                print(error.errno == errno.ENOTTY)
        """
    assert play(script).split() == [str(0x6), "0", "True"]
    shim.set_modem_bits(0x20)
    shim.set_unsent_bytes(7)
    shim.set_line_status(1)
    assert play(script).split() == [str(0x26), "7", "1"]


def test_writes_are_logged_and_changes_of_what_is_unsent(shim: Shim, play: Play) -> None:
    shim.set_unsent_bytes(3)
    play(
        """
        fd = os.open(tty, flags)
        number = array.array("i", [0])
        os.write(fd, b"abc")
        fcntl.ioctl(fd, termios.TIOCOUTQ, number)
        fcntl.ioctl(fd, termios.TIOCOUTQ, number)
        os.remove(os.environ["MODEM_SHIM_OUTQ_FILE"])
        """
    )
    calls = [(call.name, call.args) for call in shim.calls("write", "TIOCOUTQ")]
    assert calls == [("write", "3"), ("TIOCOUTQ", "3")]
