"""Boards that are their own USB device, without time and tty."""

import struct

import pytest

from gateway.simulator.app import PROMPT
from gateway.simulator.chips import CHIPS, ResetCause
from gateway.simulator.commands import Opcode
from gateway.simulator.usb import JTAG_IDS, OTG_APP_IDS, OTG_ROM_IDS, USB_BAUDRATE
from tests.support.board_bench import MUCH, Bench, request

JTAG_ENTRY = [(False, False), (True, False), (True, True), (False, True), (False, False)]
OTG_ENTRY = [(False, True), (True, True), (True, False), (False, False)]

READY = b"I (0) app: ready\r\n" + PROMPT


def running(chip: str, parameters: str = "heartbeat_s=0") -> Bench:
    bench = Bench(parameters, chip)
    bench.wait(100)
    bench.received()
    bench.events()
    return bench


def in_download_mode(chip: str, parameters: str = "heartbeat_s=0") -> Bench:
    bench = running(chip, parameters)
    for dtr, rts in JTAG_ENTRY if chip == "esp32c3" else OTG_ENTRY:
        bench.set_lines(dtr, rts, then_ms=0)
        bench.wait(0)
    bench.received()
    bench.events()
    assert bench.runs("download")
    return bench


@pytest.mark.parametrize("chip", ["esp32c3", "esp32s2"])
def test_bytes_go_at_the_pace_of_the_bus_whatever_the_host_asks_for(chip: str) -> None:
    bench = in_download_mode(chip)
    bench.send(request(Opcode.CHANGE_BAUDRATE, struct.pack("<II", 9600, 0)))
    assert b"\x01\x0f" in bench.received()
    assert bench.board.baudrate == USB_BAUDRATE
    assert bench.events() == []


def test_c3_prints_why_it_was_reset() -> None:
    bench = running("esp32c3")
    bench.set_lines(dtr=False, rts=True)
    assert bench.runs("reset")
    bench.set_lines(dtr=False, rts=False)
    log = CHIPS["esp32c3"].boot_messages(ResetCause.USB, download=False)
    assert b"USB_UART_CHIP_RESET" in log
    assert bench.received() == log + READY
    assert bench.events() == [
        {"event": "lines", "dtr": False, "rts": True},
        {"event": "chip_reset", "download": False},
        {"event": "lines", "dtr": False, "rts": False},
        {"event": "boot", "mode": "app", "cause": "usb"},
        {"event": "app_started"},
    ]


def test_c3_tells_of_its_flag() -> None:
    bench = running("esp32c3")
    bench.set_lines(dtr=True, rts=False)
    bench.set_lines(dtr=False, rts=False)
    flags = [entry["on"] for entry in bench.events() if entry["event"] == "download_flag"]
    assert flags == [True, False]


def test_c3_keeps_its_ids_and_its_device() -> None:
    bench = in_download_mode("esp32c3")
    assert bench.board.usb_ids == JTAG_IDS
    assert bench.board.enumeration == 1


def test_c3_leaves_the_loader_at_a_software_reset_once_its_flag_is_cleared() -> None:
    bench = in_download_mode("esp32c3")
    bench.send(request(Opcode.FLASH_END, struct.pack("<I", 0)))
    bench.received()
    assert bench.events()[0] == {"event": "boot", "mode": "app", "cause": "software"}
    assert bench.board.enumeration == 1


def test_c3_that_goes_at_each_reset_boots_without_its_lines() -> None:
    bench = running("esp32c3", "heartbeat_s=0&reenumerates=1")
    bench.set_lines(dtr=True, rts=False)
    bench.set_lines(dtr=False, rts=True)
    assert bench.board.enumeration == 2
    assert bench.runs("download")
    assert not bench.board.rts


def test_lines_that_came_after_the_device_had_gone_do_not_count() -> None:
    bench = running("esp32c3", "heartbeat_s=0&reenumerates=1")
    bench.board.set_lines(bench.now_ns, bench.now_ns, dtr=False, rts=True)
    bench.set_lines(dtr=True, rts=False)
    assert not bench.board.dtr
    assert bench.events()[-1]["event"] == "boot"


def test_s2_sends_no_boot_log() -> None:
    bench = Bench("heartbeat_s=0", "esp32s2")
    bench.wait(100)
    assert bench.runs("app")
    assert bench.received() == b""


def test_s2_has_ids_of_its_own_in_download_mode() -> None:
    bench = running("esp32s2")
    assert bench.board.usb_ids == OTG_APP_IDS
    bench = in_download_mode("esp32s2")
    assert bench.board.usb_ids == OTG_ROM_IDS
    assert bench.board.enumeration == 2


def test_s2_that_is_told_to_run_its_app_becomes_that_device() -> None:
    bench = in_download_mode("esp32s2")
    bench.send(request(Opcode.SPI_ATTACH, bytes(8)))
    bench.send(request(Opcode.FLASH_END, struct.pack("<I", 1)))
    bench.received()
    assert bench.runs("app")
    assert bench.board.enumeration == 3
    assert bench.board.usb_ids == OTG_APP_IDS


def test_s2_stays_in_the_loader_at_a_software_reset() -> None:
    bench = in_download_mode("esp32s2")
    bench.send(request(Opcode.FLASH_END, struct.pack("<I", 0)))
    bench.received()
    assert bench.events()[0] == {"event": "boot", "mode": "download", "cause": "software"}
    assert bench.board.enumeration == 3


@pytest.mark.parametrize(("block_bytes", "answers"), [(0x800, 1), (0x801, 0), (0x1800, 0)])
def test_rom_of_an_s2_takes_small_blocks_only(block_bytes: int, answers: int) -> None:
    bench = in_download_mode("esp32s2")
    bench.send(request(Opcode.MEM_BEGIN, struct.pack("<IIII", 0x2000, 4, 0x1800, 0x40028000)))
    bench.received()
    block = struct.pack("<IIII", block_bytes, 0, 0, 0) + bytes(block_bytes)
    bench.send(request(Opcode.MEM_DATA, block))
    assert bench.received().count(b"\xc0\x01\x07") == answers


def test_app_of_an_s2_speaks_only_while_dtr_is_on() -> None:
    bench = running("esp32s2")
    bench.send(b"version\r")
    assert bench.received() == b""
    bench.set_lines(dtr=True, rts=False)
    assert bench.received() == b""
    bench.send(b"x")
    assert bench.received() == b"x"
    bench.set_lines(dtr=False, rts=False)
    bench.send(b"y")
    assert bench.received() == b""


@pytest.mark.parametrize(("chip", "gone"), [("esp32", 0), ("esp32c3", 1), ("esp32s2", 1)])
def test_reset_button_starts_the_app_anew(chip: str, gone: int) -> None:
    bench = running(chip)
    bench.board.press_reset(bench.now_ns)
    assert bench.board.enumeration == 1 + gone
    bench.received()
    assert bench.events() == [
        {"event": "en_low"},
        {"event": "en_high"},
        {"event": "boot", "mode": "app", "cause": "power_on"},
        {"event": "app_started"},
    ]


def test_reset_button_changes_nothing_on_a_board_that_is_held_in_reset() -> None:
    bench = running("esp32")
    bench.set_lines(dtr=False, rts=True)
    bench.events()
    bench.board.press_reset(bench.now_ns)
    assert bench.events() == []


def test_reset_button_finds_the_strap_as_the_lines_hold_it() -> None:
    bench = running("esp32")
    bench.set_lines(dtr=True, rts=False)
    bench.board.press_reset(bench.now_ns)
    assert bench.runs("download")


def test_what_no_host_hears_does_not_keep_the_board_from_going_on() -> None:
    bench = Bench("heartbeat_s=0", "esp32c3")
    bench.wait(100)
    assert bench.runs("booting")
    bench.board.discard_output(bench.now_ns)
    assert bench.runs("app")
    assert bench.board.take(bench.now_ns, MUCH) == b""
