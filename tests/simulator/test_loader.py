"""Download mode, byte by byte: the boot ROM's loader and the flasher stub."""

import hashlib
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.chips import CHIPS
from gateway.simulator.flash import Flash
from gateway.simulator.loader import (
    AppStarted,
    BaudrateChanged,
    DownloadMode,
    Event,
    ResetRequested,
)
from tests.support.download_host import (
    CHANGE_BAUDRATE,
    ERASE_FLASH,
    ERASE_REGION,
    FLASH_BEGIN,
    FLASH_DATA,
    FLASH_DEFL_BEGIN,
    FLASH_DEFL_DATA,
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
ROM_OK = b"\x00\x00\x00\x00"
STUB_OK = b"\x00\x00"


@pytest.fixture
def host() -> Host:
    return Host()


def started(generation: str = "current", flash_bytes: int = 1 << 20) -> Host:
    host = Host(flash_bytes=flash_bytes)
    host.start_stub(generation)
    host.events.clear()
    return host


@pytest.fixture
def stub() -> Host:
    return started()


def erased(offset: int, size: int) -> Event:
    return {"event": "flash_erased", "offset": offset, "size": size}


def written(offset: int, size: int) -> Event:
    return {"event": "flash_written", "offset": offset, "size": size}


def refused(host: Host) -> bool:
    event = host.events[-1]
    return isinstance(event, dict) and event["event"] == "command_refused"


def md5(data: bytes) -> "hashlib._Hash":
    return hashlib.md5(data, usedforsecurity=False)


# Framing.


@given(st.lists(st.sampled_from([0xC0, 0xDB, 0xDC, 0xDD, 0, 1, 8])).map(bytes), st.data())
def test_garbage_is_ignored_and_two_frames_are_enough_to_be_in_step(
    garbage: bytes, data: st.DataObject
) -> None:
    host = Host(flash_bytes=1 << 18)
    stream = garbage + slip(b"lost") + request(READ_REG, pack(MAGIC)) + b"noise"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    answers = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        answers += host.send(stream[start:end])
    assert decode(answers[-1]).value == 0x00F01D83


@pytest.mark.parametrize("content", [b"\xdb", b"a\xdbb", b"\xdb\xdb\xdc", b"\xdb\xdc\xdb"])
def test_an_invalid_escape_drops_its_frame_alone(host: Host, content: bytes) -> None:
    answers = host.send(b"\xc0" + content + b"\xc0" + request(READ_REG, pack(MAGIC)))
    assert len(answers) == 1


@pytest.mark.parametrize("byte", [0x61, 0xC0, 0xDB])
def test_frames_are_taken_up_to_the_limit(byte: int) -> None:
    header = struct.pack("<BBHI", 0, MEM_DATA, 0, 0)
    mode = DownloadMode(CHIPS["esp32"], Flash(1 << 18), len(header) + 10)
    assert mode.receive_data(slip(header + bytes([byte]) * 10)) != []
    assert mode.receive_data(slip(header + bytes([byte]) * 11)) == []
    mode.receive_data(b"\xc0")
    for _ in range(100):
        mode.receive_data(bytes(1000))
    assert len(mode._slip._content) <= 2 * (len(header) + 10) + 1
    assert mode.receive_data(b"\xc0" + slip(header)) != []


# The boot ROM.


def test_sync_is_answered_eight_times_with_a_value_that_is_no_stubs(host: Host) -> None:
    responses = [decode(payload) for payload in host.send(request(SYNC, SYNC_BODY))]
    assert len(responses) == 8
    assert {(response.opcode, response.body) for response in responses} == {(SYNC, ROM_OK)}
    assert responses[0].value != 0
    assert host.events == [{"event": "sync"}]


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
    assert host.ask(request(CHANGE_BAUDRATE, pack(921600, 0))).body == ROM_OK
    assert host.events == [BaudrateChanged(921600)]


def test_flash_is_out_of_reach_before_it_is_attached(host: Host) -> None:
    assert host.ask(request(FLASH_BEGIN, pack(4096, 4, 1024, 0))).status == b"\x01\x06"
    assert host.ask(request(READ_FLASH_SLOW, pack(0, 64))).status == b"\x01\x06"


END = 1 << 20


def begin(size: int, blocks: int = 1, offset: int = 0, opcode: int = FLASH_BEGIN) -> bytes:
    return request(opcode, pack(size, blocks, 1024, offset))


def begin_compressed(size: int) -> bytes:
    return begin(size, opcode=FLASH_DEFL_BEGIN)


MEM_BEGUN = request(MEM_BEGIN, pack(4, 1, 0x1800, 0x40080000))


@pytest.mark.parametrize(
    ("before", "frame", "error"),
    [
        ([begin(4)], block(FLASH_DATA, b"data", checksum=0), 0x07),
        ([], block(FLASH_DATA, b"data"), 0x06),
        ([begin(4), block(FLASH_DATA, b"data")], block(FLASH_DATA, b"more", 1), 0x06),
        ([begin(0, offset=0x1000)], block(FLASH_DATA, b"data"), 0x08),  # it is not erased there
        ([], begin(1, offset=END), 0x06),
        ([], request(READ_FLASH_SLOW, pack(END - 1, 64)), 0x09),
        ([], request(READ_FLASH_SLOW, pack(0, 65)), 0x0A),
        ([], request(SPI_FLASH_MD5, pack(0, END + 1, 0, 0)), 0x09),
        ([begin(1, offset=END - 1)], block(FLASH_DATA, b"ab"), 0x08),
        ([begin_compressed(3072)], block(FLASH_DEFL_DATA, b"not compressed"), 0x0B),
        ([begin_compressed(4096)], block(FLASH_DEFL_DATA, zlib.compress(bytes(1 << 20))), 0x0B),
        ([], block(MEM_DATA, b"data"), 0x06),
        ([MEM_BEGUN], block(MEM_DATA, b"code", checksum=1), 0x07),
        ([MEM_BEGUN], block(MEM_DATA, b"codes"), 0x06),
        ([], request(MEM_BEGIN, pack(1 << 30, 1, 1, 0)), 0x06),
    ],
)
def test_what_can_not_be_done_is_refused_and_changes_nothing(
    host: Host, before: list[bytes], frame: bytes, error: int
) -> None:
    host.attach()
    host.flash.write(0x1000, bytes(4))
    assert all(host.ask(each).body == ROM_OK for each in before)
    contents = host.flash.read(0, END - 1)
    n_events = len(host.events)
    assert host.ask(frame).body == bytes((1, error, 0, 0))
    assert refused(host)
    assert len(host.events) == n_events + 1
    assert host.flash.read(0, END - 1) == contents


def test_slow_read_always_sends_64_bytes(host: Host) -> None:
    host.attach()
    host.flash.write(100, b"data")
    assert host.ask(request(READ_FLASH_SLOW, pack(100, 4))).body == b"data" + bytes(60) + ROM_OK


@pytest.mark.parametrize(("word", "event"), [(0, ResetRequested(True)), (1, AppStarted())])
def test_flash_end_leaves_download_mode_for_good(
    host: Host, word: int, event: AppStarted | ResetRequested
) -> None:
    assert host.ask(request(FLASH_END, pack(word))).body == ROM_OK
    assert host.events == [event]
    assert host.send(request(SYNC, SYNC_BODY)) == []


@pytest.mark.parametrize("generation", STUBS)
def test_jump_into_an_uploaded_stub_starts_it(host: Host, generation: str) -> None:
    answer, greeting = host.start_stub(generation)
    assert decode(answer).body == ROM_OK
    assert greeting == b"OHAI"
    assert host.events == [{"event": "stub_started"}]


def test_jump_elsewhere_runs_user_code(host: Host) -> None:
    for frame in (MEM_BEGUN, block(MEM_DATA, b"code"), request(MEM_END, pack(0, 0x40080000))):
        assert host.ask(frame).body == ROM_OK
    assert host.events == [AppStarted()]


def test_ram_download_without_jump_stays(host: Host) -> None:
    assert host.ask(request(MEM_END, pack(1, 0))).body == ROM_OK
    assert host.ask(request(READ_REG, pack(MAGIC))).value == 0x00F01D83


@pytest.mark.parametrize("chip_name", ["esp32c3", "esp32s2"])
def test_an_armed_watchdog_resets_the_chip_once_it_is_locked(chip_name: str) -> None:
    host = Host(chip_name)
    watchdog = CHIPS[chip_name].watchdog
    assert watchdog is not None
    enable = request(WRITE_REG, pack(watchdog.config, 1 << 31 | 5 << 28, 0xFFFFFFFF, 0))
    unlock = request(WRITE_REG, pack(watchdog.write_protect, 0x50D83AA1, 0xFFFFFFFF, 0))
    lock = request(WRITE_REG, pack(watchdog.write_protect, 0, 0xFFFFFFFF, 0))
    for frame in (enable, unlock, lock):  # what is written while it is locked is lost
        assert host.ask(frame).body == ROM_OK
    for frame in (unlock, enable):
        assert host.ask(frame).body == ROM_OK
    assert host.events == []
    assert host.ask(lock).body == ROM_OK
    assert host.events == [ResetRequested(into_bootloader=False)]


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
    assert host.events == [erased(offset, erased_sectors * 4096)]


@given(st.lists(st.tuples(st.integers(0, 0x15), st.binary(max_size=40)), max_size=20))
def test_no_request_raises(requests: list[tuple[int, bytes]]) -> None:
    host = Host(flash_bytes=1 << 18)
    for opcode, body in requests:
        host.send(request(opcode, body))
    answers = host.send(request(SYNC, SYNC_BODY))
    has_left = any(isinstance(event, AppStarted | ResetRequested) for event in host.events)
    assert len(answers) == (0 if has_left else 8)


# The flasher stub.


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
def test_errors_are_the_stubs_own(stub: Host, frame: bytes, error: int) -> None:
    assert stub.ask(frame).body == bytes((error, 0))
    assert refused(stub)


def test_64_kb_are_erased_at_once_where_they_fit(stub: Host) -> None:
    stub.ask(request(FLASH_BEGIN, pack(0x11000, 5, 0x4000, 0x10000, 0)))
    stub.ask(block(FLASH_DATA, bytes(0x4000)))
    assert stub.events[0] == erased(0x10000, 0x10000)


def test_no_more_is_erased_than_was_announced(stub: Host) -> None:
    stub.ask(request(FLASH_BEGIN, pack(0x1000, 1, 0x4000, 0x10000, 0)))
    stub.ask(block(FLASH_DATA, bytes(0x1000)))
    assert stub.events == [erased(0x10000, 0x1000), written(0x10000, 0x1000)]


def test_an_error_while_writing_is_told_to_the_next_command(stub: Host) -> None:
    stub.ask(request(FLASH_DEFL_BEGIN, pack(4096, 1, 0x4000, 0, 0)))
    assert stub.ask(block(FLASH_DEFL_DATA, b"not compressed")).body == STUB_OK
    assert stub.ask(request(READ_REG, pack(0x40001000))).body == b"\xc7\x00"
    assert stub.ask(request(READ_REG, pack(0x40001000))).body == STUB_OK


@pytest.mark.parametrize(
    ("frame", "error"),
    [(block(FLASH_DATA, b"data", checksum=0), 0xC1), (request(FLASH_END, pack(1)), 0xC0)],
)
def test_a_wrong_checksum_and_missing_data_are_told_at_once(
    stub: Host, frame: bytes, error: int
) -> None:
    stub.ask(request(FLASH_BEGIN, pack(8, 1, 0x4000, 0, 0)))
    assert stub.ask(frame).body == bytes((error, 0))
    assert stub.flash.read(0, 4) == b"\xff" * 4


def test_what_is_no_acknowledgement_ends_the_read(stub: Host) -> None:
    stub.send(request(READ_FLASH, pack(0, 10_000, 4096, 64)))
    (digest,) = stub.send(request(SPI_ATTACH, pack(0)))
    assert digest == md5(b"\xff" * 4096).digest()
    assert stub.ask(request(SPI_ATTACH, pack(0))).body == STUB_OK


@pytest.mark.parametrize("packet_bytes", [0, 8192])
def test_impossible_packets_are_refused_afterwards(stub: Host, packet_bytes: int) -> None:
    assert stub.ask(request(READ_FLASH, pack(0, 10_000, packet_bytes, 64))).body == STUB_OK
    assert stub.ask(request(SPI_ATTACH, pack(0))).body == b"\xc0\x00"


@pytest.mark.parametrize("is_legacy", [True, False])
def test_only_the_legacy_stub_resets_at_flash_end_and_runs_user_code(is_legacy: bool) -> None:
    stub = started("legacy" if is_legacy else "current")
    stub.ask(request(FLASH_BEGIN, pack(0, 0, 0x4000, 0)))
    assert stub.ask(request(FLASH_END, pack(0))).body == STUB_OK
    assert stub.events == [ResetRequested(into_bootloader=True)] * is_legacy
    stub = started("legacy" if is_legacy else "current")
    assert stub.send(request(RUN_USER_CODE)) == []
    assert stub.events == [AppStarted()] * is_legacy


def test_ram_download_runs_code(stub: Host) -> None:
    assert stub.ask(request(MEM_BEGIN, pack(4, 1, 0x1800, 0x40080000))).body == STUB_OK
    assert stub.ask(block(MEM_DATA, b"codes")).body == b"\xc9\x00"
    assert stub.ask(block(MEM_DATA, b"code")).body == STUB_OK
    assert stub.ask(request(MEM_END, pack(0, 0x40080000))).body == STUB_OK
    assert isinstance(stub.events[-1], AppStarted)


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
def test_no_request_raises_of_the_stub(requests: list[tuple[int, bytes]]) -> None:
    stub = started(flash_bytes=1 << 18)
    for opcode, body in requests:
        stub.send(request(opcode, body))
    stub.send(slip(b"end any read"))
    stub.send(request(SYNC))  # takes the error that a write may have left
    answers = stub.send(request(SYNC, SYNC_BODY))
    has_left = any(isinstance(event, AppStarted | ResetRequested) for event in stub.events)
    assert len(answers) == (0 if has_left else 8)
