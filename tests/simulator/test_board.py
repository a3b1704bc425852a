import struct

from gateway.simulator.app import PROMPT
from gateway.simulator.chips import CHIPS, ResetCause
from gateway.simulator.circuit import DELIVERY_NS
from gateway.simulator.commands import Opcode
from tests.support.board_bench import MS, MUCH, Bench, request

ESP32 = CHIPS["esp32"]
APP_LOG = ESP32.boot_messages(ResetCause.POWER_ON, download=False)
DOWNLOAD_LOG = ESP32.boot_messages(ResetCause.POWER_ON, download=True)


def running(parameters: str = "heartbeat_s=0") -> Bench:
    bench = Bench(parameters)
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
    assert bench.received() == APP_LOG + b"I (0) app: ready\r\n" + PROMPT
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


def test_naively_forwarded_lines_boot_the_app() -> None:
    bench = running()
    bench.set_lines(dtr=False, rts=True)
    bench.set_lines(dtr=True, rts=True, then_ms=50)
    bench.set_lines(dtr=True, rts=False)
    assert bench.board.boot_mode == "app"


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
    assert bench.received() == APP_LOG + b"I (0) app: ready\r\n" + PROMPT


def test_what_comes_while_the_rom_prints_its_boot_log_is_lost() -> None:
    bench = Bench()
    bench.wait(100)
    bench.send(b"version\r")
    assert b"simulated app" not in bench.received()


def test_both_lines_on_leave_the_app_running() -> None:
    bench = running()
    bench.set_lines(dtr=True, rts=True)
    bench.set_lines(dtr=False, rts=False)
    bench.send(b"x")
    assert bench.received() == b"x"


def test_app_counts_its_heartbeats_anew_after_a_reset() -> None:
    bench = running("heartbeat_s=1")
    bench.wait(2500)
    assert b"heartbeat 2" in bench.received()
    bench.set_lines(dtr=False, rts=True)
    bench.set_lines(dtr=False, rts=False)
    bench.received()
    bench.wait(1500)
    assert b"heartbeat 1\r" in bench.received()


def test_rom_answers_a_sync() -> None:
    bench = in_download_mode()
    bench.send(SYNC)
    assert bench.received().count(b"\xc0\x01\x08") == 8
    assert bench.events() == [{"event": "sync"}]


def test_app_does_not_answer_a_sync() -> None:
    bench = running()
    bench.send(SYNC)
    assert b"\xc0\x01\x08" not in bench.received()


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
    assert bench.received().endswith(b"I (0) app: ready\r\n" + PROMPT)
    assert bench.board.baudrate == 115200
    assert bench.events() == [{"event": "baudrate", "baudrate": 115200}, {"event": "app_started"}]


def test_flash_events_are_logged_with_their_range() -> None:
    bench = in_download_mode()
    bench.send(request(Opcode.SPI_ATTACH, bytes(8)))
    bench.send(request(Opcode.FLASH_BEGIN, struct.pack("<IIII", 0x1000, 1, 0x400, 0x10000)))
    assert bench.events() == [{"event": "flash_erased", "offset": 0x10000, "size": 0x1000}]


def test_refused_command_is_logged_with_the_reason() -> None:
    bench = in_download_mode()
    bench.send(request(Opcode.READ_FLASH, b""))
    (entry,) = bench.events()
    assert entry["event"] == "command_refused"
    assert entry["opcode"] == Opcode.READ_FLASH
    assert entry["reason"]
