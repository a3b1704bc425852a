"""Boards of each kind as processes: real esptools on their ttys, devices that go and come back."""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import serial

from gateway.simulator.attachment import JTAG_IDS, OTG_APP_IDS, OTG_ROM_IDS
from gateway.simulator.board import PROMPT, pattern
from gateway.simulator.host import SimulatedLines, UsbDevice
from tests.support.boards import RunningBoard, wait_until
from tests.support.processes import run_tool

#: For hung tests only.
LIMIT_S = 60.0

#: So that a test has not to wait for it; nothing here depends on how long it is.
GONE = "reenumerate_s=0.05"

#: A board's own sequence into download mode: DTR, RTS and the pause after them.
CIRCUIT_ENTRY = [(False, True, 0.02), (True, False, 0.05), (False, False, 0.0)]
JTAG_ENTRY = [
    (False, False, 0.0),
    (True, False, 0.0),
    (True, True, 0.0),
    (False, True, 0.0),
    (False, False, 0.0),
]
OTG_ENTRY = [
    (True, True, 0.0),
    (False, True, 0.0),
    (True, True, 0.0),
    (True, False, 0.0),
    (False, False, 0.0),
]
HARD_RESET = [(False, True, 0.02), (False, False, 0.0)]

KINDS = {
    "esp8266": ("ESP8266EX", CIRCUIT_ENTRY),
    "esp32c3": ("ESP32-C3 (QFN32) (revision v0.4)", JTAG_ENTRY),
    "esp32c3?usb=bridge": ("ESP32-C3 (QFN32) (revision v0.4)", CIRCUIT_ENTRY),
    "esp32s2": ("ESP32-S2 (revision v0.0)", OTG_ENTRY),
    "esp32s2?usb=bridge": ("ESP32-S2 (revision v0.0)", CIRCUIT_ENTRY),
}


@contextmanager
def board_of(kind: str, folder: Path, parameters: str = GONE) -> Iterator[RunningBoard]:
    """A board of KINDS whose app runs."""
    url = f"sim://{kind}{'&' if '?' in kind else '?'}dir={folder / 'board'}"
    if "bridge" not in kind and kind != "esp8266":
        url += f"&{parameters}"
    if "heartbeat_s" not in url:
        url += "&heartbeat_s=0"
    with RunningBoard(url) as board:
        board.wait_for("app_started")
        yield board


def enter_download_mode(board: RunningBoard, kind: str) -> None:
    board.play(KINDS[kind][1])
    wait_until(lambda: board.boots()[-1] == "download")
    if kind == "esp32s2":
        board.wait_for_usb_device(2)


def run_esptool(board: RunningBoard, major: int, *arguments: str | Path) -> str:
    """Run esptool on a board that is in download mode and stays there; its output."""
    if major == 5:
        esptool = [sys.executable, "-m", "esptool", "--before", "no-reset"]
        esptool += ["--after", "no-reset-stub"]
    else:
        path = os.environ.get("ESPTOOL4", "")
        if not shutil.which(path):
            pytest.skip("ESPTOOL4 does not name an esptool 4.8 executable")
        esptool = [path, "--before", "no_reset", "--after", "no_reset_stub"]
    done = run_tool([*esptool, "--port", board.by_path, *arguments], LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_hung_up(tty: serial.Serial) -> None:
    """A tty whose device has gone hangs up, reads as ended and can't be written to."""
    poll = select.poll()
    poll.register(tty.fileno(), 0)
    assert [event & select.POLLHUP for _, event in poll.poll(LIMIT_S * 1000)] == [select.POLLHUP]
    while os.read(tty.fileno(), 1 << 16):
        pass
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.write(tty.fileno(), b"x")


@pytest.mark.parametrize("major", [5, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_real_esptool_names_the_chip_and_flashes_it(tmp_path: Path, kind: str, major: int) -> None:
    image = tmp_path / "image.bin"
    image.write_bytes(pattern(20_000))
    with board_of(kind, tmp_path) as board:
        enter_download_mode(board, kind)
        write = "write-flash" if major == 5 else "write_flash"
        output = run_esptool(board, major, "--baud", "921600", write, "0x10000", image)
        assert KINDS[kind][0] in output
        assert "Hash of data verified" in output
        assert len(board.events("stub_started")) == 1
        assert board.boots() == ["app", "download"]


@pytest.mark.parametrize("kind", ["esp32c3", "esp32s2"])
def test_rates_change_nothing_on_a_board_that_is_its_own_usb_device(
    tmp_path: Path, kind: str
) -> None:
    with board_of(kind, tmp_path) as board, board.open_tty() as tty:
        board.play([(True, True, 0.0)])
        board.wait_for("lines")
        for baudrate in (9600, 2_000_000):
            tty.baudrate = baudrate
            tty.write(b"\rversion\r")
            assert tty.read_until(b"simulated app 1.0\r\n" + PROMPT)
        assert board.events("baudrate") == []


# USB-Serial/JTAG


def test_classic_reset_forwarded_to_a_c3_from_idle_boots_the_app(tmp_path: Path) -> None:
    pause_s = 0.02
    steps = [(False, True), (True, True), (True, False), (False, False)]
    with board_of("esp32c3", tmp_path) as board:
        board.play((*lines, pause_s) for lines in steps)
        board.wait_for("boot", 2)
        assert board.boots() == ["app", "app"]


def test_c3_opened_line_by_line_goes_to_download_mode_at_the_next_reset(tmp_path: Path) -> None:
    opening = [(True, False, 0.02), (True, True, 0.02)]
    with board_of("esp32c3", tmp_path) as board:
        board.play([*opening, *HARD_RESET])
        board.wait_for("boot", 2)
        assert board.boots() == ["app", "download"]


def test_c3_stays_the_same_usb_device_over_resets_by_its_lines(tmp_path: Path) -> None:
    with board_of("esp32c3", tmp_path) as board, board.open_tty() as tty:
        board.play(JTAG_ENTRY)
        assert tty.read_until(b"waiting for download\r\n").endswith(b"waiting for download\r\n")
        board.play(HARD_RESET)
        log = tty.read_until(PROMPT)
        assert b"rst:0x15 (USB_UART_CHIP_RESET),boot:0xc" in log
        assert board.usb_device() == UsbDevice(1, JTAG_IDS, "tty")


@pytest.mark.parametrize("how", ["button", "watchdog"])
def test_c3_leaves_the_bus_when_the_whole_chip_is_reset(tmp_path: Path, how: str) -> None:
    with board_of("esp32c3", tmp_path) as board, board.open_tty() as tty:
        if how == "button":
            assert board.ask("reset") == ["ok"]
        else:
            board.play(JTAG_ENTRY)
            board.wait_for("boot", 2)
            esptool = [sys.executable, "-m", "esptool", "--port", str(board.by_path)]
            run_tool(
                [*esptool, "--before", "no-reset", "--after", "watchdog-reset", "chip-id"], LIMIT_S
            )
        assert_hung_up(tty)
        assert board.wait_for_usb_device(2).ids == JTAG_IDS
        assert board.boots()[-1] == "app"


def test_c3_that_reenumerates_at_each_reset_is_in_download_mode_afterwards(tmp_path: Path) -> None:
    with board_of("esp32c3", tmp_path, f"{GONE}&reenumerates=1") as board:
        with closing(SimulatedLines(board.control_path)) as lines:
            for dtr, rts, _ in JTAG_ENTRY[:-1]:
                lines.set_lines(dtr, rts)
            board.wait_for("usb_gone")
            with pytest.raises(OSError, match=r"."):
                lines.set_lines(dtr=False, rts=False)
        assert board.wait_for_usb_device(2).ids == JTAG_IDS
        assert board.boots() == ["app", "download"]
        assert "ESP32-C3" in run_esptool(board, 5, "--no-stub", "chip-id")


# USB-OTG


def test_s2_is_another_device_in_download_mode(tmp_path: Path) -> None:
    with board_of("esp32s2", tmp_path) as board, board.open_tty() as tty:
        assert board.usb_device() == UsbDevice(1, OTG_APP_IDS, "tty")
        board.play(OTG_ENTRY)
        assert_hung_up(tty)
        assert board.wait_for_usb_device(2) == UsbDevice(2, OTG_ROM_IDS, "tty")
        assert board.boots() == ["app", "download"]
        shown = [entry["ids"] for entry in board.events("usb_shown")]
        assert shown == ["303a:80c2", "303a:0002"]


def test_s2_comes_back_under_another_name_where_told_to(tmp_path: Path) -> None:
    with board_of("esp32s2", tmp_path, f"{GONE}&renames=1") as board:
        board.play(OTG_ENTRY)
        device = board.wait_for_usb_device(2)
        assert device.tty_name == "tty-1"
        assert not board.tty_path.is_symlink()
        assert board.by_path.readlink() == Path("tty-1")
        assert "ESP32-S2" in run_esptool(board, 5, "--no-stub", "chip-id")


def test_touch_with_1200_baud_brings_an_s2_to_download_mode(tmp_path: Path) -> None:
    with board_of("esp32s2", tmp_path) as board:
        with serial.Serial(str(board.by_path), 1200) as tty:
            assert_hung_up(tty)
        assert board.wait_for_usb_device(2).ids == OTG_ROM_IDS


def test_s2_leaves_the_stub_when_rts_goes_off(tmp_path: Path) -> None:
    with board_of("esp32s2", tmp_path) as board:
        enter_download_mode(board, "esp32s2")
        run_esptool(board, 5, "flash-id")
        board.play(HARD_RESET[:1])
        assert board.usb_device() == UsbDevice(2, OTG_ROM_IDS, "tty")
        board.play([(False, False, 0.0)])
        assert board.wait_for_usb_device(3).ids == OTG_APP_IDS
        assert board.boots() == ["app", "download", "app"]


def test_s2_leaves_the_rom_by_the_watchdog_and_not_by_the_lines(tmp_path: Path) -> None:
    with board_of("esp32s2", tmp_path) as board:
        enter_download_mode(board, "esp32s2")
        board.play(HARD_RESET)
        esptool = [sys.executable, "-m", "esptool", "--port", str(board.by_path), "--no-stub"]
        run_tool(
            [*esptool, "--before", "no-reset", "--after", "watchdog-reset", "chip-id"], LIMIT_S
        )
        assert board.wait_for_usb_device(3).ids == OTG_APP_IDS
        assert [entry["cause"] for entry in board.events("boot")][2:] == ["watchdog"]


def test_app_of_an_s2_is_silent_while_dtr_is_off(tmp_path: Path) -> None:
    period_s = 0.01
    with board_of("esp32s2", tmp_path, f"heartbeat_s={period_s}") as board, board.open_tty() as tty:
        (started,) = board.events("app_started")
        uptime_s = time.monotonic() - int(str(started["t_ns"])) / 1e9
        time.sleep(10 * period_s)
        with closing(SimulatedLines(board.control_path)) as lines:
            lines.set_lines(dtr=True, rts=False)
            first = re.search(rb"heartbeat (\d+)\r\n", tty.read_until(b"\r\n" + PROMPT))
        assert first is not None
        assert int(first[1]) > uptime_s / period_s + 5


# Going and coming back


def test_device_is_nowhere_while_it_is_gone(tmp_path: Path) -> None:
    with board_of("esp32s2", tmp_path, "reenumerate_s=60") as board:
        board.play(OTG_ENTRY)
        board.wait_for("usb_gone")
        assert board.usb_device() is None
        assert not board.by_path.is_symlink()
        assert not board.tty_path.is_symlink()
        state = board.state()
        assert state["runs"] == "download"
        assert [state["tty"], state["usb_ids"], state["host_baudrate"]] == [None, None, None]
        assert board.ask("lines 0 0 1") == ["error the board is unplugged"]


def test_board_that_is_unplugged_while_it_is_gone_comes_back_when_plugged(tmp_path: Path) -> None:
    with board_of("esp32s2", tmp_path, "reenumerate_s=60") as board:
        board.play(OTG_ENTRY)
        board.wait_for("usb_gone")
        assert board.ask("unplug") == ["ok"]
        assert board.state()["runs"] == "unplugged"
        assert board.ask("plug") == ["ok"]
        assert board.wait_for_usb_device(2).ids == OTG_APP_IDS


def test_lines_work_again_on_the_new_device(tmp_path: Path) -> None:
    with board_of("esp32s2", tmp_path) as board, ExitStack() as stack:
        old = stack.enter_context(closing(SimulatedLines(board.control_path)))
        for dtr, rts, _ in OTG_ENTRY:
            old.set_lines(dtr, rts)
        board.wait_for_usb_device(2)
        with pytest.raises(OSError, match=r"."):
            old.set_lines(dtr=True, rts=True)
        n_before = len(board.events("lines"))
        board.play([(True, True, 0.0)])
        board.wait_for("lines", n_before + 1)


def test_board_runs_on_while_its_device_is_gone(tmp_path: Path) -> None:
    with board_of("esp32c3", tmp_path, "reenumerate_s=60") as board:
        assert board.ask("reset") == ["ok"]
        board.wait_for("app_started", 2)
        assert board.usb_device() is None


def test_button_resets_a_board_behind_a_bridge_that_stays(tmp_path: Path) -> None:
    with board_of("esp8266", tmp_path) as board, board.open_tty() as tty:
        tty.baudrate = 74880
        assert board.ask("reset") == ["ok"]
        wait_until(lambda: board.boots() == ["app", "app"])
        # Its app may still be printing at another rate.
        assert tty.read_until(b"boot mode:(3,6)").endswith(b"boot mode:(3,6)")
        device = board.usb_device()
        assert device is not None
        assert device.number == 1
