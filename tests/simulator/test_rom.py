import hashlib
import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.chips import CHIPS
from gateway.simulator.rom import (
    AppStarted,
    BaudrateChanged,
    CommandRefused,
    FlashErased,
    FlashWritten,
    ResetRequested,
    StubStarted,
    Synced,
)
from tests.support.download_host import (
    CHANGE_BAUDRATE,
    ERASE_FLASH,
    FLASH_BEGIN,
    FLASH_DATA,
    FLASH_DEFL_BEGIN,
    FLASH_DEFL_DATA,
    FLASH_END,
    GET_SECURITY_INFO,
    MEM_BEGIN,
    MEM_DATA,
    MEM_END,
    READ_FLASH_SLOW,
    READ_REG,
    SPI_FLASH_MD5,
    STUBS,
    SYNC,
    SYNC_BODY,
    WRITE_REG,
    Host,
    block,
    decode,
    pack,
    request,
    slip,
)

MAGIC = 0x40001000
OK = b"\x00\x00\x00\x00"


@pytest.fixture
def host() -> Host:
    return Host()


def refused(host: Host) -> bool:
    return isinstance(host.events[-1], CommandRefused)


def test_sync_is_answered_eight_times_with_a_value_that_is_no_stubs(host: Host) -> None:
    responses = [decode(payload) for payload in host.send(request(SYNC, SYNC_BODY))]
    assert len(responses) == 8
    assert {(response.opcode, response.body) for response in responses} == {(SYNC, OK)}
    assert responses[0].value != 0
    assert host.events == [Synced()]


def test_registers_are_read_and_written(host: Host) -> None:
    assert host.ask(request(READ_REG, pack(MAGIC))).value == 0x00F01D83
    host.ask(request(WRITE_REG, pack(0x3FF42000 + 0x1C, 0x12345678, 0xFFFF0000, 0)))
    assert host.ask(request(READ_REG, pack(0x3FF4201C))).value == 0x12340000


def test_other_answers_repeat_the_value_read_last(host: Host) -> None:
    host.ask(request(READ_REG, pack(MAGIC)))
    assert host.ask(request(CHANGE_BAUDRATE, pack(9600, 0))).value == 0x00F01D83


@pytest.mark.parametrize("opcode", [GET_SECURITY_INFO, ERASE_FLASH, 0xFF])
def test_unknown_commands_are_refused_eight_times_as_another(host: Host, opcode: int) -> None:
    responses = [decode(payload) for payload in host.send(request(opcode))]
    assert len(responses) == 8
    assert all(response.opcode != opcode for response in responses)
    assert {response.status for response in responses} == {b"\x01\x05"}
    assert refused(host)


def test_what_is_no_request_is_ignored(host: Host) -> None:
    response = struct.pack("<BBHI", 1, SYNC, 0, 0)
    assert host.send(slip(b"short") + slip(response) + b"noise") == []
    assert host.events == []


@pytest.mark.parametrize(
    "frame",
    [
        slip(struct.pack("<BBHI", 0, READ_REG, 5, 0) + pack(MAGIC)),
        request(READ_REG),
        request(WRITE_REG),
        request(WRITE_REG, pack(1, 2, 3)),
        request(FLASH_BEGIN, pack(4096, 1, 1024, 0, 0)),
        request(CHANGE_BAUDRATE, pack(0, 0)),
        request(FLASH_DATA, b"short"),
        request(FLASH_DATA, pack(5, 0, 0, 0) + b"four"),
    ],
)
def test_malformed_requests_are_refused_as_invalid(host: Host, frame: bytes) -> None:
    host.attach()
    assert host.ask(frame).body == b"\x01\x05\x00\x00"
    assert refused(host)


def test_baudrate_change_is_told_once_its_answer_is_queued(host: Host) -> None:
    assert host.ask(request(CHANGE_BAUDRATE, pack(921600, 0))).body == OK
    assert host.events == [BaudrateChanged(921600)]


def test_uart_divider_follows_the_baudrate(host: Host) -> None:
    assert host.ask(request(READ_REG, pack(0x3FF40014))).value == 40_000_000 // 115200
    host.download_mode.adopt_baudrate(57600)
    assert host.ask(request(READ_REG, pack(0x3FF40014))).value == 40_000_000 // 57600
    host.ask(request(CHANGE_BAUDRATE, pack(921600, 0)))
    assert host.ask(request(READ_REG, pack(0x3FF40014))).value == 40_000_000 // 921600


def test_flash_is_out_of_reach_before_it_is_attached(host: Host) -> None:
    assert host.ask(request(FLASH_BEGIN, pack(4096, 4, 1024, 0))).status == b"\x01\x06"
    assert host.ask(request(READ_FLASH_SLOW, pack(0, 64))).status == b"\x01\x06"


def test_flash_begin_erases_and_data_writes(host: Host) -> None:
    host.attach()
    host.flash.write(0, bytes(0x4000))
    data = random.Random(1).randbytes(2048)
    assert host.ask(request(FLASH_BEGIN, pack(2048, 2, 1024, 0x1000))).body == OK
    assert host.flash.read(0, 0x3000) == bytes(0x1000) + b"\xff" * 0x1000 + bytes(0x1000)
    assert host.ask(block(FLASH_DATA, data[:1024], 0)).body == OK
    assert host.ask(block(FLASH_DATA, data[1024:], 1)).body == OK
    assert host.flash.read(0x1000, 2048) == data
    assert host.events == [
        FlashErased(0x1000, 0x1000),
        FlashWritten(0x1000, 1024),
        FlashWritten(0x1400, 1024),
    ]


def test_a_block_with_a_wrong_checksum_is_refused_and_can_be_sent_again(host: Host) -> None:
    host.attach()
    host.ask(request(FLASH_BEGIN, pack(4, 1, 1024, 0)))
    assert host.ask(block(FLASH_DATA, b"data", checksum=0)).status == b"\x01\x07"
    assert host.flash.read(0, 4) == b"\xff" * 4
    assert host.ask(block(FLASH_DATA, b"data")).body == OK
    assert host.flash.read(0, 4) == b"data"


def test_more_blocks_than_announced_are_refused(host: Host) -> None:
    host.attach()
    assert host.ask(block(FLASH_DATA, b"data")).status == b"\x01\x06"
    host.ask(request(FLASH_BEGIN, pack(4, 1, 1024, 0)))
    host.ask(block(FLASH_DATA, b"data"))
    assert host.ask(block(FLASH_DATA, b"more", 1)).status == b"\x01\x06"


def test_writing_over_what_was_not_erased_is_noticed(host: Host) -> None:
    host.attach()
    host.flash.write(0x1000, bytes(4))
    host.ask(request(FLASH_BEGIN, pack(0, 1, 1024, 0x1000)))
    assert host.ask(block(FLASH_DATA, b"data")).status == b"\x01\x08"


def test_ranges_beyond_the_flash_are_refused(host: Host) -> None:
    host.attach()
    end = host.flash.size_bytes
    assert host.ask(request(FLASH_BEGIN, pack(1, 1, 1024, end))).status == b"\x01\x06"
    assert host.ask(request(READ_FLASH_SLOW, pack(end - 1, 64))).status == b"\x01\x09"
    assert host.ask(request(SPI_FLASH_MD5, pack(0, end + 1, 0, 0))).status == b"\x01\x09"
    host.ask(request(FLASH_BEGIN, pack(1, 1, 1024, end - 1)))
    assert host.ask(block(FLASH_DATA, b"ab")).status == b"\x01\x08"


def test_compressed_data_are_inflated_across_blocks(host: Host) -> None:
    host.attach()
    data = random.Random(1).randbytes(3000)
    packed = zlib.compress(data)
    blocks = [packed[at : at + 1024] for at in range(0, len(packed), 1024)]
    host.ask(request(FLASH_DEFL_BEGIN, pack(3072, len(blocks), 1024, 0x1000)))
    for sequence, part in enumerate(blocks):
        assert host.ask(block(FLASH_DEFL_DATA, part, sequence)).body == OK
    assert host.flash.read(0x1000, 3000) == data


def test_data_that_do_not_inflate_are_refused(host: Host) -> None:
    host.attach()
    host.ask(request(FLASH_DEFL_BEGIN, pack(3072, 3, 1024, 0x1000)))
    assert host.ask(block(FLASH_DEFL_DATA, b"not compressed")).status == b"\x01\x0b"


def test_data_that_inflate_to_more_than_announced_are_refused(host: Host) -> None:
    host.attach()
    host.ask(request(FLASH_DEFL_BEGIN, pack(4096, 1, 1024, 0)))
    bomb = zlib.compress(bytes(1 << 20))
    assert host.ask(block(FLASH_DEFL_DATA, bomb)).status == b"\x01\x0b"
    assert host.flash.read(0, 4096) == b"\xff" * 4096


def test_digest_is_sent_as_text(host: Host) -> None:
    host.attach()
    host.flash.write(100, b"data")
    response = host.ask(request(SPI_FLASH_MD5, pack(100, 4, 0, 0)))
    digest = hashlib.md5(b"data", usedforsecurity=False)
    assert response.body == digest.hexdigest().encode() + OK


def test_slow_read_always_sends_64_bytes(host: Host) -> None:
    host.attach()
    host.flash.write(100, b"data")
    assert host.ask(request(READ_FLASH_SLOW, pack(100, 4))).body == b"data" + bytes(60) + OK
    assert host.ask(request(READ_FLASH_SLOW, pack(0, 65))).status == b"\x01\x0a"


@pytest.mark.parametrize(("word", "event"), [(0, ResetRequested(True)), (1, AppStarted())])
def test_flash_end_leaves_download_mode_for_good(
    host: Host, word: int, event: AppStarted | ResetRequested
) -> None:
    assert host.ask(request(FLASH_END, pack(word))).body == OK
    assert host.events == [event]
    assert host.send(request(SYNC, SYNC_BODY)) == []


@pytest.mark.parametrize("generation", STUBS)
def test_jump_into_an_uploaded_stub_starts_it(host: Host, generation: str) -> None:
    answer, greeting = host.start_stub(generation)
    assert decode(answer).body == OK
    assert greeting == b"OHAI"
    assert host.events == [StubStarted()]


def test_jump_elsewhere_runs_user_code(host: Host) -> None:
    host.ask(request(MEM_BEGIN, pack(4, 1, 0x1800, 0x40080000)))
    host.ask(block(MEM_DATA, b"code"))
    assert host.ask(request(MEM_END, pack(0, 0x40080000))).body == OK
    assert host.events == [AppStarted()]


def test_ram_download_without_jump_stays(host: Host) -> None:
    assert host.ask(request(MEM_END, pack(1, 0))).body == OK
    assert host.ask(request(READ_REG, pack(MAGIC))).value == 0x00F01D83


def test_ram_takes_no_more_than_announced_nor_than_there_is(host: Host) -> None:
    assert host.ask(block(MEM_DATA, b"data")).status == b"\x01\x06"
    host.ask(request(MEM_BEGIN, pack(4, 1, 0x1800, 0x40080000)))
    assert host.ask(block(MEM_DATA, b"code", checksum=1)).status == b"\x01\x07"
    assert host.ask(block(MEM_DATA, b"codes")).status == b"\x01\x06"
    assert host.ask(request(MEM_BEGIN, pack(1 << 30, 1, 1, 0))).status == b"\x01\x06"


@pytest.mark.parametrize("chip_name", ["esp32c3", "esp32s2"])
def test_an_armed_watchdog_resets_the_chip_once_it_is_locked(chip_name: str) -> None:
    host = Host(chip_name)
    watchdog = CHIPS[chip_name].watchdog
    assert watchdog is not None
    enable = request(WRITE_REG, pack(watchdog.config, 1 << 31 | 5 << 28, 0xFFFFFFFF, 0))
    unlock = request(WRITE_REG, pack(watchdog.write_protect, 0x50D83AA1, 0xFFFFFFFF, 0))
    lock = request(WRITE_REG, pack(watchdog.write_protect, 0, 0xFFFFFFFF, 0))
    for frame in (enable, unlock, lock):  # what is written while it is locked is lost
        assert host.ask(frame).body == OK
    for frame in (unlock, enable):
        assert host.ask(frame).body == OK
    assert host.events == []
    assert host.ask(lock).body == OK
    assert host.events == [ResetRequested(into_bootloader=False)]


def test_security_info_is_told_by_chips_that_know_it() -> None:
    assert Host("esp32c3").ask(request(GET_SECURITY_INFO)).body[12:16] == pack(5)


def test_esp8266_answers_have_two_status_bytes() -> None:
    host = Host("esp8266")
    assert host.ask(request(READ_REG, pack(MAGIC))).body == b"\0\0"
    assert host.ask(request(READ_REG)).body == b"\x01\x05"


@pytest.mark.parametrize(
    ("offset", "announced_sectors", "erased_sectors"),
    [(0, 3, 6), (0, 20, 36), (0xF000, 3, 4), (0x1F000, 16, 17)],
)
def test_esp8266_erases_the_sectors_up_to_the_next_64_kb_twice(
    offset: int, announced_sectors: int, erased_sectors: int
) -> None:
    host = Host("esp8266")
    host.ask(request(FLASH_BEGIN, pack(announced_sectors * 4096, 1, 1024, offset)))
    assert host.events == [FlashErased(offset, erased_sectors * 4096)]


@given(st.lists(st.tuples(st.integers(0, 0x15), st.binary(max_size=40)), max_size=20))
def test_no_request_raises(requests: list[tuple[int, bytes]]) -> None:
    host = Host(flash_bytes=1 << 18)
    for opcode, body in requests:
        host.send(request(opcode, body))
    answers = host.send(request(SYNC, SYNC_BODY))
    has_left = any(isinstance(event, AppStarted | ResetRequested) for event in host.events)
    assert len(answers) == (0 if has_left else 8)
