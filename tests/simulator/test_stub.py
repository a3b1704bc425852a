import hashlib
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.rom import (
    AppStarted,
    BaudrateChanged,
    CommandRefused,
    Event,
    FlashErased,
    FlashWritten,
    ResetRequested,
    Synced,
)
from tests.support.download_host import (
    CHANGE_BAUDRATE,
    ERASE_FLASH,
    ERASE_REGION,
    FLASH_BEGIN,
    FLASH_DATA,
    FLASH_DEFL_BEGIN,
    FLASH_DEFL_DATA,
    FLASH_DEFL_END,
    FLASH_END,
    GET_SECURITY_INFO,
    MEM_BEGIN,
    MEM_DATA,
    MEM_END,
    READ_FLASH,
    READ_FLASH_SLOW,
    READ_REG,
    RUN_USER_CODE,
    SPI_ATTACH,
    SPI_FLASH_MD5,
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

OK = b"\x00\x00"


def start(generation: str = "current", flash_bytes: int = 1 << 20) -> Host:
    host = Host(flash_bytes=flash_bytes)
    host.start_stub(generation)
    host.events.clear()
    return host


@pytest.fixture
def host() -> Host:
    return start()


def test_sync_is_answered_eight_times_with_value_0(host: Host) -> None:
    responses = [decode(payload) for payload in host.send(request(SYNC, SYNC_BODY))]
    assert [(response.value, response.body) for response in responses] == [(0, OK)] * 8
    assert host.events == [Synced()]


def test_registers_are_those_that_the_rom_had(host: Host) -> None:
    assert host.ask(request(READ_REG, pack(0x40001000))).value == 0x00F01D83
    assert host.ask(request(SPI_ATTACH, pack(0))).value == 0


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (request(READ_FLASH_SLOW, pack(0, 64)), 0xC3),
        (request(0xFE), 0xC3),
        (request(GET_SECURITY_INFO), 0xFF),
        (request(READ_REG), 0xC0),
        (request(SYNC, b"short"), 0xC0),
        (request(SPI_ATTACH, pack(0, 0)), 0xC0),
        (request(CHANGE_BAUDRATE, pack(0, 0)), 0xC0),
        (request(ERASE_REGION, pack(1, 4096)), 0xC0),
        (request(ERASE_REGION, pack(0, 1 << 30)), 0xC4),
        (request(SPI_FLASH_MD5, pack(0, 1 << 30, 0, 0)), 0xC4),
        (request(FLASH_BEGIN, pack(4096, 1, 0x8000, 0)), 0xC2),
        (request(FLASH_BEGIN, pack(4096, 1, 0x4000, 1 << 30)), 0xC4),
        (request(FLASH_BEGIN, pack(4096, 1, 0x4000, 0, 1)), 0xC4),
        (block(FLASH_DATA, b"data"), 0xC6),
        (request(FLASH_END, pack(1)), 0xC6),
        (block(MEM_DATA, b"data"), 0xC6),
    ],
)
def test_errors_are_the_stubs_own(host: Host, frame: bytes, error: int) -> None:
    assert host.ask(frame).body == bytes((error, 0))
    assert isinstance(host.events[-1], CommandRefused)


def test_baudrate_change_is_told(host: Host) -> None:
    assert host.ask(request(CHANGE_BAUDRATE, pack(921600, 115200))).body == OK
    assert host.events == [BaudrateChanged(921600)]


def test_uart_divider_follows_the_baudrate(host: Host) -> None:
    host.ask(request(CHANGE_BAUDRATE, pack(460800, 115200)))
    assert host.ask(request(READ_REG, pack(0x3FF40014))).value == 40_000_000 // 460800


def test_flash_is_attached_by_the_stub_itself(host: Host) -> None:
    writes = [(0x1C, 1 << 31 | 1 << 28), (0x24, 7 << 28 | 0x9F), (0x2C, 23), (0x00, 1 << 18)]
    for offset, value in writes:
        host.ask(request(WRITE_REG, pack(0x3FF42000 + offset, value, 0xFFFFFFFF, 0)))
    assert host.ask(request(READ_REG, pack(0x3FF42080))).value == 0x1440EF


def test_flash_is_erased_as_it_is_written(host: Host) -> None:
    host.flash.write(0, bytes(host.flash.size_bytes))
    data = random.Random(1).randbytes(0x6000)
    host.ask(request(FLASH_BEGIN, pack(len(data), 2, 0x4000, 0x1000, 0)))
    assert host.events == []
    host.ask(block(FLASH_DATA, data[:0x4000], 0))
    assert host.flash.read(0x5000, 0x1000) == bytes(0x1000)
    host.ask(block(FLASH_DATA, data[0x4000:].ljust(0x4000, b"\xff"), 1))
    assert host.flash.read(0, 0x8000) == bytes(0x1000) + data + bytes(0x1000)
    assert host.ask(request(FLASH_END, pack(1))).body == OK
    assert host.events[4] == FlashWritten(0x1000, 0x4000)
    assert host.events[-1] == FlashWritten(0x5000, 0x2000)


def test_64_kb_are_erased_at_once_where_they_fit(host: Host) -> None:
    host.ask(request(FLASH_BEGIN, pack(0x11000, 5, 0x4000, 0x10000, 0)))
    host.ask(block(FLASH_DATA, bytes(0x4000)))
    assert host.events[0] == FlashErased(0x10000, 0x10000)


def test_no_more_is_erased_than_was_announced(host: Host) -> None:
    host.ask(request(FLASH_BEGIN, pack(0x1000, 1, 0x4000, 0x10000, 0)))
    host.ask(block(FLASH_DATA, bytes(0x1000)))
    assert host.events == [FlashErased(0x10000, 0x1000), FlashWritten(0x10000, 0x1000)]


def test_compressed_data_are_inflated(host: Host) -> None:
    data = random.Random(1).randbytes(30_000)
    packed = zlib.compress(data)
    host.ask(request(FLASH_DEFL_BEGIN, pack(len(data), 2, 0x4000, 0x1000, 0)))
    host.ask(block(FLASH_DEFL_DATA, packed[:0x4000], 0))
    host.ask(block(FLASH_DEFL_DATA, packed[0x4000:], 1))
    assert host.ask(request(FLASH_DEFL_END, pack(1))).body == OK
    assert host.flash.read(0x1000, len(data)) == data


def test_an_error_while_writing_is_told_to_the_next_command(host: Host) -> None:
    host.ask(request(FLASH_DEFL_BEGIN, pack(4096, 1, 0x4000, 0, 0)))
    assert host.ask(block(FLASH_DEFL_DATA, b"not compressed")).body == OK
    assert host.ask(request(READ_REG, pack(0x40001000))).body == b"\xc7\x00"
    assert host.ask(request(READ_REG, pack(0x40001000))).body == OK


def test_a_wrong_checksum_is_told_at_once(host: Host) -> None:
    host.ask(request(FLASH_BEGIN, pack(4, 1, 0x4000, 0, 0)))
    assert host.ask(block(FLASH_DATA, b"data", checksum=0)).body == b"\xc1\x00"
    assert host.flash.read(0, 4) == b"\xff" * 4


def test_flash_end_is_refused_while_data_are_missing(host: Host) -> None:
    host.ask(request(FLASH_BEGIN, pack(8, 1, 0x4000, 0, 0)))
    host.ask(block(FLASH_DATA, b"data"))
    assert host.ask(request(FLASH_END, pack(1))).body == b"\xc0\x00"


def test_digest_is_sent_raw(host: Host) -> None:
    host.flash.write(100, b"data")
    response = host.ask(request(SPI_FLASH_MD5, pack(100, 4, 0, 0)))
    assert response.body == hashlib.md5(b"data", usedforsecurity=False).digest() + OK


def test_erase_commands_erase(host: Host) -> None:
    size = host.flash.size_bytes
    host.flash.write(0, bytes(size))
    assert host.ask(request(ERASE_REGION, pack(0x1000, 0x2000))).body == OK
    assert host.flash.read(0, 0x4000) == bytes(0x1000) + b"\xff" * 0x2000 + bytes(0x1000)
    assert host.ask(request(ERASE_FLASH)).body == OK
    assert host.flash.read(0, size) == b"\xff" * size
    assert host.events == [FlashErased(0x1000, 0x2000), FlashErased(0, size)]


def test_flash_is_read_packet_by_acknowledged_packet(host: Host) -> None:
    data = random.Random(1).randbytes(10_000)
    host.flash.write(0x123, data)
    answer, packet = host.send(request(READ_FLASH, pack(0x123, len(data), 4096, 64)))
    assert decode(answer).body == OK
    received = packet
    while len(received) < len(data):
        (packet,) = host.send(slip(pack(len(received))))
        received += packet
    assert received == data
    (digest,) = host.send(slip(pack(len(received))))
    assert digest == hashlib.md5(data, usedforsecurity=False).digest()
    assert host.ask(request(SPI_ATTACH, pack(0))).body == OK


def test_what_is_no_acknowledgement_ends_the_read(host: Host) -> None:
    host.send(request(READ_FLASH, pack(0, 10_000, 4096, 64)))
    (digest,) = host.send(request(SPI_ATTACH, pack(0)))
    assert digest == hashlib.md5(b"\xff" * 4096, usedforsecurity=False).digest()
    assert host.ask(request(SPI_ATTACH, pack(0))).body == OK


@pytest.mark.parametrize("packet_bytes", [0, 8192])
def test_impossible_packets_are_refused_afterwards(host: Host, packet_bytes: int) -> None:
    assert host.ask(request(READ_FLASH, pack(0, 10_000, packet_bytes, 64))).body == OK
    assert host.ask(request(SPI_ATTACH, pack(0))).body == b"\xc0\x00"


@pytest.mark.parametrize(
    ("generation", "events"), [("legacy", [ResetRequested(True)]), ("current", [])]
)
def test_only_the_legacy_stub_resets_at_flash_end(generation: str, events: list[Event]) -> None:
    host = start(generation)
    host.ask(request(FLASH_BEGIN, pack(0, 0, 0x4000, 0)))
    assert host.ask(request(FLASH_END, pack(0))).body == OK
    assert host.events == events


@pytest.mark.parametrize(("generation", "events"), [("legacy", [AppStarted()]), ("current", [])])
def test_only_the_legacy_stub_runs_user_code(generation: str, events: list[Event]) -> None:
    host = start(generation)
    assert host.send(request(RUN_USER_CODE)) == []
    assert host.events == events


def test_ram_download_runs_code(host: Host) -> None:
    assert host.ask(request(MEM_BEGIN, pack(4, 1, 0x1800, 0x40080000))).body == OK
    assert host.ask(block(MEM_DATA, b"codes")).body == b"\xc9\x00"
    assert host.ask(block(MEM_DATA, b"code")).body == OK
    assert host.ask(request(MEM_END, pack(0, 0x40080000))).body == OK
    assert isinstance(host.events[-1], AppStarted)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 0x15), st.integers(0xD0, 0xD5)),
            st.one_of(
                st.binary(max_size=40),
                st.lists(st.sampled_from([0, 1, 4, 4096, 1 << 18, 0xFFFFFFFF]), max_size=6).map(
                    lambda words: pack(*words)
                ),
            ),
        ),
        max_size=20,
    )
)
def test_no_request_raises(requests: list[tuple[int, bytes]]) -> None:
    host = start(flash_bytes=1 << 18)
    for opcode, body in requests:
        host.send(request(opcode, body))
    host.send(slip(b"end any read"))
    host.send(request(SYNC))  # takes the error that a write may have left
    answers = host.send(request(SYNC, SYNC_BODY))
    has_left = any(isinstance(event, AppStarted | ResetRequested) for event in host.events)
    assert len(answers) == (0 if has_left else 8)
