"""A simulated board without process, pty and time, on each kind of connection to USB."""

import struct

import pytest

from gateway.simulator.attachment import (
    DELIVERY_NS,
    OTG_APP_IDS,
)
from gateway.simulator.board import (
    BUSY_BYTES,
    MAX_LINE_BYTES,
    MAX_PATTERN_BYTES,
    PROMPT,
    RECEIVE_BUFFER_BYTES,
    App,
    pattern,
)
from gateway.simulator.chips import CHIPS, Opcode, ResetCause
from tests.support.board_bench import MS, MUCH, Bench, request

SECOND = 1_000_000_000

READY = b"I (0) app: ready\r\n" + PROMPT

# The app.


def started(heartbeat_ns: int = 0, started_ns: int = 0) -> App:
    app = App("desk", heartbeat_ns, started_ns)
    assert app.take(MUCH) == READY
    return app


def answer(app: App, typed: bytes) -> bytes:
    app.receive_data(typed)
    return app.take(MUCH)


@pytest.mark.parametrize("enter", [b"\r", b"\n", b"\r\n"])
def test_enter_answers_the_line_once(enter: bytes) -> None:
    assert answer(started(), b"version" + enter) == (
        b"version\r\ndesk simulated app 1.0\r\n" + PROMPT
    )


def test_crlf_may_come_in_two_pieces() -> None:
    app = started()
    assert answer(app, b"\r") == b"\r\n" + PROMPT
    assert answer(app, b"\n") == b""
    assert answer(app, b"\n") == b"\r\n" + PROMPT


def test_help_names_every_command() -> None:
    text = answer(started(), b"help\r")
    assert all(command in text for command in (b"help", b"version", b"bytes N"))


@pytest.mark.parametrize("line", [b"reboot", b"bytes", b"bytes x", b"bytes -1", b"bytes 1 2"])
def test_unknown_line_comes_back_with_a_question_mark(line: bytes) -> None:
    assert answer(started(), line + b"\r") == line + b"\r\n? " + line + b"\r\n" + PROMPT


def test_backspace_takes_back_what_was_typed_and_no_more() -> None:
    app = started()
    assert answer(app, b"x\b\x7f") == b"x\b \b"
    assert answer(app, b"\r") == b"\r\n" + PROMPT


def test_pattern_is_the_same_from_its_start_and_holds_every_value() -> None:
    assert pattern(100_000)[:4096] == pattern(4096)
    assert set(pattern(4096)) == set(range(256))


def test_pattern_is_limited() -> None:
    sent = answer(started(), b"bytes %d\r" % (MAX_PATTERN_BYTES + 1))
    assert b"? at most %d bytes" % MAX_PATTERN_BYTES in sent


def test_line_that_is_too_long_is_cut() -> None:
    app = started()
    assert answer(app, b"x" * (MAX_LINE_BYTES + 10)) == b"x" * MAX_LINE_BYTES
    assert answer(app, b"y\r").startswith(b"\r\n? x")


def test_heartbeats_are_counted_from_the_start() -> None:
    app = started(heartbeat_ns=2 * SECOND, started_ns=5 * SECOND)
    assert app.next_deadline() == 7 * SECOND
    app.handle_timer(7 * SECOND - 1)
    assert app.unsent_bytes == 0
    app.handle_timer(7 * SECOND)
    assert app.take(MUCH) == b"\r\nI (2000) app: heartbeat 1\r\n" + PROMPT
    assert app.next_deadline() == 9 * SECOND


def test_heartbeat_shows_the_half_typed_line_again() -> None:
    app = started(heartbeat_ns=SECOND)
    answer(app, b"ver")
    app.handle_timer(SECOND)
    assert app.take(MUCH).endswith(PROMPT + b"ver")


def test_missed_heartbeats_are_left_out() -> None:
    app = started(heartbeat_ns=SECOND)
    app.handle_timer(10 * SECOND)
    assert app.take(MUCH).count(b"heartbeat") == 1
    assert app.next_deadline() == 11 * SECOND


def test_no_heartbeat_breaks_into_a_long_answer() -> None:
    app = started(heartbeat_ns=SECOND)
    app.receive_data(b"bytes 100000\r")
    app.handle_timer(SECOND)
    assert app.take(MUCH).endswith(pattern(100_000) + b"\r\n" + PROMPT)


def test_without_heartbeat_there_is_no_deadline() -> None:
    assert started(heartbeat_ns=0).next_deadline() is None


def test_busy_app_answers_what_it_received_when_it_is_done() -> None:
    app = started()
    app.receive_data(b"bytes 100000\r")
    app.receive_data(b"version\r")
    app.take(len(b"bytes 100000\r\n") + 100_000 - BUSY_BYTES)
    assert b"simulated app" not in app.take(BUSY_BYTES)
    assert b"simulated app" in app.take(MUCH)


def test_busy_app_keeps_a_bounded_amount_of_input() -> None:
    app = started()
    app.receive_data(b"bytes 100000\r")
    app.receive_data(b"\r" * (RECEIVE_BUFFER_BYTES + 1000))
    sent = bytearray()
    while chunk := app.take(MUCH):
        sent += chunk
    assert sent.count(b"\r\n" + PROMPT) == 1 + RECEIVE_BUFFER_BYTES


# A board behind a bridge.

ESP32 = CHIPS["esp32"]
APP_LOG = ESP32.boot_messages(ResetCause.POWER_ON, download=False)
DOWNLOAD_LOG = ESP32.boot_messages(ResetCause.POWER_ON, download=True)


def running(parameters: str = "heartbeat_s=0", chip: str = "esp32") -> Bench:
    bench = Bench(parameters, chip)
    bench.wait(100)
    bench.received()
    bench.events()
    return bench


def in_download_mode() -> Bench:
    bench = running()
    bench.enter_download_mode()
    bench.received()
    bench.events()
    return bench


SYNC = request(Opcode.SYNC, b"\x07\x07\x12\x20" + b"U" * 32)


def change_baudrate(baudrate: int) -> bytes:
    return request(Opcode.CHANGE_BAUDRATE, struct.pack("<II", baudrate, 0))


def test_power_up_prints_the_boot_log_and_starts_the_app() -> None:
    bench = Bench()
    bench.wait(100)
    assert bench.runs("booting")
    assert bench.received() == APP_LOG + READY
    assert bench.runs("app")
    assert bench.events() == [
        {"event": "en_high"},
        {"event": "boot", "mode": "app", "cause": "power_on"},
        {"event": "app_started"},
    ]


def test_nothing_is_sent_before_en_is_up() -> None:
    bench = Bench("en_rise_ms=100")
    bench.wait(99)
    assert bench.runs("reset")
    assert bench.board.unsent_bytes == 0


def test_good_reset_sequence_leads_to_download_mode() -> None:
    bench = running()
    bench.enter_download_mode()
    assert bench.runs("download")
    assert bench.board.boot_mode == "download"
    assert bench.received() == DOWNLOAD_LOG
    assert bench.events() == [
        {"event": "lines", "dtr": False, "rts": True},
        {"event": "en_low"},
        {"event": "lines", "dtr": True, "rts": False},
        {"event": "en_high"},
        {"event": "boot", "mode": "download", "cause": "power_on"},
        {"event": "lines", "dtr": False, "rts": False},
    ]


def test_events_carry_the_time_at_which_they_happened() -> None:
    bench = running()
    start_ns = bench.now_ns
    bench.set_lines(dtr=False, rts=True, then_ms=20)
    bench.set_lines(dtr=False, rts=False)
    times = {entry["event"]: entry["t_ns"] for entry in bench.board.log_entries()}
    assert times["en_low"] == start_ns
    assert times["boot"] == start_ns + 21 * MS


def test_line_change_from_the_future_counts_as_of_now() -> None:
    bench = running()
    bench.board.set_lines(bench.now_ns, bench.now_ns + 10**15, dtr=False, rts=True)
    bench.wait(DELIVERY_NS / MS + 1)
    assert bench.runs("reset")


def test_board_in_reset_neither_sends_nor_hears() -> None:
    bench = running()
    bench.send(b"bytes 1000\r")
    bench.set_lines(dtr=False, rts=True)
    bench.send(b"version\r")
    assert bench.received() == b""
    bench.set_lines(dtr=False, rts=False)
    assert bench.received() == APP_LOG + READY


def test_what_comes_while_the_rom_prints_its_boot_log_is_lost() -> None:
    bench = Bench()
    bench.wait(100)
    bench.send(b"version\r")
    assert b"simulated app" not in bench.received()


def test_rom_answers_a_sync() -> None:
    bench = in_download_mode()
    bench.send(SYNC)
    assert bench.received().count(b"\xc0\x01\x08") == 8
    assert bench.events() == [{"event": "sync"}]


def test_new_baudrate_is_in_force_once_the_answer_is_out() -> None:
    bench = in_download_mode()
    bench.send(change_baudrate(921600))
    answer_bytes = bench.board.unsent_bytes
    assert answer_bytes > 0
    bench.board.take(bench.now_ns, answer_bytes - 1)
    assert bench.board.baudrate == 115200
    assert bench.events() == []
    bench.board.take(bench.now_ns, 1)
    assert bench.board.baudrate == 921600
    assert bench.events() == [{"event": "baudrate", "baudrate": 921600}]


def test_answers_behind_a_new_baudrate_are_not_taken_with_those_before() -> None:
    bench = in_download_mode()
    bench.send(change_baudrate(921600))
    first_bytes = bench.board.unsent_bytes
    bench.send(SYNC)
    assert len(bench.board.take(bench.now_ns, MUCH)) == first_bytes
    assert bench.board.unsent_bytes > 0


def test_reset_ends_a_new_baudrate() -> None:
    bench = in_download_mode()
    bench.send(change_baudrate(921600))
    bench.received()
    bench.set_lines(dtr=False, rts=True)
    bench.set_lines(dtr=False, rts=False)
    assert bench.board.baudrate == 115200


def test_reset_asked_of_the_rom_keeps_the_straps_and_comes_after_the_answer() -> None:
    bench = in_download_mode()
    bench.send(request(Opcode.FLASH_END, struct.pack("<I", 0)))
    answer_bytes = bench.board.unsent_bytes
    assert bench.events() == []
    bench.board.take(bench.now_ns, answer_bytes)
    assert bench.events() == [{"event": "boot", "mode": "download", "cause": "software"}]
    assert b"SW_RESET" in bench.received()


def test_leaving_the_rom_for_the_app_starts_it_at_its_own_rate() -> None:
    bench = in_download_mode()
    bench.send(change_baudrate(921600))
    bench.received()
    bench.events()
    bench.send(request(Opcode.FLASH_END, struct.pack("<I", 1)))
    assert bench.received().endswith(READY)
    assert bench.board.baudrate == 115200
    assert bench.events() == [{"event": "baudrate", "baudrate": 115200}, {"event": "app_started"}]


def test_refused_command_is_logged_with_the_reason() -> None:
    bench = in_download_mode()
    bench.send(request(Opcode.READ_FLASH, b""))
    (entry,) = bench.events()
    assert entry["event"] == "command_refused"
    assert entry["opcode"] == Opcode.READ_FLASH
    assert entry["reason"]


# Boards that are their own USB device.

JTAG_ENTRY = [(False, False), (True, False), (True, True), (False, True), (False, False)]
OTG_ENTRY = [(False, True), (True, True), (True, False), (False, False)]


def in_loader(chip: str, parameters: str = "heartbeat_s=0") -> Bench:
    bench = running(parameters, chip)
    for dtr, rts in JTAG_ENTRY if chip == "esp32c3" else OTG_ENTRY:
        bench.set_lines(dtr, rts, then_ms=0)
        bench.wait(0)
    bench.received()
    bench.events()
    assert bench.runs("download")
    return bench


def test_c3_prints_why_it_was_reset() -> None:
    bench = running(chip="esp32c3")
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


def test_c3_leaves_the_loader_at_a_software_reset_once_its_flag_is_cleared() -> None:
    bench = in_loader("esp32c3")
    bench.send(request(Opcode.FLASH_END, struct.pack("<I", 0)))
    bench.received()
    assert bench.events()[0] == {"event": "boot", "mode": "app", "cause": "software"}
    assert bench.board.enumeration == 1


def test_c3_that_goes_at_each_reset_boots_without_its_lines() -> None:
    bench = running("heartbeat_s=0&reenumerates=1", "esp32c3")
    bench.set_lines(dtr=True, rts=False)
    bench.set_lines(dtr=False, rts=True)
    assert bench.board.enumeration == 2
    assert bench.runs("download")
    assert not bench.board.rts


def test_lines_that_came_after_the_device_had_gone_do_not_count() -> None:
    bench = running("heartbeat_s=0&reenumerates=1", "esp32c3")
    bench.board.set_lines(bench.now_ns, bench.now_ns, dtr=False, rts=True)
    bench.set_lines(dtr=True, rts=False)
    assert not bench.board.dtr
    assert bench.events()[-1]["event"] == "boot"


def test_s2_sends_no_boot_log() -> None:
    bench = Bench("heartbeat_s=0", "esp32s2")
    bench.wait(100)
    assert bench.runs("app")
    assert bench.received() == b""


def test_s2_that_is_told_to_run_its_app_becomes_that_device() -> None:
    bench = in_loader("esp32s2")
    bench.send(request(Opcode.SPI_ATTACH, bytes(8)))
    bench.send(request(Opcode.FLASH_END, struct.pack("<I", 1)))
    bench.received()
    assert bench.runs("app")
    assert bench.board.enumeration == 3
    assert bench.board.usb_ids == OTG_APP_IDS


def test_s2_stays_in_the_loader_at_a_software_reset() -> None:
    bench = in_loader("esp32s2")
    bench.send(request(Opcode.FLASH_END, struct.pack("<I", 0)))
    bench.received()
    assert bench.events()[0] == {"event": "boot", "mode": "download", "cause": "software"}
    assert bench.board.enumeration == 3


@pytest.mark.parametrize(("block_bytes", "answers"), [(0x800, 1), (0x801, 0), (0x1800, 0)])
def test_rom_of_an_s2_takes_small_blocks_only(block_bytes: int, answers: int) -> None:
    bench = in_loader("esp32s2")
    bench.send(request(Opcode.MEM_BEGIN, struct.pack("<IIII", 0x2000, 4, 0x1800, 0x40028000)))
    bench.received()
    block = struct.pack("<IIII", block_bytes, 0, 0, 0) + bytes(block_bytes)
    bench.send(request(Opcode.MEM_DATA, block))
    assert bench.received().count(b"\xc0\x01\x07") == answers


def test_app_of_an_s2_speaks_only_while_dtr_is_on() -> None:
    bench = running(chip="esp32s2")
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
    bench = running(chip=chip)
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
    bench = running(chip="esp32")
    bench.set_lines(dtr=False, rts=True)
    bench.events()
    bench.board.press_reset(bench.now_ns)
    assert bench.events() == []


def test_reset_button_finds_the_strap_as_the_lines_hold_it() -> None:
    bench = running(chip="esp32")
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
